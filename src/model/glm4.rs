//! GLM-4 (0414): norms before and after each half of a layer, gate and up projections in one tensor, biases on Q, K and V, and heads of
//! which a half rotates; in models that see images, by the other order of pairs.

use super::Family;
use super::builder::{Builder, QkNorm};
use super::decoder::{ContextRope, Decoder};
use crate::Result;
use crate::attention::RopeStyle;
use crate::compute::Act;

/// The registry row.
pub const FAMILY: Family = Family::new("glm4", build);

fn build(b: &mut Builder) -> Result<Decoder> {
    b.ignore_window()?;
    let shape = b.shape();
    let style = if b.has_sections()? { RopeStyle::Neox } else { RopeStyle::Norm };
    let rope = b.rope(style, None);
    let mut layers = Vec::with_capacity(b.config.n_layer);
    for i in 0..b.config.n_layer {
        let attn = b.attention(i, shape, 0, QkNorm::None)?;
        let ffn = b.fused_feed_forward(i, Act::Silu)?;
        layers.push(b.sandwiched_layer(i, attn, ffn)?);
    }
    b.decoder(layers, vec![ContextRope::always(rope)])
}
