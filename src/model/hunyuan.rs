//! Hunyuan's dense models, those that see images, for text, and Maincoder: Llama's shape with norms on every query and key head, after their
//! rotation; Hunyuan's with the other order of rotary pairs. Their positions may have four dimensions, of which text has three: the pairs of the
//! fourth do not turn.

use super::Family;
use super::builder::{Builder, QkNorm};
use super::decoder::{Attention, ContextRope, Decoder};
use crate::Result;
use crate::attention::{Rope, RopeStyle};
use crate::compute::Act;

/// The registry row of Hunyuan.
pub const HUNYUAN: Family = Family::new("hunyuan-dense", hunyuan);
/// The registry row of those that see images, for text.
pub const HUNYUAN_VL: Family = Family::new("hunyuan_vl", hunyuan);
/// The registry row of Maincoder.
pub const MAINCODER: Family = Family::new("maincoder", maincoder);

fn hunyuan(b: &mut Builder) -> Result<Decoder> {
    let c = b.config;
    // One expert stands for none.
    if c.n_expert > 1 {
        b.refuse_experts()?;
    }
    // Contexts stretched by a larger frequency base (NTK-aware scaling): some converters put it into the base itself, others leave it to the reader.
    let stretch = match b.keys.float("rope.scaling.alpha")?.filter(|&alpha| alpha > 0.0) {
        Some(alpha) if c.head_dim_k > 2 => alpha.powf(c.head_dim_k as f32 / (c.head_dim_k - 2) as f32),
        _ => 1.0,
    };
    let divisors = b.loader.optional_vector("rope_freqs.weight", c.n_rot / 2)?;
    let mut divisors = divisors.unwrap_or_else(|| vec![1.0; c.n_rot / 2].into());
    let turns = b.turning_pairs(c.n_rot / 2)?;
    divisors.iter_mut().zip(turns).filter(|(_, turns)| !turns).for_each(|(divisor, _)| *divisor = f32::INFINITY);
    let base = c.rope_base * stretch;
    let rope = Rope::new(RopeStyle::Neox, c.n_rot, base, &c.rope_scaling, Some(&divisors), c.rope_magnitude);
    stack(b, rope)
}

fn maincoder(b: &mut Builder) -> Result<Decoder> {
    b.refuse_experts()?;
    let rope = b.rope(RopeStyle::Norm, None);
    stack(b, rope)
}

fn stack(b: &mut Builder, rope: Rope) -> Result<Decoder> {
    b.ignore_window()?;
    let (n_layer, shape) = (b.config.n_layer, b.shape());
    let mut layers = Vec::with_capacity(n_layer);
    for i in 0..n_layer {
        let attn = Attention { norm_after_turn: true, ..b.attention(i, shape, 0, QkNorm::Heads)? };
        let ffn = b.dense_feed_forward(i, Act::Silu)?;
        layers.push(b.layer(i, attn, ffn)?);
    }
    b.decoder(layers, vec![ContextRope::always(rope)])
}
