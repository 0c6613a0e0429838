//! IQ4_NL: 32 elements `d * VALUES[c]`, c in 0..=15: levels that lie closer together near zero.

use super::{Block, assert_layout, fit, float, head, head_mut, inverse, planes};
use crate::GgmlType;

/// The sixteen levels of IQ4_NL and IQ4_XS.
pub const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Scale, then the codes: element j in the low half of byte j, element 16 + j in its high half.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct IQ4_NL {
    d: [u8; 2],
    qs: [u8; 16],
}

const _: () = assert_layout::<IQ4_NL>();

/// The level of a code.
#[inline(always)]
pub(super) fn level(code: u8) -> i8 {
    IQ4_VALUES[usize::from(code & 15)]
}

/// The code of the level nearest to `v`.
pub(super) fn nearest(v: f32) -> u8 {
    // Between two neighbours, the midpoint decides.
    IQ4_VALUES.windows(2).filter(|pair| 2.0 * v > f32::from(pair[0]) + f32::from(pair[1])).count() as u8
}

/// The scale that fits `x` best.
pub(super) fn fit_scale(x: &[f32]) -> f32 {
    fit::scale(x, -127.0, 16.0, |v| f32::from(level(nearest(v))))
}

impl Block for IQ4_NL {
    const TYPE: GgmlType = GgmlType::IQ4_NL;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn codes(&self, q: &mut [i8], scale: &mut [f32], _offset: &mut [f32]) {
        *head_mut(scale) = [float::scale(self.d); 2];
        *head_mut(q) = planes::nibbles(&self.qs).map(level);
    }

    fn quantize(x: &[f32]) -> Self {
        let x: &[f32; 32] = head(x);
        let d = float::scale_bytes(fit_scale(x));
        let id = inverse(float::scale(d));
        IQ4_NL { d, qs: planes::pack_nibbles(&x.map(|v| nearest(v * id))) }
    }
}
