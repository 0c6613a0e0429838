//! Grove MoE (arXiv 2508.07785): Qwen3's mixtures of experts, in groups each of which shares a small network besides. As in llama.cpp these networks
//! are given what the experts have made together.

use super::Family;
use super::builder::{Builder, Mixture, QkNorm};
use super::decoder::{ContextRope, Decoder, Ffn};
use crate::Result;
use crate::attention::RopeStyle;
use crate::compute::{Choice, Networks, Units};

/// The registry row.
pub const FAMILY: Family = Family::new("grovemoe", build);

fn build(b: &mut Builder) -> Result<Decoder> {
    let c = b.config;
    let n_ff = b.keys.width("expert_feed_forward_length")?.unwrap_or(c.n_ff / c.n_expert_used.max(1));
    let mixture = b.mixture(n_ff)?;
    let choice = choice_of_groups(b, &mixture)?;
    let n_ff = b.keys.width("expert_chunk_feed_forward_length")?.unwrap_or(c.head_dim_k);
    let rope = ContextRope::always(b.rope(RopeStyle::Neox, None));
    let shape = b.shape();
    let mut layers = Vec::with_capacity(c.n_layer);
    for i in 0..c.n_layer {
        let attn = b.attention(i, shape, 0, QkNorm::Heads)?;
        let mut experts = b.bare_experts(i, &mixture)?;
        experts.of_groups = Some(networks(b, i, &mixture, choice, n_ff)?);
        layers.push(b.layer(i, attn, Ffn::Experts(Box::new(experts)))?);
    }
    b.decoder(layers, vec![rope])
}

/// How the networks of groups are chosen, and weighed.
fn choice_of_groups(b: &Builder, mixture: &Mixture) -> Result<Choice> {
    const SIZE: &str = "experts_per_group";
    const SCALE: &str = "expert_group_scale";
    let Choice { n_expert, n_used, .. } = mixture.choice;
    let n_sharing = b.keys.required(SIZE, n_expert)?;
    if !n_expert.is_multiple_of(n_sharing) || n_expert / n_sharing < n_used {
        let what = format_args!("{n_sharing}, expected to divide {n_expert} experts into {n_used} groups or more");
        return Err(b.keys.error(SIZE, what));
    }
    let scale = b.keys.float(SCALE)?.ok_or_else(|| b.keys.error(SCALE, "is missing"))?;
    Ok(Choice { n_sharing, scale, ..mixture.choice })
}

/// The networks of layer `i`'s groups, with `n_ff` hidden units each.
fn networks(b: &mut Builder, i: usize, mixture: &Mixture, choice: Choice, n_ff: usize) -> Result<Networks> {
    let (n_embd, n) = (b.config.n_embd, choice.n_networks());
    let mut stack = |name: &str, rows, cols| b.loader.stack(&format!("blk.{i}.ffn_{name}_chexps"), n, rows, cols);
    let units = Units::Gated { gate: stack("gate", n_ff, n_embd)?, up: stack("up", n_ff, n_embd)? };
    let down = stack("down", n_embd, n_ff)?;
    Ok(Networks { choice, selection_bias: None, units, down, act: mixture.act, weighs_input: false })
}
