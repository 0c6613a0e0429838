//! Q6_K: 256 elements `(d * s) * (c - 32)`, c in 0..=63, eight-bit s per 16 elements.

use super::{Block, assert_layout, fit, head, head_mut, k_scales, planes, store, two_level, weights};
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

    #[inline(always)]
    fn quantize(x: &[f32], importance: Option<&[f32]>) -> Self {
        let x: &[f32; 256] = head(x);
        let w = weights(x, importance);
        let levels = fit::integers(32.0);
        let (d, scales) = two_level::symmetric::<16>(x, &w, &levels, 128.0);
        let codes = two_level::codes(x, d, &scales, |v| ((levels.snap)(v) + 32.0) as u8);
        let mut high = codes;
        for code in &mut high {
            *code >>= 4;
        }
        Q6_K { ql: planes::pack::<4, 64, 128, 256>(&codes), qh: planes::pack::<2, 32, 64, 256>(&high), scales, d }
    }
}
