//! Kernels over f32 data: norms, activations, attention products, conversions.

use super::Tier;

/// The float kernels of one tier.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct FloatKernels {}

impl FloatKernels {
    /// The kernels of `tier`, which the caller has found to be supported by this CPU.
    pub(super) fn for_supported_tier(_tier: Tier) -> Self {
        FloatKernels {}
    }
}
