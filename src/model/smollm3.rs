//! SmolLM3: Llama's shape, but that every fourth layer has no positions (NoPE, arXiv 2501.18795).

use super::Family;
use super::builder::{Builder, QkNorm};
use super::decoder::{ContextRope, Decoder};
use crate::Result;
use crate::attention::{Rope, RopeStyle};
use crate::compute::Act;

/// The registry row.
pub const FAMILY: Family = Family::new("smollm3", build);

const TURNED: usize = 0;
const UNTURNED: usize = 1;

/// Layers from one without positions to the next.
const STEP: usize = 4;

fn build(b: &mut Builder) -> Result<Decoder> {
    b.ignore_window()?;
    let shape = b.shape();
    let ropes = [b.rope(RopeStyle::Norm, None), Rope::none()].map(ContextRope::always);
    let mut layers = Vec::with_capacity(b.config.n_layer);
    for i in 0..b.config.n_layer {
        let rope = if (i + 1).is_multiple_of(STEP) { UNTURNED } else { TURNED };
        let attn = b.attention(i, shape, rope, QkNorm::None)?;
        let ffn = b.feed_forward(i, Act::Silu)?;
        layers.push(b.layer(i, attn, ffn)?);
    }
    b.decoder(layers, ropes.into())
}
