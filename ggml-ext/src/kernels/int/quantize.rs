//! Quantisation of activations, generic over the tier.

use super::isa::Isa;
use super::q8::{BLOCK, Q8Block};

/// Quantises a row into its blocks.
///
/// # Safety
/// As [`Isa`].
#[inline(always)]
pub(super) unsafe fn row<I: Isa>(x: &[f32], blocks: &mut [Q8Block]) {
    for (x, block) in x.chunks_exact(BLOCK).zip(blocks) {
        // SAFETY: 32 elements are read and 32 codes written, 16 at a time.
        unsafe {
            let (first, last) = (I::load(x.as_ptr()), I::load(x.as_ptr().add(16)));
            let max = I::max_abs(first, last);
            let inverse = 127.0 / max;
            // All zeros, or so small that the inverse overflows.
            let (scale, inverse) = if inverse < f32::INFINITY { (max / 127.0, inverse) } else { (0.0, 0.0) };
            let codes = block.codes.as_mut_ptr();
            let sums = [I::quantize(first, inverse, codes), I::quantize(last, inverse, codes.add(16))];
            block.scale = scale;
            block.sum = scale * (sums[0] + sums[1]) as f32;
            block.neg_sum = -(sums[0] + sums[1]);
            block.neg_half = [-sums[0], -sums[1]];
            block.half = [scale * sums[0] as f32, scale * sums[1] as f32];
        }
    }
}
