//! What the rules of recurrent layers have in common: a head's state is a matrix from keys to values, a row of a value's length for each
//! element of a key, and all go over it in strips of values, each of which is a memory of its own: there are no sums over lanes.

use super::rows::{Rows, RowsMut};
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

/// What tokens do to a head's state, one after another, and what they read from it.
pub struct StateUpdate<'a> {
    /// A row of a value's length for each element of a key.
    pub state: &'a mut [f32],
    /// A query for each token.
    pub q: Rows<'a, f32>,
    /// A key for each token.
    pub k: Rows<'a, f32>,
    /// A value for each token.
    pub v: Rows<'a, f32>,
    /// One for each token.
    pub rates: &'a [StateRates],
    /// What the last tokens read, or all.
    pub out: RowsMut<'a, f32>,
}

impl StateUpdate<'_> {
    /// # Panics
    /// If the shapes do not agree.
    pub(super) fn check(&self) {
        let (Self { state, q, k, v, rates, out }, n) = (self, self.rates.len());
        assert_eq!([q.n_rows(), k.n_rows(), v.n_rows()], [n; 3], "queries, keys and values of {n} tokens");
        assert_eq!(q.len(), k.len(), "queries and keys differ in length");
        assert_eq!(state.len(), k.len() * v.len(), "the state is not {} x {}", k.len(), v.len());
        assert!(out.n_rows() <= rates.len() && out.len() == v.len(), "results are not values of {n} tokens");
    }
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
