//! Q5_0: 32 elements `d * (c - 16)`, c in 0..=31.

use super::{Block, assert_layout, extreme, float, head, head_mut, inverse, planes, store};
use crate::GgmlType;

/// Scale, the fifth bit of code j in bit j of `qh`, then the low four bits: code j in the low half of byte j, code 16 + j
/// in its high half.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Q5_0 {
    d: [u8; 2],
    qh: [u8; 4],
    qs: [u8; 16],
}

const _: () = assert_layout::<Q5_0>();

impl Block for Q5_0 {
    const TYPE: GgmlType = GgmlType::Q5_0;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn codes(&self, q: &mut [i8], scale: &mut [f32], _offset: &mut [f32]) {
        *head_mut(scale) = [float::scale(self.d); 2];
        store(q, &planes::five_bits(&self.qs, self.qh), 16);
    }

    fn quantize(x: &[f32]) -> Self {
        let x: &[f32; 32] = head(x);
        let d = extreme(x) / -16.0;
        let id = inverse(d);
        let (qs, qh) = planes::pack_five_bits(&x.map(|v| ((v * id + 16.5) as u8).min(31)));
        Q5_0 { d: float::scale_bytes(d), qh, qs }
    }
}
