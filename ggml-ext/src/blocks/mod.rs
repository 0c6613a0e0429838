//! The GGML block types: one file each, with the layout, its reading as integer codes, and its quantiser.
//!
//! A block holds `LEN` consecutive elements of a row. Every type reads as small integers and one scale per 16 of them
//! (some types add an offset), so a kernel written against [`Block::codes`] serves them all, and dequantisation is
//! derived from it. The order of the floating-point operations is that of the `gguf` Python package, bit for bit.
//!
//! To add a type: copy a file, add it to `with_block!`, and add its row to the type table and a fixture; the shared
//! tests iterate the table. Products are fast with a layout in [`crate::pack`] (`with_packed!`) and a format in the kernels
//! (`with_format!`), which may be one that is there.

mod e2m1;
mod fit;
mod float;
mod iq4_nl;
mod iq4_xs;
mod k_scales;
mod lattice;
mod mxfp4;
mod nvfp4;
mod planes;
mod q1_0;
mod q2_0;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod q8_k;
mod ternary;
mod tq1_0;
mod tq2_0;
mod two_level;

pub use float::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
pub use iq4_nl::{IQ4_NL, IQ4_VALUES};
pub use iq4_xs::IQ4_XS;
pub use lattice::{IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS};
pub(crate) use lattice::{Lattice, kind};
pub use mxfp4::MXFP4;
pub use nvfp4::NVFP4;
pub(crate) use nvfp4::{UE4M3_NAN, ue4m3_half};
pub use q1_0::Q1_0;
pub use q2_0::Q2_0;
pub use q2_k::Q2_K;
pub use q3_k::Q3_K;
pub use q4_0::Q4_0;
pub use q4_1::Q4_1;
pub use q4_k::Q4_K;
pub use q5_0::Q5_0;
pub use q5_1::Q5_1;
pub use q5_k::Q5_K;
pub use q6_k::Q6_K;
pub use q8_0::Q8_0;
pub use q8_k::Q8_K;
pub use tq1_0::TQ1_0;
pub(crate) use tq1_0::{join_digits, split_digits};
pub use tq2_0::TQ2_0;

use crate::GgmlType;
#[cfg(target_arch = "x86_64")]
use crate::kernels::Tier;

/// A block of `LEN` quantised elements, exactly as it lies in a file: plain bytes without alignment, so that any byte
/// position of a mapped file can be read as one.
pub trait Block: bytemuck::Pod {
    /// The type's row in the table.
    const TYPE: GgmlType;
    /// Elements per block.
    const LEN: usize = Self::TYPE.block_len();
    /// Consecutive elements that share a scale (and an offset).
    const GROUP: usize = 16;
    /// Whether elements have an offset. Where not, `codes` leaves `offset` alone and it may be empty.
    const HAS_OFFSET: bool;

    /// Reads the block as integer codes: element `i` is `scale[i / 16] * q[i]`, plus `offset[i / 16]` if `HAS_OFFSET`
    /// (never adding a zero otherwise: it would lose the sign of negative zeros).
    ///
    /// `q` has at least `LEN` elements, `scale` (and `offset`) at least `LEN / 16`. Inlined into the caller and free
    /// of branches, so that it is compiled for the instruction set of the kernel that calls it.
    fn codes(&self, q: &mut [i8], scale: &mut [f32], offset: &mut [f32]);

    /// Quantises `LEN` elements so that the sum of `importance * error^2` is small; without importances all count alike. (Q8_0,
    /// Q8_K, MXFP4 and NVFP4 take no notice of them.) Values that are not finite give a block of no use, but no panic.
    fn quantize(x: &[f32], importance: Option<&[f32]>) -> Self;

    /// Dequantises into the first `LEN` elements of `out`.
    #[inline(always)]
    fn dequantize(&self, out: &mut [f32]) {
        let (mut q, mut scale, mut offset) = ([0; MAX_LEN], [0.0; MAX_LEN / 16], [0.0; MAX_LEN / 16]);
        self.codes(&mut q, &mut scale, &mut offset);
        let groups = out[..Self::LEN].chunks_exact_mut(Self::GROUP).zip(q.chunks_exact(Self::GROUP));
        for ((out, q), (scale, offset)) in groups.zip(scale.iter().zip(&offset)) {
            for (out, &q) in out.iter_mut().zip(q) {
                *out = scale * f32::from(q);
                if Self::HAS_OFFSET {
                    *out += offset;
                }
            }
        }
    }
}

/// The longest block of any type, in elements.
pub const MAX_LEN: usize = 256;

/// Runs `$body` with `$B` naming the block of a type chosen at run time, or `$float` for F32, F16 and BF16.
macro_rules! with_block {
    ($ty:expr, $B:ident => $body:expr, float => $float:expr) => {
        $crate::blocks::with_block!(@match $ty, $B, $body, $float,
            Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ4_NL IQ4_XS MXFP4 NVFP4
            IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S TQ1_0 TQ2_0 Q1_0 Q2_0)
    };
    (@match $ty:expr, $B:ident, $body:expr, $float:expr, $($name:ident)*) => {
        match $ty {
            $crate::GgmlType::F32 | $crate::GgmlType::F16 | $crate::GgmlType::BF16 => $float,
            $($crate::GgmlType::$name => {
                type $B = $crate::blocks::$name;
                $body
            })*
        }
    };
}
pub(crate) use with_block;

/// Reads bytes as blocks, in place.
///
/// # Panics
/// If the length is not a multiple of the block's bytes.
#[inline(always)]
pub fn blocks<B: Block>(bytes: &[u8]) -> &[B] {
    bytemuck::cast_slice(bytes)
}

/// Dequantises one row (or several whole rows) of any type.
///
/// # Panics
/// If `bytes` is not exactly the size of `out.len()` elements.
pub fn dequantize_row(ty: GgmlType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(ty.row_bytes(out.len()), Some(bytes.len()), "{ty}: {} elements", out.len());
    with_block!(ty, B => {
        for (block, out) in blocks::<B>(bytes).iter().zip(out.chunks_exact_mut(B::LEN)) {
            block.dequantize(out);
        }
    }, float => float::dequantize(ty, bytes, out))
}

/// Whether elements of a type have an offset, [`Block::HAS_OFFSET`].
pub(crate) fn has_offset(ty: GgmlType) -> bool {
    with_block!(ty, B => B::HAS_OFFSET, float => false)
}

/// Reads one row of a block type as integer codes, as [`Block::codes`] does: `q` has one element per element of the row,
/// `scale` and `offset` one per 16. `offset` is filled with zeros for the types without one.
///
/// # Panics
/// If the lengths disagree, or the type is F32, F16 or BF16, which have no codes.
pub fn codes_row(ty: GgmlType, bytes: &[u8], q: &mut [i8], scale: &mut [f32], offset: &mut [f32]) {
    assert_eq!(ty.row_bytes(q.len()), Some(bytes.len()), "{ty}: {} elements", q.len());
    assert_eq!((scale.len(), offset.len()), (q.len() / 16, q.len() / 16), "one scale and offset per 16 elements");
    with_block!(ty, B => {
        let groups = B::LEN / B::GROUP;
        let per_block = q.chunks_exact_mut(B::LEN).zip(scale.chunks_exact_mut(groups)).zip(offset.chunks_exact_mut(groups));
        for (block, ((q, scale), offset)) in blocks::<B>(bytes).iter().zip(per_block) {
            offset.fill(0.0);
            block.codes(q, scale, offset);
        }
    }, float => panic!("{ty} has no integer codes"))
}

/// Quantises one row (or several whole rows) to any type.
///
/// # Panics
/// If `out` is not exactly the size of `x.len()` elements.
pub fn quantize_row(ty: GgmlType, x: &[f32], out: &mut [u8]) {
    quantize_rows(ty, x, None, out);
}

/// Quantises rows to any type. `importance`, one number per column, says how much an error in it matters: the mean square of
/// the activations that meet it (an importance matrix). The bytes do not depend on the CPU.
///
/// # Panics
/// If `out` is not exactly the size of `x.len()` elements, or `x` not a whole number of rows of `importance`.
pub fn quantize_rows(ty: GgmlType, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    assert_eq!(ty.row_bytes(x.len()), Some(out.len()), "{ty}: {} elements", x.len());
    if let Some(importance) = importance {
        let n = importance.len();
        assert!(n > 0 && x.len().is_multiple_of(n) && n.is_multiple_of(ty.block_len()), "{ty}: rows of {n}");
    }
    #[cfg(target_arch = "x86_64")]
    if Tier::Avx512.is_supported() {
        // SAFETY: the CPU has these features, the tier asks for them all.
        return unsafe { quantize_rows_avx512(ty, x, importance, out) };
    } else if Tier::Avx2.is_supported() {
        // SAFETY: as above.
        return unsafe { quantize_rows_avx2(ty, x, importance, out) };
    }
    quantize_rows_portable(ty, x, importance, out);
}

fn quantize_rows_portable(ty: GgmlType, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    quantize_rows_with(ty, x, importance, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn quantize_rows_avx512(ty: GgmlType, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    quantize_rows_with(ty, x, importance, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn quantize_rows_avx2(ty: GgmlType, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    quantize_rows_with(ty, x, importance, out);
}

/// Inlined, so that it is compiled for the instruction set of its caller.
#[inline(always)]
fn quantize_rows_with(ty: GgmlType, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    with_block!(ty, B => {
        let mut column = 0;
        for (x, out) in x.chunks_exact(B::LEN).zip(out.chunks_exact_mut(size_of::<B>())) {
            let part = importance.map(|all| {
                column %= all.len();
                column += B::LEN;
                &all[column - B::LEN..column]
            });
            out.copy_from_slice(bytemuck::bytes_of(&B::quantize(x, part)));
        }
    }, float => float::quantize(ty, x, out))
}

/// The reference dot product that kernels are judged by: a row of weights with a row of int8 activations, where
/// activation `i` is `x_scale[i / 32] * x[i]`. Slow and exact: every product and the sum in double precision.
///
/// # Panics
/// If the lengths disagree.
pub fn vec_dot(ty: GgmlType, row: &[u8], x: &[i8], x_scale: &[f32]) -> f64 {
    assert_eq!(x_scale.len() * 32, x.len(), "one scale per 32 activations");
    let mut weights = vec![0.0; x.len()];
    dequantize_row(ty, row, &mut weights);
    let products = weights.iter().zip(x).enumerate();
    products.map(|(i, (&w, &q))| f64::from(w) * f64::from(x_scale[i / 32]) * f64::from(q)).sum()
}

/// Fails to compile unless the struct is laid out as the table says.
const fn assert_layout<B: Block>() {
    assert!(size_of::<B>() == B::TYPE.block_bytes());
    assert!(align_of::<B>() == 1);
    assert!(B::LEN == B::TYPE.block_len() && B::LEN <= MAX_LEN && B::LEN.is_multiple_of(B::GROUP));
}

/// The first `N` elements, as an array whose length the compiler knows.
#[inline(always)]
fn head<T, const N: usize>(x: &[T]) -> &[T; N] {
    x.first_chunk().expect("slices hold a whole block")
}

/// The first `N` elements, as an array whose length the compiler knows.
#[inline(always)]
fn head_mut<T, const N: usize>(x: &mut [T]) -> &mut [T; N] {
    x.first_chunk_mut().expect("slices hold a whole block")
}

/// Writes codes, `zero` standing for zero. (A loop, as `array::map` is left as a call that knows nothing of the caller's
/// instruction set; wrapping, as overflow checks would keep debug builds from vectorising.)
#[inline(always)]
fn store<const N: usize>(q: &mut [i8], codes: &[u8; N], zero: u8) {
    let q: &mut [i8; N] = head_mut(q);
    for (q, code) in q.iter_mut().zip(codes) {
        *q = code.wrapping_sub(zero) as i8;
    }
}

/// How much the error of each element of a block counts: its importance, and somewhat more for larger elements, whose
/// products dominate the results.
#[inline(always)]
fn weights<const N: usize>(x: &[f32; N], importance: Option<&[f32]>) -> [f32; N] {
    let mut squares = 0.0;
    for x in x {
        squares += x * x;
    }
    let floor = 2.0 * squares / N as f32;
    let mut w = [1.0; N];
    if let Some(importance) = importance {
        // Only their ratios matter; so scaled, no product of them leaves the range of single precision.
        let largest = extreme(importance);
        if largest > 0.0 {
            for (w, v) in w.iter_mut().zip(importance) {
                *w = v / largest;
            }
        }
    }
    for (w, x) in w.iter_mut().zip(x) {
        *w *= (floor + x * x).sqrt();
    }
    w
}

/// The element farthest from zero, with its sign; the first of several.
#[inline(always)]
fn extreme(x: &[f32]) -> f32 {
    let (lo, hi) = range(x);
    if hi > -lo {
        hi.max(0.0)
    } else if hi < -lo {
        lo
    } else {
        x.iter().fold(0.0, |best: f32, &v| if v.abs() > best.abs() { v } else { best })
    }
}

/// The smallest and the largest element. Eight partial results let the compiler use vectors.
#[inline(always)]
fn range(x: &[f32]) -> (f32, f32) {
    let (mut lo, mut hi) = ([f32::INFINITY; 8], [f32::NEG_INFINITY; 8]);
    let (whole, rest) = x.as_chunks::<8>();
    for x in whole {
        for l in 0..8 {
            lo[l] = lo[l].min(x[l]);
            hi[l] = hi[l].max(x[l]);
        }
    }
    let (lo, hi) = (lo.iter().chain(rest), hi.iter().chain(rest));
    (lo.fold(f32::INFINITY, |a, &v| a.min(v)), hi.fold(f32::NEG_INFINITY, |a, &v| a.max(v)))
}

/// `v` less its fraction, in `0..=max`, as a code for every element. (A loop over whole numbers, which vectorises.)
#[inline(always)]
fn truncated<const N: usize>(x: &[f32; N], max: i32, v: impl Fn(f32) -> f32) -> [u8; N] {
    let mut codes = [0; N];
    for (code, &x) in codes.iter_mut().zip(x) {
        *code = (v(x) as i32).clamp(0, max) as u8;
    }
    codes
}

/// `1 / d`, or zero for zero.
#[inline(always)]
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_do_not_depend_on_the_instruction_set() {
        let x: Vec<f32> = (0..4096_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8e6 - 1.0).collect();
        let importance: Vec<f32> = (1..=512).map(|i| (i % 31) as f32).collect();
        for &ty in GgmlType::ALL {
            for importance in [None, Some(&importance[..])] {
                let [mut plain, mut other] = [0, 0].map(|_| vec![0; ty.row_bytes(x.len()).unwrap()]);
                quantize_rows_portable(ty, &x, importance, &mut plain);
                quantize_rows(ty, &x, importance, &mut other);
                assert_eq!(other, plain, "{ty}");
                #[cfg(target_arch = "x86_64")]
                if Tier::Avx2.is_supported() {
                    other.fill(0);
                    // SAFETY: the CPU has these features.
                    unsafe { quantize_rows_avx2(ty, &x, importance, &mut other) };
                    assert_eq!(other, plain, "{ty}, AVX2");
                }
            }
        }
    }
}
