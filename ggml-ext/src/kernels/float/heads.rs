//! The network over the head axis by which a layer re-arranges another layer's attention (LISA, arXiv 2408.01890): a small
//! dense product for every pair (query, key), vectorised over the keys of one query.
//!
//! Each strip of keys goes through the whole network at once, so that its hidden units stay in the first-level cache. A result
//! depends on its own column alone.

use std::ptr;

use super::math::{Gelu, Relu, Silu2};
use super::rows::{Rows, RowsMut};
use super::simd::{LINE, Simd};
use super::vector::Unary;

/// The network `out[g] = sum_h skip[h][g] in[h] + sum_m down[m][g] act(bias[m] + sum_h up[h][m] in[h])`. Matrices have one row per
/// operand, as in the file, so that what one operand is multiplied with lies together.
#[derive(Clone, Copy)]
pub struct HeadNet<'a> {
    /// `[n_in, n_out]`
    pub skip: &'a [f32],
    /// `[n_in, n_hidden]`
    pub up: &'a [f32],
    /// `[n_hidden]`
    pub bias: &'a [f32],
    /// `[n_hidden, n_out]`
    pub down: &'a [f32],
    /// `act`.
    pub act: UnitAct,
    /// Memory that the caller reads next, fetched towards the core meanwhile: the network computes and reads little, what follows
    /// reads much. In order; no rows: nothing.
    pub ahead: [Rows<'a, u8>; 2],
}

/// What a hidden unit makes of its sum `z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitAct {
    /// `max(z, 0)`.
    Relu,
    /// `z / (1 + 2^z)`: SiLU but for two factors that matrices can take once and for all, `silu(x) = -ln 2 z / (1 + 2^z)` where
    /// `z = -x log2 e`.
    Silu2,
    /// GELU by the tangent.
    Gelu,
}

/// Most results computed together: with [`Simd::NN_VECS`] vectors each they fit into the registers.
const TILE: usize = 6;
/// Floats of work space for each hidden unit: the widest strip.
pub const UNIT_FLOATS: usize = 4 * 16;

/// Most cache lines that are fetched while a tile is computed: its some 100 cycles are worth them at 15 GB/s.
const MOST_LINES: usize = 10;

/// Runs the block with the constant `$r` equal to `$rows`, 1 to [`TILE`].
macro_rules! each_size {
    ($rows:expr, $r:ident => $block:block) => {
        match $rows {
            6 => {
                const $r: usize = 6;
                $block
            }
            5 => {
                const $r: usize = 5;
                $block
            }
            4 => {
                const $r: usize = 4;
                $block
            }
            3 => {
                const $r: usize = 3;
                $block
            }
            2 => {
                const $r: usize = 2;
                $block
            }
            _ => {
                const $r: usize = 1;
                $block
            }
        }
    };
}

#[inline(always)]
pub(super) unsafe fn align_heads<V: Simd>(net: &HeadNet, x: Rows<f32>, units: &mut [f32], out: RowsMut<f32>) {
    // SAFETY: the caller's contract.
    unsafe {
        match net.act {
            UnitAct::Relu => align::<V, _>(net, x, units, out, &Relu),
            UnitAct::Silu2 => align::<V, _>(net, x, units, out, &Silu2),
            UnitAct::Gelu => align::<V, _>(net, x, units, out, &Gelu),
        }
    }
}

/// # Safety
/// The shapes agree, and `units` has [`UNIT_FLOATS`] for each hidden unit.
#[inline(always)]
unsafe fn align<V: Simd, A: Unary>(net: &HeadNet, x: Rows<f32>, units: &mut [f32], out: RowsMut<f32>, act: &A) {
    let (n, units) = (out.len(), units.as_mut_ptr());
    let n_tiles = net.bias.len().div_ceil(TILE) + out.n_rows().div_ceil(TILE);
    const { assert!(V::NN_VECS == 4 || V::NN_VECS == 2) };
    let width = V::NN_VECS * V::LANES;
    let mut ahead = Ahead::new(net.ahead, n_tiles * n.div_ceil(width));
    let mut at = 0;
    // SAFETY: strips start at `at` and end at or before `n`.
    unsafe {
        while at + width <= n {
            match V::NN_VECS {
                4 => strip::<V, A, 4, false>(net, &x, units, &out, act, &mut ahead, at, 0),
                _ => strip::<V, A, 2, false>(net, &x, units, &out, act, &mut ahead, at, 0),
            }
            at += width;
        }
        while at + V::LANES <= n {
            strip::<V, A, 1, false>(net, &x, units, &out, act, &mut ahead, at, 0);
            at += V::LANES;
        }
        if at < n {
            strip::<V, A, 1, true>(net, &x, units, &out, act, &mut ahead, at, n - at);
        }
    }
}

/// Columns `at..`: `NV` vectors, or the first `left` lanes of one where `PARTIAL`.
///
/// # Safety
/// As [`align`]; the columns exist.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn strip<V: Simd, A: Unary, const NV: usize, const PARTIAL: bool>(
    net: &HeadNet,
    x: &Rows<f32>,
    units: *mut f32,
    out: &RowsMut<f32>,
    act: &A,
    ahead: &mut Ahead,
    at: usize,
    left: usize,
) {
    let (n_in, n_hidden, n_out) = (x.n_rows(), net.bias.len(), out.n_rows());
    // SAFETY: rows below the shapes' sizes, columns that exist.
    unsafe {
        let input = Columns { p: x.row_ptr(0).add(at), stride: x.stride(), n: n_in, left };
        let hidden = Columns { p: units, stride: NV * V::LANES, n: n_hidden, left };
        let mut m = 0;
        while m < n_hidden {
            let rows = tile(n_hidden - m);
            ahead.fetch::<V>();
            each_size!(rows, R => {
                let mut acc = [[V::splat(0.0); NV]; R];
                for (r, row) in acc.iter_mut().enumerate() {
                    *row = [V::splat(net.bias[m + r]); NV];
                }
                input.add_products::<V, R, NV, PARTIAL>(net.up.as_ptr().add(m), n_hidden, &mut acc);
                for (r, row) in acc.into_iter().enumerate() {
                    for (j, v) in row.into_iter().enumerate() {
                        v.store(units.add(((m + r) * NV + j) * V::LANES));
                    }
                }
            });
            m += rows;
        }
        // By itself, so that the constants of the activation stay in registers.
        for v in 0..n_hidden * NV {
            let p = units.add(v * V::LANES);
            act.apply(V::load(p)).store(p);
        }
        let mut g = 0;
        while g < n_out {
            let rows = tile(n_out - g);
            ahead.fetch::<V>();
            each_size!(rows, R => {
                let mut acc = [[V::splat(0.0); NV]; R];
                input.add_products::<V, R, NV, PARTIAL>(net.skip.as_ptr().add(g), n_out, &mut acc);
                hidden.add_products::<V, R, NV, false>(net.down.as_ptr().add(g), n_out, &mut acc);
                for (r, row) in acc.into_iter().enumerate() {
                    for (j, v) in row.into_iter().enumerate() {
                        let p = out.row_ptr(g + r).add(at + j * V::LANES);
                        if PARTIAL { v.store_partial(p, left) } else { v.store(p) }
                    }
                }
            });
            g += rows;
        }
    }
}

/// Results of the next tile when `left` are left: tiles of near-equal size.
#[inline(always)]
fn tile(left: usize) -> usize {
    left.div_ceil(left.div_ceil(TILE))
}

/// Fetches memory line by line, some lines at a time.
struct Ahead<'a> {
    rows: [Rows<'a, u8>; 2],
    /// The rows that come next: which of the two, and of them.
    next: (usize, usize),
    /// The rest of the row before.
    line: *const u8,
    left: usize,
    /// Lines at a time.
    portion: usize,
}

impl<'a> Ahead<'a> {
    /// Fetches both in `n_times` portions, or so much of them as can come meanwhile.
    fn new(rows: [Rows<'a, u8>; 2], n_times: usize) -> Self {
        let lines = rows.iter().map(|r| r.n_rows() * r.len().div_ceil(LINE)).sum::<usize>();
        let portion = lines.div_ceil(n_times.max(1)).min(MOST_LINES);
        Self { rows, next: (0, 0), line: ptr::null(), left: 0, portion }
    }

    /// # Safety
    /// As [`Simd`]'s.
    #[inline(always)]
    unsafe fn fetch<V: Simd>(&mut self) {
        let mut portion = self.portion;
        while portion > 0 {
            if self.left == 0 && !self.next_row() {
                self.portion = 0;
                return;
            }
            // Little besides the hints themselves: they are many.
            let n = portion.min(self.left);
            for i in 0..n {
                // SAFETY: a hint; the address is inside the row.
                unsafe { V::prefetch(self.line.wrapping_add(i * LINE)) };
            }
            self.line = self.line.wrapping_add(n * LINE);
            (self.left, portion) = (self.left - n, portion - n);
        }
    }

    fn next_row(&mut self) -> bool {
        while let Some(rows) = self.rows.get(self.next.0) {
            if self.next.1 < rows.n_rows() {
                (self.line, self.left) = (rows.row_ptr(self.next.1), rows.len().div_ceil(LINE));
                self.next.1 += 1;
                return true;
            }
            self.next = (self.next.0 + 1, 0);
        }
        false
    }
}

/// A strip of the rows that a product sums over.
struct Columns {
    p: *const f32,
    stride: usize,
    n: usize,
    /// Lanes of a partial vector.
    left: usize,
}

impl Columns {
    /// `acc[r] += sum_k w[k][r] * row[k]`.
    ///
    /// # Safety
    /// `w` points at `self.n` rows of `R` values, `w_stride` apart, and each row of the strip holds `NV` vectors, or `left` lanes where
    /// `PARTIAL`.
    #[inline(always)]
    unsafe fn add_products<V: Simd, const R: usize, const NV: usize, const PARTIAL: bool>(
        &self,
        mut w: *const f32,
        w_stride: usize,
        acc: &mut [[V; NV]; R],
    ) {
        // SAFETY: offsets as the contract allows.
        unsafe {
            let mut row = self.p;
            for _ in 0..self.n {
                let mut v = [V::splat(0.0); NV];
                for (j, v) in v.iter_mut().enumerate() {
                    *v = if PARTIAL { V::load_partial(row, self.left) } else { V::load(row.add(j * V::LANES)) };
                }
                for (r, sums) in acc.iter_mut().enumerate() {
                    let w = V::splat(*w.add(r));
                    for (sum, v) in sums.iter_mut().zip(v) {
                        *sum = w.mul_add(v, *sum);
                    }
                }
                (row, w) = (row.wrapping_add(self.stride), w.wrapping_add(w_stride));
            }
        }
    }
}
