//! Xiaomi's MiMo-V2: most layers have a window, more key/value heads than those that see the whole context, and heads with sinks; keys are longer
//! than values, whose sums have a factor; mixtures of experts after a few layers without them.

use super::builder::{Builder, QkNorm};
use super::config::MAX_WIDTH;
use super::decoder::{Attention, ContextRope, Decoder};
use super::{Family, flagged_windows};
use crate::Result;
use crate::attention::{AttentionShape, RopeStyle};
use crate::compute::{Act, Gating};

/// The registry row.
pub const FAMILY: Family = Family::new("mimo2", build).with_varying_layers().with_windows(flagged_windows);

const GLOBAL: usize = 0;
const LOCAL: usize = 1;
/// The frequency base of layers with windows, where the file does not say.
const LOCAL_BASE: f32 = 10_000.0;

fn build(b: &mut Builder) -> Result<Decoder> {
    let (c, keys) = (b.config, b.keys);
    let mut mixture = b.mixture(keys.required("expert_feed_forward_length", MAX_WIDTH)?)?;
    mixture.choice.gating = Gating::Sigmoid;
    let value_scale = keys.float("attention.value_scale")?.filter(|&s| s != 0.0).unwrap_or(1.0);
    let global = ContextRope::always(b.rope(RopeStyle::Neox, None));
    let local = b.local_rope(RopeStyle::Neox, c.n_rot, LOCAL_BASE)?;
    let heads_kv = keys.heads_kv(c.n_layer)?;
    let mut layers = Vec::with_capacity(c.n_layer);
    for (i, window) in keys.flagged_windows(c.n_layer)?.into_iter().enumerate() {
        let n_head_kv = heads_kv[i];
        keys.check_heads(n_head_kv, c.n_head, Some(i))?;
        let rope = if window.is_some() { LOCAL } else { GLOBAL };
        let sinks = b.sinks_if_any(i)?;
        let attn = b.attention(i, AttentionShape { window, n_head_kv, ..b.shape() }, rope, QkNorm::None)?;
        let mut attn = Attention { sinks, ..attn };
        if value_scale != 1.0 {
            attn.out.scale_by(value_scale);
        }
        let ffn = if b.has_experts(i) { b.experts(i, &mixture)? } else { b.dense_feed_forward(i, Act::Silu)? };
        layers.push(b.layer(i, attn, ffn)?);
    }
    b.decoder(layers, vec![global, local])
}
