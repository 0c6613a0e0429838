//! OpenELM (arXiv 2404.14619): the layers grow from the first to the last, in heads and in hidden units. Otherwise as Llama, with norms on every
//! query and key head.

use super::Family;
use super::builder::{Builder, QkNorm};
use super::decoder::{ContextRope, Decoder, Ffn};
use crate::Result;
use crate::attention::{AttentionShape, RopeStyle};
use crate::compute::Act;

/// The registry row.
pub const FAMILY: Family = Family::new("openelm", build).with_varying_heads();

fn build(b: &mut Builder) -> Result<Decoder> {
    b.ignore_window()?;
    b.refuse_experts()?;
    let (c, keys) = (b.config, b.keys);
    let (heads, n_ff) = (keys.heads(c.n_layer)?, keys.hidden_units(c.n_layer)?);
    let rope = ContextRope::always(b.rope(RopeStyle::Neox, None));
    let mut layers = Vec::with_capacity(c.n_layer);
    for (i, ([n_head, n_head_kv], n_ff)) in heads.into_iter().zip(n_ff).enumerate() {
        keys.check_heads(n_head_kv, n_head, Some(i))?;
        if n_ff == 0 {
            return Err(keys.error("feed_forward_length", format_args!("0 in layer {i}, expected hidden units")));
        }
        let attn = b.attention(i, AttentionShape { n_head, n_head_kv, ..b.shape() }, 0, QkNorm::Heads)?;
        let network = b.network(i, "", n_ff, Act::Silu)?;
        layers.push(b.layer(i, attn, Ffn::One(Box::new(network)))?);
    }
    b.decoder(layers, vec![rope])
}
