//! Matrix products, and the int8 form of activations.
//!
//! Quantised weights meet int8 activations ([`Q8Rows`]): the products of codes are summed exactly in integers over the
//! 16 or 32 columns that share a scale, and those sums are added up in f32. [`IntKernels::matmul`] runs on weights packed
//! by [`crate::pack`], where a vector lane is a row of the matrix, and on the file's own bytes for the types without a
//! packed layout. [`IntKernels::matmul_f32`] keeps activations in f32, for weights that are floats and for exact mode.
//!
//! Each algorithm is written once (`packed`, `raw`, `dense`, `quantize`) over the vectors of the trait `Isa`, which
//! a tier implements. Within a tier an element of a product never depends on how many rows or tokens a call has, so
//! neither batch size nor thread count changes what a model says.

#[cfg(target_arch = "x86_64")]
pub(super) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
mod bf16;
mod dense;
mod factor;
mod formats;
mod isa;
#[cfg(target_arch = "aarch64")]
mod neon;
mod packed;
mod peak;
mod portable;
mod q8;
mod quantize;
mod raw;

pub use bf16::{Bf16Rows, Bf16View, Digits, GateFn, takes_bf16};
pub use factor::Bf16Factor;
pub use q8::{FINE_STEP, Q8Rows, Q8View};

use std::ops::Range;

use super::Tier;
use crate::pack::{self, MatrixRef};
#[cfg(target_arch = "x86_64")]
use dense::with_half;
use q8::Q8Block;

/// Elements, `fine_step`, first and second digits, the list of fine blocks.
type QuantizeRow = unsafe fn(&[f32], f32, [&mut [Q8Block]; 2], &mut [u32]);

/// The matrix kernels of one tier.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct IntKernels {
    quantize_row: QuantizeRow,
    packed: unsafe fn(&packed::Product, &mut MatmulScratch),
    raw: unsafe fn(&packed::Product, &mut MatmulScratch),
    bf16: Option<bf16::Kernels>,
    dense: unsafe fn(&dense::Product, &mut MatmulScratch),
    peak: unsafe fn(usize) -> f32,
    /// Multiply-adds of a round of `peak`.
    peak_macs: u64,
}

/// Declares a tier's table: the generic kernels compiled with the tier's features.
macro_rules! int_kernels {
    ($name:ident: $isa:ty $(, features $features:literal)?) => {
        /// The tier's kernels, which run on CPUs with its features only.
        pub(super) const $name: super::IntKernels = {
            use super::{MatmulScratch, dense, packed, peak, q8, quantize, raw};

            $(#[target_feature(enable = $features)])?
            unsafe fn quantize_row(x: &[f32], fine_step: f32, digits: [&mut [q8::Q8Block]; 2], fine: &mut [u32]) {
                // SAFETY: compiled with the features of the tier.
                unsafe { quantize::row::<$isa>(x, fine_step, digits, fine) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn packed_of<P: super::formats::Format>(p: &packed::Product, scratch: &mut MatmulScratch) {
                // SAFETY: compiled with the features of the tier; the rest is the caller's promise.
                unsafe { packed::matmul::<$isa, P>(p, scratch) }
            }
            unsafe fn packed(p: &packed::Product, scratch: &mut MatmulScratch) {
                // SAFETY: the caller's promise; the format is that of the matrix's type.
                super::formats::with_format!(p.w.ty, P => unsafe { packed_of::<P>(p, scratch) })
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn raw(p: &packed::Product, scratch: &mut MatmulScratch) {
                // SAFETY: compiled with the features of the tier; the rest is the caller's promise.
                unsafe { raw::matmul::<$isa>(p, scratch) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn dense(p: &dense::Product, scratch: &mut MatmulScratch) {
                // SAFETY: compiled with the features of the tier; the rest is the caller's promise.
                unsafe { dense::matmul::<$isa>(p, scratch) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn peak(rounds: usize) -> f32 {
                // SAFETY: compiled with the features of the tier.
                unsafe { peak::run::<$isa>(rounds) }
            }
            super::IntKernels { quantize_row, packed, raw, bf16: None, dense, peak, peak_macs: peak::macs::<$isa>() }
        };
    };
}
use int_kernels;

impl IntKernels {
    /// The kernels of `tier`, which the caller has found to be supported by this CPU.
    pub(super) fn for_supported_tier(tier: Tier) -> Self {
        match tier {
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => avx2::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Tier::AvxVnni if is_x86_feature_detected!("avxvnni") => avx_vnni::VEX,
            #[cfg(target_arch = "x86_64")]
            Tier::AvxVnni => avx_vnni::EVEX,
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512 => avx512::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Tier::Amx => {
                Self { bf16: Some(amx::KERNELS), peak: amx::peak, peak_macs: amx::PEAK_MACS, ..avx512::KERNELS }
            }
            #[cfg(target_arch = "aarch64")]
            Tier::Neon => neon::KERNELS,
            _ => portable::KERNELS,
        }
    }

    /// Does `rounds` of int8 dot products with everything in registers, to be timed, and returns how many multiply-adds
    /// these were.
    pub fn peak(&self, rounds: usize) -> u64 {
        // SAFETY: the table exists, so the CPU has the tier's features.
        std::hint::black_box(unsafe { (self.peak)(rounds) });
        self.peak_macs * rounds as u64
    }

    /// `out[t * out_stride + r] = sum_c w[r][c] * x[t][c]` for `r` in `rows` and all rows `t` of `x`, with quantised
    /// weights. A packed `w` is computed in groups: `rows` starts at a multiple of [`pack::ROWS`] and ends at one or at
    /// the last row.
    ///
    /// # Safety
    /// For every `t` and every `r` in `rows`, `out.add(t * out_stride + r)` may be written and no other thread touches
    /// it meanwhile. (Other elements of `out` are not touched, so threads may share a buffer by rows.)
    ///
    /// # Panics
    /// If `w` is of a float type, `x` has not `w.cols` columns, `rows` is not as described, or `w.data` is too short.
    pub unsafe fn matmul(
        &self,
        w: &MatrixRef,
        rows: Range<usize>,
        x: Q8View,
        scratch: &mut MatmulScratch,
        out: *mut f32,
        out_stride: usize,
    ) {
        check(w, &rows, x.k());
        assert!(!w.ty.is_float(), "{} weights have no int8 product", w.ty);
        let p = packed::Product { w, rows, x, out, out_stride };
        if p.rows.is_empty() || p.x.n_rows() == 0 {
            return;
        }
        // SAFETY: the table exists, so the CPU has the tier's features; the operands were checked to be as large as
        // they claim, and the caller vouches for the output.
        unsafe { if w.packed { (self.packed)(&p, scratch) } else { (self.raw)(&p, scratch) } }
    }

    /// As [`IntKernels::matmul`], for weights of any type and activations in f32: `x` is rows of `w.cols` elements.
    ///
    /// # Safety
    /// As [`IntKernels::matmul`].
    ///
    /// # Panics
    /// If `x` is not whole rows, `rows` is not within `w`, or `w.data` is too short.
    pub unsafe fn matmul_f32(
        &self,
        w: &MatrixRef,
        rows: Range<usize>,
        x: &[f32],
        scratch: &mut MatmulScratch,
        out: *mut f32,
        out_stride: usize,
    ) {
        check(w, &rows, w.cols);
        assert!(w.cols > 0 && x.len().is_multiple_of(w.cols), "{} elements in rows of {}", x.len(), w.cols);
        let p = dense::Product { w, rows, x, out, out_stride };
        // SAFETY: as in `matmul`.
        unsafe { (self.dense)(&p, scratch) }
    }
}

/// Checks what the kernels rely on for reading within bounds.
fn check(w: &MatrixRef, rows: &Range<usize>, k: usize) {
    assert_eq!(w.cols, k, "columns of weights and activations");
    assert!(rows.start <= rows.end && rows.end <= w.rows, "rows {rows:?} of {}", w.rows);
    let bytes = if w.packed {
        assert!(rows.start.is_multiple_of(pack::ROWS), "rows {rows:?} do not start a group");
        assert!(rows.end.is_multiple_of(pack::ROWS) || rows.end == w.rows, "rows {rows:?} do not end a group");
        pack::packed_bytes(w.ty, w.rows, w.cols)
    } else {
        w.ty.row_bytes(w.cols).and_then(|row| row.checked_mul(w.rows))
    };
    assert!(bytes.is_some_and(|n| n <= w.data.len()), "{} bytes of {} x {} {}", w.data.len(), w.rows, w.cols, w.ty);
}

/// Work space of the products, one per thread. It grows to what the widest matrix needs and stays so.
#[derive(Debug, Default)]
pub struct MatmulScratch {
    codes: Vec<i8>,
    floats: Vec<f32>,
    /// One per block: which of up to 64 tokens have second digits there.
    fine: Vec<u64>,
    /// The second digits of some tokens.
    second: Vec<Q8Block>,
    #[cfg(target_arch = "x86_64")]
    tiles: amx::Tiles,
}

/// A row of weights as codes.
struct RowCodes<'a> {
    codes: &'a mut [i8],
    /// One per 16 codes.
    scale: &'a mut [f32],
    /// One per 16 codes.
    offset: &'a mut [f32],
    /// One per 4 codes.
    lanes: &'a mut [f32],
}

impl MatmulScratch {
    fn codes(&mut self, k: usize) -> RowCodes<'_> {
        self.codes.resize(self.codes.len().max(k), 0);
        let floats = grown(&mut self.floats, k / 16 * 2 + k / 4);
        let (scale, rest) = floats.split_at_mut(k / 16);
        let (offset, lanes) = rest.split_at_mut(k / 16);
        RowCodes { codes: &mut self.codes[..k], scale, offset, lanes }
    }

    /// No bits yet for `n_blocks` blocks, and no second digits.
    fn second_digits(&mut self, n_blocks: usize) -> (&mut [u64], &mut Vec<Q8Block>) {
        self.fine.clear();
        self.fine.resize(n_blocks, 0);
        self.second.clear();
        (&mut self.fine, &mut self.second)
    }

    fn floats(&mut self, n: usize) -> &mut [f32] {
        grown(&mut self.floats, n)
    }
}

fn grown(floats: &mut Vec<f32>, n: usize) -> &mut [f32] {
    floats.resize(floats.len().max(n), 0.0);
    &mut floats[..n]
}

#[cfg(test)]
mod tests;
