//! IQ3_XXS and IQ3_S: the magnitudes of four elements are one of 256 or 512 points.

use super::super::assert_layout;
use super::grid;
use super::{HighBits, Kind, LEN, Lattice, even_signs, join_scales, odd, put_point, split_scales, take_point};
use crate::GgmlType;

/// `d`; the points' numbers; for 32 elements seven signs of every eight and four bits of scale.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct IQ3_XXS {
    d: [u8; 2],
    qs: [[u8; 8]; 8],
    rest: [[u8; 4]; 8],
}

const _: () = assert_layout::<IQ3_XXS>();

impl Lattice for IQ3_XXS {
    const KIND: Kind = Kind {
        ty: GgmlType::IQ3_XXS,
        grid: &grid::IQ3_XXS,
        point: 4,
        levels: [4, 12, 20, 28, 36, 44, 52, 62, -4, -12, -20, -28, -36, -44, -52, -62],
        high_bits: HighBits::EvenSigns,
        groups: 8,
        max_scale: odd(15),
        unit: 0.25,
    };

    #[inline(always)]
    fn split(&self, codes: &mut [u8; LEN], scales: &mut [u8]) -> [u8; 2] {
        for (j, (codes, scale)) in codes.chunks_exact_mut(32).zip(scales).enumerate() {
            let rest = u32::from_le_bytes(self.rest[j]);
            for (i, codes) in codes.chunks_exact_mut(4).enumerate() {
                let signs = even_signs((rest >> (7 * (i / 2))) as u8 & 127) >> (4 * (i % 2));
                put_point::<4>(grid::IQ3_XXS.point(self.qs[j][i].into()), signs, codes);
            }
            *scale = odd((rest >> 28) as u8);
        }
        self.d
    }

    fn join(d: [u8; 2], scales: &[u8], codes: &[u8; LEN]) -> Self {
        let (mut qs, mut rest) = ([[0; 8]; 8], [[0; 4]; 8]);
        for (j, (codes, scale)) in codes.chunks_exact(32).zip(scales).enumerate() {
            let mut bits = u32::from(scale >> 1) << 28;
            for (i, codes) in codes.chunks_exact(4).enumerate() {
                let (point, signs) = take_point::<4>(codes);
                qs[j][i] = grid::IQ3_XXS.index(point) as u8;
                // The eighth is known by the others.
                let stored = if i % 2 == 0 { signs } else { signs & 7 };
                bits |= u32::from(stored) << (7 * (i / 2) + 4 * (i % 2));
            }
            rest[j] = bits.to_le_bytes();
        }
        IQ3_XXS { d, qs, rest }
    }
}

/// `d`; the low eight bits of the points' numbers; their ninth bits; a sign per element; four bits of scale per 32 elements.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct IQ3_S {
    d: [u8; 2],
    qs: [u8; 64],
    qh: [u8; 8],
    signs: [u8; 32],
    scales: [u8; 4],
}

const _: () = assert_layout::<IQ3_S>();

impl Lattice for IQ3_S {
    const KIND: Kind = Kind {
        ty: GgmlType::IQ3_S,
        grid: &grid::IQ3_S,
        point: 4,
        levels: [1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15],
        high_bits: HighBits::Signs,
        groups: 8,
        max_scale: odd(15),
        unit: 1.0,
    };

    #[inline(always)]
    fn split(&self, codes: &mut [u8; LEN], scales: &mut [u8]) -> [u8; 2] {
        for (i, codes) in codes.chunks_exact_mut(4).enumerate() {
            let index = u16::from(self.qs[i]) | u16::from(self.qh[i / 8] >> (i % 8) & 1) << 8;
            put_point::<4>(grid::IQ3_S.point(index.into()), self.signs[i / 2] >> (4 * (i % 2)), codes);
        }
        split_scales(&self.scales, scales);
        self.d
    }

    fn join(d: [u8; 2], scales: &[u8], codes: &[u8; LEN]) -> Self {
        let (mut qs, mut qh, mut signs) = ([0; 64], [0; 8], [0; 32]);
        for (i, codes) in codes.chunks_exact(4).enumerate() {
            let (point, high) = take_point::<4>(codes);
            let index = grid::IQ3_S.index(point);
            qs[i] = index as u8;
            qh[i / 8] |= ((index >> 8) as u8) << (i % 8);
            signs[i / 2] |= high << (4 * (i % 2));
        }
        IQ3_S { d, qs, qh, signs, scales: join_scales(scales) }
    }
}
