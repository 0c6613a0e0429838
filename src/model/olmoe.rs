//! OLMoE: mixtures of experts, norms before each half of a layer, and on queries and keys, all heads together.

use super::Family;
use super::builder::{Builder, QkNorm};
use super::decoder::{ContextRope, Decoder};
use crate::Result;
use crate::attention::RopeStyle;

/// The registry row.
pub const FAMILY: Family = Family::new("olmoe", build);

fn build(b: &mut Builder) -> Result<Decoder> {
    b.ignore_window()?;
    let shape = b.shape();
    let rope = b.rope(RopeStyle::Neox, None);
    let mut mixture = b.mixture(b.config.n_ff)?;
    mixture.choice.normalised = false;
    let mut layers = Vec::with_capacity(b.config.n_layer);
    for i in 0..b.config.n_layer {
        let attn = b.attention(i, shape, 0, QkNorm::Rows)?;
        let ffn = b.experts(i, &mixture)?;
        layers.push(b.layer(i, attn, ffn)?);
    }
    b.decoder(layers, vec![ContextRope::always(rope)])
}
