//! Arithmetic on tiles: up to 32 tokens with up to 32 rows of weights.

use std::arch::asm;

use super::super::bf16::Line;
use super::registers::{Sums, TILE_ROWS as TOKENS, WHOLE, load_sums, store_sums, zero_sums};
use crate::pack::{COLS, LINE, ROWS};

/// A tile of weights: 16 pairs of columns of 16 rows.
pub(super) type Tile = [Line; 16];

/// Most tiles of a row group that a block meets at once. With the second group's, and activations passing by, they leave room in the first
/// level of cache; those of second digits as well just fit.
pub(super) const SEGMENT: usize = 10;

/// Weights of two row groups: first digits of both, then second digits of both, of up to [`SEGMENT`] tiles each.
pub(super) type Segment = [[[Tile; SEGMENT]; 2]; 2];

/// Up to 32 tokens and what they add up.
pub(super) struct Block {
    /// First and second digits of the first token.
    pub x: [*const u16; 2],
    /// Bytes from token to token.
    pub stride: usize,
    /// `[half of the tokens][group]`.
    pub sums: [[Sums; 2]; 2],
}

/// Steps of arithmetic between two looks at what else there is to do.
const STEPS: usize = 3;

/// Adds the products of `n` tiles of `T` times 16 tokens and `G` groups, in `D` digits, to their sums, which start at zero if `is_first`.
/// `meanwhile` is done every few steps, and told how many these were; vector units are free then.
///
/// # Safety
/// The tiles are configured; the tokens have `n` tiles, and so have the groups at `weights`.
#[inline(always)]
pub(super) unsafe fn multiply<const T: usize, const G: usize, const D: usize>(
    block: &Block,
    weights: *const Segment,
    n: usize,
    is_first: bool,
    mut meanwhile: impl FnMut(usize),
) {
    // SAFETY: as the caller promises. Nothing else uses the tile registers.
    unsafe {
        if is_first {
            zero_sums()
        } else {
            load_sums::<T, G>(&block.sums)
        }
        for i in (0..n).step_by(STEPS) {
            let steps = STEPS.min(n - i);
            let [x0, y0] = block.x.map(|x| x.add(i * COLS));
            let [x1, y1] = [x0, y0].map(|x| x.wrapping_byte_add(TOKENS * block.stride));
            // Operands of an instruction sequence, the addresses of tiles: of the weights of the first group's first digits, and how far
            // from there those of the second group are, and second digits of both; of first digits of both halves of the tokens; of
            // second digits.
            macro_rules! steps {
                ($($code:literal),*) => {
                    asm!("2:", $($code),*,
                        "add {w}, {tile}", "add {x0}, {line}", "add {x1}, {line}", "add {y0}, {line}", "add {y1}, {line}",
                        "dec {n}", "jnz 2b",
                        w = inout(reg) weights.cast::<Tile>().add(i) => _, ws = in(reg) LINE, n = inout(reg) steps => _,
                        x0 = inout(reg) x0 => _, x1 = inout(reg) x1 => _, y0 = inout(reg) y0 => _, y1 = inout(reg) y1 => _,
                        xs = in(reg) block.stride, w1 = const size_of::<Segment>() / 4, v0 = const size_of::<Segment>() / 2,
                        v1 = const size_of::<Segment>() / 4 * 3, tile = const size_of::<Tile>(), line = const LINE,
                        options(nostack, readonly))
                };
            }
            match (T, G, D) {
                (2, 2, 1) => steps!(
                    "tileloadd tmm6, [{w} + {ws}*1]",
                    "tileloadd tmm4, [{x0} + {xs}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{x1} + {xs}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tileloadd tmm7, [{w} + {ws}*1 + {w1}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "/* {v0} {v1} */"
                ),
                (2, _, 1) => steps!(
                    "tileloadd tmm6, [{w} + {ws}*1]",
                    "tileloadd tmm4, [{x0} + {xs}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{x1} + {xs}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "/* {w1} {v0} {v1} */"
                ),
                (_, 2, 1) => steps!(
                    "tileloadd tmm6, [{w} + {ws}*1]",
                    "tileloadd tmm4, [{x0} + {xs}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{w} + {ws}*1 + {w1}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "/* {v0} {v1} */"
                ),
                (_, _, 1) => steps!(
                    "tileloadd tmm6, [{w} + {ws}*1]",
                    "tileloadd tmm4, [{x0} + {xs}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "/* {w1} {v0} {v1} */"
                ),
                (2, 2, _) => steps!(
                    "tileloadd tmm6, [{w} + {ws}*1 + {v0}]",
                    "tileloadd tmm4, [{x0} + {xs}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{x1} + {xs}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tileloadd tmm7, [{w} + {ws}*1 + {v1}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "tileloadd tmm6, [{w} + {ws}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tileloadd tmm7, [{w} + {ws}*1 + {w1}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "tileloadd tmm4, [{y0} + {xs}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{y1} + {xs}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7"
                ),
                (2, _, _) => steps!(
                    "tileloadd tmm6, [{w} + {ws}*1 + {v0}]",
                    "tileloadd tmm4, [{x0} + {xs}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{x1} + {xs}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tileloadd tmm6, [{w} + {ws}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tileloadd tmm4, [{y0} + {xs}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{y1} + {xs}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "/* {w1} {v1} */"
                ),
                (_, 2, _) => steps!(
                    "tileloadd tmm6, [{w} + {ws}*1 + {v0}]",
                    "tileloadd tmm4, [{x0} + {xs}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{w} + {ws}*1 + {v1}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm6, [{w} + {ws}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{w} + {ws}*1 + {w1}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm4, [{y0} + {xs}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7"
                ),
                (_, _, _) => steps!(
                    "tileloadd tmm6, [{w} + {ws}*1 + {v0}]",
                    "tileloadd tmm4, [{x0} + {xs}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm6, [{w} + {ws}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm4, [{y0} + {xs}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "/* {w1} {v1} */"
                ),
            }
            meanwhile(steps);
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
