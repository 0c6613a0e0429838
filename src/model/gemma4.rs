//! Gemma 4: norms before and after each half of a layer and on queries, keys and values, GeGLU, scaled
//! embeddings, and layers that alternate between a sliding window and the whole context, with heads of different sizes. The small models
//! give every layer inputs of its own, and let the last layers take keys and values of the last ones before them that have any. The model
//! with experts has them beside each layer's network, with norms of their own.

use super::builder::{Builder, Mixture, QkNorm};
use super::config::{Keys, MAX_HEAD_DIM};
use super::decoder::{Attention, ContextRope, Decoder, ExpertNorms, Experts, FeedForward, Ffn, Layer, SharedExpert};
use super::{Family, Windows};
use crate::Result;
use crate::attention::{AttentionShape, Rope, RopeStyle};
use crate::compute::{Act, Norm};

/// The registry row.
pub const FAMILY: Family = Family::new("gemma4", build).with_windows(windows).with_varying_layers();

/// What files that do not say otherwise have.
const LOGIT_CAP: f32 = 30.0;

const GLOBAL: usize = 0;
const LOCAL: usize = 1;

fn windows(keys: &Keys, n_layer: usize) -> Result<Windows> {
    keys.alternating_windows(n_layer, None, 6)
}

/// The heads of layers that see the whole context, and of those with a window; of how many of their values rotate.
struct Heads {
    shapes: [AttentionShape; 2],
    n_rot: [usize; 2],
}

fn heads(b: &Builder) -> Result<Heads> {
    let (c, keys) = (b.config, b.keys);
    let global = AttentionShape { scale: 1.0, ..b.shape() };
    let length = |key: &str, global: usize| match keys.width(key)? {
        Some(n) if n > MAX_HEAD_DIM => {
            Err(keys.error(key, format_args!("head size {n} is above the {MAX_HEAD_DIM} supported")))
        }
        n => Ok(n.unwrap_or(global)),
    };
    let head_dim_k = length("attention.key_length_swa", global.head_dim_k)?;
    let head_dim_v = length("attention.value_length_swa", global.head_dim_v)?;
    const N_ROT: &str = "rope.dimension_count_swa";
    let n_rot = keys.count(N_ROT)?.unwrap_or(c.n_rot.min(head_dim_k));
    keys.check_rotating(N_ROT, n_rot, head_dim_k)?;
    Ok(Heads { shapes: [global, AttentionShape { head_dim_k, head_dim_v, ..global }], n_rot: [c.n_rot, n_rot] })
}

fn build(b: &mut Builder) -> Result<Decoder> {
    b.keys_make_values = true;
    let (c, keys) = (b.config, b.keys);
    let mixture = (c.n_expert > 0).then(|| mixture(b)).transpose()?;
    let Heads { shapes, n_rot } = heads(b)?;
    let freqs = b.loader.optional_vector("rope_freqs.weight", n_rot[GLOBAL] / 2)?;
    let bases = [c.rope_base, keys.positive("rope.freq_base_swa")?.unwrap_or(c.rope_base)];
    let rope = |i: usize, divisors| {
        let rope = Rope::new(RopeStyle::Neox, n_rot[i], bases[i], &c.rope_scaling, divisors, c.rope_magnitude);
        ContextRope::always(rope)
    };
    let ropes = vec![rope(GLOBAL, freqs.as_deref()), rope(LOCAL, None)];

    let windows = windows(keys, c.n_layer)?;
    let n_head_kv = keys.per_layer("attention.head_count_kv", c.n_layer)?.unwrap_or(vec![c.n_head; c.n_layer]);
    let n_ff = keys.per_layer("feed_forward_length", c.n_layer)?.unwrap_or(vec![c.n_ff; c.n_layer]);
    let width = keys.width("embedding_length_per_layer_input")?;
    let n_owners = n_owners(b, &windows)?;
    let side = width.map(|n| b.side_inputs(n)).transpose()?;
    let mut layers = Vec::with_capacity(c.n_layer);
    for (i, window) in windows.iter().copied().enumerate() {
        let which = if window.is_some() { LOCAL } else { GLOBAL };
        let n_head_kv = n_head_kv[i];
        keys.check_heads(n_head_kv, c.n_head, Some(i))?;
        let shape = AttentionShape { window, n_head_kv, ..shapes[which] };
        let attn = match i.checked_sub(n_owners) {
            None => own_attention(b, i, shape, which)?,
            Some(_) => {
                let owner = (0..n_owners).rfind(|&o| windows[o] == window).expect("checked above");
                b.attention_to(i, owner, shape, which, QkNorm::Heads)?
            }
        };
        let network = b.network(i, "", n_ff[i], Act::Gelu)?;
        let ffn = match mixture.as_ref().filter(|_| b.has_experts(i)) {
            Some(mixture) => Ffn::Experts(Box::new(experts(b, i, mixture, network)?)),
            None => Ffn::One(Box::new(network)),
        };
        let layer = b.sandwiched_layer(i, attn, ffn)?;
        let scale = b.loader.optional_vector(&format!("blk.{i}.layer_output_scale.weight"), 1)?;
        let side = width.map(|n| b.side_network(i, n)).transpose()?;
        layers.push(Layer { side, scale: scale.map_or(1.0, |s| s[0]), ..layer });
    }
    let mut decoder = b.decoder(layers, ropes)?;
    decoder.side = side;
    decoder.embed_scale = (c.n_embd as f32).sqrt();
    decoder.logit_softcap = Some(keys.positive("final_logit_softcapping")?.unwrap_or(LOGIT_CAP));
    Ok(decoder)
}

fn mixture(b: &Builder) -> Result<Mixture> {
    let n_ff = b.keys.width("expert_feed_forward_length")?.unwrap_or(b.config.n_ff);
    Ok(Mixture { act: Act::Gelu, ..b.mixture(n_ff)? })
}

/// The experts of layer `i` beside its `network`.
fn experts(b: &mut Builder, i: usize, mixture: &Mixture, network: FeedForward) -> Result<Experts> {
    let n_embd = b.config.n_embd;
    let mut vector = |name: &str| b.loader.vector(&format!("blk.{i}.{name}"), n_embd);
    let mut router = Norm::rms(vector("ffn_gate_inp.scale")?);
    router.scale(1.0 / (n_embd as f32).sqrt());
    let norms = ExpertNorms {
        router,
        experts: Norm::rms(vector("pre_ffw_norm_2.weight")?),
        result: vector("post_ffw_norm_2.weight")?,
        shared: vector("post_ffw_norm_1.weight")?,
    };
    let shared = Some(SharedExpert { network, gate: None });
    Ok(Experts { shared, norms: Some(norms), ..b.bare_experts(i, mixture)? })
}

/// How many layers, the last ones, have none.
pub(super) const SHARED: &str = "attention.shared_kv_layers";

/// How many layers, the first ones, have keys and values of their own.
pub(super) fn n_owners(b: &Builder, windows: &Windows) -> Result<usize> {
    let (n_layer, n_shared) = (windows.len(), b.keys.count(SHARED)?.unwrap_or(0));
    let n_owners = n_layer.saturating_sub(n_shared);
    // The last two layers with keys of their own serve those after them.
    let has_owner = |&window: &Option<usize>| n_owners >= 2 && windows[n_owners - 2..n_owners].contains(&window);
    match n_shared == 0 || windows[n_owners..].iter().all(has_owner) {
        true => Ok(n_owners),
        false => {
            let what = format_args!(
                "{n_shared}: one of these finds none of its kind, with a window or without, in the two layers before"
            );
            Err(b.keys.error(SHARED, what))
        }
    }
}

/// The attention half of layer `i` with keys and values of its own, and norms on all heads of these.
pub(super) fn own_attention(b: &mut Builder, i: usize, shape: AttentionShape, rope: usize) -> Result<Attention> {
    let has_values =
        b.loader.has(&format!("blk.{i}.attn_v.weight")) || b.loader.has(&format!("blk.{i}.attn_qkv.weight"));
    if let Some(share) = b.sharing.plan.get(i).filter(|_| !has_values) {
        let what = format_args!("layer {i} ({}): its keys' projection makes its values too", share.kind);
        return Err(b.loader.error(what));
    }
    let attn = b.attention(i, shape, rope, QkNorm::Heads)?;
    let v_norm = attn.v.as_ref().map(|_| vec![1.0; shape.head_dim_v].into());
    Ok(Attention { v_norm, ..attn })
}
