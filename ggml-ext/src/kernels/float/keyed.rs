//! Memories that fade element by element of a key (RWKV-6, arXiv 2404.05892; RWKV-7, arXiv 2503.14456): a head's memory, a matrix that maps keys
//! to values, has a rate of its own for each row and token. A token may also move what the memory has for one key to another.

use super::rows::{Rows, RowsMut};
use super::simd::Simd;
use super::state::{load, store};

/// What tokens do to a head's memory, one after another, and what they read from it.
pub struct KeyedUpdate<'a> {
    /// A row of a value's length for each element of a key.
    pub state: &'a mut [f32],
    /// A query for each token.
    pub q: Rows<'a, f32>,
    /// A key for each token.
    pub k: Rows<'a, f32>,
    /// A value for each token.
    pub v: Rows<'a, f32>,
    /// What the state's rows are multiplied with, a number for each, as long as a key for each token.
    pub rates: Rows<'a, f32>,
    /// A key for each token by which it looks up what the state had before it, and one under which it adds that.
    pub moves: Option<[Rows<'a, f32>; 2]>,
    /// Whether queries read what the state was before their token, or what it is after it.
    pub reads_before: bool,
    /// What the last tokens read, or all.
    pub out: RowsMut<'a, f32>,
}

impl KeyedUpdate<'_> {
    /// # Panics
    /// If the shapes do not agree.
    pub(super) fn check(&self) {
        let (Self { state, q, k, v, rates, moves, out, .. }, n) = (self, self.v.n_rows());
        for rows in [q, k, rates].into_iter().chain(moves.iter().flatten()) {
            assert_eq!([rows.n_rows(), rows.len()], [n, k.len()], "queries, keys and rates of {n} tokens");
        }
        assert_eq!(state.len(), k.len() * v.len(), "the state is not {} x {}", k.len(), v.len());
        assert!(out.n_rows() <= n && out.len() == v.len(), "results are not values of {n} tokens");
    }
}

/// Vectors of a strip of values that go through all tokens together.
const VECS: usize = 2;

/// See [`super::FloatKernels::keyed_scan`].
///
/// # Safety
/// As [`Simd`]'s; the shapes agree as the method of this name checks.
#[inline(always)]
pub(super) unsafe fn keyed_scan<V: Simd>(mut update: KeyedUpdate) {
    // SAFETY: the caller's contract.
    unsafe {
        match (update.moves, update.reads_before) {
            (None, false) => strips::<V, false, false>(&mut update),
            (None, true) => strips::<V, false, true>(&mut update),
            (Some(_), false) => strips::<V, true, false>(&mut update),
            (Some(_), true) => strips::<V, true, true>(&mut update),
        }
    }
}

/// # Safety
/// As [`keyed_scan`].
#[inline(always)]
unsafe fn strips<V: Simd, const MOVES: bool, const BEFORE: bool>(update: &mut KeyedUpdate) {
    let n = update.v.len();
    let mut i = 0;
    // SAFETY: strips are within a value's elements; the rest is the caller's contract.
    unsafe {
        while i + VECS * V::LANES <= n {
            strip::<V, VECS, MOVES, BEFORE>(update, i, VECS * V::LANES);
            i += VECS * V::LANES;
        }
        while i < n {
            strip::<V, 1, MOVES, BEFORE>(update, i, (n - i).min(V::LANES));
            i += V::LANES;
        }
    }
}

/// Takes `len` elements of values from `at` on, at most `NV` vectors, through all tokens. What a token looks up to move is summed on the way of the
/// one before through the memory.
///
/// # Safety
/// As [`keyed_scan`]; these elements exist.
#[inline(always)]
unsafe fn strip<V: Simd, const NV: usize, const MOVES: bool, const BEFORE: bool>(
    update: &mut KeyedUpdate,
    at: usize,
    len: usize,
) {
    let (dim, width, n_tokens) = (update.k.len(), update.v.len(), update.v.n_rows());
    let unread = n_tokens - update.out.n_rows();
    let [from, to] = update.moves.unwrap_or([update.k; 2]);
    // SAFETY: `len` elements from `at` on are within every row of the memory, of values and of results.
    unsafe {
        let (state, zeros) = (update.state.as_mut_ptr().add(at), [V::splat(0.0); NV]);
        let mut found = zeros;
        if MOVES && n_tokens > 0 {
            for j in 0..dim {
                let by = V::splat(*from.row_ptr(0).add(j));
                for (i, found) in found.iter_mut().enumerate() {
                    *found = load::<V, NV>(state.add(j * width), i, len).mul_add(by, *found);
                }
            }
        }
        for t in 0..n_tokens {
            let (q, k, rates) = (update.q.row_ptr(t), update.k.row_ptr(t), update.rates.row_ptr(t));
            // The last token has nobody to look up for.
            let (next, to) = (from.row_ptr((t + 1).min(n_tokens - 1)), to.row_ptr(t));
            let (mut value, mut read, mut for_next) = (zeros, zeros, zeros);
            for (i, value) in value.iter_mut().enumerate() {
                *value = load::<V, NV>(update.v.row_ptr(t).add(at), i, len);
            }
            for j in 0..dim {
                let row = state.add(j * width);
                let (by, key, rate) = (V::splat(*q.add(j)), V::splat(*k.add(j)), V::splat(*rates.add(j)));
                let (to, next) = (V::splat(*to.add(j)), V::splat(*next.add(j)));
                for i in 0..NV {
                    let was = load::<V, NV>(row, i, len);
                    let mut is = was.mul_add(rate, value[i].mul(key));
                    if MOVES {
                        is = found[i].mul_add(to, is);
                        for_next[i] = is.mul_add(next, for_next[i]);
                    }
                    store::<V, NV>(is, row, i, len);
                    read[i] = if BEFORE { was } else { is }.mul_add(by, read[i]);
                }
            }
            found = for_next;
            if t >= unread {
                for (i, read) in read.into_iter().enumerate() {
                    store::<V, NV>(read, update.out.row_ptr(t - unread).add(at), i, len);
                }
            }
        }
    }
}
