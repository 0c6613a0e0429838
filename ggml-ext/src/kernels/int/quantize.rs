//! Quantisation of activations, generic over the tier.

use super::isa::Isa;
use super::q8::{BLOCK, Q8Block};

/// Quantises a row into its blocks of first digits, and those whose step exceeds `fine_step` root mean squares into second
/// digits too. `fine` receives how many these are, and which.
///
/// # Safety
/// As [`Isa`].
#[inline(always)]
pub(super) unsafe fn row<I: Isa>(x: &[f32], fine_step: f32, [first, second]: [&mut [Q8Block]; 2], fine: &mut [u32]) {
    // SAFETY: 32 elements are read and 32 codes written, 16 at a time.
    unsafe {
        let mut squares = [I::zero(); 2];
        for x in x.chunks_exact(BLOCK) {
            let (first, last) = (I::load(x.as_ptr()), I::load(x.as_ptr().add(16)));
            squares = [I::fma(first, first, squares[0]), I::fma(last, last, squares[1])];
        }
        let largest_step = fine_step * (I::sum(I::add(squares[0], squares[1])) / x.len() as f32).sqrt();
        let mut n_fine = 0;
        let (fours, rest) = first.as_chunks_mut::<4>();
        let (x_fours, x_rest) = x.split_at(fours.len() * 4 * BLOCK);
        for (x, blocks) in x_fours.chunks_exact(4 * BLOCK).zip(fours) {
            I::quantize_four(x.as_ptr(), blocks);
        }
        for (x, one) in x_rest.chunks_exact(BLOCK).zip(rest) {
            block::<I>([I::load(x.as_ptr()), I::load(x.as_ptr().add(16))], one);
        }
        for (b, first) in first.iter().enumerate() {
            // No branch: which blocks are fine cannot be predicted.
            fine[1 + n_fine] = b as u32;
            n_fine += usize::from(first.scale > largest_step);
        }
        fine[0] = n_fine as u32;
        if I::UNSIGNED_SECOND {
            for &b in &fine[1..=n_fine] {
                unsigned_second::<I>(x, first, second, b as usize);
            }
            return;
        }
        let (fours, rest) = fine[1..=n_fine].as_chunks::<4>();
        for which in fours {
            let (mut left, mut four) = ([0.0; 4 * BLOCK], [Q8Block::ZERO; 4]);
            for (&b, left) in which.iter().zip(left.as_chunks_mut().0) {
                rest_of::<I>(x, first, b as usize, left);
            }
            I::quantize_four(left.as_ptr(), &mut four);
            for (&b, block) in which.iter().zip(four) {
                add_second(&mut first[b as usize], &mut second[b as usize], block);
            }
        }
        for &b in rest {
            let (mut left, mut one) = ([0.0; BLOCK], Q8Block::ZERO);
            rest_of::<I>(x, first, b as usize, &mut left);
            block::<I>([I::load(left.as_ptr()), I::load(left[16..].as_ptr())], &mut one);
            add_second(&mut first[b as usize], &mut second[b as usize], one);
        }
    }
}

/// Gives block `b` second digits in `0..=127`, in steps 1/127 of the first's, which become the next below.
///
/// # Safety
/// As [`Isa`].
#[inline(always)]
unsafe fn unsigned_second<I: Isa>(x: &[f32], first: &mut [Q8Block], second: &mut [Q8Block], b: usize) {
    let scale = first[b].scale;
    // A little less than 1/2: -127 is to stay what it is, though it is rounded to even.
    let shift = -0.498 * scale;
    // SAFETY: both have 32 elements.
    unsafe {
        let x_block = x[b * BLOCK..][..BLOCK].as_ptr();
        let below = |i| I::add(I::load(x_block.add(i)), I::splat(&raw const shift));
        digits::<I>([below(0), below(16)], scale, 1.0 / scale, &mut first[b]);
        let (mut left, mut block) = ([0.0; BLOCK], Q8Block::ZERO);
        rest_of::<I>(x, first, b, &mut left);
        let left = [I::load(left.as_ptr()), I::load(left[16..].as_ptr())];
        digits::<I>(left, scale / 127.0, 127.0 / scale, &mut block);
        add_second(&mut first[b], &mut second[b], block);
    }
}

/// What the first digits of block `b` leave over.
///
/// # Safety
/// As [`Isa`].
#[inline(always)]
unsafe fn rest_of<I: Isa>(x: &[f32], first: &[Q8Block], b: usize, left: &mut [f32; BLOCK]) {
    let (x, block) = (&x[b * BLOCK..][..BLOCK], &first[b]);
    // SAFETY: all have 32 elements.
    unsafe {
        let step = I::negate(I::splat(&raw const block.scale));
        let mut i = 0;
        while i < BLOCK {
            let code = I::load_i8(block.codes.as_ptr().add(i).cast());
            I::store(I::fma(step, code, I::load(x.as_ptr().add(i))), left.as_mut_ptr().add(i));
            i += 16;
        }
    }
}

/// Gives a block its second digits.
#[inline(always)]
fn add_second(first: &mut Q8Block, second: &mut Q8Block, digits: Q8Block) {
    *second = digits;
    first.fine = 1;
    first.sum += digits.sum;
    first.half = [first.half[0] + digits.half[0], first.half[1] + digits.half[1]];
}

/// Quantises one block.
///
/// # Safety
/// As [`Isa`].
#[inline(always)]
pub(super) unsafe fn block<I: Isa>([first, last]: [I::Floats; 2], block: &mut Q8Block) {
    // SAFETY: 32 codes are written, 16 at a time.
    unsafe {
        let max = I::max_abs(first, last);
        digits::<I>([first, last], max / 127.0, 127.0 / max, block);
    }
}

/// Rounds 32 elements to multiples of `scale`, the inverse of `inverse`.
///
/// # Safety
/// As [`Isa`].
#[inline(always)]
unsafe fn digits<I: Isa>([first, last]: [I::Floats; 2], scale: f32, inverse: f32, block: &mut Q8Block) {
    // SAFETY: 32 codes are written, 16 at a time.
    unsafe {
        // All zeros, or so small that the inverse overflows.
        let (scale, inverse) = if inverse < f32::INFINITY { (scale, inverse) } else { (0.0, 0.0) };
        let codes = block.codes.as_mut_ptr();
        let sums = [I::quantize(first, inverse, codes), I::quantize(last, inverse, codes.add(16))];
        block.scale = scale;
        block.sum = scale * (sums[0] + sums[1]) as f32;
        block.neg_sum = -(sums[0] + sums[1]);
        block.neg_half = [-sums[0], -sums[1]];
        block.half = [scale * sums[0] as f32, scale * sums[1] as f32];
        block.fine = 0;
    }
}
