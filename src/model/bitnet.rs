//! BitNet b1.58 (arXiv 2402.17764): weights of -1, 0 and 1 with one factor for a matrix, and norms inside each half of a layer, on what meets its
//! last matrix: the heads' results, and the hidden units.

use super::Family;
use super::builder::{Builder, QkNorm};
use super::decoder::{Attention, ContextRope, Decoder, FeedForward, Ffn};
use crate::Result;
use crate::attention::RopeStyle;
use crate::compute::Act;

/// The registry row.
pub const FAMILY: Family = Family::new("bitnet", build);

fn build(b: &mut Builder) -> Result<Decoder> {
    b.ignore_window()?;
    b.refuse_experts()?;
    let (shape, n_ff) = (b.shape(), b.config.n_ff);
    let rope = b.rope(RopeStyle::Neox, None);
    let mut layers = Vec::with_capacity(b.config.n_layer);
    for i in 0..b.config.n_layer {
        let attn = b.attention(i, shape, 0, QkNorm::None)?;
        let sub_norm = Some(b.norm_of(&format!("blk.{i}.attn_sub_norm"), attn.out.weight.cols())?);
        let network = b.network(i, "", n_ff, Act::Silu)?;
        let norm = Some(b.norm_of(&format!("blk.{i}.ffn_sub_norm"), n_ff)?);
        let ffn = Ffn::One(Box::new(FeedForward { norm, ..network }));
        layers.push(b.layer(i, Attention { sub_norm, ..attn }, ffn)?);
    }
    b.decoder(layers, vec![ContextRope::always(rope)])
}
