//! Gemma 3n: the layers of Gemma 4's small models, with inputs of their own and the last ones without keys and values, on a residual stream of
//! several rows (see [`streams`](super::streams)); beside attention a product of low rank (see [`laurel`](super::laurel)); and in the first
//! layers networks of which but the few hidden units are left whose gates stand out from the rest.

use super::builder::{Builder, QkNorm};
use super::config::Keys;
use super::decoder::{ContextRope, Decoder, FeedForward, Ffn, Layer};
use super::gemma4::{SHARED, n_owners, own_attention};
use super::laurel::Laurel;
use super::streams::{MAX_STREAMS, StreamLayer, Streams};
use super::{Family, Windows};
use crate::Result;
use crate::attention::{AttentionShape, Rope, RopeScaling, RopeStyle};
use crate::compute::{Act, Norm};

/// The registry row.
pub const FAMILY: Family = Family::new("gemma3n", build).with_windows(windows).with_varying_layers();

/// What files that do not say otherwise have.
mod default {
    pub const LOGIT_CAP: f32 = 30.0;
    pub const LOCAL_BASE: f32 = 10_000.0;
}

const GLOBAL: usize = 0;
const LOCAL: usize = 1;

fn windows(keys: &Keys, n_layer: usize) -> Result<Windows> {
    keys.alternating_windows(n_layer, None, 5)
}

fn build(b: &mut Builder) -> Result<Decoder> {
    let (c, keys) = (b.config, b.keys);
    let global = AttentionShape { scale: 1.0, ..b.shape() };
    let local_base = keys.positive("rope.freq_base_swa")?.unwrap_or(default::LOCAL_BASE);
    let ropes = vec![
        ContextRope::always(b.rope(RopeStyle::Neox, None)),
        ContextRope::always(Rope::new(RopeStyle::Neox, c.n_rot, local_base, &RopeScaling::None, None, 1.0)),
    ];
    let windows = windows(keys, c.n_layer)?;
    let n_ff = keys.hidden_units(c.n_layer)?;
    required(keys, SHARED, keys.count(SHARED)?)?;
    let n_owners = n_owners(b, &windows)?;
    let deviations = deviations(keys, c.n_layer)?;
    const WIDTH: &str = "embedding_length_per_layer_input";
    let width = required(keys, WIDTH, keys.width(WIDTH)?)?;
    let side = b.side_inputs(width)?;
    let n_streams = n_streams(keys)?;
    let mut others = |name: &str| b.loader.linears(name, n_streams - 1, c.n_embd, c.n_embd);
    let streams = Streams { expand: others("altup_proj")?, merge: others("altup_unembd_proj")? };

    let mut layers = Vec::with_capacity(c.n_layer);
    for (i, window) in windows.iter().copied().enumerate() {
        let (shape, rope) = (AttentionShape { window, ..global }, if window.is_some() { LOCAL } else { GLOBAL });
        let attn = if i < n_owners {
            own_attention(b, i, shape, rope)?
        } else {
            let owner = (0..n_owners).rfind(|&o| windows[o] == window).expect("checked above");
            b.attention_to(i, owner, shape, rope, QkNorm::Heads)?
        };
        let network = FeedForward { deviations: deviations[i], ..b.network(i, "", n_ff[i], Act::Gelu)? };
        let layer = b.sandwiched_layer(i, attn, Ffn::One(Box::new(network)))?;
        let (laurel, streams) = (Some(laurel(b, i)?), Some(stream_layer(b, i, n_streams)?));
        layers.push(Layer { laurel, streams, side: Some(b.side_network(i, width)?), ..layer });
    }
    let mut decoder = b.decoder(layers, ropes)?;
    decoder.side = Some(side);
    decoder.streams = Some(streams);
    decoder.embed_scale = (c.n_embd as f32).sqrt();
    decoder.logit_softcap = Some(keys.positive("final_logit_softcapping")?.unwrap_or(default::LOGIT_CAP));
    Ok(decoder)
}

/// What `key` has, which no file is without.
fn required<T>(keys: &Keys, key: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| keys.error(key, "is missing"))
}

/// Rows of the residual stream. Layers compute the first.
fn n_streams(keys: &Keys) -> Result<usize> {
    const N: &str = "altup.num_inputs";
    const ACTIVE: &str = "altup.active_idx";
    match keys.count(ACTIVE)?.unwrap_or(0) {
        0 => {}
        i => return Err(keys.error(ACTIVE, format_args!("{i}, expected 0: layers compute the first row"))),
    }
    match required(keys, N, keys.count(N)?)? {
        n if (2..=MAX_STREAMS).contains(&n) => Ok(n),
        n => Err(keys.error(N, format_args!("{n} is out of range, expected 2 to {MAX_STREAMS}"))),
    }
}

/// By how many standard deviations gates stand out that are left, layer by layer; where all are left, files have minus infinity.
fn deviations(keys: &Keys, n_layer: usize) -> Result<Vec<Option<f32>>> {
    const KEY: &str = "activation_sparsity_scale";
    let all = required(keys, KEY, keys.layer_floats(KEY, n_layer)?)?;
    match all.iter().find(|d| d.is_nan() || **d == f32::INFINITY) {
        Some(d) => Err(keys.error(KEY, format_args!("{d}, expected a number or minus infinity for each layer"))),
        None => Ok(all.into_iter().map(|d| Some(d).filter(|d| d.is_finite())).collect()),
    }
}

fn laurel(b: &mut Builder, i: usize) -> Result<Laurel> {
    let (n_embd, l, name) = (b.config.n_embd, &mut *b.loader, |part: &str| format!("blk.{i}.laurel_{part}"));
    let up = format!("{}.weight", name("r"));
    let rank = l.first_dim(&up).ok_or_else(|| l.error(format_args!("tensor {up} is missing")))?;
    Ok(Laurel {
        down: l.linear(&name("l"), rank, n_embd)?,
        up: l.linear(&name("r"), n_embd, rank)?,
        norm: Norm::rms(l.vector(&format!("{}.weight", name("post_norm")), n_embd)?),
    })
}

fn stream_layer(b: &mut Builder, i: usize, n: usize) -> Result<StreamLayer> {
    let n_embd = b.config.n_embd;
    let mut values = |name: &str, shape: &[usize]| b.loader.values(&format!("blk.{i}.altup_{name}.weight"), shape);
    let mut router_norm = Norm::rms(values("router_norm", &[n_embd])?);
    router_norm.scale(1.0 / n_embd as f32);
    Ok(StreamLayer {
        router_norm,
        router: values("router", &[n_embd, n])?,
        predict: values("predict_coef", &[n, n * n])?,
        correct: values("correct_coef", &[n, n])?,
        side_scale: values("correct_scale", &[n_embd])?,
    })
}
