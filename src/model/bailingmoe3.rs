//! Ling 3: Kimi Delta Attention (arXiv 2510.26692), whose rates have a lower bound, in layers that have no key/value heads; in the others multi-head
//! latent attention with a gate on each head's result; mixtures of experts after a few layers without them, whose hidden units some layers cap.

use super::Family;
use super::builder::Builder;
use super::decoder::{Attention, ContextRope, Decoder, Gate, Mixer};
use super::deepseek2::{absorbed_sizes, attention};
use super::kda::{self, delta_attention};
use super::mixtures::{Caps, mixture};
use crate::Result;
use crate::attention::{AttentionShape, GateCurve, KeyedDecay, RopeStyle};
use crate::compute::{Act, Gating};

/// The registry row.
pub const FAMILY: Family = Family::new("bailingmoe3", build).with_varying_layers().with_states(kda::n_state);

fn build(b: &mut Builder) -> Result<Decoder> {
    let (c, keys) = (b.config, b.keys);
    // Where positions have several dimensions, for models that see images, other pairs turn.
    let style = if b.has_sections()? { RopeStyle::Neox } else { RopeStyle::Norm };
    let sizes = absorbed_sizes(b)?;
    let scale = 1.0 / (sizes.n_query() as f32).sqrt();
    let shape = sizes.shape(AttentionShape { scale, ..b.shape() });
    let rope = b.rope(style, None).turning_from(shape.head_dim_v);
    let least = least_logarithm(b)?;
    let n_dense = keys.count("leading_dense_block_count")?.unwrap_or(0);
    let mut mixture = (n_dense < c.n_layer).then(|| mixture(b, Gating::Softmax, false)).transpose()?;
    // The network beside the experts is as large as one of them where the file does not say.
    for mixture in mixture.iter_mut().filter(|m| m.n_ff_shared == 0) {
        mixture.n_ff_shared = mixture.n_ff;
    }
    let caps = Caps::read(keys, c.n_layer, Act::CappedSwiglu)?;
    let mut layers = Vec::with_capacity(c.n_layer);
    for (i, attends) in kda::attends(keys, c.n_layer)?.into_iter().enumerate() {
        let mixer: Mixer = match attends {
            false => delta_attention(b, i, None, |factors| KeyedDecay::Bounded { factors, least })?.into(),
            true => {
                let attn = attention(b, i, &sizes, shape)?;
                // One for each head, so that it does not matter whether what is summed up is multiplied or what is made of that.
                let linear = b.loader.linear(&format!("blk.{i}.attn_gate"), c.n_head, c.n_embd)?;
                Attention { gate: Some(Gate { linear, curve: GateCurve::Sigmoid }), ..attn }.into()
            }
        };
        let ffn = caps.feed_forward(b, i, mixture.as_ref().filter(|_| i >= n_dense))?;
        layers.push(b.layer(i, mixer, ffn)?);
    }
    b.decoder(layers, vec![ContextRope::always(rope)])
}

/// The least logarithm that a rate of the delta rule has.
fn least_logarithm(b: &Builder) -> Result<f32> {
    const IS_BOUNDED: &str = "kda.safe_gate";
    const LEAST: &str = "kda.gate_lower_bound";
    if b.keys.flag(IS_BOUNDED)? == Some(false) {
        return Err(b.keys.error(IS_BOUNDED, "false: rates without a lower bound are not supported"));
    }
    match b.keys.float(LEAST)? {
        Some(least) if least < 0.0 => Ok(least),
        Some(least) => Err(b.keys.error(LEAST, format_args!("{least} is not negative"))),
        None => Err(b.keys.error(LEAST, "is missing")),
    }
}
