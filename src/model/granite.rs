//! Granite 3, with or without mixtures of experts, and MiniCPM: Llama's shape with constant factors (muP) on the embeddings, on the
//! scores, on what every half of a layer adds to the residual stream, and on the logits. Granite 4 has selective scans in the place of attention in
//! those layers that have no key/value heads. Its other line has windows in most layers, sinks in all, and positions in those layers that a file says.
//!
//! None of them needs a step of its own. With the residual stream in units of its factor `r`, halves of layers add to it what they
//! made, embeddings are divided by `r`, and norms, which see values `r` times too small, have an epsilon `r^2` times smaller. The logits'
//! factor goes into the norm before the head.

use super::Family;
use super::builder::{Builder, Mixture, QkNorm};
use super::decoder::{Attention, ContextRope, Decoder, Mixer};
use super::mamba2::{scan_alone, shape as scan_shape, state_of_some};
use crate::attention::{AttentionShape, Rope, RopeStyle};
use crate::compute::Act;
use crate::{Error, Result};

/// The registry row of Granite.
pub const GRANITE: Family = Family::new("granite", granite);
/// The registry row of Granite's mixtures of experts.
pub const GRANITEMOE: Family = Family::new("granitemoe", granite);
/// The registry row of Granite 4, and of Bamba.
pub const GRANITEHYBRID: Family =
    Family::new("granitehybrid", granite).with_varying_layers().with_states(state_of_some);
/// The registry row of Granite with windows, with or without mixtures.
pub const GRANITE_SWA: Family = Family::new("granite_swa", granite).with_windows(|keys, n| keys.flagged_windows(n));
/// The registry row of MiniCPM.
pub const MINICPM: Family = Family::new("minicpm", minicpm);

const TURNED: usize = 0;
const UNTURNED: usize = 1;

/// The factors that files give.
struct Factors {
    embedding: f32,
    residual: f32,
    /// The logits are divided by it.
    logit: f32,
}

fn granite(b: &mut Builder) -> Result<Decoder> {
    let none = Factors { embedding: 1.0, residual: 1.0, logit: 1.0 };
    let n_layer = b.config.n_layer;
    // A file whose positions were never trained has none.
    let has_positions = match b.config.arch == GRANITE_SWA.arch {
        true => b.keys.flags("attention.rope_pattern", n_layer)?.unwrap_or_else(|| vec![true; n_layer]),
        false => vec![b.keys.flag("rope.scaling.finetuned")?.unwrap_or(true); n_layer],
    };
    build(b, none, &has_positions)
}

fn minicpm(b: &mut Builder) -> Result<Decoder> {
    // Old files leave out what all of its models had.
    let (n_layer, n_embd) = (b.config.n_layer as f32, b.config.n_embd as f32);
    let default = Factors { embedding: 12.0, residual: 1.4 / n_layer.sqrt(), logit: 256.0 / n_embd };
    build(b, default, &vec![true; b.config.n_layer])
}

/// `has_positions`: layer by layer.
fn build(b: &mut Builder, default: Factors, has_positions: &[bool]) -> Result<Decoder> {
    let n_layer = b.config.n_layer;
    let has_windows = b.config.arch == GRANITE_SWA.arch;
    let windows = if has_windows { b.keys.flagged_windows(n_layer)? } else { vec![None; n_layer] };
    if !has_windows {
        b.ignore_window()?;
    }
    // Zero stands for "none".
    let factor = |key: &str, default: f32| match b.keys.float(key)?.unwrap_or(default) {
        f if f < 0.0 => Err(b.keys.error(key, format_args!("{f} is negative"))),
        f => Ok(if f == 0.0 { 1.0 } else { f }),
    };
    let embedding = factor("embedding_scale", default.embedding)?;
    let residual = factor("residual_scale", default.residual)?;
    let logit = factor("logit_scale", default.logit)?;
    let scale = b.keys.float("attention.scale")?.filter(|&s| s != 0.0);
    let shape = AttentionShape { scale: scale.unwrap_or(b.shape().scale), ..b.shape() };
    let ropes = vec![b.rope_with_factors(RopeStyle::Norm)?, ContextRope::always(Rope::none())];
    let is_hybrid = b.config.arch == GRANITEHYBRID.arch;
    let is_mixture = b.config.arch == GRANITEMOE.arch || (is_hybrid || has_windows) && b.config.n_expert > 0;
    let n_ff_shared = b.keys.width("expert_shared_feed_forward_length")?.unwrap_or(0);
    let mixture =
        is_mixture.then(|| Ok::<_, Error>(Mixture { n_ff_shared, ..b.mixture(b.config.n_ff)? })).transpose()?;
    let heads_kv = if is_hybrid { b.keys.heads_kv(n_layer)? } else { vec![shape.n_head_kv; n_layer] };
    let mut layers = Vec::with_capacity(n_layer);
    for (i, n_head_kv) in heads_kv.into_iter().enumerate() {
        let mixer: Mixer = match n_head_kv {
            0 => scan_alone(b, i, scan_shape(b.keys)?)?.into(),
            _ => {
                b.keys.check_heads(n_head_kv, shape.n_head, Some(i))?;
                let rope = if has_positions[i] { TURNED } else { UNTURNED };
                let sinks = if has_windows { b.sinks(i)? } else { None };
                let attn =
                    b.attention(i, AttentionShape { n_head_kv, window: windows[i], ..shape }, rope, QkNorm::None)?;
                Attention { sinks, ..attn }.into()
            }
        };
        let ffn = match &mixture {
            Some(mixture) => b.experts(i, mixture)?,
            None => b.feed_forward(i, Act::Silu)?,
        };
        layers.push(b.layer(i, mixer, ffn)?);
    }
    let mut decoder = b.decoder(layers, ropes)?;
    decoder.embed_scale = embedding / residual;
    decoder.norm_eps /= residual * residual;
    decoder.output_norm.scale(1.0 / logit);
    Ok(decoder)
}
