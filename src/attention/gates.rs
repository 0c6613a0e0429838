//! Gates on what attention gives: a factor for each value of a head's result (Qwen3-Next, arXiv 2505.06708), or one for all values of a head.

use ggml_ext::kernels::Kernels;

use super::recurrence::softplus;
use crate::compute::{SharedBuf, sigmoid};

/// What makes factors of gates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateCurve {
    /// `1 / (1 + e^-gate)`.
    Sigmoid,
    /// `ln(1 + e^gate)`.
    Softplus,
}

/// The gates of a step's queries.
#[derive(Clone, Copy)]
pub struct Gates<'a> {
    /// Rows of `n`.
    pub values: &'a SharedBuf<f32>,
    /// One for each value of all heads, or one for each head.
    pub n: usize,
    /// What makes factors of them.
    pub curve: GateCurve,
}

impl Gates<'_> {
    /// Multiplies the results of query `t`, of all heads, with their factors. Makes no sense of its gates afterwards.
    ///
    /// # Safety
    /// No other member touches the query's gates in this phase.
    pub unsafe fn apply(&self, kernels: &Kernels, t: usize, results: &mut [f32]) {
        // SAFETY: passed on to the caller.
        let gates = unsafe { self.values.get_mut(t * self.n..(t + 1) * self.n) };
        let float = &kernels.float;
        match self.curve {
            _ if self.n < results.len() => {
                let factor = if self.curve == GateCurve::Sigmoid { sigmoid } else { softplus };
                let heads = results.chunks_exact_mut(results.len() / self.n);
                heads.zip(gates).for_each(|(head, gate)| float.scale(head, factor(*gate)));
            }
            GateCurve::Sigmoid => float.sigmoid_mul(gates, results),
            GateCurve::Softplus => {
                float.softplus(gates);
                float.mul_assign(results, gates);
            }
        }
    }
}
