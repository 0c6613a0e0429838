//! MiniCPM 3: the latent attention of DeepSeek-V2, in the form of its older files, with LongRoPE, and MiniCPM's constant factors (muP) on the
//! embeddings, on what each half of a layer adds to the residual stream, and on the logits. Files leave the factors unsaid.

use super::Family;
use super::builder::Builder;
use super::decoder::{Decoder, Ffn};
use super::deepseek2::{attention, sizes};
use crate::Result;
use crate::attention::RopeStyle;
use crate::compute::Act;

/// The registry row.
pub const FAMILY: Family = Family::new("minicpm3", build);

const EMBEDDING: f32 = 12.0;
/// The halves' factor, times the square root of the number of layers.
const DEPTH: f32 = 1.4;
/// The logits' factor, times the width of the residual stream.
const BASE_WIDTH: f32 = 256.0;

fn build(b: &mut Builder) -> Result<Decoder> {
    b.ignore_window()?;
    b.refuse_experts()?;
    let (c, shape) = (b.config, b.shape());
    let sizes = sizes(b)?;
    let rope = b.rope_with_factors(RopeStyle::Neox)?.turning_from(shape.head_dim_k - c.n_rot);
    let residual = DEPTH / (c.n_layer as f32).sqrt();
    let mut layers = Vec::with_capacity(c.n_layer);
    for i in 0..c.n_layer {
        let mut attn = attention(b, i, &sizes, shape)?;
        attn.out.scale_by(residual);
        let mut network = b.network(i, "", c.n_ff, Act::Silu)?;
        network.down.scale_by(residual);
        layers.push(b.layer(i, attn, Ffn::One(Box::new(network)))?);
    }
    let mut decoder = b.decoder(layers, vec![rope])?;
    decoder.embed_scale = EMBEDDING;
    decoder.output_norm.scale(BASE_WIDTH / c.n_embd as f32);
    Ok(decoder)
}
