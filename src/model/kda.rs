//! Layers with Kimi Delta Attention, as Kimi Linear and Ling 3 have them where a layer has no key/value heads.

use super::builder::Builder;
use super::config::{Keys, MAX_HEAD_DIM, MAX_WIDTH};
use super::mamba2::MAX_FILTER;
use crate::Result;
use crate::attention::{KeyedDecay, KeyedDelta, Recurrence, RecurrentShape, Rule};
use crate::compute::Linear;

/// Floats that all of so many layers keep.
pub fn n_state(keys: &Keys, n_layer: usize) -> Result<usize> {
    let n = keys.heads_kv(n_layer)?.into_iter().filter(|&n| n == 0).count();
    Ok(if n == 0 { 0 } else { n.saturating_mul(shape(keys)?.n_state()) })
}

/// For each layer whether it has attention in the place of the delta rule: that to latents, which have one head.
pub fn attends(keys: &Keys, n_layer: usize) -> Result<Vec<bool>> {
    let attends = |(i, n)| match n {
        0 => Ok(false),
        1 => Ok(true),
        n => {
            let what = format_args!("{n} in layer {i}, expected 1, or 0 where there is no attention");
            Err(keys.error("attention.head_count_kv", what))
        }
    };
    keys.heads_kv(n_layer)?.into_iter().enumerate().map(attends).collect()
}

/// The heads of these layers: as many as attention has.
pub fn shape(keys: &Keys) -> Result<RecurrentShape> {
    let n_head = keys.required("attention.head_count", MAX_WIDTH / MAX_HEAD_DIM)?;
    let head_dim = keys.required("kda.head_dim", MAX_HEAD_DIM)?;
    Ok(RecurrentShape {
        n_head,
        n_head_k: n_head,
        head_dim_k: head_dim,
        head_dim_v: head_dim,
        n_filter: keys.required("ssm.conv_kernel", MAX_FILTER)?,
        in_groups: true,
        values_first: false,
    })
}

/// Layer `i`, whose rates and gates are made in two steps through `rank` values, or at once. Queries, keys and values have matrices and
/// convolutions of their own, or one matrix for all. `fading`: of the file's number for each head what makes rates.
///
/// # Errors
/// Names the tensor that is missing or wrong; where the sharing plan wants attention of the layer.
pub fn delta_attention(
    b: &mut Builder,
    i: usize,
    rank: Option<usize>,
    fading: impl FnOnce(Box<[f32]>) -> KeyedDecay,
) -> Result<Recurrence> {
    b.has_no_attention(i)?;
    let shape = shape(b.keys)?;
    let (n_embd, eps, l) = (b.config.n_embd, b.config.norm_eps, &mut *b.loader);
    let (n, n_head) = (shape.n_values(), shape.n_head);
    let name = |part: &str| format!("blk.{i}.{part}");
    let mixed = match l.has(&name("attn_qkv.weight")) {
        true => [l.linear(&name("attn_qkv"), 3 * n, n_embd)?].into(),
        false => ["q", "k", "v"]
            .map(|p| l.linear(&name(&format!("attn_{p}")), n, n_embd))
            .into_iter()
            .collect::<Result<_>>()?,
    };
    let first = rank.unwrap_or(n);
    let mut second = |part| rank.map(|rank| l.linear(&name(part), n, rank)).transpose();
    let (mut fade_on, gate_on) = (second("ssm_f_b")?, second("ssm_g_b")?);
    let mut fade = l.linear(&name("ssm_f_a"), first, n_embd)?;
    let last: &mut Linear = fade_on.as_mut().unwrap_or(&mut fade);
    last.bias = Some(l.vector(&name("ssm_dt.bias"), n)?);
    let rule = KeyedDelta {
        fade,
        fade_on,
        fading: fading(l.values(&name("ssm_a"), &[1, n_head])?),
        beta: l.linear(&name("ssm_beta"), n_head, n_embd)?,
        gate_on,
        norm: l.vector(&name("ssm_norm.weight"), shape.head_dim_v)?,
        eps,
    };
    Ok(Recurrence {
        shape,
        mixed,
        gate: l.linear(&name("ssm_g_a"), first, n_embd)?,
        filter: filter(b, i, shape)?,
        filter_bias: None,
        rule: Rule::Keyed(rule),
        out: b.loader.linear(&name("attn_output"), n_embd, n)?,
    })
}

/// The filters of queries, keys and values, a row of channels for each position.
fn filter(b: &mut Builder, i: usize, shape: RecurrentShape) -> Result<Box<[f32]>> {
    let (n, n_filter) = (shape.n_values(), shape.n_filter);
    let mut filter = vec![0.0; n_filter * 3 * n];
    for (j, part) in ["q", "k", "v"].into_iter().enumerate() {
        let weights = b.loader.values(&format!("blk.{i}.ssm_conv1d_{part}.weight"), &[n_filter, 1, n])?;
        for (channel, weights) in weights.chunks_exact(n_filter).enumerate() {
            weights.iter().enumerate().for_each(|(at, &w)| filter[(3 * at + j) * n + channel] = w);
        }
    }
    Ok(filter.into())
}
