//! TQ2_0: 256 elements `d * (c - 1)`, c in 0..=3.

use super::{Block, assert_layout, float, head_mut, planes, store, ternary};
use crate::GgmlType;

/// Codes in planes of 32, then the scale.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct TQ2_0 {
    qs: [u8; 64],
    d: [u8; 2],
}

const _: () = assert_layout::<TQ2_0>();

impl Block for TQ2_0 {
    const TYPE: GgmlType = GgmlType::TQ2_0;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn codes(&self, q: &mut [i8], scale: &mut [f32], _offset: &mut [f32]) {
        *head_mut(scale) = [float::scale(self.d); 16];
        store(q, &planes::unpack::<2, 32, 64, 256>(&self.qs), 1);
    }

    #[inline(always)]
    fn quantize(x: &[f32], _importance: Option<&[f32]>) -> Self {
        let (d, codes) = ternary::quantize(x);
        TQ2_0 { qs: planes::pack::<2, 32, 64, 256>(&codes), d }
    }
}
