//! What the types of ternary elements share. Models are trained to hold such numbers, so what lies between them is not tuned for, and
//! importances change nothing.

use super::{extreme, float, head, inverse};

/// As stored, the scale that makes the largest element one; and the elements rounded to whole ones, plus one.
#[inline(always)]
pub(super) fn quantize<const N: usize>(x: &[f32]) -> ([u8; 2], [u8; N]) {
    let x: &[f32; N] = head(x);
    let d = extreme(x).abs();
    let id = inverse(d);
    let mut codes = [0; N];
    for (code, x) in codes.iter_mut().zip(x) {
        // Half a step is rounded away from zero.
        let v = x * id;
        *code = 1 + u8::from(v >= 0.5) - u8::from(v <= -0.5);
    }
    (float::scale_bytes(d), codes)
}
