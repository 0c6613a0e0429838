//! Any CPU: the `wide` crate's vectors of what the build target guarantees, and plain arrays.

use wide::{f32x4, f32x8, i16x8, i32x4, u8x16};

use super::isa::Isa;
use crate::blocks::{bf16_to_f32, f16_to_f32, ue4m3_half};

/// The tier's vectors.
#[derive(Clone, Copy)]
pub(super) struct Portable;

super::int_kernels!(KERNELS: Portable);

/// Rounds to nearest, ties to even, when added to a float below 2^22: the integer is left in the low bits.
const ROUND: f32 = (3 << 22) as f32;

/// Reads `N` values.
#[inline(always)]
unsafe fn read<T: Copy, const N: usize>(p: *const T) -> [T; N] {
    // SAFETY: as the caller promises, N values lie at `p`.
    unsafe { p.cast::<[T; N]>().read_unaligned() }
}

/// Lane by lane, `f` of what `load` reads for 16 rows.
#[inline(always)]
fn floats(f: impl Fn(usize) -> f32) -> [f32x4; 4] {
    let mut lanes = [[0.0; 4]; 4];
    for (i, lane) in lanes.as_flattened_mut().iter_mut().enumerate() {
        *lane = f(i);
    }
    lanes.map(f32x4::new)
}

/// The sums of neighbouring lanes.
#[inline(always)]
fn add_pairs(a: i32x4, b: i32x4) -> f32x4 {
    let ([a, b, c, d], [e, f, g, h]) = (a.to_array(), b.to_array());
    f32x4::from_i32x4(i32x4::new([a, c, e, g]) + i32x4::new([b, d, f, h]))
}

/// 32 signed bytes as words.
#[inline(always)]
unsafe fn widened(p: *const i8) -> [i16x8; 4] {
    let bias = i16x8::splat(128);
    let words = |bytes: [u8; 16]| {
        let bytes = u8x16::new(bytes) ^ u8x16::splat(0x80);
        [i16x8::from_u8x16_low(bytes) - bias, i16x8::from_u8x16_high(bytes) - bias]
    };
    // SAFETY: as the caller promises, 32 bytes lie at `p`.
    let [first, last]: [[u8; 16]; 2] = unsafe { read(p.cast()) };
    let ([a, b], [c, d]) = (words(first), words(last));
    [a, b, c, d]
}

impl Isa for Portable {
    type Line = [u64; 8];
    /// Two sums per row, next to each other.
    type Sums = [i32x4; 8];
    type Floats = [f32x4; 4];
    type Floats8 = f32x8;

    const TOKENS: usize = 4;
    const IN_PAIRS: bool = false;
    const UNSIGNED_SECOND: bool = false;
    const MANY_REGISTERS: bool = false;
    const UNSIGNED: bool = true;

    #[inline(always)]
    unsafe fn line(p: *const u8) -> [u64; 8] {
        // SAFETY: as the caller promises, 64 bytes lie at `p`.
        unsafe { read(p.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch(_p: *const u8) {}
    #[inline(always)]
    unsafe fn splat_line(byte: u8) -> [u64; 8] {
        [u64::from_ne_bytes([byte; 8]); 8]
    }
    #[inline(always)]
    unsafe fn and(a: [u64; 8], b: [u64; 8]) -> [u64; 8] {
        std::array::from_fn(|i| a[i] & b[i])
    }
    #[inline(always)]
    unsafe fn or(a: [u64; 8], b: [u64; 8]) -> [u64; 8] {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn xor(a: [u64; 8], b: [u64; 8]) -> [u64; 8] {
        std::array::from_fn(|i| a[i] ^ b[i])
    }
    #[inline(always)]
    unsafe fn shift(a: [u64; 8], n: i32) -> [u64; 8] {
        let shift = |v: u64| if n >= 0 { u64::from_le(v) << n } else { u64::from_le(v) >> -n };
        a.map(|v| shift(v).to_le())
    }
    #[inline(always)]
    unsafe fn look_up(table: &[u8; 16], index: [u64; 8]) -> [u64; 8] {
        index.map(|v| u64::from_ne_bytes(v.to_ne_bytes().map(|i| table[usize::from(i & 15)])))
    }

    #[inline(always)]
    unsafe fn zero_sums() -> [i32x4; 8] {
        [i32x4::ZERO; 8]
    }
    #[inline(always)]
    unsafe fn splat_shifted(value: *const i32, shift: u32) -> [i32x4; 8] {
        // SAFETY: as the caller promises.
        let value = unsafe { *value } << shift;
        [i32x4::new([value, 0, value, 0]); 8]
    }
    #[inline(always)]
    unsafe fn dot<const N: usize>(_bits: u32, mut sums: [i32x4; 8], lines: &[[u64; 8]; N], x: *const i8) -> [i32x4; 8] {
        for (g, line) in lines.iter().enumerate() {
            // SAFETY: as the caller promises, four columns lie at `x` for every line.
            let x = unsafe { read::<i8, 4>(x.add(4 * g)) }.map(i16::from);
            let x = i16x8::new([x[0], x[1], x[2], x[3], x[0], x[1], x[2], x[3]]);
            for (sums, pair) in sums.chunks_exact_mut(2).zip(line.chunks_exact(2)) {
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&pair[0].to_ne_bytes());
                bytes[8..].copy_from_slice(&pair[1].to_ne_bytes());
                let bytes = u8x16::new(bytes);
                sums[0] += i16x8::from_u8x16_low(bytes).dot(x);
                sums[1] += i16x8::from_u8x16_high(bytes).dot(x);
            }
        }
        sums
    }
    #[inline(always)]
    unsafe fn to_floats(sums: [i32x4; 8]) -> [f32x4; 4] {
        std::array::from_fn(|i| add_pairs(sums[2 * i], sums[2 * i + 1]))
    }

    #[inline(always)]
    unsafe fn zero() -> [f32x4; 4] {
        [f32x4::ZERO; 4]
    }
    #[inline(always)]
    unsafe fn splat(value: *const f32) -> [f32x4; 4] {
        // SAFETY: as the caller promises.
        [f32x4::splat(unsafe { *value }); 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32x4; 4] {
        // SAFETY: as the caller promises, 16 floats lie at `p`.
        unsafe { read::<[f32; 4], 4>(p.cast()) }.map(f32x4::new)
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> [f32x4; 4] {
        // SAFETY: as the caller promises, 32 bytes lie at `p`.
        let halves: [[u8; 2]; 16] = unsafe { read(p.cast()) };
        floats(|i| f16_to_f32(u16::from_le_bytes(halves[i])))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> [f32x4; 4] {
        // SAFETY: as the caller promises, 32 bytes lie at `p`.
        let halves: [[u8; 2]; 16] = unsafe { read(p.cast()) };
        floats(|i| bf16_to_f32(u16::from_le_bytes(halves[i])))
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> [f32x4; 4] {
        // SAFETY: as the caller promises, 16 bytes lie at `p`.
        let bytes: [u8; 16] = unsafe { read(p) };
        floats(|i| f32::from(bytes[i]))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> [f32x4; 4] {
        // SAFETY: as the caller promises, 16 bytes lie at `p`.
        let bytes: [u8; 16] = unsafe { read(p) };
        floats(|i| f32::from(bytes[i] as i8))
    }
    #[inline(always)]
    unsafe fn load_e8m0_half(p: *const u8) -> [f32x4; 4] {
        // SAFETY: as the caller promises, 16 bytes lie at `p`.
        let bytes: [u8; 16] = unsafe { read(p) };
        floats(|i| match u32::from(bytes[i]) {
            e @ ..2 => f32::from_bits(0x0020_0000 << e),
            e => f32::from_bits((e - 1) << 23),
        })
    }
    #[inline(always)]
    unsafe fn load_ue4m3_half(p: *const u8) -> [f32x4; 4] {
        // SAFETY: as the caller promises, 16 bytes lie at `p`.
        let bytes: [u8; 16] = unsafe { read(p) };
        floats(|i| ue4m3_half(bytes[i]))
    }
    #[inline(always)]
    unsafe fn load_u4_pairs(p: *const u8) -> ([f32x4; 4], [f32x4; 4]) {
        // SAFETY: as the caller promises, 16 bytes lie at `p`.
        let bytes: [u8; 16] = unsafe { read(p) };
        (floats(|i| f32::from(bytes[i] & 15)), floats(|i| f32::from(bytes[i] >> 4)))
    }
    #[inline(always)]
    unsafe fn add(a: [f32x4; 4], b: [f32x4; 4]) -> [f32x4; 4] {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: [f32x4; 4], b: [f32x4; 4]) -> [f32x4; 4] {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: [f32x4; 4], b: [f32x4; 4], c: [f32x4; 4]) -> [f32x4; 4] {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn negate(a: [f32x4; 4]) -> [f32x4; 4] {
        a.map(|v| -v)
    }
    #[inline(always)]
    unsafe fn store(a: [f32x4; 4], p: *mut f32) {
        // SAFETY: as the caller promises, there is room for 16 floats at `p`.
        unsafe { p.cast::<[[f32; 4]; 4]>().write_unaligned(a.map(f32x4::to_array)) }
    }
    #[inline(always)]
    unsafe fn sum(a: [f32x4; 4]) -> f32 {
        ((a[0] + a[1]) + (a[2] + a[3])).reduce_add()
    }

    #[inline(always)]
    unsafe fn max_abs(a: [f32x4; 4], b: [f32x4; 4]) -> f32 {
        let max: [f32x4; 4] = std::array::from_fn(|i| a[i].abs().fast_max(b[i].abs()));
        let max = max[0].fast_max(max[1]).fast_max(max[2].fast_max(max[3])).to_array();
        max.into_iter().fold(0.0, f32::max)
    }
    #[inline(always)]
    unsafe fn quantize(x: [f32x4; 4], scale: f32, codes: *mut i8) -> i32 {
        let rounded = x.map(|v| (v * scale + f32x4::splat(ROUND)).to_array());
        let rounded: [i8; 16] = std::array::from_fn(|i| rounded[i / 4][i % 4].to_bits() as i8);
        // SAFETY: as the caller promises, there is room for 16 codes.
        unsafe { codes.cast::<[i8; 16]>().write_unaligned(rounded) }
        rounded.into_iter().map(i32::from).sum()
    }

    #[inline(always)]
    unsafe fn zero8() -> f32x8 {
        f32x8::ZERO
    }
    #[inline(always)]
    unsafe fn dot_signed(q: *const i8, x: *const i8) -> f32x8 {
        // SAFETY: as the caller promises, 32 codes lie at both.
        let (q, x) = unsafe { (widened(q), widened(x)) };
        let sums: [f32x4; 2] =
            std::array::from_fn(|i| add_pairs(q[2 * i].dot(x[2 * i]), q[2 * i + 1].dot(x[2 * i + 1])));
        f32x8::new(std::array::from_fn(|i| sums[i / 4].as_array()[i % 4]))
    }
    #[inline(always)]
    unsafe fn load8(p: *const f32) -> f32x8 {
        // SAFETY: as the caller promises, 8 floats lie at `p`.
        f32x8::new(unsafe { read(p) })
    }
    #[inline(always)]
    unsafe fn fma8(a: f32x8, b: f32x8, scale: f32, c: f32x8) -> f32x8 {
        a.mul_add(b * scale, c)
    }
    #[inline(always)]
    unsafe fn sum8(a: f32x8) -> f32 {
        a.reduce_add()
    }
}
