//! AVX2 with FMA and F16C: two registers per line.
//!
//! What multiplies codes is a parameter, [`Dot`]: AVX2 itself has no instruction for four-way int8 products, [`super::avx_vnni`]
//! brings one.

#![expect(unsafe_op_in_unsafe_fn, reason = "each function is a few instructions under the contract of `Isa`")]

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::isa::Isa;

/// Vectors of 256 bits.
#[derive(Clone, Copy)]
pub(super) struct Avx2<D>(PhantomData<D>);

super::int_kernels!(KERNELS: Avx2<Pairs>, features "avx2,fma,f16c");

/// How 32 codes meet as many activations.
pub(super) trait Dot: Copy + 'static {
    /// As [`Isa::UNSIGNED`].
    const UNSIGNED: bool;

    /// As [`Isa::IN_PAIRS`].
    const IN_PAIRS: bool;

    /// As [`Isa::UNSIGNED_SECOND`].
    const UNSIGNED_SECOND: bool;

    /// As [`Isa::dots`].
    unsafe fn dots<const N: usize, const T: usize>(
        bits: u32,
        second: bool,
        sums: [Sums; T],
        lines: &[Sums; N],
        x: [*const i8; T],
    ) -> [Sums; T];

    /// The products of codes in `0..=128` with signed ones, the sum of each four in a lane.
    unsafe fn fours(q: __m256i, x: __m256i) -> __m256i;
}

/// 64 bytes of codes, or 16 sums.
pub(super) type Sums = [__m256i; 2];

/// `vpmaddubsw` multiplies unsigned by signed bytes and adds pairs in 16 bits, saturating. Codes of few bits leave room there for
/// several such sums before they are widened; signed codes are split into magnitude and sign, and the sign is moved to the
/// activations; with second digits, which are unsigned, they are multiplied as they are.
#[derive(Clone, Copy)]
pub(super) struct Pairs;

/// How many sums of two products of codes of `bits` bits with -127..=127 fit in 16 bits: at most all 8 of a set of lines.
const fn sums_in_16_bits(bits: u32) -> usize {
    let largest = if bits == 8 { 128 } else { (1_usize << bits) - 1 } * 127 * 2;
    let n = i16::MAX as usize / largest;
    if n < 8 { n } else { 8 }
}

impl Dot for Pairs {
    const UNSIGNED: bool = false;
    // There are no registers to keep the lines in.
    const IN_PAIRS: bool = true;
    const UNSIGNED_SECOND: bool = true;

    #[inline(always)]
    unsafe fn dots<const N: usize, const T: usize>(
        bits: u32,
        second: bool,
        mut sums: [Sums; T],
        lines: &[Sums; N],
        x: [*const i8; T],
    ) -> [Sums; T] {
        let mut pairs = [[_mm256_setzero_si256(); 2]; T];
        // A loop would not always be unrolled.
        let mut line = |g| add_line(bits, second, g, g + 1 == N, lines[g], x, &mut pairs, &mut sums);
        const { assert!(N == 4 || N == 8) };
        line(0);
        line(1);
        line(2);
        line(3);
        if N == 8 {
            line(4);
            line(5);
            line(6);
            line(7);
        }
        sums
    }
    #[inline(always)]
    unsafe fn fours(q: __m256i, x: __m256i) -> __m256i {
        _mm256_madd_epi16(_mm256_maddubs_epi16(q, x), _mm256_set1_epi16(1))
    }
}

/// Adds the products of one line, the `g`th, to sums of `pairs` of products, and these to `sums` when there is no more room in 16 bits or
/// the line is the `last`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the body of a loop")]
unsafe fn add_line<const T: usize>(
    bits: u32,
    second: bool,
    g: usize,
    last: bool,
    line: Sums,
    x: [*const i8; T],
    pairs: &mut [Sums; T],
    sums: &mut [Sums; T],
) {
    let at_once = sums_in_16_bits(bits);
    let mut t = 0;
    while t < T {
        let x = columns(x[t], g);
        let mut h = 0;
        while h < 2 {
            let q = line[h];
            let products = match bits {
                8 if second => _mm256_maddubs_epi16(x, q),
                8 => _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(x, q)),
                _ => _mm256_maddubs_epi16(q, x),
            };
            pairs[t][h] = if at_once == 1 { products } else { in_order(_mm256_add_epi16(pairs[t][h], products)) };
            if last || (g + 1).is_multiple_of(at_once) {
                sums[t][h] = _mm256_add_epi32(sums[t][h], _mm256_madd_epi16(pairs[t][h], _mm256_set1_epi16(1)));
                pairs[t][h] = _mm256_setzero_si256();
            }
            h += 1;
        }
        t += 1;
    }
}

/// `sum`, when it is computed: otherwise the compiler adds in another order, for which there are not the registers. A tenth faster (Zen 3,
/// Q4_0).
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn in_order(mut sum: __m256i) -> __m256i {
    std::arch::asm!("/* {0} */", inout(ymm_reg) sum, options(pure, nomem, nostack, preserves_flags));
    sum
}

impl<D: Dot> Isa for Avx2<D> {
    type Line = Sums;
    type Sums = Sums;
    type Floats = [__m256; 2];
    type Floats8 = __m256;

    // Four have their sums in registers, and are a tenth slower in Q4_0 (Zen 4).
    const TOKENS: usize = 8;
    const IN_PAIRS: bool = D::IN_PAIRS;
    const UNSIGNED_SECOND: bool = D::UNSIGNED_SECOND;
    const MANY_REGISTERS: bool = false;
    const UNSIGNED: bool = D::UNSIGNED;

    #[inline(always)]
    unsafe fn line(p: *const u8) -> [__m256i; 2] {
        [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())]
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(p.cast())
    }
    #[inline(always)]
    unsafe fn splat_line(byte: u8) -> [__m256i; 2] {
        [_mm256_set1_epi8(byte as i8); 2]
    }
    #[inline(always)]
    unsafe fn and(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn or(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn xor(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        [_mm256_xor_si256(a[0], b[0]), _mm256_xor_si256(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn shift([a, b]: [__m256i; 2], n: i32) -> [__m256i; 2] {
        // The counts are constants once inlined, and the instructions become those with immediates.
        let count = _mm_cvtsi32_si128(n.abs());
        match n {
            0 => [a, b],
            1.. => [_mm256_sll_epi16(a, count), _mm256_sll_epi16(b, count)],
            _ => [_mm256_srl_epi16(a, count), _mm256_srl_epi16(b, count)],
        }
    }
    #[inline(always)]
    unsafe fn look_up(table: &[u8; 16], [a, b]: [__m256i; 2]) -> [__m256i; 2] {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
        [_mm256_shuffle_epi8(table, a), _mm256_shuffle_epi8(table, b)]
    }

    #[inline(always)]
    unsafe fn zero_sums() -> [__m256i; 2] {
        [_mm256_setzero_si256(); 2]
    }
    #[inline(always)]
    unsafe fn splat_shifted(value: *const i32, shift: u32) -> [__m256i; 2] {
        [_mm256_sll_epi32(_mm256_set1_epi32(*value), _mm_cvtsi32_si128(shift as i32)); 2]
    }
    #[inline(always)]
    unsafe fn dot<const N: usize>(bits: u32, sums: Sums, lines: &[Sums; N], x: *const i8) -> Sums {
        D::dots(bits, false, [sums], lines, [x])[0]
    }
    #[inline(always)]
    unsafe fn dots<const N: usize, const T: usize>(
        bits: u32,
        second: bool,
        sums: [Sums; T],
        lines: &[Sums; N],
        x: [*const i8; T],
    ) -> [Sums; T] {
        D::dots(bits, second, sums, lines, x)
    }
    #[inline(always)]
    unsafe fn to_floats(sums: [__m256i; 2]) -> [__m256; 2] {
        [_mm256_cvtepi32_ps(sums[0]), _mm256_cvtepi32_ps(sums[1])]
    }

    #[inline(always)]
    unsafe fn zero() -> [__m256; 2] {
        [_mm256_setzero_ps(); 2]
    }
    #[inline(always)]
    unsafe fn splat(value: *const f32) -> [__m256; 2] {
        [_mm256_set1_ps(*value); 2]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [__m256; 2] {
        [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))]
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> [__m256; 2] {
        [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(16).cast()))]
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> [__m256; 2] {
        let first = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
        let last = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(16).cast()));
        [_mm256_castsi256_ps(_mm256_slli_epi32(first, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(last, 16))]
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> [__m256; 2] {
        Self::to_floats(bytes(p))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> [__m256; 2] {
        let first = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()));
        let last = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8).cast()));
        Self::to_floats([first, last])
    }
    #[inline(always)]
    unsafe fn load_e8m0_half(p: *const u8) -> [__m256; 2] {
        let [a, b] = bytes(p);
        [power_of_two(a), power_of_two(b)]
    }
    #[inline(always)]
    unsafe fn load_ue4m3_half(p: *const u8) -> [__m256; 2] {
        let bytes = _mm_and_si128(_mm_loadu_si128(p.cast()), _mm_set1_epi8(0x7f));
        let halves = _mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 7);
        let half = _mm256_set1_ps(128.0);
        [
            _mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), half),
            _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1)), half),
        ]
    }
    #[inline(always)]
    unsafe fn load_u4_pairs(p: *const u8) -> ([__m256; 2], [__m256; 2]) {
        let [a, b] = bytes(p);
        let mask = _mm256_set1_epi32(15);
        let low = [_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)];
        let high = [_mm256_srli_epi32(a, 4), _mm256_srli_epi32(b, 4)];
        (Self::to_floats(low), Self::to_floats(high))
    }
    #[inline(always)]
    unsafe fn add(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn mul(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn fma(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
    }
    #[inline(always)]
    unsafe fn negate(a: [__m256; 2]) -> [__m256; 2] {
        let sign = _mm256_set1_ps(-0.0);
        [_mm256_xor_ps(a[0], sign), _mm256_xor_ps(a[1], sign)]
    }
    #[inline(always)]
    unsafe fn store(a: [__m256; 2], p: *mut f32) {
        _mm256_storeu_ps(p, a[0]);
        _mm256_storeu_ps(p.add(8), a[1]);
    }
    #[inline(always)]
    unsafe fn sum(a: [__m256; 2]) -> f32 {
        sum8(_mm256_add_ps(a[0], a[1]))
    }

    #[inline(always)]
    unsafe fn max_abs(a: [__m256; 2], b: [__m256; 2]) -> f32 {
        let sign = _mm256_set1_ps(-0.0);
        let abs = |v| _mm256_andnot_ps(sign, v);
        let max = _mm256_max_ps(_mm256_max_ps(abs(a[0]), abs(a[1])), _mm256_max_ps(abs(b[0]), abs(b[1])));
        let max = _mm_max_ps(_mm256_castps256_ps128(max), _mm256_extractf128_ps(max, 1));
        let max = _mm_max_ps(max, _mm_movehl_ps(max, max));
        _mm_cvtss_f32(_mm_max_ss(max, _mm_movehdup_ps(max)))
    }
    #[inline(always)]
    unsafe fn quantize(x: [__m256; 2], scale: f32, codes: *mut i8) -> i32 {
        let scale = _mm256_set1_ps(scale);
        let first = _mm256_cvtps_epi32(_mm256_mul_ps(x[0], scale));
        let last = _mm256_cvtps_epi32(_mm256_mul_ps(x[1], scale));
        // Packing interleaves the 128-bit halves; the permutation puts them back in order.
        let words = _mm256_permute4x64_epi64(_mm256_packs_epi32(first, last), 0b11_01_10_00);
        let halves = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        _mm_storeu_si128(codes.cast(), halves);
        let sums = _mm256_add_epi32(first, last);
        let sums = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
        let sums = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0b10_11));
        _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0b01)))
    }

    #[inline(always)]
    unsafe fn zero8() -> __m256 {
        _mm256_setzero_ps()
    }
    #[inline(always)]
    unsafe fn dot_signed(q: *const i8, x: *const i8) -> __m256 {
        let (q, x) = (_mm256_loadu_si256(q.cast()), _mm256_loadu_si256(x.cast()));
        _mm256_cvtepi32_ps(D::fours(_mm256_abs_epi8(q), _mm256_sign_epi8(x, q)))
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
        sum8(a)
    }
}

/// The `g`th four of the columns at `x`, for every row.
#[inline(always)]
pub(super) unsafe fn columns(x: *const i8, g: usize) -> __m256i {
    _mm256_set1_epi32(x.cast::<i32>().add(g).read_unaligned())
}

/// 16 bytes, widened.
#[inline(always)]
unsafe fn bytes(p: *const u8) -> [__m256i; 2] {
    [_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())), _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(8).cast()))]
}

/// `2^(e - 128)`.
#[inline(always)]
unsafe fn power_of_two(e: __m256i) -> __m256 {
    let normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    let subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), e);
    let small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
    _mm256_castsi256_ps(_mm256_blendv_epi8(normal, subnormal, small))
}

/// The sum of all lanes.
#[inline(always)]
pub(super) unsafe fn sum8(a: __m256) -> f32 {
    let sum = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)))
}
