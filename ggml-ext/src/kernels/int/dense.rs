//! The product of any matrix with f32 activations: F32, F16 and BF16 weights, and quantised weights in exact mode.

use std::ops::Range;

use super::MatmulScratch;
use super::isa::Isa;
use super::packed::PREFETCH_BYTES;
use crate::GgmlType;
use crate::blocks::dequantize_row;
use crate::pack::{MatrixRef, unpack_row};

/// Columns per step.
const LANES: usize = 16;

/// Tokens from which converting a half-precision row once is cheaper than converting it for every tile.
const CONVERT_TOKENS: usize = 8;

/// What a product works on; the fields are those of [`super::IntKernels::matmul_f32`], already checked.
pub(super) struct Product<'a> {
    pub w: &'a MatrixRef<'a>,
    pub rows: Range<usize>,
    pub x: &'a [f32],
    pub out: *mut f32,
    pub out_stride: usize,
}

/// How 16 weights are read.
pub(super) trait Weights {
    /// Bytes of a weight.
    const BYTES: usize;
    /// # Safety
    /// As [`Isa`].
    unsafe fn load<I: Isa>(p: *const u8) -> I::Floats;
}

macro_rules! weights {
    ($name:ident, $bytes:literal, $p:ident => $load:expr) => {
        pub(super) struct $name;
        impl Weights for $name {
            const BYTES: usize = $bytes;
            #[inline(always)]
            unsafe fn load<I: Isa>($p: *const u8) -> I::Floats {
                // SAFETY: as the caller promises.
                unsafe { $load }
            }
        }
    };
}

weights!(Single, 4, p => I::load(p.cast()));
weights!(Half, 2, p => I::load_f16(p));
weights!(Brain, 2, p => I::load_bf16(p));

/// Runs `$body` with `$W` naming how weights of a 16-bit float type are read.
macro_rules! with_half {
    ($ty:expr, $W:ident => $body:expr) => {{
        use $crate::kernels::int::dense;
        match $ty {
            $crate::GgmlType::F16 => {
                type $W = dense::Half;
                $body
            }
            $crate::GgmlType::BF16 => {
                type $W = dense::Brain;
                $body
            }
            ty => unreachable!("{ty} has no bf16 product"),
        }
    }};
}
pub(super) use with_half;

/// The whole product.
///
/// Each element is computed in the same order however many tokens or rows a call has.
///
/// # Safety
/// As [`Isa`]; `p` satisfies the contract of [`super::IntKernels::matmul_f32`].
#[inline(always)]
pub(super) unsafe fn matmul<I: Isa>(p: &Product, scratch: &mut MatmulScratch) {
    // SAFETY: passed on.
    unsafe { if I::MANY_REGISTERS { tiled::<I, 4, 4>(p, scratch) } else { tiled::<I, 2, 2>(p, scratch) } }
}

/// As [`matmul`], in tiles of `R` rows, at most four, and `T` tokens.
#[inline(always)]
unsafe fn tiled<I: Isa, const R: usize, const T: usize>(p: &Product, scratch: &mut MatmulScratch) {
    let mut row = p.rows.start;
    // SAFETY: rows row..row + R exist; the rest is passed on.
    unsafe {
        while p.rows.end - row >= R {
            some_rows::<I, R, T>(p, row, scratch);
            row += R;
        }
        while row < p.rows.end {
            some_rows::<I, 1, T>(p, row, scratch);
            row += 1;
        }
    }
}

/// The product of rows `row..row + R` with all tokens.
#[inline(always)]
unsafe fn some_rows<I: Isa, const R: usize, const T: usize>(p: &Product, row: usize, scratch: &mut MatmulScratch) {
    let (w, k) = (p.w, p.w.cols);
    let n_tokens = p.x.len() / k.max(1);
    // What is left after whole steps is padded with zeros.
    let mut tails = [[0.0; LANES]; R];
    let mut rows = [std::ptr::null(); R];
    if w.ty.is_float() {
        let whole = (k - k % LANES) * w.ty.block_bytes();
        for i in 0..R {
            rows[i] = w.row(row + i).as_ptr();
            dequantize_row(w.ty, &w.row(row + i)[whole..], &mut tails[i][..k % LANES]);
        }
    }
    // SAFETY: each of `rows` points to k elements of the type that is read from it; the rest is passed on.
    unsafe {
        match w.ty {
            GgmlType::F32 => tokens::<I, Single, R, T>(p, row, rows, &tails),
            GgmlType::F16 if n_tokens < CONVERT_TOKENS => tokens::<I, Half, R, T>(p, row, rows, &tails),
            GgmlType::BF16 if n_tokens < CONVERT_TOKENS => tokens::<I, Brain, R, T>(p, row, rows, &tails),
            ty => {
                let floats = scratch.floats(R * k);
                for (i, floats) in floats.chunks_exact_mut(k.max(1)).enumerate() {
                    match ty {
                        GgmlType::F16 => convert::<I, Half>(rows[i], floats),
                        GgmlType::BF16 => convert::<I, Brain>(rows[i], floats),
                        _ => unpack_row(w, row + i, floats),
                    }
                    rows[i] = floats.as_ptr().cast();
                }
                tokens::<I, Single, R, T>(p, row, rows, &tails)
            }
        }
    }
}

/// Converts whole steps of a row.
///
/// # Safety
/// As [`Isa`]; `row` has as many elements as `out`.
#[inline(always)]
unsafe fn convert<I: Isa, W: Weights>(row: *const u8, out: &mut [f32]) {
    for (i, out) in out.chunks_exact_mut(LANES).enumerate() {
        // SAFETY: as the caller promises; `out` has 16 elements.
        unsafe { I::store(W::load::<I>(row.add(i * LANES * W::BYTES)), out.as_mut_ptr()) }
    }
}

/// The product of the weights at `rows` with all tokens.
#[inline(always)]
unsafe fn tokens<I: Isa, W: Weights, const R: usize, const T: usize>(
    p: &Product,
    row: usize,
    rows: [*const u8; R],
    tails: &[[f32; LANES]; R],
) {
    let n_tokens = p.x.len() / p.w.cols.max(1);
    let mut t = 0;
    // SAFETY: tokens t..t + T exist; the rest is passed on.
    unsafe {
        while n_tokens - t >= T {
            tile::<I, W, R, T>(p, row, rows, tails, t);
            t += T;
        }
        while t < n_tokens {
            tile::<I, W, R, 1>(p, row, rows, tails, t);
            t += 1;
        }
    }
}

/// The product of the weights at `rows` with tokens `t..t + T`, whose element `row` and following it writes.
#[inline(always)]
unsafe fn tile<I: Isa, W: Weights, const R: usize, const T: usize>(
    p: &Product,
    row: usize,
    rows: [*const u8; R],
    tails: &[[f32; LANES]; R],
    t: usize,
) {
    let k = p.w.cols;
    let whole = k - k % LANES;
    // SAFETY: every row and token has k elements; tails have 16; rows row..row + R of tokens t..t + T of the output
    // belong to this call.
    unsafe {
        let x = p.x.as_ptr().add(t * k);
        let mut acc = [[I::zero(); T]; R];
        let mut c = 0;
        while c < whole {
            let mut i = 0;
            while i < R {
                let at = rows[i].add(c * W::BYTES);
                if T == 1 {
                    // Rows lie in small pages of a mapped file, and a hardware prefetcher stops at the end of each.
                    I::prefetch(at.wrapping_add(PREFETCH_BYTES));
                }
                let w = W::load::<I>(at);
                let mut j = 0;
                while j < T {
                    acc[i][j] = I::fma(w, I::load(x.add(j * k + c)), acc[i][j]);
                    j += 1;
                }
                i += 1;
            }
            c += LANES;
        }
        if whole < k {
            let mut j = 0;
            while j < T {
                let mut tail = [0.0; LANES];
                std::ptr::copy_nonoverlapping(x.add(j * k + whole), tail.as_mut_ptr(), k - whole);
                let mut i = 0;
                while i < R {
                    acc[i][j] = I::fma(I::load(tails[i].as_ptr()), I::load(tail.as_ptr()), acc[i][j]);
                    i += 1;
                }
                j += 1;
            }
        }
        let mut j = 0;
        while j < T {
            // Always four, so that a row's bits do not depend on those beside it.
            let sums = I::sum_four([acc[0][j], acc[1 % R][j], acc[2 % R][j], acc[3 % R][j]]);
            std::ptr::copy_nonoverlapping(sums.as_ptr(), p.out.add((t + j) * p.out_stride + row), R);
            j += 1;
        }
    }
}
