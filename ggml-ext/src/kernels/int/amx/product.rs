//! The product of weights with activations in tiles.
//!
//! Tile registers hold the sums of 32 tokens with 32 rows while columns pass by, or, where both operands have two digits, of 32 tokens
//! with 16 rows. Weights are unpacked a segment of columns at a time, which all tokens of the call meet before the next. All rows meet
//! a segment of the activations before the next, so that it stays in the second level of cache; meanwhile sums are where the product
//! wants them, and tiles of which it does not want the whole go through work space.

use std::arch::asm;
use std::ops::Range;

use super::super::bf16::{Line, Product};
use super::registers::{Sums, TILE_ROWS as TOKENS, WHOLE, configure, load_sums, release, store_sums, zero_sums};
use super::unpack::Group;
use crate::pack::{COLS, LINE, ROWS};

/// Most tiles of a row group in a segment: with those of a second group, or the second digits, they nearly fill the first level of cache.
const SEGMENT: usize = 20;

/// A tile of weights: 16 pairs of columns of 16 rows.
pub(super) type Tile = [Line; 16];

/// Up to 32 tokens and what they add up.
struct Block {
    /// First and second digits of the first token.
    x: [*const u16; 2],
    /// Bytes from token to token.
    stride: usize,
    /// `[half of the tokens][group]`.
    sums: [[Sums; 2]; 2],
    /// Where the sums of the next block's first token are, which are fetched on the way.
    next: Sums,
}

/// Work space of the tier's products, for one thread.
#[derive(Debug, Default)]
pub(in crate::kernels::int) struct Tiles {
    /// Two segments of two groups, or of one in two digits: one that the tokens meet, and the next.
    weights: Vec<Line>,
    /// Sums of tiles that the product does not want all of.
    spilled: Vec<Line>,
}

/// At least `n` lines.
fn grown(lines: &mut Vec<Line>, n: usize) -> *mut Line {
    lines.resize(lines.len().max(n), Line::ZERO);
    lines.as_mut_ptr()
}

/// A segment of one or two groups.
struct Job<W> {
    groups: [W; 2],
    first_row: usize,
    n_groups: usize,
    tiles: Range<usize>,
}

impl<W: Group> Job<W> {
    /// The `i`th of a product in `digits`.
    ///
    /// # Safety
    /// As [`Group::new`].
    unsafe fn new(p: &Product, i: usize, digits: usize) -> Option<Self> {
        let most = if digits == 1 { 2 } else { 1 };
        let (start, end) = (p.rows.start / ROWS, p.rows.end.div_ceil(ROWS));
        let n_jobs = (end - start).div_ceil(most);
        let (segment, first) = (i / n_jobs, start + i % n_jobs * most);
        let n_groups = (end - first).min(most);
        let n_tiles = p.w.cols / COLS;
        let n_segments = n_tiles.div_ceil(SEGMENT);
        let tiles = segment * n_tiles / n_segments..(segment + 1) * n_tiles / n_segments;
        (segment < n_segments).then(|| {
            // SAFETY: passed on; these groups exist.
            let groups = [first, first + n_groups - 1].map(|g| unsafe { W::new(p.w, g) });
            Self { groups, first_row: first * ROWS, n_groups, tiles }
        })
    }

    /// How many tiles there are to unpack.
    fn len(&self) -> usize {
        self.n_groups * self.tiles.len()
    }

    /// Unpacks the `i`th tile, in two digits if `D` says so.
    ///
    /// # Safety
    /// As [`Group::unpack`]; `to` has room for two segments.
    unsafe fn unpack<const D: usize>(&self, i: usize, to: *mut Tile) {
        let (g, tile) = (i % self.n_groups, i / self.n_groups);
        let low = if D == 2 { to.wrapping_add(SEGMENT + tile) } else { std::ptr::null_mut() };
        // SAFETY: passed on.
        unsafe { self.groups[g].unpack(self.tiles.start + tile, to.add(g * SEGMENT + tile), low) }
    }

    /// The rows of group `g` that the product has: all but those after its last.
    fn rows(&self, p: &Product, g: usize) -> Range<usize> {
        let first = self.first_row + g * ROWS;
        first..(first + ROWS).min(p.rows.end)
    }

    /// True if tokens `t..t + 16` or the rows of group `g` are not all wanted.
    fn is_spilled(&self, p: &Product, t: usize, g: usize) -> bool {
        p.x.n_rows() < t + TOKENS || self.rows(p, g).len() < ROWS
    }

    /// Where the sums of tokens `t..t + 16` with group `g` are.
    fn sums(&self, p: &Product, t: usize, g: usize, spilled: *mut Line) -> Sums {
        if self.is_spilled(p, t, g) {
            Sums { at: spilled.wrapping_add((t / TOKENS * 2 + g) * TOKENS).cast(), stride: LINE }
        } else {
            let at = p.out.wrapping_add(t * p.out_stride + self.rows(p, g).start);
            Sums { at, stride: p.out_stride * size_of::<f32>() }
        }
    }

    /// `f(n, output, spilled)` for what the product wants of every spilled row of sums: `n` sums in its output and in work space.
    fn for_each_spilled(&self, p: &Product, spilled: *mut Line, f: impl Fn(usize, *mut f32, *mut f32)) {
        let n_tokens = p.x.n_rows();
        for g in 0..self.n_groups {
            let rows = self.rows(p, g);
            for t in (0..n_tokens).step_by(TOKENS).filter(|&t| self.is_spilled(p, t, g)) {
                let sums = self.sums(p, t, g, spilled).at;
                for i in 0..TOKENS.min(n_tokens - t) {
                    let output = p.out.wrapping_add((t + i) * p.out_stride + rows.start);
                    f(rows.len(), output, sums.wrapping_add(i * ROWS));
                }
            }
        }
    }

    /// Continues spilled sums from the product's output.
    ///
    /// # Safety
    /// As [`matmul`]; there is room for the sums.
    unsafe fn read_spilled(&self, p: &Product, spilled: *mut Line) {
        // SAFETY: the caller of the product vouches for these elements of the output, which the segment before has written.
        self.for_each_spilled(p, spilled, |n, output, sums| unsafe { std::ptr::copy_nonoverlapping(output, sums, n) });
    }

    /// Moves spilled sums to the product's output.
    ///
    /// # Safety
    /// As [`matmul`]; the sums have been stored.
    unsafe fn write_spilled(&self, p: &Product, spilled: *mut Line) {
        // SAFETY: the caller of the product vouches for these elements of the output.
        self.for_each_spilled(p, spilled, |n, output, sums| unsafe { std::ptr::copy_nonoverlapping(sums, output, n) });
    }
}

/// The whole product, in `D` digits.
///
/// An element is the sum over its columns in their order, however many tokens or rows a call has.
///
/// # Safety
/// The tier is supported; `p` satisfies the contract of `IntKernels::matmul_bf16`, and `p.w` is of the type of `W`.
pub(super) unsafe fn matmul<W: Group, const D: usize>(p: &Product, tiles: &mut Tiles) {
    // SAFETY: the tier is supported.
    unsafe { configure() };
    let n_tokens = p.x.n_rows();
    let buffers = grown(&mut tiles.weights, 2 * 2 * SEGMENT * TOKENS).cast::<Tile>();
    let spilled = grown(&mut tiles.spilled, n_tokens.div_ceil(TOKENS) * 2 * TOKENS);
    // SAFETY: passed on.
    let job = |i: usize| unsafe { Job::<W>::new(p, i, D) };
    let mut next = job(0);
    // SAFETY: there is room for two segments of two groups twice, and for the sums of all tokens with two groups; the rest is
    // passed on.
    unsafe {
        if let Some(first) = &next {
            (0..first.len()).for_each(|i| first.unpack::<D>(i, buffers));
        }
        for i in 1.. {
            let Some(now) = next else { break };
            let weights = buffers.add((i + 1) % 2 * 2 * SEGMENT);
            let to = buffers.add(i % 2 * 2 * SEGMENT);
            next = job(i);
            let n_unpack = next.as_ref().map_or(0, Job::len);
            let n_steps = n_tokens.div_ceil(2 * TOKENS) * now.tiles.len();
            let (mut unpacked, mut due) = (0, 0);
            // After each step of arithmetic, its share of the unpacking.
            let mut meanwhile = || {
                due += n_unpack;
                while due >= n_steps {
                    if let Some(next) = &next {
                        next.unpack::<D>(unpacked, to);
                    }
                    unpacked += 1;
                    due -= n_steps;
                }
            };
            let is_first = now.tiles.start == 0;
            if !is_first {
                now.read_spilled(p, spilled);
            }
            for t in (0..n_tokens).step_by(2 * TOKENS) {
                let sums = [t, t + TOKENS].map(|t| [0, 1].map(|g| now.sums(p, t, g, spilled)));
                let next = now.sums(p, t + 2 * TOKENS, 0, spilled);
                let x = p.x.row(t).map(|x| x.add(now.tiles.start * COLS));
                let (block, n) = (Block { x, stride: p.x.stride(), sums, next }, now.tiles.len());
                match (n_tokens - t > TOKENS, now.n_groups > 1) {
                    (true, true) => multiply::<2, 2, D>(&block, weights, n, is_first, &mut meanwhile),
                    (true, false) => multiply::<2, 1, D>(&block, weights, n, is_first, &mut meanwhile),
                    (false, true) => multiply::<1, 2, D>(&block, weights, n, is_first, &mut meanwhile),
                    (false, false) => multiply::<1, 1, D>(&block, weights, n, is_first, &mut meanwhile),
                }
            }
            now.write_spilled(p, spilled);
        }
        release();
    }
}

/// Adds the products of `n` tiles of `T` times 16 tokens and `G` groups, or of one in `D` digits, to their sums, which start at zero if
/// `is_first`. `meanwhile` is done after each.
///
/// # Safety
/// The tiles are configured; the tokens have `n` tiles, and so have the groups at `weights`.
#[inline(always)]
unsafe fn multiply<const T: usize, const G: usize, const D: usize>(
    block: &Block,
    weights: *const Tile,
    n: usize,
    is_first: bool,
    meanwhile: &mut impl FnMut(),
) {
    // Operands of an instruction sequence: weights of both groups, or both digits of one; first digits of both halves of the
    // tokens; second digits.
    macro_rules! step {
        ($i:ident, $($code:literal),*) => {
            asm!($($code),*,
                w0 = in(reg) weights.add($i), w1 = in(reg) weights.add(SEGMENT + $i), ws = in(reg) LINE,
                x0 = in(reg) block.x[0].add($i * COLS), x1 = in(reg) block.x[0].add($i * COLS).byte_add(TOKENS * block.stride),
                y0 = in(reg) block.x[1].add($i * COLS), y1 = in(reg) block.x[1].add($i * COLS).byte_add(TOKENS * block.stride),
                xs = in(reg) block.stride, options(nostack, preserves_flags, readonly))
        };
    }
    // SAFETY: as the caller promises. Nothing else uses the tile registers.
    unsafe {
        if is_first {
            zero_sums()
        } else {
            load_sums::<T, G>(&block.sums)
        }
        let mut fetched = 0;
        for i in 0..n {
            while fetched * n < (i + 1) * 2 * TOKENS {
                let row = block.next.at.wrapping_byte_add(fetched * block.next.stride);
                asm!("prefetchw [{row}]", "prefetchw [{row} + 64]", row = in(reg) row, options(nostack, preserves_flags, readonly));
                fetched += 1;
            }
            match (T, G, D) {
                (2, 2, _) => step!(
                    i,
                    "tileloadd tmm6, [{w0} + {ws}*1]",
                    "tileloadd tmm4, [{x0} + {xs}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{x1} + {xs}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tileloadd tmm7, [{w1} + {ws}*1]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "/* {y0} {y1} */"
                ),
                (2, _, 1) => step!(
                    i,
                    "tileloadd tmm6, [{w0} + {ws}*1]",
                    "tileloadd tmm4, [{x0} + {xs}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{x1} + {xs}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "/* {w1} {y0} {y1} */"
                ),
                (_, 2, _) => step!(
                    i,
                    "tileloadd tmm6, [{w0} + {ws}*1]",
                    "tileloadd tmm4, [{x0} + {xs}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{w1} + {ws}*1]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "/* {x1} {y0} {y1} */"
                ),
                (_, _, 1) => step!(
                    i,
                    "tileloadd tmm6, [{w0} + {ws}*1]",
                    "tileloadd tmm4, [{x0} + {xs}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "/* {w1} {x1} {y0} {y1} */"
                ),
                (2, _, _) => step!(
                    i,
                    "tileloadd tmm6, [{w0} + {ws}*1]",
                    "tileloadd tmm4, [{x0} + {xs}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{x1} + {xs}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tileloadd tmm7, [{w1} + {ws}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm7",
                    "tileloadd tmm4, [{y0} + {xs}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{y1} + {xs}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6"
                ),
                (_, _, _) => step!(
                    i,
                    "tileloadd tmm6, [{w0} + {ws}*1]",
                    "tileloadd tmm4, [{x0} + {xs}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{w1} + {ws}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm7",
                    "tileloadd tmm4, [{y0} + {xs}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "/* {x1} {y1} */"
                ),
            }
            meanwhile();
        }
        store_sums::<T, G>(&block.sums);
    }
}

/// Multiply-adds of a round of [`peak`]: four tiles.
pub(in crate::kernels::int) const PEAK_MACS: u64 = 4 * (TOKENS * ROWS * COLS) as u64;

/// Multiplies `n` times four tiles in registers.
///
/// # Safety
/// The tier is supported.
pub(in crate::kernels::int) unsafe fn peak(n: usize) -> f32 {
    let mut sums = [0f32; TOKENS * ROWS];
    // SAFETY: all tiles have 16 rows of 64 bytes.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "tilezero tmm4",
            "tilezero tmm6",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm6",
            "tdpbf16ps tmm2, tmm4, tmm6",
            "tdpbf16ps tmm3, tmm4, tmm6",
            "dec {n}",
            "jnz 2b",
            "tilestored [{sums} + {line}*1], tmm0",
            "tilerelease",
            config = in(reg) &raw const WHOLE,
            sums = in(reg) &raw mut sums,
            line = in(reg) LINE,
            n = inout(reg) n.max(1) => _,
            options(nostack),
        );
    }
    sums[0]
}
