//! Q3_K: 256 elements `(d * (s - 32)) * (c - 4)`, c in 0..=7, six-bit s per 16 elements.

use super::{Block, assert_layout, fit, float, head, head_mut, inverse, k_scales, planes};
use crate::GgmlType;

/// Third bits of the codes in planes of 32, their low two bits in planes of 32, scales, `d`.
///
/// Scale j has its low four bits in byte j % 8 (the low half for j < 8, else the high half) and its top two in byte
/// 8 + j % 4, at bit 2 * (j / 4).
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Q3_K {
    hmask: [u8; 32],
    qs: [u8; 64],
    scales: [u8; 12],
    d: [u8; 2],
}

const _: () = assert_layout::<Q3_K>();

#[inline(always)]
fn unpack_scales(packed: &[u8; 12]) -> [i8; 16] {
    let (low, high) = packed.split_at(8);
    std::array::from_fn(|j| {
        let low = low[j % 8] >> (4 * (j / 8)) & 15;
        let high = high[j % 4] >> (2 * (j / 4)) & 3;
        (low | high << 4) as i8 - 32
    })
}

fn pack_scales(scales: &[i8; 16]) -> [u8; 12] {
    let mut packed = [0; 12];
    for (j, &s) in scales.iter().enumerate() {
        let s = (s + 32) as u8;
        packed[j % 8] |= (s & 15) << (4 * (j / 8));
        packed[8 + j % 4] |= (s >> 4) << (2 * (j / 4));
    }
    packed
}

impl Block for Q3_K {
    const TYPE: GgmlType = GgmlType::Q3_K;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn codes(&self, q: &mut [i8], scale: &mut [f32], _offset: &mut [f32]) {
        let d = float::scale(self.d);
        *head_mut(scale) = unpack_scales(&self.scales).map(|s| d * f32::from(s));
        let q: &mut [i8; 256] = head_mut(q);
        let low = planes::unpack::<2, 32, 64, 256>(&self.qs);
        let high = planes::unpack::<1, 32, 32, 256>(&self.hmask);
        for i in 0..256 {
            q[i] = (low[i] | high[i] << 2) as i8 - 4;
        }
    }

    fn quantize(x: &[f32]) -> Self {
        let x: &[f32; 256] = head(x);
        let snap = |v| fit::round(v, -4.0, 3.0);
        let wished: [f32; 16] = std::array::from_fn(|j| fit::scale(&x[j * 16..][..16], -4.0, 1.0, snap));
        let (d, scales) = k_scales::signed(wished, 32.0);
        let inverse = scales.map(|s| inverse(float::scale(d) * f32::from(s)));
        let codes: [u8; 256] = std::array::from_fn(|i| (snap(x[i] * inverse[i / 16]) + 4.0) as u8);
        Q3_K {
            hmask: planes::pack::<1, 32, 32, 256>(&codes.map(|c| c >> 2)),
            qs: planes::pack::<2, 32, 64, 256>(&codes),
            scales: pack_scales(&scales),
            d,
        }
    }
}
