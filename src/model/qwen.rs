//! Qwen2 and Qwen2.5 (biases on Q, K and V) and Qwen3 (norms on every query and key head instead), which there is as mixtures of
//! experts too.

use super::builder::{Builder, QkNorm};
use super::config::MAX_WIDTH;
use super::decoder::{ContextRope, Decoder};
use super::{Family, no_windows};
use crate::Result;
use crate::attention::RopeStyle;
use crate::compute::Act;

/// The registry row of Qwen2.
pub const QWEN2: Family = Family { arch: "qwen2", build: |b| build(b, QkNorm::None), windows: no_windows };
/// The registry row of Qwen3.
pub const QWEN3: Family = Family { arch: "qwen3", build: |b| build(b, QkNorm::Heads), windows: no_windows };
/// The registry row of Qwen3's mixtures of experts.
pub const QWEN3MOE: Family = Family { arch: "qwen3moe", build: |b| build(b, QkNorm::Heads), windows: no_windows };

fn build(b: &mut Builder, norm: QkNorm) -> Result<Decoder> {
    b.ignore_window()?;
    let shape = b.shape();
    let rope = b.rope(RopeStyle::Neox, None);
    let c = b.config;
    let of_expert = || match b.keys.uniform("expert_feed_forward_length")?.filter(|&n| n > 0) {
        Some(n) if n > MAX_WIDTH => {
            Err(b.keys.error("expert_feed_forward_length", format_args!("{n} is out of range")))
        }
        Some(n) => Ok(n),
        None => Ok(c.n_ff / c.n_expert_used.max(1)),
    };
    let n_ff_of_expert = (c.arch == QWEN3MOE.arch).then(of_expert).transpose()?;
    let mut layers = Vec::with_capacity(b.config.n_layer);
    for i in 0..b.config.n_layer {
        let attn = b.attention(i, shape, 0, norm)?;
        let ffn = match n_ff_of_expert {
            Some(n_ff) => b.experts(i, n_ff, true)?,
            None => b.feed_forward(i, Act::Silu)?,
        };
        layers.push(b.layer(i, attn, ffn)?);
    }
    b.decoder(layers, vec![ContextRope::always(rope)])
}
