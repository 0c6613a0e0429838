//! DBRX: mixtures of 16 large experts, of which four are chosen, LayerNorm without biases, and clipped queries, keys and values.

use super::Family;
use super::builder::{Builder, QkNorm};
use super::decoder::{Attention, ContextRope, Decoder};
use crate::Result;
use crate::attention::RopeStyle;

/// The registry row.
pub const FAMILY: Family = Family::new("dbrx", build).with_layer_norm();

fn build(b: &mut Builder) -> Result<Decoder> {
    b.ignore_window()?;
    let (shape, clip) = (b.shape(), b.clip()?);
    let rope = b.rope(RopeStyle::Neox, None);
    let mixture = b.mixture(b.config.n_ff)?;
    let mut layers = Vec::with_capacity(b.config.n_layer);
    for i in 0..b.config.n_layer {
        let attn = Attention { clip, ..b.attention(i, shape, 0, QkNorm::None)? };
        let ffn = b.experts(i, &mixture)?;
        layers.push(b.pre_norm_layer(i, attn, ffn, "attn_output_norm")?);
    }
    b.decoder(layers, vec![ContextRope::always(rope)])
}
