//! IQ4_XS: 256 elements `(d * (s - 32)) * VALUES[c]`, c in 0..=15 with the levels of IQ4_NL, six-bit s per 32 elements.

use super::{Block, assert_layout, float, head, head_mut, iq4_nl, planes, two_level, weights};
use crate::GgmlType;

/// `d`, the top two bits of scale j at bit 2 * j, its low four bits in half j % 2 of byte j / 2, codes in planes of 16.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct IQ4_XS {
    d: [u8; 2],
    scales_h: [u8; 2],
    scales_l: [u8; 4],
    qs: [u8; 128],
}

const _: () = assert_layout::<IQ4_XS>();

impl Block for IQ4_XS {
    const TYPE: GgmlType = GgmlType::IQ4_XS;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn codes(&self, q: &mut [i8], scale: &mut [f32], _offset: &mut [f32]) {
        let d = float::scale(self.d);
        let high = u16::from_le_bytes(self.scales_h);
        let scale: &mut [f32; 16] = head_mut(scale);
        for (i, scale) in scale.iter_mut().enumerate() {
            let j = i / 2;
            let low = self.scales_l[j / 2] >> (4 * (j % 2)) & 15;
            let s = low | ((high >> (2 * j)) as u8 & 3) << 4;
            *scale = d * f32::from(s as i8 - 32);
        }
        iq4_nl::store_levels(q, &planes::unpack::<4, 16, 128, 256>(&self.qs));
    }

    #[inline(always)]
    fn quantize(x: &[f32], importance: Option<&[f32]>) -> Self {
        let x: &[f32; 256] = head(x);
        let w = weights(x, importance);
        let (d, scales) = two_level::symmetric::<8>(x, &w, &iq4_nl::levels(), 32.0);
        let (mut scales_l, mut scales_h) = ([0; 4], 0);
        for (j, &s) in scales.iter().enumerate() {
            let s = (s + 32) as u8;
            scales_l[j / 2] |= (s & 15) << (4 * (j % 2));
            scales_h |= u16::from(s >> 4) << (2 * j);
        }
        let codes = two_level::codes(x, d, &scales, iq4_nl::nearest);
        IQ4_XS { d, scales_h: scales_h.to_le_bytes(), scales_l, qs: planes::pack::<4, 16, 128, 256>(&codes) }
    }
}
