//! Q8_K: 256 elements `d * q`, q in -127..=127, with a single-precision scale. Made for activations; files rarely hold it.

use super::{Block, assert_layout, extreme, head, head_mut, inverse};
use crate::GgmlType;

/// Scale (single precision), codes, and the sum of every 16 codes.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Q8_K {
    d: [u8; 4],
    qs: [i8; 256],
    bsums: [[u8; 2]; 16],
}

const _: () = assert_layout::<Q8_K>();

impl Block for Q8_K {
    const TYPE: GgmlType = GgmlType::Q8_K;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn codes(&self, q: &mut [i8], scale: &mut [f32], _offset: &mut [f32]) {
        *head_mut(scale) = [f32::from_le_bytes(self.d); 16];
        *head_mut(q) = self.qs;
    }

    fn quantize(x: &[f32], _importance: Option<&[f32]>) -> Self {
        let x: &[f32; 256] = head(x);
        let d = extreme(x).abs() / 127.0;
        let id = inverse(d);
        let qs = x.map(|v| (v * id).round() as i8);
        let sum = |j: usize| qs[j * 16..][..16].iter().map(|&q| i16::from(q)).sum::<i16>();
        Q8_K { d: d.to_le_bytes(), qs, bsums: std::array::from_fn(|j| sum(j).to_le_bytes()) }
    }
}
