//! IQ2_XXS, IQ2_XS and IQ2_S: the magnitudes of eight elements are one of 256, 512 or 1024 points.

use super::super::assert_layout;
use super::grid;
use super::{HighBits, Kind, LEN, Lattice, even_signs, join_scales, odd, put_point, split_scales, take_point};
use crate::GgmlType;

/// Three magnitudes, and with the high bit the same negated.
const LEVELS: [i8; 16] = [8, 25, 43, 43, -8, -25, -43, -43, 0, 0, 0, 0, 0, 0, 0, 0];

/// A scale counts eighths of `d`.
const UNIT: f32 = 0.125;

/// `d`; for 32 elements the numbers of four points, then seven signs of each and four bits of scale.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct IQ2_XXS {
    d: [u8; 2],
    qs: [[[u8; 4]; 2]; 8],
}

const _: () = assert_layout::<IQ2_XXS>();

impl Lattice for IQ2_XXS {
    const KIND: Kind = Kind {
        ty: GgmlType::IQ2_XXS,
        grid: &grid::IQ2_XXS,
        point: 8,
        levels: LEVELS,
        high_bits: HighBits::EvenSigns,
        groups: 8,
        max_scale: odd(15),
        unit: UNIT,
    };

    #[inline(always)]
    fn split(&self, codes: &mut [u8; LEN], scales: &mut [u8]) -> [u8; 2] {
        for ((codes, scale), [points, rest]) in codes.chunks_exact_mut(32).zip(scales).zip(self.qs) {
            let rest = u32::from_le_bytes(rest);
            for (i, (codes, index)) in codes.chunks_exact_mut(8).zip(points).enumerate() {
                let signs = even_signs((rest >> (7 * i)) as u8 & 127);
                put_point::<8>(grid::IQ2_XXS.point(index.into()), signs, codes);
            }
            *scale = odd((rest >> 28) as u8);
        }
        self.d
    }

    fn join(d: [u8; 2], scales: &[u8], codes: &[u8; LEN]) -> Self {
        let mut qs = [[[0; 4]; 2]; 8];
        for ((codes, scale), [points, rest]) in codes.chunks_exact(32).zip(scales).zip(&mut qs) {
            let mut bits = u32::from(scale >> 1) << 28;
            for (i, (codes, index)) in codes.chunks_exact(8).zip(points).enumerate() {
                let (point, signs) = take_point::<8>(codes);
                *index = grid::IQ2_XXS.index(point) as u8;
                bits |= u32::from(signs & 127) << (7 * i);
            }
            *rest = bits.to_le_bytes();
        }
        IQ2_XXS { d, qs }
    }
}

/// `d`; per point nine bits of its number and seven signs; four bits of scale per 16 elements.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct IQ2_XS {
    d: [u8; 2],
    qs: [[u8; 2]; 32],
    scales: [u8; 8],
}

const _: () = assert_layout::<IQ2_XS>();

impl Lattice for IQ2_XS {
    const KIND: Kind = Kind {
        ty: GgmlType::IQ2_XS,
        grid: &grid::IQ2_XS,
        point: 8,
        levels: LEVELS,
        high_bits: HighBits::EvenSigns,
        groups: 16,
        max_scale: odd(15),
        unit: UNIT,
    };

    #[inline(always)]
    fn split(&self, codes: &mut [u8; LEN], scales: &mut [u8]) -> [u8; 2] {
        for (codes, q) in codes.chunks_exact_mut(8).zip(self.qs) {
            let index = usize::from(u16::from_le_bytes(q) & 511);
            put_point::<8>(grid::IQ2_XS.point(index), even_signs(q[1] >> 1), codes);
        }
        split_scales(&self.scales, scales);
        self.d
    }

    fn join(d: [u8; 2], scales: &[u8], codes: &[u8; LEN]) -> Self {
        let mut qs = [[0; 2]; 32];
        for (codes, q) in codes.chunks_exact(8).zip(&mut qs) {
            let (point, signs) = take_point::<8>(codes);
            *q = (grid::IQ2_XS.index(point) as u16 | u16::from(signs & 127) << 9).to_le_bytes();
        }
        IQ2_XS { d, qs, scales: join_scales(scales) }
    }
}

/// `d`; the low eight bits of the points' numbers; eight signs per point; the numbers' high two bits; four bits of scale per 16
/// elements.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct IQ2_S {
    d: [u8; 2],
    qs: [u8; 32],
    signs: [u8; 32],
    qh: [u8; 8],
    scales: [u8; 8],
}

const _: () = assert_layout::<IQ2_S>();

impl Lattice for IQ2_S {
    const KIND: Kind = Kind {
        ty: GgmlType::IQ2_S,
        grid: &grid::IQ2_S,
        point: 8,
        levels: LEVELS,
        high_bits: HighBits::Signs,
        groups: 16,
        max_scale: odd(15),
        unit: UNIT,
    };

    #[inline(always)]
    fn split(&self, codes: &mut [u8; LEN], scales: &mut [u8]) -> [u8; 2] {
        for (i, codes) in codes.chunks_exact_mut(8).enumerate() {
            let index = u16::from(self.qs[i]) | u16::from(self.qh[i / 4] >> (2 * (i % 4)) & 3) << 8;
            put_point::<8>(grid::IQ2_S.point(index.into()), self.signs[i], codes);
        }
        split_scales(&self.scales, scales);
        self.d
    }

    fn join(d: [u8; 2], scales: &[u8], codes: &[u8; LEN]) -> Self {
        let (mut qs, mut signs, mut qh) = ([0; 32], [0; 32], [0; 8]);
        for (i, codes) in codes.chunks_exact(8).enumerate() {
            let (point, high) = take_point::<8>(codes);
            let index = grid::IQ2_S.index(point);
            (qs[i], signs[i]) = (index as u8, high);
            qh[i / 4] |= ((index >> 8) as u8) << (2 * (i % 4));
        }
        IQ2_S { d, qs, signs, qh, scales: join_scales(scales) }
    }
}
