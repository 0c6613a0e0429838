//! Llama 1 to 3, Mistral, TinyLlama, SmolLM2 and the many others that share their shape: pre-norm, SwiGLU,
//! grouped-query attention.

use super::builder::Builder;
use super::decoder::{ContextRope, Decoder};
use super::{Family, no_windows};
use crate::Result;
use crate::attention::RopeStyle;
use crate::compute::Act;

/// The registry row.
pub const FAMILY: Family = Family { arch: "llama", build, windows: no_windows };

fn build(b: &mut Builder) -> Result<Decoder> {
    b.ignore_window()?;
    let shape = b.shape();
    // Llama 3.1's stretching comes as a finished divisor for every pair.
    let divisors = b.loader.optional_vector("rope_freqs.weight", b.config.n_rot / 2)?;
    let rope = b.rope(RopeStyle::Norm, divisors.as_deref());
    let mut layers = Vec::with_capacity(b.config.n_layer);
    for i in 0..b.config.n_layer {
        let attn = b.attention(i, shape, 0, false)?;
        let ffn = b.feed_forward(i, Act::Silu)?;
        layers.push(b.layer(i, attn, ffn)?);
    }
    b.decoder(layers, vec![ContextRope::always(rope)])
}
