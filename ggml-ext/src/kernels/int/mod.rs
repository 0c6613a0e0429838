//! Products of quantised weights with int8 activations.

use super::Tier;

/// The integer kernels of one tier.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct IntKernels {}

impl IntKernels {
    /// The kernels of `tier`, which the caller has found to be supported by this CPU.
    pub(super) fn for_supported_tier(_tier: Tier) -> Self {
        IntKernels {}
    }
}
