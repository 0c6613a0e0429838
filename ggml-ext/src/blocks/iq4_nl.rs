//! IQ4_NL: 32 elements `d * VALUES[c]`, c in 0..=15: levels that lie closer together near zero.

use super::{Block, assert_layout, fit, float, head, head_mut, inverse, planes, weights};
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

/// The levels of codes, by halving the table at each bit. (Indexing the table, the compiler would go element by element;
/// this it does for a whole vector at once.)
#[inline(always)]
pub(super) fn store_levels<const N: usize>(q: &mut [i8], codes: &[u8; N]) {
    let q: &mut [i8; N] = head_mut(q);
    for (q, &code) in q.iter_mut().zip(codes) {
        let select = |bit: u32, set: i8, clear: i8| {
            let mask = (code >> bit & 1).wrapping_neg() as i8;
            clear ^ (set ^ clear) & mask
        };
        let pair = |i: usize| select(0, IQ4_VALUES[i + 1], IQ4_VALUES[i]);
        let four = |i: usize| select(1, pair(i + 2), pair(i));
        let eight = |i: usize| select(2, four(i + 4), four(i));
        *q = select(3, eight(8), eight(0));
    }
}

/// The code of the level nearest to `v`.
#[inline(always)]
pub(super) fn nearest(v: f32) -> u8 {
    climb(v, |code| code as f32) as u8
}

/// Sums the steps of `height`, a function of the code, up to the level nearest to `v`: a new one at each midpoint.
#[inline(always)]
fn climb(v: f32, height: impl Fn(usize) -> f32) -> f32 {
    let mut sum = height(0);
    for code in 1..16 {
        let midpoint = 0.5 * (f32::from(IQ4_VALUES[code - 1]) + f32::from(IQ4_VALUES[code]));
        sum += if v > midpoint { height(code) - height(code - 1) } else { 0.0 };
    }
    sum
}

/// The levels that a scale stretches.
#[inline(always)]
pub(super) fn levels() -> fit::Levels<impl Fn(f32) -> f32 + Copy> {
    fit::Levels { peak: -127.0, gap: 16.0, snap: |v| climb(v, |code| f32::from(IQ4_VALUES[code])) }
}

impl Block for IQ4_NL {
    const TYPE: GgmlType = GgmlType::IQ4_NL;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn codes(&self, q: &mut [i8], scale: &mut [f32], _offset: &mut [f32]) {
        *head_mut(scale) = [float::scale(self.d); 2];
        store_levels(q, &planes::nibbles(&self.qs));
    }

    #[inline(always)]
    fn quantize(x: &[f32], importance: Option<&[f32]>) -> Self {
        let x: &[f32; 32] = head(x);
        let w = weights::<32>(x, importance);
        let d = float::scale_bytes(fit::scale(x, &w, &levels()));
        let id = inverse(float::scale(d));
        let mut codes = [0; 32];
        for (code, v) in codes.iter_mut().zip(x) {
            *code = nearest(v * id);
        }
        IQ4_NL { d, qs: planes::pack_nibbles(&codes) }
    }
}
