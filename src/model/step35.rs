//! StepFun's Step 3.5: most layers have a window, with query and key/value heads in numbers of their own and rotations of all dimensions, of which
//! those that see the whole context turn half; gates on the results of heads; mixtures of experts after a few layers without them, whose hidden
//! units some layers cap.

use super::builder::{Builder, QkNorm};
use super::decoder::{Attention, ContextRope, Decoder};
use super::mixtures::{Caps, mixture};
use super::{Family, flagged_windows};
use crate::Result;
use crate::attention::{AttentionShape, GateCurve, Rope, RopeStyle};
use crate::compute::{Act, Gating};

/// The registry row.
pub const FAMILY: Family = Family::new("step35", build).with_varying_heads().with_windows(flagged_windows);

const GLOBAL: usize = 0;
const LOCAL: usize = 1;
/// The frequency base of layers with windows, where the file does not say.
const LOCAL_BASE: f32 = 10_000.0;

fn build(b: &mut Builder) -> Result<Decoder> {
    let (n_layer, keys) = (b.config.n_layer, b.keys);
    let mixture = mixture(b, Gating::Sigmoid, false)?;
    let windows = keys.flagged_windows(n_layer)?;
    let ropes = ropes(b, windows.iter().any(Option::is_some))?;
    let caps = Caps::read(keys, n_layer, Act::CappedSwiglu)?;
    let heads = keys.heads(n_layer)?;
    let mut layers = Vec::with_capacity(n_layer);
    for (i, window) in windows.into_iter().enumerate() {
        let [n_head, n_head_kv] = heads[i];
        keys.check_heads(n_head_kv, n_head, Some(i))?;
        let shape = AttentionShape { window, n_head, n_head_kv, ..b.shape() };
        let attn = b.attention(i, shape, if window.is_some() { LOCAL } else { GLOBAL }, QkNorm::HeadsIfAny)?;
        let has_gate = b.loader.has(&format!("blk.{i}.attn_gate.weight"));
        let gate = has_gate.then(|| b.gate(i, &shape, GateCurve::Sigmoid)).transpose()?;
        let mixture = b.has_experts(i).then_some(&mixture);
        let ffn = caps.feed_forward(b, i, mixture)?;
        layers.push(b.layer(i, Attention { gate, ..attn }, ffn)?);
    }
    b.decoder(layers, ropes)
}

/// The rotations of layers that see everything, and of the others. Of the divisors of frequencies that a file may have, one for each pair of any
/// layer, the former take the first ones.
fn ropes(b: &mut Builder, has_windows: bool) -> Result<Vec<ContextRope>> {
    let (c, keys) = (b.config, b.keys);
    let n_global = c.n_rot / 2;
    keys.check_rotating("rope.dimension_count", n_global, c.head_dim_k)?;
    let n_local = b.n_rot_local()?;
    let n_most = if has_windows { n_local.max(n_global) } else { n_global };
    let divisors = b.loader.optional_vector("rope_freqs.weight", n_most / 2)?;
    let divisors = divisors.as_deref().map(|all| &all[..n_global / 2]);
    let global = Rope::new(RopeStyle::Neox, n_global, c.rope_base, &c.rope_scaling, divisors, c.rope_magnitude);
    Ok(vec![ContextRope::always(global), b.local_rope(RopeStyle::Neox, n_local, LOCAL_BASE)?])
}
