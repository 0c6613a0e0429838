//! The trainable tensors of a student: which layers are substituted and with what, all values in one flat vector that the optimiser,
//! checkpoints and gradients share.

use std::ops::Range;

use ggml_ext::gguf::{Gguf, TensorInfo};
use ggml_ext::lisa::{Activation, Domain, Geometry, Kind, LayerMeta, LisaMeta, Part, Provenance};
use ggml_ext::{GgmlType, blocks};

/// A substituted layer's modules: their sizes, and where they lie in the flat vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Module {
    /// The layer.
    pub layer: usize,
    /// Where its attention weights come from.
    pub source: usize,
    /// `lisa` or `shared`.
    pub kind: Kind,
    /// Query heads, as many as the source has.
    pub n_head: usize,
    /// Key/value heads.
    pub n_head_kv: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Values per low-rank head.
    pub rank: usize,
    /// Hidden units.
    pub n_hidden: usize,
    /// Whether a `shared` layer has linear compensation.
    pub comp: bool,
    /// Radians per position, `[n_head_kv, rank / 2]`; not trained.
    pub freq: Vec<f32>,
    /// Where its values begin.
    pub start: usize,
}

impl Module {
    /// The parts that are trained with their lengths, in the order of the flat vector. Alignment matrices lie with a row per result.
    pub fn parts(&self) -> impl Iterator<Item = (Part, usize)> {
        let (h, m, d, r) = (self.n_head, self.n_hidden, self.n_embd, self.rank);
        let lisa = usize::from(self.kind == Kind::Lisa);
        [
            (Part::AlignSkip, lisa * h * h),
            (Part::AlignUp, m * h),
            (Part::AlignUpBias, m),
            (Part::AlignDown, h * m),
            (Part::Q, h * r * d),
            (Part::K, self.n_head_kv * r * d),
            (Part::Comp, usize::from(self.comp) * d * d),
        ]
        .into_iter()
        .filter(|(_, len)| *len > 0)
    }

    /// Where `part` lies in the flat vector; empty where the module has none.
    pub fn range(&self, part: Part) -> Range<usize> {
        let mut at = self.start;
        for (p, len) in self.parts() {
            if p == part {
                return at..at + len;
            }
            at += len;
        }
        at..at
    }

    /// Trained values.
    pub fn len(&self) -> usize {
        self.parts().map(|(_, len)| len).sum()
    }

    /// True when nothing of it is trained: a `shared` layer without compensation.
    pub fn is_empty(&self) -> bool {
        self.parts().next().is_none()
    }
}

/// What a matrix of zeros learns relative to.
const LEAST_SIZE: f32 = 1e-3;

/// What alignments learn relative to.
const ALIGN_SIZE: f32 = 0.2;

/// All modules of a student.
#[derive(Debug, Clone, PartialEq)]
pub struct Modules {
    /// By layer.
    list: Vec<Module>,
    /// Of the hidden units.
    pub activation: Activation,
    /// What the alignment sees.
    pub domain: Domain,
    /// Factor on the low-rank products.
    pub scale: f32,
    /// Every trained value.
    pub values: Vec<f32>,
}

impl Modules {
    /// The modules of `list`, whose `start` is set here, with all values zero.
    pub fn new(mut list: Vec<Module>, activation: Activation, domain: Domain, scale: f32) -> Self {
        list.sort_by_key(|m| m.layer);
        let mut n = 0;
        for m in &mut list {
            m.start = n;
            n += m.len();
        }
        Self { list, activation, domain, scale, values: vec![0.0; n] }
    }

    /// No layer substituted: the unchanged model.
    pub fn none() -> Self {
        Self::new(Vec::new(), Activation::Silu, Domain::Log, 1.0)
    }

    /// The same modules with other values.
    pub fn with_values(&self, values: &[f32]) -> Self {
        assert_eq!(values.len(), self.values.len());
        Self { values: values.to_vec(), ..self.clone() }
    }

    /// The module of `layer`, where it is substituted.
    pub fn get(&self, layer: usize) -> Option<&Module> {
        self.list.iter().find(|m| m.layer == layer)
    }

    /// All modules, by layer.
    pub fn iter(&self) -> std::slice::Iter<'_, Module> {
        self.list.iter()
    }

    /// The first substituted layer.
    pub fn first(&self) -> Option<usize> {
        self.list.first().map(|m| m.layer)
    }

    /// The layer whose scores `layer` uses: its own, or through a chain of `shared` layers another's.
    pub fn owner(&self, layer: usize) -> usize {
        match self.get(layer) {
            Some(m) if m.kind == Kind::Shared => self.owner(m.source),
            _ => layer,
        }
    }

    /// The values of a part; empty where the module has none.
    pub fn part(&self, m: &Module, part: Part) -> &[f32] {
        &self.values[m.range(part)]
    }

    /// The values of a part, to write.
    pub fn part_mut(&mut self, layer: usize, part: Part) -> &mut [f32] {
        let range = self.get(layer).map_or(0..0, |m| m.range(part));
        &mut self.values[range]
    }

    /// Makes steps relative to what they change, so that a learning rate means the same in every model: to the root mean square of a
    /// matrix's values; alignments work on logarithms of weights, which are of the same size everywhere.
    pub fn relative(&self, steps: &mut [f32]) {
        for m in &self.list {
            for (part, _) in m.parts() {
                let scale = match part {
                    Part::Q | Part::K | Part::Comp => {
                        let x = self.part(m, part);
                        let square = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64;
                        (square.sqrt() as f32).max(LEAST_SIZE)
                    }
                    _ => ALIGN_SIZE,
                };
                steps[m.range(part)].iter_mut().for_each(|s| *s *= scale);
            }
        }
    }

    /// The modules of `sidecar`, whose metadata are `meta`, for a model of this `geometry`. The file must have passed
    /// [`ggml_ext::lisa::check_sidecar`], and its layers must be of kinds `full`, `shared` and `lisa`: `kv` has nothing to train.
    pub fn read(meta: &LisaMeta, sidecar: &Gguf, geometry: &Geometry) -> Self {
        let floats = |layer: usize, part: Part| -> Vec<f32> {
            let name = part.tensor(layer);
            let Some(t) = sidecar.tensors().iter().find(|t| t.name == name) else { return Vec::new() };
            let mut out = vec![0.0; t.shape.iter().product::<u64>() as usize];
            blocks::dequantize_row(t.ty, sidecar.tensor_data(t), &mut out);
            out
        };
        let mut list = Vec::new();
        for (layer, of) in meta.layers.iter().enumerate() {
            let Some(source) = of.source else { continue };
            list.push(Module {
                layer,
                source,
                kind: of.kind,
                n_head: geometry.layers[layer].n_head,
                n_head_kv: geometry.layers[layer].n_head_kv,
                n_embd: geometry.n_embd,
                rank: of.rank,
                n_hidden: floats(layer, Part::AlignUpBias).len(),
                comp: !floats(layer, Part::Comp).is_empty(),
                freq: floats(layer, Part::Freq),
                start: 0,
            });
        }
        let mut all = Self::new(list, meta.activation, meta.domain, meta.scale);
        for m in all.list.clone() {
            for (part, _) in m.parts() {
                let x = floats(m.layer, part);
                let x = match part {
                    // Stored with a row per input.
                    Part::AlignSkip | Part::AlignDown => by_input(&x, m.n_head),
                    Part::AlignUp => by_input(&x, m.n_hidden),
                    _ => x,
                };
                all.part_mut(m.layer, part).copy_from_slice(&x);
            }
        }
        all
    }

    /// The metadata of the sidecar for a model of `n_layer` layers.
    pub fn meta(&self, n_layer: usize, fingerprint: String, trained: Provenance) -> LisaMeta {
        let mut layers = vec![LayerMeta::FULL; n_layer];
        for m in &self.list {
            layers[m.layer] = LayerMeta { kind: m.kind, source: Some(m.source), rank: m.rank };
        }
        let (activation, domain, scale) = (self.activation, self.domain, self.scale);
        LisaMeta { fingerprint, layers, activation, domain, scale, trained }
    }

    /// The sidecar's tensors, low-rank and compensation matrices in F16.
    pub fn tensors(&self) -> Vec<(TensorInfo, Vec<u8>)> {
        let mut out = Vec::new();
        for m in &self.list {
            let (h, d, r) = (m.n_head, m.n_embd, m.rank);
            for (part, _) in m.parts() {
                let x = self.part(m, part);
                let (shape, ty, x) = match part {
                    Part::AlignSkip => (vec![h, h], GgmlType::F32, by_input(x, h)),
                    Part::AlignUp => (vec![m.n_hidden, h], GgmlType::F32, by_input(x, h)),
                    Part::AlignDown => (vec![h, m.n_hidden], GgmlType::F32, by_input(x, m.n_hidden)),
                    Part::AlignUpBias => (vec![m.n_hidden], GgmlType::F32, x.to_vec()),
                    Part::Q => (vec![d, h * r], GgmlType::F16, x.to_vec()),
                    Part::K => (vec![d, m.n_head_kv * r], GgmlType::F16, x.to_vec()),
                    _ => (vec![d, d], GgmlType::F16, x.to_vec()),
                };
                out.push(tensor(part.tensor(m.layer), &shape, ty, &x));
            }
            if r > 0 {
                out.push(tensor(Part::Freq.tensor(m.layer), &[r / 2, m.n_head_kv], GgmlType::F32, &m.freq));
            }
        }
        out
    }
}

/// The transpose of a matrix with rows of `n_in`.
fn by_input(x: &[f32], n_in: usize) -> Vec<f32> {
    let n_out = x.len() / n_in;
    (0..x.len()).map(|i| x[i % n_out * n_in + i / n_out]).collect()
}

fn tensor(name: String, shape: &[usize], ty: GgmlType, x: &[f32]) -> (TensorInfo, Vec<u8>) {
    let data: Vec<u8> = match ty {
        // Beyond F16's range is only what training has ruined; the largest finite value keeps the file readable.
        GgmlType::F16 => {
            x.iter().flat_map(|&v| half::f16::from_f32(v.clamp(-65504.0, 65504.0)).to_le_bytes()).collect()
        }
        _ => x.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    let shape = shape.iter().map(|&n| n as u64).collect();
    (TensorInfo { name, shape, ty, offset: 0, n_bytes: data.len() as u64 }, data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distill::testing::noise;
    use ggml_ext::lisa::{Heads, write_sidecar};

    /// Written and read again, modules are the same but for the rounding to F16.
    #[test]
    fn sidecars_bring_modules_back() {
        let module = |layer, kind, rank, n_hidden, comp| Module {
            layer,
            source: layer - 1,
            kind,
            n_head: 3,
            n_head_kv: 1,
            n_embd: 6,
            rank,
            n_hidden,
            comp,
            freq: (0..rank / 2).map(|i| i as f32 + 0.25).collect(),
            start: 0,
        };
        let list = vec![module(2, Kind::Shared, 0, 0, true), module(1, Kind::Lisa, 4, 2, false)];
        let mut all = Modules::new(list, Activation::Gelu, Domain::Weight, 0.3);
        // Numbers that F16 has.
        all.values = noise(1, all.values.len(), 1.0).iter().map(|x| (x * 64.0).round() / 64.0).collect();
        let meta = all.meta(4, "0".repeat(64), Provenance::default());
        let (tensors, mut bytes) = (all.tensors(), Vec::new());
        write_sidecar("llama", &meta, tensors.iter().map(|(t, d)| (t, &d[..])), &mut bytes).unwrap();
        let gguf = Gguf::parse(&bytes).unwrap();
        let heads = Heads { n_head: 3, n_head_kv: 1, key_length: 8, value_length: 8 };
        let geometry = Geometry::uniform(4, 6, heads);
        let meta = LisaMeta::read(&gguf).unwrap().unwrap();
        ggml_ext::lisa::check_sidecar(&meta, &geometry, "llama", &gguf).unwrap();
        assert_eq!(Modules::read(&meta, &gguf, &geometry), all);
    }
}
