//! E2M1, the four-bit floats of MXFP4 and NVFP4, as the OCP Microscaling specification 1.0 defines them: a sign, two bits of
//! exponent, one of mantissa. They have halves (0, 0.5, 1, 1.5, 2, 3, 4, 6), so codes are read doubled and scales halved.

/// Twice the value of a code: 0, 1, 2, 3, 4, 6, 8, 12, and from 8 on the same negated.
#[inline(always)]
pub(super) fn doubled(code: u8) -> i8 {
    let magnitude = code & 7;
    let steps_of_two = magnitude.saturating_sub(4);
    let steps_of_four = magnitude.saturating_sub(6) << 1;
    let value = magnitude.wrapping_add(steps_of_two).wrapping_add(steps_of_four) as i8;
    if code & 8 == 0 { value } else { value.wrapping_neg() }
}

/// The code whose value, `half_scale` times what [`doubled`] says, is nearest to `v`; of several the first.
#[inline(always)]
pub(super) fn nearest(half_scale: f32, v: f32) -> u8 {
    let error = |c: u8| (half_scale * f32::from(doubled(c)) - v).abs();
    (1..16).fold(0, |best, c| if error(c) < error(best) { c } else { best })
}
