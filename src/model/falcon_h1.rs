//! Falcon-H1 (arXiv 2507.22448): attention and a selective scan side by side in every layer. The family's many constant factors are in its files'
//! weights already.

use super::Family;
use super::builder::{Builder, QkNorm};
use super::decoder::{ContextRope, Decoder, Layer, Mixer};
use super::mamba2::{selective_scan, shape, state_of_all};
use crate::Result;
use crate::attention::RopeStyle;
use crate::compute::{Act, Norm};

/// The registry row.
pub const FAMILY: Family = Family::new("falcon-h1", build).with_states(state_of_all);

fn build(b: &mut Builder) -> Result<Decoder> {
    let (attention, scan, n_embd) = (b.shape(), shape(b.keys)?, b.config.n_embd);
    let rope = ContextRope::always(b.rope(RopeStyle::Neox, None));
    let mut layers = Vec::with_capacity(b.config.n_layer);
    for i in 0..b.config.n_layer {
        let attn = Some(b.attention(i, attention, 0, QkNorm::None)?);
        let recurrence = Some(selective_scan(b, i, scan, false)?.into());
        let ffn = Some(b.feed_forward(i, Act::Silu)?);
        let attn_norm = Some(b.norm(&format!("blk.{i}.attn_norm"))?);
        // This one's name has no suffix.
        let ffn_norm = Some(Norm::rms(b.loader.vector(&format!("blk.{i}.ffn_norm"), n_embd)?));
        layers.push(Layer { attn_norm, ffn_norm, ..Layer::bare(Mixer { attn, recurrence, ..Mixer::default() }, ffn) });
    }
    b.decoder(layers, vec![rope])
}
