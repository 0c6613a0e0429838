//! Arctic (Snowflake, 2024): Llama's layers, and beside what each half of a layer adds a mixture of experts, which is given the layer's input with
//! a norm of its own. It could be computed while attention is.

use super::Family;
use super::builder::{Builder, QkNorm};
use super::decoder::{ContextRope, Decoder, ExpertInput, Experts, Ffn, SharedExpert};
use crate::Result;
use crate::attention::RopeStyle;
use crate::compute::Act;

/// The registry row.
pub const FAMILY: Family = Family::new("arctic", build);

fn build(b: &mut Builder) -> Result<Decoder> {
    b.ignore_window()?;
    let (c, shape) = (b.config, b.shape());
    let mixture = b.mixture(c.n_ff)?;
    let rope = ContextRope::always(b.rope(RopeStyle::Norm, None));
    let mut layers = Vec::with_capacity(c.n_layer);
    for i in 0..c.n_layer {
        let attn = b.attention(i, shape, 0, QkNorm::None)?;
        // The network has as many hidden units as the residual stream values; those that the file gives are an expert's.
        let network = b.network(i, "", c.n_embd, Act::Silu)?;
        let input = ExpertInput::Before(b.norm(&format!("blk.{i}.ffn_norm_exps"))?);
        let shared = Some(SharedExpert { network, gate: None });
        let experts = Experts { input, shared, ..b.bare_experts(i, &mixture)? };
        layers.push(b.layer(i, attn, Ffn::Experts(Box::new(experts)))?);
    }
    b.decoder(layers, vec![rope])
}
