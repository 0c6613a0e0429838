//! OLMo 2 and 3: norms after each half of a layer instead of before, and on queries and keys, all heads together. OLMo 3's layers
//! alternate between a sliding window, with rotations as trained, and the whole context, with rotations that may be stretched.

use super::builder::{Builder, QkNorm};
use super::config::Keys;
use super::decoder::{ContextRope, Decoder};
use super::{Family, Windows};
use crate::Result;
use crate::attention::{AttentionShape, Rope, RopeScaling, RopeStyle};
use crate::compute::Act;

/// The registry row.
pub const FAMILY: Family = Family::new("olmo2", build).with_windows(windows);

const GLOBAL: usize = 0;
const LOCAL: usize = 1;

fn windows(keys: &Keys, n_layer: usize) -> Result<Windows> {
    keys.alternating_windows(n_layer, None, 4)
}

fn build(b: &mut Builder) -> Result<Decoder> {
    let c = b.config;
    let local = Rope::new(RopeStyle::Neox, c.n_rot, c.rope_base, &RopeScaling::None, None, 1.0);
    let ropes = [b.rope(RopeStyle::Neox, None), local].map(ContextRope::always);
    let mut layers = Vec::with_capacity(c.n_layer);
    for (i, window) in windows(b.keys, c.n_layer)?.into_iter().enumerate() {
        let (shape, rope) = (AttentionShape { window, ..b.shape() }, if window.is_some() { LOCAL } else { GLOBAL });
        let attn = b.attention(i, shape, rope, QkNorm::Rows)?;
        let ffn = b.feed_forward(i, Act::Silu)?;
        layers.push(b.post_norm_layer(i, attn, ffn)?);
    }
    b.decoder(layers, ropes.into())
}
