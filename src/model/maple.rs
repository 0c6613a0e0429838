//! Maple (DeepGrove): mixtures of experts whose hidden units are capped; most layers have a window, and only these have positions.

use super::builder::{Builder, QkNorm};
use super::decoder::{ContextRope, Decoder};
use super::mixtures::Caps;
use super::{Family, flagged_windows};
use crate::Result;
use crate::attention::{AttentionShape, Rope, RopeStyle};
use crate::compute::Act;

/// The registry row.
pub const FAMILY: Family = Family::new("maple", build).with_windows(flagged_windows);

const UNTURNED: usize = 0;
const LOCAL: usize = 1;

fn build(b: &mut Builder) -> Result<Decoder> {
    let (n_layer, keys) = (b.config.n_layer, b.keys);
    let mixture = b.mixture(keys.width("expert_feed_forward_length")?.unwrap_or(b.config.n_ff))?;
    let caps = Caps::read(keys, n_layer, Act::ClippedSwiglu)?;
    let [_, local] = b.alternating_ropes_of(RopeStyle::Neox, b.n_rot_local()?)?;
    let mut layers = Vec::with_capacity(n_layer);
    for (i, window) in keys.flagged_windows(n_layer)?.into_iter().enumerate() {
        let shape = AttentionShape { window, ..b.shape() };
        let attn = b.attention(i, shape, if window.is_some() { LOCAL } else { UNTURNED }, QkNorm::Heads)?;
        let ffn = caps.feed_forward(b, i, Some(&mixture))?;
        layers.push(b.layer(i, attn, ffn)?);
    }
    b.decoder(layers, vec![ContextRope::always(Rope::none()), local])
}
