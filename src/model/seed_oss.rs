//! Seed-OSS: Llama's shape with the other order of rotary pairs, biases on Q, K and V, and a name of its own for the second norm.

use super::Family;
use super::builder::{Builder, QkNorm};
use super::decoder::{ContextRope, Decoder};
use crate::Result;
use crate::attention::{AttentionShape, RopeStyle};
use crate::compute::Act;

/// The registry row.
pub const FAMILY: Family = Family::new("seed_oss", build);

fn build(b: &mut Builder) -> Result<Decoder> {
    b.ignore_window()?;
    let scale = b.keys.float("attention.scale")?.filter(|&s| s != 0.0);
    let shape = AttentionShape { scale: scale.unwrap_or(b.shape().scale), ..b.shape() };
    let rope = b.rope(RopeStyle::Neox, None);
    let mut layers = Vec::with_capacity(b.config.n_layer);
    for i in 0..b.config.n_layer {
        let attn = b.attention(i, shape, 0, QkNorm::None)?;
        let ffn = b.feed_forward(i, Act::Silu)?;
        layers.push(b.pre_norm_layer(i, attn, ffn, "post_attention_norm")?);
    }
    b.decoder(layers, vec![ContextRope::always(rope)])
}
