//! Products of activations with each other in bf16, for tiers that have matrix instructions for it: attention's scores and weighted values.
//!
//! The left factor, queries or weights, is rows ([`Bf16Rows`]). The right one, keys or values, meets many of them and is put into the
//! instructions' order once ([`Bf16Factor`]).

use std::ops::Range;

use half::f16;

use super::IntKernels;
use super::bf16::{Bf16Rows, Bf16View, Digits, Line};
use crate::kernels::Kernels;
use crate::kernels::float::{Rows, RowsMut};

/// Rows of a factor that a tile holds.
pub(super) const TILE_ROWS: usize = 32;
/// Columns of a factor that a tile holds.
pub(super) const TILE_COLUMNS: usize = Bf16Factor::COLUMNS;
/// Cache lines of a tile.
const TILE_LINES: usize = 16;

/// 16 lines; line `p` holds rows `2 p` and `2 p + 1` of 16 columns, next to each other.
pub(super) type FactorTile = [Line; TILE_LINES];

/// The right factor of products of rows: a matrix rounded to bf16, in tiles.
#[derive(Debug)]
pub struct Bf16Factor {
    /// First digits of all tiles, then second digits: all tiles of 16 columns after each other.
    tiles: Box<[FactorTile]>,
    n_rows: usize,
    n_columns: usize,
    digits: Digits,
}

impl Bf16Factor {
    /// Columns come in so many.
    pub const COLUMNS: usize = 16;

    /// A factor of zeros of this shape.
    ///
    /// # Panics
    /// If `n_columns` is not a multiple of [`Bf16Factor::COLUMNS`].
    pub fn new(n_rows: usize, n_columns: usize, digits: Digits) -> Self {
        assert!(n_columns.is_multiple_of(TILE_COLUMNS), "{n_columns} columns are not whole tiles of {TILE_COLUMNS}");
        let n_tiles = n_rows.div_ceil(TILE_ROWS) * (n_columns / TILE_COLUMNS) * digits.count();
        Self { tiles: vec![[Line::ZERO; TILE_LINES]; n_tiles].into(), n_rows, n_columns, digits }
    }

    /// Tiles of the first digits.
    pub(super) fn n_tiles(&self) -> usize {
        self.tiles.len() / self.digits.count()
    }

    /// Tiles of 16 columns.
    fn row_tiles(&self) -> usize {
        self.n_rows.div_ceil(TILE_ROWS)
    }

    /// Digits that products with it have.
    pub fn digits(&self) -> Digits {
        self.digits
    }

    /// Rounds `x` into the factor's first rows and `first_column..`. What is left of the last tiles' rows becomes zero.
    ///
    /// # Panics
    /// If `x` does not fit, its columns are not whole tiles of 16, or the tier has no bf16 kernels.
    pub fn set_f16(&mut self, kernels: &Kernels, first_column: usize, x: Rows<f16>) {
        let at = self.check(first_column, x.n_rows(), x.len());
        // SAFETY: the table exists, so the CPU has the tier's features; the shape was checked.
        unsafe { (kernels.int.bf16().set_f16)(x, self.part(at)) }
    }

    /// As [`Bf16Factor::set_f16`].
    pub fn set_f32(&mut self, kernels: &Kernels, first_column: usize, x: Rows<f32>) {
        let at = self.check(first_column, x.n_rows(), x.len());
        // SAFETY: as above.
        unsafe { (kernels.int.bf16().set_f32)(x, self.part(at)) }
    }

    /// The tile that columns from `first` on begin with.
    fn check(&self, first: usize, n_rows: usize, n_columns: usize) -> usize {
        let whole = first.is_multiple_of(TILE_COLUMNS) && n_columns.is_multiple_of(TILE_COLUMNS);
        assert!(whole, "columns {first}.. and {n_columns} more are not whole tiles of {TILE_COLUMNS}");
        assert!(n_rows <= self.n_rows && first + n_columns <= self.n_columns, "{n_rows} x {n_columns} do not fit");
        first / TILE_COLUMNS * self.row_tiles()
    }

    fn part(&mut self, first: usize) -> FactorPart {
        let (n_tiles, row_tiles) = (self.n_tiles(), self.row_tiles());
        let (high, low) = self.tiles.split_at_mut(n_tiles);
        let low = if low.is_empty() { std::ptr::null_mut() } else { low[first..].as_mut_ptr() };
        FactorPart { high: high[first..].as_mut_ptr(), low, row_tiles }
    }
}

/// Where tiles are to be written.
pub(super) struct FactorPart {
    pub high: *mut FactorTile,
    /// Null if there is one digit.
    pub low: *mut FactorTile,
    /// From one 16 columns to the next.
    pub row_tiles: usize,
}

/// What a product of rows works on, already checked.
pub(super) struct RowsProduct<'a> {
    pub x: Bf16View<'a>,
    /// First digits.
    pub high: *const FactorTile,
    /// Second digits, if there are two.
    pub low: *const FactorTile,
    /// From one 16 columns of the factor to the next.
    pub row_tiles: usize,
    /// How many of these take part.
    pub k_tiles: usize,
    pub column_tiles: usize,
    pub digits: Digits,
    /// Whether products are added to what is there.
    pub add: bool,
    pub out: *mut f32,
    pub out_stride: usize,
}

impl IntKernels {
    /// `out[i][j] = sum_k x[i][k] * w[k][j]`, or that added to `out`, for the first `n_rows` rows of `w` and the columns that `out` has. Beyond
    /// `n_rows`, up to a multiple of 32, one of the factors must be zero. A result does not depend on how many rows `x` has.
    ///
    /// # Panics
    /// If the shapes do not fit, the columns are not whole tiles of 16, or the tier has no bf16 kernels.
    pub fn product_of_rows(&self, x: Bf16View, w: &Bf16Factor, n_rows: usize, add: bool, out: RowsMut<f32>) {
        let k_tiles = n_rows.div_ceil(TILE_ROWS);
        assert!(n_rows <= w.n_rows && k_tiles * TILE_ROWS <= x.k(), "{n_rows} of {} x {}", x.k(), w.n_rows);
        assert!(out.len() <= w.n_columns && out.len().is_multiple_of(TILE_COLUMNS), "{} columns", out.len());
        assert!(out.n_rows() == x.n_rows(), "{} rows become {}", x.n_rows(), out.n_rows());
        let high = w.tiles.as_ptr();
        let p = RowsProduct {
            x,
            high,
            low: high.wrapping_add(w.tiles.len() - w.n_tiles()),
            row_tiles: w.row_tiles(),
            k_tiles,
            column_tiles: out.len() / TILE_COLUMNS,
            digits: w.digits,
            add,
            out: out.as_ptr(),
            out_stride: out.stride(),
        };
        // SAFETY: the table exists, so the CPU has the tier's features; the shapes were checked.
        unsafe { (self.bf16().product_of_rows)(&p) }
    }
}

impl Bf16Rows {
    /// Makes row `row` the softmax's weights of `scores`: `e^(scores[i] - max)` for `i` in `seen`, but 2e-35 where that is less, else 0, up to a multiple of 32. Rounds
    /// them to so many digits and returns the sum of what was rounded. Relative error before rounding: 4e-6 and what rounding `scores[i] - max` does.
    ///
    /// # Safety
    /// As [`Bf16Rows::round_row`].
    ///
    /// # Panics
    /// If there is no such row, it is shorter than `scores`, `seen` reaches beyond these, or the tier has no bf16 kernels.
    pub unsafe fn exp_row(
        &self,
        kernels: &Kernels,
        row: usize,
        scores: &[f32],
        seen: Range<usize>,
        max: f32,
        digits: Digits,
    ) -> f32 {
        assert!(scores.len() <= self.k() && seen.start <= seen.end && seen.end <= scores.len());
        // SAFETY: the row is as long as the scores, rounded up to a line, and the caller's alone; the kernel runs on this CPU because
        // `kernels` exists.
        unsafe { (kernels.int.bf16().exp_row)(scores, seen, max, self.digits_mut(row), digits) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernels() -> impl Iterator<Item = &'static Kernels> {
        Kernels::available().into_iter().filter(|kernels| kernels.int.has_bf16())
    }

    /// A number in -1..1 for each `i`.
    fn number(i: usize) -> f32 {
        ((i as u32).wrapping_mul(2_654_435_769) >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| number(i + seed)).collect()
    }

    /// Rows of `k`, which is rounded up to whole lines.
    fn left(kernels: &Kernels, x: &[f32], m: usize, k: usize) -> Bf16Rows {
        let rows = Bf16Rows::new(m, k.next_multiple_of(TILE_ROWS));
        for i in 0..m {
            let mut row = vec![0.0; rows.k()];
            row[..k].copy_from_slice(&x[i * k..(i + 1) * k]);
            // SAFETY: nobody else has the rows.
            unsafe { rows.round_row(kernels, i, &row) };
        }
        rows
    }

    #[test]
    fn products_of_rows_are_those_of_floats() {
        for kernels in kernels() {
            for (m, k, n) in [(1, 1, 16), (3, 10, 64), (16, 64, 32), (33, 63, 48), (48, 128, 64), (47, 40, 144)] {
                for digits in [Digits::One, Digits::Two] {
                    let (x, w, start) = (numbers(m * k, 1), numbers(k * n, 7), numbers(m * n, 5));
                    let rows = left(kernels, &x, m, k);
                    let mut factor = Bf16Factor::new(k, n, digits);
                    factor.set_f32(kernels, 0, Rows::new(&w, k, n, n));
                    let product = |add: bool, range: Range<usize>| {
                        let mut out = start[range.start * n..range.end * n].to_vec();
                        // SAFETY: nobody writes the rows.
                        let view = unsafe { rows.view(range.clone()) };
                        let into = RowsMut::new(&mut out, range.len(), n, n);
                        kernels.int.product_of_rows(view, &factor, k, add, into);
                        out
                    };
                    for add in [false, true] {
                        let all = product(add, 0..m);
                        for (i, &got) in all.iter().enumerate() {
                            let (r, c) = (i / n, i % n);
                            let terms = (0..k).map(|j| f64::from(x[r * k + j]) * f64::from(w[j * n + c]));
                            let (sum, size) = terms.fold((0.0, 0.0), |(s, m), p| (s + p, m + p.abs()));
                            let want = sum + if add { f64::from(start[i]) } else { 0.0 };
                            let bound = size * if digits == Digits::One { 8e-3 } else { 3e-5 } + 1e-6;
                            let error = (f64::from(got) - want).abs();
                            assert!(error <= bound, "{m} x {k} x {n}, {digits:?}, {add}, {r}, {c}: {got}, not {want}");
                        }
                        assert!(product(add, m - 1..m) == all[(m - 1) * n..], "{m} x {k} x {n}: a row alone");
                    }
                }
            }
        }
    }

    #[test]
    fn a_factor_is_set_in_parts_of_either_type() {
        for kernels in kernels() {
            let (k, n) = (20, 96);
            let halves: Vec<f16> = numbers(k * n, 3).into_iter().map(f16::from_f32).collect();
            let floats: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
            for digits in [Digits::One, Digits::Two] {
                let mut one = Bf16Factor::new(k, n, digits);
                one.set_f32(kernels, 0, Rows::new(&floats, k, n, n));
                let mut parts = Bf16Factor::new(k, n, digits);
                for at in [64, 0] {
                    let n_columns = (n - at).min(64);
                    parts.set_f16(kernels, at, Rows::new(&halves[at..], k, n_columns, n));
                }
                assert!(one.tiles.iter().flatten().eq(parts.tiles.iter().flatten()));
            }
        }
    }

    #[test]
    fn weights_are_exponentials_of_what_is_seen() {
        for kernels in kernels() {
            let rows = Bf16Rows::new(2, 128);
            for (n, seen) in [(128, 0..128), (128, 3..77), (70, 33..70), (33, 0..0), (5, 0..1), (96, 31..33)] {
                let mut scores: Vec<f32> = numbers(n, 11).iter().map(|x| 30.0 * x).collect();
                let max = scores[seen.clone()].iter().copied().fold(f32::NEG_INFINITY, f32::max);
                for (i, x) in scores.iter_mut().enumerate() {
                    if !seen.contains(&i) {
                        *x = f32::NAN;
                    }
                }
                for digits in [Digits::One, Digits::Two] {
                    // SAFETY: nobody else has the rows.
                    let (sum, [first, second]) =
                        unsafe { (rows.exp_row(kernels, 1, &scores, seen.clone(), max, digits), rows.digits_mut(1)) };
                    let mut total = 0.0;
                    for i in 0..n.next_multiple_of(TILE_ROWS) {
                        let want = if seen.contains(&i) { f64::from(scores[i] - max).exp() } else { 0.0 };
                        let digit = |x: u16| f64::from(half::bf16::from_bits(x).to_f32());
                        let (got, off) = match digits {
                            Digits::One => (digit(first[i]), 4e-3),
                            Digits::Two => (digit(first[i]) + digit(second[i]), 3e-5),
                        };
                        assert!((got - want).abs() <= want * off + 1e-38, "{n}, {seen:?}, {i}: {got}, not {want}");
                        total += want;
                    }
                    assert!((f64::from(sum) - total).abs() <= 1e-5 * total, "{n}, {seen:?}: {sum}, not {total}");
                }
            }
        }
    }
}
