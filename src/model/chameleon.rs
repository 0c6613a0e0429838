//! Chameleon (arXiv 2405.09818), for text: Llama's shape with LayerNorm on every query and key head, each with weights of its own; in the larger
//! model norms come after the halves of a layer instead of before (llama.cpp leaves the residual stream out of what its networks are given, which is not
//! done here). Tokens that stand for parts of images are never predicted, as in llama.cpp.

use super::Family;
use super::builder::{Builder, QkNorm};
use super::decoder::{Attention, ContextRope, Decoder, Layer};
use crate::Result;
use crate::attention::RopeStyle;
use crate::compute::Act;

/// The registry row.
pub const FAMILY: Family = Family::new("chameleon", build);

/// The epsilon of the norms on heads, of which files say nothing.
const HEAD_EPS: f32 = 1e-5;
/// Tokens of images: from the first to the one after the last.
const IMAGES: std::ops::Range<usize> = 4..8196;

fn build(b: &mut Builder) -> Result<Decoder> {
    b.ignore_window()?;
    if b.n_vocab < IMAGES.end {
        let what =
            format_args!("{} tokens, expected {} or more: those of images are among them", b.n_vocab, IMAGES.end);
        return Err(b.loader.error(what));
    }
    let (n_layer, shape) = (b.config.n_layer, b.shape());
    let norms_after = b.keys.flag("swin_norm")?.unwrap_or(false);
    let rope = ContextRope::always(b.rope(RopeStyle::Norm, None));
    let mut layers = Vec::with_capacity(n_layer);
    for i in 0..n_layer {
        let attn = b.attention(i, shape, 0, QkNorm::OwnLayerNorm)?;
        let attn = Attention { head_eps: Some(HEAD_EPS), ..attn };
        let ffn = b.feed_forward(i, Act::Silu)?;
        let layer = b.layer(i, attn, ffn)?;
        layers.push(if norms_after { with_norms_after(layer) } else { layer });
    }
    Ok(Decoder { silent: Some(IMAGES), ..b.decoder(layers, vec![rope])? })
}

/// A layer whose norms before its halves are those after them.
fn with_norms_after(layer: Layer) -> Layer {
    let Layer { attn_norm: post_attn_norm, ffn_norm: post_ffn_norm, .. } = layer;
    Layer { attn_norm: None, ffn_norm: None, post_attn_norm, post_ffn_norm, ..layer }
}
