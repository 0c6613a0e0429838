//! NVFP4: four times 16 four-bit floats (E2M1), each 16 with a scale of eight bits (UE4M3).
//!
//! UE4M3 is the E4M3 of the OCP 8-bit floating point specification without its sign: four bits of exponent, three of mantissa, from
//! 2^-9 to 448. That is little range for weights, so files keep a factor on the whole matrix beside it, the tensor `NAME.scale`, which is
//! none of this module's business.

use super::{Block, assert_layout, e2m1, extreme, head, head_mut, planes};
use crate::GgmlType;

/// The scales, then the codes: of 16 elements, j in the low half of byte j of eight, 8 + j in its high half.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct NVFP4 {
    d: [u8; 4],
    qs: [u8; 32],
}

const _: () = assert_layout::<NVFP4>();

/// The byte that the specification calls NaN. Like the other tools, this reads it as zero.
pub(crate) const UE4M3_NAN: u8 = 0x7f;

/// Half the value of a scale. Its highest bit says nothing but that the byte is not [`UE4M3_NAN`].
#[inline(always)]
pub(crate) fn ue4m3_half(byte: u8) -> f32 {
    let (bits, mantissa) = (u32::from(byte & 0x7f), f32::from(byte & 7));
    // In single precision the exponent counts from 127 and not from 7; one less is half.
    let normal = f32::from_bits((bits + ((127 - 7 - 1) << 3)) << 20);
    let subnormal = mantissa * (0.5 / 512.0);
    let half = if bits < 8 { subnormal } else { normal };
    if byte == UE4M3_NAN { 0.0 } else { half }
}

/// The scale for a factor, as the other tools choose it: rounded to nearest up to 240, from there on the largest, and zero for what is not
/// a positive number.
#[inline(always)]
fn to_ue4m3(x: f32) -> u8 {
    /// 448.
    const LARGEST: u8 = 0x7e;
    /// Smallest number with a mantissa of its own.
    const NORMAL: f32 = 1.0 / 64.0;
    // Three bits of mantissa, of halves the larger, and an exponent that counts from 7: a mantissa of 8 is the next exponent's 0.
    let normal = ((x.to_bits() >> 19).wrapping_add(1) >> 1).wrapping_sub((127 - 7) << 3);
    let subnormal = (x * 512.0 + 0.5) as u32;
    if x.is_nan() || x <= 0.0 {
        0
    } else if x < NORMAL {
        subnormal.min(7) as u8
    } else if normal < 15 << 3 {
        normal as u8
    } else {
        LARGEST
    }
}

impl Block for NVFP4 {
    const TYPE: GgmlType = GgmlType::NVFP4;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn codes(&self, q: &mut [i8], scale: &mut [f32], _offset: &mut [f32]) {
        let scale: &mut [f32; 4] = head_mut(scale);
        for (scale, &d) in scale.iter_mut().zip(&self.d) {
            *scale = ue4m3_half(d);
        }
        let q: &mut [i8; 64] = head_mut(q);
        for (q, &code) in q.iter_mut().zip(&planes::unpack::<4, 8, 32, 64>(&self.qs)) {
            *q = e2m1::doubled(code);
        }
    }

    fn quantize(x: &[f32], _importance: Option<&[f32]>) -> Self {
        let x: &[f32; 64] = head(x);
        let (mut d, mut codes) = ([0; 4], [0; 64]);
        let sixteens = x.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0);
        for (d, (x, codes)) in d.iter_mut().zip(sixteens) {
            // The largest element becomes the largest code, 6.
            *d = to_ue4m3(extreme(x).abs() / 6.0);
            let half_scale = ue4m3_half(*d);
            *codes = x.map(|v| e2m1::nearest(half_scale, v));
        }
        NVFP4 { d, qs: planes::pack::<4, 8, 32, 64>(&codes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_that_are_numbers_are_read_back_as_they_were_written() {
        // From 256 on the other tools know one scale only.
        for byte in 0..0x78 {
            assert_eq!(to_ue4m3(2.0 * ue4m3_half(byte)), byte);
        }
        assert_eq!([0x78, 0x7e, 0x7f, 0x80, 0xff].map(ue4m3_half), [128.0, 224.0, 0.0, 0.0, 240.0]);
        assert_eq!([0.0, -1.0, f32::NAN, f32::INFINITY, 247.0, 248.0].map(to_ue4m3), [0, 0, 0, 0x7e, 0x77, 0x7e]);
        // Halves go up, below the smallest number too.
        assert_eq!([0.000_97, 0.5 / 512.0, 7.6 / 512.0, 1.0625, 1.0624].map(to_ue4m3), [0, 1, 7, 0x39, 0x38]);
    }
}
