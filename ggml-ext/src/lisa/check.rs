//! Whether the extension's tensors are the ones that its metadata ask for.

use std::collections::HashMap;

use super::{Geometry, Kind, LayerMeta, LisaError, LisaMeta, Part, TENSOR_PREFIX};
use crate::gguf::TensorInfo;
use crate::{GgmlType, blocks};

/// Checks a plan and its tensors against a model: the number of layers, the heads of every layer and its source, and of
/// each `blk.N.lisa_*` tensor that it belongs to its layer's kind and rank, its type, its shape, and that every element
/// is finite. Tensors of other names, such as a merged model's, are passed over.
///
/// `tensors` gives each tensor with its bytes. Reads all of them once, on the caller's thread.
///
/// # Errors
/// Names the layer or the tensor, and what was expected.
pub fn check_tensors<'a>(
    meta: &LisaMeta,
    geometry: &Geometry,
    tensors: impl IntoIterator<Item = (&'a TensorInfo, &'a [u8])>,
) -> Result<(), LisaError> {
    check_plan(meta, geometry)?;
    let mut found = HashMap::new();
    for (t, bytes) in tensors {
        if !is_lisa_name(&t.name) {
            continue;
        }
        let wrong = |what: String| LisaError::Tensor { name: t.name.clone(), what };
        let Some((layer, part)) = Part::parse(&t.name) else {
            return Err(wrong(format!("unknown to version {} of the extension", super::VERSION)));
        };
        let Some(&of) = meta.layers.get(layer) else {
            return Err(wrong(format!("no such layer, expected 0 to {}", meta.layers.len() as i64 - 1)));
        };
        if !belongs(part, of) {
            return Err(wrong(format!("not expected, {}", describe(layer, of))));
        }
        if found.insert((layer, part), (t, bytes)).is_some() {
            return Err(wrong("appears twice".into()));
        }
    }
    for (layer, &of) in meta.layers.iter().enumerate() {
        check_layer(geometry, &found, layer, of)?;
    }
    Ok(())
}

/// Whether a name is in the part of the name space that the extension keeps for itself.
pub fn is_lisa_name(name: &str) -> bool {
    let rest = name.strip_prefix("blk.").and_then(|n| n.split_once('.')).map_or(name, |(_, rest)| rest);
    rest.starts_with(TENSOR_PREFIX)
}

/// Checks that a plan is made for a model of this geometry: one entry per layer, and heads that fit those of the source.
///
/// # Errors
/// Names the layer, and what it has and its source has not.
pub fn check_plan(meta: &LisaMeta, geometry: &Geometry) -> Result<(), LisaError> {
    if meta.layers.len() != geometry.layers.len() {
        return Err(LisaError::LayerCount { found: meta.layers.len(), expected: geometry.layers.len() });
    }
    for (layer, of) in meta.layers.iter().enumerate() {
        let Some(source) = of.source else { continue };
        let (own, its) = match (geometry.layers.get(layer), geometry.layers.get(source)) {
            (Some(own), Some(its)) => (own, its),
            _ => {
                let what = format!("source {source} is not one of the {} layers", geometry.layers.len());
                return Err(LisaError::Layer { layer, what });
            }
        };
        if [own.n_head, own.n_head_kv, its.n_head, its.n_head_kv].contains(&0) {
            let what = format!("kind {} needs attention heads, and layer {layer} or its source has none", of.kind);
            return Err(LisaError::Layer { layer, what });
        }
        let unequal = |what: &str, own: usize, its: usize| {
            let what = format!("{own} {what}, its source {source} has {its}; kind {} needs as many", of.kind);
            Err(LisaError::Layer { layer, what })
        };
        match of.kind {
            Kind::Shared if own.n_head != its.n_head => return unequal("query heads", own.n_head, its.n_head)?,
            Kind::Kv if own.n_head_kv != its.n_head_kv => return unequal("key heads", own.n_head_kv, its.n_head_kv)?,
            _ => {}
        }
    }
    Ok(())
}

/// Whether a layer can have this tensor.
pub(super) fn belongs(part: Part, of: LayerMeta) -> bool {
    match part {
        Part::AlignSkip | Part::AlignUp | Part::AlignUpBias | Part::AlignDown => of.kind == Kind::Lisa,
        Part::Q | Part::K | Part::Freq => of.kind == Kind::Lisa && of.rank > 0,
        Part::Comp => of.kind == Kind::Shared,
    }
}

/// For messages: what a layer is.
pub(super) fn describe(layer: usize, of: LayerMeta) -> String {
    match of.kind {
        Kind::Lisa => format!("layer {layer} is of kind lisa and rank {}", of.rank),
        kind => format!("layer {layer} is of kind {kind}"),
    }
}

type Found<'a> = HashMap<(usize, Part), (&'a TensorInfo, &'a [u8])>;

fn check_layer(geometry: &Geometry, found: &Found, layer: usize, of: LayerMeta) -> Result<(), LisaError> {
    const HIDDEN: [Part; 3] = [Part::AlignUp, Part::AlignUpBias, Part::AlignDown];
    let has_hidden = HIDDEN.iter().any(|&part| found.contains_key(&(layer, part)));
    // The number of hidden units is stated nowhere but in the shapes.
    let n_hidden = found.get(&(layer, Part::AlignUp)).map_or(0, |(t, _)| t.row_len());
    for &part in Part::ALL {
        let needed = match part {
            Part::AlignSkip | Part::Q | Part::K | Part::Freq => belongs(part, of),
            Part::AlignUp | Part::AlignUpBias | Part::AlignDown => has_hidden,
            Part::Comp => false,
        };
        let Some(&(t, bytes)) = found.get(&(layer, part)) else {
            if needed {
                let which = if HIDDEN.contains(&part) { " with hidden units" } else { "" };
                let what = format!("missing, {}{which}", describe(layer, of));
                return Err(LisaError::Tensor { name: part.tensor(layer), what });
            }
            continue;
        };
        let wrong = |what: String| Err(LisaError::Tensor { name: t.name.clone(), what });
        if part.is_f32() && t.ty != GgmlType::F32 {
            return wrong(format!("type {}, expected F32", t.ty));
        }
        let source = of.source.map_or(geometry.layers[layer].n_head, |s| geometry.layers[s].n_head);
        let expected = shape(part, geometry, layer, source, of.rank, n_hidden);
        if !same_shape(&t.shape, &expected) {
            return wrong(format!("shape {:?}, expected {expected:?}: {}", t.shape, describe(layer, of)));
        }
        if let Some((i, x)) = non_finite(t.ty, bytes) {
            let (row, column) = (i as u64 / t.row_len(), i as u64 % t.row_len());
            return wrong(format!("element {i} (row {row}, column {column}) is {x}, expected finite numbers"));
        }
    }
    Ok(())
}

impl Part {
    /// True for the small tensors that are stored as F32 only; the others can be of any type.
    pub const fn is_f32(self) -> bool {
        !matches!(self, Part::Q | Part::K | Part::Comp)
    }
}

/// The shape of a tensor, fastest dimension first; `source` is the number of heads of the source layer.
fn shape(part: Part, g: &Geometry, layer: usize, source: usize, rank: usize, n_hidden: u64) -> Vec<u64> {
    let [n_embd, source, rank] = [g.n_embd, source, rank].map(|n| n as u64);
    let (n_head, n_head_kv) = (g.layers[layer].n_head as u64, g.layers[layer].n_head_kv as u64);
    match part {
        Part::AlignSkip => vec![n_head, source],
        Part::AlignUp => vec![n_hidden, source],
        Part::AlignUpBias => vec![n_hidden],
        Part::AlignDown => vec![n_head, n_hidden],
        Part::Q => vec![n_embd, n_head.saturating_mul(rank)],
        Part::K => vec![n_embd, n_head_kv.saturating_mul(rank)],
        Part::Freq => vec![rank / 2, n_head_kv],
        Part::Comp => vec![n_embd, n_embd],
    }
}

/// Shapes are equal when they differ in trailing ones only: ggml drops them when it writes a file.
fn same_shape(a: &[u64], b: &[u64]) -> bool {
    let n = a.len().max(b.len());
    (0..n).all(|i| a.get(i).unwrap_or(&1) == b.get(i).unwrap_or(&1))
}

/// The first element that is infinite or not a number. Of block types the elements are looked at, not the scales alone:
/// a finite scale can still overflow.
pub(super) fn non_finite(ty: GgmlType, bytes: &[u8]) -> Option<(usize, f32)> {
    /// Elements at a time: a multiple of every block length.
    const CHUNK: usize = 4 * blocks::MAX_LEN;
    let mut row = [0f32; CHUNK];
    let chunk_bytes = CHUNK / ty.block_len() * ty.block_bytes();
    for (c, bytes) in bytes.chunks(chunk_bytes).enumerate() {
        let row = &mut row[..bytes.len() / ty.block_bytes() * ty.block_len()];
        blocks::dequantize_row(ty, bytes, row);
        // All first, without a branch per element, so that the loop is vectorised.
        if !row.iter().fold(true, |all, x| all & x.is_finite())
            && let Some(i) = row.iter().position(|x| !x.is_finite())
        {
            return Some((c * CHUNK + i, row[i]));
        }
    }
    None
}
