//! The gated delta rule (arXiv 2412.06464; Qwen3-Next, Qwen3.5): a token fades a head's matrix, and corrects what it has for the token's key.

use ggml_ext::kernels::float::{FloatKernels, StateRates};

use super::recurrence::softplus;
use crate::compute::{Linear, sigmoid};

/// A layer's parameters besides those that all recurrent layers have.
pub struct DeltaRule {
    /// Makes what decides how fast a head forgets: a number for each.
    pub alpha: Linear,
    /// Makes what decides how far a head goes to what is new: a number for each.
    pub beta: Linear,
    /// Added to what `alpha` makes.
    pub alpha_bias: Box<[f32]>,
    /// What the logarithm of a head's decay is, relative to a softplus of that: negative.
    pub decay: Box<[f32]>,
    /// RMSNorm on every head's results, `[head_dim_v]`.
    pub norm: Box<[f32]>,
    /// Its epsilon, and that of the normalisation of queries and keys.
    pub eps: f32,
}

impl DeltaRule {
    /// What a token does to head `h`.
    pub(super) fn rates(&self, h: usize, alpha: f32, beta: f32) -> StateRates {
        StateRates { decay: (self.decay[h] * softplus(alpha + self.alpha_bias[h])).exp(), step: sigmoid(beta) }
    }

    /// Gives the head of a query or a key its length: 1, of a query divided by the square root of its dimension.
    pub(super) fn normalise(&self, f: &FloatKernels, head: &mut [f32], is_query: bool) {
        unit_length(f, head, is_query, self.eps);
    }

    /// Normalises what a token has read head by head, and multiplies it with its gates.
    pub(super) fn finish(&self, f: &FloatKernels, row: &mut [f32], gates: &[f32]) {
        row.chunks_exact_mut(self.norm.len()).for_each(|head| f.rms_norm_in_place(head, &self.norm, self.eps));
        f.mul_assign(row, gates);
    }
}

/// Gives the head of a query or a key the length 1, of a query divided by the square root of its dimension.
pub(super) fn unit_length(f: &FloatKernels, head: &mut [f32], is_query: bool, eps: f32) {
    let length = (f.dot(head, head) + eps).sqrt();
    let scale = if is_query { (head.len() as f32).sqrt() } else { 1.0 };
    f.scale(head, 1.0 / (length * scale));
}
