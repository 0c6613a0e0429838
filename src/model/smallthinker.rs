//! SmallThinker (arXiv 2507.20984): mixtures of ReGLU experts that are chosen by a layer's input, before its attention, so that their weights can be
//! fetched meanwhile. In the 21B model, told by its window, every fourth layer sees the whole context without positions, from the first on.

use super::builder::{Builder, Mixture, QkNorm};
use super::config::Keys;
use super::decoder::{ContextRope, Decoder, ExpertInput, Experts, Ffn};
use super::{Family, Windows};
use crate::Result;
use crate::attention::{AttentionShape, Rope, RopeStyle};
use crate::compute::Act;

/// The registry row.
pub const FAMILY: Family = Family::new("smallthinker", build).with_windows(windows);

const GLOBAL: usize = 0;
const LOCAL: usize = 1;
const UNTURNED: usize = 2;

/// Whatever length the file gives its window, as in llama.cpp.
const WINDOW: usize = 4096;
/// Layers from one that sees everything to the next.
const STEP: usize = 4;

fn windows(keys: &Keys, n_layer: usize) -> Result<Windows> {
    let windows = keys.windows_after_global(n_layer, None, STEP)?;
    Ok(windows.into_iter().map(|w| w.map(|_| WINDOW)).collect())
}

fn build(b: &mut Builder) -> Result<Decoder> {
    let (n_layer, keys) = (b.config.n_layer, b.keys);
    let n_ff = keys.width("expert_feed_forward_length")?.unwrap_or(b.config.n_ff);
    let mut mixture = Mixture { act: Act::Relu, ..b.mixture(n_ff)? };
    mixture.choice.gating = b.gating(mixture.choice.gating)?;
    let windows = windows(keys, n_layer)?;
    let alternate = windows.iter().any(Option::is_some);
    let [global, local] = b.alternating_ropes(RopeStyle::Neox)?;
    let ropes = vec![global, local, ContextRope::always(Rope::none())];
    let mut layers = Vec::with_capacity(n_layer);
    for (i, window) in windows.into_iter().enumerate() {
        // Which layers have positions is not up to the pattern of windows.
        let rope = match window {
            _ if alternate && i.is_multiple_of(STEP) => UNTURNED,
            Some(_) => LOCAL,
            None => GLOBAL,
        };
        let attn = b.attention(i, AttentionShape { window, ..b.shape() }, rope, QkNorm::None)?;
        let experts = Experts { input: ExpertInput::RoutedBefore, ..b.bare_experts(i, &mixture)? };
        layers.push(b.layer(i, attn, Ffn::Experts(Box::new(experts)))?);
    }
    b.decoder(layers, ropes)
}
