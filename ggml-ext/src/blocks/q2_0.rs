//! Q2_0: 64 elements `d * (c - 1)`, c in 0..=3.

use super::{Block, assert_layout, float, head_mut, planes, store, ternary};
use crate::GgmlType;

/// Scale, then four codes a byte, the first in its lowest bits.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Q2_0 {
    d: [u8; 2],
    qs: [u8; 16],
}

const _: () = assert_layout::<Q2_0>();

impl Block for Q2_0 {
    const TYPE: GgmlType = GgmlType::Q2_0;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn codes(&self, q: &mut [i8], scale: &mut [f32], _offset: &mut [f32]) {
        *head_mut(scale) = [float::scale(self.d); 4];
        store(q, &planes::unpack::<2, 1, 16, 64>(&self.qs), 1);
    }

    #[inline(always)]
    fn quantize(x: &[f32], _importance: Option<&[f32]>) -> Self {
        let (d, codes) = ternary::quantize(x);
        Q2_0 { d, qs: planes::pack::<2, 1, 16, 64>(&codes) }
    }
}
