//! LISA (arXiv 2408.01890): a layer's scores from an earlier layer's attention weights. A tiny feed-forward network over
//! the head axis re-arranges the source's heads, and low-rank queries and keys supply the difference:
//!
//! ```text
//! a[g] = sum_h L[h] skip[h,g] + sum_m act(sum_h L[h] up[h,m] + bias[m]) down[m,g]        for every pair (query, key)
//! S[g] = a[g] + scale * q[g] . k[c(g)]
//! ```
//!
//! with `L` the logarithm of the source's weights (or the weights themselves). See `ggml-ext/SPEC.md`.

use std::f32::consts::{LN_2, LOG2_E};
use std::ops::Range;

use ggml_ext::kernels::Kernels;
use ggml_ext::kernels::float::{HeadNet, Rows, RowsMut, UNIT_FLOATS, UnitAct};
use ggml_ext::lisa::{Activation, Domain};

use super::attend::LONGEST_BLOCK;
use super::keys::Products;
use super::kv_cache::LayerCache;
use super::{AttentionShape, Holds};
use crate::compute::{Floats, Linear};

/// The parameters of a `lisa` layer's attention weights. Matrices of the network lie as in the file: one row per operand.
pub struct LisaAttention {
    /// `[n_head, n_head]`: row h, column g.
    pub skip: Box<[f32]>,
    /// The hidden units, where there are any.
    pub hidden: Option<Hidden>,
    /// What `skip` and `hidden` see.
    pub domain: Domain,
    /// The low-rank part, where there is one.
    pub low_rank: Option<LowRank>,
    /// Factor on the low-rank products.
    pub scale: f32,
}

/// Hidden units of the alignment network, in the kernel's terms.
pub struct Hidden {
    /// `[n_head, n_hidden]`: row h, column m.
    up: Box<[f32]>,
    /// `[n_hidden]`
    bias: Box<[f32]>,
    /// `[n_hidden, n_head]`: row m, column g.
    down: Box<[f32]>,
    act: UnitAct,
}

impl Hidden {
    /// Units with weights `up` `[n_head, n_hidden]` and `bias` `[n_hidden]`, whose `activation` goes to the heads by `down`
    /// `[n_hidden, n_head]`.
    pub fn new(mut up: Box<[f32]>, mut bias: Box<[f32]>, mut down: Box<[f32]>, activation: Activation) -> Self {
        let act = match activation {
            Activation::Relu => UnitAct::Relu,
            Activation::Gelu => UnitAct::Gelu,
            Activation::Silu => {
                up.iter_mut().chain(&mut bias).for_each(|w| *w *= -LOG2_E);
                down.iter_mut().for_each(|w| *w *= -LN_2);
                UnitAct::Silu2
            }
        };
        Self { up, bias, down, act }
    }
}

/// Low-rank queries and keys.
pub struct LowRank {
    /// `[n_head * rank, n_embd]`
    pub q: Linear,
    /// `[n_head_kv * rank, n_embd]`
    pub k: Linear,
    /// `[n_head_kv, rank / 2]`, radians per position.
    pub freq: Box<[f32]>,
    /// Values per head.
    pub rank: usize,
}

/// One member's work space for the alignment.
pub(super) struct LisaScratch {
    weights: Floats,
    bias: Floats,
    units: Floats,
}

impl LisaScratch {
    pub(super) fn new(n_head: usize, n_hidden: usize) -> Self {
        Self {
            weights: Floats::new(n_head * LONGEST_BLOCK),
            bias: Floats::new(n_hidden),
            units: Floats::new(n_hidden * UNIT_FLOATS),
        }
    }
}

impl LowRank {
    /// Turns the key of key/value head `c` and the `queries` of its group to position `pos`.
    pub fn rotate(&self, kernels: &Kernels, c: usize, pos: usize, queries: &mut [f32], key: &mut [f32]) {
        const PAIRS: usize = 64;
        let freq = &self.freq[c * self.rank / 2..(c + 1) * self.rank / 2];
        let (mut cos, mut sin) = ([0f32; PAIRS], [0f32; PAIRS]);
        for (i, freq) in freq.chunks(PAIRS).enumerate() {
            for ((c, s), &f) in cos.iter_mut().zip(&mut sin).zip(freq) {
                // In f64, as for all positions.
                let (sine, cosine) = (pos as f64 * f64::from(f)).sin_cos();
                (*c, *s) = (cosine as f32, sine as f32);
            }
            for head in queries.chunks_exact_mut(self.rank).chain([&mut *key]) {
                let part = &mut head[2 * i * PAIRS..2 * (i * PAIRS + freq.len())];
                kernels.float.rope_norm(part, &cos[..freq.len()], &sin[..freq.len()]);
            }
        }
    }
}

impl LisaAttention {
    /// Values per low-rank head, 0 without a low-rank part.
    pub fn rank(&self) -> usize {
        self.low_rank.as_ref().map_or(0, |l| l.rank)
    }

    /// Hidden units.
    pub fn n_hidden(&self) -> usize {
        self.hidden.as_ref().map_or(0, |h| h.bias.len())
    }

    /// Puts the re-arranged heads of one query into `into`: rows of all heads, as `source`, the source's scores or weights with
    /// their log-sum-exp. `ahead` is what is read next.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn align(
        &self,
        kernels: &Kernels,
        source: Rows<f32>,
        lse: &[f32],
        holds: Holds,
        ahead: [Rows<u8>; 2],
        scratch: &mut LisaScratch,
        into: RowsMut<f32>,
    ) {
        let (float, n_head, n) = (&kernels.float, source.n_rows(), source.len());
        // In the domain of logarithms L = score - lse: what `lse` contributes is the same for all keys of a query. In
        // `skip` the softmax cancels it; the units take it with their bias.
        let source = match (self.domain, holds) {
            (Domain::Log, Holds::Scores) | (Domain::Weight, Holds::Weights) => source,
            (Domain::Weight, Holds::Scores) => {
                for (h, row) in scratch.weights.chunks_exact_mut(n).take(n_head).enumerate() {
                    row.copy_from_slice(source.row(h));
                    float.exp_sub_sum(row, lse[h]);
                }
                Rows::new(&scratch.weights, n_head, n, n)
            }
            (Domain::Log, Holds::Weights) => unreachable!("scores are kept while a layer needs them"),
        };
        let Some(hidden) = &self.hidden else {
            let net = HeadNet { skip: &self.skip, up: &[], bias: &[], down: &[], act: UnitAct::Relu, ahead };
            return float.align_heads(&net, source, &mut [], into);
        };
        let bias = &mut scratch.bias[..hidden.bias.len()];
        bias.copy_from_slice(&hidden.bias);
        if self.domain == Domain::Log {
            for (up, &lse) in hidden.up.chunks_exact(bias.len()).zip(lse) {
                float.axpy(-lse, up, bias);
            }
        }
        let Hidden { up, down, act, .. } = hidden;
        let net = HeadNet { skip: &self.skip, up, bias, down, act: *act, ahead };
        float.align_heads(&net, source, &mut scratch.units, into);
    }

    /// Adds the low-rank scores of all heads for keys `block` to `scores`, rows by head and token, `stride` apart; `q` holds the
    /// low-rank queries in the same order, scaled; `wide` is work space.
    ///
    /// # Safety
    /// Nobody writes the low-rank keys before the next barrier.
    #[allow(clippy::too_many_arguments)]
    pub(super) unsafe fn add_low_rank(
        &self,
        kernels: &Kernels,
        shape: &AttentionShape,
        q: &[f32],
        keys: &LayerCache,
        n_tokens: usize,
        block: Range<usize>,
        scores: &mut [f32],
        stride: usize,
        wide: &mut [f32],
    ) {
        let Some(LowRank { rank, .. }) = self.low_rank else { return };
        let (rows, keys) = (shape.group() * n_tokens, keys.low_rank());
        for c in 0..shape.n_head_kv {
            let q = Rows::new(&q[c * rows * rank..], rows, rank, rank);
            let into = &mut scores[c * rows * stride..(c + 1) * rows * stride];
            // SAFETY: passed on to the caller.
            unsafe { keys.scores(kernels, c, block.clone(), q, Products::Added, into, stride, wide) };
        }
    }
}
