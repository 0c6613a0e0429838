//! F32, F16 and BF16: rows stored element by element, and the scalar conversions every block's scale goes through.

use crate::GgmlType;

/// IEEE half precision to single precision, exact. Without branches or calls, so that it vectorises inside any kernel
/// (the `half` crate asks the CPU for its features at every call).
#[inline(always)]
pub fn f16_to_f32(h: u16) -> f32 {
    const REBIAS: u32 = (127 - 15) << 23;
    let magnitude = u32::from(h & 0x7fff);
    let normal = (magnitude << 13) + REBIAS;
    // Subnormals are multiples of 2^-24. Infinity and NaN have the exponent moved up to 255.
    let subnormal = (magnitude as i32 as f32 * f32::from_bits((127 - 24) << 23)).to_bits();
    let bits = if magnitude < 0x0400 {
        subnormal
    } else if magnitude >= 0x7c00 {
        normal + REBIAS
    } else {
        normal
    };
    f32::from_bits(bits | u32::from(h & 0x8000) << 16)
}

/// Single precision to IEEE half precision, rounded to nearest, ties to even; too large becomes infinite.
pub fn f32_to_f16(x: f32) -> u16 {
    half::f16::from_f32(x).to_bits()
}

/// bfloat16 to single precision, exact.
#[inline(always)]
pub fn bf16_to_f32(h: u16) -> f32 {
    f32::from_bits(u32::from(h) << 16)
}

/// Single precision to bfloat16, rounded to nearest, ties to even; NaN stays NaN (made quiet).
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// A half-precision scale as the blocks store it.
#[inline(always)]
pub(super) fn scale(bytes: [u8; 2]) -> f32 {
    f16_to_f32(u16::from_le_bytes(bytes))
}

/// The stored form of a scale.
pub(super) fn scale_bytes(x: f32) -> [u8; 2] {
    f32_to_f16(x).to_le_bytes()
}

/// Reads a row of F32, F16 or BF16.
pub(super) fn dequantize(ty: GgmlType, bytes: &[u8], out: &mut [f32]) {
    match ty {
        GgmlType::F32 => read(bytes, out, f32::from_le_bytes),
        GgmlType::F16 => read(bytes, out, |b| f16_to_f32(u16::from_le_bytes(b))),
        GgmlType::BF16 => read(bytes, out, |b| bf16_to_f32(u16::from_le_bytes(b))),
        _ => unreachable!("{ty} is stored in blocks"),
    }
}

/// Writes a row of F32, F16 or BF16.
pub(super) fn quantize(ty: GgmlType, x: &[f32], out: &mut [u8]) {
    match ty {
        GgmlType::F32 => write(x, out, f32::to_le_bytes),
        GgmlType::F16 => write(x, out, |v| f32_to_f16(v).to_le_bytes()),
        GgmlType::BF16 => write(x, out, |v| f32_to_bf16(v).to_le_bytes()),
        _ => unreachable!("{ty} is stored in blocks"),
    }
}

fn read<const N: usize>(bytes: &[u8], out: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
    let (elements, _) = bytes.as_chunks::<N>();
    for (o, &b) in out.iter_mut().zip(elements) {
        *o = convert(b);
    }
}

fn write<const N: usize>(x: &[f32], out: &mut [u8], convert: impl Fn(f32) -> [u8; N]) {
    let (elements, _) = out.as_chunks_mut::<N>();
    for (o, &v) in elements.iter_mut().zip(x) {
        *o = convert(v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_converts_as_the_half_crate_does() {
        for h in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(h), half::f16::from_bits(h).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{h:#06x}");
            if !ours.is_nan() {
                assert_eq!(f32_to_f16(ours), h);
            }
        }
    }

    #[test]
    fn bfloat16_rounds_to_nearest_even() {
        for (bits, want) in [
            (0x3f80_8000_u32, 0x3f80),
            (0x3f81_8000, 0x3f82),
            (0x3f80_8001, 0x3f81),
            (0x7f7f_ffff, 0x7f80), // the largest finite value rounds to infinity
            (0x7f80_0000, 0x7f80),
            (0xff80_0001, 0xffc0), // a NaN whose payload lies below the cut is still a NaN
        ] {
            assert_eq!(f32_to_bf16(f32::from_bits(bits)), want, "{bits:#x}");
        }
    }
}
