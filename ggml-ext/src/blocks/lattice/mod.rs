//! The lattice types, IQ1 to IQ3: eight (or four) consecutive elements are one point of a fixed grid, and the block says which,
//! so that an element takes less than a bit to three. Groups of 16 or 32 elements share a small odd scale.
//!
//! A type says how its blocks split into a code per element and a scale per group, and how they are put together again;
//! reading, packing, products and the quantiser follow from that. A code is the index of one of the grid's levels and, above it,
//! one bit: the sign or, where the levels have signs of their own (IQ1), which way they are shifted.

mod grid;
mod iq1;
mod iq2;
mod iq3;
mod search;

pub use iq1::{IQ1_M, IQ1_S};
pub use iq2::{IQ2_S, IQ2_XS, IQ2_XXS};
pub use iq3::{IQ3_S, IQ3_XXS};

use super::{Block, float, head, head_mut};
use crate::GgmlType;
use grid::Grid;

/// Elements of a block.
const LEN: usize = 256;

/// Where the highest bits of codes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HighBits {
    /// Every element has a sign.
    Signs,
    /// Of eight elements an even number is negative: the eighth sign is not stored.
    EvenSigns,
    /// The levels of so many consecutive elements are shifted one way or the other.
    Shifts(usize),
}

/// What distinguishes a type of points from the others: its element `i` is `unit * d * scale * levels[code]`.
#[derive(Debug)]
pub(crate) struct Kind {
    /// The type's row in the table.
    pub ty: GgmlType,
    /// The points.
    grid: &'static Grid,
    /// Elements per point: eight of two bits, or four of three.
    point: usize,
    /// What codes stand for; three bits or, in points of four elements, four.
    pub levels: [i8; 16],
    /// What their highest bits are.
    high_bits: HighBits,
    /// Groups that have a scale: 8 of 32 elements or 16 of 16.
    pub groups: usize,
    /// The largest scale, an odd number.
    max_scale: u8,
    /// What scales count in.
    pub unit: f32,
}

impl Kind {
    /// Bits of a code.
    pub const fn bits(&self) -> usize {
        level_bits(self.point) + 1
    }
}

/// A block of points.
pub(crate) trait Lattice: bytemuck::Pod {
    /// The type.
    const KIND: Kind;

    /// The block's `d`, in half precision; writes its codes and the scales of its groups, which are odd numbers.
    fn split(&self, codes: &mut [u8; LEN], scales: &mut [u8]) -> [u8; 2];

    /// The inverse of [`Lattice::split`]: the codes are points of the grid, their highest bits as [`HighBits`] says.
    fn join(d: [u8; 2], scales: &[u8], codes: &[u8; LEN]) -> Self;
}

/// What a type is, if it is a type of points.
pub(crate) fn kind(ty: GgmlType) -> Option<&'static Kind> {
    Some(match ty {
        GgmlType::IQ1_S => &IQ1_S::KIND,
        GgmlType::IQ1_M => &IQ1_M::KIND,
        GgmlType::IQ2_XXS => &IQ2_XXS::KIND,
        GgmlType::IQ2_XS => &IQ2_XS::KIND,
        GgmlType::IQ2_S => &IQ2_S::KIND,
        GgmlType::IQ3_XXS => &IQ3_XXS::KIND,
        GgmlType::IQ3_S => &IQ3_S::KIND,
        _ => return None,
    })
}

impl<L: Lattice> Block for L {
    const TYPE: GgmlType = L::KIND.ty;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn codes(&self, q: &mut [i8], scale: &mut [f32], _offset: &mut [f32]) {
        let (mut codes, mut scales) = ([0; LEN], [0; 16]);
        let d = float::scale(self.split(&mut codes, &mut scales[..L::KIND.groups]));
        let scale: &mut [f32; 16] = head_mut(scale);
        for (i, scale) in scale.iter_mut().enumerate() {
            *scale = d * f32::from(scales[i * L::KIND.groups / 16]) * L::KIND.unit;
        }
        let q: &mut [i8; LEN] = head_mut(q);
        for (q, code) in q.iter_mut().zip(codes) {
            *q = L::KIND.levels[usize::from(code & 15)];
        }
    }

    fn quantize(x: &[f32], importance: Option<&[f32]>) -> Self {
        let found = search::search(&L::KIND, head(x), importance);
        L::join(found.d, &found.scales[..L::KIND.groups], &found.codes)
    }
}

/// Bits of a level in a code of a point of `n` elements.
const fn level_bits(n: usize) -> usize {
    2 + 4 / n
}

/// The codes of the `D` elements of a point, and their highest bits.
#[inline(always)]
fn put_point<const D: usize>(point: u16, high: u8, codes: &mut [u8]) {
    let (width, bits) = (16 / D, level_bits(D));
    let codes: &mut [u8; D] = head_mut(codes);
    for (i, code) in codes.iter_mut().enumerate() {
        *code = (point >> (width * i)) as u8 & ((1 << bits) - 1) | (high >> i & 1) << bits;
    }
}

/// The inverse of [`put_point`].
#[inline(always)]
fn take_point<const D: usize>(codes: &[u8]) -> (u16, u8) {
    let (width, bits) = (16 / D, level_bits(D));
    let codes: &[u8; D] = head(codes);
    let (mut point, mut high) = (0, 0);
    for (i, &code) in codes.iter().enumerate() {
        point |= u16::from(code & ((1 << bits) - 1)) << (width * i);
        high |= (code >> bits) << i;
    }
    (point, high)
}

/// Eight signs of which seven are stored.
#[inline(always)]
fn even_signs(stored: u8) -> u8 {
    stored | ((stored.count_ones() & 1) << 7) as u8
}

/// Odd scales are stored as `s`, half of what they are, rounded down.
#[inline(always)]
const fn odd(s: u8) -> u8 {
    2 * s + 1
}

/// Four-bit scales, two in a byte.
#[inline(always)]
fn split_scales(packed: &[u8], scales: &mut [u8]) {
    for (j, scale) in scales.iter_mut().enumerate() {
        *scale = odd(packed[j / 2] >> (4 * (j % 2)) & 15);
    }
}

/// The inverse of [`split_scales`].
fn join_scales<const N: usize>(scales: &[u8]) -> [u8; N] {
    std::array::from_fn(|i| scales[2 * i] >> 1 | scales[2 * i + 1] >> 1 << 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::{dequantize_row, quantize_row};

    fn assert_inverse<L: Lattice>(noise: impl Fn(usize) -> u8) {
        let ty = L::KIND.ty;
        let bytes: Vec<u8> = (0..size_of::<L>()).map(noise).collect();
        let block: L = bytemuck::pod_read_unaligned(&bytes);
        let (mut codes, mut scales) = ([0; LEN], [0; 16]);
        let scales = &mut scales[..L::KIND.groups];
        let d = block.split(&mut codes, scales);
        assert!(codes.iter().all(|&c| c < 1 << L::KIND.bits()), "{ty}");
        assert!(scales.iter().all(|s| s % 2 == 1 && *s <= L::KIND.max_scale), "{ty}");
        assert_eq!(bytemuck::bytes_of(&L::join(d, scales, &codes)), bytes, "{ty}");
    }

    #[test]
    fn blocks_split_and_join() {
        for seed in 0..64 {
            let noise = |i: usize| (((i + 1) * (2 * seed + 167) * 2_654_435_761) >> 13) as u8;
            assert_inverse::<IQ1_S>(noise);
            assert_inverse::<IQ1_M>(noise);
            assert_inverse::<IQ2_XXS>(noise);
            assert_inverse::<IQ2_XS>(noise);
            assert_inverse::<IQ2_S>(noise);
            assert_inverse::<IQ3_XXS>(noise);
            assert_inverse::<IQ3_S>(noise);
        }
    }

    /// What is quantised once and read is quantised to itself, or nearly: every point is its own nearest one.
    #[test]
    fn points_are_found_again() {
        let x: Vec<f32> = (0..LEN).map(|i| ((i * i * 37 + i * 11) % 101) as f32 / 50.0 - 1.0).collect();
        for ty in [GgmlType::IQ1_M, GgmlType::IQ2_XS, GgmlType::IQ2_S, GgmlType::IQ3_S] {
            let again = |x: &[f32]| {
                let mut bytes = vec![0; ty.block_bytes()];
                quantize_row(ty, x, &mut bytes);
                let mut y = vec![0.0; LEN];
                dequantize_row(ty, &bytes, &mut y);
                y
            };
            let once = again(&x);
            let error: f32 = again(&once).iter().zip(&once).map(|(a, b)| (a - b).abs()).sum();
            assert!(error <= 0.02 * once.iter().map(|v| v.abs()).sum::<f32>(), "{ty}: {error}");
        }
    }
}
