//! The product of a packed matrix with int8 activations, generic over format and tier.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::MatmulScratch;
use super::formats::{Codebook, Format, Scales};
use super::isa::Isa;
use super::q8::{BLOCK, Q8Block, Q8View};
use crate::pack::{COLS, LINE, MatrixRef, ROWS, group_bytes};

/// Bytes of activations that all row groups of a call pass over before the next are begun: half of a small L2 cache.
const PASS_BYTES: usize = 512 << 10;

/// How far ahead weights are asked for when there are too few tokens to hide the way from memory behind arithmetic; scales
/// are asked for a group ahead, which no hardware prefetcher foresees. Measured on Zen 4 with one token: a third faster
/// than without, flat from 4 to 16 KiB.
pub(super) const PREFETCH_BYTES: usize = 8 << 10;

/// What a matrix product works on; the fields are those of [`super::IntKernels::matmul`], already checked.
pub(super) struct Product<'a> {
    pub w: &'a MatrixRef<'a>,
    pub rows: Range<usize>,
    pub x: Q8View<'a>,
    pub out: *mut f32,
    pub out_stride: usize,
}

/// Tokens whose sums stay at hand while a row group meets them: 4 KiB of sums, and a bit each in a word.
const SPAN: usize = 64;

/// Where the parts of a row group are: sets of lines, one for every block of activations, and sets of fields, one for every
/// block of the type.
pub(super) struct Group {
    pub lines: *const u8,
    pub fields: *const u8,
    n_bytes: usize,
    pub first_row: usize,
    pub book: Codebook,
}

/// Group `i` of a packed matrix of format `P`.
#[inline(always)]
pub(super) fn group<P: Format>(w: &MatrixRef, i: usize) -> Group {
    let n_bytes = group_bytes(w.ty, w.cols).expect("a packed matrix is of a type with a packed layout");
    let group = &w.data[i * n_bytes..(i + 1) * n_bytes];
    let fields = group[w.cols / COLS * P::LINES_BYTES..].as_ptr();
    Group { lines: group.as_ptr(), fields, n_bytes, first_row: i * ROWS, book: Codebook::of(w.ty) }
}

/// The groups that a product computes.
#[inline(always)]
fn groups<P: Format>(p: &Product) -> impl Iterator<Item = Group> {
    (p.rows.start / ROWS..p.rows.end.div_ceil(ROWS)).map(|i| group::<P>(p.w, i))
}

/// The sums of a row group's products with the tokens of a span. A token's are one cache line of 16 floats: accesses that straddle two
/// lines cost twice.
#[repr(align(64))]
struct Sums([MaybeUninit<[f32; ROWS]>; SPAN]);

impl Sums {
    #[inline(always)]
    fn of(&mut self, i: usize) -> *mut f32 {
        self.0[i..].as_mut_ptr().cast()
    }
}

/// The whole product.
///
/// Each element is computed in the same order however many tokens or rows a call has: it is the sum over the first digits
/// of all blocks plus the sum over the second digits of the blocks that have them.
///
/// # Safety
/// As [`Isa`]; `p` satisfies the contract of [`super::IntKernels::matmul`], and `p.w` is packed in format `P`.
#[inline(always)]
pub(super) unsafe fn matmul<I: Isa, P: Format>(p: &Product, scratch: &mut MatmulScratch) {
    let n_tokens = p.x.n_rows();
    let mut sums = Sums([const { MaybeUninit::uninit() }; SPAN]);
    if n_tokens == 1 {
        for group in groups::<P>(p) {
            // SAFETY: token 0 exists; the rest is passed on.
            unsafe {
                tile::<I, P, 1, true>(p, &group, 0, sums.of(0));
                write_last(p, &group, 0..1, &mut sums);
            }
        }
        return;
    }
    let n_blocks = p.x.k() / BLOCK;
    let pass = (PASS_BYTES / (p.x.stride() * size_of::<Q8Block>())).next_multiple_of(I::TOKENS).max(I::TOKENS);
    for first in (0..n_tokens).step_by(pass) {
        let last = n_tokens.min(first + pass);
        let n_spans = (last - first).div_ceil(SPAN);
        let (fine, second) = scratch.second_digits(n_spans * n_blocks);
        for t in first..last {
            let (span, bit) = ((t - first) / SPAN, (t - first) % SPAN);
            for &b in p.x.fine(t) {
                fine[span * n_blocks + b as usize] |= 1 << bit;
            }
        }
        gather(&p.x, first, n_blocks, fine, second);
        for group in groups::<P>(p) {
            let mut second = second.as_slice();
            for (span, fine) in fine.chunks_exact(n_blocks).enumerate() {
                let start = first + span * SPAN;
                let tokens = start..last.min(start + SPAN);
                // SAFETY: the tokens exist, and only theirs of the bits are set; the rest is passed on.
                unsafe {
                    second = second_digits::<I, P>(&group, tokens.len(), fine, second, span == 0, &mut sums);
                    tiles::<I, P>(p, &group, tokens.clone(), &mut sums);
                    write_last(p, &group, tokens, &mut sums);
                }
            }
        }
    }
}

/// Copies the second digits of a pass, from token `first` on, next to each other in the order in which row groups meet them: by span,
/// block and token. Where they lie among those that are not needed, caches have no room for them and fetch them too late.
fn gather(x: &Q8View, first: usize, n_blocks: usize, fine: &[u64], second: &mut Vec<Q8Block>) {
    for (span, fine) in fine.chunks_exact(n_blocks).enumerate() {
        for (b, &which) in fine.iter().enumerate() {
            let mut which = which;
            while which != 0 {
                second.push(*x.second_block(first + span * SPAN + take_lowest(&mut which), b));
            }
        }
    }
}

impl Group {
    /// How many of its rows the product has.
    #[inline(always)]
    fn n_rows(&self, p: &Product) -> usize {
        ROWS.min(p.rows.end - self.first_row)
    }

    /// Where the results of token `t` go, and how far from there those of the next token: to where the product wants them or,
    /// where it does not want all rows, to the token's `sums`.
    #[inline(always)]
    fn out(&self, p: &Product, t: usize, sums: *mut f32) -> (*mut f32, usize) {
        match self.n_rows(p) {
            ROWS => (p.out.wrapping_add(t * p.out_stride + self.first_row), p.out_stride),
            _ => (sums, ROWS),
        }
    }
}

/// Adds the products of a group with the first digits of up to [`SPAN`] tokens.
///
/// # Safety
/// As [`matmul`]; the group and the tokens exist.
#[inline(always)]
unsafe fn tiles<I: Isa, P: Format>(p: &Product, group: &Group, tokens: Range<usize>, sums: &mut Sums) {
    let (start, end) = (tokens.start, tokens.end);
    let mut t = start;
    // SAFETY: tokens t..t + T exist; the rest is passed on.
    unsafe {
        while I::TOKENS >= 8 && end - t >= 8 {
            tile::<I, P, 8, false>(p, group, t, sums.of(t - start));
            t += 8;
        }
        while end - t >= 4 {
            tile::<I, P, 4, false>(p, group, t, sums.of(t - start));
            t += 4;
        }
        while end - t >= 2 {
            tile::<I, P, 2, false>(p, group, t, sums.of(t - start));
            t += 2;
        }
        if t < end {
            tile::<I, P, 1, false>(p, group, t, sums.of(t - start));
        }
    }
}

/// The product of a group with the first digits of tokens `t..t + T`, plus `T` times [`ROWS`] sums; or, if `BOTH`, with their
/// first and second digits. It goes where [`Group::out`] says. The latter passes over the weights once but has a branch per
/// block that cannot be predicted: good where memory is waited for, bad where arithmetic is.
///
/// # Safety
/// As [`matmul`]; the group and the tokens exist, and so do the sums.
#[inline(always)]
unsafe fn tile<I: Isa, P: Format, const T: usize, const BOTH: bool>(
    p: &Product,
    group: &Group,
    t: usize,
    sums: *mut f32,
) {
    let n_blocks = p.w.cols / P::LEN;
    let (mut lines, mut fields) = (group.lines, group.fields);
    let (mut x, mut second) = (p.x.row(t), p.x.second(t));
    let stride = p.x.stride();
    let zero = zero::<I, P>();
    // SAFETY: a group has n_blocks * LEN / 32 sets of lines, then n_blocks sets of fields; a token has as many blocks
    // as there are sets of lines, and token t + i is i * stride blocks on.
    unsafe {
        let (mut acc, mut acc_second) = ([I::zero(); T], [I::zero(); T]);
        for _ in 0..n_blocks {
            if T < I::TOKENS {
                prefetch::<I>(fields.wrapping_add(group.n_bytes), P::FIELDS_BYTES);
            }
            let head = P::head::<I>(fields, &group.book);
            for i in 0..P::LEN / COLS {
                let codes = P::codes::<I>(lines, &group.book);
                let s = P::scales::<I>(head, fields.add(2 * P::WORDS * ROWS), i);
                let mut j = 0;
                while j < T {
                    if I::IN_PAIRS && T > 1 {
                        let x = [x.add(j * stride), x.add((j + 1) * stride)];
                        add_block::<I, P, 2>(&codes, &s, zero, x, &mut acc, j);
                        j += 2;
                    } else {
                        let x = x.add(j * stride);
                        add_block::<I, P, 1>(&codes, &s, zero, [x], &mut acc, j);
                        if BOTH && (*x).fine != 0 {
                            let x = second.add(j * stride);
                            [acc_second[j]] = add_products::<I, P, 1, true>(&codes, &s, zero, [x], [acc_second[j]]);
                        }
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
        let (out, out_stride) = group.out(p, t, sums);
        let mut j = 0;
        while j < T {
            let sums = sums.add(j * ROWS);
            I::store(I::add(if BOTH { acc_second[j] } else { I::load(sums) }, acc[j]), out.add(j * out_stride));
            j += 1;
        }
    }
}

/// Begins the sums of a span of `n_tokens` tokens with the products of a group and their second digits: bit `i` of `fine[b]` tells
/// whether block `b` of the `i`th token has any, and `second` begins with those of the span, in this order. What is left of it is
/// returned. (Minima meet the second digits in the sums of the first.) With `ahead`, asks for the weights of the next group meanwhile.
///
/// # Safety
/// As [`matmul`]; the group exists, only bits of the tokens are set, and there are as many second digits as bits.
#[inline(always)]
unsafe fn second_digits<'s, I: Isa, P: Format>(
    group: &Group,
    n_tokens: usize,
    fine: &[u64],
    second: &'s [Q8Block],
    ahead: bool,
    sums: &mut Sums,
) -> &'s [Q8Block] {
    let zero = zero::<I, P>();
    let per_field = P::LEN / COLS;
    let mut x = second.as_ptr();
    // SAFETY: a group has a set of lines for each block of activations and a set of fields for each of the type's; the sums
    // of a token are written before they are read; `x` moves on once for each bit.
    unsafe {
        for sum in &mut sums.0[..n_tokens] {
            I::store(I::zero(), sum.as_mut_ptr().cast());
        }
        for (b, &which) in fine.iter().enumerate() {
            let lines = group.lines.add(b * P::LINES_BYTES);
            let fields = group.fields.add(b / per_field * P::FIELDS_BYTES);
            if ahead {
                prefetch::<I>(lines.wrapping_add(group.n_bytes), P::LINES_BYTES);
                if b % per_field == 0 {
                    prefetch::<I>(fields.wrapping_add(group.n_bytes), P::FIELDS_BYTES);
                }
            }
            if which == 0 {
                continue;
            }
            let codes = P::codes::<I>(lines, &group.book);
            let s = P::scales::<I>(P::head::<I>(fields, &group.book), fields.add(2 * P::WORDS * ROWS), b % per_field);
            let mut which = which;
            while I::IN_PAIRS && which.count_ones() > 1 {
                let at = [sums.of(take_lowest(&mut which)), sums.of(take_lowest(&mut which))];
                let acc = [I::load(at[0]), I::load(at[1])];
                let acc = add_products::<I, P, 2, true>(&codes, &s, zero, [x, x.add(1)], acc);
                I::store(acc[0], at[0]);
                I::store(acc[1], at[1]);
                x = x.add(2);
            }
            while which != 0 {
                let sum = sums.of(take_lowest(&mut which));
                let [acc] = add_products::<I, P, 1, true>(&codes, &s, zero, [x], [I::load(sum)]);
                I::store(acc, sum);
                x = x.add(1);
            }
        }
        &second[x.offset_from_unsigned(second.as_ptr())..]
    }
}

/// The lowest bit that is set, which is cleared.
#[inline(always)]
fn take_lowest(bits: &mut u64) -> usize {
    let i = bits.trailing_zeros() as usize;
    *bits &= bits.wrapping_sub(1);
    i
}

/// Moves the sums of a span of tokens to where the product wants them, if it does not want all rows of the group.
///
/// # Safety
/// As [`matmul`]; the sums of these tokens have been written.
#[inline(always)]
unsafe fn write_last(p: &Product, group: &Group, tokens: Range<usize>, sums: &mut Sums) {
    let n_rows = group.n_rows(p);
    if n_rows == ROWS {
        return;
    }
    for (i, t) in tokens.enumerate() {
        // SAFETY: the caller of the product vouches for these elements of the output.
        unsafe {
            std::ptr::copy_nonoverlapping(sums.of(i), p.out.add(t * p.out_stride + group.first_row), n_rows);
        }
    }
}

/// The zero point: signed codes of an unsigned dot product are stored plus 128.
#[inline(always)]
fn zero<I: Isa, P: Format>() -> Option<u32> {
    if P::BITS == 8 && I::UNSIGNED { Some(7) } else { P::ZERO }
}

/// Adds the products of 32 columns with the first digits of `U` tokens, and what minima add, to their sums from `acc[j]` on.
///
/// # Safety
/// As [`Isa`]; each of `x` is a block, and there are as many sums.
#[inline(always)]
unsafe fn add_block<I: Isa, P: Format, const U: usize>(
    codes: &[I::Line; 8],
    s: &Scales<I>,
    zero: Option<u32>,
    x: [*const Q8Block; U],
    acc: &mut [I::Floats],
    j: usize,
) {
    // SAFETY: as the caller promises.
    unsafe {
        let acc = &mut *acc.as_mut_ptr().add(j).cast::<[I::Floats; U]>();
        *acc = add_products::<I, P, U, false>(codes, s, zero, x, *acc);
        let mut i = 0;
        while i < U {
            if P::HAS_MIN && P::HALVES {
                acc[i] = I::fma(s.min[0], I::splat(&raw const (*x[i]).half[0]), acc[i]);
                acc[i] = I::fma(s.min[1], I::splat(&raw const (*x[i]).half[1]), acc[i]);
            } else if P::HAS_MIN {
                acc[i] = I::fma(s.min[0], I::splat(&raw const (*x[i]).sum), acc[i]);
            }
            i += 1;
        }
    }
}

/// Adds the products of 32 columns with the codes of a block of each of `U` tokens, of their second digits if `SECOND`.
///
/// # Safety
/// As [`Isa`]; each of `x` is a block.
#[inline(always)]
unsafe fn add_products<I: Isa, P: Format, const U: usize, const SECOND: bool>(
    codes: &[I::Line; 8],
    s: &Scales<I>,
    zero: Option<u32>,
    x: [*const Q8Block; U],
    mut acc: [I::Floats; U],
) -> [I::Floats; U] {
    // SAFETY: as the caller promises.
    unsafe {
        let mut i = 0;
        if !P::HALVES {
            let dot = dots::<I, P, 8, U, SECOND>(codes, zero, x, None);
            while i < U {
                let scale = I::splat(&raw const (*x[i]).scale);
                acc[i] = I::fma(I::to_floats(dot[i]), I::mul(s.scale[0], scale), acc[i]);
                i += 1;
            }
            return acc;
        }
        let [a, b, c, d, e, f, g, h] = *codes;
        let first = dots::<I, P, 4, U, SECOND>(&[a, b, c, d], zero, x, Some(0));
        let last = dots::<I, P, 4, U, SECOND>(&[e, f, g, h], zero, x, Some(1));
        while i < U {
            let scale = I::splat(&raw const (*x[i]).scale);
            let both = I::fma(I::to_floats(last[i]), s.scale[1], I::mul(I::to_floats(first[i]), s.scale[0]));
            acc[i] = I::fma(both, scale, acc[i]);
            i += 1;
        }
        acc
    }
}

/// The products, in integers, of `N * 4` columns with the codes of a block of each of `U` tokens: of all of it or of one `half`, 0 or 1.
///
/// # Safety
/// As [`Isa`]; each of `x` is a block.
#[inline(always)]
unsafe fn dots<I: Isa, P: Format, const N: usize, const U: usize, const SECOND: bool>(
    codes: &[I::Line; N],
    zero: Option<u32>,
    x: [*const Q8Block; U],
    half: Option<usize>,
) -> [I::Sums; U] {
    // SAFETY: as the caller promises.
    unsafe {
        let (mut i, mut q, mut dot) = (0, [std::ptr::null(); U], [I::zero_sums(); U]);
        while i < U {
            let (at, neg_sum) = match half {
                None => (0, &raw const (*x[i]).neg_sum),
                Some(half) => (half * BLOCK / 2, &raw const (*x[i]).neg_half[half]),
            };
            q[i] = &raw const (*x[i]).codes[at];
            dot[i] = sums::<I>(zero, neg_sum);
            i += 1;
        }
        I::dots(P::BITS, SECOND, dot, codes, q)
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
