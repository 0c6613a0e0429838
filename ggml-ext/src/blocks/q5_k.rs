//! Q5_K: 256 elements `(d * s) * c - dmin * m`, c in 0..=31, six-bit s and m per 32 elements.

use super::{Block, assert_layout, head, head_mut, k_scales, planes, store, weights};
use crate::GgmlType;

/// `d`, `dmin`, packed scales and minima, fifth bits of the codes in planes of 32, their low four bits in planes of 32.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Q5_K {
    d: [u8; 2],
    dmin: [u8; 2],
    scales: [u8; 12],
    qh: [u8; 32],
    qs: [u8; 128],
}

const _: () = assert_layout::<Q5_K>();

impl Block for Q5_K {
    const TYPE: GgmlType = GgmlType::Q5_K;
    const HAS_OFFSET: bool = true;

    #[inline(always)]
    fn codes(&self, q: &mut [i8], scale: &mut [f32], offset: &mut [f32]) {
        k_scales::expand(self.d, self.dmin, &self.scales, head_mut(scale), head_mut(offset));
        let mut codes = planes::unpack::<4, 32, 128, 256>(&self.qs);
        planes::add_high(&mut codes, &planes::unpack::<1, 32, 32, 256>(&self.qh), 4);
        store(q, &codes, 0);
    }

    #[inline(always)]
    fn quantize(x: &[f32], importance: Option<&[f32]>) -> Self {
        let x: &[f32; 256] = head(x);
        let w = weights(x, importance);
        let k_scales::Quantized { d, dmin, scales, codes } = k_scales::quantize(x, &w, 31.0);
        let mut high = codes;
        for code in &mut high {
            *code >>= 4;
        }
        let (qh, qs) = (planes::pack::<1, 32, 32, 256>(&high), planes::pack::<4, 32, 128, 256>(&codes));
        Q5_K { d, dmin, scales, qh, qs }
    }
}
