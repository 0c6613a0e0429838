//! Phi-3 and Phi-4: Llama's shape with Q, K, V in one tensor, gate and up in another, and LongRoPE frequencies.

use super::Family;
use super::builder::{Builder, QkNorm};
use super::decoder::Decoder;
use crate::Result;
use crate::attention::RopeStyle;
use crate::compute::Act;

/// The registry row.
pub const FAMILY: Family = Family::new("phi3", build);

fn build(b: &mut Builder) -> Result<Decoder> {
    b.ignore_window()?;
    let shape = b.shape();
    let rope = b.rope_with_factors(RopeStyle::Neox)?;
    let mut layers = Vec::with_capacity(b.config.n_layer);
    for i in 0..b.config.n_layer {
        let attn = b.attention(i, shape, 0, QkNorm::None)?;
        let ffn = b.fused_feed_forward(i, Act::Silu)?;
        layers.push(b.layer(i, attn, ffn)?);
    }
    b.decoder(layers, vec![rope])
}
