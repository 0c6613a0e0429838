//! GLM-4: gate and up projections in one tensor, biases on Q, K and V, and heads of which a half rotates. The models before 0414 (ChatGLM 3
//! and GLM-4-9B-chat among them) have a norm before each half of a layer, the later ones another after it; those that see images rotate by
//! the other order of pairs.

use super::Family;
use super::builder::{Builder, QkNorm};
use super::decoder::{ContextRope, Decoder};
use crate::Result;
use crate::attention::RopeStyle;
use crate::compute::Act;

/// The registry row of the models before 0414.
pub const CHATGLM: Family = Family::new("chatglm", build);
/// The registry row of those from 0414 on.
pub const GLM4: Family = Family { arch: "glm4", ..CHATGLM };

fn build(b: &mut Builder) -> Result<Decoder> {
    b.ignore_window()?;
    let shape = b.shape();
    let style = if b.has_sections()? { RopeStyle::Neox } else { RopeStyle::Norm };
    let rope = b.rope(style, None);
    let mut layers = Vec::with_capacity(b.config.n_layer);
    for i in 0..b.config.n_layer {
        let attn = b.attention(i, shape, 0, QkNorm::None)?;
        let ffn = b.fused_feed_forward(i, Act::Silu)?;
        layers.push(if b.config.arch == GLM4.arch {
            b.sandwiched_layer(i, attn, ffn)?
        } else {
            b.layer(i, attn, ffn)?
        });
    }
    b.decoder(layers, vec![ContextRope::always(rope)])
}
