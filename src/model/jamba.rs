//! Jamba (arXiv 2403.19887): layers with the first Mamba's scan, its steps, keys and queries normalised, and a few with attention without positions in
//! their place; in some layers, a mixture of experts. Which layers have attention is told by key/value heads, which have experts, by tensors.

use super::Family;
use super::builder::{Builder, Mixture, QkNorm};
use super::config::Keys;
use super::decoder::{ContextRope, Decoder, Mixer};
use super::mamba1::{ScanNorms, channel_scan, shape};
use crate::Result;
use crate::attention::{AttentionShape, Rope};
use crate::compute::Act;

/// The registry row.
pub const FAMILY: Family = Family::new("jamba", build).with_varying_layers().with_states(n_state);

fn build(b: &mut Builder) -> Result<Decoder> {
    let (n_layer, attention, scan) = (b.config.n_layer, b.shape(), shape(b.keys)?);
    let mut layers = Vec::with_capacity(n_layer);
    for (i, n_head_kv) in b.keys.heads_kv(n_layer)?.into_iter().enumerate() {
        let mixer: Mixer = match n_head_kv {
            0 => channel_scan(b, i, scan, ScanNorms::Weighted)?.into(),
            _ => {
                b.keys.check_heads(n_head_kv, attention.n_head, Some(i))?;
                b.attention(i, AttentionShape { n_head_kv, ..attention }, 0, QkNorm::None)?.into()
            }
        };
        let ffn = match b.has_experts(i) {
            true => b.experts(i, &mixture(b)?)?,
            false => b.dense_feed_forward(i, Act::Silu)?,
        };
        layers.push(b.layer(i, mixer, ffn)?);
    }
    b.decoder(layers, vec![ContextRope::always(Rope::none())])
}

fn n_state(keys: &Keys, n_layer: usize) -> Result<usize> {
    let n = keys.heads_kv(n_layer)?.into_iter().filter(|&n| n == 0).count();
    Ok(if n == 0 { 0 } else { n.saturating_mul(shape(keys)?.n_state()) })
}

/// Weights of those chosen are their probabilities among all, as they are.
fn mixture(b: &Builder) -> Result<Mixture> {
    let mut mixture = b.mixture(b.config.n_ff)?;
    mixture.choice.normalised = false;
    Ok(mixture)
}
