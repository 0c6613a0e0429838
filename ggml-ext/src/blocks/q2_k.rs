//! Q2_K: 256 elements `(d * s) * c - dmin * m`, c in 0..=3, four-bit s and m per 16 elements.

use super::{Block, assert_layout, fit, float, head, head_mut, inverse, k_scales, planes, store};
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

    fn quantize(x: &[f32]) -> Self {
        let x: &[f32; 256] = head(x);
        let (mut scales, mut mins) = ([0.0_f32; 16], [0.0_f32; 16]);
        for (j, x) in x.chunks_exact(16).enumerate() {
            (scales[j], mins[j]) = fit::scale_and_min(x, 3.0);
        }
        let (d, scales) = k_scales::unsigned(scales, 15.0);
        let (dmin, mins) = k_scales::unsigned(mins, 15.0);
        let mut block = Q2_K { scales: std::array::from_fn(|j| scales[j] | mins[j] << 4), qs: [0; 64], d, dmin };
        // The codes are chosen for the scales as stored.
        let (mut scale, mut offset) = ([0.0; 16], [0.0; 16]);
        block.codes(&mut [0; 256], &mut scale, &mut offset);
        let code = |i: usize| fit::round((x[i] - offset[i / 16]) * inverse(scale[i / 16]), 0.0, 3.0) as u8;
        block.qs = planes::pack::<2, 32, 64, 256>(&std::array::from_fn(code));
        block
    }
}
