//! Muse Glimmer, for text: norms before and after each half of a layer, the latter with an epsilon of their own, one without weights on embeddings,
//! gates on what attention gives, and windows in three layers of four; the fourth sees the whole context without positions.

use super::builder::{Builder, QkNorm};
use super::config::Keys;
use super::decoder::{Attention, ContextRope, Decoder, Layer};
use super::{Family, Windows};
use crate::Result;
use crate::attention::{AttentionShape, GateCurve, Rope, RopeStyle};
use crate::compute::{Act, Norm};

/// The registry row.
pub const FAMILY: Family = Family::new("muse-glimmer", build).with_windows(windows);

const TURNED: usize = 0;
const UNTURNED: usize = 1;

/// The soft cap on logits where the file does not say.
const LOGIT_CAP: f32 = 30.0;
/// The epsilon of norms after the halves of a layer.
const POST_EPS: f32 = 1e-8;

fn windows(keys: &Keys, n_layer: usize) -> Result<Windows> {
    keys.alternating_windows(n_layer, None, 4)
}

fn build(b: &mut Builder) -> Result<Decoder> {
    let c = b.config;
    let turned = b.local_rope(RopeStyle::Norm, c.n_rot, c.rope_base)?;
    let mut layers = Vec::with_capacity(c.n_layer);
    for (i, window) in windows(b.keys, c.n_layer)?.into_iter().enumerate() {
        let rope = if window.is_some() { TURNED } else { UNTURNED };
        let shape = AttentionShape { window, ..b.shape() };
        let attn = b.attention(i, shape, rope, QkNorm::Heads)?;
        let gate = Some(b.gate(i, &shape, GateCurve::Sigmoid)?);
        let ffn = b.feed_forward(i, Act::Silu)?;
        let layer = b.sandwiched_layer(i, Attention { gate, ..attn }, ffn)?;
        let [post_attn_norm, post_ffn_norm] = [layer.post_attn_norm, layer.post_ffn_norm]
            .map(|norm| norm.map(|norm| Norm { eps: Some(POST_EPS), ..norm }));
        layers.push(Layer { post_attn_norm, post_ffn_norm, ..layer });
    }
    let mut decoder = b.decoder(layers, vec![turned, ContextRope::always(Rope::none())])?;
    decoder.embed_norm = Some(Norm::plain(c.n_embd, false));
    decoder.output_norm.scale(b.keys.float("logit_scale")?.ok_or_else(|| b.keys.error("logit_scale", "is missing"))?);
    decoder.logit_softcap = match b.keys.float("final_logit_softcapping")?.unwrap_or(LOGIT_CAP) {
        0.0 => None,
        cap if cap < 0.0 => return Err(b.keys.error("final_logit_softcapping", format_args!("{cap} is negative"))),
        cap => Some(cap),
    };
    Ok(decoder)
}
