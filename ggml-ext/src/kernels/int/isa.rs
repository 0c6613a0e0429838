//! What the generic kernels need of an instruction set.
//!
//! The kernels are written once, over [`Isa`]; a tier implements it with a few instructions per function and compiles
//! the kernels inside `#[target_feature]` functions, into which everything is inlined. An implementation is free to
//! hold 16 lanes in one register or in four.

use super::q8::{BLOCK, Q8Block};
use super::quantize;

/// 16-lane vectors: lane = row of a group, or one of 16 columns.
///
/// Every function is `#[inline(always)]`, has no branches that depend on data, and is
///
/// # Safety
/// to be called where the tier's CPU features are enabled and, where it takes pointers, with that many readable (or
/// writable) bytes behind them. Nothing needs to be aligned.
#[allow(clippy::missing_safety_doc, reason = "the trait's documentation states it for all")]
pub(super) trait Isa: Copy + 'static {
    /// 64 bytes: 16 rows x 4 columns of weight codes.
    type Line: Copy;
    /// Integer sums of 16 rows.
    type Sums: Copy;
    /// 16 floats.
    type Floats: Copy;
    /// 8 floats.
    type Floats8: Copy;

    /// Tokens that are multiplied with a group at a time, for each of which the group's codes are unpacked once. More than there are
    /// registers for may pay.
    const TOKENS: usize;
    /// Whether tokens meet a block in pairs, by [`Isa::dots`], as each line is then read half as often.
    const IN_PAIRS: bool;
    /// Whether second digits of activations are in `0..=127`, for the sake of [`Isa::dots`], and not in `-127..=127`.
    const UNSIGNED_SECOND: bool;
    /// True if there are registers for 16 accumulators and their operands.
    const MANY_REGISTERS: bool;
    /// True if [`Isa::dot`] multiplies unsigned weight codes only: signed ones are then stored plus 128.
    const UNSIGNED: bool;

    unsafe fn line(p: *const u8) -> Self::Line;
    /// Asks for the cache line at `p`, which may be any address, to be brought into the second level of cache: the first
    /// has too few outstanding misses to keep memory busy.
    unsafe fn prefetch(p: *const u8);
    unsafe fn splat_line(byte: u8) -> Self::Line;
    unsafe fn and(a: Self::Line, b: Self::Line) -> Self::Line;
    unsafe fn or(a: Self::Line, b: Self::Line) -> Self::Line;
    unsafe fn xor(a: Self::Line, b: Self::Line) -> Self::Line;
    /// Shifts left by `n` bits, or right by `-n`, with whatever falls in from a neighbouring byte.
    unsafe fn shift(a: Self::Line, n: i32) -> Self::Line;
    /// `table[index]` for every byte; indices are below 16.
    unsafe fn look_up(table: &[u8; 16], index: Self::Line) -> Self::Line;

    unsafe fn zero_sums() -> Self::Sums;
    /// `*value << shift` in every lane.
    unsafe fn splat_shifted(value: *const i32, shift: u32) -> Self::Sums;
    /// Adds the products of `lines` with the columns at `x`, four per line. `bits` (a constant) bounds the codes: they
    /// are in `0..1 << bits`, or, if it is 8, any signed byte (plus 128 if [`Isa::UNSIGNED`]).
    unsafe fn dot<const N: usize>(bits: u32, sums: Self::Sums, lines: &[Self::Line; N], x: *const i8) -> Self::Sums;
    /// [`Isa::dot`] for several tokens, whose columns are `second` digits or first ones.
    #[inline(always)]
    unsafe fn dots<const N: usize, const T: usize>(
        bits: u32,
        second: bool,
        mut sums: [Self::Sums; T],
        lines: &[Self::Line; N],
        x: [*const i8; T],
    ) -> [Self::Sums; T] {
        let _ = second;
        let mut i = 0;
        while i < T {
            // SAFETY: as the caller promises.
            sums[i] = unsafe { Self::dot(bits, sums[i], lines, x[i]) };
            i += 1;
        }
        sums
    }
    unsafe fn to_floats(sums: Self::Sums) -> Self::Floats;

    unsafe fn zero() -> Self::Floats;
    unsafe fn splat(value: *const f32) -> Self::Floats;
    unsafe fn load(p: *const f32) -> Self::Floats;
    unsafe fn load_f16(p: *const u8) -> Self::Floats;
    unsafe fn load_bf16(p: *const u8) -> Self::Floats;
    unsafe fn load_u8(p: *const u8) -> Self::Floats;
    unsafe fn load_i8(p: *const u8) -> Self::Floats;
    /// `2^(byte - 128)`: the exponents of MXFP4, whose table holds doubled values.
    unsafe fn load_e8m0_half(p: *const u8) -> Self::Floats;
    /// Half the values of UE4M3, the scales of NVFP4, of bytes that are numbers. A half-precision number has one more bit of exponent, and
    /// that counts from 15 and not from 7.
    unsafe fn load_ue4m3_half(p: *const u8) -> Self::Floats;
    /// The low halves and the high halves of 16 bytes.
    unsafe fn load_u4_pairs(p: *const u8) -> (Self::Floats, Self::Floats);
    unsafe fn add(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, fused where the CPU can.
    unsafe fn fma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    unsafe fn negate(a: Self::Floats) -> Self::Floats;
    unsafe fn store(a: Self::Floats, p: *mut f32);
    /// The sum of all lanes, in an order of the tier's own.
    unsafe fn sum(a: Self::Floats) -> f32;
    /// The sum of all lanes of each, every one in the same order, which need not be that of [`Isa::sum`].
    #[inline(always)]
    unsafe fn sum_four([a, b, c, d]: [Self::Floats; 4]) -> [f32; 4] {
        // SAFETY: as the caller promises.
        unsafe { [Self::sum(a), Self::sum(b), Self::sum(c), Self::sum(d)] }
    }

    /// The largest magnitude among the lanes of both.
    unsafe fn max_abs(a: Self::Floats, b: Self::Floats) -> f32;
    /// Writes `x * scale` rounded to nearest, ties to even, as 16 codes, and returns their sum.
    unsafe fn quantize(x: Self::Floats, scale: f32, codes: *mut i8) -> i32;

    /// Quantises four blocks, 128 elements at `x`, with the very results of [`quantize::block`].
    #[inline(always)]
    unsafe fn quantize_four(x: *const f32, blocks: &mut [Q8Block; 4]) {
        for (b, block) in blocks.iter_mut().enumerate() {
            // SAFETY: as the caller promises, there are 128 elements.
            unsafe {
                let x = x.add(b * BLOCK);
                quantize::block::<Self>([Self::load(x), Self::load(x.add(16))], block);
            }
        }
    }

    unsafe fn zero8() -> Self::Floats8;
    /// The products of 32 signed codes, the sum of each four in a lane.
    unsafe fn dot_signed(q: *const i8, x: *const i8) -> Self::Floats8;
    unsafe fn load8(p: *const f32) -> Self::Floats8;
    /// `a * (b * scale) + c`
    unsafe fn fma8(a: Self::Floats8, b: Self::Floats8, scale: f32, c: Self::Floats8) -> Self::Floats8;
    unsafe fn sum8(a: Self::Floats8) -> f32;
}
