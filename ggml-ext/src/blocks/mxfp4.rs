//! MXFP4: 32 four-bit floats (E2M1) with a shared power-of-two scale (E8M0), as the OCP Microscaling specification 1.0
//! defines them.

use super::{Block, assert_layout, e2m1, extreme, head, head_mut, planes};
use crate::GgmlType;

/// Exponent of the scale, then the codes: element j in the low half of byte j, element 16 + j in its high half.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct MXFP4 {
    e: u8,
    qs: [u8; 16],
}

const _: () = assert_layout::<MXFP4>();

/// `2^(e - 128)`. The specification calls 255 NaN; like the other tools, this reads it as one more exponent.
#[inline(always)]
fn half_scale(e: u8) -> f32 {
    // The two smallest are subnormal: 2^-128 and 2^-127.
    let subnormal = 0x0020_0000_u32 << (e & 1);
    let normal = u32::from(e).wrapping_sub(1) << 23;
    f32::from_bits(if e < 2 { subnormal } else { normal })
}

impl Block for MXFP4 {
    const TYPE: GgmlType = GgmlType::MXFP4;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn codes(&self, q: &mut [i8], scale: &mut [f32], _offset: &mut [f32]) {
        *head_mut(scale) = [half_scale(self.e); 2];
        let q: &mut [i8; 32] = head_mut(q);
        for (q, &code) in q.iter_mut().zip(&planes::nibbles(&self.qs)) {
            *q = e2m1::doubled(code);
        }
    }

    fn quantize(x: &[f32], _importance: Option<&[f32]>) -> Self {
        let x: &[f32; 32] = head(x);
        // The specification's choice: the scale's exponent is that of the largest element, less that of 4 (the largest
        // power of two in E2M1). In single precision, as the `gguf` package has it, the logarithm of a number just below
        // a power of two is that of the power.
        let log2 = f64::from(extreme(x).abs()).log2() as f32;
        let e = (log2.floor() + 125.0) as u8;
        let d = half_scale(e);
        MXFP4 { e, qs: planes::pack_nibbles(&x.map(|v| e2m1::nearest(d, v))) }
    }
}
