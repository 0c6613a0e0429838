//! MiniMax-01 (arXiv 2501.08313): seven layers of eight have lightning attention, the eighth attention; mixtures of experts; the halves of a layer add
//! to what the norms before them make of the residual stream.

use super::Family;
use super::builder::{Builder, QkNorm};
use super::config::{Keys, MAX_HEAD_DIM, MAX_WIDTH};
use super::decoder::{ContextRope, Decoder, Layer, Mixer};
use crate::Result;
use crate::attention::{Lightning, Recurrence, RecurrentShape, RopeStyle, Rule};

/// The registry row.
pub const FAMILY: Family = Family::new("minimax-01", build).with_states(n_state);

fn build(b: &mut Builder) -> Result<Decoder> {
    const RESIDUAL: &str = "residual_scale";
    let (c, keys) = (b.config, b.keys);
    let (mixture, shape) = (b.mixture(c.n_ff)?, b.shape());
    let kept = keys.float(RESIDUAL)?.ok_or_else(|| keys.error(RESIDUAL, "is missing"))?;
    let rope = ContextRope::always(b.rope(RopeStyle::Neox, None));
    let mut layers = Vec::with_capacity(c.n_layer);
    for (i, recurrent) in keys.recurrent_layers(c.n_layer)?.into_iter().enumerate() {
        let mixer: Mixer = match recurrent {
            true => lightning(b, i)?.into(),
            false => b.attention(i, shape, 0, QkNorm::None)?.into(),
        };
        let ffn = b.experts(i, &mixture)?;
        layers.push(Layer { keeps_normed: Some(kept), ..b.layer(i, mixer, ffn)? });
    }
    b.decoder(layers, vec![rope])
}

fn n_state(keys: &Keys, n_layer: usize) -> Result<usize> {
    let n = keys.recurrent_layers(n_layer)?.into_iter().filter(|&recurrent| recurrent).count();
    let n_head = keys.required("attention.head_count", MAX_WIDTH)?;
    let head_dim = match keys.uniform("attention.key_length")? {
        Some(n) => n.min(MAX_HEAD_DIM),
        None => keys.required("embedding_length", MAX_WIDTH)? / n_head,
    };
    Ok(n.saturating_mul(heads(n_head, head_dim).n_state()))
}

/// The heads of lightning attention, in whose place nothing goes over several positions.
fn heads(n_head: usize, head_dim: usize) -> RecurrentShape {
    RecurrentShape {
        n_head,
        n_head_k: n_head,
        head_dim_k: head_dim,
        head_dim_v: head_dim,
        n_filter: 1,
        in_groups: true,
        values_first: false,
    }
}

/// Layer `i` with lightning attention, whose queries, keys and values lie head by head in one matrix.
///
/// # Errors
/// Names the tensor that is missing or wrong; where the sharing plan wants attention of the layer.
fn lightning(b: &mut Builder, i: usize) -> Result<Recurrence> {
    b.has_no_attention(i)?;
    let (c, l, name) = (b.config, &mut *b.loader, |part: &str| format!("blk.{i}.attn_{part}"));
    let (n_head, dim) = (c.n_head, c.head_dim_k);
    let (shape, n) = (heads(n_head, dim), n_head * dim);
    let rows: Vec<_> =
        (0..3).flat_map(|part| (0..n_head).map(move |h| (3 * h + part) * dim..(3 * h + part + 1) * dim)).collect();
    let rule =
        Lightning { decay: decays(n_head, i, c.n_layer), norm: l.vector(&name("norm_2.weight"), n)?, eps: c.norm_eps };
    Ok(Recurrence {
        shape,
        mixed: [l.linear_parts(&name("qkv"), 3 * n, c.n_embd, &rows)?].into(),
        gate: l.linear(&name("gate"), n, c.n_embd)?,
        filter: vec![1.0; 3 * n].into(),
        filter_bias: None,
        rule: Rule::Lightning(rule),
        out: l.linear(&name("output"), c.n_embd, n)?,
    })
}

/// What a token multiplies the matrices of `n_head` heads with, in layer `i` of `n_layer`: in each head, and in later layers, less is forgotten.
fn decays(n_head: usize, i: usize, n_layer: usize) -> Box<[f32]> {
    let first = (-(3.0 - (n_head as f32).log2()).exp2()).exp2();
    // Of a single layer, which no model has, as of the first.
    let of_layer = 1.0 - i as f64 / (n_layer - 1).max(1) as f64 + 1e-5;
    (0..n_head).map(|h| (-first * first.powi(h as i32) * of_layer as f32).exp()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_layer_forgets_almost_nothing() {
        let logarithms = |i| decays(8, i, 5).iter().map(|d| d.ln()).collect::<Vec<_>>();
        for (i, share) in [(0, 1.0), (1, 0.75), (4, 0.0)] {
            for (h, log) in logarithms(i).into_iter().enumerate() {
                let slope = 0.5f32.powi(h as i32 + 1);
                assert!((log + slope * (share + 1e-5)).abs() < 1e-6, "layer {i}, head {h}: {log}");
            }
        }
    }
}
