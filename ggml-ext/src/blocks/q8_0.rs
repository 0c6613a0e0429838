//! Q8_0: 32 elements `d * q`, q in -127..=127 (a file may hold -128).

use super::{Block, assert_layout, extreme, float, head, head_mut, inverse};
use crate::GgmlType;

/// Scale, then one signed byte per element.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Q8_0 {
    d: [u8; 2],
    qs: [i8; 32],
}

const _: () = assert_layout::<Q8_0>();

impl Block for Q8_0 {
    const TYPE: GgmlType = GgmlType::Q8_0;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn codes(&self, q: &mut [i8], scale: &mut [f32], _offset: &mut [f32]) {
        *head_mut(scale) = [float::scale(self.d); 2];
        *head_mut(q) = self.qs;
    }

    fn quantize(x: &[f32], _importance: Option<&[f32]>) -> Self {
        let x: &[f32; 32] = head(x);
        let d = extreme(x).abs() / 127.0;
        let id = inverse(d);
        Q8_0 { d: float::scale_bytes(d), qs: x.map(|v| (v * id).round() as i8) }
    }
}
