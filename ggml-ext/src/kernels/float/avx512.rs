//! x86-64 with AVX-512 F, BW, VL and DQ (and so AVX2, FMA and F16C): sixteen lanes, masked tails.

use super::simd::Simd;
use half::f16;
use std::arch::x86_64::*;

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
const FLOOR: i32 = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;

#[derive(Clone, Copy)]
pub(super) struct V(__m512);

#[inline(always)]
fn mask(n: usize) -> u16 {
    debug_assert!(n < 16);
    (1u16 << n) - 1
}

// SAFETY (of every block below): the trait's contract is that the CPU has the tier's instructions and that pointers are
// valid for the lanes named; masked loads and stores do not touch the lanes outside the mask.
impl Simd for V {
    const LANES: usize = 16;
    const NT_ROWS: usize = 4;
    const NN_ROWS: usize = 4;
    const NN_VECS: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm512_set1_ps(x) })
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm512_loadu_ps(p) })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: see the impl.
        unsafe { _mm512_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn load_partial(p: *const f32, n: usize) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm512_maskz_loadu_ps(mask(n), p) })
    }
    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, n: usize) {
        // SAFETY: see the impl.
        unsafe { _mm512_mask_storeu_ps(p, mask(n), self.0) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) })
    }
    #[inline(always)]
    unsafe fn load_f16_partial(p: *const f16, n: usize) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask(n), p.cast())) })
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) })
    }
    #[inline(always)]
    unsafe fn splat_f16(x: f16) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(x.to_bits() as i16)) })
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut f16) {
        // SAFETY: see the impl.
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<NEAREST>(self.0)) }
    }
    #[inline(always)]
    unsafe fn store_f16_partial(self, p: *mut f16, n: usize) {
        // SAFETY: see the impl.
        unsafe { _mm256_mask_storeu_epi16(p.cast(), mask(n), _mm512_cvtps_ph::<NEAREST>(self.0)) }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a hint that cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm512_add_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm512_sub_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm512_mul_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm512_div_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm512_min_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm512_max_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm512_abs_ps(self.0) })
    }
    #[inline(always)]
    unsafe fn if_less(self, limit: Self, a: Self, b: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, limit.0), b.0, a.0) })
    }
    #[inline(always)]
    unsafe fn scale2(self, n: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm512_scalef_ps(self.0, n.0) })
    }
    #[inline(always)]
    unsafe fn nearest_and_rest(self) -> (Self, Self) {
        // SAFETY: see the impl.
        unsafe {
            let rest = _mm512_reduce_ps::<NEAREST>(self.0);
            (V(_mm512_sub_ps(self.0, rest)), V(rest))
        }
    }

    #[inline(always)]
    unsafe fn scale2_bounded(self, n: Self) -> Self {
        // SAFETY: the caller's contract.
        unsafe { self.scale2(n) }
    }
    #[inline(always)]
    unsafe fn at_most_128(self) -> Self {
        self
    }
    #[inline(always)]
    unsafe fn bounded_nearest_and_rest(self, factor: Self) -> (Self, Self) {
        // SAFETY: the caller's contract.
        unsafe { self.mul(factor).nearest_and_rest() }
    }
    #[inline(always)]
    unsafe fn above_integer(self) -> Option<Self> {
        // SAFETY: see the impl.
        Some(V(unsafe { _mm512_reduce_ps::<FLOOR>(self.0) }))
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: see the impl.
        unsafe { _mm512_reduce_add_ps(self.0) }
    }
    #[inline(always)]
    unsafe fn lane_max(self) -> f32 {
        // SAFETY: see the impl.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
    #[inline(always)]
    unsafe fn store_sums(v: [Self; 4], alpha: f32, p: *mut f32) {
        // SAFETY: see the impl; four floats are written.
        unsafe {
            let s = sum_four([v[0].0, v[1].0, v[2].0, v[3].0]);
            _mm_storeu_ps(p, _mm_mul_ps(s, _mm_set1_ps(alpha)));
        }
    }
}

/// The sum of the lanes of each, every one in the same order.
///
/// # Safety
/// The CPU has AVX-512 F and DQ.
#[inline(always)]
pub(in crate::kernels) unsafe fn sum_four([a, b, c, d]: [__m512; 4]) -> __m128 {
    // SAFETY: as the caller promises.
    unsafe {
        // Two transposing additions leave [sum a, sum b, sum c, sum d] of each 128-bit lane in that lane. Halving
        // the vectors before transposing them was tried and is 6 % slower on the whole product (Zen 4).
        let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        let s = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(ab, cd), _mm512_shuffle_ps::<0xee>(ab, cd));
        let s = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps::<1>(s));
        _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps::<1>(s))
    }
}
