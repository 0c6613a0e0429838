//! AVX-512 with VNNI: one register per line, one `vpdpbusd` per 64 products.

#![expect(unsafe_op_in_unsafe_fn, reason = "each function is a few instructions under the contract of `Isa`")]

use std::arch::x86_64::*;

use super::isa::Isa;
use super::q8::{BLOCK, Q8Block};
use crate::kernels::float::avx512::sum_four;

/// The tier's vectors.
#[derive(Clone, Copy)]
pub(super) struct Avx512;

super::int_kernels!(KERNELS: Avx512, features "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni");

impl Isa for Avx512 {
    type Line = __m512i;
    type Sums = __m512i;
    type Floats = __m512;
    type Floats8 = __m256;

    const TOKENS: usize = 8;
    const IN_PAIRS: bool = false;
    const UNSIGNED_SECOND: bool = false;
    const MANY_REGISTERS: bool = true;
    const UNSIGNED: bool = true;

    #[inline(always)]
    unsafe fn line(p: *const u8) -> __m512i {
        _mm512_loadu_si512(p.cast())
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(p.cast())
    }
    #[inline(always)]
    unsafe fn splat_line(byte: u8) -> __m512i {
        _mm512_set1_epi8(byte as i8)
    }
    #[inline(always)]
    unsafe fn and(a: __m512i, b: __m512i) -> __m512i {
        _mm512_and_si512(a, b)
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        _mm512_or_si512(a, b)
    }
    #[inline(always)]
    unsafe fn xor(a: __m512i, b: __m512i) -> __m512i {
        _mm512_xor_si512(a, b)
    }
    #[inline(always)]
    unsafe fn shift(a: __m512i, n: i32) -> __m512i {
        // The counts are constants once inlined, and the instructions become those with immediates.
        match n {
            0 => a,
            1.. => _mm512_sll_epi16(a, _mm_cvtsi32_si128(n)),
            _ => _mm512_srl_epi16(a, _mm_cvtsi32_si128(-n)),
        }
    }
    #[inline(always)]
    unsafe fn look_up(table: &[u8; 16], index: __m512i) -> __m512i {
        _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), index)
    }

    #[inline(always)]
    unsafe fn zero_sums() -> __m512i {
        _mm512_setzero_si512()
    }
    #[inline(always)]
    unsafe fn splat_shifted(value: *const i32, shift: u32) -> __m512i {
        _mm512_sll_epi32(_mm512_set1_epi32(*value), _mm_cvtsi32_si128(shift as i32))
    }
    #[inline(always)]
    unsafe fn dot<const N: usize>(_bits: u32, mut sums: __m512i, lines: &[__m512i; N], x: *const i8) -> __m512i {
        let mut g = 0;
        while g < N {
            sums = _mm512_dpbusd_epi32(sums, lines[g], _mm512_set1_epi32(x.cast::<i32>().add(g).read_unaligned()));
            g += 1;
        }
        sums
    }
    #[inline(always)]
    unsafe fn to_floats(sums: __m512i) -> __m512 {
        _mm512_cvtepi32_ps(sums)
    }

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        _mm512_setzero_ps()
    }
    #[inline(always)]
    unsafe fn splat(value: *const f32) -> __m512 {
        _mm512_set1_ps(*value)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        _mm512_loadu_ps(p)
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> __m512 {
        _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> __m512 {
        _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())), 16))
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())))
    }
    #[inline(always)]
    unsafe fn load_e8m0_half(p: *const u8) -> __m512 {
        let e = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
        let normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
        let subnormal = _mm512_sllv_epi32(_mm512_set1_epi32(0x0020_0000), e);
        let small = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
        _mm512_castsi512_ps(_mm512_mask_mov_epi32(normal, small, subnormal))
    }
    #[inline(always)]
    unsafe fn load_ue4m3_half(p: *const u8) -> __m512 {
        let bytes = _mm_and_si128(_mm_loadu_si128(p.cast()), _mm_set1_epi8(0x7f));
        let halves = _mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 7);
        _mm512_mul_ps(_mm512_cvtph_ps(halves), _mm512_set1_ps(128.0))
    }
    #[inline(always)]
    unsafe fn load_u4_pairs(p: *const u8) -> (__m512, __m512) {
        let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
        let low = _mm512_and_si512(bytes, _mm512_set1_epi32(15));
        (_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(_mm512_srli_epi32(bytes, 4)))
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn negate(a: __m512) -> __m512 {
        _mm512_xor_ps(a, _mm512_set1_ps(-0.0))
    }
    #[inline(always)]
    unsafe fn store(a: __m512, p: *mut f32) {
        _mm512_storeu_ps(p, a)
    }
    #[inline(always)]
    unsafe fn sum(a: __m512) -> f32 {
        _mm512_reduce_add_ps(a)
    }
    #[inline(always)]
    unsafe fn sum_four(all: [__m512; 4]) -> [f32; 4] {
        let mut sums = [0.0; 4];
        _mm_storeu_ps(sums.as_mut_ptr(), sum_four(all));
        sums
    }

    #[inline(always)]
    unsafe fn max_abs(a: __m512, b: __m512) -> f32 {
        _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)))
    }
    #[inline(always)]
    unsafe fn quantize(x: __m512, scale: f32, codes: *mut i8) -> i32 {
        let rounded = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(scale)));
        _mm_storeu_si128(codes.cast(), _mm512_cvtsepi32_epi8(rounded));
        _mm512_reduce_add_epi32(rounded)
    }

    /// What a block needs besides its codes is computed for four blocks at once, a lane each: the way from a register's
    /// lanes to one number is longer than all the rest.
    #[inline(always)]
    unsafe fn quantize_four(x: *const f32, blocks: &mut [Q8Block; 4]) {
        // Loops without closures: those are compiled without the tier's features.
        let mut max = [_mm_setzero_ps(); 4];
        let mut b = 0;
        while b < 4 {
            let (first, last) = (_mm512_loadu_ps(x.add(BLOCK * b)), _mm512_loadu_ps(x.add(BLOCK * b + 16)));
            let both = _mm512_max_ps(_mm512_abs_ps(first), _mm512_abs_ps(last));
            let both = _mm256_max_ps(_mm512_castps512_ps256(both), _mm512_extractf32x8_ps(both, 1));
            max[b] = _mm_max_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
            b += 1;
        }
        let max = transpose(max);
        let max = _mm_max_ps(_mm_max_ps(max[0], max[1]), _mm_max_ps(max[2], max[3]));
        let inverse = _mm_div_ps(_mm_set1_ps(127.0), max);
        // All zeros, or so small that the inverse overflows.
        let usable = _mm_cmp_ps_mask(inverse, _mm_set1_ps(f32::INFINITY), _CMP_LT_OQ);
        let scale = _mm_maskz_div_ps(usable, max, _mm_set1_ps(127.0));
        let inverse = _mm_maskz_mov_ps(usable, inverse);
        let mut inverses = [0.0; 4];
        _mm_storeu_ps(inverses.as_mut_ptr(), inverse);
        let mut sums = [_mm256_setzero_si256(); 4];
        b = 0;
        while b < 4 {
            let inverse = _mm512_set1_ps(inverses[b]);
            let first = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x.add(BLOCK * b)), inverse));
            let last = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x.add(BLOCK * b + 16)), inverse));
            let codes = _mm256_set_m128i(_mm512_cvtsepi32_epi8(last), _mm512_cvtsepi32_epi8(first));
            _mm256_storeu_si256(blocks[b].codes.as_mut_ptr().cast(), codes);
            sums[b] = _mm256_dpbusd_epi32(sums[b], _mm256_set1_epi8(1), codes);
            b += 1;
        }
        // The first 16 columns of all blocks, and the last 16.
        let halves = _mm256_hadd_epi32(_mm256_hadd_epi32(sums[0], sums[1]), _mm256_hadd_epi32(sums[2], sums[3]));
        let (first, last) = (_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
        let (both, zero) = (_mm_add_epi32(first, last), _mm_setzero_si128());
        let fields = transpose([
            scale,
            _mm_mul_ps(scale, _mm_cvtepi32_ps(both)),
            _mm_castsi128_ps(_mm_sub_epi32(zero, both)),
            _mm_castsi128_ps(_mm_sub_epi32(zero, first)),
        ]);
        let more = transpose([
            _mm_castsi128_ps(_mm_sub_epi32(zero, last)),
            _mm_mul_ps(scale, _mm_cvtepi32_ps(first)),
            _mm_mul_ps(scale, _mm_cvtepi32_ps(last)),
            _mm_setzero_ps(),
        ]);
        b = 0;
        while b < 4 {
            let at = (&raw mut blocks[b]).cast::<f32>().add(BLOCK / 4);
            _mm_storeu_ps(at, fields[b]);
            _mm_storeu_ps(at.add(4), more[b]);
            b += 1;
        }
    }

    #[inline(always)]
    unsafe fn zero8() -> __m256 {
        _mm256_setzero_ps()
    }
    #[inline(always)]
    unsafe fn dot_signed(q: *const i8, x: *const i8) -> __m256 {
        let (q, x) = (_mm256_loadu_si256(q.cast()), _mm256_loadu_si256(x.cast()));
        let dot = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_abs_epi8(q), _mm256_sign_epi8(x, q));
        _mm256_cvtepi32_ps(dot)
    }
    #[inline(always)]
    unsafe fn load8(p: *const f32) -> __m256 {
        _mm256_loadu_ps(p)
    }
    #[inline(always)]
    unsafe fn fma8(a: __m256, b: __m256, scale: f32, c: __m256) -> __m256 {
        _mm256_fmadd_ps(a, _mm256_mul_ps(b, _mm256_set1_ps(scale)), c)
    }
    #[inline(always)]
    unsafe fn sum8(a: __m256) -> f32 {
        super::avx2::sum8(a)
    }
}

// The order of fields that `quantize_four` writes.
const _: () = {
    use std::mem::offset_of;
    let at = BLOCK;
    assert!(offset_of!(Q8Block, scale) == at);
    assert!(offset_of!(Q8Block, sum) == at + 4 && offset_of!(Q8Block, neg_sum) == at + 8);
    assert!(offset_of!(Q8Block, neg_half) == at + 12 && offset_of!(Q8Block, half) == at + 20);
    assert!(offset_of!(Q8Block, fine) == at + 28);
};

/// The columns of four rows of four.
#[inline(always)]
unsafe fn transpose([a, b, c, d]: [__m128; 4]) -> [__m128; 4] {
    let (ab, cd) = (_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d));
    let (ab_high, cd_high) = (_mm_unpackhi_ps(a, b), _mm_unpackhi_ps(c, d));
    [_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab), _mm_movelh_ps(ab_high, cd_high), _mm_movehl_ps(cd_high, ab_high)]
}
