//! The selective scan of Mamba-2 (arXiv 2405.21060): every token fades a head's state, adds the product of its key and its value, and reads the
//! state with its query. Some tokens go through the state together, so that it is loaded and stored once for all of them; what a token
//! computes does not depend on which others these are.

use super::rows::{Rows, RowsMut};
use super::simd::Simd;
use super::state::{StateRates, load, store};

/// Tokens that go through a strip of the state together.
const TOKENS: usize = 4;

/// See [`super::FloatKernels::selective_scan`].
///
/// # Safety
/// As [`Simd`]'s; the shapes agree as the method of this name checks.
#[inline(always)]
pub(super) unsafe fn selective_scan<V: Simd>(
    state: &mut [f32],
    q: Rows<f32>,
    k: Rows<f32>,
    v: Rows<f32>,
    rates: &[StateRates],
    out: RowsMut<f32>,
) {
    let n = v.len();
    let mut i = 0;
    // SAFETY: strips are within a value's elements; the rest is the caller's contract.
    unsafe {
        let mut scan = Scan { state: state.as_mut_ptr(), q, k, v, rates, out };
        // Two vectors of all tokens' sums and values stay in registers where there are 32 of these.
        while V::LANES >= 16 && i + 2 * V::LANES <= n {
            scan.strip::<V, 2>(i, 2 * V::LANES);
            i += 2 * V::LANES;
        }
        while i < n {
            let len = (n - i).min(V::LANES);
            scan.strip::<V, 1>(i, len);
            i += len;
        }
    }
}

struct Scan<'a> {
    state: *mut f32,
    q: Rows<'a, f32>,
    k: Rows<'a, f32>,
    v: Rows<'a, f32>,
    rates: &'a [StateRates],
    out: RowsMut<'a, f32>,
}

impl Scan<'_> {
    /// Takes `len` elements of values from `at` on, at most `NV` vectors, through all tokens.
    ///
    /// # Safety
    /// As [`selective_scan`]; these elements exist.
    #[inline(always)]
    unsafe fn strip<V: Simd, const NV: usize>(&mut self, at: usize, len: usize) {
        let n = self.rates.len();
        let mut t = 0;
        // SAFETY: passed on to the caller; these tokens exist.
        unsafe {
            while t + TOKENS <= n {
                self.tokens::<V, NV, TOKENS>(at, len, t);
                t += TOKENS;
            }
            while t < n {
                self.tokens::<V, NV, 1>(at, len, t);
                t += 1;
            }
        }
    }

    /// The same for `T` tokens from `first` on.
    ///
    /// # Safety
    /// As [`Self::strip`]; these tokens exist.
    #[inline(always)]
    unsafe fn tokens<V: Simd, const NV: usize, const T: usize>(&mut self, at: usize, len: usize, first: usize) {
        let (dim, width, unread) = (self.k.len(), self.v.len(), self.rates.len() - self.out.n_rows());
        // SAFETY: `len` elements from `at` on are within every row of the state, of values and of results; the caller has these tokens.
        unsafe {
            let state = self.state.add(at);
            let zero = V::splat(0.0);
            let (mut decay, mut values, mut sums) = ([zero; T], [[zero; NV]; T], [[zero; NV]; T]);
            let (mut queries, mut keys) = ([self.q.row_ptr(first); T], [self.k.row_ptr(first); T]);
            for t in 0..T {
                let rates = self.rates[first + t];
                decay[t] = V::splat(rates.decay);
                (queries[t], keys[t]) = (self.q.row_ptr(first + t), self.k.row_ptr(first + t));
                for (i, value) in values[t].iter_mut().enumerate() {
                    *value = load::<V, NV>(self.v.row_ptr(first + t).add(at), i, len).mul(V::splat(rates.step));
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
                    store::<V, NV>(*sum, self.out.row_ptr(row).add(at), i, len);
                }
            }
        }
    }
}
