//! iFlytek's Spark 2.5: most layers have a window, maybe heads in numbers of their own, and turn other dimensions by another base; a gate on
//! each head's result; GeGLU.

use super::builder::{Builder, QkNorm};
use super::decoder::{Attention, Decoder};
use super::{Family, flagged_windows};
use crate::Result;
use crate::attention::{AttentionShape, GateCurve, RopeStyle};
use crate::compute::Act;

/// The registry row.
pub const FAMILY: Family = Family::new("spark2_5", build).with_varying_heads().with_windows(flagged_windows);

const GLOBAL: usize = 0;
const LOCAL: usize = 1;

fn build(b: &mut Builder) -> Result<Decoder> {
    let (n_layer, keys) = (b.config.n_layer, b.keys);
    let ropes = b.alternating_ropes_of(RopeStyle::Neox, b.n_rot_local()?)?;
    let heads = keys.heads(n_layer)?;
    let mut layers = Vec::with_capacity(n_layer);
    for (i, window) in keys.flagged_windows(n_layer)?.into_iter().enumerate() {
        let [n_head, n_head_kv] = heads[i];
        keys.check_heads(n_head_kv, n_head, Some(i))?;
        let shape = AttentionShape { window, n_head, n_head_kv, ..b.shape() };
        let attn = b.attention(i, shape, if window.is_some() { LOCAL } else { GLOBAL }, QkNorm::None)?;
        let gate = Some(b.gate(i, &shape, GateCurve::Sigmoid)?);
        let ffn = b.feed_forward(i, Act::Gelu)?;
        layers.push(b.layer(i, Attention { gate, ..attn }, ffn)?);
    }
    b.decoder(layers, ropes.into())
}
