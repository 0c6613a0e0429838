//! RWKV-7 (arXiv 2503.14456), and ARWKV (arXiv 2501.15570), which has its time mixing in the place of Qwen2's attention: norms and feed-forward
//! networks are those of Qwen2 then, and some of the rest may be missing. No layer has attention.

use super::Family;
use super::builder::Builder;
use super::config::{Keys, MAX_HEAD_DIM, MAX_WIDTH};
use super::decoder::{ContextRope, Decoder, Ffn, Layer};
use crate::Result;
use crate::attention::{ChannelMix, Curve, Given, Moving, Rope, TimeMix, TimeRule, TimeShape, TokenShift, TwoSteps};
use crate::compute::{Act, Linear, Norm};

/// The registry row of RWKV-7.
pub const RWKV7: Family =
    Family::new("rwkv7", rwkv7).with_states(|keys, n| n_state(keys, n, 2)).without_attention().with_layer_norm();
/// The registry row of ARWKV.
pub const ARWKV7: Family = Family::new("arwkv7", arwkv7).with_states(|keys, n| n_state(keys, n, 1)).without_attention();

/// The epsilon of the norms on heads' results.
pub const HEAD_EPS: f32 = 64e-5;

/// The operands of time mixing, in the files' order.
const Q: usize = 0;
const DECAY: usize = 1;
const K: usize = 2;
const V: usize = 3;
const RATE: usize = 4;
const GATE: usize = 5;

fn rwkv7(b: &mut Builder) -> Result<Decoder> {
    let (c, shape) = (b.config, shape(b.keys, 2)?);
    let n_ff = b.keys.required("feed_forward_length", MAX_WIDTH)?;
    let embed_norm = Some(b.norm("token_embd_norm")?);
    let mut layers = Vec::with_capacity(c.n_layer);
    for i in 0..c.n_layer {
        let mix = time_mix(b, i, shape, true)?;
        let lean = b.loader.values(&format!("blk.{i}.channel_mix_lerp_k.weight"), &[c.n_embd])?;
        let channel_mix = Some(ChannelMix { shift: TokenShift { leaning: lean }, gate: None });
        let ffn = channel_network(b, i, n_ff)?;
        layers.push(Layer { channel_mix, ..b.pre_norm_layer(i, mix, ffn, "attn_norm_2")? });
    }
    let decoder = b.decoder(layers, vec![ContextRope::always(Rope::none())])?;
    Ok(Decoder { embed_norm, ..decoder })
}

fn arwkv7(b: &mut Builder) -> Result<Decoder> {
    let (c, shape) = (b.config, shape(b.keys, 1)?);
    let n_ff = b.keys.required("feed_forward_length", MAX_WIDTH)?;
    let mut layers = Vec::with_capacity(c.n_layer);
    for i in 0..c.n_layer {
        let mix = time_mix(b, i, shape, false)?;
        let ffn = Ffn::One(Box::new(b.network(i, "", n_ff, Act::Silu)?));
        layers.push(b.layer(i, mix, ffn)?);
    }
    b.decoder(layers, vec![ContextRope::always(Rope::none())])
}

/// Floats of the states of a model with time mixing in all layers, `n_shifted` of whose halves lean to the token before.
pub fn n_state(keys: &Keys, n_layer: usize, n_shifted: usize) -> Result<usize> {
    Ok(n_layer.saturating_mul(shape(keys, n_shifted)?.n_state()))
}

/// The heads that a file's keys describe, where `n_shifted` halves of a layer lean to the token before.
///
/// # Errors
/// Names the key that is missing or wrong.
pub fn shape(keys: &Keys, n_shifted: usize) -> Result<TimeShape> {
    const SIZE: &str = "wkv.head_size";
    const SHIFTED: &str = "token_shift_count";
    let n_embd = keys.required("embedding_length", MAX_WIDTH)?;
    let head_dim = keys.required(SIZE, MAX_HEAD_DIM)?;
    if !n_embd.is_multiple_of(head_dim) {
        return Err(keys.error(SIZE, format_args!("heads of {head_dim} values do not divide {n_embd}")));
    }
    match keys.count(SHIFTED)?.unwrap_or(2) {
        n if n == n_shifted => Ok(TimeShape { n_head: n_embd / head_dim, head_dim, n_shifted }),
        n => Err(keys.error(SHIFTED, format_args!("{n}, expected {n_shifted}"))),
    }
}

/// The feed-forward network of channel mixing in layer `i`.
pub fn channel_network(b: &mut Builder, i: usize, n_ff: usize) -> Result<Ffn> {
    let names = ["key", "value"].map(|part| format!("blk.{i}.channel_mix_{part}"));
    Ok(Ffn::One(Box::new(b.ungated_network_of(names, n_ff, Act::ReluSquared)?)))
}

/// LayerNorms on the results of layer `i`'s heads.
pub fn head_norms(b: &mut Builder, i: usize, shape: TimeShape) -> Result<Box<[Norm]>> {
    let [weights, biases] =
        ["weight", "bias"].map(|part| b.loader.vector(&format!("blk.{i}.time_mix_ln.{part}"), shape.n_embd()));
    let heads = weights?
        .chunks_exact(shape.head_dim)
        .map(Box::from)
        .zip(biases?.chunks_exact(shape.head_dim).map(Box::from))
        .collect::<Vec<_>>();
    Ok(heads.into_iter().map(|(weight, bias)| Norm { weight, bias: Some(bias), centred: true, eps: None }).collect())
}

/// The time mixing of layer `i`. Gates, and norms on heads' results, are there in all models that are `complete`.
fn time_mix(b: &mut Builder, i: usize, shape: TimeShape, complete: bool) -> Result<TimeMix> {
    b.has_no_attention(i)?;
    let n = shape.n_embd();
    let name = |part: &str| format!("blk.{i}.time_mix_{part}");
    let has = |b: &Builder, part: &str| b.loader.has(&name(&format!("{part}.weight")));
    let gated = complete || has(b, "g1");
    let norm = (complete || has(b, "ln")).then(|| head_norms(b, i, shape)).transpose()?;
    // The first layer has no other to lean to, whatever its file has.
    ["v0", "v1", "v2"].iter().filter(|_| i == 0).for_each(|part| b.loader.skip(&name(&format!("{part}.weight"))));
    let rank = |key: &str| b.keys.required(&format!("attention.{key}_lora_rank"), MAX_WIDTH);
    let ranks = (rank("decay")?, rank("iclr")?, rank("value_residual_mix")?, if gated { rank("gate")? } else { 0 });
    let l = &mut *b.loader;
    let n_operands =
        if gated || l.dims(&name("lerp_fused.weight")).is_some_and(|d| d.last() == Some(&(GATE as u64 + 1))) {
            GATE + 1
        } else {
            GATE
        };
    let leaning = l.values(&name("lerp_fused.weight"), &[n, 1, 1, n_operands])?;
    let mut steps = |operand, part: &str, rank, curve, biased: bool| {
        let bias = biased.then(|| l.vector(&name(&format!("{part}0.weight")), n)).transpose()?;
        let down = l.linear(&name(&format!("{part}1")), rank, n)?;
        let up = Linear { bias, ..l.linear(&name(&format!("{part}2")), n, rank)? };
        Ok::<_, crate::Error>(Given { operand, meets: TwoSteps { down, curve, up } })
    };
    let decay = steps(DECAY, "w", ranks.0, Curve::Tanh, true)?;
    let rate = steps(RATE, "a", ranks.1, Curve::Straight, true)?;
    let lean = (i > 0).then(|| steps(V, "v", ranks.2, Curve::Straight, true)).transpose()?;
    let gate = gated.then(|| steps(GATE, "g", ranks.3, Curve::Sigmoid, false)).transpose()?;
    let rule = Moving {
        rate,
        lean,
        gate,
        removal: l.vector(&name("k_k.weight"), n)?,
        renewal: l.vector(&name("k_a.weight"), n)?,
        bonus: l.vector(&name("r_k.weight"), n)?,
    };
    let mut whole = |operand, part: &str| Ok::<_, crate::Error>(Given { operand, meets: l.linear(&name(part), n, n)? });
    Ok(TimeMix {
        shape,
        q: whole(Q, "receptance")?,
        k: whole(K, "key")?,
        v: whole(V, "value")?,
        shift: TokenShift { leaning },
        own: None,
        decay,
        rule: TimeRule::Moving(rule.into()),
        norm,
        norm_eps: HEAD_EPS,
        out: l.linear(&name("output"), n, n)?,
    })
}
