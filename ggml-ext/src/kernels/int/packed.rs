//! The product of a packed matrix with int8 activations, generic over type and tier.

use std::ops::Range;

use super::formats::{Format, Scales};
use super::isa::Isa;
use super::q8::{Q8Block, Q8View};
use crate::pack::{COLS, LINE, MatrixRef, ROWS};

/// Bytes of activations that all row groups of a call pass over before the next are begun: half of a small L2 cache.
const PASS_BYTES: usize = 512 << 10;

/// How far ahead codes are asked for when there are too few tokens to hide the way from memory behind arithmetic; scales
/// are asked for a group ahead, which no hardware prefetcher foresees. Measured on Zen 4 with one token: a third faster
/// than without, flat from 4 to 16 KiB.
const PREFETCH_BYTES: usize = 8 << 10;

/// What a matrix product works on; the fields are those of [`super::IntKernels::matmul`], already checked.
pub(super) struct Product<'a> {
    pub w: &'a MatrixRef<'a>,
    pub rows: Range<usize>,
    pub x: Q8View<'a>,
    pub out: *mut f32,
    pub out_stride: usize,
}

/// The whole product.
///
/// Each element is computed in the same order however many tokens or rows a call has.
///
/// # Safety
/// As [`Isa`]; `p` satisfies the contract of [`super::IntKernels::matmul`], and `p.w` is packed and of type `P`.
#[inline(always)]
pub(super) unsafe fn matmul<I: Isa, P: Format>(p: &Product) {
    let n_tokens = p.x.n_rows();
    let pass = (PASS_BYTES / (p.x.stride() * size_of::<Q8Block>())).next_multiple_of(I::TOKENS).max(I::TOKENS);
    let mut first = 0;
    while first < n_tokens {
        let last = n_tokens.min(first + pass);
        for group in p.rows.start / ROWS..p.rows.end.div_ceil(ROWS) {
            let mut t = first;
            // SAFETY: tokens t..t + T exist; the rest is passed on.
            unsafe {
                while I::TOKENS >= 8 && last - t >= 8 {
                    tile::<I, P, 8>(p, group, t);
                    t += 8;
                }
                while last - t >= 4 {
                    tile::<I, P, 4>(p, group, t);
                    t += 4;
                }
                while last - t >= 2 {
                    tile::<I, P, 2>(p, group, t);
                    t += 2;
                }
                if t < last {
                    tile::<I, P, 1>(p, group, t);
                }
            }
        }
        first = last;
    }
}

/// The product of a group with tokens `t..t + T`.
///
/// # Safety
/// As [`matmul`]; the group and the tokens exist.
#[inline(always)]
unsafe fn tile<I: Isa, P: Format, const T: usize>(p: &Product, group: usize, t: usize) {
    let n_blocks = p.w.cols / P::LEN;
    let group_bytes = p.w.group(group).len();
    let mut lines = p.w.group(group).as_ptr();
    let (mut x, mut second) = (p.x.row(t), p.x.second(t));
    let stride = p.x.stride();
    // Signed codes of an unsigned dot product are stored plus 128.
    let zero = if P::BITS == 8 && I::UNSIGNED { Some(7) } else { P::ZERO };
    // SAFETY: a group has n_blocks * LEN / 32 sets of lines, then n_blocks sets of fields; a token has as many blocks
    // as there are sets of lines, and token t + i is i * stride blocks on.
    unsafe {
        let mut fields = lines.add(n_blocks * (P::LEN / COLS) * P::LINES_BYTES);
        let mut acc = [I::zero(); T];
        for _ in 0..n_blocks {
            if T < I::TOKENS {
                prefetch::<I>(fields.wrapping_add(group_bytes), P::FIELDS_BYTES);
            }
            let head = P::head::<I>(fields);
            for i in 0..P::LEN / COLS {
                let codes = P::codes::<I>(lines);
                let s = P::scales::<I>(head, fields.add(2 * P::WORDS * ROWS), i);
                let (mut j, mut fine) = (0, 0);
                while j < T {
                    let x = x.add(j * stride);
                    acc[j] = add_products::<I, P>(&codes, &s, zero, x, acc[j]);
                    fine |= (*x).fine;
                    if P::HAS_MIN && P::HALVES {
                        acc[j] = I::fma(s.min[0], I::splat(&raw const (*x).half[0]), acc[j]);
                        acc[j] = I::fma(s.min[1], I::splat(&raw const (*x).half[1]), acc[j]);
                    } else if P::HAS_MIN {
                        acc[j] = I::fma(s.min[0], I::splat(&raw const (*x).sum), acc[j]);
                    }
                    j += 1;
                }
                if fine != 0 {
                    j = 0;
                    while j < T {
                        acc[j] = add_products::<I, P>(&codes, &s, zero, second.add(j * stride), acc[j]);
                        j += 1;
                    }
                }
                second = second.add(1);
                if T < I::TOKENS {
                    prefetch::<I>(lines.wrapping_add(PREFETCH_BYTES), P::LINES_BYTES);
                }
                lines = lines.add(P::LINES_BYTES);
                x = x.add(1);
            }
            fields = fields.add(P::FIELDS_BYTES);
        }
        let first_row = group * ROWS;
        let n_rows = ROWS.min(p.rows.end - first_row);
        for (j, &acc) in acc.iter().enumerate() {
            let out = p.out.add((t + j) * p.out_stride + first_row);
            if n_rows == ROWS {
                I::store(acc, out);
            } else {
                let mut all = [0.0; ROWS];
                I::store(acc, all.as_mut_ptr());
                std::ptr::copy_nonoverlapping(all.as_ptr(), out, n_rows);
            }
        }
    }
}

/// Adds the products of 32 columns with the codes of one block of activations.
///
/// # Safety
/// As [`Isa`]; `x` is a block.
#[inline(always)]
unsafe fn add_products<I: Isa, P: Format>(
    codes: &[I::Line; 8],
    s: &Scales<I>,
    zero: Option<u32>,
    x: *const Q8Block,
    acc: I::Floats,
) -> I::Floats {
    // SAFETY: as the caller promises.
    unsafe {
        let q = (&raw const (*x).codes).cast::<i8>();
        let scale = I::splat(&raw const (*x).scale);
        if !P::HALVES {
            let dot = I::dot(P::BITS, sums::<I>(zero, &raw const (*x).neg_sum), codes, q);
            return I::fma(I::to_floats(dot), I::mul(s.scale[0], scale), acc);
        }
        let first = [codes[0], codes[1], codes[2], codes[3]];
        let last = [codes[4], codes[5], codes[6], codes[7]];
        let first = I::dot(P::BITS, sums::<I>(zero, &raw const (*x).neg_half[0]), &first, q);
        let last = I::dot(P::BITS, sums::<I>(zero, &raw const (*x).neg_half[1]), &last, q.add(16));
        let both = I::fma(I::to_floats(last), s.scale[1], I::mul(I::to_floats(first), s.scale[0]));
        I::fma(both, scale, acc)
    }
}

/// Asks for `n` bytes at `p`.
#[inline(always)]
unsafe fn prefetch<I: Isa>(p: *const u8, n: usize) {
    let mut at = 0;
    while at < n {
        // SAFETY: any address may be asked for.
        unsafe { I::prefetch(p.wrapping_add(at)) }
        at += LINE;
    }
}

/// Where integer sums start: at minus the zero point times the sum of the activations.
#[inline(always)]
unsafe fn sums<I: Isa>(zero: Option<u32>, neg_sum: *const i32) -> I::Sums {
    // SAFETY: as the caller promises.
    unsafe {
        match zero {
            Some(shift) => I::splat_shifted(neg_sum, shift),
            None => I::zero_sums(),
        }
    }
}
