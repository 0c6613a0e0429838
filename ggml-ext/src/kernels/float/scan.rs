//! The selective scan of Mamba-2 (arXiv 2405.21060): every token fades a head's state, adds the product of its key and its value, and reads the
//! state with its query. Some tokens go through the state together, so that it is loaded and stored once for all of them; what a token
//! computes does not depend on which others these are.

use super::simd::Simd;
use super::state::{StateUpdate, load, store};

/// Tokens that go through a strip of the state together.
const TOKENS: usize = 4;

/// See [`super::FloatKernels::selective_scan`].
///
/// # Safety
/// As [`Simd`]'s; the shapes agree as the method of this name checks.
#[inline(always)]
pub(super) unsafe fn selective_scan<V: Simd>(mut update: StateUpdate) {
    let n = update.v.len();
    let mut i = 0;
    // SAFETY: strips are within a value's elements; the rest is the caller's contract.
    unsafe {
        // Two vectors of all tokens' sums and values stay in registers where there are 32 of these.
        while V::LANES >= 16 && i + 2 * V::LANES <= n {
            strip::<V, 2>(&mut update, i, 2 * V::LANES);
            i += 2 * V::LANES;
        }
        while i < n {
            let len = (n - i).min(V::LANES);
            strip::<V, 1>(&mut update, i, len);
            i += len;
        }
    }
}

/// Takes `len` elements of values from `at` on, at most `NV` vectors, through all tokens.
///
/// # Safety
/// As [`selective_scan`]; these elements exist.
#[inline(always)]
unsafe fn strip<V: Simd, const NV: usize>(update: &mut StateUpdate, at: usize, len: usize) {
    let n = update.rates.len();
    let mut t = 0;
    // SAFETY: passed on to the caller; these tokens exist.
    unsafe {
        while t + TOKENS <= n {
            tokens::<V, NV, TOKENS>(update, at, len, t);
            t += TOKENS;
        }
        while t < n {
            tokens::<V, NV, 1>(update, at, len, t);
            t += 1;
        }
    }
}

/// The same for `T` tokens from `first` on.
///
/// # Safety
/// As [`strip`]; these tokens exist.
#[inline(always)]
unsafe fn tokens<V: Simd, const NV: usize, const T: usize>(
    update: &mut StateUpdate,
    at: usize,
    len: usize,
    first: usize,
) {
    let (dim, width, unread) = (update.k.len(), update.v.len(), update.rates.len() - update.out.n_rows());
    // SAFETY: `len` elements from `at` on are within every row of the state, of values and of results; the caller has these tokens.
    unsafe {
        let state = update.state.as_mut_ptr().add(at);
        let zero = V::splat(0.0);
        let (mut decay, mut values, mut sums) = ([zero; T], [[zero; NV]; T], [[zero; NV]; T]);
        let (mut queries, mut keys) = ([update.q.row_ptr(first); T], [update.k.row_ptr(first); T]);
        for t in 0..T {
            let rates = update.rates[first + t];
            decay[t] = V::splat(rates.decay);
            (queries[t], keys[t]) = (update.q.row_ptr(first + t), update.k.row_ptr(first + t));
            for (i, value) in values[t].iter_mut().enumerate() {
                *value = load::<V, NV>(update.v.row_ptr(first + t).add(at), i, len).mul(V::splat(rates.step));
            }
        }
        for j in 0..dim {
            let row = state.add(j * width);
            let mut s = [zero; NV];
            for (i, s) in s.iter_mut().enumerate() {
                *s = load::<V, NV>(row, i, len);
            }
            for t in 0..T {
                let (to, by) = (V::splat(*keys[t].add(j)), V::splat(*queries[t].add(j)));
                for i in 0..NV {
                    s[i] = s[i].mul_add(decay[t], values[t][i].mul(to));
                    sums[t][i] = s[i].mul_add(by, sums[t][i]);
                }
            }
            for (i, s) in s.iter().enumerate() {
                store::<V, NV>(*s, row, i, len);
            }
        }
        for (t, sums) in sums.iter().enumerate() {
            let Some(row) = (first + t).checked_sub(unread) else { continue };
            for (i, sum) in sums.iter().enumerate() {
                store::<V, NV>(*sum, update.out.row_ptr(row).add(at), i, len);
            }
        }
    }
}
