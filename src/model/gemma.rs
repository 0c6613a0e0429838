//! Gemma 1 and 2: GeGLU and scaled embeddings, as in all of them. Gemma 2 has norms before and after each half of a layer, soft caps
//! on scores and logits, and layers that alternate between a sliding window and the whole context.

use super::builder::{Builder, QkNorm};
use super::config::Keys;
use super::decoder::{ContextRope, Decoder};
use super::{Family, Windows};
use crate::Result;
use crate::attention::{AttentionShape, RopeStyle};
use crate::compute::Act;

/// The registry row of Gemma 1.
pub const GEMMA: Family = Family::new("gemma", gemma);
/// The registry row of Gemma 2.
pub const GEMMA2: Family = Family::new("gemma2", gemma2).with_windows(windows);

const GLOBAL: usize = 0;
const LOCAL: usize = 1;

/// The 27B model, told by its depth, scales scores by the nominal head size instead of the real one.
const N_LAYER_27B: usize = 46;

/// What files that do not say otherwise have.
mod default {
    pub const WINDOW: usize = 4096;
    pub const SCORE_CAP: f32 = 50.0;
    pub const LOGIT_CAP: f32 = 30.0;
}

fn windows(keys: &Keys, n_layer: usize) -> Result<Windows> {
    keys.alternating_windows(n_layer, Some(default::WINDOW), 2)
}

fn gemma(b: &mut Builder) -> Result<Decoder> {
    b.ignore_window()?;
    let shape = b.shape();
    let rope = b.rope(RopeStyle::Neox, None);
    let mut layers = Vec::with_capacity(b.config.n_layer);
    for i in 0..b.config.n_layer {
        let attn = b.attention(i, shape, 0, QkNorm::None)?;
        let ffn = b.feed_forward(i, Act::Gelu)?;
        layers.push(b.layer(i, attn, ffn)?);
    }
    let mut decoder = b.decoder(layers, vec![ContextRope::always(rope)])?;
    decoder.embed_scale = (b.config.n_embd as f32).sqrt();
    Ok(decoder)
}

fn gemma2(b: &mut Builder) -> Result<Decoder> {
    let (c, keys) = (b.config, b.keys);
    let nominal = if c.n_layer == N_LAYER_27B { c.n_embd / c.n_head } else { c.head_dim_k };
    let global = AttentionShape {
        scale: 1.0 / (nominal as f32).sqrt(),
        softcap: Some(keys.positive("attn_logit_softcapping")?.unwrap_or(default::SCORE_CAP)),
        ..b.shape()
    };
    let ropes = b.alternating_ropes(RopeStyle::Neox)?;
    let mut layers = Vec::with_capacity(c.n_layer);
    for (i, window) in windows(keys, c.n_layer)?.into_iter().enumerate() {
        let (shape, rope) = (AttentionShape { window, ..global }, if window.is_some() { LOCAL } else { GLOBAL });
        let attn = b.attention(i, shape, rope, QkNorm::None)?;
        let ffn = b.feed_forward(i, Act::Gelu)?;
        layers.push(b.sandwiched_layer(i, attn, ffn)?);
    }
    let mut decoder = b.decoder(layers, ropes.into())?;
    decoder.embed_scale = (c.n_embd as f32).sqrt();
    decoder.logit_softcap = Some(keys.positive("final_logit_softcapping")?.unwrap_or(default::LOGIT_CAP));
    Ok(decoder)
}
