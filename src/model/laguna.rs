//! Poolside's Laguna: gates on attention's results that may exceed 1, one for each head or one for each value, mixtures of experts after a few layers
//! without them, and, in the models that have windows, three layers of four with one, with query heads in a number of their own and rotations
//! that are not stretched.

use super::builder::{Builder, QkNorm};
use super::config::Keys;
use super::decoder::{Attention, ContextRope, Decoder};
use super::mixtures::mixture;
use super::{Family, Windows};
use crate::Result;
use crate::attention::{AttentionShape, GateCurve, RopeStyle};
use crate::compute::{Act, Gating};

/// The registry row.
pub const FAMILY: Family = Family::new("laguna", build).with_varying_heads().with_windows(windows);

const GLOBAL: usize = 0;
const LOCAL: usize = 1;

/// Layers from one that sees everything to the next.
const STEP: usize = 4;

fn windows(keys: &Keys, n_layer: usize) -> Result<Windows> {
    keys.windows_after_global(n_layer, None, STEP)
}

fn build(b: &mut Builder) -> Result<Decoder> {
    let (c, keys) = (b.config, b.keys);
    let mut mixture = mixture(b, Gating::Sigmoid, false)?;
    // The network beside the experts is as large as one of them where the file does not say.
    if mixture.n_ff_shared == 0 {
        mixture.n_ff_shared = mixture.n_ff;
    }
    let n_dense = keys.count("leading_dense_block_count")?.unwrap_or(0);
    let global = ContextRope::always(b.rope(RopeStyle::Neox, None));
    let local = b.local_rope(RopeStyle::Neox, b.n_rot_local()?, c.rope_base)?;
    let heads = keys.heads(c.n_layer)?;
    let mut layers = Vec::with_capacity(c.n_layer);
    for (i, window) in windows(keys, c.n_layer)?.into_iter().enumerate() {
        let [n_head, n_head_kv] = heads[i];
        keys.check_heads(n_head_kv, n_head, Some(i))?;
        let shape = AttentionShape { window, n_head, n_head_kv, ..b.shape() };
        let attn = b.attention(i, shape, if window.is_some() { LOCAL } else { GLOBAL }, QkNorm::Heads)?;
        let gate = Some(b.gate(i, &shape, GateCurve::Softplus)?);
        let ffn = if i < n_dense { b.dense_feed_forward(i, Act::Silu)? } else { b.experts(i, &mixture)? };
        layers.push(b.layer(i, Attention { gate, ..attn }, ffn)?);
    }
    b.decoder(layers, vec![global, local])
}
