//! Grok 1 and 2 (xAI): mixtures of experts with GELU, norms before and after each half of a layer, soft caps on scores, and constant factors on
//! embeddings and logits. Grok 2 has a network that all tokens meet beside the experts; what it makes and what they make is added up and divided
//! by the square root of 2, which is done by factors on both.

use std::f32::consts::FRAC_1_SQRT_2;

use super::Family;
use super::builder::{Builder, QkNorm};
use super::decoder::{Attention, ContextRope, Decoder, Experts, Ffn, Layer, SharedExpert};
use crate::Result;
use crate::attention::{AttentionShape, Rope, RopeScaling, RopeStyle};
use crate::compute::Act;

/// The registry row.
pub const FAMILY: Family = Family::new("grok", build);

/// What files that do not say otherwise have: those of Grok 1.
mod default {
    pub const EMBEDDING_SCALE: f32 = 78.383_67;
    pub const SCORE_SCALE: f32 = 0.088_388_346;
    pub const SCORE_CAP: f32 = 30.0;
    pub const LOGIT_SCALE: f32 = 0.577_350_3;
    pub const YARN_BETA_FAST: f32 = 8.0;
}

fn build(b: &mut Builder) -> Result<Decoder> {
    b.ignore_window()?;
    let (c, keys) = (b.config, b.keys);
    let shape = AttentionShape {
        scale: keys.positive("attention.output_scale")?.unwrap_or(default::SCORE_SCALE),
        softcap: Some(keys.positive("attn_logit_softcapping")?.unwrap_or(default::SCORE_CAP)),
        ..b.shape()
    };
    let rope = rope(b)?;
    let mut mixture = b.mixture(keys.width("expert_feed_forward_length")?.unwrap_or(c.n_ff))?;
    mixture.act = Act::Gelu;
    let mut layers = Vec::with_capacity(c.n_layer);
    for i in 0..c.n_layer {
        let attn = b.attention(i, shape, 0, QkNorm::None)?;
        let mut experts = b.bare_experts(i, &mixture)?;
        if b.loader.has(&format!("blk.{i}.ffn_up.weight")) {
            beside(b, i, &mut experts)?;
        }
        layers.push(layer(b, i, attn, Ffn::Experts(Box::new(experts)))?);
    }
    let mut decoder = b.decoder(layers, vec![rope])?;
    decoder.embed_scale = keys.float("embedding_scale")?.unwrap_or(default::EMBEDDING_SCALE);
    decoder.output_norm.scale(keys.float("logit_scale")?.unwrap_or(default::LOGIT_SCALE));
    decoder.logit_softcap = keys.float("final_logit_softcapping")?.filter(|&cap| cap != 0.0);
    Ok(decoder)
}

/// The rotations, which YaRN leaves as they are from other pairs on than elsewhere where the file does not say.
fn rope(b: &Builder) -> Result<ContextRope> {
    let mut scaling = b.config.rope_scaling.clone();
    if let RopeScaling::Yarn { beta_fast, .. } = &mut scaling {
        *beta_fast = b.keys.float("rope.scaling.yarn_beta_fast")?.unwrap_or(default::YARN_BETA_FAST);
    }
    let c = b.config;
    Ok(ContextRope::always(Rope::new(RopeStyle::Neox, c.n_rot, c.rope_base, &scaling, None, c.rope_magnitude)))
}

/// Gives the `experts` of layer `i` the network beside them.
fn beside(b: &mut Builder, i: usize, experts: &mut Experts) -> Result<()> {
    let mut network = b.network(i, "", b.config.n_ff, Act::Gelu)?;
    network.down.scale_by(FRAC_1_SQRT_2);
    experts.networks.choice.scale = FRAC_1_SQRT_2;
    experts.shared = Some(SharedExpert { network, gate: None });
    Ok(())
}

/// Layer `i` from its halves. The norm after the second has one of two names.
fn layer(b: &mut Builder, i: usize, attn: Attention, ffn: Ffn) -> Result<Layer> {
    let name = |part: &str| format!("blk.{i}.{part}");
    let layer = b.layer(i, attn, ffn)?;
    let post_ffn = if b.loader.has(&name("layer_output_norm.weight")) { "layer_output_norm" } else { "post_ffw_norm" };
    let post_attn_norm = Some(b.norm(&name("attn_output_norm"))?);
    let post_ffn_norm = Some(b.norm(&name(post_ffn))?);
    Ok(Layer { post_attn_norm, post_ffn_norm, ..layer })
}
