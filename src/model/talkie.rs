//! Talkie: norms without weights, on heads after their rotation too, where queries have a factor for each head; factors on what the halves of layers
//! make; the normalised embeddings are added again after every layer.

use super::Family;
use super::builder::{Builder, QkNorm};
use super::decoder::{Attention, ContextRope, Decoder, HeadNorm, Layer, Scores};
use crate::Result;
use crate::attention::RopeStyle;
use crate::compute::{Act, Norm};

/// The registry row.
pub const FAMILY: Family = Family::new("talkie", build);

fn build(b: &mut Builder) -> Result<Decoder> {
    const LOGITS: &str = "logit_scale";
    let (c, shape) = (b.config, b.shape());
    let scale = b.keys.float(LOGITS)?.ok_or_else(|| b.keys.error(LOGITS, "is missing"))?;
    let rope = ContextRope::always(b.rope(RopeStyle::Neox, None));
    let plain = || Norm::plain(c.n_embd, false);
    let mut layers = Vec::with_capacity(c.n_layer);
    for i in 0..c.n_layer {
        let attn = b.attention(i, shape, 0, QkNorm::Plain)?;
        let attn = Attention { norm_after_turn: true, ..with_factors(b, i, attn)? };
        let ffn = b.feed_forward(i, Act::Silu)?;
        let embeddings = b.loader.vector(&format!("blk.{i}.layer_output_scale.weight"), 1)?[0];
        layers.push(Layer {
            attn_norm: Some(plain()),
            ffn_norm: Some(plain()),
            embeddings: Some(embeddings),
            ..Layer::bare(attn, Some(ffn))
        });
    }
    let mut output_norm = plain();
    output_norm.scale(scale);
    let mut decoder = b.decoder_around(layers, vec![rope], output_norm)?;
    decoder.embed_norm = Some(plain());
    Ok(decoder)
}

/// Attention of layer `i` whose normalised queries are multiplied with the file's factors, one for each head. A layer without queries has no use
/// for them.
fn with_factors(b: &mut Builder, i: usize, mut attn: Attention) -> Result<Attention> {
    let (name, n_head) = (format!("blk.{i}.attn_q_norm.weight"), attn.shape.n_head);
    if let Scores::Own { q, .. } | Scores::Queries { q, .. } = &mut attn.scores {
        let factors = b.loader.values(&name, &[1, n_head])?;
        let of_head = |&factor: &f32| {
            let mut norm = Norm::plain(attn.shape.head_dim_k, false);
            norm.scale(factor);
            norm
        };
        q.norm = Some(HeadNorm::Each(factors.iter().map(of_head).collect()));
    }
    Ok(attn)
}
