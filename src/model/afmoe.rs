//! Arcee's Trinity: mixtures of experts after a few layers without them, norms before and after each half of a layer, gates on what attention gives,
//! and windows in three layers of four; the fourth sees the whole context without positions.

use super::builder::{Builder, QkNorm};
use super::config::Keys;
use super::decoder::{Attention, ContextRope, Decoder};
use super::mixtures::mixture;
use super::{Family, Windows};
use crate::Result;
use crate::attention::{AttentionShape, GateCurve, Rope, RopeStyle};
use crate::compute::{Act, Gating};

/// The registry row.
pub const FAMILY: Family = Family::new("afmoe", build).with_windows(windows);

const GLOBAL: usize = 0;
const LOCAL: usize = 1;
const UNTURNED: usize = 2;

/// Layers from one that sees everything to the next, and from one without positions to the next.
const STEP: usize = 4;

fn windows(keys: &Keys, n_layer: usize) -> Result<Windows> {
    keys.alternating_windows(n_layer, None, STEP)
}

fn build(b: &mut Builder) -> Result<Decoder> {
    let (c, keys) = (b.config, b.keys);
    let mixture = mixture(b, Gating::Sigmoid, false)?;
    let n_dense = keys.count("leading_dense_block_count")?.unwrap_or(0);
    let [global, local] = b.alternating_ropes(RopeStyle::Neox)?;
    let mut layers = Vec::with_capacity(c.n_layer);
    for (i, window) in windows(keys, c.n_layer)?.into_iter().enumerate() {
        // Which layers have positions is not up to the pattern of windows.
        let rope = match window {
            _ if (i + 1).is_multiple_of(STEP) => UNTURNED,
            Some(_) => LOCAL,
            None => GLOBAL,
        };
        let shape = AttentionShape { window, ..b.shape() };
        let attn = b.attention(i, shape, rope, QkNorm::Heads)?;
        let gate = b.gate(i, &shape, GateCurve::Sigmoid)?;
        let ffn = if i < n_dense { b.dense_feed_forward(i, Act::Silu)? } else { b.experts(i, &mixture)? };
        layers.push(b.sandwiched_layer(i, Attention { gate: Some(gate), ..attn }, ffn)?);
    }
    let mut decoder = b.decoder(layers, vec![global, local, ContextRope::always(Rope::none())])?;
    decoder.embed_scale = (c.n_embd as f32).sqrt();
    Ok(decoder)
}
