//! Phi-3 and Phi-4: Llama's shape with Q, K, V in one tensor, gate and up in another, and LongRoPE frequencies. Phi-3.5-MoE has experts and
//! biases; its norms subtract no mean, as in llama.cpp.

use super::Family;
use super::builder::{Builder, QkNorm};
use super::decoder::Decoder;
use crate::Result;
use crate::attention::RopeStyle;
use crate::compute::Act;

/// The registry row of Phi-3 and Phi-4.
pub const PHI3: Family = Family::new("phi3", build);
/// The registry row of Phi-3.5-MoE.
pub const PHIMOE: Family = Family { arch: "phimoe", ..PHI3 };

fn build(b: &mut Builder) -> Result<Decoder> {
    b.ignore_window()?;
    let shape = b.shape();
    b.rms_biases = b.config.arch == PHIMOE.arch;
    let mixture = b.rms_biases.then(|| b.mixture(b.config.n_ff)).transpose()?;
    let rope = b.rope_with_factors(RopeStyle::Neox)?;
    let mut layers = Vec::with_capacity(b.config.n_layer);
    for i in 0..b.config.n_layer {
        let attn = b.attention(i, shape, 0, QkNorm::None)?;
        let ffn = match &mixture {
            Some(mixture) => b.experts(i, mixture)?,
            None => b.fused_feed_forward(i, Act::Silu)?,
        };
        layers.push(b.layer(i, attn, ffn)?);
    }
    b.decoder(layers, vec![rope])
}
