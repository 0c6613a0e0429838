//! GPT-2 and those of its shape: LayerNorm, mostly with biases, and positions that are learned, one vector for each of the context's, or none
//! but what linear biases make of distances. StarCoder, of the first kind, has one key/value head for all; BLOOM normalises its embeddings
//! too; MPT may clip queries, keys and values; Jais has gates.

use super::Family;
use super::builder::{Builder, QkNorm};
use super::decoder::{Attention, ContextRope, Decoder};
use crate::Result;
use crate::attention::{AttentionShape, Rope, USUAL_MAX_BIAS};
use crate::compute::Act;

/// The registry row of GPT-2.
pub const GPT2: Family = family("gpt2", |b| build(b, true, 0.0));
/// The registry row of StarCoder.
pub const STARCODER: Family = Family { arch: "starcoder", ..GPT2 };
/// The registry row of BLOOM.
pub const BLOOM: Family = family("bloom", |b| {
    let embed_norm = Some(b.norm("token_embd_norm")?);
    Ok(Decoder { embed_norm, ..build(b, false, USUAL_MAX_BIAS)? })
});
/// The registry row of MPT.
pub const MPT: Family = family("mpt", |b| {
    let learned = b.loader.has("position_embd.weight");
    let max_bias = max_bias(b)?;
    build(b, learned, max_bias)
});
/// The registry row of Jais.
pub const JAIS: Family = family("jais", |b| {
    let max_bias = max_bias(b)?;
    build(b, false, max_bias)
});

const fn family(arch: &'static str, build: fn(&mut Builder) -> Result<Decoder>) -> Family {
    Family::new(arch, build).with_layer_norm()
}

/// How steep linear biases are, 0 where there are none.
fn max_bias(b: &Builder) -> Result<f32> {
    const KEY: &str = "attention.max_alibi_bias";
    match b.keys.float(KEY)?.unwrap_or(0.0) {
        bias if bias < 0.0 => Err(b.keys.error(KEY, format_args!("{bias} is negative"))),
        bias => Ok(bias),
    }
}

/// A model with positions that are `learned`, with linear biases up to `max_bias`, or with both or none.
fn build(b: &mut Builder, learned: bool, max_bias: f32) -> Result<Decoder> {
    b.ignore_window()?;
    let (is_mpt, is_jais) = (b.config.arch == MPT.arch, b.config.arch == JAIS.arch);
    let shape = match is_jais {
        true => AttentionShape { scale: 1.0 / b.config.head_dim_k as f32, ..b.shape() },
        false => b.shape(),
    };
    let clip = if is_mpt { b.clip()? } else { None };
    let positions = learned.then(|| b.positions()).transpose()?;
    let mut layers = Vec::with_capacity(b.config.n_layer);
    for i in 0..b.config.n_layer {
        let attn = Attention { clip, slopes: b.slopes(max_bias), ..b.attention(i, shape, 0, QkNorm::None)? };
        let ffn = if is_jais { b.feed_forward(i, Act::Silu)? } else { b.ungated_feed_forward(i, Act::Gelu)? };
        layers.push(b.layer(i, attn, ffn)?);
    }
    let decoder = b.decoder(layers, vec![ContextRope::always(Rope::none())])?;
    Ok(Decoder { positions, ..decoder })
}
