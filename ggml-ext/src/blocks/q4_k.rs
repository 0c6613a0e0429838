//! Q4_K: 256 elements `(d * s) * c - dmin * m`, c in 0..=15, six-bit s and m per 32 elements.

use super::{Block, assert_layout, head, head_mut, k_scales, planes, store, weights};
use crate::GgmlType;

/// `d`, `dmin`, packed scales and minima, four-bit codes in planes of 32.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Q4_K {
    d: [u8; 2],
    dmin: [u8; 2],
    scales: [u8; 12],
    qs: [u8; 128],
}

const _: () = assert_layout::<Q4_K>();

impl Block for Q4_K {
    const TYPE: GgmlType = GgmlType::Q4_K;
    const HAS_OFFSET: bool = true;

    #[inline(always)]
    fn codes(&self, q: &mut [i8], scale: &mut [f32], offset: &mut [f32]) {
        k_scales::expand(self.d, self.dmin, &self.scales, head_mut(scale), head_mut(offset));
        store(q, &planes::unpack::<4, 32, 128, 256>(&self.qs), 0);
    }

    #[inline(always)]
    fn quantize(x: &[f32], importance: Option<&[f32]>) -> Self {
        let x: &[f32; 256] = head(x);
        let w = weights(x, importance);
        let k_scales::Quantized { d, dmin, scales, codes } = k_scales::quantize(x, &w, 15.0);
        Q4_K { d, dmin, scales, qs: planes::pack::<4, 32, 128, 256>(&codes) }
    }
}
