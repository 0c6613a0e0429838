//! Hunyuan's dense models: Llama's shape with the other order of rotary pairs, and norms on every query and key head, after their
//! rotation.

use super::Family;
use super::builder::{Builder, QkNorm};
use super::decoder::{Attention, ContextRope, Decoder};
use crate::Result;
use crate::attention::{Rope, RopeStyle};
use crate::compute::Act;

/// The registry row.
pub const FAMILY: Family = Family::new("hunyuan-dense", build);

fn build(b: &mut Builder) -> Result<Decoder> {
    b.ignore_window()?;
    b.has_sections()?;
    let (c, shape) = (b.config, b.shape());
    // Contexts stretched by a larger frequency base (NTK-aware scaling): some converters put it into the base itself, others leave it to the reader.
    let stretch = match b.keys.float("rope.scaling.alpha")?.filter(|&alpha| alpha > 0.0) {
        Some(alpha) if c.head_dim_k > 2 => alpha.powf(c.head_dim_k as f32 / (c.head_dim_k - 2) as f32),
        _ => 1.0,
    };
    let freqs = b.loader.optional_vector("rope_freqs.weight", c.n_rot / 2)?;
    let base = c.rope_base * stretch;
    let rope = Rope::new(RopeStyle::Neox, c.n_rot, base, &c.rope_scaling, freqs.as_deref(), c.rope_magnitude);
    let mut layers = Vec::with_capacity(c.n_layer);
    for i in 0..c.n_layer {
        let attn = Attention { norm_after_turn: true, ..b.attention(i, shape, 0, QkNorm::Heads)? };
        let ffn = b.feed_forward(i, Act::Silu)?;
        layers.push(b.layer(i, attn, ffn)?);
    }
    b.decoder(layers, vec![ContextRope::always(rope)])
}
