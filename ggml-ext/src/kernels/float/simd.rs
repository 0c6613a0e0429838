//! The vector type every float kernel is written over.
//!
//! A kernel is one generic function; each tier supplies a [`Simd`] type and compiles its own copy of the kernel inside
//! a function that enables the tier's instructions. Everything here must therefore be `#[inline(always)]`: a call that
//! is not inlined would be compiled without them.

use half::f16;

/// Bytes of a cache line, as [`Simd::prefetch`] fetches them.
pub(super) const LINE: usize = 64;

/// A vector of `LANES` floats and the handful of operations the kernels need.
///
/// # Safety
/// Every method may use the tier's instructions, so the caller must be running on a CPU that has them. Methods that take
/// a pointer also need it to be valid for the elements they name; no alignment beyond the element's is required.
pub(super) trait Simd: Copy {
    /// Floats in one vector.
    const LANES: usize;
    /// Rows of the tile of [`super::gemm::sgemm_nt`], which has four columns: `4 * NT_ROWS` sums stay in registers.
    const NT_ROWS: usize;
    /// Rows of the tile of [`super::gemm::nn`].
    const NN_ROWS: usize;
    /// Vectors in a row of the tile of [`super::gemm::nn`] when it is `NN_ROWS` high.
    const NN_VECS: usize;
    /// Whether a polynomial is faster in short chains than in one that has an operation less.
    const SHORT_CHAINS: bool = false;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    /// The first `n < LANES` elements; the other lanes are zero.
    unsafe fn load_partial(p: *const f32, n: usize) -> Self;
    /// The first `n < LANES` lanes.
    unsafe fn store_partial(self, p: *mut f32, n: usize);
    unsafe fn load_f16(p: *const f16) -> Self;
    unsafe fn load_f16_partial(p: *const f16, n: usize) -> Self;
    unsafe fn load_i8(p: *const i8) -> Self;
    unsafe fn splat_f16(x: f16) -> Self;
    /// Rounds to nearest, ties to even.
    unsafe fn store_f16(self, p: *mut f16);
    unsafe fn store_f16_partial(self, p: *mut f16, n: usize);

    /// Asks for the cache line at `p`, where the tier has an instruction for it; any address is allowed.
    #[inline(always)]
    unsafe fn prefetch(_p: *const u8) {}

    unsafe fn add(self, o: Self) -> Self;
    unsafe fn sub(self, o: Self) -> Self;
    unsafe fn mul(self, o: Self) -> Self;
    unsafe fn div(self, o: Self) -> Self;
    /// `self * b + c`, rounded once where the tier has a fused instruction.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// Lane-wise minimum; a NaN in `o` comes through.
    unsafe fn min(self, o: Self) -> Self;
    /// Lane-wise maximum; a NaN in `o` comes through.
    unsafe fn max(self, o: Self) -> Self;
    unsafe fn abs(self) -> Self;
    /// `self < limit ? a : b`, lane by lane.
    unsafe fn if_less(self, limit: Self, a: Self, b: Self) -> Self;
    /// `self * 2^n` for `n` from [`Self::nearest_and_rest`], rounded as if once: gradual underflow, overflow to infinity.
    unsafe fn scale2(self, n: Self) -> Self;
    /// The nearest integer and what is left, -1/2 to 1/2; the integer at most 250 off 0 where a tier cannot scale further. Of infinity the
    /// rest is 0; a NaN comes through.
    #[inline(always)]
    unsafe fn nearest_and_rest(self) -> (Self, Self) {
        // SAFETY: the caller's contract.
        unsafe { split(Self::splat(250.0).min(Self::splat(-250.0).max(self))) }
    }

    /// [`Self::scale2`] of `2^rest` for both parts of [`Self::bounded_nearest_and_rest`]: no result is below the normal numbers, and only
    /// 1 meets 128, which is infinity by adding up exponents, too.
    unsafe fn scale2_bounded(self, n: Self) -> Self;
    /// An exponent for them: what is above 128 may be taken as 128.
    #[inline(always)]
    unsafe fn at_most_128(self) -> Self {
        // SAFETY: the caller's contract.
        unsafe { Self::splat(128.0).min(self) }
    }
    /// The nearest integer of `self * factor`, in the form that [`Self::scale2_bounded`] takes, and what is left, for products of -126 to
    /// 128.
    #[inline(always)]
    unsafe fn bounded_nearest_and_rest(self, factor: Self) -> (Self, Self) {
        // SAFETY: the caller's contract.
        unsafe {
            let sum = self.mul_add(factor, Self::splat(ROUND));
            (sum, self.mul_add(factor, Self::splat(ROUND).sub(sum)))
        }
    }
    /// What is above the integer below, 0 to 1, where [`Self::scale2`] rounds its operand down to that integer itself.
    #[inline(always)]
    unsafe fn above_integer(self) -> Option<Self> {
        None
    }

    /// Sum of the lanes, always in the same order.
    unsafe fn sum(self) -> f32;
    /// Maximum of the lanes.
    unsafe fn lane_max(self) -> f32;
    /// `p[i] = alpha * sum of the lanes of v[i]` for four vectors; every one is summed in the same order.
    unsafe fn store_sums(v: [Self; 4], alpha: f32, p: *mut f32);
}

/// Adding it leaves the nearest integer in the low bits of the sum; subtracting it again gives it as a float.
const ROUND: f32 = 12_582_912.0;

/// The nearest integer, and what is left, of at most 250 off 0.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
unsafe fn split<V: Simd>(x: V) -> (V, V) {
    // SAFETY: the caller's contract.
    unsafe {
        let n = x.add(V::splat(ROUND)).sub(V::splat(ROUND));
        (n, x.sub(n))
    }
}
