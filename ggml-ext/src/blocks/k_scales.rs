//! The two-level scales of the 256-element types: a block's `d` times a small integer per group.
//!
//! Q4_K and Q5_K hold eight scales and eight minima of six bits each in twelve bytes.

use super::float;
use super::two_level::{self, Affine};

/// Bytes 0..4 hold scales 0..4 in their low six bits, bytes 4..8 minima 0..4. Scale and minimum 4 + j have their low four
/// bits in the low and high half of byte 8 + j, and their top two bits in the top two of bytes j and 4 + j.
#[inline(always)]
pub(super) fn unpack(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for j in 0..4 {
        let (s, m, both) = (packed[j], packed[4 + j], packed[8 + j]);
        scales[j] = s & 63;
        mins[j] = m & 63;
        scales[4 + j] = both & 15 | (s >> 6) << 4;
        mins[4 + j] = both >> 4 | (m >> 6) << 4;
    }
    (scales, mins)
}

/// The inverse of [`unpack`].
#[inline(always)]
fn pack(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; 12] {
    let mut packed = [0; 12];
    for j in 0..4 {
        packed[j] = scales[j] | (scales[4 + j] >> 4) << 6;
        packed[4 + j] = mins[j] | (mins[4 + j] >> 4) << 6;
        packed[8 + j] = scales[4 + j] & 15 | mins[4 + j] << 4;
    }
    packed
}

/// Scale and offset of every 16 elements from the block's `d`, `dmin` and packed scales.
#[inline(always)]
pub(super) fn expand(d: [u8; 2], dmin: [u8; 2], packed: &[u8; 12], scale: &mut [f32; 16], offset: &mut [f32; 16]) {
    let (d, dmin) = (float::scale(d), float::scale(dmin));
    let (scales, mins) = unpack(packed);
    for j in 0..16 {
        scale[j] = d * f32::from(scales[j / 2]);
        offset[j] = -(dmin * f32::from(mins[j / 2]));
    }
}

/// Scale of every 16 elements from the block's `d` and signed integers.
#[inline(always)]
pub(super) fn expand_signed(d: [u8; 2], scales: &[i8; 16], scale: &mut [f32; 16]) {
    let d = float::scale(d);
    for (scale, &s) in scale.iter_mut().zip(scales) {
        *scale = d * f32::from(s);
    }
}

/// A block's scales as stored, and its codes.
pub(super) struct Quantized {
    pub d: [u8; 2],
    pub dmin: [u8; 2],
    pub scales: [u8; 12],
    pub codes: [u8; 256],
}

/// Quantises a block to codes `0..=max_code`, each element weighted by its `w`.
#[inline(always)]
pub(super) fn quantize(x: &[f32; 256], w: &[f32; 256], max_code: f32) -> Quantized {
    let Affine { d, dmin, scales, mins } = two_level::affine::<8>(x, w, max_code, 63.0);
    let packed = pack(&scales, &mins);
    // The codes are chosen for the scales as stored, not for those wished for.
    let (mut scale, mut offset) = ([0.0; 16], [0.0; 16]);
    expand(d, dmin, &packed, &mut scale, &mut offset);
    Quantized { d, dmin, scales: packed, codes: two_level::offset_codes(x, &scale, &offset, max_code) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn packing_keeps_every_bit() {
        for seed in 0..64_u8 {
            let scales = std::array::from_fn(|j| seed.wrapping_mul(37).wrapping_add(11 * j as u8) & 63);
            let mins = std::array::from_fn(|j| seed.wrapping_mul(53).wrapping_add(29 * j as u8) & 63);
            assert_eq!(super::unpack(&super::pack(&scales, &mins)), (scales, mins));
        }
    }
}
