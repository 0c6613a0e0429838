//! Q4_0: 32 elements `d * (c - 8)`, c in 0..=15.

use super::{Block, assert_layout, extreme, fit, float, head, head_mut, inverse, planes, store, truncated, weights};
use crate::GgmlType;

/// Scale, then the codes: element j in the low half of byte j, element 16 + j in its high half.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Q4_0 {
    d: [u8; 2],
    qs: [u8; 16],
}

const _: () = assert_layout::<Q4_0>();

impl Block for Q4_0 {
    const TYPE: GgmlType = GgmlType::Q4_0;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn codes(&self, q: &mut [i8], scale: &mut [f32], _offset: &mut [f32]) {
        *head_mut(scale) = [float::scale(self.d); 2];
        store(q, &planes::nibbles(&self.qs), 8);
    }

    #[inline(always)]
    fn quantize(x: &[f32], importance: Option<&[f32]>) -> Self {
        let x: &[f32; 32] = head(x);
        let (d, id) = match importance {
            None => {
                let d = extreme(x) / -8.0;
                (float::scale_bytes(d), inverse(d))
            }
            Some(importance) => {
                let w = weights::<32>(x, Some(importance));
                let d = float::scale_bytes(fit::scale(x, &w, &fit::integers(8.0)));
                (d, inverse(float::scale(d)))
            }
        };
        let codes = truncated(x, 15, |v| v * id + 8.5);
        Q4_0 { d, qs: planes::pack_nibbles(&codes) }
    }
}
