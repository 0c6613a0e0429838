//! Families of mixtures of experts in the manner of DeepSeek's first (arXiv 2401.06066): many small experts, a network beside them that all
//! tokens meet, and a few layers without experts at the start. Ling (BailingMoE), ERNIE 4.5, dots.llm1, GLM-4.5, Hunyuan and MiniMax M2 (which
//! has neither) differ in their attention, in how they choose experts, and in what their files leave unsaid.

use super::Family;
use super::builder::{Builder, Mixture, QkNorm};
use super::config::Keys;
use super::decoder::{Attention, ContextRope, Decoder, Ffn};
use crate::attention::RopeStyle;
use crate::compute::{Act, Gating};
use crate::{Error, Result};

/// The registry row of DeepSeek's first mixtures.
pub const DEEPSEEK: Family = Family::new("deepseek", |b| build(b, &PLAIN));
/// The registry row of Ling.
pub const BAILINGMOE: Family = Family::new("bailingmoe", |b| build(b, &PLAIN));
/// The registry row of Ling 2 and Ring 2.
pub const BAILINGMOE2: Family = Family::new("bailingmoe2", |b| build(b, &NORMED));
/// The registry row of dots.llm1.
pub const DOTS1: Family = Family::new("dots1", |b| build(b, &NORMED));
/// The registry row of GLM-4.5.
pub const GLM4MOE: Family = Family::new("glm4moe", |b| build(b, &GLM4));
/// The registry row of ERNIE 4.5's mixtures.
pub const ERNIE4_5_MOE: Family = Family::new("ernie4_5-moe", |b| build(b, &Traits { normalised: true, ..PLAIN }));
/// The registry row of Hunyuan's mixtures.
pub const HUNYUAN_MOE: Family = Family::new("hunyuan-moe", |b| build(b, &HUNYUAN));
/// The registry row of MiniMax M2.
pub const MINIMAX_M2: Family = Family::new("minimax-m2", |b| build(b, &MINIMAX));

/// What sets the families apart.
struct Traits {
    style: RopeStyle,
    norm: QkNorm,
    /// Norms on heads come after their rotation.
    norm_after_turn: bool,
    /// The norm before the feed-forward half.
    ffn_norm: &'static str,
    /// What makes probabilities of scores, where the file does not say.
    gating: Gating,
    /// Whether the weights of those chosen are made to add up to 1, where the file does not say.
    normalised: bool,
}

const PLAIN: Traits = Traits {
    style: RopeStyle::Norm,
    norm: QkNorm::None,
    norm_after_turn: false,
    ffn_norm: "ffn_norm",
    gating: Gating::Softmax,
    normalised: false,
};

const NORMED: Traits = Traits { style: RopeStyle::Neox, norm: QkNorm::Heads, ..PLAIN };

const GLM4: Traits =
    Traits { norm: QkNorm::HeadsIfAny, ffn_norm: "post_attention_norm", gating: Gating::Sigmoid, ..NORMED };

const HUNYUAN: Traits = Traits { norm_after_turn: true, normalised: true, ..NORMED };

const MINIMAX: Traits = Traits { norm: QkNorm::Rows, gating: Gating::Sigmoid, normalised: true, ..NORMED };

fn build(b: &mut Builder, t: &Traits) -> Result<Decoder> {
    b.ignore_window()?;
    b.has_sections()?;
    let mixture = mixture(b, t.gating, t.normalised)?;
    let n_dense = b.keys.count("leading_dense_block_count")?.unwrap_or(0);
    let step = b.keys.count("interleave_moe_layer_step")?.unwrap_or(1);
    let shape = b.shape();
    let rope = ContextRope::always(b.rope(t.style, None));
    let mut layers = Vec::with_capacity(b.config.n_layer);
    for i in 0..b.config.n_layer {
        let attn = b.attention(i, shape, 0, t.norm)?;
        let attn = Attention { norm_after_turn: t.norm_after_turn, ..attn };
        let has_experts = i >= n_dense && (i + 1).is_multiple_of(step);
        let ffn = if has_experts { b.experts(i, &mixture)? } else { b.dense_feed_forward(i, Act::Silu)? };
        layers.push(b.pre_norm_layer(i, attn, ffn, t.ffn_norm)?);
    }
    b.decoder(layers, vec![rope])
}

/// The mixtures that a file's keys describe; `gating` and `normalised` are what it may leave unsaid, see [`Traits`].
pub fn mixture(b: &Builder, gating: Gating, normalised: bool) -> Result<Mixture> {
    let n_ff = b.keys.width("expert_feed_forward_length")?.unwrap_or(b.config.n_ff);
    completed(b, b.mixture(n_ff)?, gating, normalised)
}

/// A mixture of known size with the rest of what the keys describe.
pub fn completed(b: &Builder, mut mixture: Mixture, gating: Gating, normalised: bool) -> Result<Mixture> {
    let (keys, n_ff) = (b.keys, mixture.n_ff);
    mixture.choice.normalised = keys.flag("expert_weights_norm")?.unwrap_or(normalised);
    mixture.choice.scale = keys.float("expert_weights_scale")?.filter(|&s| s != 0.0).unwrap_or(1.0);
    mixture.choice.gating = b.gating(gating)?;
    let n_shared = keys.count("expert_shared_count")?.unwrap_or(0);
    mixture.n_ff_shared = match keys.width("expert_shared_feed_forward_length")? {
        Some(n) => n,
        None => n_ff.saturating_mul(n_shared),
    };
    Ok(mixture)
}

/// The caps of hidden units, layer by layer, as what their gates' activations are.
pub struct Caps {
    of_experts: Vec<Act>,
    /// Of networks that all tokens meet.
    of_networks: Vec<Act>,
}

impl Caps {
    /// Those that the keys give, of the family's kind; they may be missing, or 0 where there is none.
    pub fn read(keys: &Keys, n_layer: usize, kind: fn(f32) -> Act) -> Result<Self> {
        /// Caps up to this stand for none, as in llama.cpp.
        const NONE: f32 = 1e-6;
        let capped = |cap| if cap > NONE { kind(cap) } else { Act::Silu };
        let [of_experts, of_networks] = ["swiglu_clamp_exp", "swiglu_clamp_shexp"].map(|key| {
            let caps = keys.floats_of_layers(key, n_layer)?.unwrap_or_else(|| vec![0.0; n_layer]);
            Ok::<_, Error>(caps.into_iter().map(capped).collect())
        });
        Ok(Self { of_experts: of_experts?, of_networks: of_networks? })
    }

    /// The feed-forward half of layer `i`: a mixture, or without one a network.
    pub fn feed_forward(&self, b: &mut Builder, i: usize, mixture: Option<&Mixture>) -> Result<Ffn> {
        let Some(mixture) = mixture else { return b.dense_feed_forward(i, self.of_networks[i]) };
        let mut experts = b.bare_experts(i, mixture)?;
        experts.networks.act = self.of_experts[i];
        experts.shared.iter_mut().for_each(|beside| beside.network.act = self.of_networks[i]);
        Ok(Ffn::Experts(Box::new(experts)))
    }
}
