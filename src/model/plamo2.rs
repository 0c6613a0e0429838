//! PLaMo 2 (Preferred Networks): every second layer has a selective scan, the others attention; norms before and after each half. The scan's steps,
//! keys and queries are made and normalised after the convolutions, as in the first Mamba of Jamba, and its steps are those of heads, as in Mamba-2.

use super::Family;
use super::builder::{Builder, QkNorm};
use super::config::{Keys, MAX_HEAD_DIM, MAX_WIDTH};
use super::decoder::{ContextRope, Decoder, Mixer};
use super::mamba2::MAX_FILTER;
use super::plamo::with_post_norms;
use crate::Result;
use crate::attention::{AttentionShape, ChannelDecay, ChannelScan, Recurrence, RecurrentShape, RopeStyle, Rule};
use crate::compute::{Act, Linear, Norm};

/// The registry row.
pub const FAMILY: Family = Family::new("plamo2", build).with_varying_heads().with_states(n_state);

fn build(b: &mut Builder) -> Result<Decoder> {
    let (c, keys) = (b.config, b.keys);
    let rope = ContextRope::always(b.rope(RopeStyle::Neox, None));
    let mut layers = Vec::with_capacity(c.n_layer);
    for (i, [n_head, n_head_kv]) in keys.heads(c.n_layer)?.into_iter().enumerate() {
        let mixer: Mixer = match n_head_kv {
            0 => scan(b, i, shape(keys)?)?.into(),
            _ => {
                keys.check_heads(n_head_kv, n_head, Some(i))?;
                b.attention(i, AttentionShape { n_head, n_head_kv, ..b.shape() }, 0, QkNorm::Own)?.into()
            }
        };
        let ffn = b.fused_feed_forward(i, Act::Silu)?;
        let layer = b.layer(i, mixer, ffn)?;
        layers.push(with_post_norms(b, i, layer)?);
    }
    b.decoder(layers, vec![rope])
}

fn n_state(keys: &Keys, n_layer: usize) -> Result<usize> {
    let n = keys.heads_kv(n_layer)?.into_iter().filter(|&n| n == 0).count();
    Ok(if n == 0 { 0 } else { n.saturating_mul(shape(keys)?.n_state()) })
}

/// The heads of the scans that a file's keys describe.
fn shape(keys: &Keys) -> Result<RecurrentShape> {
    let n_inner = keys.required("ssm.inner_size", MAX_WIDTH)?;
    let n_head = keys.required("ssm.time_step_rank", MAX_WIDTH)?;
    if !n_inner.is_multiple_of(n_head) || n_inner / n_head > MAX_HEAD_DIM {
        let what =
            format_args!("{n_inner}, expected {n_head} heads (ssm.time_step_rank) of up to {MAX_HEAD_DIM} values");
        return Err(keys.error("ssm.inner_size", what));
    }
    if let Some(n) = keys.count("ssm.group_count")?.filter(|&n| n > 0) {
        return Err(keys.error("ssm.group_count", format_args!("{n}, expected 0: all heads have the same keys")));
    }
    Ok(RecurrentShape {
        n_head,
        n_head_k: 0,
        head_dim_k: keys.required("ssm.state_size", MAX_HEAD_DIM)?,
        head_dim_v: n_inner / n_head,
        n_filter: keys.required("ssm.conv_kernel", MAX_FILTER)?,
        in_groups: true,
        values_first: true,
    })
}

/// Values that steps are made of, where the residual stream has `n_embd`: no key says how many.
fn rank(n_embd: usize) -> usize {
    (n_embd / 16).max(64)
}

/// The scan of layer `i` in the place of attention. Of its tensors one has gates and values head by head, one what keys, queries and steps are
/// made of, in this order.
fn scan(b: &mut Builder, i: usize, shape: RecurrentShape) -> Result<Recurrence> {
    b.has_no_attention(i)?;
    let (n_embd, eps, l) = (b.config.n_embd, b.config.norm_eps, &mut *b.loader);
    let (n, dim, n_head, dv, rank) = (shape.n_values(), shape.head_dim_k, shape.n_head, shape.head_dim_v, rank(n_embd));
    let name = |part: &str| format!("blk.{i}.{part}");
    let mut by_turns = |which: usize| l.linear_by_turns(&name("ssm_in"), n_head, dv, n_embd, which);
    let (gate, mixed) = (by_turns(0)?, by_turns(1)?);
    // The names of these norms have no suffix.
    let mut norm = |part: &str, n: usize| Ok::<_, crate::Error>(Norm::rms(l.vector(&name(part), n)?));
    let norms = [norm("ssm_dt_norm", rank)?, norm("ssm_b_norm", dim)?, norm("ssm_c_norm", dim)?];
    let skip = l.vector(&name("ssm_d"), n_head)?;
    let bias = Some(l.vector(&name("ssm_dt.bias"), n_head)?);
    let scan = ChannelScan {
        made: l.linear_parts(&name("ssm_x"), 2 * dim + rank, n, &[2 * dim..2 * dim + rank, 0..2 * dim])?,
        norms: Some(norms),
        eps,
        step: Linear { bias, ..l.linear(&name("ssm_dt"), n_head, rank)? },
        decay: ChannelDecay::Heads(l.vector(&name("ssm_a"), n_head)?),
        skip: skip.iter().flat_map(|&skip| vec![skip; dv]).collect(),
    };
    Ok(Recurrence {
        shape,
        mixed: [mixed].into(),
        gate,
        filter: l.transposed(&name("ssm_conv1d.weight"), n, shape.n_filter)?,
        filter_bias: None,
        rule: Rule::Channels(scan),
        out: l.linear(&name("ssm_out"), n_embd, n)?,
    })
}
