//! A model and its modules in one file.

use std::borrow::Cow;
use std::io::Write;
use std::ops::Range;

use super::sidecar::{head, with_data, write_other_keys};
use super::{
    Geometry, Heads, KEY_PREFIX, Kind, LisaError, LisaMeta, MakeError, check_base, check_container, check_sidecar,
    check_tensors, is_lisa_name, is_sidecar,
};
use crate::gguf::{Gguf, GgufWriter, TensorInfo};

/// Tensors and their bytes, summed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum {
    /// Number of tensors.
    pub tensors: usize,
    /// Bytes of their data, without padding.
    pub bytes: u64,
}

impl Sum {
    fn add(&mut self, bytes: usize) {
        self.tensors += 1;
        self.bytes += bytes as u64;
    }
}

/// What [`merge`] did to the base model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Merged {
    /// Tensors of the base that no layer needs any more.
    pub dropped: Sum,
    /// Fused tensors of which a part was kept, and the bytes that were not.
    pub cut: Sum,
    /// Tensors of the extension.
    pub added: Sum,
}

/// Writes the model whose parts are `base` together with the plan `meta` and its modules (a sidecar) to `out` as one
/// file: the base's metadata but for `split.*`, then the extension's; the base's tensors as they are but for the query
/// and key (or value) projections that the plan makes idle, then the extension's. Of a fused `attn_qkv` tensor the rows
/// still needed stay, as `attn_q` or `attn_v`.
///
/// Tensor data goes from `base` to `out` piece by piece; nothing is held twice.
///
/// # Errors
/// [`MakeError::Model`] for a base that is merged already or lacks what the plan builds on, [`MakeError::Sidecar`] for a
/// plan or modules that are not for this base, [`MakeError::Write`] for a failure of `out`.
pub fn merge<W: Write>(base: &[Gguf], meta: &LisaMeta, modules: Option<&Gguf>, out: W) -> Result<Merged, MakeError> {
    let base_head = head(base)?;
    check_unmerged(base)?;
    let arch = base_head.str("general.architecture").map_err(|e| MakeError::Model(e.into()))?.unwrap_or_default();
    // Another architecture says more than another fingerprint.
    modules.map_or(Ok(()), |m| check_container(m, arch)).map_err(MakeError::Sidecar)?;
    let geometry = check_base(meta, base)?;
    match modules {
        Some(modules) => check_sidecar(meta, &geometry, arch, modules),
        None => check_tensors(meta, &geometry, []),
    }
    .map_err(MakeError::Sidecar)?;

    let mut report = Merged::default();
    let mut kept = Vec::new();
    for (t, bytes) in base.iter().flat_map(with_data) {
        match fate(t, meta, &geometry).map_err(MakeError::Model)? {
            Fate::Keep => kept.push((Cow::Borrowed(t), bytes)),
            Fate::Drop => report.dropped.add(bytes.len()),
            Fate::Rows(name, rows) => {
                let (slice, data) = cut(t, bytes, name, rows).map_err(MakeError::Model)?;
                report.cut.add(bytes.len() - data.len());
                kept.push((Cow::Owned(slice), data));
            }
        }
    }
    check_values(meta, &kept).map_err(MakeError::Model)?;
    for (t, bytes) in modules.into_iter().flat_map(with_data) {
        report.added.add(bytes.len());
        kept.push((Cow::Borrowed(t), bytes));
    }

    let mut w = GgufWriter::new(out);
    for (key, value) in base_head.metadata().filter(|(key, _)| !key.starts_with("split.")) {
        w.value(key, value)?;
    }
    meta.write(&mut w)?;
    modules.map_or(Ok(()), |m| write_other_keys(m, &mut w))?;
    for (t, _) in &kept {
        w.tensor(&t.name, &t.shape, t.ty)?;
    }
    for (t, bytes) in &kept {
        w.data(&t.name, bytes)?;
    }
    w.finish()?;
    Ok(report)
}

/// Checks that `base` is a model that nothing was merged into.
///
/// # Errors
/// [`MakeError::Model`] names the key or the tensor that tells.
pub fn check_unmerged(base: &[Gguf]) -> Result<(), MakeError> {
    let error = |what: String| Err(MakeError::Model(LisaError::Container { what }));
    for g in base {
        if is_sidecar(g) {
            return error("is a sidecar, expected a model".into());
        }
        if let Some((key, _)) = g.metadata().find(|(key, _)| key.starts_with(KEY_PREFIX)) {
            return error(format!("the model is merged already, it has the key {key}; extract gives its sidecar back"));
        }
        if let Some(t) = g.tensors().iter().find(|t| is_lisa_name(&t.name)) {
            return error(format!("the model is merged already, it has the tensor {}", t.name));
        }
    }
    Ok(())
}

/// What becomes of a tensor of the base.
#[derive(Debug, PartialEq)]
enum Fate {
    Keep,
    Drop,
    /// These rows are kept, under the name of what they are.
    Rows(&'static str, Range<u64>),
}

fn fate(t: &TensorInfo, meta: &LisaMeta, geometry: &Geometry) -> Result<Fate, LisaError> {
    let Some((layer, module)) = t.name.strip_prefix("blk.").and_then(|n| n.split_once('.')) else {
        return Ok(Fate::Keep);
    };
    let number = layer.parse().ok().filter(|n: &usize| n.to_string() == layer);
    let Some((layer, of)) = number.and_then(|n| Some((n, meta.layers.get(n)?))) else {
        return Ok(Fate::Keep);
    };
    let heads = &geometry.layers[layer];
    let queries = heads.n_head as u64 * heads.key_length as u64;
    // Whatever else a projection has (a bias, a factor) goes with its weight.
    let (module, part) = module.split_once('.').unwrap_or((module, ""));
    let is_factor = matches!(part, "scale" | "input_scale") && t.n_elements() == 1;
    Ok(match (of.kind, module) {
        (Kind::Full, _) => Fate::Keep,
        // It has more rows than queries where these share it with gates, which are not idle. A factor on all rows does not tell.
        (_, "attn_q") if is_factor || t.shape.last() > Some(&queries) => Fate::Keep,
        (kind, name) if is_idle(kind, name) => Fate::Drop,
        (kind, "attn_qkv") => {
            let (q, v) = if is_factor { (0..1, 0..1) } else { fused_rows(t, heads)? };
            if kind == Kind::Kv { Fate::Rows("attn_q", q) } else { Fate::Rows("attn_v", v) }
        }
        _ => Fate::Keep,
    })
}

/// Whether a layer of this kind has no use for the module: an idle projection, or the norm of its heads.
fn is_idle(kind: Kind, module: &str) -> bool {
    let projection = module.strip_prefix("attn_").map(|m| m.strip_suffix("_norm").unwrap_or(m));
    projection.is_some_and(|p| kind.idle_projections().contains(&p))
}

/// Where the query rows and the value rows of a fused tensor are; of a bias, elements.
fn fused_rows(t: &TensorInfo, heads: &Heads) -> Result<(Range<u64>, Range<u64>), LisaError> {
    let [n_head, n_head_kv, dk, dv] =
        [heads.n_head, heads.n_head_kv, heads.key_length, heads.value_length].map(|n| n as u64);
    let [q, k, v] = [n_head * dk, n_head_kv * dk, n_head_kv * dv];
    let n = *t.shape.last().unwrap_or(&0);
    if n != q + k + v || t.shape.len() > 2 {
        let what = format!("shape {:?}, expected {q} query, {k} key and {v} value rows", t.shape);
        return Err(LisaError::Tensor { name: t.name.clone(), what });
    }
    Ok((0..q, q + k..n))
}

/// The rows `rows` of a fused tensor, or of a bias its elements, renamed from `attn_qkv`. Rows are whole blocks, so this
/// is exact for every type.
fn cut<'g>(t: &TensorInfo, bytes: &'g [u8], name: &str, rows: Range<u64>) -> Result<(TensorInfo, &'g [u8]), LisaError> {
    let row = match t.shape.len() {
        1 => 1,
        _ => t.row_len(),
    };
    let row_bytes = usize::try_from(row).ok().and_then(|n| t.ty.row_bytes(n)).ok_or_else(|| {
        let what = format!("a fused bias of type {}, which cannot be cut; expected a float type", t.ty);
        LisaError::Tensor { name: t.name.clone(), what }
    })?;
    let bytes = &bytes[rows.start as usize * row_bytes..rows.end as usize * row_bytes];
    let n = rows.end - rows.start;
    let shape = if t.shape.len() == 1 { vec![n] } else { vec![row, n] };
    let name = t.name.replacen("attn_qkv", name, 1);
    Ok((TensorInfo { name, shape, ty: t.ty, offset: t.offset, n_bytes: bytes.len() as u64 }, bytes))
}

/// Every substituted layer must still have the projection that its kind uses: a model that names it otherwise is none that
/// the plan can be applied to.
fn check_values(meta: &LisaMeta, kept: &[(Cow<TensorInfo>, &[u8])]) -> Result<(), LisaError> {
    let names: std::collections::HashSet<_> = kept.iter().map(|(t, _)| t.name.as_str()).collect();
    for (layer, of) in meta.layers.iter().enumerate() {
        // The second of each is that of multi-head latent attention.
        let needed = match of.kind {
            Kind::Full => continue,
            Kind::Shared | Kind::Lisa => ["attn_v", "attn_v_b"],
            Kind::Kv => ["attn_q", "attn_q_b"],
        };
        let [name, of_latent] = needed.map(|part| format!("blk.{layer}.{part}.weight"));
        if !names.contains(name.as_str()) && !names.contains(of_latent.as_str()) {
            let what = format!("missing, and so is blk.{layer}.attn_qkv.weight; layer {layer} is of kind {}", of.kind);
            return Err(LisaError::Tensor { name, what });
        }
    }
    Ok(())
}
