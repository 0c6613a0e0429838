//! Products of rows with factors in tiles, and what attention does between two of them.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use half::f16;

use super::super::bf16::{Digits, Line};
use super::super::factor::{FactorPart, FactorTile, RowsProduct, TILE_COLUMNS, TILE_ROWS};
use super::registers::{Sums, TILE_ROWS as M, configure, load_sums, release, store_sums, zero_sums};
use super::unpack::{bits, interleave, round};
use crate::kernels::float::Rows;
use crate::pack::LINE;

/// Elements that a factor can be made of.
pub(super) trait Element: Copy {
    /// 16 of them as floats.
    ///
    /// # Safety
    /// They are valid for reads, and the CPU has AVX-512F.
    unsafe fn load(p: *const Self) -> __m512;
}

impl Element for f32 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(p: *const Self) -> __m512 {
        // SAFETY: passed on.
        unsafe { _mm512_loadu_ps(p) }
    }
}

impl Element for f16 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(p: *const Self) -> __m512 {
        // SAFETY: passed on.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
}

/// Rounds `x` into tiles.
///
/// # Safety
/// The tier is supported; `x` has whole tiles of columns, and there is room for its rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn set<T: Element>(x: Rows<T>, to: FactorPart) {
    for j in 0..x.len() / TILE_COLUMNS {
        for i in 0..x.n_rows().div_ceil(TILE_ROWS) {
            let tile = j * to.row_tiles + i;
            for p in 0..TILE_ROWS / 2 {
                // SAFETY: rows that exist, in columns that exist; the caller vouches for the tiles.
                unsafe {
                    let row = |r: usize| {
                        let r = i * TILE_ROWS + r;
                        if r < x.n_rows() { T::load(x.row_ptr(r).add(j * TILE_COLUMNS)) } else { _mm512_setzero_ps() }
                    };
                    let pair = [row(2 * p), row(2 * p + 1)];
                    let line = |tiles: *mut FactorTile| (&raw mut (*tiles.add(tile))[p]).cast::<__m512i>();
                    if to.low.is_null() {
                        _mm512_store_si512(line(to.high), interleave(bits(_mm512_cvtne2ps_pbh(pair[1], pair[0]))));
                    } else {
                        let digits = round(pair);
                        _mm512_store_si512(line(to.high), interleave(digits[0]));
                        _mm512_store_si512(line(to.low), interleave(digits[1]));
                    }
                }
            }
        }
    }
}

/// The whole product, in blocks of 32 rows and 32 columns.
///
/// # Safety
/// The tier is supported, and `p` satisfies the contract of `IntKernels::product_of_rows`.
pub(super) unsafe fn product(p: &RowsProduct) {
    let mut spilled = [[Line::ZERO; M]; 2];
    let n_rows = p.x.n_rows();
    // SAFETY: the tier is supported. The tiles' addresses are those of the
    // contract; rows of the left factor may be read beyond its last.
    unsafe {
        configure();
        for r in (0..n_rows).step_by(2 * M) {
            let t = (n_rows - r).div_ceil(M).min(2);
            // The last tile of rows, if it is not whole.
            let ragged = (!n_rows.is_multiple_of(M) && r + 2 * M >= n_rows).then_some((n_rows - 1) / M * M);
            for c in (0..p.column_tiles).step_by(2) {
                let g = (p.column_tiles - c).min(2);
                let place = |row: usize, column: usize| p.out.wrapping_add(row * p.out_stride + column * TILE_COLUMNS);
                let sums = [0, 1].map(|i| {
                    [0, 1].map(|j| {
                        if Some(r + i * M) == ragged {
                            Sums { at: (&raw mut spilled[j]).cast(), stride: LINE }
                        } else {
                            Sums { at: place(r + i * M, c + j), stride: p.out_stride * size_of::<f32>() }
                        }
                    })
                });
                let copy = |out: bool, spilled: &mut [[Line; M]; 2]| {
                    let Some(first) = ragged else { return };
                    for (j, tile) in spilled.iter_mut().enumerate().take(g) {
                        for (i, line) in tile.iter_mut().enumerate().take(n_rows - first) {
                            let (line, at) = ((&raw mut *line).cast::<f32>(), place(first + i, c + j));
                            let (from, to) = if out { (line, at) } else { (at, line) };
                            std::ptr::copy_nonoverlapping(from, to, TILE_COLUMNS);
                        }
                    }
                };
                if p.add {
                    copy(false, &mut spilled);
                }
                let block = Block { x: p.x.row(r), stride: p.x.stride(), tiles: c * p.row_tiles, sums };
                match (t, g, p.digits) {
                    (2, 2, Digits::One) => multiply::<2, 2, 1>(p, &block),
                    (2, _, Digits::One) => multiply::<2, 1, 1>(p, &block),
                    (_, 2, Digits::One) => multiply::<1, 2, 1>(p, &block),
                    (_, _, Digits::One) => multiply::<1, 1, 1>(p, &block),
                    (2, 2, Digits::Two) => multiply::<2, 2, 2>(p, &block),
                    (2, _, Digits::Two) => multiply::<2, 1, 2>(p, &block),
                    (_, 2, Digits::Two) => multiply::<1, 2, 2>(p, &block),
                    (_, _, Digits::Two) => multiply::<1, 1, 2>(p, &block),
                }
                copy(true, &mut spilled);
            }
        }
        release();
    }
}

/// 32 rows and 32 columns.
struct Block {
    /// First and second digits of the first row.
    x: [*const u16; 2],
    /// Bytes from row to row.
    stride: usize,
    /// First tile of the factor.
    tiles: usize,
    /// `[half of the rows][half of the columns]`
    sums: [[Sums; 2]; 2],
}

/// `T` times 16 rows with `G` times 16 columns in `D` digits.
///
/// # Safety
/// As [`product`]; the tiles are configured.
#[inline(always)]
unsafe fn multiply<const T: usize, const G: usize, const D: usize>(p: &RowsProduct, block: &Block) {
    // One of each of these is loaded, and multiplied with what is there of the other.
    macro_rules! left {
        ($tile:literal, $x:expr, $half:literal) => {
            asm!(concat!("tileloadd ", $tile, ", [{x} + {xs}*1]"), x = in(reg) $x.byte_add($half * M * block.stride),
                xs = in(reg) block.stride, options(nostack, preserves_flags, readonly))
        };
    }
    macro_rules! right {
        ($tile:literal, $w:expr, $half:literal) => {
            asm!(concat!("tileloadd ", $tile, ", [{w} + {ws}*1]"), w = in(reg) $w.add($half * p.row_tiles),
                ws = in(reg) LINE, options(nostack, preserves_flags, readonly))
        };
    }
    macro_rules! products {
        () => {
            asm!("tdpbf16ps tmm0, tmm4, tmm6", options(nomem, nostack, preserves_flags));
            if T > 1 {
                asm!("tdpbf16ps tmm2, tmm5, tmm6", options(nomem, nostack, preserves_flags));
            }
            if G > 1 {
                asm!("tdpbf16ps tmm1, tmm4, tmm7", options(nomem, nostack, preserves_flags));
            }
            if T > 1 && G > 1 {
                asm!("tdpbf16ps tmm3, tmm5, tmm7", options(nomem, nostack, preserves_flags));
            }
        };
    }
    macro_rules! lefts {
        ($x:expr) => {
            left!("tmm4", $x, 0);
            if T > 1 {
                left!("tmm5", $x, 1);
            }
        };
    }
    macro_rules! rights {
        ($w:expr) => {
            right!("tmm6", $w, 0);
            if G > 1 {
                right!("tmm7", $w, 1);
            }
        };
    }
    // SAFETY: as the caller promises. Nothing else uses the tile registers.
    unsafe {
        if p.add {
            load_sums::<T, G>(&block.sums)
        } else {
            zero_sums()
        }
        for k in 0..p.k_tiles {
            let [x, y] = block.x.map(|x| x.add(k * TILE_ROWS));
            let (high, low) = (p.high.add(block.tiles + k), p.low.add(block.tiles + k));
            lefts!(x);
            if D == 2 {
                rights!(low);
                products!();
            }
            rights!(high);
            products!();
            if D == 2 {
                lefts!(y);
                products!();
            }
        }
        store_sums::<T, G>(&block.sums);
    }
}

/// `2^t` with a relative error of 3e-6.
#[inline]
#[target_feature(enable = "avx512f")]
fn exp2(t: __m512) -> __m512 {
    /// For -1/2 to 1/2, minimax of the relative error, 2.6e-6.
    const C: [f32; 5] = [0.999_999_3, 0.693_121_8, 0.240_247_44, 0.055_917_863, 0.009_570_102];
    let n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    let r = _mm512_sub_ps(t, n);
    let q = _mm512_fmadd_ps(r, _mm512_set1_ps(C[4]), _mm512_set1_ps(C[3]));
    let q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(C[2]));
    let q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(C[1]));
    let q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(C[0]));
    _mm512_scalef_ps(q, n)
}

/// See `Bf16Rows::exp_row`.
///
/// # Safety
/// The tier is supported; both digits of the row are as long as `scores`, rounded up to a multiple of 32, and `seen` lies within.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn exp_row(
    scores: &[f32],
    seen: Range<usize>,
    max: f32,
    [first, second]: [&mut [u16]; 2],
    digits: Digits,
) -> f32 {
    let log2e = _mm512_set1_ps(std::f32::consts::LOG2_E);
    let minus_max = _mm512_set1_ps(-max * std::f32::consts::LOG2_E);
    // Results that are not normal numbers cost a hundred times as much; these are 2e-35.
    let least = _mm512_set1_ps(-115.0);
    let mut sums = [_mm512_setzero_ps(); 2];
    // A row that sees nothing yet has no greatest score.
    let seen = if max == f32::NEG_INFINITY { 0..0 } else { seen };
    for i in (0..scores.len()).step_by(TILE_ROWS) {
        let mut both = [_mm512_setzero_ps(); 2];
        let all = seen.start <= i && i + TILE_ROWS <= seen.end;
        for (j, (e, sum)) in both.iter_mut().zip(&mut sums).enumerate() {
            let at = i + j * TILE_COLUMNS;
            // Lanes from `a` to `b` are seen.
            let lane = |x: usize| x.saturating_sub(at).min(TILE_COLUMNS);
            let (a, b) = if all { (0, TILE_COLUMNS) } else { (lane(seen.start), lane(seen.end)) };
            let mask = (((1u32 << b) - 1) & !((1u32 << a) - 1)) as __mmask16;
            // SAFETY: lanes that are seen lie within the scores.
            let x = unsafe { _mm512_maskz_loadu_ps(mask, scores.as_ptr().wrapping_add(at)) };
            // The second operand is the result where it is not a number.
            let t = _mm512_max_ps(least, _mm512_fmadd_ps(x, log2e, minus_max));
            *e = _mm512_maskz_mov_ps(mask, exp2(t));
            *sum = _mm512_add_ps(*sum, *e);
        }
        // SAFETY: the row has whole lines.
        unsafe {
            let line = |row: &mut [u16]| row.as_mut_ptr().add(i).cast();
            match digits {
                Digits::One => _mm512_storeu_si512(line(first), bits(_mm512_cvtne2ps_pbh(both[1], both[0]))),
                Digits::Two => {
                    let [high, low] = round(both);
                    _mm512_storeu_si512(line(first), high);
                    _mm512_storeu_si512(line(second), low);
                }
            }
        }
    }
    _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]))
}
