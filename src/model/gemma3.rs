//! Gemma 3: norms before and after each half of a layer, GeGLU, scaled embeddings, and layers that alternate between a
//! sliding window and the whole context, each with a rotary embedding of its own.

use super::builder::{Builder, QkNorm};
use super::config::Keys;
use super::decoder::{ContextRope, Decoder};
use super::{Family, Windows};
use crate::Result;
use crate::attention::{AttentionShape, Rope, RopeScaling, RopeStyle};
use crate::compute::Act;

/// The registry row.
pub const FAMILY: Family = Family::new("gemma3", build).with_windows(windows);

const GLOBAL: usize = 0;
const LOCAL: usize = 1;

/// The 27B model, told by its depth, scales scores by the nominal head size instead of the real one.
const N_LAYER_27B: usize = 62;

fn windows(keys: &Keys, n_layer: usize) -> Result<Windows> {
    keys.alternating_windows(n_layer, None, 6)
}

fn build(b: &mut Builder) -> Result<Decoder> {
    let (c, keys) = (b.config, b.keys);
    let scale = if c.n_layer == N_LAYER_27B { (c.n_embd / c.n_head) as f32 } else { c.head_dim_k as f32 };
    let global = AttentionShape {
        scale: keys.positive("attention.scale")?.unwrap_or(1.0 / scale.sqrt()),
        softcap: keys.positive("attn_logit_softcapping")?,
        ..b.shape()
    };
    let local_base = keys.positive("rope.freq_base_swa")?.unwrap_or(10_000.0);
    let ropes = vec![
        ContextRope::always(b.rope(RopeStyle::Neox, None)),
        ContextRope::always(Rope::new(RopeStyle::Neox, c.n_rot, local_base, &RopeScaling::None, None, 1.0)),
    ];
    let mut layers = Vec::with_capacity(c.n_layer);
    for (i, window) in windows(keys, c.n_layer)?.into_iter().enumerate() {
        let (shape, rope) = (AttentionShape { window, ..global }, if window.is_some() { LOCAL } else { GLOBAL });
        let attn = b.attention(i, shape, rope, QkNorm::Heads)?;
        let ffn = b.feed_forward(i, Act::Gelu)?;
        layers.push(b.sandwiched_layer(i, attn, ffn)?);
    }
    let mut decoder = b.decoder(layers, ropes)?;
    decoder.embed_scale = (c.n_embd as f32).sqrt();
    decoder.logit_softcap = keys.positive("final_logit_softcapping")?;
    Ok(decoder)
}
