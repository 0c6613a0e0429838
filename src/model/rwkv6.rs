//! RWKV-6 (arXiv 2404.05892), and QRWKV6, which has its time mixing in the place of Qwen2's attention, with key/value heads that several heads
//! share, and Qwen2's norms and feed-forward networks. How far a token leans to the one before is up to itself as well.

use super::Family;
use super::builder::Builder;
use super::config::{Keys, MAX_WIDTH};
use super::decoder::{ContextRope, Decoder, Ffn, Layer};
use super::rwkv7::{HEAD_EPS, channel_network, head_norms, n_state, shape};
use crate::Result;
use crate::attention::{
    ChannelMix, Curve, Fading, Given, OwnLeaning, Rope, TimeMix, TimeRule, TimeShape, TokenShift, TwoSteps,
};
use crate::compute::{Act, Linear};

/// The registry row of RWKV-6.
pub const RWKV6: Family =
    Family::new("rwkv6", rwkv6).with_states(|keys, n| n_state(keys, n, 2)).without_attention().with_layer_norm();
/// The registry row of QRWKV6.
pub const RWKV6QWEN2: Family =
    Family::new("rwkv6qwen2", rwkv6qwen2).with_states(|keys, n| n_state(keys, n, 1)).without_attention();

/// The operands of time mixing, in the files' order.
const OPERANDS: [&str; 5] = ["w", "k", "v", "r", "g"];
const DECAY: usize = 0;
const K: usize = 1;
const V: usize = 2;
const Q: usize = 3;
const GATE: usize = 4;

fn rwkv6(b: &mut Builder) -> Result<Decoder> {
    let (c, shape) = (b.config, shape(b.keys, 2)?);
    let n_ff = b.keys.required("feed_forward_length", MAX_WIDTH)?;
    let n_rescaled = b.keys.count("rescale_every_n_layers")?.filter(|&n| n > 0);
    let embed_norm = Some(b.norm("token_embd_norm")?);
    let mut layers = Vec::with_capacity(c.n_layer);
    for i in 0..c.n_layer {
        let name = |part: &str| format!("blk.{i}.time_mix_{part}.weight");
        let bonus = Some(b.loader.values(&name("first"), &[shape.head_dim, shape.n_head])?);
        let norm = Some(head_norms(b, i, shape)?);
        let mix = TimeMix { norm, ..time_mix(b, i, shape, shape.n_head, bonus)? };
        let mut leaning = Vec::with_capacity(2 * c.n_embd);
        for part in ["k", "r"] {
            leaning.extend_from_slice(&b.loader.vector(&format!("blk.{i}.channel_mix_lerp_{part}.weight"), c.n_embd)?);
        }
        let gate = Some(b.loader.linear(&format!("blk.{i}.channel_mix_receptance"), c.n_embd, c.n_embd)?);
        let channel_mix = Some(ChannelMix { shift: TokenShift { leaning: leaning.into() }, gate });
        let ffn = channel_network(b, i, n_ff)?;
        // What comes later is made for a residual stream of half the size.
        let scale = if n_rescaled.is_some_and(|n| (i + 1).is_multiple_of(n)) { 0.5 } else { 1.0 };
        layers.push(Layer { channel_mix, scale, ..b.pre_norm_layer(i, mix, ffn, "attn_norm_2")? });
    }
    let decoder = b.decoder(layers, vec![ContextRope::always(Rope::none())])?;
    Ok(Decoder { embed_norm, ..decoder })
}

fn rwkv6qwen2(b: &mut Builder) -> Result<Decoder> {
    let (c, shape) = (b.config, shape(b.keys, 1)?);
    let n_ff = b.keys.required("feed_forward_length", MAX_WIDTH)?;
    let n_head_kv = n_head_kv(b.keys, shape)?;
    let mut layers = Vec::with_capacity(c.n_layer);
    for i in 0..c.n_layer {
        let mix = time_mix(b, i, shape, n_head_kv, None)?;
        let ffn = Ffn::One(Box::new(b.network(i, "", n_ff, Act::Silu)?));
        layers.push(b.layer(i, mix, ffn)?);
    }
    // That of the last norm, where the file has it.
    b.rms_biases = true;
    b.decoder(layers, vec![ContextRope::always(Rope::none())])
}

/// Heads with keys and values of their own; 0 stands for all.
fn n_head_kv(keys: &Keys, shape: TimeShape) -> Result<usize> {
    const KEY: &str = "attention.head_count_kv";
    match keys.uniform(KEY)?.unwrap_or(0) {
        0 => Ok(shape.n_head),
        n if shape.n_head.is_multiple_of(n) => Ok(n),
        n => Err(keys.error(KEY, format_args!("{n} does not divide the {} heads", shape.n_head))),
    }
}

/// The time mixing of layer `i`, of which `n_head_kv` heads have keys and values of their own, without norms.
fn time_mix(
    b: &mut Builder,
    i: usize,
    shape: TimeShape,
    n_head_kv: usize,
    bonus: Option<Box<[f32]>>,
) -> Result<TimeMix> {
    b.has_no_attention(i)?;
    let [rank, decay_rank] =
        ["time_mix_extra_dim", "time_decay_extra_dim"].map(|key| b.keys.required(key, MAX_WIDTH / OPERANDS.len()));
    let (n, n_kv, rank, decay_rank) = (shape.n_embd(), n_head_kv * shape.head_dim, rank?, decay_rank?);
    let (l, name) = (&mut *b.loader, |part: &str| format!("blk.{i}.time_mix_{part}"));
    let fused = name("lerp_fused.weight");
    let leaning = match l.has(&fused) {
        true => l.values(&fused, &[n, 1, 1, OPERANDS.len()])?,
        // Older files have them one by one.
        false => OPERANDS
            .map(|part| l.vector(&name(&format!("lerp_{part}.weight")), n))
            .into_iter()
            .collect::<Result<Vec<_>>>()?
            .concat()
            .into(),
    };
    let own = OwnLeaning {
        shift: TokenShift { leaning: l.vector(&name("lerp_x.weight"), n)? },
        down: l.linear(&name("w1"), OPERANDS.len() * rank, n)?,
        up: l.linears(&name("w2"), OPERANDS.len(), n, rank)?,
    };
    let bias = Some(l.vector(&name("decay.weight"), n)?);
    let decay = TwoSteps {
        down: l.linear(&name("decay_w1"), decay_rank, n)?,
        curve: Curve::Tanh,
        up: Linear { bias, ..l.linear(&name("decay_w2"), n, decay_rank)? },
    };
    let mut whole =
        |operand, part: &str, rows| Ok::<_, crate::Error>(Given { operand, meets: l.linear(&name(part), rows, n)? });
    Ok(TimeMix {
        shape,
        q: whole(Q, "receptance", n)?,
        k: whole(K, "key", n_kv)?,
        v: whole(V, "value", n_kv)?,
        rule: TimeRule::Fading(Fading { gate: whole(GATE, "gate", n)?, n_head_kv, bonus }),
        shift: TokenShift { leaning },
        own: Some(own),
        decay: Given { operand: DECAY, meets: decay },
        norm: None,
        norm_eps: HEAD_EPS,
        out: l.linear(&name("output"), n, n)?,
    })
}
