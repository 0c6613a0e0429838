//! Q5_0: 32 elements `d * (c - 16)`, c in 0..=31.

use super::{Block, assert_layout, extreme, fit, float, head, head_mut, inverse, planes, store, truncated, weights};
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

    #[inline(always)]
    fn quantize(x: &[f32], importance: Option<&[f32]>) -> Self {
        let x: &[f32; 32] = head(x);
        let (d, id) = match importance {
            None => {
                let d = extreme(x) / -16.0;
                (float::scale_bytes(d), inverse(d))
            }
            Some(importance) => {
                let w = weights::<32>(x, Some(importance));
                let d = float::scale_bytes(fit::scale(x, &w, &fit::integers(16.0)));
                (d, inverse(float::scale(d)))
            }
        };
        let (qs, qh) = planes::pack_five_bits(&truncated(x, 31, |v| v * id + 16.5));
        Q5_0 { d, qh, qs }
    }
}
