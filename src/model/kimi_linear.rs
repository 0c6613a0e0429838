//! Kimi Linear (arXiv 2510.26692): three layers of four follow the delta rule with rates for each element of a key, the fourth has multi-head
//! latent attention without positions; after a few layers without them mixtures of experts. Which layers have attention is told by key/value heads.

use super::Family;
use super::builder::Builder;
use super::config::{Keys, MAX_HEAD_DIM, MAX_WIDTH};
use super::decoder::{ContextRope, Decoder, Mixer};
use super::deepseek2::{absorbed_sizes, attention};
use super::mamba2::MAX_FILTER;
use super::mixtures::mixture;
use crate::Result;
use crate::attention::{AttentionShape, KeyedDelta, Recurrence, RecurrentShape, Rope, Rule};
use crate::compute::{Act, Gating, Linear};

/// The registry row.
pub const FAMILY: Family = Family::new("kimi-linear", build).with_varying_layers().with_states(n_state);

fn build(b: &mut Builder) -> Result<Decoder> {
    let (c, keys) = (b.config, b.keys);
    let sizes = absorbed_sizes(b)?;
    let scale = 1.0 / (sizes.n_query() as f32).sqrt();
    let attention_shape = sizes.shape(AttentionShape { scale, ..b.shape() });
    let n_dense = keys.count("leading_dense_block_count")?.unwrap_or(0);
    let mixture = (n_dense < c.n_layer).then(|| mixture(b, Gating::Sigmoid, true)).transpose()?;
    let mut layers = Vec::with_capacity(c.n_layer);
    for (i, n_head_kv) in keys.heads_kv(c.n_layer)?.into_iter().enumerate() {
        let mixer: Mixer = match n_head_kv {
            0 => delta_net(b, i, delta_shape(keys)?)?.into(),
            1 => attention(b, i, &sizes, attention_shape)?.into(),
            n => {
                let what = format_args!("{n} in layer {i}, expected 1, or 0 where there is no attention");
                return Err(keys.error("attention.head_count_kv", what));
            }
        };
        let ffn = match &mixture {
            Some(mixture) if i >= n_dense => b.experts(i, mixture)?,
            _ => b.dense_feed_forward(i, Act::Silu)?,
        };
        layers.push(b.layer(i, mixer, ffn)?);
    }
    b.decoder(layers, vec![ContextRope::always(Rope::none())])
}

fn n_state(keys: &Keys, n_layer: usize) -> Result<usize> {
    let n = keys.heads_kv(n_layer)?.into_iter().filter(|&n| n == 0).count();
    Ok(if n == 0 { 0 } else { n.saturating_mul(delta_shape(keys)?.n_state()) })
}

/// The heads of layers with the delta rule: as many as attention has.
fn delta_shape(keys: &Keys) -> Result<RecurrentShape> {
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

/// Layer `i` with the delta rule. Queries, keys and values have matrices and convolutions of their own, or one matrix for all.
///
/// # Errors
/// Names the tensor that is missing or wrong; where the sharing plan wants attention of the layer.
fn delta_net(b: &mut Builder, i: usize, shape: RecurrentShape) -> Result<Recurrence> {
    b.has_no_attention(i)?;
    let (n_embd, eps, l) = (b.config.n_embd, b.config.norm_eps, &mut *b.loader);
    let (n, n_head, rank, n_filter) = (shape.n_values(), shape.n_head, shape.head_dim_k, shape.n_filter);
    let name = |part: &str| format!("blk.{i}.{part}");
    let mixed = match l.has(&name("attn_qkv.weight")) {
        true => [l.linear(&name("attn_qkv"), 3 * n, n_embd)?].into(),
        false => ["q", "k", "v"]
            .map(|p| l.linear(&name(&format!("attn_{p}")), n, n_embd))
            .into_iter()
            .collect::<Result<_>>()?,
    };
    // A row of channels for each position.
    let mut filter = vec![0.0; n_filter * 3 * n];
    for (j, part) in ["q", "k", "v"].into_iter().enumerate() {
        let weights = l.values(&name(&format!("ssm_conv1d_{part}.weight")), &[n_filter, 1, n])?;
        for (channel, weights) in weights.chunks_exact(n_filter).enumerate() {
            weights.iter().enumerate().for_each(|(at, &w)| filter[(3 * at + j) * n + channel] = w);
        }
    }
    let bias = Some(l.vector(&name("ssm_dt.bias"), n)?);
    let rule = KeyedDelta {
        low: l.linear(&name("ssm_f_a"), rank, n_embd)?,
        fade: Linear { bias, ..l.linear(&name("ssm_f_b"), n, rank)? },
        decay: l.values(&name("ssm_a"), &[1, n_head])?,
        beta: l.linear(&name("ssm_beta"), n_head, n_embd)?,
        gate: l.linear(&name("ssm_g_b"), n, rank)?,
        norm: l.vector(&name("ssm_norm.weight"), shape.head_dim_v)?,
        eps,
    };
    Ok(Recurrence {
        shape,
        mixed,
        gate: l.linear(&name("ssm_g_a"), rank, n_embd)?,
        filter: filter.into(),
        filter_bias: None,
        rule: Rule::Keyed(rule),
        out: l.linear(&name("attn_output"), n_embd, n)?,
    })
}
