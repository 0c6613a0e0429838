//! AVX-512 with VNNI: one register per line, one `vpdpbusd` per 64 products.

#![expect(unsafe_op_in_unsafe_fn, reason = "each function is a few instructions under the contract of `Isa`")]

use std::arch::x86_64::*;

use super::isa::Isa;

/// The tier's vectors.
#[derive(Clone, Copy)]
pub(super) struct Avx512;

super::int_kernels!(super::avx512::Avx512, features "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni");

impl Isa for Avx512 {
    type Line = __m512i;
    type Sums = __m512i;
    type Floats = __m512;
    type Floats8 = __m256;

    const TOKENS: usize = 8;
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
    unsafe fn max_abs(a: __m512, b: __m512) -> f32 {
        _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)))
    }
    #[inline(always)]
    unsafe fn quantize(x: __m512, scale: f32, codes: *mut i8) -> i32 {
        let rounded = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(scale)));
        _mm_storeu_si128(codes.cast(), _mm512_cvtsepi32_epi8(rounded));
        _mm512_reduce_add_epi32(rounded)
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
