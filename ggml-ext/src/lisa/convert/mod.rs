//! Sidecars from modules that were trained elsewhere: a safetensors file and a map of its names.

mod map;
mod rotary;
mod source;

pub use map::Map;

use std::collections::BTreeMap;
use std::io::Write;

use super::check::{belongs, check_plan, describe, non_finite};
use super::sidecar::{head, with_data};
use super::{
    Activation, Domain, Geometry, Heads, Kind, LayerMeta, LisaMeta, MakeError, Part, Provenance, Sum, check_tensors,
    identify, write_sidecar,
};
use crate::gguf::{Gguf, TensorInfo, WriteError};
use crate::{GgmlType, blocks};
use map::RopePairs;
use source::{Source, transposed};

/// Why modules could not be converted. The variants tell which of the files is at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The base model, or the file being written.
    #[error(transparent)]
    Make(#[from] MakeError),
    /// The map: names the key.
    #[error("{0}")]
    Map(String),
    /// The safetensors file: names the tensor.
    #[error("{0}")]
    Source(String),
}

/// An error about a tensor of the safetensors file.
fn source(name: &str, what: impl std::fmt::Display) -> ConvertError {
    ConvertError::Source(format!("tensor {name}: {what}"))
}

/// Writes the modules of a safetensors file as a sidecar for the model whose parts are `base`; returns its metadata and
/// what its tensors amount to.
///
/// # Errors
/// Names the file, the tensor in the safetensors file or the key of the map, and what was expected.
pub fn convert<W: Write>(
    base: &[Gguf],
    safetensors: &[u8],
    map: &Map,
    mut out: W,
) -> Result<(LisaMeta, Sum), ConvertError> {
    let (geometry, fingerprint) = identify(base)?;
    let arch = head(base)?.str("general.architecture").map_err(|e| MakeError::Model(e.into()))?.unwrap_or_default();
    let source = Source::parse(safetensors)?;
    let names = found(&source, map, geometry.layers.len())?;
    let layers = plan(&source, map, &names, &geometry)?;
    let meta = LisaMeta { fingerprint, scale: scale(map, &layers, &geometry)?, ..meta(map, layers)? };
    check_plan(&meta, &geometry).map_err(|e| ConvertError::Map(e.to_string()))?;

    let reader = Reader { base, source: &source, map, names: &names, geometry: &geometry, ty: output_type(map)? };
    let mut tensors = Vec::new();
    for (layer, &of) in meta.layers.iter().enumerate() {
        reader.layer(layer, of, &mut tensors)?;
    }
    let mut bytes = Vec::new();
    let items = tensors.iter().map(|(t, data)| (t, &data[..]));
    write_sidecar(arch, &meta, items, &mut bytes).map_err(MakeError::Write)?;

    // What is left to go wrong is the plan, such as a source that is not an earlier layer.
    let written = Gguf::parse(&bytes).map_err(|e| ConvertError::Map(e.to_string()))?;
    LisaMeta::read(&written).map_err(|e| ConvertError::Map(e.to_string()))?;
    check_tensors(&meta, &geometry, with_data(&written)).map_err(|e| ConvertError::Source(e.to_string()))?;
    out.write_all(&bytes).and_then(|()| out.flush()).map_err(|e| MakeError::Write(WriteError::Io(e)))?;
    let sum = Sum { tensors: tensors.len(), bytes: tensors.iter().map(|(t, _)| t.n_bytes).sum() };
    Ok((meta, sum))
}

/// The names of the tensors that fit the patterns.
type Names = BTreeMap<(usize, Part), String>;

fn found(source: &Source, map: &Map, n_layer: usize) -> Result<Names, ConvertError> {
    let mut names = Names::new();
    for name in source.names() {
        for &part in Part::ALL {
            let Some(layer) = map.tensors.get(part).and_then(|entry| entry.layer(name)) else { continue };
            if layer >= n_layer {
                return Err(self::source(name, format!("layer {layer}, the model has {n_layer}")));
            }
            if map.layers.as_ref().is_some_and(|layers| !layers.contains_key(&layer)) {
                return Err(self::source(name, format!("of layer {layer}, which the map's layers do not list")));
            }
            names.insert((layer, part), name.to_owned());
        }
    }
    match names.is_empty() && map.layers.is_none() {
        true => Err(ConvertError::Source("no tensor has a name that fits the map's tensors".into())),
        false => Ok(names),
    }
}

/// Kind, source and rank of every layer.
fn plan(source: &Source, map: &Map, names: &Names, geometry: &Geometry) -> Result<Vec<LayerMeta>, ConvertError> {
    let default = names.keys().map(|&(layer, _)| (layer, map::Layer::default())).collect();
    let mut plan = vec![LayerMeta::FULL; geometry.layers.len()];
    for (&layer, given) in map.layers.as_ref().unwrap_or(&default) {
        let wrong = |what: String| Err(ConvertError::Map(format!("layers.{layer}{what}")));
        if layer >= plan.len() {
            return wrong(format!(": no such layer, the model has {}", plan.len()));
        }
        let kind = match given.kind.as_deref() {
            None => Kind::Lisa,
            Some(name) => match Kind::from_name(name) {
                Some(kind) => kind,
                None => return wrong(format!(".kind: {name:?}, expected one of {}", Kind::names())),
            },
        };
        let before = match (kind, given.source) {
            (Kind::Full, None) => None,
            (_, Some(s)) if s < layer && kind != Kind::Full => Some(s),
            (Kind::Full, Some(s)) => return wrong(format!(".source: {s}, expected none: the layer is full")),
            (_, Some(s)) => return wrong(format!(".source: {s}, expected a layer before {layer}")),
            (_, None) if layer == 0 => return wrong(": no layer before it to be its source".into()),
            (_, None) => Some(layer - 1),
        };
        let rank = match (given.rank, names.get(&(layer, Part::Q))) {
            (Some(rank), _) if rank % 2 != 0 => {
                return wrong(format!(".rank: {rank}, expected an even number: values rotate in pairs"));
            }
            (Some(rank), _) => rank,
            (None, Some(name)) if kind == Kind::Lisa => {
                let order = map.tensors.get(Part::Q).map_or(map::Order::OutIn, |e| e.order());
                let (n_out, n_head) = (source.out_in(name, order)?.0, geometry.layers[layer].n_head);
                if n_head == 0 || !n_out.is_multiple_of(2 * n_head) {
                    let what = format!("{n_out} outputs, expected an even number for each of {n_head} heads");
                    return Err(self::source(name, what));
                }
                n_out / n_head
            }
            (None, _) => 0,
        };
        plan[layer] = LayerMeta { kind, source: before, rank };
    }
    Ok(plan)
}

fn meta(map: &Map, layers: Vec<LayerMeta>) -> Result<LisaMeta, ConvertError> {
    let activation = match &map.activation {
        Some(name) => Activation::from_name(name).ok_or_else(|| {
            ConvertError::Map(format!("activation: {name:?}, expected one of {}", Activation::names()))
        })?,
        None if map.tensors.get(Part::AlignUp).is_some() => {
            let what = format!("activation: missing, expected one of {} for the hidden units", Activation::names());
            return Err(ConvertError::Map(what));
        }
        None => Activation::Silu,
    };
    let domain = match &map.domain {
        Some(name) => Domain::from_name(name)
            .ok_or_else(|| ConvertError::Map(format!("domain: {name:?}, expected one of {}", Domain::names())))?,
        None => Domain::Log,
    };
    let t = &map.trained;
    let trained = Provenance { tokens: t.tokens, data: t.data.clone(), seed: t.seed, base: t.base.clone() };
    Ok(LisaMeta { fingerprint: String::new(), layers, activation, domain, scale: 1.0, trained })
}

/// The map's scale, or one over the root of the head length.
fn scale(map: &Map, layers: &[LayerMeta], geometry: &Geometry) -> Result<f32, ConvertError> {
    match map.scale {
        Some(s) if s.is_finite() && s > 0.0 => return Ok(s),
        Some(s) => return Err(ConvertError::Map(format!("scale: {s}, expected a positive number"))),
        None => {}
    }
    let mut lengths = layers.iter().zip(&geometry.layers).filter(|(l, _)| l.rank > 0).map(|(_, h)| h.key_length);
    match lengths.next() {
        None => Ok(1.0),
        Some(d) if lengths.all(|other| other == d) => Ok(1.0 / (d as f32).sqrt()),
        Some(_) => Err(ConvertError::Map("scale: missing, and the heads of the layers differ in length".into())),
    }
}

fn output_type(map: &Map) -> Result<GgmlType, ConvertError> {
    let Some(name) = &map.ty else { return Ok(GgmlType::F16) };
    GgmlType::ALL.iter().copied().find(|t| t.name() == name).ok_or_else(|| {
        let all = GgmlType::ALL.iter().map(|t| t.name()).collect::<Vec<_>>().join(", ");
        ConvertError::Map(format!("type: {name:?}, expected one of {all}"))
    })
}

/// Reads the tensors of one layer after the other.
struct Reader<'c, 'g> {
    base: &'c [Gguf<'g>],
    source: &'c Source<'c>,
    map: &'c Map,
    names: &'c Names,
    geometry: &'c Geometry,
    /// Of the low-rank projections and the compensation.
    ty: GgmlType,
}

impl Reader<'_, '_> {
    fn layer(&self, layer: usize, of: LayerMeta, out: &mut Vec<(TensorInfo, Vec<u8>)>) -> Result<(), ConvertError> {
        if let Some((_, name)) = self.names.iter().find(|((l, part), _)| *l == layer && !belongs(*part, of)) {
            return Err(source(name, format!("not expected, {}", describe(layer, of))));
        }
        let own = &self.geometry.layers[layer];
        let n_in = of.source.map_or(own.n_head, |s| self.geometry.layers[s].n_head);
        let has = |part| self.names.contains_key(&(layer, part));
        let has_hidden = has(Part::AlignUp) || has(Part::AlignUpBias) || has(Part::AlignDown);
        let n_hidden = match has_hidden {
            true => self.source.out_in(self.name(layer, of, Part::AlignUp)?, self.order(Part::AlignUp))?.0,
            false => 0,
        };
        if has_hidden && n_hidden == 0 {
            return Err(source(self.name(layer, of, Part::AlignUp)?, "no hidden units, expected some"));
        }
        let n_embd = self.geometry.n_embd;
        for &part in Part::ALL.iter().filter(|&&part| belongs(part, of)) {
            let hidden = matches!(part, Part::AlignUp | Part::AlignUpBias | Part::AlignDown);
            if (hidden && !has_hidden) || (part == Part::Comp && !has(part)) {
                continue;
            }
            let (shape, x) = match part {
                Part::AlignSkip => self.by_input(layer, of, part, own.n_head, n_in)?,
                Part::AlignUp => self.by_input(layer, of, part, n_hidden, n_in)?,
                Part::AlignDown => self.by_input(layer, of, part, own.n_head, n_hidden)?,
                Part::AlignUpBias => (vec![n_hidden], self.bias(layer, of, n_hidden)?),
                Part::Q => self.rotated(layer, of, part, own.n_head)?,
                Part::K => self.rotated(layer, of, part, own.n_head_kv)?,
                Part::Comp => (vec![n_embd, n_embd], self.matrix(layer, of, part, n_embd, n_embd)?),
                Part::Freq => (vec![of.rank / 2, own.n_head_kv], self.frequencies(layer, of, own)?),
            };
            out.push(self.encoded(layer, part, &shape, &x)?);
        }
        Ok(())
    }

    fn order(&self, part: Part) -> map::Order {
        self.map.tensors.get(part).map_or(map::Order::OutIn, |entry| entry.order())
    }

    /// The name of a tensor that must be there.
    fn name(&self, layer: usize, of: LayerMeta, part: Part) -> Result<&str, ConvertError> {
        if let Some(name) = self.names.get(&(layer, part)) {
            return Ok(name);
        }
        Err(match self.map.tensors.get(part) {
            Some(entry) => source(&entry.tensor(layer), format!("missing, {}", describe(layer, of))),
            None => ConvertError::Map(format!("tensors.{}: missing, {}", map::key(part), describe(layer, of))),
        })
    }

    /// A matrix with its outputs as rows.
    fn matrix(
        &self,
        layer: usize,
        of: LayerMeta,
        part: Part,
        n_out: usize,
        n_in: usize,
    ) -> Result<Vec<f32>, ConvertError> {
        self.source.matrix(self.name(layer, of, part)?, self.order(part), n_out, n_in)
    }

    /// A matrix of the alignment network, whose rows in the sidecar are its inputs.
    fn by_input(
        &self,
        layer: usize,
        of: LayerMeta,
        part: Part,
        n_out: usize,
        n_in: usize,
    ) -> Result<(Vec<usize>, Vec<f32>), ConvertError> {
        let x = self.matrix(layer, of, part, n_out, n_in)?;
        Ok((vec![n_out, n_in], transposed(&x, n_out, n_in)))
    }

    /// Zeros where the map knows no bias, as in a network without.
    fn bias(&self, layer: usize, of: LayerMeta, n_hidden: usize) -> Result<Vec<f32>, ConvertError> {
        match self.map.tensors.get(Part::AlignUpBias) {
            None => Ok(vec![0.0; n_hidden]),
            Some(_) => self.source.floats(self.name(layer, of, Part::AlignUpBias)?, &[&[n_hidden]], "hidden units"),
        }
    }

    /// A low-rank projection to `n_head` heads, the rows of each in the order of the sidecar's rotation pairs.
    fn rotated(
        &self,
        layer: usize,
        of: LayerMeta,
        part: Part,
        n_head: usize,
    ) -> Result<(Vec<usize>, Vec<f32>), ConvertError> {
        let (n_embd, rank) = (self.geometry.n_embd, of.rank);
        let x = self.matrix(layer, of, part, n_head.saturating_mul(rank), n_embd)?;
        let shape = vec![n_embd, n_head * rank];
        let Some(pairs) = self.map.rope_pairs else {
            return Err(ConvertError::Map("rope_pairs: missing, expected \"interleaved\" or \"half\"".into()));
        };
        if pairs == RopePairs::Interleaved {
            return Ok((shape, x));
        }
        let from = |row: usize| row / rank * rank + row % rank / 2 + row % 2 * (rank / 2);
        let rows = (0..n_head * rank).flat_map(|row| &x[from(row) * n_embd..][..n_embd]);
        Ok((shape, rows.copied().collect()))
    }

    fn frequencies(&self, layer: usize, of: LayerMeta, heads: &Heads) -> Result<Vec<f32>, ConvertError> {
        let (n_pair, n_head) = (of.rank / 2, heads.n_head_kv);
        let error = |what: String| ConvertError::Map(format!("freq_pairs: {what}"));
        let Some(pairs) = &self.map.freq_pairs else {
            if self.map.tensors.get(Part::Freq).is_none() {
                let what = "tensors.freq: missing, expected it or freq_pairs for the frequencies of the rotation";
                return Err(ConvertError::Map(what.into()));
            }
            let name = self.name(layer, of, Part::Freq)?;
            let x = self.source.floats(name, &[&[n_head, n_pair], &[n_pair]], "[KV head, pair] or [pair]")?;
            return Ok(if x.len() == n_pair { x.repeat(n_head) } else { x });
        };
        if self.map.tensors.get(Part::Freq).is_some() {
            return Err(error("given together with tensors.freq, expected one of the two".into()));
        }
        if let Some(theta) = self.map.freq_base.filter(|theta| !(theta.is_finite() && *theta > 0.0)) {
            return Err(ConvertError::Map(format!("freq_base: {theta}, expected a positive number")));
        }
        let all = rotary::frequencies(self.base, heads, self.map.freq_base)?;
        let Some(pairs) = pairs.of(layer, n_head) else {
            return Err(error(format!("missing for layer {layer}")));
        };
        if pairs.len() != n_head || pairs.iter().any(|p| p.len() != n_pair) {
            let found: Vec<_> = pairs.iter().map(|p| p.len()).collect();
            return Err(error(format!(
                "{found:?} pairs for layer {layer}, expected {n_pair} (half the rank) for each of {n_head} KV heads"
            )));
        }
        let of_pair = |&p: &usize| {
            let last = all.len() as i64 - 1;
            let f = all.get(p).ok_or_else(|| error(format!("pair {p} for layer {layer}, expected 0 to {last}")));
            f.map(|&f| f as f32)
        };
        pairs.into_iter().flatten().map(of_pair).collect()
    }

    fn encoded(
        &self,
        layer: usize,
        part: Part,
        shape: &[usize],
        x: &[f32],
    ) -> Result<(TensorInfo, Vec<u8>), ConvertError> {
        let ty = if part.is_f32() { GgmlType::F32 } else { self.ty };
        let row_bytes = ty.row_bytes(shape[0]).ok_or_else(|| {
            let what = format!("type: rows of {} do not divide into {ty} blocks of {}", shape[0], ty.block_len());
            ConvertError::Map(what)
        })?;
        let mut data = vec![0; row_bytes * (x.len() / shape[0])];
        blocks::quantize_row(ty, x, &mut data);
        if let Some((i, _)) = non_finite(ty, &data) {
            let name = self.names.get(&(layer, part)).cloned().unwrap_or_else(|| part.tensor(layer));
            return Err(source(&name, format!("{} is out of the range of {ty}, the map's type", x[i])));
        }
        let shape = shape.iter().map(|&n| n as u64).collect();
        let n_bytes = data.len() as u64;
        Ok((TensorInfo { name: part.tensor(layer), shape, ty, offset: 0, n_bytes }, data))
    }
}
