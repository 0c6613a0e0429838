//! Tencent's Hy3: norms on every query and key head, and mixtures of experts with a network beside them in all layers whose files have a router.

use super::Family;
use super::builder::{Builder, QkNorm};
use super::decoder::{ContextRope, Decoder};
use super::mixtures::completed;
use crate::Result;
use crate::attention::RopeStyle;
use crate::compute::{Act, Gating};

/// The registry row.
pub const FAMILY: Family = Family::new("hy_v3", build);

fn build(b: &mut Builder) -> Result<Decoder> {
    b.ignore_window()?;
    let (c, shape) = (b.config, b.shape());
    // What the file leaves unsaid: a token meets as many hidden units as in a layer without experts, and the network beside them is one more.
    let n_ff = b.keys.width("expert_feed_forward_length")?.unwrap_or(c.n_ff / c.n_expert_used.max(1));
    let mut mixture = completed(b, b.mixture(n_ff)?, Gating::Sigmoid, false)?;
    mixture.n_ff_shared = b.keys.width("expert_shared_feed_forward_length")?.unwrap_or(n_ff);
    let mut layers = Vec::with_capacity(c.n_layer);
    for i in 0..c.n_layer {
        let attn = b.attention(i, shape, 0, QkNorm::Heads)?;
        let ffn = if b.has_experts(i) { b.experts(i, &mixture)? } else { b.dense_feed_forward(i, Act::Silu)? };
        layers.push(b.layer(i, attn, ffn)?);
    }
    let rope = ContextRope::always(b.rope(RopeStyle::Neox, None));
    b.decoder(layers, vec![rope])
}
