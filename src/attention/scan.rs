//! The selective scan of Mamba-2 (arXiv 2405.21060, section 7; Granite 4, Falcon-H1, Nemotron-H): a token fades a head's matrix and adds to it, both by
//! a step of its own.

use ggml_ext::kernels::float::{FloatKernels, StateRates};

use super::recurrence::softplus;
use crate::compute::Linear;

/// A layer's parameters besides those that all recurrent layers have.
pub struct SelectiveScan {
    /// Makes the steps (`dt`): a number for each head.
    pub step: Linear,
    /// Added to what `step` makes, `[n_head]`.
    pub step_bias: Box<[f32]>,
    /// What the logarithm of a head's decay is, relative to its step (`A`): negative, `[n_head]`.
    pub decay: Box<[f32]>,
    /// How much of its value a head's result has besides (`D`), `[n_head]`.
    pub skip: Box<[f32]>,
    /// RMSNorm on gated results, where the family has it.
    pub norm: Option<GroupNorm>,
}

/// RMSNorm on groups of values, each by itself.
pub struct GroupNorm {
    /// The weights of all groups.
    pub weight: Box<[f32]>,
    /// Values of a group; divides their number.
    pub len: usize,
    /// The epsilon.
    pub eps: f32,
}

impl SelectiveScan {
    /// What a token does to head `h`.
    pub(super) fn rates(&self, h: usize, step: f32) -> StateRates {
        let step = softplus(step + self.step_bias[h]);
        StateRates { decay: (self.decay[h] * step).exp(), step }
    }

    /// Multiplies what a token has read with its gates, and normalises that.
    pub(super) fn finish(&self, f: &FloatKernels, row: &mut [f32], gates: &[f32]) {
        f.mul_assign(row, gates);
        if let Some(GroupNorm { weight, len, eps }) = &self.norm {
            let groups = row.chunks_exact_mut(*len).zip(weight.chunks_exact(*len));
            groups.for_each(|(group, weight)| f.rms_norm_in_place(group, weight, *eps));
        }
    }
}
