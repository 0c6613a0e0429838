//! Q4_1: 32 elements `d * c + m`, c in 0..=15.

use super::fit::Offset;
use super::{Block, assert_layout, fit, float, head, head_mut, inverse, planes, range, store, truncated, weights};
use crate::GgmlType;

/// Scale, minimum, then the codes: element j in the low half of byte j, element 16 + j in its high half.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Q4_1 {
    d: [u8; 2],
    m: [u8; 2],
    qs: [u8; 16],
}

const _: () = assert_layout::<Q4_1>();

impl Block for Q4_1 {
    const TYPE: GgmlType = GgmlType::Q4_1;
    const HAS_OFFSET: bool = true;

    #[inline(always)]
    fn codes(&self, q: &mut [i8], scale: &mut [f32], offset: &mut [f32]) {
        *head_mut(scale) = [float::scale(self.d); 2];
        *head_mut(offset) = [float::scale(self.m); 2];
        store(q, &planes::nibbles(&self.qs), 0);
    }

    #[inline(always)]
    fn quantize(x: &[f32], importance: Option<&[f32]>) -> Self {
        let x: &[f32; 32] = head(x);
        let (d, m, min, id) = match importance {
            None => {
                let (min, max) = range(x);
                let d = (max - min) / 15.0;
                (float::scale_bytes(d), float::scale_bytes(min), min, inverse(d))
            }
            Some(importance) => {
                let w = weights::<32>(x, Some(importance));
                let (d, min) = fit::scale_and_offset(x, &w, 15.0, Offset::Stored);
                let (d, m) = (float::scale_bytes(d), float::scale_bytes(min));
                (d, m, float::scale(m), inverse(float::scale(d)))
            }
        };
        let codes = truncated(x, 15, |v| (v - min) * id + 0.5);
        Q4_1 { d, m, qs: planes::pack_nibbles(&codes) }
    }
}
