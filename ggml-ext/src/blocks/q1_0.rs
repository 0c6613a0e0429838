//! Q1_0: 128 elements of `d` or `-d`.

use super::{Block, assert_layout, float, head, head_mut, planes, store};
use crate::GgmlType;

/// Scale, then eight signs a byte, the first in its lowest bit; set for `d`.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Q1_0 {
    d: [u8; 2],
    qs: [u8; 16],
}

const _: () = assert_layout::<Q1_0>();

impl Block for Q1_0 {
    const TYPE: GgmlType = GgmlType::Q1_0;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn codes(&self, q: &mut [i8], scale: &mut [f32], _offset: &mut [f32]) {
        *head_mut(scale) = [float::scale(self.d); 8];
        let mut codes = planes::unpack::<1, 1, 16, 128>(&self.qs);
        for code in &mut codes {
            *code *= 2;
        }
        store(q, &codes, 1);
    }

    /// The scale is the mean magnitude. As with the ternary types, models are trained for it, and importances change nothing.
    #[inline(always)]
    fn quantize(x: &[f32], _importance: Option<&[f32]>) -> Self {
        let x: &[f32; 128] = head(x);
        let (mut sum, mut codes) = (0.0, [0; 128]);
        for (code, x) in codes.iter_mut().zip(x) {
            sum += x.abs();
            *code = u8::from(*x >= 0.0);
        }
        Q1_0 { d: float::scale_bytes(sum / 128.0), qs: planes::pack::<1, 1, 16, 128>(&codes) }
    }
}
