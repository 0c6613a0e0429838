//! Command A's mixtures (Cohere 2 MoE): both halves of a layer start from its input, what experts make and what the network beside them makes is
//! averaged, and three layers of four have windows. Those that see the whole context have no positions, but for the ones without experts at the
//! start. Norms are of the kind whose epsilon the file gives.

use super::builder::{Builder, QkNorm};
use super::config::Keys;
use super::decoder::{ContextRope, Decoder, Experts, Ffn, Layer};
use super::mixtures::mixture;
use super::{Family, Windows};
use crate::Result;
use crate::attention::{AttentionShape, Rope, RopeStyle};
use crate::compute::{Act, Gating};

/// The registry row.
pub const FAMILY: Family = Family::new("cohere2moe", build).with_windows(windows).with_either_norm();

const TURNED: usize = 0;
const UNTURNED: usize = 1;

/// Layers from one that sees everything to the next.
const STEP: usize = 4;

fn windows(keys: &Keys, n_layer: usize) -> Result<Windows> {
    keys.windows_after_global(n_layer, None, STEP)
}

fn build(b: &mut Builder) -> Result<Decoder> {
    let n_layer = b.config.n_layer;
    let mixture = mixture(b, Gating::Sigmoid, false)?;
    let n_dense = b.keys.count("leading_dense_block_count")?.unwrap_or(0);
    let ropes = [b.rope(RopeStyle::Norm, None), Rope::none()].map(ContextRope::always);
    let mut layers = Vec::with_capacity(n_layer);
    for (i, window) in windows(b.keys, n_layer)?.into_iter().enumerate() {
        let rope = if window.is_some() || i < n_dense { TURNED } else { UNTURNED };
        let attn = b.attention(i, AttentionShape { window, ..b.shape() }, rope, QkNorm::None)?;
        let ffn = match i < n_dense {
            true => b.dense_feed_forward(i, Act::Silu)?,
            false => Ffn::Experts(Box::new(averaged(b.bare_experts(i, &mixture)?))),
        };
        let attn_norm = Some(b.norm(&format!("blk.{i}.attn_norm"))?);
        layers.push(Layer { attn_norm, parallel: true, ..Layer::bare(attn, Some(ffn)) });
    }
    let mut decoder = b.decoder(layers, ropes.into())?;
    if let Some(scale) = b.keys.float("logit_scale")?.filter(|&s| s != 0.0) {
        decoder.output_norm.scale(scale);
    }
    Ok(decoder)
}

/// Experts with a network beside them, half of each.
fn averaged(mut experts: Experts) -> Experts {
    if let Some(beside) = &mut experts.shared {
        beside.network.down.scale_by(0.5);
        experts.networks.choice.scale *= 0.5;
    }
    experts
}
