//! Activations quantised to int8, with a second digit where one is not enough.
//!
//! A few channels of a language model's activations are tens of times larger than the rest. In a block that holds one,
//! 8 bits scaled to the largest leave the others next to nothing: SmolLM2 then chooses another token than the exact
//! product does at 3.6 % of positions. Such *fine* blocks, whose step would exceed a given part of the row's root mean
//! square, have a second block with what the first leaves over, in steps 1/254 of the first's (1/127 on tiers with
//! `Isa::UNSIGNED_SECOND`). A row lists its fine blocks, and products run over the second digits of just those, after the first digits
//! of all.

use std::cell::UnsafeCell;
use std::ops::Range;

use crate::kernels::Kernels;

/// Elements per block.
pub(super) const BLOCK: usize = 32;

/// A sensible `fine_step` of [`Q8Rows::quantize_row`]. On SmolLM2 (Q4_1, 697 positions), 0.02 everywhere leaves a mean KL divergence of
/// 2.7e-4 from exact products and the most likely token the same at 99.4 % of positions; no second digits at all, 3.1e-3 and
/// 96.4 %. About a third of the blocks are fine then. What still parts are near ties. The value was picked on those same
/// positions and on greedy texts.
pub const FINE_STEP: f32 = 0.02;

/// 32 activations, `x[i] = scale * codes[i]`, with the sums that products with offset or unsigned weight codes need,
/// all on one cache line: a product touches each block once per row group.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Q8Block {
    /// -127..=127.
    pub codes: [i8; BLOCK],
    /// The largest magnitude / 127; 0 if all elements are 0.
    pub scale: f32,
    /// `scale` times the sum of the codes, the second digits' included.
    pub sum: f32,
    /// Minus the sum of the codes.
    pub neg_sum: i32,
    /// The same for the first and the last 16.
    pub neg_half: [i32; 2],
    /// `sum` of the first and the last 16.
    pub half: [f32; 2],
    /// 1 if there are second digits, else 0.
    pub fine: u32,
}

const _: () = assert!(size_of::<Q8Block>() == 64);

impl Q8Block {
    pub const ZERO: Self =
        Q8Block { codes: [0; BLOCK], scale: 0.0, sum: 0.0, neg_sum: 0, neg_half: [0; 2], half: [0.0; 2], fine: 0 };
}

/// Rows of activations in int8, written and read by several threads in turn.
///
/// Every 32 elements have a scale of their own: their largest magnitude / 127. Codes are rounded to nearest, ties to
/// even. Rows may be shorter than the capacity says, and are independent of each other.
#[derive(Debug)]
pub struct Q8Rows {
    /// First digits of all rows, then second digits of all rows.
    blocks: Box<[UnsafeCell<Q8Block>]>,
    /// For each row, how many of its blocks are fine and which, in ascending order.
    fine: Box<[UnsafeCell<u32>]>,
    stride: usize,
    k: usize,
}

// SAFETY: the cells are written by `quantize_row` and read through `view` only, whose callers promise that no row is
// written while anybody else reads or writes it.
unsafe impl Sync for Q8Rows {}

impl Q8Rows {
    /// Room for `n_rows` rows of `k` elements.
    ///
    /// # Panics
    /// If `k` is not a multiple of 32.
    pub fn new(n_rows: usize, k: usize) -> Self {
        assert!(k.is_multiple_of(BLOCK), "rows of {k} are not whole blocks of {BLOCK}");
        // An odd number of cache lines per row, so that the same column of neighbouring rows, which a product reads
        // together, falls into different cache sets.
        let stride = (k / BLOCK) | 1;
        let blocks = (0..2 * n_rows * stride).map(|_| UnsafeCell::new(Q8Block::ZERO)).collect();
        let fine = (0..n_rows * (k / BLOCK + 1)).map(|_| UnsafeCell::new(0)).collect();
        Q8Rows { blocks, fine, stride, k }
    }

    /// Rows there is room for.
    pub fn n_rows(&self) -> usize {
        self.blocks.len() / 2 / self.stride
    }

    /// Elements per row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Quantises `x` into row `row`. Blocks whose step exceeds `fine_step` times the root mean square of `x` get a second digit: 0 gives one
    /// to every block, infinity to none. Elements that are not finite make products with their row meaningless.
    ///
    /// # Safety
    /// No other thread reads or writes this row at the same time, and no view of it exists.
    ///
    /// # Panics
    /// If there is no such row or `x` is not `k` long.
    pub unsafe fn quantize_row(&self, kernels: &Kernels, row: usize, x: &[f32], fine_step: f32) {
        assert!(row < self.n_rows() && x.len() == self.k, "row {row} of {}, {} elements", self.n_rows(), x.len());
        let (first, second) = self.blocks.split_at(self.blocks.len() / 2);
        // SAFETY: UnsafeCell<T> has the layout of T; the caller promises that the row is this thread's alone. The
        // kernel runs on this CPU because `kernels` exists.
        unsafe {
            let digits = [first, second].map(|cells| {
                let cells = &cells[row * self.stride..][..self.k / BLOCK];
                std::slice::from_raw_parts_mut(UnsafeCell::raw_get(cells.as_ptr()), cells.len())
            });
            let n = self.k / BLOCK + 1;
            let fine = &self.fine[row * n..(row + 1) * n];
            let fine = std::slice::from_raw_parts_mut(UnsafeCell::raw_get(fine.as_ptr()), n);
            (kernels.int.quantize_row)(x, fine_step, digits, fine);
        }
    }

    /// Quantises rows of `k` elements, the first into row 0, as [`Q8Rows::quantize_row`].
    ///
    /// # Panics
    /// If `x` is not whole rows, or more than there is room for.
    pub fn quantize(&mut self, kernels: &Kernels, x: &[f32], fine_step: f32) {
        assert!(self.k > 0 && x.len().is_multiple_of(self.k), "{} elements in rows of {}", x.len(), self.k);
        for (row, x) in x.chunks_exact(self.k).enumerate() {
            // SAFETY: `&mut self` excludes views and other writers.
            unsafe { self.quantize_row(kernels, row, x, fine_step) }
        }
    }

    /// The operand of a product: rows `rows`.
    ///
    /// # Safety
    /// No thread writes these rows while the view is in use.
    ///
    /// # Panics
    /// If there are no such rows.
    pub unsafe fn view(&self, rows: Range<usize>) -> Q8View<'_> {
        assert!(rows.start <= rows.end && rows.end <= self.n_rows(), "rows {rows:?} of {}", self.n_rows());
        let (first, second) = self.blocks.split_at(self.blocks.len() / 2);
        // SAFETY: UnsafeCell<T> has the layout of T; the caller promises that nobody writes.
        let [blocks, second] = [first, second].map(|cells| unsafe {
            let cells = &cells[rows.start * self.stride..rows.end * self.stride];
            std::slice::from_raw_parts(UnsafeCell::raw_get(cells.as_ptr()).cast_const(), cells.len())
        });
        let n = self.k / BLOCK + 1;
        let fine = &self.fine[rows.start * n..rows.end * n];
        // SAFETY: as above.
        let fine = unsafe { std::slice::from_raw_parts(UnsafeCell::raw_get(fine.as_ptr()).cast_const(), fine.len()) };
        Q8View { blocks, second, fine, stride: self.stride, k: self.k }
    }
}

/// Rows of int8 activations, to read; made by [`Q8Rows::view`].
#[derive(Debug, Clone, Copy)]
pub struct Q8View<'a> {
    blocks: &'a [Q8Block],
    second: &'a [Q8Block],
    fine: &'a [u32],
    stride: usize,
    k: usize,
}

impl<'a> Q8View<'a> {
    /// Rows in the view.
    pub fn n_rows(&self) -> usize {
        self.blocks.len() / self.stride
    }

    /// Elements per row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The address of a row's first block; the blocks of a row follow each other.
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> *const Q8Block {
        self.blocks[row * self.stride..].as_ptr()
    }

    /// The address of a row's first block of second digits; the blocks of a row follow each other.
    #[inline(always)]
    pub(super) fn second(&self, row: usize) -> *const Q8Block {
        self.second[row * self.stride..].as_ptr()
    }

    /// The second digits of block `b` of a row.
    pub(super) fn second_block(&self, row: usize, b: usize) -> &'a Q8Block {
        &self.second[row * self.stride + b]
    }

    /// Which blocks of a row have second digits, in ascending order.
    #[inline(always)]
    pub(super) fn fine(&self, row: usize) -> &'a [u32] {
        let row = &self.fine[row * (self.k / BLOCK + 1)..];
        &row[1..][..row[0] as usize]
    }

    /// Blocks from one row to the next.
    #[inline(always)]
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// The blocks of a row, first and second digits.
    #[cfg(test)]
    pub(super) fn blocks(&self, row: usize) -> [&'a [Q8Block]; 2] {
        [self.blocks, self.second].map(|blocks| &blocks[row * self.stride..][..self.k / BLOCK])
    }
}
