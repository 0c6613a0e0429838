//! Llama 1 to 3, Mistral, Mixtral, TinyLlama, SmolLM2 and the many others that share their shape: pre-norm, SwiGLU,
//! grouped-query attention. InternLM2, ERNIE 4.5 (its dense models) and EXAONE 3 are the same under names of their own, the last
//! with the other order of rotary pairs, as is PaddleOCR's language model. Baichuan's 7B is too; its 13B and Refact have linear biases in place of rotations. Mistral 3 and
//! Ministral 3 add a temperature and another magnitude of YaRN's rotations; Arcee's AFM has no gates.

use super::Family;
use super::builder::{Builder, QkNorm};
use super::decoder::{Attention, ContextRope, Decoder};
use crate::Result;
use crate::attention::{Rope, RopeScaling, RopeStyle, Temperature, USUAL_MAX_BIAS};
use crate::compute::Act;

/// The registry row.
pub const LLAMA: Family = Family::new("llama", |b| build(b, RopeStyle::Norm));
/// The registry row of InternLM2.
pub const INTERNLM2: Family = Family { arch: "internlm2", ..LLAMA };
/// The registry row of ERNIE 4.5.
pub const ERNIE4_5: Family = Family { arch: "ernie4_5", ..LLAMA };
/// The registry row of PaddleOCR's language model, for text.
pub const PADDLEOCR: Family = Family::new("paddleocr", paddleocr);
/// The registry row of EXAONE 3.
pub const EXAONE: Family = Family::new("exaone", |b| build(b, RopeStyle::Neox));
/// The registry row of XVERSE.
pub const XVERSE: Family = Family { arch: "xverse", ..LLAMA };
/// The registry row of Baichuan.
pub const BAICHUAN: Family = Family::new("baichuan", baichuan);
/// The registry row of Refact.
pub const REFACT: Family = Family::new("refact", sloped);
/// The registry row of Pangu Embedded.
pub const PANGU: Family = Family { arch: "pangu-embedded", ..EXAONE };
/// The registry row of Arcee's AFM.
pub const ARCEE: Family = Family::new("arcee", |b| build(b, RopeStyle::Norm));
/// The registry row of Mistral 3.
pub const MISTRAL3: Family = Family::new("mistral3", mistral3);

/// A model of these layers with rotations.
pub fn build(b: &mut Builder, style: RopeStyle) -> Result<Decoder> {
    let rope = b.rope_with_factors(style)?;
    stack(b, rope, Extras::default())
}

/// The same with positions of several dimensions.
fn paddleocr(b: &mut Builder) -> Result<Decoder> {
    b.has_sections()?;
    let rope = ContextRope::always(b.rope(RopeStyle::Neox, None));
    stack(b, rope, Extras::default())
}

/// The same with linear biases in place of rotations. How steep they are the files leave unsaid.
fn sloped(b: &mut Builder) -> Result<Decoder> {
    let slopes = b.slopes(USUAL_MAX_BIAS);
    stack(b, ContextRope::always(Rope::none()), Extras { slopes, ..Extras::default() })
}

/// Baichuan's files leave unsaid what positions their model has: it is told by its depth.
fn baichuan(b: &mut Builder) -> Result<Decoder> {
    const N_LAYER: [usize; 2] = [32, 40];
    match b.config.n_layer {
        n if n == N_LAYER[0] => build(b, RopeStyle::Norm),
        n if n == N_LAYER[1] => sloped(b),
        n => {
            let [small, large] = N_LAYER;
            let what = format_args!("{n}, expected {small} or {large}: what positions other models have is not known");
            Err(b.keys.error("block_count", what))
        }
    }
}

fn mistral3(b: &mut Builder) -> Result<Decoder> {
    let (c, keys) = (b.config, b.keys);
    let scale = keys.float("attention.temperature_scale")?.filter(|&s| s != 0.0);
    let temperature = scale.map(|scale| Temperature { scale, n_ctx: c.n_ctx_orig, offset: 0 });
    let log_multiplier = keys.float("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0);
    let magnitude = match c.rope_scaling {
        RopeScaling::Yarn { factor, ext_factor, .. } if ext_factor != 0.0 && factor > 1.0 => {
            1.0 / (1.0 + 0.1 * log_multiplier * factor.ln())
        }
        _ => 1.0,
    };
    let rope = b.magnified_rope_with_factors(RopeStyle::Norm, magnitude)?;
    stack(b, rope, Extras { temperature, ..Extras::default() })
}

/// What only some of the families have in their attention.
#[derive(Default)]
struct Extras {
    temperature: Option<Temperature>,
    slopes: Option<Box<[f32]>>,
}

fn stack(b: &mut Builder, rope: ContextRope, extras: Extras) -> Result<Decoder> {
    b.ignore_window()?;
    let shape = b.shape();
    // Mixtral has the name of Llama. Of the others none has a mixture under the same name.
    let is_mixture = b.config.n_expert > 0 && b.config.arch == LLAMA.arch;
    let is_ungated = b.config.arch == ARCEE.arch;
    let mixture = is_mixture.then(|| b.mixture(b.config.n_ff)).transpose()?;
    let mut layers = Vec::with_capacity(b.config.n_layer);
    for i in 0..b.config.n_layer {
        let (temperature, slopes) = (extras.temperature, extras.slopes.clone());
        let attn = Attention { temperature, slopes, ..b.attention(i, shape, 0, QkNorm::None)? };
        let ffn = match &mixture {
            Some(mixture) => b.experts(i, mixture)?,
            None if is_ungated => b.ungated_feed_forward(i, Act::ReluSquared)?,
            None => b.feed_forward(i, Act::Silu)?,
        };
        layers.push(b.layer(i, attn, ffn)?);
    }
    b.decoder(layers, vec![rope])
}
