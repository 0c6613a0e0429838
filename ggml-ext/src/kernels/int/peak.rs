//! What the int8 dot product reaches at best, with its operands in registers: the roofline of prompts.

use super::isa::Isa;
use std::hint::black_box;

/// Lines of a dot product: with 16 rows and 4 columns each, 256 multiply-adds.
const LINES: usize = 4;

/// Independent sums, so that none waits for the one before: two products begin in a cycle and take five on some CPUs.
const SUMS: usize = 12;

/// As many of them as there are registers for.
const fn n_sums<I: Isa>() -> usize {
    if I::MANY_REGISTERS { SUMS } else { 8 }
}

/// Multiply-adds of a round.
pub(super) const fn macs<I: Isa>() -> u64 {
    (n_sums::<I>() * LINES * crate::pack::LINE) as u64
}

/// Computes `n` rounds of dot products.
///
/// # Safety
/// As [`Isa`].
#[inline(always)]
pub(super) unsafe fn run<I: Isa>(n: usize) -> f32 {
    // Zeros, which the compiler cannot know: sums never overflow.
    let x = black_box([0_i8; 4 * LINES]);
    // SAFETY: `x` has four columns for each line.
    unsafe {
        let lines = [I::splat_line(black_box(1)); LINES];
        let mut sums = [I::zero_sums(); SUMS];
        for _ in 0..n {
            let mut i = 0;
            while i < n_sums::<I>() {
                // Otherwise what does not multiply and add in one instruction could multiply once for all sums.
                let x = if I::MANY_REGISTERS { x.as_ptr() } else { black_box(x.as_ptr()) };
                sums[i] = I::dot(4, sums[i], &lines, x);
                i += 1;
            }
        }
        let mut total = I::zero();
        let mut i = 0;
        while i < n_sums::<I>() {
            total = I::add(total, I::to_floats(sums[i]));
            i += 1;
        }
        I::sum(total)
    }
}
