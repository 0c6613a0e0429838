//! The first Mamba (arXiv 2312.00752) and FalconMamba (arXiv 2410.05355), and the parts that they have in common with the hybrids built on them: layers
//! whose channels each have a memory and steps of their own.

use super::Family;
use super::builder::Builder;
use super::config::{Keys, MAX_HEAD_DIM, MAX_WIDTH};
use super::decoder::{ContextRope, Decoder, Layer};
use super::mamba2::MAX_FILTER;
use crate::Result;
use crate::attention::{ChannelDecay, ChannelScan, Recurrence, RecurrentShape, Rope, Rule};
use crate::compute::{Linear, Norm};

/// The registry row of Mamba and of FalconMamba.
pub const MAMBA: Family = Family::new("mamba", build).with_states(n_state).without_attention();

/// Most channels that a member of a team takes together: few enough to share out, and as many as vectors have lanes or more.
const CHANNELS: usize = 64;

/// Norms of what steps, keys and queries are made of.
#[derive(Clone, Copy, PartialEq)]
pub enum ScanNorms {
    /// None.
    None,
    /// Without weights.
    Plain,
    /// With weights.
    Weighted,
}

fn build(b: &mut Builder) -> Result<Decoder> {
    let shape = shape(b.keys)?;
    let norms = if b.keys.flag("ssm.dt_b_c_rms")?.unwrap_or(false) { ScanNorms::Plain } else { ScanNorms::None };
    let mut layers = Vec::with_capacity(b.config.n_layer);
    for i in 0..b.config.n_layer {
        let scan = channel_scan(b, i, shape, norms)?;
        let attn_norm = Some(b.norm(&format!("blk.{i}.attn_norm"))?);
        layers.push(Layer { attn_norm, ..Layer::bare(scan, None) });
    }
    b.decoder(layers, vec![ContextRope::always(Rope::none())])
}

fn n_state(keys: &Keys, n_layer: usize) -> Result<usize> {
    Ok(n_layer.saturating_mul(shape(keys)?.n_state()))
}

/// The channels that a file's keys describe, as heads of as many of them as are taken together.
///
/// # Errors
/// Names the key that is missing or wrong.
pub fn shape(keys: &Keys) -> Result<RecurrentShape> {
    let n_inner = keys.required("ssm.inner_size", MAX_WIDTH)?;
    let head_dim_v = (1..=CHANNELS).rev().find(|&n| n_inner.is_multiple_of(n)).unwrap_or(1);
    Ok(RecurrentShape {
        n_head: n_inner / head_dim_v,
        n_head_k: 0,
        head_dim_k: keys.required("ssm.state_size", MAX_HEAD_DIM)?,
        head_dim_v,
        n_filter: keys.required("ssm.conv_kernel", MAX_FILTER)?,
        in_groups: true,
        values_first: true,
    })
}

/// The scan of layer `i` in the place of attention. Its projections are one tensor: values, then gates.
///
/// # Errors
/// Names the key or the tensor that is missing or wrong; where the sharing plan wants attention of the layer.
pub fn channel_scan(b: &mut Builder, i: usize, shape: RecurrentShape, norms: ScanNorms) -> Result<Recurrence> {
    b.has_no_attention(i)?;
    let rank = b.keys.required("ssm.time_step_rank", MAX_WIDTH)?;
    let (n_embd, eps, l) = (b.config.n_embd, b.config.norm_eps, &mut *b.loader);
    let (n, dim) = (shape.n_values(), shape.head_dim_k);
    let name = |part: &str| format!("blk.{i}.{part}");
    let mut half = |start: usize| l.linear_rows(&name("ssm_in"), 2 * n, n_embd, start..start + n);
    let (mixed, gate) = (half(0)?, half(n)?);
    let mut norm = |part: &str, n: usize| match norms {
        ScanNorms::Weighted => Ok(Norm::rms(l.vector(&name(&format!("ssm_{part}_norm.weight")), n)?)),
        ScanNorms::None | ScanNorms::Plain => Ok::<_, crate::Error>(Norm::plain(n, false)),
    };
    let all_norms = [norm("dt", rank)?, norm("b", dim)?, norm("c", dim)?];
    let bias = Some(l.vector(&name("ssm_dt.bias"), n)?);
    let scan = ChannelScan {
        made: l.linear(&name("ssm_x"), rank + 2 * dim, n)?,
        norms: (norms != ScanNorms::None).then_some(all_norms),
        eps,
        step: Linear { bias, ..l.linear(&name("ssm_dt"), n, rank)? },
        decay: ChannelDecay::Channels(l.transposed(&name("ssm_a"), n, dim)?),
        skip: l.vector(&name("ssm_d"), n)?,
    };
    Ok(Recurrence {
        shape,
        mixed: [mixed].into(),
        gate,
        filter: l.transposed(&name("ssm_conv1d.weight"), n, shape.n_filter)?,
        filter_bias: Some(l.vector(&name("ssm_conv1d.bias"), n)?),
        rule: Rule::Channels(scan),
        out: l.linear(&name("ssm_out"), n_embd, n)?,
    })
}
