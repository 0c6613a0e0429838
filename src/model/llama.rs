//! Llama 1 to 3, Mistral, TinyLlama, SmolLM2 and the many others that share their shape: pre-norm, SwiGLU,
//! grouped-query attention. InternLM2, ERNIE 4.5 (its dense models) and EXAONE 3 are the same under names of their own, the last
//! with the other order of rotary pairs.

use super::builder::Builder;
use super::decoder::Decoder;
use super::{Family, no_windows};
use crate::Result;
use crate::attention::RopeStyle;
use crate::compute::Act;

/// The registry row.
pub const LLAMA: Family = Family { arch: "llama", build: |b| build(b, RopeStyle::Norm), windows: no_windows };
/// The registry row of InternLM2.
pub const INTERNLM2: Family = Family { arch: "internlm2", ..LLAMA };
/// The registry row of ERNIE 4.5.
pub const ERNIE4_5: Family = Family { arch: "ernie4_5", ..LLAMA };
/// The registry row of EXAONE 3.
pub const EXAONE: Family = Family { arch: "exaone", build: |b| build(b, RopeStyle::Neox), windows: no_windows };

fn build(b: &mut Builder, style: RopeStyle) -> Result<Decoder> {
    b.ignore_window()?;
    let shape = b.shape();
    let rope = b.rope_with_factors(style)?;
    let mut layers = Vec::with_capacity(b.config.n_layer);
    for i in 0..b.config.n_layer {
        let attn = b.attention(i, shape, 0, false)?;
        let ffn = b.feed_forward(i, Act::Silu)?;
        layers.push(b.layer(i, attn, ffn)?);
    }
    b.decoder(layers, vec![rope])
}
