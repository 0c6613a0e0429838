//! What the rules of recurrent layers have in common: a head's state is a matrix from keys to values, a row of a value's length for each
//! element of a key, and all go over it in strips of values, each of which is a memory of its own: there are no sums over lanes.

use super::simd::Simd;

/// How a token changes a head's state.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[repr(C)]
pub struct StateRates {
    /// What the state is multiplied with first.
    pub decay: f32,
    /// How much of what is new is added.
    pub step: f32,
}

/// Vector `i` of `NV` that hold `len` elements together: only one alone is not full.
///
/// # Safety
/// As [`Simd::load`].
#[inline(always)]
pub(super) unsafe fn load<V: Simd, const NV: usize>(p: *const f32, i: usize, len: usize) -> V {
    // SAFETY: the caller's contract.
    unsafe { if NV > 1 || len == V::LANES { V::load(p.add(i * V::LANES)) } else { V::load_partial(p, len) } }
}

/// The counterpart of [`load`].
///
/// # Safety
/// As [`Simd::store`].
#[inline(always)]
pub(super) unsafe fn store<V: Simd, const NV: usize>(x: V, p: *mut f32, i: usize, len: usize) {
    // SAFETY: the caller's contract.
    unsafe { if NV > 1 || len == V::LANES { x.store(p.add(i * V::LANES)) } else { x.store_partial(p, len) } }
}
