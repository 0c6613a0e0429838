//! Nemotron-H (arXiv 2504.03624) and Nemotron 3 Nano (arXiv 2512.20848), its mixtures of experts: layers with a selective scan, with attention without
//! positions, or with a feed-forward network, never two of these. What a layer is follows from two lists: it has attention where it has
//! key/value heads, a network where it has hidden units, and a scan where it has neither. The experts of Nemotron 3 Super are given latents;
//! those of Nemotron 3 Puzzle besides differ from layer to layer in their size, and in how many of them are chosen.

use super::Family;
use super::builder::{Builder, Mixture, QkNorm};
use super::config::Keys;
use super::decoder::{ContextRope, Decoder, Layer, Mixer};
use super::mamba2::{scan_alone, shape};
use super::mixtures::completed;
use crate::Result;
use crate::attention::{AttentionShape, Rope};
use crate::compute::{Act, Gating};

/// The registry row of Nemotron-H.
pub const NEMOTRON_H: Family = Family::new("nemotron_h", build).with_varying_layers().with_states(n_state);
/// The registry row of its mixtures of experts.
pub const NEMOTRON_H_MOE: Family = Family { arch: "nemotron_h_moe", ..NEMOTRON_H };

/// What a layer is.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Scan,
    /// With so many key/value heads.
    Attention(usize),
    /// With so many hidden units.
    Network(usize),
}

fn kinds(keys: &Keys, n_layer: usize) -> Result<Vec<Kind>> {
    let n_ff = keys.hidden_units(n_layer)?;
    let kind = |(n_kv, n_ff)| match (n_kv, n_ff) {
        (0, 0) => Kind::Scan,
        (n_kv, 0) => Kind::Attention(n_kv),
        (_, n_ff) => Kind::Network(n_ff),
    };
    Ok(keys.heads_kv(n_layer)?.into_iter().zip(n_ff).map(kind).collect())
}

fn n_state(keys: &Keys, n_layer: usize) -> Result<usize> {
    let n = kinds(keys, n_layer)?.into_iter().filter(|&k| k == Kind::Scan).count();
    Ok(if n == 0 { 0 } else { n.saturating_mul(shape(keys)?.n_state()) })
}

fn build(b: &mut Builder) -> Result<Decoder> {
    let (c, keys) = (b.config, b.keys);
    let (kinds, scan) = (kinds(keys, c.n_layer)?, shape(keys)?);
    if kinds.iter().all(|k| matches!(k, Kind::Network(_))) {
        return Err(keys.error("feed_forward_length", "all layers have hidden units: none is left to mix tokens"));
    }
    let mixtures = (c.arch == NEMOTRON_H_MOE.arch).then(|| Mixtures::read(b)).transpose()?;
    let mut layers = Vec::with_capacity(c.n_layer);
    for (i, kind) in kinds.into_iter().enumerate() {
        let (mixer, ffn) = match kind {
            Kind::Scan => (scan_alone(b, i, scan)?.into(), None),
            Kind::Attention(n_head_kv) => {
                keys.check_heads(n_head_kv, c.n_head, Some(i))?;
                let shape = AttentionShape { n_head_kv, ..b.shape() };
                (b.attention(i, shape, 0, QkNorm::None)?.into(), None)
            }
            Kind::Network(n_ff) => {
                b.has_no_attention(i)?;
                let ffn = match &mixtures {
                    Some(mixtures) => b.experts(i, &mixtures.of_layer(b, i, n_ff)?)?,
                    None => b.ungated_feed_forward_of(i, n_ff, Act::ReluSquared)?,
                };
                (Mixer::default(), Some(ffn))
            }
        };
        let attn_norm = Some(b.norm(&format!("blk.{i}.attn_norm"))?);
        layers.push(Layer { attn_norm, ..Layer::bare(mixer, ffn) });
    }
    b.decoder(layers, vec![ContextRope::always(Rope::none())])
}

/// How large the mixtures of all layers are.
struct Mixtures {
    /// Hidden units of an expert; 0 stands for those of the layer's network.
    n_ff: Vec<usize>,
    n_used: Vec<usize>,
    latent: Option<usize>,
}

impl Mixtures {
    fn read(b: &Builder) -> Result<Self> {
        let (c, keys) = (b.config, b.keys);
        let n_ff = keys.per_layer("expert_feed_forward_length", c.n_layer)?.unwrap_or_else(|| vec![0; c.n_layer]);
        Ok(Self { n_ff, n_used: keys.experts_used(c.n_layer)?, latent: keys.width("moe_latent_size")? })
    }

    /// The mixture of layer `i`, whose network has `n_ff` hidden units.
    fn of_layer(&self, b: &Builder, i: usize, n_ff: usize) -> Result<Mixture> {
        let n_ff = if self.n_ff[i] > 0 { self.n_ff[i] } else { n_ff };
        let mixture = completed(b, b.mixture_of(n_ff, self.n_used[i])?, Gating::Sigmoid, false)?;
        Ok(Mixture { gated: false, act: Act::ReluSquared, latent: self.latent, ..mixture })
    }
}
