//! Llama 4 (Scout and Maverick, for text): in three layers of four, positions and attention within chunks of the context, with RMSNorm without
//! weights on rotated queries and keys (Scout alone); in the fourth the whole context, no positions, and a temperature. A mixture's weights multiply
//! what its experts are given.

use super::builder::{Builder, QkNorm};
use super::config::{Keys, MAX_WIDTH};
use super::decoder::{Attention, ContextRope, Decoder, Ffn};
use super::{Family, Windows};
use crate::Result;
use crate::attention::{AttentionShape, Rope, RopeStyle, Temperature};
use crate::compute::{Act, Gating};

/// The registry row.
pub const FAMILY: Family = Family::new("llama4", build).with_windows(windows);

const TURNED: usize = 0;
const UNTURNED: usize = 1;

/// Positions of a chunk, and from one step of the temperature to the next. Files leave both unsaid.
const CHUNK: usize = 8192;
/// How fast the temperature grows.
const TEMPERATURE: f32 = 0.1;
/// Layers from one without positions to the next.
const STEP: usize = 4;
/// Experts of Maverick, which has no norms on queries and keys.
const N_EXPERT_MAVERICK: usize = 128;

fn windows(keys: &Keys, n_layer: usize) -> Result<Windows> {
    const WINDOW: &str = "attention.sliding_window";
    if keys.count(WINDOW)? == Some(0) {
        return Err(keys.error(WINDOW, "0: models without chunks are not supported"));
    }
    let windows = keys.alternating_windows(n_layer, Some(CHUNK), STEP)?;
    Ok(windows.into_iter().map(|w| w.map(|_| CHUNK)).collect())
}

fn build(b: &mut Builder) -> Result<Decoder> {
    let (n_layer, keys) = (b.config.n_layer, b.keys);
    let n_ff = keys.required("expert_feed_forward_length", MAX_WIDTH)?;
    let mut mixture = b.mixture(n_ff)?;
    mixture.choice.gating = Gating::Sigmoid;
    mixture.choice.normalised = false;
    mixture.n_ff_shared = n_ff;
    let step = keys.required("interleave_moe_layer_step", n_layer)?;
    let norm = if b.config.n_expert == N_EXPERT_MAVERICK { QkNorm::None } else { QkNorm::Plain };
    let ropes = vec![b.rope_with_factors(RopeStyle::Norm)?, ContextRope::always(Rope::none())];
    let temperature = Temperature { scale: TEMPERATURE, n_ctx: CHUNK, offset: 1 };
    let mut layers = Vec::with_capacity(n_layer);
    for (i, window) in windows(keys, n_layer)?.into_iter().enumerate() {
        let turned = !(i + 1).is_multiple_of(STEP);
        let (rope, norm) = if turned { (TURNED, norm) } else { (UNTURNED, QkNorm::None) };
        let attn = Attention {
            chunked: true,
            norm_after_turn: true,
            temperature: (!turned).then_some(temperature),
            ..b.attention(i, AttentionShape { window, ..b.shape() }, rope, norm)?
        };
        let ffn = if (i + 1).is_multiple_of(step) {
            let mut experts = b.bare_experts(i, &mixture)?;
            experts.networks.weighs_input = true;
            Ffn::Experts(Box::new(experts))
        } else {
            b.dense_feed_forward(i, Act::Silu)?
        };
        layers.push(b.layer(i, attn, ffn)?);
    }
    b.decoder(layers, ropes)
}
