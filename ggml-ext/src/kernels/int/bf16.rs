//! Products of weights and activations rounded to bf16, for tiers that have matrix instructions for it.

use std::cell::UnsafeCell;
use std::ops::Range;

use half::f16;

use super::factor::{FactorPart, RowsProduct};
use super::{IntKernels, MatmulScratch, check};
use crate::GgmlType;
use crate::kernels::Kernels as AllKernels;
use crate::kernels::float::Rows;
use crate::pack::{MatrixRef, ROWS};

/// Rows that products read beyond those they are asked for.
const SPARE_ROWS: usize = 31;

/// Elements of a cache line.
const LINE: usize = 32;

/// 32 elements on one cache line: a tile is loaded line by line, and one that straddles two costs twice.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(super) struct Line([u16; LINE]);

impl Line {
    pub(super) const ZERO: Self = Self([0; LINE]);
}

const _: () = assert!(size_of::<Line>() == 64);

/// Scores, which of them are seen, the greatest, first and second digits of the result, how many of these.
type ExpRow = unsafe fn(&[f32], Range<usize>, f32, [&mut [u16]; 2], Digits) -> f32;

/// The bf16 kernels of a tier.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernels {
    pub round_row: unsafe fn(&[f32], [&mut [u16]; 2]),
    pub matmul: unsafe fn(&Product, &mut MatmulScratch),
    pub matmul_gated: unsafe fn(&GatedProduct, &mut MatmulScratch),
    pub set_f32: unsafe fn(Rows<f32>, FactorPart),
    pub set_f16: unsafe fn(Rows<f16>, FactorPart),
    pub product_of_rows: unsafe fn(&RowsProduct),
    pub exp_row: ExpRow,
}

/// How much of a number takes part in a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Digits {
    /// The number rounded to bf16: 8 bits.
    One,
    /// That and, rounded to bf16, what it leaves over: 16 bits. Products of two second digits are left out.
    Two,
}

impl Digits {
    /// How many.
    pub(super) fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }
}

/// What a product works on; the fields are those of [`IntKernels::matmul_bf16`], already checked.
pub(super) struct Product<'a> {
    pub w: &'a MatrixRef<'a>,
    pub rows: Range<usize>,
    pub x: Bf16View<'a>,
    pub digits: Digits,
    pub out: *mut f32,
    pub out_stride: usize,
}

/// An activation function's values times those of another slice: gate, up, result, all of one length.
pub type GateFn<'a> = &'a dyn Fn(&[f32], &[f32], &mut [f32]);

/// Two products with the same rows, one of which gates the other; the fields are those of [`IntKernels::matmul_gated_bf16`], already checked.
pub(super) struct GatedProduct<'a> {
    pub gate: &'a MatrixRef<'a>,
    pub up: &'a MatrixRef<'a>,
    pub rows: Range<usize>,
    pub x: Bf16View<'a>,
    pub digits: Digits,
    pub act: GateFn<'a>,
    pub out: &'a Bf16Rows,
    pub out_digits: Digits,
}

/// Rows of activations in bf16, in two digits, written and read by several threads in turn.
#[derive(Debug)]
pub struct Bf16Rows {
    /// First digits of all rows, then second digits of all rows.
    lines: Box<[UnsafeCell<Line>]>,
    n_rows: usize,
    k: usize,
    /// Lines per row.
    stride: usize,
}

// SAFETY: the cells are written by `round_row` and gated products and read through `view` only, whose callers promise that no row is
// written while anybody else reads or writes it. (Products read rows after those of a view too, and make nothing of them.)
unsafe impl Sync for Bf16Rows {}

impl Bf16Rows {
    /// Room for `n_rows` rows of `k` elements.
    ///
    /// # Panics
    /// If `k` is not a multiple of 32.
    pub fn new(n_rows: usize, k: usize) -> Self {
        assert!(k.is_multiple_of(LINE), "rows of {k} are not whole lines of {LINE}");
        // An odd number of cache lines per row, so that the same column of neighbouring rows, which a product reads
        // together, falls into different cache sets.
        let stride = (k / LINE) | 1;
        let lines = (0..2 * (n_rows + SPARE_ROWS) * stride).map(|_| UnsafeCell::new(Line([0; LINE]))).collect();
        Self { lines, n_rows, k, stride }
    }

    /// Rows there is room for.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Elements per row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Rounds `x` into row `row`, to nearest, ties to even.
    ///
    /// # Safety
    /// No other thread reads or writes this row at the same time, and no view of it exists.
    ///
    /// # Panics
    /// If there is no such row, `x` is not `k` long, or the tier has no bf16 kernels.
    pub unsafe fn round_row(&self, kernels: &AllKernels, row: usize, x: &[f32]) {
        assert!(x.len() == self.k, "{} elements for a row of {}", x.len(), self.k);
        // SAFETY: passed on. The kernel runs on this CPU because `kernels` exists.
        unsafe { (kernels.int.bf16().round_row)(x, self.digits_mut(row)) }
    }

    /// First and second digits of row `row`.
    ///
    /// # Safety
    /// As [`Bf16Rows::round_row`].
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn digits_mut(&self, row: usize) -> [&mut [u16]; 2] {
        // SAFETY: lines are elements without gaps, and a row has so many; the caller promises that it is this thread's alone.
        self.row_ptr(row).map(|first| unsafe { std::slice::from_raw_parts_mut(first, self.k) })
    }

    /// The addresses of row `row`'s first and second digits, for writers that share it by elements.
    pub(super) fn row_ptr(&self, row: usize) -> [*mut u16; 2] {
        assert!(row < self.n_rows, "row {row} of {}", self.n_rows);
        let (first, second) = self.lines.split_at(self.lines.len() / 2);
        [first, second].map(|cells| UnsafeCell::raw_get(cells[row * self.stride..].as_ptr()).cast())
    }

    /// The operand of a product: rows `rows`.
    ///
    /// # Safety
    /// No thread writes these rows while the view is in use.
    ///
    /// # Panics
    /// If there are no such rows.
    pub unsafe fn view(&self, rows: Range<usize>) -> Bf16View<'_> {
        assert!(rows.start <= rows.end && rows.end <= self.n_rows, "rows {rows:?} of {}", self.n_rows);
        Bf16View { rows: self, first: rows.start, n_rows: rows.len() }
    }
}

/// Rows of bf16 activations, to read; made by [`Bf16Rows::view`].
#[derive(Debug, Clone, Copy)]
pub struct Bf16View<'a> {
    rows: &'a Bf16Rows,
    first: usize,
    n_rows: usize,
}

impl Bf16View<'_> {
    /// Rows in the view.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Elements per row.
    pub fn k(&self) -> usize {
        self.rows.k
    }

    /// The addresses of a row's first and second digits, from which on 32 rows may be read.
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> [*const u16; 2] {
        let (first, second) = self.rows.lines.split_at(self.rows.lines.len() / 2);
        [first, second].map(|cells| {
            let cells = &cells[(self.first + row) * self.rows.stride..];
            UnsafeCell::raw_get(cells.as_ptr()).cast::<u16>().cast_const()
        })
    }

    /// Bytes from one row to the next.
    #[inline(always)]
    pub(super) fn stride(&self) -> usize {
        self.rows.stride * size_of::<Line>()
    }
}

/// True for weights that have a bf16 product, on tiers that have any: packed ones, F16 and BF16. (F32 would lose 8 of its bits.)
pub fn takes_bf16(w: &MatrixRef) -> bool {
    w.packed || matches!(w.ty, GgmlType::F16 | GgmlType::BF16)
}

impl IntKernels {
    /// True if the tier multiplies several tokens in bf16 faster than in int8: [`IntKernels::matmul_bf16`] exists.
    pub fn has_bf16(&self) -> bool {
        self.bf16.is_some()
    }

    pub(super) fn bf16(&self) -> &Kernels {
        self.bf16.as_ref().expect("the tier has bf16 kernels")
    }

    /// As [`IntKernels::matmul`], with weights and activations in bf16 and their products added up in f32, for weights that
    /// [`takes_bf16`] names. F16 and BF16 are always multiplied in two digits.
    ///
    /// # Safety
    /// As [`IntKernels::matmul`].
    ///
    /// # Panics
    /// If the tier has no bf16 kernels ([`IntKernels::has_bf16`]), `w` does not take them, `x` has not `w.cols` columns, `rows` is not as
    /// described there, or `w.data` is too short.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn matmul_bf16(
        &self,
        w: &MatrixRef,
        rows: Range<usize>,
        x: Bf16View,
        digits: Digits,
        scratch: &mut MatmulScratch,
        out: *mut f32,
        out_stride: usize,
    ) {
        check(w, &rows, x.k());
        assert!(takes_bf16(w), "{} weights have no bf16 product", w.ty);
        assert!(rows.start.is_multiple_of(ROWS), "rows {rows:?} do not start a group");
        let p = Product { w, rows, x, digits, out, out_stride };
        if p.rows.is_empty() || p.x.n_rows() == 0 {
            return;
        }
        // SAFETY: the table exists, so the CPU has the tier's features; the operands were checked to be as large as
        // they claim, and the caller vouches for the output.
        unsafe { (self.bf16().matmul)(&p, scratch) }
    }

    /// `out[t][r] = act(gate[r] . x[t], up[r] . x[t])` for `r` in `rows` and all rows `t` of `x`, rounded to so many digits: the inner values of
    /// a gated feed-forward network as the operand of its last product, without a detour through memory. The matrices are of one shape, type
    /// and form, such as [`takes_bf16`] names, and `rows` are whole groups of both.
    ///
    /// # Safety
    /// No other thread reads or writes these elements of `out` meanwhile.
    ///
    /// # Panics
    /// If the tier has no bf16 kernels ([`IntKernels::has_bf16`]), or the operands are not as described.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn matmul_gated_bf16(
        &self,
        [gate, up]: [&MatrixRef; 2],
        rows: Range<usize>,
        x: Bf16View,
        digits: Digits,
        act: GateFn,
        scratch: &mut MatmulScratch,
        (out, out_digits): (&Bf16Rows, Digits),
    ) {
        check(gate, &rows, x.k());
        check(up, &rows, x.k());
        assert!(takes_bf16(gate), "{} weights have no bf16 product", gate.ty);
        assert!((gate.ty, gate.packed) == (up.ty, up.packed), "{} and {} weights", gate.ty, up.ty);
        assert!(rows.start.is_multiple_of(ROWS) && rows.end.is_multiple_of(ROWS), "rows {rows:?} are not whole groups");
        assert!(rows.end <= out.k() && x.n_rows() <= out.n_rows(), "the result is too small");
        if rows.is_empty() || x.n_rows() == 0 {
            return;
        }
        let p = GatedProduct { gate, up, rows, x, digits, act, out, out_digits };
        // SAFETY: the table exists, so the CPU has the tier's features; the operands were checked to be as large as they claim, and the
        // caller vouches for the output.
        unsafe { (self.bf16().matmul_gated)(&p, scratch) }
    }
}
