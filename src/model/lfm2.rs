//! LFM2 (arXiv 2511.23404), with or without mixtures of experts: short convolutions in most layers, told by their number of key/value
//! heads, which is 0; the others have norms on every query and key head.

use super::builder::{Builder, Mixture, QkNorm};
use super::config::Keys;
use super::decoder::{ContextRope, Decoder};
use super::{Family, Windows};
use crate::Result;
use crate::attention::{AttentionShape, RopeStyle};
use crate::compute::{Act, Gating};

/// The registry row.
pub const LFM2: Family = Family::new("lfm2", build).with_windows(windows).with_varying_layers();
/// The registry row of the mixtures of experts.
pub const LFM2MOE: Family = Family { arch: "lfm2moe", ..LFM2 };

/// Longest filter: several times any model's.
const MAX_FILTER: usize = 64;

fn filter(keys: &Keys) -> Result<usize> {
    keys.required("shortconv.l_cache", MAX_FILTER)
}

fn windows(keys: &Keys, n_layer: usize) -> Result<Windows> {
    let (n_filter, window) = (filter(keys)?, keys.count("attention.sliding_window")?.filter(|&n| n > 0));
    Ok(keys.heads_kv(n_layer)?.into_iter().map(|n| if n == 0 { Some(n_filter) } else { window }).collect())
}

fn build(b: &mut Builder) -> Result<Decoder> {
    let (c, keys) = (b.config, b.keys);
    let (n_filter, heads, windows) = (filter(keys)?, keys.heads_kv(c.n_layer)?, windows(keys, c.n_layer)?);
    let rope = ContextRope::always(b.rope(RopeStyle::Neox, None));
    let mixture = (c.arch == LFM2MOE.arch).then(|| mixture(b)).transpose()?;
    let n_dense = keys.count("leading_dense_block_count")?.unwrap_or(0);
    let mut layers = Vec::with_capacity(c.n_layer);
    for (i, (n_head_kv, window)) in heads.into_iter().zip(windows).enumerate() {
        let attn = match n_head_kv {
            0 => b.convolution(i, n_filter)?,
            _ => {
                keys.check_heads(n_head_kv, c.n_head, Some(i))?;
                b.attention(i, AttentionShape { n_head_kv, window, ..b.shape() }, 0, QkNorm::Heads)?
            }
        };
        let ffn = match &mixture {
            Some(mixture) if i >= n_dense => b.experts(i, mixture)?,
            Some(_) => b.dense_feed_forward(i, Act::Silu)?,
            None => b.feed_forward(i, Act::Silu)?,
        };
        layers.push(b.layer(i, attn, ffn)?);
    }
    b.decoder_with(layers, vec![rope], "token_embd_norm")
}

fn mixture(b: &Builder) -> Result<Mixture> {
    let mut mixture = b.mixture(b.keys.width("expert_feed_forward_length")?.unwrap_or(b.config.n_ff))?;
    mixture.choice.gating = b.gating(Gating::Sigmoid)?;
    Ok(mixture)
}
