//! x86-64 with AVX2, FMA and F16C: eight lanes.

use super::simd::Simd;
use half::f16;
use std::arch::x86_64::*;

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;

#[derive(Clone, Copy)]
pub(super) struct V(__m256);

/// Eight ones followed by eight zeros: a window into it is the mask of a partial load.
static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn mask(n: usize) -> __m256i {
    debug_assert!(n < 8);
    // SAFETY: the window starts at 1..=8 and is 8 long, inside the 16.
    unsafe { _mm256_loadu_si256(MASKS.as_ptr().add(8 - n).cast()) }
}

/// `2^n` for whole `n` in `-126..=127`.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn pow2(n: __m256i) -> __m256 {
    // SAFETY: the caller's contract.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127)))) }
}

// SAFETY (of every block below): the trait's contract is that the CPU has the tier's instructions and that pointers are
// valid for the lanes named; masked loads and stores do not touch the lanes outside the mask.
impl Simd for V {
    const LANES: usize = 8;
    const NT_ROWS: usize = 3;
    const NN_ROWS: usize = 6;
    const NN_VECS: usize = 2;
    // Two fifths faster (Zen 3): a chain waits longer than its operations take.
    const SHORT_CHAINS: bool = true;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm256_set1_ps(x) })
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm256_loadu_ps(p) })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: see the impl.
        unsafe { _mm256_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn load_partial(p: *const f32, n: usize) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm256_maskload_ps(p, mask(n)) })
    }
    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, n: usize) {
        // SAFETY: see the impl.
        unsafe { _mm256_maskstore_ps(p, mask(n), self.0) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) })
    }
    #[inline(always)]
    unsafe fn load_f16_partial(p: *const f16, n: usize) -> Self {
        // Four, two and one elements, by the bits of `n`: a copy of variable length would be a call.
        let (mut all, mut at) = (0u128, 0);
        // SAFETY: see the impl; the parts read add up to n < 8 elements.
        unsafe {
            if n & 4 != 0 {
                all = u128::from(p.cast::<u64>().read_unaligned());
                at = 4;
            }
            if n & 2 != 0 {
                all |= u128::from(p.add(at).cast::<u32>().read_unaligned()) << (16 * at);
                at += 2;
            }
            if n & 1 != 0 {
                all |= u128::from((*p.add(at)).to_bits()) << (16 * at);
            }
            V(_mm256_cvtph_ps(_mm_set_epi64x((all >> 64) as i64, all as i64)))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) })
    }
    #[inline(always)]
    unsafe fn splat_f16(x: f16) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm256_cvtph_ps(_mm_set1_epi16(x.to_bits() as i16)) })
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut f16) {
        // SAFETY: see the impl.
        unsafe { _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<NEAREST>(self.0)) }
    }
    #[inline(always)]
    unsafe fn store_f16_partial(self, p: *mut f16, n: usize) {
        let mut all = [f16::ZERO; 8];
        // SAFETY: see the impl; n < 8 elements are copied out of eight.
        unsafe {
            self.store_f16(all.as_mut_ptr());
            std::ptr::copy_nonoverlapping(all.as_ptr(), p, n);
        }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a hint that cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm256_add_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm256_sub_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm256_mul_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm256_div_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm256_fmadd_ps(self.0, b.0, c.0) })
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm256_min_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm256_max_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0) })
    }
    #[inline(always)]
    unsafe fn if_less(self, limit: Self, a: Self, b: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { _mm256_blendv_ps(b.0, a.0, _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, limit.0)) })
    }
    #[inline(always)]
    unsafe fn scale2(self, n: Self) -> Self {
        // SAFETY: see the impl.
        unsafe {
            // In two steps, because 2^n itself may not be a normal float; only the last one can round.
            let n = _mm256_cvtps_epi32(n.0);
            let half = _mm256_srai_epi32::<1>(n);
            let rest = _mm256_sub_epi32(n, half);
            V(_mm256_mul_ps(_mm256_mul_ps(self.0, pow2(half)), pow2(rest)))
        }
    }
    #[inline(always)]
    unsafe fn scale2_bounded(self, n: Self) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(n.0));
            V(_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(self.0), n)))
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: see the impl.
        unsafe {
            let s = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let s = _mm_add_ps(s, _mm_movehl_ps(s, s));
            _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)))
        }
    }
    #[inline(always)]
    unsafe fn lane_max(self) -> f32 {
        // SAFETY: see the impl.
        unsafe {
            let s = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let s = _mm_max_ps(s, _mm_movehl_ps(s, s));
            _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)))
        }
    }
    #[inline(always)]
    unsafe fn store_sums(v: [Self; 4], alpha: f32, p: *mut f32) {
        // SAFETY: see the impl; four floats are written.
        unsafe {
            // Two transposing additions leave [sum a, sum b, sum c, sum d] of each 128-bit half in that half.
            let ab = _mm256_add_ps(_mm256_unpacklo_ps(v[0].0, v[1].0), _mm256_unpackhi_ps(v[0].0, v[1].0));
            let cd = _mm256_add_ps(_mm256_unpacklo_ps(v[2].0, v[3].0), _mm256_unpackhi_ps(v[2].0, v[3].0));
            let s = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(ab, cd), _mm256_shuffle_ps::<0xee>(ab, cd));
            let s = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps::<1>(s));
            _mm_storeu_ps(p, _mm_mul_ps(s, _mm_set1_ps(alpha)));
        }
    }
}
