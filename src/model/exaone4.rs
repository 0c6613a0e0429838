//! EXAONE 4: norms after each half of a layer instead of before, and on every query and key head. In the 32B model, told by its depth,
//! three layers of four have a sliding window, and the fourth sees the whole context without positions. K-EXAONE has such layers too, with
//! mixtures of experts and norms before each half.

use super::builder::{Builder, QkNorm};
use super::config::Keys;
use super::decoder::{ContextRope, Decoder};
use super::mixtures::mixture;
use super::{Family, Windows, no_windows};
use crate::Result;
use crate::attention::{AttentionShape, Rope, RopeStyle};
use crate::compute::{Act, Gating};

/// The registry row of EXAONE 4.
pub const EXAONE4: Family = Family::new("exaone4", build).with_windows(windows);
/// The registry row of K-EXAONE.
pub const EXAONE_MOE: Family = Family::new("exaone-moe", build).with_windows(windows_of_mixtures);

const TURNED: usize = 0;
const UNTURNED: usize = 1;

const N_LAYER_32B: usize = 64;
/// Its window, where the file does not say.
const WINDOW: usize = 4096;
/// That of the mixtures.
const WINDOW_OF_MIXTURES: usize = 128;

fn windows(keys: &Keys, n_layer: usize) -> Result<Windows> {
    if n_layer == N_LAYER_32B { keys.alternating_windows(n_layer, Some(WINDOW), 4) } else { no_windows(keys, n_layer) }
}

fn windows_of_mixtures(keys: &Keys, n_layer: usize) -> Result<Windows> {
    keys.alternating_windows(n_layer, Some(WINDOW_OF_MIXTURES), 4)
}

fn build(b: &mut Builder) -> Result<Decoder> {
    let (n_layer, is_mixture) = (b.config.n_layer, b.config.arch == EXAONE_MOE.arch);
    let alternate = is_mixture || n_layer == N_LAYER_32B;
    if !alternate {
        b.ignore_window()?;
    }
    let mut mixture = is_mixture.then(|| mixture(b, Gating::Sigmoid, false)).transpose()?;
    // What all tokens meet is as large as an expert where the file does not say.
    if let Some(mixture) = mixture.as_mut().filter(|m| m.n_ff_shared == 0) {
        mixture.n_ff_shared = mixture.n_ff;
    }
    let n_dense = b.keys.count("leading_dense_block_count")?.unwrap_or(0);
    let ropes = vec![b.rope_with_factors(RopeStyle::Neox)?, ContextRope::always(Rope::none())];
    let windows = if is_mixture { windows_of_mixtures(b.keys, n_layer)? } else { windows(b.keys, n_layer)? };
    let mut layers = Vec::with_capacity(n_layer);
    for (i, window) in windows.into_iter().enumerate() {
        let rope = if alternate && window.is_none() { UNTURNED } else { TURNED };
        let attn = b.attention(i, AttentionShape { window, ..b.shape() }, rope, QkNorm::Heads)?;
        layers.push(match &mixture {
            Some(mixture) => {
                let ffn = if i < n_dense { b.dense_feed_forward(i, Act::Silu)? } else { b.experts(i, mixture)? };
                b.layer(i, attn, ffn)?
            }
            None => {
                let ffn = b.feed_forward(i, Act::Silu)?;
                b.post_norm_layer(i, attn, ffn)?
            }
        });
    }
    b.decoder(layers, ropes)
}
