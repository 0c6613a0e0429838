//! PLaMo (Preferred Networks): of the first, both halves of a layer start from the same normalised input. PLaMo 3 has norms before and after each
//! half and on every query and key head, and of eight of its layers all but one have a sliding window; the rotations of the others alone are
//! stretched.

use super::builder::{Builder, QkNorm};
use super::config::Keys;
use super::decoder::{ContextRope, Decoder, Layer};
use super::{Family, Windows};
use crate::Result;
use crate::attention::{AttentionShape, Rope, RopeScaling, RopeStyle};
use crate::compute::{Act, Norm};

/// The registry row of the first.
pub const PLAMO: Family = Family::new("plamo", plamo);
/// The registry row of PLaMo 3.
pub const PLAMO3: Family = Family::new("plamo3", plamo3).with_windows(windows);

const GLOBAL: usize = 0;
const LOCAL: usize = 1;

/// The base of the rotations of layers with a sliding window, where the file does not say.
const LOCAL_BASE: f32 = 10_000.0;

fn plamo(b: &mut Builder) -> Result<Decoder> {
    b.ignore_window()?;
    let (n_layer, shape) = (b.config.n_layer, b.shape());
    let rope = ContextRope::always(b.rope(RopeStyle::Neox, None));
    let mut layers = Vec::with_capacity(n_layer);
    for i in 0..n_layer {
        let attn = b.attention(i, shape, 0, QkNorm::None)?;
        let ffn = b.feed_forward(i, Act::Silu)?;
        let attn_norm = Some(b.norm(&format!("blk.{i}.attn_norm"))?);
        layers.push(Layer { attn_norm, parallel: true, ..Layer::bare(attn, Some(ffn)) });
    }
    b.decoder(layers, vec![rope])
}

fn windows(keys: &Keys, n_layer: usize) -> Result<Windows> {
    keys.alternating_windows(n_layer, None, 8)
}

fn plamo3(b: &mut Builder) -> Result<Decoder> {
    let c = b.config;
    let base = b.keys.positive("rope.freq_base_swa")?.unwrap_or(LOCAL_BASE);
    let local = Rope::new(RopeStyle::Neox, c.n_rot, base, &RopeScaling::None, None, c.rope_magnitude);
    let ropes = [b.rope(RopeStyle::Neox, None), local].map(ContextRope::always);
    let mut layers = Vec::with_capacity(c.n_layer);
    for (i, window) in windows(b.keys, c.n_layer)?.into_iter().enumerate() {
        let (shape, rope) = (AttentionShape { window, ..b.shape() }, if window.is_some() { LOCAL } else { GLOBAL });
        let attn = b.attention(i, shape, rope, QkNorm::Heads)?;
        let ffn = b.fused_feed_forward(i, Act::Silu)?;
        let layer = b.layer(i, attn, ffn)?;
        layers.push(with_post_norms(b, i, layer)?);
    }
    b.decoder(layers, ropes.into())
}

/// Layer `i` with norms after each half, whose names have no suffix.
pub fn with_post_norms(b: &mut Builder, i: usize, layer: Layer) -> Result<Layer> {
    let mut norm = |name: &str| Ok(Some(Norm::rms(b.loader.vector(&format!("blk.{i}.{name}"), b.config.n_embd)?)));
    let (post_attn_norm, post_ffn_norm) = (norm("post_attention_norm")?, norm("post_ffw_norm")?);
    Ok(Layer { post_attn_norm, post_ffn_norm, ..layer })
}
