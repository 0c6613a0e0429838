//! The gated delta rule (arXiv 2412.06464): a head's memory, a matrix that maps keys to values, is faded and corrected by every token,
//! and read by its query. It fades as a whole; or what it has for each element of a key fades by itself (Kimi Delta Attention, arXiv 2510.26692).

use super::rows::Rows;
use super::simd::Simd;
use super::state::{StateUpdate, load, store};

/// Vectors of a strip of values that go through all tokens together.
const VECS: usize = 2;

/// See [`super::FloatKernels::delta_rule`].
///
/// # Safety
/// As [`Simd`]'s; the shapes agree as the method of this name checks.
#[inline(always)]
pub(super) unsafe fn delta_rule<V: Simd>(update: StateUpdate) {
    // SAFETY: the caller's contract.
    unsafe { strips::<V, false>(update, Rows::new(&[], 0, 0, 0)) }
}

/// See [`super::FloatKernels::keyed_delta_rule`].
///
/// # Safety
/// As [`Simd`]'s; the shapes agree as the method of this name checks.
#[inline(always)]
pub(super) unsafe fn keyed_delta_rule<V: Simd>(update: StateUpdate, decays: Rows<f32>) {
    // SAFETY: the caller's contract.
    unsafe { strips::<V, true>(update, decays) }
}

/// All values strip by strip. `KEYED`: whether elements of keys have decays of their own, `decays`, a row of them for each token.
///
/// # Safety
/// As [`delta_rule`] or [`keyed_delta_rule`].
#[inline(always)]
unsafe fn strips<V: Simd, const KEYED: bool>(mut update: StateUpdate, decays: Rows<f32>) {
    let n = update.v.len();
    let mut i = 0;
    // SAFETY: strips are within a value's elements; the rest is the caller's contract.
    unsafe {
        while i + VECS * V::LANES <= n {
            strip::<V, VECS, KEYED>(&mut update, decays, i, VECS * V::LANES);
            i += VECS * V::LANES;
        }
        while i < n {
            strip::<V, 1, KEYED>(&mut update, decays, i, (n - i).min(V::LANES));
            i += V::LANES;
        }
    }
}

/// Takes `len` elements of values from `at` on, at most `NV` vectors, through all tokens. A token's correction is made on the next one's
/// way through the memory, before that fades.
///
/// # Safety
/// As [`strips`]; these elements exist.
#[inline(always)]
unsafe fn strip<V: Simd, const NV: usize, const KEYED: bool>(
    update: &mut StateUpdate,
    decays: Rows<f32>,
    at: usize,
    len: usize,
) {
    let (dim, width, n_tokens) = (update.k.len(), update.v.len(), update.rates.len());
    let unread = n_tokens - update.out.n_rows();
    // SAFETY: `len` elements from `at` on are within every row of the memory, of values and of results.
    unsafe {
        let state = update.state.as_mut_ptr().add(at);
        let mut key = update.k.as_ptr();
        let mut change = [V::splat(0.0); NV];
        for (t, rates) in update.rates.iter().enumerate() {
            let (q, k) = (update.q.row_ptr(t), update.k.row_ptr(t));
            let (mut known, mut read) = ([V::splat(0.0); NV], [V::splat(0.0); NV]);
            let mut overlap = V::splat(0.0);
            let whole = V::splat(rates.decay);
            for j in 0..dim {
                let row = state.add(j * width);
                let (was, to, by) = (V::splat(*key.add(j)), V::splat(*k.add(j)), V::splat(*q.add(j)));
                let decay = if KEYED { V::splat(*decays.row_ptr(t).add(j)) } else { whole };
                overlap = to.mul_add(by, overlap);
                for (i, change) in change.iter().enumerate() {
                    let s = change.mul_add(was, load::<V, NV>(row, i, len)).mul(decay);
                    store::<V, NV>(s, row, i, len);
                    known[i] = s.mul_add(to, known[i]);
                    read[i] = s.mul_add(by, read[i]);
                }
            }
            key = k;
            let step = V::splat(rates.step);
            for (i, change) in change.iter_mut().enumerate() {
                let value = load::<V, NV>(update.v.row_ptr(t).add(at), i, len);
                *change = value.sub(known[i]).mul(step);
                if t >= unread {
                    let result = change.mul_add(overlap, read[i]);
                    store::<V, NV>(result, update.out.row_ptr(t - unread).add(at), i, len);
                }
            }
        }
        for j in 0..dim {
            let (row, was) = (state.add(j * width), V::splat(*key.add(j)));
            for (i, change) in change.iter().enumerate() {
                store::<V, NV>(change.mul_add(was, load::<V, NV>(row, i, len)), row, i, len);
            }
        }
    }
}
