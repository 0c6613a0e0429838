//! gpt-oss (arXiv 2508.10925): mixtures of experts with biases and clamped gates, attention sinks, and layers that alternate between a
//! sliding window and the whole context.

use super::builder::{Builder, Mixture, QkNorm};
use super::config::Keys;
use super::decoder::{Attention, Decoder};
use super::{Family, Windows};
use crate::Result;
use crate::attention::{AttentionShape, RopeStyle};
use crate::compute::Act;

/// The registry row.
pub const FAMILY: Family = Family::new("gpt-oss", build).with_windows(windows);

const GLOBAL: usize = 0;
const LOCAL: usize = 1;

fn windows(keys: &Keys, n_layer: usize) -> Result<Windows> {
    keys.alternating_windows(n_layer, None, 2)
}

fn build(b: &mut Builder) -> Result<Decoder> {
    let (c, keys) = (b.config, b.keys);
    let n_ff = keys.width("expert_feed_forward_length")?.unwrap_or(c.n_ff);
    let mixture = Mixture { act: Act::ClampedSwiglu, ..b.mixture(n_ff)? };
    let ropes = b.alternating_ropes(RopeStyle::Neox)?;
    let mut layers = Vec::with_capacity(c.n_layer);
    for (i, window) in windows(keys, c.n_layer)?.into_iter().enumerate() {
        let (shape, rope) = (AttentionShape { window, ..b.shape() }, if window.is_some() { LOCAL } else { GLOBAL });
        let sinks = b.sinks(i)?;
        let attn = Attention { sinks, ..b.attention(i, shape, rope, QkNorm::None)? };
        let ffn = b.experts(i, &mixture)?;
        layers.push(b.pre_norm_layer(i, attn, ffn, "post_attention_norm")?);
    }
    b.decoder(layers, ropes.into())
}
