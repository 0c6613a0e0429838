//! Qwen 1, 2 and 2.5 (biases on Q, K and V) and Qwen3 (norms on every query and key head instead), the later ones of which there are as
//! mixtures of experts too: those of Qwen 1.5 and 2 have a network besides that all tokens meet and weigh.

use super::Family;
use super::builder::{Builder, QkNorm};
use super::decoder::{ContextRope, Decoder, Ffn};
use crate::Result;
use crate::attention::RopeStyle;
use crate::compute::Act;

/// The registry row of Qwen 1.
pub const QWEN: Family = Family::new("qwen", |b| build(b, QkNorm::None));
/// The registry row of Qwen2.
pub const QWEN2: Family = Family::new("qwen2", |b| build(b, QkNorm::None));
/// The registry row of Qwen2-VL and Qwen2.5-VL, for text.
pub const QWEN2VL: Family = Family { arch: "qwen2vl", ..QWEN2 };
/// The registry row of Qwen3.
pub const QWEN3: Family = Family::new("qwen3", |b| build(b, QkNorm::Heads));
/// The registry row of Qwen 1.5's and 2's mixtures of experts.
pub const QWEN2MOE: Family = Family::new("qwen2moe", |b| build(b, QkNorm::None));
/// The registry row of Qwen3's mixtures of experts.
pub const QWEN3MOE: Family = Family::new("qwen3moe", |b| build(b, QkNorm::Heads));
/// The registry row of Qwen3-VL, for text.
pub const QWEN3VL: Family = Family { arch: "qwen3vl", ..QWEN3 };
/// The registry row of Qwen3-VL's mixtures of experts, for text.
pub const QWEN3VLMOE: Family = Family { arch: "qwen3vlmoe", ..QWEN3MOE };

fn build(b: &mut Builder, norm: QkNorm) -> Result<Decoder> {
    b.ignore_window()?;
    b.has_sections()?;
    let shape = b.shape();
    let rope = b.rope(RopeStyle::Neox, None);
    let c = b.config;
    let mixture = match c.arch.as_str() {
        arch if [QWEN2MOE.arch, QWEN3MOE.arch, QWEN3VLMOE.arch].contains(&arch) => {
            let n_ff = b.keys.width("expert_feed_forward_length")?.unwrap_or(c.n_ff / c.n_expert_used.max(1));
            let mut mixture = b.mixture(n_ff)?;
            if arch == QWEN2MOE.arch {
                mixture.choice.normalised = false;
                mixture.n_ff_shared = b.keys.width("expert_shared_feed_forward_length")?.unwrap_or(c.n_ff);
                mixture.weighed = true;
            }
            Some(mixture)
        }
        _ => None,
    };
    // Qwen 1 counts gates among a network's hidden units.
    let halved = c.arch == QWEN.arch;
    let mut layers = Vec::with_capacity(b.config.n_layer);
    for i in 0..b.config.n_layer {
        let attn = b.attention(i, shape, 0, norm)?;
        let ffn = match &mixture {
            Some(mixture) => b.experts(i, mixture)?,
            None if halved => Ffn::One(Box::new(b.network(i, "", c.n_ff / 2, Act::Silu)?)),
            None => b.feed_forward(i, Act::Silu)?,
        };
        layers.push(b.layer(i, attn, ffn)?);
    }
    b.decoder(layers, vec![ContextRope::always(rope)])
}
