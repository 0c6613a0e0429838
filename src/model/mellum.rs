//! Mellum 2 (JetBrains): Qwen3's mixtures of experts, of whose layers three of four have a sliding window; the rotations of the others alone are
//! stretched.

use super::builder::{Builder, QkNorm};
use super::config::Keys;
use super::decoder::{ContextRope, Decoder};
use super::{Family, Windows};
use crate::Result;
use crate::attention::{AttentionShape, Rope, RopeScaling, RopeStyle};

/// The registry row.
pub const FAMILY: Family = Family::new("mellum", build).with_windows(windows);

const GLOBAL: usize = 0;
const LOCAL: usize = 1;

fn windows(keys: &Keys, n_layer: usize) -> Result<Windows> {
    keys.alternating_windows(n_layer, None, 4)
}

fn build(b: &mut Builder) -> Result<Decoder> {
    let c = b.config;
    let n_ff = b.keys.width("expert_feed_forward_length")?.unwrap_or(c.n_ff / c.n_expert_used.max(1));
    let mixture = b.mixture(n_ff)?;
    let local = Rope::new(RopeStyle::Neox, c.n_rot, c.rope_base, &RopeScaling::None, None, 1.0);
    let ropes = [b.rope(RopeStyle::Neox, None), local].map(ContextRope::always);
    let mut layers = Vec::with_capacity(c.n_layer);
    for (i, window) in windows(b.keys, c.n_layer)?.into_iter().enumerate() {
        let (shape, rope) = (AttentionShape { window, ..b.shape() }, if window.is_some() { LOCAL } else { GLOBAL });
        let attn = b.attention(i, shape, rope, QkNorm::Heads)?;
        let ffn = b.experts(i, &mixture)?;
        layers.push(b.layer(i, attn, ffn)?);
    }
    b.decoder(layers, ropes.into())
}
