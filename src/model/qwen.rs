//! Qwen2 and Qwen2.5 (biases on Q, K and V) and Qwen3 (norms on every query and key head instead).

use super::builder::{Builder, QkNorm};
use super::decoder::{ContextRope, Decoder};
use super::{Family, no_windows};
use crate::Result;
use crate::attention::RopeStyle;
use crate::compute::Act;

/// The registry row of Qwen2.
pub const QWEN2: Family = Family { arch: "qwen2", build: |b| build(b, QkNorm::None), windows: no_windows };
/// The registry row of Qwen3.
pub const QWEN3: Family = Family { arch: "qwen3", build: |b| build(b, QkNorm::Heads), windows: no_windows };

fn build(b: &mut Builder, norm: QkNorm) -> Result<Decoder> {
    b.ignore_window()?;
    let shape = b.shape();
    let rope = b.rope(RopeStyle::Neox, None);
    let mut layers = Vec::with_capacity(b.config.n_layer);
    for i in 0..b.config.n_layer {
        let attn = b.attention(i, shape, 0, norm)?;
        let ffn = b.feed_forward(i, Act::Silu)?;
        layers.push(b.layer(i, attn, ffn)?);
    }
    b.decoder(layers, vec![ContextRope::always(rope)])
}
