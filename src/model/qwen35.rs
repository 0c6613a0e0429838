//! Qwen3-Next and Qwen3.5: three layers of four follow the gated delta rule (arXiv 2412.06464), the fourth has attention with gates on its
//! results (arXiv 2505.06708); with or without mixtures of experts.

use std::ops::Range;

use super::Family;
use super::builder::{Builder, Mixture, QkNorm};
use super::config::{Keys, MAX_HEAD_DIM, MAX_WIDTH};
use super::decoder::{ContextRope, Decoder, Mixer};
use crate::Result;
use crate::attention::{DeltaRule, Recurrence, RecurrentShape, RopeStyle, Rule};
use crate::compute::{Act, Linear};

/// The registry row of Qwen3-Next.
pub const QWEN3NEXT: Family = Family::new("qwen3next", build).with_states(n_state);
/// The registry row of Qwen3.5, for text.
pub const QWEN35: Family = Family { arch: "qwen35", ..QWEN3NEXT };
/// The registry row of Qwen3.5's mixtures of experts, for text.
pub const QWEN35MOE: Family = Family { arch: "qwen35moe", ..QWEN3NEXT };

/// Longest filter: several times any model's.
const MAX_FILTER: usize = 64;

fn build(b: &mut Builder) -> Result<Decoder> {
    b.has_sections()?;
    b.queries_have_gates = true;
    let c = b.config;
    let (attention, delta) = (b.shape(), delta_shape(b.keys, c.arch == QWEN3NEXT.arch)?);
    let rope = ContextRope::always(b.rope(RopeStyle::Neox, None));
    let mixture = (c.arch != QWEN35.arch).then(|| mixture(b)).transpose()?;
    let recurrent = b.keys.recurrent_layers(c.n_layer)?;
    let mut layers = Vec::with_capacity(c.n_layer);
    for (i, recurrent) in recurrent.into_iter().enumerate() {
        let mixer: Mixer = match recurrent {
            true => delta_net(b, i, delta)?.into(),
            false => b.attention(i, attention, 0, QkNorm::Heads)?.into(),
        };
        let ffn = match &mixture {
            Some(mixture) => b.experts(i, mixture)?,
            None => b.feed_forward(i, Act::Silu)?,
        };
        layers.push(b.pre_norm_layer(i, mixer, ffn, "post_attention_norm")?);
    }
    b.decoder(layers, vec![rope])
}

fn n_state(keys: &Keys, n_layer: usize) -> Result<usize> {
    let n_recurrent = keys.recurrent_layers(n_layer)?.into_iter().filter(|&r| r).count();
    // Which key head serves which head is of no account.
    Ok(n_recurrent.saturating_mul(delta_shape(keys, true)?.n_state()))
}

fn mixture(b: &Builder) -> Result<Mixture> {
    let c = b.config;
    let mut mixture =
        b.mixture(b.keys.width("expert_feed_forward_length")?.unwrap_or(c.n_ff / c.n_expert_used.max(1)))?;
    mixture.n_ff_shared = b.keys.width("expert_shared_feed_forward_length")?.unwrap_or(c.n_ff);
    mixture.weighed = true;
    mixture.choice.scale = b.keys.float("expert_weights_scale")?.filter(|&s| s != 0.0).unwrap_or(1.0);
    Ok(mixture)
}

fn delta_shape(keys: &Keys, in_groups: bool) -> Result<RecurrentShape> {
    let (n_head, n_head_k) =
        (keys.required("ssm.time_step_rank", MAX_WIDTH)?, keys.required("ssm.group_count", MAX_WIDTH)?);
    let (head_dim, n_inner) =
        (keys.required("ssm.state_size", MAX_HEAD_DIM)?, keys.required("ssm.inner_size", MAX_WIDTH)?);
    if !n_head.is_multiple_of(n_head_k) {
        let what =
            format_args!("{n_head_k} query and key heads do not divide the {n_head} heads of ssm.time_step_rank");
        return Err(keys.error("ssm.group_count", what));
    }
    if n_head.checked_mul(head_dim) != Some(n_inner) {
        let what = format_args!("{n_inner}, expected {n_head} heads of {head_dim}");
        return Err(keys.error("ssm.inner_size", what));
    }
    let n_filter = keys.required("ssm.conv_kernel", MAX_FILTER)?;
    let (head_dim_k, head_dim_v) = (head_dim, head_dim);
    Ok(RecurrentShape { n_head, n_head_k, head_dim_k, head_dim_v, n_filter, in_groups, values_first: false })
}

/// Layer `i` with the delta rule.
///
/// # Errors
/// Where the sharing plan wants attention of it.
fn delta_net(b: &mut Builder, i: usize, shape: RecurrentShape) -> Result<Recurrence> {
    b.has_no_attention(i)?;
    let (n_embd, eps, n_head, n_mixed) = (b.config.n_embd, b.config.norm_eps, shape.n_head, shape.n_mixed());
    let n_values = shape.n_values();
    let l = &mut *b.loader;
    let name = |part: &str| format!("blk.{i}.{part}");
    let (mixed, gate): (Linear, Linear) = if l.has(&name("ssm_in.weight")) {
        let [mixed, gate] = by_key_head(&shape);
        let mut part = |rows: &[Range<usize>]| l.linear_parts(&name("ssm_in"), n_mixed + n_values, n_embd, rows);
        (part(&mixed)?, part(&gate)?)
    } else {
        (l.linear(&name("attn_qkv"), n_mixed, n_embd)?, l.linear(&name("attn_gate"), n_values, n_embd)?)
    };
    let (alpha, beta) = if l.has(&name("ssm_ba.weight")) {
        let mut part =
            |which| l.linear_by_turns(&name("ssm_ba"), shape.n_head_k, n_head / shape.n_head_k, n_embd, which);
        (part(1)?, part(0)?)
    } else {
        (l.linear(&name("ssm_alpha"), n_head, n_embd)?, l.linear(&name("ssm_beta"), n_head, n_embd)?)
    };
    let filter = l.transposed(&name("ssm_conv1d.weight"), n_mixed, shape.n_filter)?;
    let rule = DeltaRule {
        alpha,
        beta,
        alpha_bias: l.vector(&name("ssm_dt.bias"), n_head)?,
        decay: l.vector(&name("ssm_a"), n_head)?,
        norm: l.vector(&name("ssm_norm.weight"), shape.head_dim_v)?,
        eps,
    };
    let out = l.linear(&name("ssm_out"), n_embd, n_values)?;
    Ok(Recurrence { shape, mixed: [mixed].into(), gate, filter, filter_bias: None, rule: Rule::Delta(rule), out })
}

/// The rows of queries, keys and values, and those of gates, of a tensor that has them key head by key head.
fn by_key_head(s: &RecurrentShape) -> [Vec<Range<usize>>; 2] {
    let (dk, group) = (s.head_dim_k, s.n_head / s.n_head_k * s.head_dim_v);
    let part = |start: usize, len: usize| {
        (0..s.n_head_k).map(move |h| {
            let start = h * 2 * (dk + group) + start;
            start..start + len
        })
    };
    let mixed = part(0, dk).chain(part(dk, dk)).chain(part(2 * dk, group)).collect();
    [mixed, part(2 * dk + group, group).collect()]
}
