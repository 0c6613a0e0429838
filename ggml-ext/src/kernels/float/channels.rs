//! The selective scan of the first Mamba (arXiv 2312.00752): every channel has a memory of its own, each element of which fades at a rate of its
//! own, while keys and queries are the same for all channels. Lanes are channels, so that there are no sums over lanes; some tokens go
//! through the memory together, as in [`super::scan`].

use super::math::exp;
use super::rows::{Rows, RowsMut};
use super::simd::Simd;
use super::state::{load, store};

/// What tokens do to the memory of some channels, one after another, and what they read from it.
pub struct ChannelUpdate<'a> {
    /// A row of all channels for each element of a key.
    pub state: &'a mut [f32],
    /// A query for each token.
    pub q: Rows<'a, f32>,
    /// A key for each token.
    pub k: Rows<'a, f32>,
    /// The channels' values, a row for each token.
    pub v: Rows<'a, f32>,
    /// The channels' steps, a row for each token.
    pub steps: Rows<'a, f32>,
    /// The logarithms of what the state is multiplied with in a step of 1: rows as the state's.
    pub rates: Rows<'a, f32>,
    /// What the last tokens read, or all.
    pub out: RowsMut<'a, f32>,
}

impl ChannelUpdate<'_> {
    /// # Panics
    /// If the shapes do not agree.
    pub(super) fn check(&self) {
        let (Self { state, q, k, v, steps, rates, out }, n) = (self, self.steps.n_rows());
        assert_eq!([q.n_rows(), k.n_rows(), v.n_rows()], [n; 3], "queries, keys and values of {n} tokens");
        assert_eq!(q.len(), k.len(), "queries and keys differ in length");
        assert_eq!(state.len(), k.len() * v.len(), "the state is not {} x {}", k.len(), v.len());
        assert_eq!([rates.n_rows(), rates.len()], [k.len(), v.len()], "rates are not as the state");
        assert_eq!(steps.len(), v.len(), "steps and values differ in length");
        assert!(out.n_rows() <= n && out.len() == v.len(), "results are not values of {n} tokens");
    }
}

/// Tokens that go through a strip of the state together.
const TOKENS: usize = 4;

/// See [`super::FloatKernels::channel_scan`].
///
/// # Safety
/// As [`Simd`]'s; the shapes agree as the method of this name checks.
#[inline(always)]
pub(super) unsafe fn channel_scan<V: Simd>(mut update: ChannelUpdate) {
    let (width, n) = (update.v.len(), update.steps.n_rows());
    for at in (0..width).step_by(V::LANES) {
        let len = (width - at).min(V::LANES);
        let mut t = 0;
        // SAFETY: strips are within the channels, and these tokens exist; the rest is the caller's contract.
        unsafe {
            while t + TOKENS <= n {
                tokens::<V, TOKENS>(&mut update, at, len, t);
                t += TOKENS;
            }
            while t < n {
                tokens::<V, 1>(&mut update, at, len, t);
                t += 1;
            }
        }
    }
}

/// Takes `len` channels from `at` on, at most a vector, through `T` tokens from `first` on.
///
/// # Safety
/// As [`channel_scan`]; these channels and tokens exist.
#[inline(always)]
unsafe fn tokens<V: Simd, const T: usize>(update: &mut ChannelUpdate, at: usize, len: usize, first: usize) {
    let (dim, width, unread) = (update.k.len(), update.v.len(), update.steps.n_rows() - update.out.n_rows());
    // SAFETY: `len` elements from `at` on are within every row that is as long as a value; the caller has these tokens.
    unsafe {
        let state = update.state.as_mut_ptr().add(at);
        let zero = V::splat(0.0);
        let (mut steps, mut values, mut sums) = ([zero; T], [zero; T], [zero; T]);
        let (mut queries, mut keys) = ([update.q.row_ptr(first); T], [update.k.row_ptr(first); T]);
        for t in 0..T {
            (queries[t], keys[t]) = (update.q.row_ptr(first + t), update.k.row_ptr(first + t));
            steps[t] = load::<V, 1>(update.steps.row_ptr(first + t).add(at), 0, len);
            values[t] = load::<V, 1>(update.v.row_ptr(first + t).add(at), 0, len).mul(steps[t]);
        }
        for j in 0..dim {
            let row = state.add(j * width);
            let rate = load::<V, 1>(update.rates.row_ptr(j).add(at), 0, len);
            let mut s = load::<V, 1>(row, 0, len);
            for t in 0..T {
                let decay = exp(steps[t].mul(rate));
                s = s.mul_add(decay, values[t].mul(V::splat(*keys[t].add(j))));
                sums[t] = s.mul_add(V::splat(*queries[t].add(j)), sums[t]);
            }
            store::<V, 1>(s, row, 0, len);
        }
        for (t, sum) in sums.iter().enumerate() {
            let Some(row) = (first + t).checked_sub(unread) else { continue };
            store::<V, 1>(*sum, update.out.row_ptr(row).add(at), 0, len);
        }
    }
}
