//! AArch64 with the dot product extension: four registers per line, one `sdot` per 16 products.
//!
//! Tested under emulation only (`qemu-aarch64`, all kernel tests); its speed was never measured.

#![expect(unsafe_op_in_unsafe_fn, reason = "each function is a few instructions under the contract of `Isa`")]

use std::arch::aarch64::*;
use std::arch::asm;

use super::isa::Isa;
use crate::blocks::f16_to_f32;

/// The tier's vectors.
#[derive(Clone, Copy)]
pub(super) struct Neon;

super::int_kernels!(KERNELS: Neon, features "neon,dotprod");

/// `f` of each of the four registers; a loop, because a closure would not be compiled with the tier's features.
macro_rules! each {
    ($i:ident => $value:expr) => {{
        let $i = 0;
        let mut all = [$value; 4];
        let mut $i = 1;
        while $i < 4 {
            all[$i] = $value;
            $i += 1;
        }
        all
    }};
}

/// Adds to each lane of `sums` the products of four signed bytes of `a` with the four of lane `LANE` of `b`.
///
/// Written in assembly because the intrinsic is not stable.
#[inline(always)]
unsafe fn sdot<const LANE: usize>(mut sums: int32x4_t, a: uint8x16_t, b: int8x16_t) -> int32x4_t {
    asm!(
        "sdot {sums:v}.4s, {a:v}.16b, {b:v}.4b[{lane}]",
        sums = inout(vreg) sums,
        a = in(vreg) a,
        b = in(vreg) b,
        lane = const LANE,
        options(pure, nomem, nostack, preserves_flags)
    );
    sums
}

impl Isa for Neon {
    type Line = [uint8x16_t; 4];
    type Sums = [int32x4_t; 4];
    type Floats = [float32x4_t; 4];
    type Floats8 = [float32x4_t; 2];

    const TOKENS: usize = 4;
    const IN_PAIRS: bool = false;
    const UNSIGNED_SECOND: bool = false;
    const MANY_REGISTERS: bool = false;
    const UNSIGNED: bool = false;

    #[inline(always)]
    unsafe fn line(p: *const u8) -> [uint8x16_t; 4] {
        each!(i => vld1q_u8(p.add(16 * i)))
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        asm!("prfm pldl2keep, [{p}]", p = in(reg) p, options(readonly, nostack, preserves_flags))
    }
    #[inline(always)]
    unsafe fn splat_line(byte: u8) -> [uint8x16_t; 4] {
        [vdupq_n_u8(byte); 4]
    }
    #[inline(always)]
    unsafe fn and(a: [uint8x16_t; 4], b: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        each!(i => vandq_u8(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn or(a: [uint8x16_t; 4], b: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        each!(i => vorrq_u8(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn xor(a: [uint8x16_t; 4], b: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        each!(i => veorq_u8(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn shift(a: [uint8x16_t; 4], n: i32) -> [uint8x16_t; 4] {
        let n = vdupq_n_s8(n as i8);
        each!(i => vshlq_u8(a[i], n))
    }
    #[inline(always)]
    unsafe fn look_up(table: &[u8; 16], index: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        let table = vld1q_u8(table.as_ptr());
        each!(i => vqtbl1q_u8(table, index[i]))
    }

    #[inline(always)]
    unsafe fn zero_sums() -> [int32x4_t; 4] {
        [vdupq_n_s32(0); 4]
    }
    #[inline(always)]
    unsafe fn splat_shifted(value: *const i32, shift: u32) -> [int32x4_t; 4] {
        [vdupq_n_s32(*value << shift); 4]
    }
    #[inline(always)]
    unsafe fn dot<const N: usize>(
        _bits: u32,
        mut sums: [int32x4_t; 4],
        lines: &[[uint8x16_t; 4]; N],
        x: *const i8,
    ) -> [int32x4_t; 4] {
        let mut g = 0;
        while g < N {
            let x = vld1q_s8(x.add(4 * g));
            let mut i = 0;
            while i < 4 {
                sums[i] = sdot::<0>(sums[i], lines[g][i], x);
                sums[i] = sdot::<1>(sums[i], lines[g + 1][i], x);
                sums[i] = sdot::<2>(sums[i], lines[g + 2][i], x);
                sums[i] = sdot::<3>(sums[i], lines[g + 3][i], x);
                i += 1;
            }
            g += 4;
        }
        sums
    }
    #[inline(always)]
    unsafe fn to_floats(sums: [int32x4_t; 4]) -> [float32x4_t; 4] {
        each!(i => vcvtq_f32_s32(sums[i]))
    }

    #[inline(always)]
    unsafe fn zero() -> [float32x4_t; 4] {
        [vdupq_n_f32(0.0); 4]
    }
    #[inline(always)]
    unsafe fn splat(value: *const f32) -> [float32x4_t; 4] {
        [vdupq_n_f32(*value); 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [float32x4_t; 4] {
        each!(i => vld1q_f32(p.add(4 * i)))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> [float32x4_t; 4] {
        let mut floats = [0.0; 16];
        for (float, half) in floats.iter_mut().zip(p.cast::<[[u8; 2]; 16]>().read_unaligned()) {
            *float = f16_to_f32(u16::from_le_bytes(half));
        }
        Self::load(floats.as_ptr())
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> [float32x4_t; 4] {
        each!(i => vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(vreinterpret_u16_u8(vld1_u8(p.add(8 * i)))))))
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> [float32x4_t; 4] {
        let bytes = bytes(p);
        each!(i => vcvtq_f32_u32(bytes[i]))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> [float32x4_t; 4] {
        let bytes = vld1q_s8(p.cast());
        let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
        Self::to_floats([
            vmovl_s16(vget_low_s16(low)),
            vmovl_high_s16(low),
            vmovl_s16(vget_low_s16(high)),
            vmovl_high_s16(high),
        ])
    }
    #[inline(always)]
    unsafe fn load_e8m0_half(p: *const u8) -> [float32x4_t; 4] {
        let e = bytes(p);
        let smallest = vdupq_n_u32(0x0020_0000);
        let (one, two) = (vdupq_n_u32(1), vdupq_n_u32(2));
        each!(i => vreinterpretq_f32_u32(vbslq_u32(
            vcltq_u32(e[i], two),
            vshlq_u32(smallest, vreinterpretq_s32_u32(e[i])),
            vshlq_n_u32::<23>(vsubq_u32(e[i], one)),
        )))
    }
    #[inline(always)]
    unsafe fn load_ue4m3_half(p: *const u8) -> [float32x4_t; 4] {
        // Single precision has the same mantissa bits foremost, subnormal where UE4M3 is, and an exponent that counts from 127.
        let (bytes, mask) = (bytes(p), vdupq_n_u32(0x7f));
        let half = vdupq_n_f32(f32::from_bits((127 + 127 - 7 - 1) << 23));
        each!(i => vmulq_f32(vreinterpretq_f32_u32(vshlq_n_u32::<20>(vandq_u32(bytes[i], mask))), half))
    }
    #[inline(always)]
    unsafe fn load_u4_pairs(p: *const u8) -> ([float32x4_t; 4], [float32x4_t; 4]) {
        let bytes = bytes(p);
        let mask = vdupq_n_u32(15);
        let low = each!(i => vcvtq_f32_u32(vandq_u32(bytes[i], mask)));
        (low, each!(i => vcvtq_f32_u32(vshrq_n_u32::<4>(bytes[i]))))
    }
    #[inline(always)]
    unsafe fn add(a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        each!(i => vaddq_f32(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn mul(a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        each!(i => vmulq_f32(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn fma(a: [float32x4_t; 4], b: [float32x4_t; 4], c: [float32x4_t; 4]) -> [float32x4_t; 4] {
        each!(i => vfmaq_f32(c[i], a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn negate(a: [float32x4_t; 4]) -> [float32x4_t; 4] {
        each!(i => vnegq_f32(a[i]))
    }
    #[inline(always)]
    unsafe fn store(a: [float32x4_t; 4], p: *mut f32) {
        let mut i = 0;
        while i < 4 {
            vst1q_f32(p.add(4 * i), a[i]);
            i += 1;
        }
    }
    #[inline(always)]
    unsafe fn sum(a: [float32x4_t; 4]) -> f32 {
        vaddvq_f32(vaddq_f32(vaddq_f32(a[0], a[1]), vaddq_f32(a[2], a[3])))
    }

    #[inline(always)]
    unsafe fn max_abs(a: [float32x4_t; 4], b: [float32x4_t; 4]) -> f32 {
        let max = each!(i => vmaxq_f32(vabsq_f32(a[i]), vabsq_f32(b[i])));
        vmaxvq_f32(vmaxq_f32(vmaxq_f32(max[0], max[1]), vmaxq_f32(max[2], max[3])))
    }
    #[inline(always)]
    unsafe fn quantize(x: [float32x4_t; 4], scale: f32, codes: *mut i8) -> i32 {
        let scale = vdupq_n_f32(scale);
        let rounded = each!(i => vcvtnq_s32_f32(vmulq_f32(x[i], scale)));
        let low = vcombine_s16(vqmovn_s32(rounded[0]), vqmovn_s32(rounded[1]));
        let high = vcombine_s16(vqmovn_s32(rounded[2]), vqmovn_s32(rounded[3]));
        vst1q_s8(codes, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
        vaddvq_s32(vaddq_s32(vaddq_s32(rounded[0], rounded[1]), vaddq_s32(rounded[2], rounded[3])))
    }

    #[inline(always)]
    unsafe fn zero8() -> [float32x4_t; 2] {
        [vdupq_n_f32(0.0); 2]
    }
    #[inline(always)]
    unsafe fn dot_signed(q: *const i8, x: *const i8) -> [float32x4_t; 2] {
        [vcvtq_f32_s32(sdot_each(q, x)), vcvtq_f32_s32(sdot_each(q.add(16), x.add(16)))]
    }
    #[inline(always)]
    unsafe fn load8(p: *const f32) -> [float32x4_t; 2] {
        [vld1q_f32(p), vld1q_f32(p.add(4))]
    }
    #[inline(always)]
    unsafe fn fma8(a: [float32x4_t; 2], b: [float32x4_t; 2], scale: f32, c: [float32x4_t; 2]) -> [float32x4_t; 2] {
        [vfmaq_f32(c[0], a[0], vmulq_n_f32(b[0], scale)), vfmaq_f32(c[1], a[1], vmulq_n_f32(b[1], scale))]
    }
    #[inline(always)]
    unsafe fn sum8(a: [float32x4_t; 2]) -> f32 {
        vaddvq_f32(vaddq_f32(a[0], a[1]))
    }
}

/// The products of 16 signed bytes, four to a lane.
#[inline(always)]
unsafe fn sdot_each(q: *const i8, x: *const i8) -> int32x4_t {
    let mut sums = vdupq_n_s32(0);
    asm!(
        "sdot {sums:v}.4s, {q:v}.16b, {x:v}.16b",
        sums = inout(vreg) sums,
        q = in(vreg) vld1q_s8(q),
        x = in(vreg) vld1q_s8(x),
        options(pure, nomem, nostack, preserves_flags)
    );
    sums
}

/// 16 bytes, widened.
#[inline(always)]
unsafe fn bytes(p: *const u8) -> [uint32x4_t; 4] {
    let bytes = vld1q_u8(p);
    let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
    [vmovl_u16(vget_low_u16(low)), vmovl_high_u16(low), vmovl_u16(vget_low_u16(high)), vmovl_high_u16(high)]
}
