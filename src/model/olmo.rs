//! OLMo (arXiv 2402.00838): Llama's shape with LayerNorm that has neither weights nor biases. The 7B's queries, keys and values are clipped.

use super::Family;
use super::builder::{Builder, QkNorm};
use super::decoder::{Attention, ContextRope, Decoder, Layer};
use crate::Result;
use crate::attention::RopeStyle;
use crate::compute::{Act, Norm};

/// The registry row.
pub const FAMILY: Family = Family::new("olmo", build).with_layer_norm();

fn build(b: &mut Builder) -> Result<Decoder> {
    b.ignore_window()?;
    let (shape, clip) = (b.shape(), b.clip()?);
    let norm = Norm::plain(b.config.n_embd, true);
    let rope = b.rope(RopeStyle::Norm, None);
    let mut layers = Vec::with_capacity(b.config.n_layer);
    for i in 0..b.config.n_layer {
        let attn = Attention { clip, ..b.attention(i, shape, 0, QkNorm::None)? };
        let ffn = b.feed_forward(i, Act::Silu)?;
        let [attn_norm, ffn_norm] = [norm.clone(), norm.clone()].map(Some);
        layers.push(Layer { attn_norm, ffn_norm, ..Layer::bare(attn, Some(ffn)) });
    }
    b.decoder_around(layers, vec![ContextRope::always(rope)], norm)
}
