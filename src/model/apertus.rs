//! Apertus (arXiv 2509.14233): norms on every query and key head, and networks without gates whose activation, xIELU, has numbers of its own in
//! every layer.

use super::Family;
use super::builder::{Builder, QkNorm};
use super::decoder::Decoder;
use crate::Result;
use crate::attention::RopeStyle;
use crate::compute::{Act, Xielu};

/// The registry row.
pub const FAMILY: Family = Family::new("apertus", build);

fn build(b: &mut Builder) -> Result<Decoder> {
    b.ignore_window()?;
    let shape = b.shape();
    let rope = b.rope_with_factors(RopeStyle::Neox)?;
    let acts = activations(b)?;
    let mut layers = Vec::with_capacity(b.config.n_layer);
    for (i, act) in acts.into_iter().enumerate() {
        let attn = b.attention(i, shape, 0, QkNorm::Heads)?;
        let ffn = b.ungated_feed_forward(i, act)?;
        layers.push(b.layer(i, attn, ffn)?);
    }
    b.decoder(layers, vec![rope])
}

/// That of every layer. Of its numbers two are stored as what a softplus makes them of.
fn activations(b: &Builder) -> Result<Vec<Act>> {
    let n_layer = b.config.n_layer;
    let numbers = |name: &str| b.keys.common_floats(&format!("xielu.{name}"), n_layer);
    let (alpha_n, alpha_p, beta, eps) = (numbers("alpha_n")?, numbers("alpha_p")?, numbers("beta")?, numbers("eps")?);
    // Without overflow for large numbers.
    let softplus = |x: f32| x.max(0.0) + (-x.abs()).exp().ln_1p();
    let of_layer = |i: usize| {
        let (beta, eps) = (beta[i], eps[i]);
        Act::Xielu(Xielu { alpha_n: beta + softplus(alpha_n[i]), alpha_p: softplus(alpha_p[i]), beta, eps })
    };
    Ok((0..n_layer).map(of_layer).collect())
}
