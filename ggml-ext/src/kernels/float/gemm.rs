//! The two small matrix products of attention.
//!
//! Both keep a tile of results in registers and give each result its own chain of multiply-adds in a fixed order. Which
//! rows share a tile therefore never changes a bit of any of them: one query row or a whole ubatch, on one thread or many,
//! come out the same.

use super::elem::{BlockQ8_0, Elem};
use super::simd::{LINE, Simd};
use super::{Rows, RowsMut, convert};
use half::f16;
use std::mem::MaybeUninit;

/// Columns (rows of `b`) of the tile of [`sgemm_nt`].
const NT_COLS: usize = 4;

/// How far ahead a few query rows' keys and values are asked for: the hardware stops at the end of a small page, and a block is over
/// before it has found its stride. Measured on Zen 4, generating at depth 4096: a sixth faster than without; 2 and 8 KiB gain little.
const PREFETCH_BYTES: usize = 4 << 10;

/// Longest row that is converted to f32 once for all tiles of query rows: that of every head dimension in use.
const MAX_CONVERTED: usize = 256;

/// `c[i][j] = alpha * a[i] . b[j]`.
#[inline(always)]
pub(super) unsafe fn sgemm_nt<V: Simd>(alpha: f32, a: Rows<f32>, b: Rows<f32>, c: RowsMut<f32>) {
    let (n, d) = (b.n_rows(), a.len());
    for j in (0..n).step_by(NT_COLS) {
        // SAFETY: the pointers are rows below `n` of `b`, the last one repeated where fewer than four are left.
        unsafe {
            nt_columns::<V, f32>(d, alpha, &a, four_rows(&b, j), &c, j);
        }
    }
}

/// [`sgemm_nt`] with rows of other items: converted inside the tile when one tile covers all rows of `q`, else once, beforehand.
///
/// # Safety
/// As [`Simd`]'s; the shapes agree.
#[inline(always)]
unsafe fn scores<V: Simd, B: Elem>(alpha: f32, q: Rows<f32>, k: Rows<B>, out: RowsMut<f32>) {
    let (n, d) = (k.n_rows(), q.len());
    let in_tile = q.n_rows() <= V::NT_ROWS || d > MAX_CONVERTED;
    let mut converted = [const { MaybeUninit::<f32>::uninit() }; NT_COLS * MAX_CONVERTED];
    let converted: *mut f32 = converted.as_mut_ptr().cast();
    for j in (0..n).step_by(NT_COLS) {
        let rows = four_rows(&k, j);
        // SAFETY: the pointers are rows below `n` of `k`, the last one repeated where fewer than four are left; of each of the
        // buffer's four rows, `d <= MAX_CONVERTED` floats are written and then read.
        unsafe {
            for row in rows {
                prefetch::<V, B>(row, 0, d);
            }
            if in_tile {
                nt_columns::<V, B>(d, alpha, &q, rows, &out, j);
                continue;
            }
            let floats = [0, 1, 2, 3].map(|t| converted.wrapping_add(t * MAX_CONVERTED));
            for (src, dst) in rows.into_iter().zip(floats) {
                convert::widen::<V, B>(src, dst, d);
            }
            nt_columns::<V, f32>(d, alpha, &q, floats.map(|r| r.cast_const()), &out, j);
        }
    }
}

#[inline(always)]
pub(super) unsafe fn scores_f16<V: Simd>(alpha: f32, q: Rows<f32>, k: Rows<f16>, out: RowsMut<f32>) {
    // SAFETY: the caller's contract.
    unsafe { scores::<V, f16>(alpha, q, k, out) }
}

#[inline(always)]
pub(super) unsafe fn scores_q8_0<V: Simd>(alpha: f32, q: Rows<f32>, k: Rows<BlockQ8_0>, out: RowsMut<f32>) {
    // SAFETY: the caller's contract.
    unsafe { scores::<V, BlockQ8_0>(alpha, q, k, out) }
}

/// Asks for what lies [`PREFETCH_BYTES`] beyond elements `at..at + n` of a row.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
unsafe fn prefetch<V: Simd, B: Elem>(row: *const B, at: usize, n: usize) {
    let first = row.cast::<u8>().wrapping_add(PREFETCH_BYTES + at * size_of::<B>() / B::LEN);
    for i in (0..n * size_of::<B>() / B::LEN).step_by(LINE) {
        // SAFETY: a hint, which any address may be given.
        unsafe { V::prefetch(first.wrapping_add(i)) }
    }
}

/// Rows `j..j + 4`, the last one repeated where there are fewer.
#[inline(always)]
fn four_rows<T>(b: &Rows<T>, j: usize) -> [*const T; NT_COLS] {
    [0, 1, 2, 3].map(|t| b.row_ptr((j + t).min(b.n_rows() - 1)))
}

/// Columns `j..j + 4`, as many as there are, of all rows of the result.
///
/// # Safety
/// `b` points at four rows of `d` elements, `a` has rows of `d` and `c` is of `a`'s rows and has column `j`.
#[inline(always)]
unsafe fn nt_columns<V: Simd, B: Elem>(
    d: usize,
    alpha: f32,
    a: &Rows<f32>,
    b: [*const B; NT_COLS],
    c: &RowsMut<f32>,
    j: usize,
) {
    let (m, n_cols) = (a.n_rows(), NT_COLS.min(c.len() - j));
    let (a_stride, c_stride) = (a.stride(), c.stride());
    let mut i = 0;
    while i < m {
        let rows = V::NT_ROWS.min(m - i);
        // SAFETY: rows `i..i + rows` are below `m`, and only the columns that exist are stored.
        unsafe {
            let (ap, cp) = (a.row_ptr(i), c.row_ptr(i).add(j));
            match rows {
                4 => nt_tile::<V, B, 4>(d, alpha, ap, a_stride, b, cp, c_stride, n_cols),
                3 => nt_tile::<V, B, 3>(d, alpha, ap, a_stride, b, cp, c_stride, n_cols),
                2 => nt_tile::<V, B, 2>(d, alpha, ap, a_stride, b, cp, c_stride, n_cols),
                _ => nt_tile::<V, B, 1>(d, alpha, ap, a_stride, b, cp, c_stride, n_cols),
            }
        }
        i += rows;
    }
}

/// `M` rows of `a` against four rows of `b`: `4 * M` sums in registers, vectorised along the rows.
///
/// # Safety
/// `a` and `c` point at `M` rows of their strides, the pointers in `b` at `d` elements each, `c`'s rows hold `n_cols`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn nt_tile<V: Simd, B: Elem, const M: usize>(
    d: usize,
    alpha: f32,
    a: *const f32,
    a_stride: usize,
    b: [*const B; NT_COLS],
    c: *mut f32,
    c_stride: usize,
    n_cols: usize,
) {
    // SAFETY: element offsets stay below `d` in rows and below `n_cols` in results, as the contract allows.
    unsafe {
        let mut acc = [[V::splat(0.0); NT_COLS]; M];
        let mut av = [V::splat(0.0); M];
        let mut k = 0;
        // Two vectors of a block at a time, which share its scale; the sums run in the same order.
        while B::LEN > 1 && k + 2 * V::LANES <= d {
            for (j, row) in b.into_iter().enumerate() {
                let [y, z] = B::vectors::<V, 2>(row, k);
                for (i, sums) in acc.iter_mut().enumerate() {
                    let x = a.add(i * a_stride + k);
                    sums[j] = V::load(x.add(V::LANES)).mul_add(z, V::load(x).mul_add(y, sums[j]));
                }
            }
            k += 2 * V::LANES;
        }
        while k + V::LANES <= d {
            for (i, x) in av.iter_mut().enumerate() {
                *x = V::load(a.add(i * a_stride + k));
            }
            for (j, row) in b.into_iter().enumerate() {
                let y = B::vector::<V>(row, k);
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
                let y = B::partial::<V>(row, k, d - k);
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

/// `c[i] += sum_k p[i][k] * v[k]`, the sum in the order of `k`. With `AHEAD`, rows that lie one after the other are taken for the
/// beginning of more of them, which is asked for.
///
/// # Safety
/// As [`Simd`]'s; the shapes agree.
#[inline(always)]
unsafe fn nn_acc<V: Simd, B: Elem, const AHEAD: bool>(p: Rows<f32>, v: Rows<B>, c: RowsMut<f32>) {
    let (m, n, d) = (p.n_rows(), v.n_rows(), c.len());
    if n == 0 {
        return;
    }
    let mut x = 0;
    // SAFETY: strips start at `x` with `x + width <= d`, row tiles at `i` with `i + rows <= m`, so every row and
    // element a tile names exists in `p`, `v` and `c`.
    unsafe {
        while x < d {
            let left = d - x;
            let width = strip::<V>(m, left);
            let mut i = 0;
            while i < m {
                // A single row needs a wide strip to have enough independent sums in flight; a wide strip leaves
                // registers for only a few rows.
                let rows = if width > V::NN_VECS * V::LANES { 1 } else { V::NN_ROWS.min(m - i) };
                let t = NnTile {
                    n,
                    p: p.row_ptr(i),
                    p_stride: p.stride(),
                    v: v.row_ptr(0),
                    at: x,
                    v_stride: v.stride(),
                    c: c.row_ptr(i).add(x),
                    c_stride: c.stride(),
                    ahead: AHEAD && i == 0 && v.stride() == v.len(),
                };
                match width / V::LANES {
                    8 => t.run::<V, 1, 8>(),
                    4 => t.rows::<V, 4>(rows),
                    2 => t.rows::<V, 2>(rows),
                    1 => t.rows::<V, 1>(rows),
                    _ => {
                        for r in 0..rows {
                            t.partial::<V>(r, left);
                        }
                    }
                }
                i += rows;
            }
            x += if width == 0 { left } else { width };
        }
    }
}

/// Width in elements of the next strip of columns: 8, 4, 2 or 1 vectors, 0 when less than a vector is left.
#[inline(always)]
fn strip<V: Simd>(m: usize, left: usize) -> usize {
    let widest = if m == 1 { 8 } else { V::NN_VECS };
    [8, 4, 2, 1].into_iter().map(|vecs| vecs * V::LANES).find(|&w| w <= left && w <= widest * V::LANES).unwrap_or(0)
}

/// Where a tile of [`sgemm_nn_acc`] reads and writes.
#[derive(Clone, Copy)]
struct NnTile<B> {
    n: usize,
    p: *const f32,
    p_stride: usize,
    v: *const B,
    v_stride: usize,
    /// First element of the strip in rows of `v`.
    at: usize,
    c: *mut f32,
    c_stride: usize,
    /// Whether to ask for what lies beyond the rows of `v`.
    ahead: bool,
}

impl<B: Elem> NnTile<B> {
    /// # Safety
    /// The pointers are valid for `rows` rows and `NV` vectors; see [`Self::run`].
    #[inline(always)]
    unsafe fn rows<V: Simd, const NV: usize>(self, rows: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            match rows {
                6 => self.run::<V, 6, NV>(),
                5 => self.run::<V, 5, NV>(),
                4 => self.run::<V, 4, NV>(),
                3 => self.run::<V, 3, NV>(),
                2 => self.run::<V, 2, NV>(),
                _ => self.run::<V, 1, NV>(),
            }
        }
    }

    /// `M` rows of results, `NV` vectors each, in registers.
    ///
    /// # Safety
    /// `p` and `c` are valid for `M` rows of their strides, `v` for `n` rows; rows of `p` hold `n` elements, rows of `v`
    /// and `c` hold `NV` vectors.
    #[inline(always)]
    unsafe fn run<V: Simd, const M: usize, const NV: usize>(self) {
        // SAFETY: the offsets are those of the contract.
        unsafe {
            let mut acc = [[V::splat(0.0); NV]; M];
            for (i, row) in acc.iter_mut().enumerate() {
                for (j, sum) in row.iter_mut().enumerate() {
                    *sum = V::load(self.c.add(i * self.c_stride + j * V::LANES));
                }
            }
            for k in 0..self.n {
                let v = self.v.add(k * self.v_stride);
                if self.ahead {
                    prefetch::<V, B>(v, self.at, NV * V::LANES);
                }
                let vv = B::vectors::<V, NV>(v, self.at);
                for (i, row) in acc.iter_mut().enumerate() {
                    let p = V::splat(*self.p.add(i * self.p_stride + k));
                    for (sum, x) in row.iter_mut().zip(vv) {
                        *sum = p.mul_add(x, *sum);
                    }
                }
            }
            for (i, row) in acc.into_iter().enumerate() {
                for (j, sum) in row.into_iter().enumerate() {
                    sum.store(self.c.add(i * self.c_stride + j * V::LANES));
                }
            }
        }
    }

    /// One row of fewer than `LANES` results.
    ///
    /// # Safety
    /// As [`Self::run`] for row `i`, with `len` elements in the rows of `v` and `c`.
    #[inline(always)]
    unsafe fn partial<V: Simd>(self, i: usize, len: usize) {
        // SAFETY: the offsets are those of the contract.
        unsafe {
            let c = self.c.add(i * self.c_stride);
            let mut sum = V::load_partial(c, len);
            for k in 0..self.n {
                let p = V::splat(*self.p.add(i * self.p_stride + k));
                sum = p.mul_add(B::partial::<V>(self.v.add(k * self.v_stride), self.at, len), sum);
            }
            sum.store_partial(c, len);
        }
    }
}

#[inline(always)]
pub(super) unsafe fn sgemm_nn_acc<V: Simd>(p: Rows<f32>, v: Rows<f32>, out: RowsMut<f32>) {
    // SAFETY: the caller's contract.
    unsafe { nn_acc::<V, f32, false>(p, v, out) }
}

#[inline(always)]
pub(super) unsafe fn values_f16<V: Simd>(p: Rows<f32>, v: Rows<f16>, out: RowsMut<f32>) {
    // SAFETY: the caller's contract.
    unsafe { nn_acc::<V, f16, true>(p, v, out) }
}

#[inline(always)]
pub(super) unsafe fn values_q8_0<V: Simd>(p: Rows<f32>, v: Rows<BlockQ8_0>, out: RowsMut<f32>) {
    // SAFETY: the caller's contract.
    unsafe { nn_acc::<V, BlockQ8_0, true>(p, v, out) }
}
