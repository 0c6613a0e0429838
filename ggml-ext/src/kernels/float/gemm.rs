//! The small matrix products of attention.
//!
//! All keep a tile of results in registers and give each result its own chain of multiply-adds in a fixed order. Which
//! rows share a tile therefore never changes a bit of any of them: one query row or a whole ubatch, on one thread or many,
//! come out the same.

use super::elem::{BlockQ8_0, Elem, KEY_GROUP, KeysQ8_0};
use super::simd::{LINE, Simd};
use super::{Rows, RowsMut, convert};
use half::f16;
use std::mem::MaybeUninit;
use std::sync::atomic::{Ordering, compiler_fence};

/// Columns (rows of `b`) of the tile of [`sgemm_nt`].
const NT_COLS: usize = 4;

/// Bytes of values that all columns of a few query rows' results pass over before the next: a quarter of a small first-level cache. What
/// comes next is asked for meanwhile, evenly: the hardware stops at the end of a small page, and a block is over before it has found its
/// stride.
const PASS_BYTES: usize = 8 << 10;

/// `c[i][j] = alpha * a[i] . b[j]`.
#[inline(always)]
pub(super) unsafe fn sgemm_nt<V: Simd>(alpha: f32, a: Rows<f32>, b: Rows<f32>, c: RowsMut<f32>) {
    let (m, n, d) = (a.n_rows(), b.n_rows(), a.len());
    for j in (0..n).step_by(NT_COLS) {
        // The last row is repeated where there are fewer than four.
        let columns = [0, 1, 2, 3].map(|t| b.row_ptr((j + t).min(n - 1)));
        let n_cols = NT_COLS.min(n - j);
        for i in (0..m).step_by(V::NT_ROWS) {
            // SAFETY: rows `i..` of the tile are below `m`, the pointers are rows of `b`, and only the columns that exist are stored.
            unsafe {
                let (ap, cp) = (a.row_ptr(i), c.row_ptr(i).add(j));
                match V::NT_ROWS.min(m - i) {
                    4 => nt_tile::<V, 4>(d, alpha, ap, a.stride(), columns, cp, c.stride(), n_cols),
                    3 => nt_tile::<V, 3>(d, alpha, ap, a.stride(), columns, cp, c.stride(), n_cols),
                    2 => nt_tile::<V, 2>(d, alpha, ap, a.stride(), columns, cp, c.stride(), n_cols),
                    _ => nt_tile::<V, 1>(d, alpha, ap, a.stride(), columns, cp, c.stride(), n_cols),
                }
            }
        }
    }
}

/// `M` rows of `a` against four rows of `b`: `4 * M` sums in registers, vectorised along the rows.
///
/// # Safety
/// `a` and `c` point at `M` rows of their strides, the pointers in `b` at `d` elements each, `c`'s rows hold `n_cols`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn nt_tile<V: Simd, const M: usize>(
    d: usize,
    alpha: f32,
    a: *const f32,
    a_stride: usize,
    b: [*const f32; NT_COLS],
    c: *mut f32,
    c_stride: usize,
    n_cols: usize,
) {
    // SAFETY: element offsets stay below `d` in rows and below `n_cols` in results, as the contract allows.
    unsafe {
        let mut acc = [[V::splat(0.0); NT_COLS]; M];
        let mut av = [V::splat(0.0); M];
        let mut k = 0;
        while k + V::LANES <= d {
            for (i, x) in av.iter_mut().enumerate() {
                *x = V::load(a.add(i * a_stride + k));
            }
            for (j, row) in b.into_iter().enumerate() {
                let y = V::load(row.add(k));
                for (sums, x) in acc.iter_mut().zip(av) {
                    sums[j] = x.mul_add(y, sums[j]);
                }
            }
            k += V::LANES;
        }
        if k < d {
            for (i, x) in av.iter_mut().enumerate() {
                *x = V::load_partial(a.add(i * a_stride + k), d - k);
            }
            for (j, row) in b.into_iter().enumerate() {
                let y = V::load_partial(row.add(k), d - k);
                for (sums, x) in acc.iter_mut().zip(av) {
                    sums[j] = x.mul_add(y, sums[j]);
                }
            }
        }
        if n_cols == NT_COLS {
            for (i, sums) in acc.into_iter().enumerate() {
                V::store_sums(sums, alpha, c.add(i * c_stride));
            }
        } else {
            for (i, sums) in acc.into_iter().enumerate() {
                let mut all = [0.0; NT_COLS];
                V::store_sums(sums, alpha, all.as_mut_ptr());
                std::ptr::copy_nonoverlapping(all.as_ptr(), c.add(i * c_stride), n_cols);
            }
        }
    }
}

/// What becomes of a tile's sums.
trait Finish: Copy {
    /// Whether a sum may be computed in parts, one after the other.
    const IN_PARTS: bool = false;
    /// What the sum for `c` starts from: zero, unless the sum is to be added to what is there.
    ///
    /// # Safety
    /// As [`Simd`]'s; of `c`, `left` lanes are valid if that is less than a vector.
    #[inline(always)]
    unsafe fn start<V: Simd>(self, _c: *const f32, _left: usize) -> V {
        // SAFETY: the caller's contract.
        unsafe { V::splat(0.0) }
    }
    /// What is stored for the sum of columns `column..`.
    ///
    /// # Safety
    /// As [`Self::start`].
    unsafe fn finish<V: Simd>(self, sum: V, c: *const f32, column: usize, left: usize) -> V;
}

/// The sums are added to what is there.
#[derive(Clone, Copy)]
struct Add;
impl Finish for Add {
    const IN_PARTS: bool = true;
    #[inline(always)]
    unsafe fn start<V: Simd>(self, c: *const f32, left: usize) -> V {
        // SAFETY: the caller's contract.
        unsafe { load(c, left) }
    }
    #[inline(always)]
    unsafe fn finish<V: Simd>(self, sum: V, _c: *const f32, _column: usize, _left: usize) -> V {
        sum
    }
}

/// The sums times a factor.
#[derive(Clone, Copy)]
struct Scaled(f32);
impl Finish for Scaled {
    #[inline(always)]
    unsafe fn finish<V: Simd>(self, sum: V, _c: *const f32, _column: usize, _left: usize) -> V {
        // SAFETY: the caller's contract.
        unsafe { sum.mul(V::splat(self.0)) }
    }
}

/// The sums times a factor and one of their column's own, added to what is there except for the first.
#[derive(Clone, Copy)]
struct ByColumn {
    alpha: f32,
    scales: *const f16,
    n: usize,
    is_first: bool,
}
impl Finish for ByColumn {
    #[inline(always)]
    unsafe fn finish<V: Simd>(self, sum: V, c: *const f32, column: usize, left: usize) -> V {
        // SAFETY: the caller's contract; there are `n` scales.
        unsafe {
            let scales = self.scales.add(column);
            let rest = self.n - column;
            let scale = if rest < V::LANES { V::load_f16_partial(scales, rest) } else { V::load_f16(scales) };
            let scale = scale.mul(V::splat(self.alpha));
            if self.is_first { sum.mul(scale) } else { sum.mul_add(scale, load(c, left)) }
        }
    }
}

/// A vector, or `left` lanes of it if that is less.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
unsafe fn load<V: Simd>(p: *const f32, left: usize) -> V {
    // SAFETY: the caller's contract.
    unsafe { if left < V::LANES { V::load_partial(p, left) } else { V::load(p) } }
}

/// `c[i] = result(sum_k p[i][k] * v[k])`, the sum in the order of `k`. Rows of `v` may be longer than the result's, and are read as far as
/// whole vectors need it. With `AHEAD`, rows that lie one after the other are taken for the beginning of more of them, which is asked for.
///
/// # Safety
/// As [`Simd`]'s; the shapes agree.
#[inline(always)]
unsafe fn nn<V: Simd, B: Elem, R: Finish, const AHEAD: bool>(p: Rows<f32>, v: Rows<B>, c: RowsMut<f32>, result: R) {
    let n = v.n_rows();
    let row_bytes = v.len() * size_of::<B>();
    let ahead = AHEAD && v.stride() == v.len();
    let part = if ahead && R::IN_PARTS { (PASS_BYTES / row_bytes.max(1)).max(1) } else { n };
    let (m, d) = (p.n_rows(), c.len());
    let mut t = NnTile::<B, R, AHEAD> {
        n,
        p: p.as_ptr(),
        p_stride: p.stride(),
        v: v.as_ptr(),
        v_len: v.len() * B::LEN,
        v_stride: v.stride(),
        c: c.as_ptr(),
        c_stride: c.stride(),
        ahead,
        result,
    };
    let mut left = n;
    loop {
        t.n = part.min(left);
        // SAFETY: rows up to the `n`th exist.
        unsafe { t.all::<V>(m, d) };
        left -= t.n;
        if left == 0 {
            break;
        }
        (t.p, t.v) = (t.p.wrapping_add(t.n), t.v.wrapping_add(t.n * t.v_stride));
    }
}

/// Width in elements of the next strip of columns: 8, 4, 2 or 1 vectors, 0 when less than a vector is left. Up to three rows take wider ones
/// than [`Simd::NN_VECS`], to have enough independent sums in flight: on Zen 3 three rows of halves in a cache 29 GB/s, not 21.
#[inline(always)]
fn strip<V: Simd>(m: usize, left: usize) -> usize {
    let widest = match m {
        0 | 1 => 8,
        2 | 3 => V::NN_VECS.max(4),
        _ => V::NN_VECS,
    };
    [8, 4, 2, 1].into_iter().map(|vecs| vecs * V::LANES).find(|&w| w <= left && w <= widest * V::LANES).unwrap_or(0)
}

/// Where the tiles of [`nn`] read and write.
#[derive(Clone, Copy)]
struct NnTile<B, R, const AHEAD: bool> {
    n: usize,
    p: *const f32,
    p_stride: usize,
    v: *const B,
    /// Elements in the rows of `v`.
    v_len: usize,
    v_stride: usize,
    c: *mut f32,
    c_stride: usize,
    /// Whether to ask for what lies beyond the rows of `v`.
    ahead: bool,
    result: R,
}

impl<B: Elem, R: Finish, const AHEAD: bool> NnTile<B, R, AHEAD> {
    /// All `m` rows and `d` columns of the results.
    ///
    /// # Safety
    /// `p` and `c` are valid for these rows, `v` for `n` rows; rows of `p` hold `n` elements, rows of `v` and `c` these columns.
    #[inline(always)]
    unsafe fn all<V: Simd>(self, m: usize, d: usize) {
        let mut x = 0;
        // SAFETY: strips start at `x` with `x + width <= d`, row tiles at `i` with `i + rows <= m`, so every row and
        // element a tile names exists in `p`, `v` and `c`.
        unsafe {
            while x < d {
                let left = d - x;
                let width = strip::<V>(m, left);
                let mut i = 0;
                while i < m {
                    // Tiles of near-equal size: one or two rows alone would wait for their sums.
                    let rows = (m - i).div_ceil((m - i).div_ceil(V::NN_ROWS));
                    match width / V::LANES {
                        8 => self.run::<V, 1, 8>(i, x, left),
                        4 => self.rows::<V, 4>(i, rows, x, left),
                        2 => self.rows::<V, 2>(i, rows, x, left),
                        _ => self.rows::<V, 1>(i, rows, x, left),
                    }
                    i += rows;
                }
                x += if width == 0 { left } else { width };
            }
        }
    }

    /// # Safety
    /// As [`Self::run`].
    #[inline(always)]
    unsafe fn rows<V: Simd, const NV: usize>(self, i: usize, rows: usize, x: usize, left: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            match rows {
                6 => self.run::<V, 6, NV>(i, x, left),
                5 => self.run::<V, 5, NV>(i, x, left),
                4 => self.run::<V, 4, NV>(i, x, left),
                3 => self.run::<V, 3, NV>(i, x, left),
                2 => self.run::<V, 2, NV>(i, x, left),
                _ => self.run::<V, 1, NV>(i, x, left),
            }
        }
    }

    /// Rows `i..i + M` of the results, columns `x..` in `NV` vectors, or in one of which `left` lanes are wanted if that is less.
    ///
    /// # Safety
    /// `p` and `c` are valid for these rows, `v` for `n` rows; rows of `p` hold `n` elements, rows of `v` and `c` these columns.
    #[inline(always)]
    unsafe fn run<V: Simd, const M: usize, const NV: usize>(self, i: usize, x: usize, left: usize) {
        // SAFETY: the offsets are those of the contract.
        unsafe {
            let (p, c) = (self.p.add(i * self.p_stride), self.c.add(i * self.c_stride + x));
            let is_partial = NV == 1 && left < V::LANES;
            let mut acc = [[V::splat(0.0); NV]; M];
            for (i, row) in acc.iter_mut().enumerate() {
                for (j, sum) in row.iter_mut().enumerate() {
                    *sum = self.result.start(c.add(i * self.c_stride + j * V::LANES), left - j * V::LANES);
                }
            }
            if is_partial && x + V::LANES > self.v_len {
                for k in 0..self.n {
                    let y: V = B::partial(self.v.add(k * self.v_stride), x, self.v_len - x);
                    for (i, row) in acc.iter_mut().enumerate() {
                        row[0] = V::splat(*p.add(i * self.p_stride + k)).mul_add(y, row[0]);
                    }
                }
            } else {
                let bytes = |columns| columns * size_of::<B>() / B::LEN;
                // The other tiles, few as they are, ask for what is there already: a hint costs less than a branch.
                let n_ahead = if i == 0 && self.ahead { self.n } else { 0 };
                let ahead = self.v.wrapping_add(n_ahead * self.v_stride).cast::<u8>().wrapping_add(n_ahead * bytes(x));
                for k in 0..self.n {
                    let v = self.v.add(k * self.v_stride);
                    if AHEAD {
                        let at = ahead.wrapping_add(bytes(NV * V::LANES) * k);
                        for line in (0..bytes(NV * V::LANES)).step_by(LINE) {
                            V::prefetch(at.wrapping_add(line));
                        }
                    }
                    if M == 3 && NV == 4 && NV > V::NN_VECS {
                        for half in 0..2 {
                            let y = B::vectors::<V, 2>(v, x + 2 * half * V::LANES);
                            for (i, row) in acc.iter_mut().enumerate() {
                                let p = V::splat(*p.add(i * self.p_stride + k));
                                for (sum, y) in row[2 * half..].iter_mut().zip(y) {
                                    *sum = p.mul_add(y, *sum);
                                }
                            }
                            // Factors are loaded once more: there are not the registers to keep them.
                            compiler_fence(Ordering::SeqCst);
                        }
                        continue;
                    }
                    let y = B::vectors::<V, NV>(v, x);
                    for (i, row) in acc.iter_mut().enumerate() {
                        let p = V::splat(*p.add(i * self.p_stride + k));
                        for (sum, y) in row.iter_mut().zip(y) {
                            *sum = p.mul_add(y, *sum);
                        }
                    }
                }
            }
            for (i, row) in acc.into_iter().enumerate() {
                for (j, sum) in row.into_iter().enumerate() {
                    let (c, left) = (c.add(i * self.c_stride + j * V::LANES), left - j * V::LANES);
                    let sum: V = self.result.finish(sum, c, x + j * V::LANES, left);
                    if is_partial { sum.store_partial(c, left) } else { sum.store(c) }
                }
            }
        }
    }
}

#[inline(always)]
pub(super) unsafe fn sgemm_nn<V: Simd>(alpha: f32, p: Rows<f32>, v: Rows<f32>, out: RowsMut<f32>) {
    // SAFETY: the caller's contract.
    unsafe { nn::<V, f32, _, false>(p, v, out, Scaled(alpha)) }
}

#[inline(always)]
pub(super) unsafe fn sgemm_nn_acc<V: Simd>(p: Rows<f32>, v: Rows<f32>, out: RowsMut<f32>) {
    // SAFETY: the caller's contract.
    unsafe { nn::<V, f32, _, false>(p, v, out, Add) }
}

#[inline(always)]
pub(super) unsafe fn scores_f16<V: Simd>(alpha: f32, q: Rows<f32>, k: Rows<f16>, out: RowsMut<f32>) {
    // SAFETY: the caller's contract.
    unsafe { nn::<V, f16, _, true>(q, k, out, Scaled(alpha)) }
}

/// Query rows from which widening a block of codes once beats converting them in registers for each few rows.
const WIDEN_ROWS: usize = 8;

#[inline(always)]
pub(super) unsafe fn scores_q8_0<V: Simd>(alpha: f32, q: Rows<f32>, k: &[KeysQ8_0], first: usize, out: RowsMut<f32>) {
    const LEN: usize = KeysQ8_0::LEN;
    const N: usize = KEY_GROUP;
    let n = N - first;
    let mut floats = [const { MaybeUninit::<f32>::uninit() }; LEN * N];
    let floats: *mut f32 = floats.as_mut_ptr().cast();
    for (b, keys) in k.iter().enumerate() {
        // SAFETY: the shapes agree: a block's rows are those of 32 elements of the queries. The buffer holds a block, and is read
        // only after it was filled.
        unsafe {
            let scales = (&raw const keys.scales).cast::<f16>().add(first);
            let result = ByColumn { alpha, scales, n, is_first: b == 0 };
            let q = Rows::from_raw(q.as_ptr().add(b * LEN), q.n_rows(), LEN, q.stride());
            let into = RowsMut::from_raw(out.as_ptr(), out.n_rows(), out.len(), out.stride());
            let codes = (&raw const keys.codes).cast::<i8>();
            if q.n_rows() < WIDEN_ROWS {
                nn::<V, i8, _, true>(q, Rows::from_raw(codes.add(first), LEN, n, N), into, result);
            } else {
                convert::widen::<V, i8>(codes, floats, LEN * N);
                nn::<V, f32, _, false>(q, Rows::from_raw(floats.add(first), LEN, n, N), into, result);
            }
        }
    }
}

#[inline(always)]
pub(super) unsafe fn values_f16<V: Simd>(p: Rows<f32>, v: Rows<f16>, out: RowsMut<f32>) {
    // SAFETY: the caller's contract.
    unsafe { nn::<V, f16, _, true>(p, v, out, Add) }
}

#[inline(always)]
pub(super) unsafe fn values_q8_0<V: Simd>(p: Rows<f32>, v: Rows<BlockQ8_0>, out: RowsMut<f32>) {
    // SAFETY: the caller's contract.
    unsafe { nn::<V, BlockQ8_0, _, true>(p, v, out, Add) }
}
