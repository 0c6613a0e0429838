//! EXAONE 4: norms after each half of a layer instead of before, and on every query and key head. In the 32B model, told by its depth,
//! three layers of four have a sliding window, and the fourth sees the whole context without positions.

use super::builder::{Builder, QkNorm};
use super::config::Keys;
use super::decoder::{ContextRope, Decoder};
use super::{Family, Windows, no_windows};
use crate::Result;
use crate::attention::{AttentionShape, Rope, RopeStyle};
use crate::compute::Act;

/// The registry row.
pub const FAMILY: Family = Family::new("exaone4", build).with_windows(windows);

const TURNED: usize = 0;
const UNTURNED: usize = 1;

const N_LAYER_32B: usize = 64;
/// Its window, where the file does not say.
const WINDOW: usize = 4096;

fn windows(keys: &Keys, n_layer: usize) -> Result<Windows> {
    if n_layer == N_LAYER_32B { keys.alternating_windows(n_layer, Some(WINDOW), 4) } else { no_windows(keys, n_layer) }
}

fn build(b: &mut Builder) -> Result<Decoder> {
    let n_layer = b.config.n_layer;
    if n_layer != N_LAYER_32B {
        b.ignore_window()?;
    }
    let ropes = vec![b.rope_with_factors(RopeStyle::Neox)?, ContextRope::always(Rope::none())];
    let windows = windows(b.keys, n_layer)?;
    let alternate = windows.iter().any(Option::is_some);
    let mut layers = Vec::with_capacity(n_layer);
    for (i, window) in windows.into_iter().enumerate() {
        let rope = if alternate && window.is_none() { UNTURNED } else { TURNED };
        let attn = b.attention(i, AttentionShape { window, ..b.shape() }, rope, QkNorm::Heads)?;
        let ffn = b.feed_forward(i, Act::Silu)?;
        layers.push(b.post_norm_layer(i, attn, ffn)?);
    }
    b.decoder(layers, ropes)
}
