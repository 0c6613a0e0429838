//! Q3_K: 256 elements `(d * (s - 32)) * (c - 4)`, c in 0..=7, six-bit s per 16 elements.

use super::{Block, assert_layout, fit, head, head_mut, k_scales, planes, store, two_level, weights};
use crate::GgmlType;

/// Third bits of the codes in planes of 32, their low two bits in planes of 32; low four bits of the scales in planes of
/// 8, their top two in planes of 4; `d`.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Q3_K {
    hmask: [u8; 32],
    qs: [u8; 64],
    scales_l: [u8; 8],
    scales_h: [u8; 4],
    d: [u8; 2],
}

const _: () = assert_layout::<Q3_K>();

#[inline(always)]
fn unpack_scales(low: &[u8; 8], high: &[u8; 4]) -> [i8; 16] {
    let mut codes = planes::unpack::<4, 8, 8, 16>(low);
    planes::add_high(&mut codes, &planes::unpack::<2, 4, 4, 16>(high), 4);
    let mut scales = [0; 16];
    store(&mut scales, &codes, 32);
    scales
}

fn pack_scales(scales: &[i8; 16]) -> ([u8; 8], [u8; 4]) {
    let codes = scales.map(|s| (s + 32) as u8);
    (planes::pack::<4, 8, 8, 16>(&codes), planes::pack::<2, 4, 4, 16>(&codes.map(|c| c >> 4)))
}

impl Block for Q3_K {
    const TYPE: GgmlType = GgmlType::Q3_K;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn codes(&self, q: &mut [i8], scale: &mut [f32], _offset: &mut [f32]) {
        k_scales::expand_signed(self.d, &unpack_scales(&self.scales_l, &self.scales_h), head_mut(scale));
        let mut codes = planes::unpack::<2, 32, 64, 256>(&self.qs);
        planes::add_high(&mut codes, &planes::unpack::<1, 32, 32, 256>(&self.hmask), 2);
        store(q, &codes, 4);
    }

    #[inline(always)]
    fn quantize(x: &[f32], importance: Option<&[f32]>) -> Self {
        let x: &[f32; 256] = head(x);
        let w = weights(x, importance);
        let levels = fit::integers(4.0);
        let (d, scales) = two_level::symmetric::<16>(x, &w, &levels, 32.0);
        let (scales_l, scales_h) = pack_scales(&scales);
        let codes = two_level::codes(x, d, &scales, |v| ((levels.snap)(v) + 4.0) as u8);
        let mut high = codes;
        for code in &mut high {
            *code >>= 2;
        }
        Q3_K {
            hmask: planes::pack::<1, 32, 32, 256>(&high),
            qs: planes::pack::<2, 32, 64, 256>(&codes),
            scales_l,
            scales_h,
            d,
        }
    }
}
