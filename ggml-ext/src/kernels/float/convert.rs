//! f16, bf16 and Q8_0 rows to f32 and back.

use super::elem::{BlockQ8_0, Elem};
use super::simd::Simd;
use half::{bf16, f16};

/// Bytes of a Q8_0 block.
pub(super) const Q8_0_BYTES: usize = size_of::<BlockQ8_0>();
/// Elements of a Q8_0 block.
pub(super) const Q8_0_LEN: usize = BlockQ8_0::LEN;

/// One f16 as f32 with integer arithmetic and one exact multiplication, for tiers without an instruction for it.
#[inline(always)]
pub(super) fn f16_to_f32_bits(h: f16) -> f32 {
    let h = u32::from(h.to_bits());
    let magnitude = (h & 0x7fff) << 13;
    // The exponent field is 112 too small; multiplying by 2^112 also normalises the subnormals.
    let scaled = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    let finite = magnitude < 0x0f80_0000;
    f32::from_bits(if finite { scaled } else { magnitude | 0x7f80_0000 } | (h & 0x8000) << 16)
}

/// One f32 as f16, to nearest with ties to even, for tiers without an instruction for it.
#[inline(always)]
pub(super) fn f32_to_f16_bits(x: f32) -> f16 {
    let sign = (x.to_bits() >> 16 & 0x8000) as u16;
    let a = x.to_bits() & 0x7fff_ffff;
    // Below 2^-14 the result is subnormal: adding 0.5, whose last place is 2^-24, makes the adder do the rounding.
    let subnormal = (f32::from_bits(a) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let odd = a >> 13 & 1;
    let normal = a.wrapping_sub(112 << 23).wrapping_add(0xfff + odd) >> 13;
    let nan = 0x7e00 | (a >> 13 & 0x3ff);
    let magnitude = if a < 0x3880_0000 {
        subnormal
    } else if a < 0x4780_0000 {
        normal
    } else if a <= 0x7f80_0000 {
        0x7c00
    } else {
        nan
    };
    f16::from_bits(magnitude as u16 | sign)
}

#[inline(always)]
pub(super) unsafe fn f16_to_f32<V: Simd>(src: &[f16], dst: &mut [f32]) {
    // SAFETY: the slices are of one length (checked by the caller).
    unsafe { widen::<V, f16>(src.as_ptr(), dst.as_mut_ptr(), src.len()) }
}

#[inline(always)]
pub(super) unsafe fn q8_0_to_f32<V: Simd>(src: &[u8], dst: &mut [f32]) {
    // SAFETY: the bytes are those of so many elements (checked by the caller), and a block may begin at any address.
    unsafe { widen::<V, BlockQ8_0>(src.as_ptr().cast(), dst.as_mut_ptr(), dst.len()) }
}

/// The first `n` elements of a row as f32.
///
/// # Safety
/// As [`Simd`]'s; the row has `n` elements, and there is room for as many.
#[inline(always)]
pub(super) unsafe fn widen<V: Simd, B: Elem>(row: *const B, dst: *mut f32, n: usize) {
    let mut i = 0;
    // SAFETY: every access is below `n`.
    unsafe {
        while i + V::LANES <= n {
            B::vector::<V>(row, i).store(dst.add(i));
            i += V::LANES;
        }
        if i < n {
            B::partial::<V>(row, i, n - i).store_partial(dst.add(i), n - i);
        }
    }
}

#[inline(always)]
pub(super) unsafe fn f32_to_f16<V: Simd>(src: &[f32], dst: &mut [f16]) {
    let n = src.len();
    let (s, d) = (src.as_ptr(), dst.as_mut_ptr());
    let mut i = 0;
    // SAFETY: both slices hold `n` elements (checked by the caller) and every access is below `n`.
    unsafe {
        while i + V::LANES <= n {
            V::load(s.add(i)).store_f16(d.add(i));
            i += V::LANES;
        }
        if i < n {
            V::load_partial(s.add(i), n - i).store_f16_partial(d.add(i), n - i);
        }
    }
}

// The loops below are plain Rust: integer shifts and products that the compiler vectorises as well as a hand would.

#[inline(always)]
pub(super) unsafe fn bf16_to_f32<V: Simd>(src: &[bf16], dst: &mut [f32]) {
    for (d, s) in dst.iter_mut().zip(src) {
        *d = f32::from_bits(u32::from(s.to_bits()) << 16);
    }
}

#[inline(always)]
pub(super) unsafe fn f32_to_bf16<V: Simd>(src: &[f32], dst: &mut [bf16]) {
    for (d, s) in dst.iter_mut().zip(src) {
        let bits = s.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let quiet = bits >> 16 | 0x40;
        let nan = bits & 0x7fff_ffff > 0x7f80_0000;
        *d = bf16::from_bits(if nan { quiet } else { rounded } as u16);
    }
}

#[inline(always)]
pub(super) unsafe fn quantize_q8_0<V: Simd>(src: &[f32], dst: &mut [u8]) {
    let (blocks, _) = src.as_chunks::<Q8_0_LEN>();
    let (out, _) = dst.as_chunks_mut::<Q8_0_BYTES>();
    for (x, out) in blocks.iter().zip(out) {
        // SAFETY: a block is 32 floats, a whole number of vectors in every tier.
        let amax = unsafe {
            let mut m = V::splat(0.0);
            for i in (0..Q8_0_LEN).step_by(V::LANES) {
                m = V::load(x.as_ptr().add(i)).abs().max(m);
            }
            m.lane_max()
        };
        let d = amax / 127.0;
        let inverse = if d > 0.0 { 1.0 / d } else { 0.0 };
        out[..2].copy_from_slice(&f32_to_f16_bits(d).to_bits().to_le_bytes());
        let codes: &mut [u8; Q8_0_LEN] = (&mut out[2..]).try_into().expect("34 - 2 bytes");
        for (o, &v) in codes.iter_mut().zip(x) {
            // To nearest with ties away from zero, as GGML rounds: adding the float just below 1/2 before truncating.
            // The limits bind only where NaN or infinity came in, and they make the conversion one instruction.
            #[expect(clippy::manual_clamp, reason = "`clamp` would let a NaN through")]
            let x = (v * inverse).max(-127.0).min(127.0);
            // SAFETY: `max` with a NaN is the other operand, so this is a number within 127.5 of 0.
            *o = unsafe { (x + 0.499_999_97f32.copysign(x)).to_int_unchecked::<i32>() } as u8;
        }
    }
}
