//! Lightning attention (arXiv 2401.04658, 2501.08313; MiniMax-01): attention without a softmax, by whose keys and values a head's matrix is added to
//! as they are, and which fades by a rate of the head's own.

use ggml_ext::kernels::float::{FloatKernels, StateRates};

/// A layer's parameters besides those that all recurrent layers have.
pub struct Lightning {
    /// What a token multiplies a head's matrix with, `[n_head]`.
    pub decay: Box<[f32]>,
    /// RMSNorm on the results of all heads together, `[n_values]`.
    pub norm: Box<[f32]>,
    /// Its epsilon.
    pub eps: f32,
}

impl Lightning {
    /// What a token does to head `h`.
    pub(super) fn rates(&self, h: usize) -> StateRates {
        StateRates { decay: self.decay[h], step: 1.0 }
    }

    /// Normalises what a token has read, and multiplies it with its gates.
    pub(super) fn finish(&self, f: &FloatKernels, row: &mut [f32], gates: &[f32]) {
        f.rms_norm_in_place(row, &self.norm, self.eps);
        f.sigmoid_mul(gates, row);
    }
}
