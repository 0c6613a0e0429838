//! The two-level scales of the 256-element types: a block's `d` times a small integer per group.
//!
//! Q4_K and Q5_K hold eight scales and eight minima of six bits each in twelve bytes.

use super::{extreme, fit, float, inverse};

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

/// Quantises a block to codes `0..=max_code`.
pub(super) fn quantize(x: &[f32; 256], max_code: f32) -> Quantized {
    let (mut scales, mut mins) = ([0.0_f32; 8], [0.0_f32; 8]);
    for (j, x) in x.chunks_exact(32).enumerate() {
        (scales[j], mins[j]) = fit::scale_and_min(x, max_code);
    }
    let ((d, scales), (dmin, mins)) = (unsigned(scales, 63.0), unsigned(mins, 63.0));
    let packed = pack(&scales, &mins);
    // The codes are chosen for the scales as stored, not for those wished for.
    let (mut scale, mut offset) = ([0.0; 16], [0.0; 16]);
    expand(d, dmin, &packed, &mut scale, &mut offset);
    let codes =
        std::array::from_fn(|i| fit::round((x[i] - offset[i / 16]) * inverse(scale[i / 16]), 0.0, max_code) as u8);
    Quantized { d, dmin, scales: packed, codes }
}

/// Scales that are not negative as integers `0..=max` times a half-precision `d`.
pub(super) fn unsigned<const N: usize>(wished: [f32; N], max: f32) -> ([u8; 2], [u8; N]) {
    let d = float::scale_bytes(extreme(&wished) / max);
    let id = inverse(float::scale(d));
    (d, wished.map(|s| fit::round(s * id, 0.0, max) as u8))
}

/// Scales as integers `-peak..peak` times a half-precision `d`, which may be negative.
pub(super) fn signed<const N: usize>(wished: [f32; N], peak: f32) -> ([u8; 2], [i8; N]) {
    let d = float::scale_bytes(extreme(&wished) / -peak);
    let id = inverse(float::scale(d));
    (d, wished.map(|s| fit::round(s * id, -peak, peak - 1.0) as i8))
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
