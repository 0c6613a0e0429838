//! Q6_K: 256 elements `(d * s) * (c - 32)`, c in 0..=63, eight-bit s per 16 elements.

use super::{Block, assert_layout, fit, float, head, head_mut, inverse, k_scales, planes, store};
use crate::GgmlType;

/// Low four bits of the codes in planes of 64, their top two in planes of 32, scales, `d`.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Q6_K {
    ql: [u8; 128],
    qh: [u8; 64],
    scales: [i8; 16],
    d: [u8; 2],
}

const _: () = assert_layout::<Q6_K>();

impl Block for Q6_K {
    const TYPE: GgmlType = GgmlType::Q6_K;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn codes(&self, q: &mut [i8], scale: &mut [f32], _offset: &mut [f32]) {
        k_scales::expand_signed(self.d, &self.scales, head_mut(scale));
        let mut codes = planes::unpack::<4, 64, 128, 256>(&self.ql);
        planes::add_high(&mut codes, &planes::unpack::<2, 32, 64, 256>(&self.qh), 4);
        store(q, &codes, 32);
    }

    fn quantize(x: &[f32]) -> Self {
        let x: &[f32; 256] = head(x);
        let snap = |v| fit::round(v, -32.0, 31.0);
        let wished: [f32; 16] = std::array::from_fn(|j| fit::scale(&x[j * 16..][..16], -32.0, 1.0, snap));
        let (d, scales) = k_scales::signed(wished, 128.0);
        let inverse = scales.map(|s| inverse(float::scale(d) * f32::from(s)));
        let codes: [u8; 256] = std::array::from_fn(|i| (snap(x[i] * inverse[i / 16]) + 32.0) as u8);
        Q6_K {
            ql: planes::pack::<4, 64, 128, 256>(&codes),
            qh: planes::pack::<2, 32, 64, 256>(&codes.map(|c| c >> 4)),
            scales,
            d,
        }
    }
}
