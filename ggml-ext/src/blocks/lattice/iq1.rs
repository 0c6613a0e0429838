//! IQ1_S and IQ1_M: eight elements of minus one, zero or one, shifted by an eighth one way or the other, are one of 2048 points.

use super::super::assert_layout;
use super::grid;
use super::{HighBits, Kind, LEN, Lattice, odd, put_point, take_point};
use crate::GgmlType;

/// Eighths: `8 * t + 1` for `t` of -1, 0 and 1, and with the high bit `8 * t - 1`.
const LEVELS: [i8; 16] = [-7, 1, 9, 9, -9, -1, 7, 7, 0, 0, 0, 0, 0, 0, 0, 0];

/// The highest bits of eight elements that are shifted alike.
#[inline(always)]
fn all(shifted: u8) -> u8 {
    (shifted & 1).wrapping_neg()
}

/// `d`, the low eight bits of the points' numbers, and for 32 elements the high three bits of four points, three bits of scale and
/// the shift.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct IQ1_S {
    d: [u8; 2],
    qs: [u8; 32],
    qh: [[u8; 2]; 8],
}

const _: () = assert_layout::<IQ1_S>();

impl Lattice for IQ1_S {
    const KIND: Kind = Kind {
        ty: GgmlType::IQ1_S,
        grid: &grid::IQ1,
        point: 8,
        levels: LEVELS,
        high_bits: HighBits::Shifts(32),
        groups: 8,
        max_scale: odd(7),
        unit: 0.125,
    };

    #[inline(always)]
    fn split(&self, codes: &mut [u8; LEN], scales: &mut [u8]) -> [u8; 2] {
        for (i, codes) in codes.chunks_exact_mut(8).enumerate() {
            let high = u16::from_le_bytes(self.qh[i / 4]);
            let index = u16::from(self.qs[i]) | (high >> (3 * (i % 4)) & 7) << 8;
            put_point::<8>(grid::IQ1.point(index.into()), all((high >> 15) as u8), codes);
        }
        for (scale, qh) in scales.iter_mut().zip(self.qh) {
            *scale = odd(qh[1] >> 4 & 7);
        }
        self.d
    }

    fn join(d: [u8; 2], scales: &[u8], codes: &[u8; LEN]) -> Self {
        let (mut qs, mut qh) = ([0; 32], [0; 8]);
        for (i, codes) in codes.chunks_exact(8).enumerate() {
            let (point, shifts) = take_point::<8>(codes);
            let index = grid::IQ1.index(point);
            qs[i] = index as u8;
            qh[i / 4] |= (index as u16 >> 8) << (3 * (i % 4)) | u16::from(shifts & 1) << 15;
        }
        for (qh, scale) in qh.iter_mut().zip(scales) {
            *qh |= u16::from(scale >> 1) << 12;
        }
        IQ1_S { d, qs, qh: qh.map(u16::to_le_bytes) }
    }
}

/// The low eight bits of the points' numbers; per point three high bits and the shift; per 64 elements four scales of three bits and
/// four bits of `d`.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct IQ1_M {
    qs: [u8; 32],
    qh: [u8; 16],
    scales: [[u8; 2]; 4],
}

const _: () = assert_layout::<IQ1_M>();

impl Lattice for IQ1_M {
    const KIND: Kind = Kind {
        ty: GgmlType::IQ1_M,
        grid: &grid::IQ1,
        point: 8,
        levels: LEVELS,
        high_bits: HighBits::Shifts(8),
        groups: 16,
        max_scale: odd(7),
        unit: 0.125,
    };

    #[inline(always)]
    fn split(&self, codes: &mut [u8; LEN], scales: &mut [u8]) -> [u8; 2] {
        for (i, codes) in codes.chunks_exact_mut(8).enumerate() {
            let high = self.qh[i / 2] >> (4 * (i % 2));
            let index = u16::from(self.qs[i]) | u16::from(high & 7) << 8;
            put_point::<8>(grid::IQ1.point(index.into()), all(high >> 3), codes);
        }
        for (j, scale) in scales.iter_mut().enumerate() {
            *scale = odd((u16::from_le_bytes(self.scales[j / 4]) >> (3 * (j % 4)) & 7) as u8);
        }
        let part = |i: usize| self.scales[i][1] >> 4;
        [part(0) | part(1) << 4, part(2) | part(3) << 4]
    }

    fn join(d: [u8; 2], scales: &[u8], codes: &[u8; LEN]) -> Self {
        let (mut qs, mut qh, mut words) = ([0; 32], [0; 16], [0; 4]);
        for (i, codes) in codes.chunks_exact(8).enumerate() {
            let (point, shifts) = take_point::<8>(codes);
            let index = grid::IQ1.index(point);
            qs[i] = index as u8;
            qh[i / 2] |= ((index >> 8) as u8 | (shifts & 1) << 3) << (4 * (i % 2));
        }
        for (j, scale) in scales.iter().enumerate() {
            words[j / 4] |= u16::from(scale >> 1) << (3 * (j % 4));
        }
        for (i, word) in words.iter_mut().enumerate() {
            *word |= u16::from(d[i / 2] >> (4 * (i % 2)) & 15) << 12;
        }
        IQ1_M { qs, qh, scales: words.map(u16::to_le_bytes) }
    }
}
