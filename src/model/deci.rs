//! DeciLM: DeciLM-7B, and what a search over architectures (Puzzle, arXiv 2411.19146) made of Llama 3, which is Llama-3.1-Nemotron-51B, Nemotron
//! Super 49B and Nemotron Ultra 253B. Layers are those of Llama with parts of them missing: key/value heads and hidden units differ from one to
//! another; a layer without key/value heads has a linear map in the place of attention, one without any heads nothing; one without hidden units
//! has no network, and one without either is there to be counted. (Of a layer with attention and no network, which none of these has, llama.cpp
//! leaves the attention out; here it counts, as in the models' own code.)

use super::Family;
use super::builder::{Builder, QkNorm};
use super::decoder::{Decoder, Ffn, Layer, Mixer};
use crate::Result;
use crate::attention::{AttentionShape, RopeStyle};
use crate::compute::Act;

/// The registry row.
pub const FAMILY: Family = Family::new("deci", build).with_varying_heads();

fn build(b: &mut Builder) -> Result<Decoder> {
    b.ignore_window()?;
    b.refuse_experts()?;
    let (c, keys) = (b.config, b.keys);
    let (heads, n_ff) = (keys.heads(c.n_layer)?, keys.hidden_units(c.n_layer)?);
    if heads.iter().all(|&[_, n_head_kv]| n_head_kv == 0) {
        return Err(keys.error("attention.head_count_kv", "no layer has any: none is left to mix tokens"));
    }
    let rope = b.rope_with_factors(RopeStyle::Norm)?;
    let mut layers = Vec::with_capacity(c.n_layer);
    for (i, (heads, n_ff)) in heads.into_iter().zip(n_ff).enumerate() {
        layers.push(layer(b, i, heads, n_ff)?);
    }
    b.decoder(layers, vec![rope])
}

/// Layer `i` with so many query and key/value heads, and hidden units.
fn layer(b: &mut Builder, i: usize, heads: [usize; 2], n_ff: usize) -> Result<Layer> {
    let mixer = mixer(b, i, heads)?;
    let ffn = (n_ff > 0).then(|| b.network(i, "", n_ff, Act::Silu)).transpose()?;
    let ffn_norm = ffn.is_some().then(|| b.norm(&format!("blk.{i}.ffn_norm"))).transpose()?;
    let layer = Layer::bare(mixer, ffn.map(|network| Ffn::One(Box::new(network))));
    // A network alone has its norm where the layer begins.
    Ok(match layer.has_mixer() {
        true => Layer { attn_norm: Some(b.norm(&format!("blk.{i}.attn_norm"))?), ffn_norm, ..layer },
        false => Layer { attn_norm: ffn_norm, ..layer },
    })
}

/// What layer `i` has in its first half.
fn mixer(b: &mut Builder, i: usize, [n_head, n_head_kv]: [usize; 2]) -> Result<Mixer> {
    if n_head_kv > 0 {
        b.keys.check_heads(n_head_kv, n_head, Some(i))?;
        let shape = AttentionShape { n_head, n_head_kv, ..b.shape() };
        return Ok(b.attention(i, shape, 0, QkNorm::None)?.into());
    }
    b.has_no_attention(i)?;
    let n_embd = b.config.n_embd;
    Ok(match n_head {
        0 => Mixer::default(),
        _ => b.loader.linear(&format!("blk.{i}.attn_output"), n_embd, n_embd)?.into(),
    })
}
