//! Kimi Linear (arXiv 2510.26692): three layers of four follow the delta rule with rates for each element of a key, the fourth has multi-head
//! latent attention without positions; after a few layers without them mixtures of experts. Which layers have attention is told by key/value heads.

use super::Family;
use super::builder::Builder;
use super::decoder::{ContextRope, Decoder, Mixer};
use super::deepseek2::{absorbed_sizes, attention};
use super::kda::{self, delta_attention};
use super::mixtures::mixture;
use crate::Result;
use crate::attention::{AttentionShape, KeyedDecay, Rope};
use crate::compute::{Act, Gating};

/// The registry row.
pub const FAMILY: Family = Family::new("kimi-linear", build).with_varying_layers().with_states(kda::n_state);

fn build(b: &mut Builder) -> Result<Decoder> {
    let (c, keys) = (b.config, b.keys);
    let sizes = absorbed_sizes(b)?;
    let scale = 1.0 / (sizes.n_query() as f32).sqrt();
    let shape = sizes.shape(AttentionShape { scale, ..b.shape() });
    let rank = kda::shape(keys)?.head_dim_k;
    let n_dense = keys.count("leading_dense_block_count")?.unwrap_or(0);
    let mixture = (n_dense < c.n_layer).then(|| mixture(b, Gating::Sigmoid, true)).transpose()?;
    let mut layers = Vec::with_capacity(c.n_layer);
    for (i, attends) in kda::attends(keys, c.n_layer)?.into_iter().enumerate() {
        let mixer: Mixer = match attends {
            true => attention(b, i, &sizes, shape)?.into(),
            false => delta_attention(b, i, Some(rank), KeyedDecay::Softplus)?.into(),
        };
        let ffn = match &mixture {
            Some(mixture) if i >= n_dense => b.experts(i, mixture)?,
            _ => b.dense_feed_forward(i, Act::Silu)?,
        };
        layers.push(b.layer(i, mixer, ffn)?);
    }
    b.decoder(layers, vec![ContextRope::always(Rope::none())])
}
