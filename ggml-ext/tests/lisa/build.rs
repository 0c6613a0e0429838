//! Bases and sidecars for the tests.

use ggml_ext::GgmlType;
use ggml_ext::blocks::quantize_row;
use ggml_ext::gguf::{Gguf, GgufWriter, TensorInfo};
use ggml_ext::lisa::{
    Activation, Domain, Geometry, Kind, LayerMeta, LisaMeta, MakeError, Merged, Part, Provenance, fingerprint, merge,
};
use std::io::Read;
use std::path::Path;

pub fn path(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// A tiny model of `tests/data/families`.
pub fn family(name: &str) -> Vec<u8> {
    let packed = std::fs::read(path(&format!("tests/data/families/{name}.gguf.gz"))).unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut bytes).unwrap();
    bytes
}

pub fn embedded() -> Vec<u8> {
    std::fs::read(path("models/stories260K.gguf")).unwrap()
}

pub fn layer(kind: Kind, source: usize, rank: usize) -> LayerMeta {
    LayerMeta { kind, source: Some(source), rank }
}

/// A plan with every kind: `full`, `lisa` of rank 4, then by `third`, and `full` to the end.
pub fn plan(base: &[u8], third: Kind) -> Vec<LayerMeta> {
    let n_layer = Geometry::read(&Gguf::parse(base).unwrap()).unwrap().layers.len();
    let source = if third == Kind::Kv { 0 } else { 1 };
    let rank = if third == Kind::Lisa { 2 } else { 0 };
    let mut layers = vec![LayerMeta::FULL, layer(Kind::Lisa, 0, 4), layer(third, source, rank)];
    layers.resize(n_layer, LayerMeta::FULL);
    layers
}

/// Values from -0.5 to 0.5, of a generator seeded by `seed`.
pub fn values(n: u64, seed: u64) -> Vec<f32> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| next()).collect()
}

pub fn encoded(ty: GgmlType, x: &[f32]) -> Vec<u8> {
    let mut out = vec![0; ty.row_bytes(x.len()).unwrap()];
    quantize_row(ty, x, &mut out);
    out
}

/// A sidecar in pieces that tests can change.
#[derive(Clone)]
pub struct Sidecar {
    pub arch: String,
    pub kind: &'static str,
    pub extra: Vec<(&'static str, &'static str)>,
    pub meta: LisaMeta,
    pub tensors: Vec<(TensorInfo, Vec<u8>)>,
}

impl Sidecar {
    /// All tensors that `layers` can have, with `n_hidden` hidden units (none for 0): low-rank queries in F16, keys in
    /// Q8_0.
    pub fn new(base: &[u8], layers: Vec<LayerMeta>, n_hidden: u64) -> Self {
        let gguf = Gguf::parse(base).unwrap();
        let geometry = Geometry::read(&gguf).unwrap();
        let bytes = |name: &str| gguf.tensor(name).map(|t| (t.ty, gguf.tensor_data(t)));
        let meta = LisaMeta {
            fingerprint: fingerprint(geometry.layers.len(), bytes).unwrap(),
            layers,
            activation: Activation::Silu,
            domain: Domain::Log,
            scale: 0.25,
            trained: Provenance { tokens: Some(3), data: Some("none".into()), seed: Some(4), base: None },
        };
        let mut tensors = Vec::new();
        let n_embd = geometry.n_embd as u64;
        for (i, of) in meta.layers.iter().enumerate() {
            let (heads, rank) = (geometry.layers[i], of.rank as u64);
            let (n_head, n_kv) = (heads.n_head as u64, heads.n_head_kv as u64);
            let mut add = |part: Part, shape: &[u64], ty: GgmlType| {
                let seed = tensors.len() as u64 + 1;
                tensors.push(tensor(&part.tensor(i), shape, ty, &values(shape.iter().product(), seed)));
            };
            if of.kind == Kind::Lisa {
                add(Part::AlignSkip, &[n_head, n_head], GgmlType::F32);
                if n_hidden > 0 {
                    add(Part::AlignUp, &[n_hidden, n_head], GgmlType::F32);
                    add(Part::AlignUpBias, &[n_hidden], GgmlType::F32);
                    add(Part::AlignDown, &[n_head, n_hidden], GgmlType::F32);
                }
                if rank > 0 {
                    add(Part::Q, &[n_embd, n_head * rank], GgmlType::F16);
                    add(Part::K, &[n_embd, n_kv * rank], GgmlType::Q8_0);
                    add(Part::Freq, &[rank / 2, n_kv], GgmlType::F32);
                }
            }
            if of.kind == Kind::Shared {
                add(Part::Comp, &[n_embd, n_embd], GgmlType::BF16);
            }
        }
        let arch = gguf.str("general.architecture").unwrap().unwrap().to_owned();
        Self { arch, kind: "adapter", extra: vec![], meta, tensors }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut w = GgufWriter::new(Vec::new());
        w.str("general.architecture", &self.arch).unwrap();
        w.str("general.type", self.kind).unwrap();
        w.str("adapter.type", "lisa").unwrap();
        self.extra.iter().filter(|(k, _)| !k.starts_with("lisa.")).for_each(|(k, v)| w.str(k, v).unwrap());
        self.meta.write(&mut w).unwrap();
        self.extra.iter().filter(|(k, _)| k.starts_with("lisa.")).for_each(|(k, v)| w.str(k, v).unwrap());
        self.tensors.iter().for_each(|(t, _)| w.tensor(&t.name, &t.shape, t.ty).unwrap());
        self.tensors.iter().for_each(|(t, data)| w.data(&t.name, data).unwrap());
        w.finish().unwrap()
    }

    /// The tensor `part` of layer `layer`.
    pub fn at(&mut self, layer: usize, part: Part) -> &mut (TensorInfo, Vec<u8>) {
        let name = part.tensor(layer);
        self.tensors.iter_mut().find(|(t, _)| t.name == name).unwrap()
    }

    pub fn without(mut self, layer: usize, part: Part) -> Self {
        let name = part.tensor(layer);
        self.tensors.retain(|(t, _)| t.name != name);
        self
    }

    /// Adds or replaces.
    pub fn with(mut self, name: &str, shape: &[u64], ty: GgmlType) -> Self {
        self.tensors.retain(|(t, _)| t.name != name);
        self.tensors.push(tensor(name, shape, ty, &values(shape.iter().product(), 99)));
        self
    }

    pub fn merge(&self, base: &[u8]) -> Result<(Vec<u8>, Merged), MakeError> {
        let bytes = self.bytes();
        merged(&[base], &bytes)
    }
}

pub fn tensor(name: &str, shape: &[u64], ty: GgmlType, x: &[f32]) -> (TensorInfo, Vec<u8>) {
    let data = encoded(ty, x);
    let info = TensorInfo { name: name.into(), shape: shape.into(), ty, offset: 0, n_bytes: data.len() as u64 };
    (info, data)
}

/// Merges a sidecar file into a model's parts, the plan being the sidecar's.
pub fn merged(base: &[&[u8]], sidecar: &[u8]) -> Result<(Vec<u8>, Merged), MakeError> {
    let base: Vec<_> = base.iter().map(|b| Gguf::parse(b).unwrap()).collect();
    let sidecar = Gguf::parse(sidecar).unwrap();
    let meta = LisaMeta::read(&sidecar).map_err(MakeError::Sidecar)?.unwrap();
    let mut out = Vec::new();
    let report = merge(&base, &meta, Some(&sidecar), &mut out)?;
    Ok((out, report))
}

/// A copy of a model with some tensors re-encoded, or with other metadata added.
pub fn rewritten(base: &[u8], ty: impl Fn(&TensorInfo) -> GgmlType, keys: &[(&str, &str)]) -> Vec<u8> {
    let gguf = Gguf::parse(base).unwrap();
    let mut w = GgufWriter::new(Vec::new());
    gguf.metadata().for_each(|(k, v)| w.value(k, v).unwrap());
    keys.iter().for_each(|(k, v)| w.str(k, v).unwrap());
    gguf.tensors().iter().for_each(|t| w.tensor(&t.name, &t.shape, ty(t)).unwrap());
    for t in gguf.tensors() {
        w.data(&t.name, &encoded(ty(t), &floats(&gguf, &t.name))).unwrap();
    }
    w.finish().unwrap()
}

/// A tensor's elements.
pub fn floats(gguf: &Gguf, name: &str) -> Vec<f32> {
    let t = gguf.tensor(name).unwrap_or_else(|| panic!("{name}"));
    let mut x = vec![0.0; t.n_elements() as usize];
    ggml_ext::blocks::dequantize_row(t.ty, gguf.tensor_data(t), &mut x);
    x
}
