//! DeepSeek-V2 (arXiv 2405.04434), V3 and R1, and others of their shape, such as Moonlight, GLM-4.7-Flash and Mistral 4, whose files have a name of
//! their own: multi-head latent attention, and after a few layers without them mixtures of experts.

use ggml_ext::lisa::Kind;

use super::Family;
use super::builder::Builder;
use super::config::{MAX_HEAD_DIM, MAX_WIDTH};
use super::decoder::{Attention, ContextRope, Decoder, QueryKey, Scores};
use super::latent::{Latent, LatentHeads};
use super::mixtures::mixture;
use crate::Result;
use crate::attention::{AttentionShape, Rope, RopeScaling, RopeStyle, Temperature};
use crate::compute::{Act, Gating, Linear, Norm};

/// The registry row.
pub const FAMILY: Family = Family::new("deepseek2", build);
/// The registry row of Mistral 4.
pub const MISTRAL4: Family = Family { arch: "mistral4", ..FAMILY };

/// Sizes of attention, all of them of one head.
pub struct Sizes {
    /// Values of a latent.
    rank: usize,
    /// Values of a query that do not rotate, and of those that do.
    n_plain: usize,
    n_rot: usize,
    /// Values of what a head makes.
    n_value: usize,
    /// Whether latents are cached, and not what heads make of them.
    absorbed: bool,
}

impl Sizes {
    /// Those of a query of `n_query` values, of which some rotate.
    fn of_query(b: &Builder, n_query: usize, n_value: usize, absorbed: bool) -> Result<Self> {
        let n_rot = b.config.n_rot;
        let rank = b.keys.required("attention.kv_lora_rank", MAX_HEAD_DIM)?;
        match n_query.checked_sub(n_rot).filter(|&n| n > 0) {
            Some(n_plain) => Ok(Self { rank, n_plain, n_rot, n_value, absorbed }),
            None => {
                let what = format_args!("{n_rot}, expected less than the {n_query} values of a query");
                Err(b.keys.error("rope.dimension_count", what))
            }
        }
    }

    /// Values of a query.
    pub fn n_query(&self) -> usize {
        self.n_plain + self.n_rot
    }

    /// The shape of attention whose heads are as `shape` has them where latents are not cached.
    pub fn shape(&self, shape: AttentionShape) -> AttentionShape {
        match self.absorbed {
            true => AttentionShape { head_dim_k: self.rank + self.n_rot, head_dim_v: self.rank, ..shape },
            false => shape,
        }
    }
}

fn build(b: &mut Builder) -> Result<Decoder> {
    b.ignore_window()?;
    let (c, keys) = (b.config, b.keys);
    let sizes = sizes(b)?;
    let (scale, magnitude) = yarn(b, sizes.n_query())?;
    let shape = sizes.shape(AttentionShape { scale, ..b.shape() });
    let rope = Rope::new(RopeStyle::Norm, c.n_rot, c.rope_base, &c.rope_scaling, None, c.rope_magnitude * magnitude);
    let rope = rope.turning_from(shape.head_dim_k - sizes.n_rot);
    let temperature = match keys.float("attention.temperature_scale")?.filter(|&s| s != 0.0) {
        Some(scale) => {
            let n_ctx = keys.required("attention.temperature_length", MAX_WIDTH)?;
            Some(Temperature { scale, n_ctx, offset: 0 })
        }
        None => None,
    };
    let n_dense = keys.count("leading_dense_block_count")?.unwrap_or(0);
    // Files of GLM-4.7-Flash may leave it unsaid; it is told by its size.
    let is_glm = matches!(c.n_layer, 47 | 48) && b.n_vocab == 154_880;
    let gating = if is_glm { Gating::Sigmoid } else { Gating::Softmax };
    let mixture = (n_dense < c.n_layer).then(|| mixture(b, gating, false)).transpose()?;
    let mut layers = Vec::with_capacity(c.n_layer);
    for i in 0..c.n_layer {
        let attn = Attention { temperature, ..attention(b, i, &sizes, shape)? };
        let ffn = match &mixture {
            Some(mixture) if i >= n_dense => b.experts(i, mixture)?,
            _ => b.dense_feed_forward(i, Act::Silu)?,
        };
        layers.push(b.layer(i, attn, ffn)?);
    }
    b.decoder(layers, vec![ContextRope::always(rope)])
}

/// The sizes that a file's keys give.
pub fn sizes(b: &Builder) -> Result<Sizes> {
    let (c, keys) = (b.config, b.keys);
    let expect = |key: &str, found: usize, expected: usize| match found == expected {
        true => Ok(()),
        false => Err(keys.error(key, format_args!("{found}, expected {expected}"))),
    };
    if keys.count("attention.key_length_mla")?.is_none() {
        expect("attention.head_count_kv", c.n_head_kv, c.n_head)?;
        return Sizes::of_query(b, c.head_dim_k, c.head_dim_v, false);
    }
    let sizes = absorbed_sizes(b)?;
    expect("attention.head_count_kv", c.n_head_kv, 1)?;
    expect("attention.key_length", c.head_dim_k, sizes.rank + sizes.n_rot)?;
    expect("attention.value_length", c.head_dim_v, sizes.rank)?;
    Ok(sizes)
}

/// The sizes that the keys of a file give whose latents are cached.
pub fn absorbed_sizes(b: &Builder) -> Result<Sizes> {
    let of_head = |key: &str| b.keys.required(key, MAX_HEAD_DIM);
    Sizes::of_query(b, of_head("attention.key_length_mla")?, of_head("attention.value_length_mla")?, true)
}

/// The factor on scores of queries and keys of `n_key` values, and one on their rotation's magnitude. Where YaRN stretches the context these
/// models sharpen attention by `yarn_log_multiplier` in place of that magnitude; how the two go together is llama.cpp's.
fn yarn(b: &Builder, n_key: usize) -> Result<(f32, f32)> {
    let c = b.config;
    // Files have a tenth of what the models' own configurations say.
    let multiplier = b.keys.float("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0) / 0.1;
    let (factor, extrapolates) = match c.rope_scaling {
        RopeScaling::Linear { factor } => (factor, false),
        RopeScaling::Yarn { factor, ext_factor, .. } => (factor, ext_factor != 0.0),
        RopeScaling::None | RopeScaling::Llama3 { .. } => (1.0, false),
    };
    let growth = 1.0 + 0.1 * factor.ln();
    let replaces = extrapolates && (multiplier != 0.0 || factor <= 1.0);
    let (magnitude, sharpening) = if replaces { (1.0 / growth, 1.0) } else { (1.0, growth) };
    let sharpening = c.rope_magnitude * sharpening * (1.0 + 0.1 * multiplier * factor.ln());
    Ok((sharpening * sharpening / (n_key as f32).sqrt(), magnitude))
}

/// The attention half of layer `i`.
pub fn attention(b: &mut Builder, i: usize, sizes: &Sizes, shape: AttentionShape) -> Result<Attention> {
    let kind = b.sharing.plan.get(i).map_or(Kind::Full, |s| s.kind);
    if kind != Kind::Full && !sizes.absorbed {
        let what = "the older form of these files, with attn_kv_b, cannot share attention";
        return Err(b.loader.error(format_args!("layer {i} ({kind}): {what}")));
    }
    let Sizes { rank, n_plain, n_rot, n_value, .. } = *sizes;
    let heads = heads(b, i, kind, sizes, shape.n_head)?;
    let mut latent = Latent { rank, n_rot, q: None, norm: None, heads };
    let norm = (kind != Kind::Kv).then(|| b.loader.vector(&format!("blk.{i}.attn_kv_a_norm.weight"), rank));
    let mut norm = norm.transpose()?;
    let n_query = shape.n_head * (n_plain + n_rot);
    let (scores, v) = match kind {
        Kind::Full => {
            let (q, second) = queries(b, i, n_query)?;
            (latent.q, latent.norm) = (second, norm.take());
            let k = QueryKey { linear: latents(b, i, sizes, rank + n_rot)?, norm: None };
            (Scores::Own { q, k }, None)
        }
        Kind::Kv => {
            let (q, second) = queries(b, i, n_query)?;
            latent.q = second;
            (Scores::Queries { q, owner: b.sharing.plan.kv_owner(i) }, None)
        }
        Kind::Shared => (Scores::Shared, Some(latents(b, i, sizes, rank)?)),
        Kind::Lisa => (Scores::Lisa(b.lisa(i, &shape)?), Some(latents(b, i, sizes, rank)?)),
    };
    let attn = b.attention_from(i, shape, 0, kind, scores, v, shape.n_head * n_value)?;
    // A latent that serves as a value alone is normalised as one.
    Ok(Attention { v_norm: norm, latent: Some(latent), ..attn })
}

/// What heads of layer `i` have of their own.
fn heads(b: &mut Builder, i: usize, kind: Kind, sizes: &Sizes, n_head: usize) -> Result<LatentHeads> {
    let (&Sizes { rank, n_plain, n_value, .. }, l) = (sizes, &mut *b.loader);
    if !sizes.absorbed {
        let linear = l.linear(&format!("blk.{i}.attn_kv_b"), n_head * (n_plain + n_value), rank)?;
        return Ok(LatentHeads::Made(linear));
    }
    let mut stack = |name: &str, rows, cols| l.stack(&format!("blk.{i}.attn_{name}"), n_head, rows, cols);
    let k = matches!(kind, Kind::Full | Kind::Kv).then(|| stack("k_b", rank, n_plain)).transpose()?;
    Ok(LatentHeads::Absorbed { k, v: stack("v_b", n_value, rank)? })
}

/// The projection that makes `n` values of queries; or the first of two, with the second and the norm before it.
fn queries(b: &mut Builder, i: usize, n: usize) -> Result<(QueryKey, Option<(Norm, Linear)>)> {
    let (n_embd, l, name) = (b.config.n_embd, &mut *b.loader, |part: &str| format!("blk.{i}.attn_{part}"));
    if !l.has(&name("q_a.weight")) {
        return Ok((QueryKey { linear: l.linear(&name("q"), n, n_embd)?, norm: None }, None));
    }
    let rank = b.keys.required("attention.q_lora_rank", MAX_WIDTH)?;
    let norm = Norm::rms(l.vector(&name("q_a_norm.weight"), rank)?);
    let first = QueryKey { linear: l.linear(&name("q_a"), rank, n_embd)?, norm: None };
    Ok((first, Some((norm, l.linear(&name("q_b"), n, rank)?))))
}

/// The first `n` values of what makes latents and what rotates.
fn latents(b: &mut Builder, i: usize, sizes: &Sizes, n: usize) -> Result<Linear> {
    b.loader.linear_rows(&format!("blk.{i}.attn_kv_a_mqa"), sizes.rank + sizes.n_rot, b.config.n_embd, 0..n)
}
