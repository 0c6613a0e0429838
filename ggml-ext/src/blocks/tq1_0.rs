//! TQ1_0: 256 elements `d * t` with t of -1, 0 and 1, five of them in a byte.

use super::{Block, assert_layout, float, head, head_mut, store, ternary};
use crate::GgmlType;

/// Five ternary digits a byte: 32 bytes hold those of elements that lie 32 apart, 16 bytes of elements that lie 16 apart; the last
/// four bytes hold four each. Then the scale.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct TQ1_0 {
    qs: [u8; 48],
    qh: [u8; 4],
    d: [u8; 2],
}

const _: () = assert_layout::<TQ1_0>();

/// Runs of bytes: how many elements come before, the first byte, how many bytes, how many digits each.
const RUNS: [(usize, usize, usize, usize); 3] = [(0, 0, 32, 5), (160, 32, 16, 5), (240, 48, 4, 4)];

/// A byte is the fraction, in 256ths and rounded up, of which its digits are the first ones: times three, the part above one is the
/// first digit and the part below the rest.
#[inline(always)]
pub(crate) fn split_digits(bytes: &[u8; 52], codes: &mut [u8; 256]) {
    for (element, first, n, digits) in RUNS {
        for (i, &byte) in bytes[first..first + n].iter().enumerate() {
            let mut rest = byte;
            for k in 0..digits {
                let tripled = 3 * u16::from(rest);
                codes[element + k * n + i] = (tripled >> 8) as u8;
                rest = tripled as u8;
            }
        }
    }
}

/// The inverse of [`split_digits`]. Digits that are not stored count as zeros.
#[inline(always)]
pub(crate) fn join_digits(codes: &[u8; 256], bytes: &mut [u8; 52]) {
    for (element, first, n, digits) in RUNS {
        for (i, byte) in bytes[first..first + n].iter_mut().enumerate() {
            let mut value = 0;
            for k in 0..5 {
                let digit = if k < digits { codes[element + k * n + i] } else { 0 };
                value = 3 * value + u16::from(digit);
            }
            *byte = (value * 256).div_ceil(243) as u8;
        }
    }
}

impl Block for TQ1_0 {
    const TYPE: GgmlType = GgmlType::TQ1_0;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn codes(&self, q: &mut [i8], scale: &mut [f32], _offset: &mut [f32]) {
        *head_mut(scale) = [float::scale(self.d); 16];
        let mut codes = [0; 256];
        split_digits(head(bytemuck::bytes_of(self)), &mut codes);
        store(q, &codes, 1);
    }

    #[inline(always)]
    fn quantize(x: &[f32], _importance: Option<&[f32]>) -> Self {
        let (d, codes) = ternary::quantize::<256>(x);
        let mut block = TQ1_0 { qs: [0; 48], qh: [0; 4], d };
        join_digits(&codes, head_mut(bytemuck::bytes_of_mut(&mut block)));
        block
    }
}
