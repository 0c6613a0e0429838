//! PLM (arXiv 2503.12167): the latent attention of DeepSeek-V2, in the form of its older files, and networks without gates that square what is
//! above 0.

use super::Family;
use super::builder::Builder;
use super::decoder::{ContextRope, Decoder};
use super::deepseek2::{attention, sizes};
use crate::Result;
use crate::attention::RopeStyle;
use crate::compute::Act;

/// The registry row.
pub const FAMILY: Family = Family::new("plm", build);

fn build(b: &mut Builder) -> Result<Decoder> {
    b.ignore_window()?;
    const NEWER: &str = "attention.key_length_mla";
    if b.keys.count(NEWER)?.is_some() {
        return Err(b.keys.error(NEWER, "is of DeepSeek-V2's newer files, which this family has not"));
    }
    let (c, shape, sizes) = (b.config, b.shape(), sizes(b)?);
    let rope = ContextRope::always(b.rope(RopeStyle::Norm, None)).turning_from(shape.head_dim_k - c.n_rot);
    let mut layers = Vec::with_capacity(c.n_layer);
    for i in 0..c.n_layer {
        let attn = attention(b, i, &sizes, shape)?;
        let ffn = b.ungated_feed_forward(i, Act::ReluSquared)?;
        layers.push(b.layer(i, attn, ffn)?);
    }
    b.decoder(layers, vec![rope])
}
