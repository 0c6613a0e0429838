//! Q2_K: 256 elements `(d * s) * c - dmin * m`, c in 0..=3, four-bit s and m per 16 elements.

use super::two_level::{self, Affine};
use super::{Block, assert_layout, float, head, head_mut, planes, store, weights};
use crate::GgmlType;

/// Scales (s low, m high), two-bit codes in planes of 32, `d`, `dmin`.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Q2_K {
    scales: [u8; 16],
    qs: [u8; 64],
    d: [u8; 2],
    dmin: [u8; 2],
}

const _: () = assert_layout::<Q2_K>();

impl Block for Q2_K {
    const TYPE: GgmlType = GgmlType::Q2_K;
    const HAS_OFFSET: bool = true;

    #[inline(always)]
    fn codes(&self, q: &mut [i8], scale: &mut [f32], offset: &mut [f32]) {
        let (d, dmin) = (float::scale(self.d), float::scale(self.dmin));
        let (scale, offset): (&mut [f32; 16], &mut [f32; 16]) = (head_mut(scale), head_mut(offset));
        for (j, s) in self.scales.iter().enumerate() {
            scale[j] = d * f32::from(s & 15);
            offset[j] = -(dmin * f32::from(s >> 4));
        }
        store(q, &planes::unpack::<2, 32, 64, 256>(&self.qs), 0);
    }

    #[inline(always)]
    fn quantize(x: &[f32], importance: Option<&[f32]>) -> Self {
        let x: &[f32; 256] = head(x);
        let w = weights(x, importance);
        let Affine { d, dmin, scales, mins } = two_level::affine::<16>(x, &w, 3.0, 15.0);
        let mut block = Q2_K { scales: [0; 16], qs: [0; 64], d, dmin };
        for (out, (s, m)) in block.scales.iter_mut().zip(scales.iter().zip(mins)) {
            *out = s | m << 4;
        }
        // The codes are chosen for the scales as stored.
        let (mut scale, mut offset) = ([0.0; 16], [0.0; 16]);
        block.codes(&mut [0; 256], &mut scale, &mut offset);
        block.qs = planes::pack::<2, 32, 64, 256>(&two_level::offset_codes(x, &scale, &offset, 3.0));
        block
    }
}
