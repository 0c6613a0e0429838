//! Mamba-2 (arXiv 2405.21060), and the parts that it has in common with the hybrids built on it: layers with a selective scan, in files with
//! `ssm_*` tensors.

use super::Family;
use super::builder::Builder;
use super::config::{Keys, MAX_HEAD_DIM, MAX_WIDTH};
use super::decoder::{ContextRope, Decoder, Layer};
use crate::Result;
use crate::attention::{GroupNorm, Recurrence, RecurrentShape, Rope, Rule, SelectiveScan};

/// The registry row of Mamba-2.
pub const MAMBA2: Family = Family::new("mamba2", mamba2).with_states(state_of_all).without_attention();

/// Longest filter: several times any model's.
pub const MAX_FILTER: usize = 64;

fn mamba2(b: &mut Builder) -> Result<Decoder> {
    let shape = shape(b.keys)?;
    let mut layers = Vec::with_capacity(b.config.n_layer);
    for i in 0..b.config.n_layer {
        let scan = scan_alone(b, i, shape)?;
        let attn_norm = Some(b.norm(&format!("blk.{i}.attn_norm"))?);
        layers.push(Layer { attn_norm, ..Layer::bare(scan, None) });
    }
    b.decoder(layers, vec![ContextRope::always(Rope::none())])
}

/// Floats of the states of a model all of whose layers have one.
pub fn state_of_all(keys: &Keys, n_layer: usize) -> Result<usize> {
    Ok(n_layer.saturating_mul(shape(keys)?.n_state()))
}

/// Floats of the states of a model of whose layers those have one that have no key/value heads.
pub fn state_of_some(keys: &Keys, n_layer: usize) -> Result<usize> {
    let n = keys.heads_kv(n_layer)?.into_iter().filter(|&n| n == 0).count();
    Ok(if n == 0 { 0 } else { n.saturating_mul(shape(keys)?.n_state()) })
}

/// The heads that a file's keys describe.
///
/// # Errors
/// Names the key that is missing or wrong.
pub fn shape(keys: &Keys) -> Result<RecurrentShape> {
    let n_inner = keys.required("ssm.inner_size", MAX_WIDTH)?;
    let n_head = keys.required("ssm.time_step_rank", MAX_WIDTH)?;
    let n_head_k = keys.required("ssm.group_count", MAX_WIDTH)?;
    if !n_inner.is_multiple_of(n_head) || n_inner / n_head > MAX_HEAD_DIM {
        let what =
            format_args!("{n_inner}, expected {n_head} heads (ssm.time_step_rank) of up to {MAX_HEAD_DIM} values");
        return Err(keys.error("ssm.inner_size", what));
    }
    if !n_head.is_multiple_of(n_head_k) {
        let what = format_args!("{n_head_k} groups do not divide the {n_head} heads of ssm.time_step_rank");
        return Err(keys.error("ssm.group_count", what));
    }
    Ok(RecurrentShape {
        n_head,
        n_head_k,
        head_dim_k: keys.required("ssm.state_size", MAX_HEAD_DIM)?,
        head_dim_v: n_inner / n_head,
        n_filter: keys.required("ssm.conv_kernel", MAX_FILTER)?,
        in_groups: true,
        values_first: true,
    })
}

/// The selective scan of layer `i`. Its projections are one tensor: gates, values with keys and queries, and steps. Its norm is on groups of as
/// many heads as share keys; of a family that is not `always_normed`, only some files have it.
///
/// # Errors
/// Names the tensor that is missing or wrong.
pub fn selective_scan(b: &mut Builder, i: usize, shape: RecurrentShape, always_normed: bool) -> Result<Recurrence> {
    let (n_embd, eps, l) = (b.config.n_embd, b.config.norm_eps, &mut *b.loader);
    let (n_head, n_values, n_mixed) = (shape.n_head, shape.n_values(), shape.n_mixed());
    let name = |part: &str| format!("blk.{i}.{part}");
    let n_all = n_values + n_mixed + n_head;
    let mut part = |start: usize, len: usize| l.linear_rows(&name("ssm_in"), n_all, n_embd, start..start + len);
    let (gate, mixed) = (part(0, n_values)?, part(n_values, n_mixed)?);
    let step = part(n_values + n_mixed, n_head)?;
    let len = n_values / shape.n_head_k;
    let norm = if always_normed || l.has(&name("ssm_norm.weight")) {
        Some(GroupNorm { weight: l.values(&name("ssm_norm.weight"), &[len, shape.n_head_k])?, len, eps })
    } else {
        None
    };
    let scan = SelectiveScan {
        step,
        step_bias: l.vector(&name("ssm_dt.bias"), n_head)?,
        decay: l.values(&name("ssm_a"), &[1, n_head])?,
        skip: l.values(&name("ssm_d"), &[1, n_head])?,
        norm,
    };
    Ok(Recurrence {
        shape,
        mixed: [mixed].into(),
        gate,
        filter: l.transposed(&name("ssm_conv1d.weight"), n_mixed, shape.n_filter)?,
        filter_bias: l.optional_vector(&name("ssm_conv1d.bias"), n_mixed)?,
        rule: Rule::Scan(scan),
        out: l.linear(&name("ssm_out"), n_embd, n_values)?,
    })
}

/// The selective scan of layer `i` in the place of attention.
///
/// # Errors
/// As [`selective_scan`]; where the sharing plan wants attention of the layer.
pub fn scan_alone(b: &mut Builder, i: usize, shape: RecurrentShape) -> Result<Recurrence> {
    b.has_no_attention(i)?;
    selective_scan(b, i, shape, true)
}
