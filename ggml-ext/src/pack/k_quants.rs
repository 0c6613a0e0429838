//! Packed layouts of the types with 256-element blocks.

use super::Packed;
use super::small_blocks::{join_nibbles, put_word, split_nibbles, word};
use crate::GgmlType;

/// The 6-bit scales and minima of Q4_K and Q5_K: `bytes[2 * j]` is the scale of 32 elements, `bytes[2 * j + 1]` the
/// minimum. The first four of each lie in the low bits of bytes 0..8; the last four have their low bits in bytes 8..12
/// and their high bits above the first four.
#[inline(always)]
fn split_scales(packed: &[u8], bytes: &mut [u8]) {
    for j in 0..4 {
        let (s, m, both) = (packed[j], packed[4 + j], packed[8 + j]);
        (bytes[2 * j], bytes[2 * j + 1]) = (s & 63, m & 63);
        (bytes[8 + 2 * j], bytes[9 + 2 * j]) = (both & 15 | s >> 6 << 4, both >> 4 | m >> 6 << 4);
    }
}

/// The inverse of [`split_scales`].
#[inline(always)]
fn join_scales(bytes: &[u8], packed: &mut [u8]) {
    for j in 0..4 {
        let (s_high, m_high) = (bytes[8 + 2 * j], bytes[9 + 2 * j]);
        packed[j] = bytes[2 * j] | s_high >> 4 << 6;
        packed[4 + j] = bytes[2 * j + 1] | m_high >> 4 << 6;
        packed[8 + j] = s_high & 15 | (m_high & 15) << 4;
    }
}

/// The two-bit codes of Q2_K, Q3_K and the ternary types, and the high bits of Q6_K: each byte of a run of `run` holds four codes that lie
/// `run` elements apart.
#[inline(always)]
pub(super) fn split_pairs(packed: &[u8], run: usize, mut code: impl FnMut(usize, u8)) {
    for (n, packed) in packed.chunks_exact(run).enumerate() {
        for j in 0..4 {
            for (l, byte) in packed.iter().enumerate() {
                code(4 * run * n + run * j + l, byte >> (2 * j) & 3);
            }
        }
    }
}

/// The inverse of [`split_pairs`], into zeroed bytes.
#[inline(always)]
pub(super) fn join_pairs(packed: &mut [u8], run: usize, code: impl Fn(usize) -> u8) {
    for (n, packed) in packed.chunks_exact_mut(run).enumerate() {
        for j in 0..4 {
            for (l, byte) in packed.iter_mut().enumerate() {
                *byte |= code(4 * run * n + run * j + l) << (2 * j);
            }
        }
    }
}

/// `d`, `dmin`, (scale, minimum) per 32; codes 0..=15.
pub(crate) struct Q4K;

impl Packed for Q4K {
    const TYPE: GgmlType = GgmlType::Q4_K;
    const LOW: usize = 4;
    const WORDS: usize = 2;
    const BYTES: usize = 16;

    #[inline(always)]
    fn split(block: &[u8], codes: &mut [u8], words: &mut [u16], bytes: &mut [u8]) {
        (words[0], words[1]) = (word(block, 0), word(block, 2));
        split_scales(&block[4..16], bytes);
        for (qs, codes) in block[16..].chunks_exact(32).zip(codes.chunks_exact_mut(64)) {
            split_nibbles(qs, codes);
        }
    }

    #[inline(always)]
    fn join(codes: &[u8], words: &[u16], bytes: &[u8], block: &mut [u8]) {
        put_word(block, 0, words[0]);
        put_word(block, 2, words[1]);
        join_scales(bytes, &mut block[4..16]);
        for (qs, codes) in block[16..].chunks_exact_mut(32).zip(codes.chunks_exact(64)) {
            join_nibbles(codes, qs);
        }
    }
}

/// `d`, `dmin`, (scale, minimum) per 32; codes 0..=31, the fifth bit of element `32 * j + l` in bit `j` of byte `l`.
pub(crate) struct Q5K;

impl Packed for Q5K {
    const TYPE: GgmlType = GgmlType::Q5_K;
    const LOW: usize = 4;
    const HIGH: usize = 1;
    const WORDS: usize = 2;
    const BYTES: usize = 16;

    #[inline(always)]
    fn split(block: &[u8], codes: &mut [u8], words: &mut [u16], bytes: &mut [u8]) {
        (words[0], words[1]) = (word(block, 0), word(block, 2));
        split_scales(&block[4..16], bytes);
        let (qh, qs) = block[16..].split_at(32);
        for (qs, codes) in qs.chunks_exact(32).zip(codes.chunks_exact_mut(64)) {
            split_nibbles(qs, codes);
        }
        for (j, codes) in codes.chunks_exact_mut(32).enumerate() {
            for (code, high) in codes.iter_mut().zip(qh) {
                *code |= (high >> j & 1) << 4;
            }
        }
    }

    #[inline(always)]
    fn join(codes: &[u8], words: &[u16], bytes: &[u8], block: &mut [u8]) {
        put_word(block, 0, words[0]);
        put_word(block, 2, words[1]);
        join_scales(bytes, &mut block[4..16]);
        let (qh, qs) = block[16..].split_at_mut(32);
        for (qs, codes) in qs.chunks_exact_mut(32).zip(codes.chunks_exact(64)) {
            join_nibbles(codes, qs);
        }
        for (j, codes) in codes.chunks_exact(32).enumerate() {
            for (code, high) in codes.iter().zip(qh.iter_mut()) {
                *high |= (code >> 4) << j;
            }
        }
    }
}

/// `d`, a signed scale per 16; codes 0..=63.
pub(crate) struct Q6K;

impl Packed for Q6K {
    const TYPE: GgmlType = GgmlType::Q6_K;
    const LOW: usize = 4;
    const HIGH: usize = 2;
    const WORDS: usize = 1;
    const BYTES: usize = 16;

    #[inline(always)]
    fn split(block: &[u8], codes: &mut [u8], words: &mut [u16], bytes: &mut [u8]) {
        words[0] = word(block, 208);
        bytes.copy_from_slice(&block[192..208]);
        for (ql, codes) in block[..128].chunks_exact(64).zip(codes.chunks_exact_mut(128)) {
            split_nibbles(ql, codes);
        }
        split_pairs(&block[128..192], 32, |i, high| codes[i] |= high << 4);
    }

    #[inline(always)]
    fn join(codes: &[u8], words: &[u16], bytes: &[u8], block: &mut [u8]) {
        put_word(block, 208, words[0]);
        block[192..208].copy_from_slice(bytes);
        for (ql, codes) in block[..128].chunks_exact_mut(64).zip(codes.chunks_exact(128)) {
            join_nibbles(codes, ql);
        }
        join_pairs(&mut block[128..192], 32, |i| codes[i] >> 4);
    }
}

/// `d`, a scale per 16 (stored less 32, as a signed byte); codes 0..=7.
pub(crate) struct Q3K;

impl Packed for Q3K {
    const TYPE: GgmlType = GgmlType::Q3_K;
    const LOW: usize = 2;
    const HIGH: usize = 1;
    const WORDS: usize = 1;
    const BYTES: usize = 16;

    #[inline(always)]
    fn split(block: &[u8], codes: &mut [u8], words: &mut [u16], bytes: &mut [u8]) {
        let (hmask, qs, scales) = (&block[..32], &block[32..96], &block[96..108]);
        words[0] = word(block, 108);
        for (j, byte) in bytes.iter_mut().enumerate() {
            let low = scales[j % 8] >> (4 * (j / 8)) & 15;
            let high = scales[8 + j % 4] >> (2 * (j / 4)) & 3;
            *byte = (low | high << 4).wrapping_sub(32);
        }
        split_pairs(qs, 32, |i, low| codes[i] = low | (hmask[i % 32] >> (i / 32) & 1) << 2);
    }

    #[inline(always)]
    fn join(codes: &[u8], words: &[u16], bytes: &[u8], block: &mut [u8]) {
        put_word(block, 108, words[0]);
        for (j, byte) in bytes.iter().enumerate() {
            let scale = byte.wrapping_add(32);
            block[96 + j % 8] |= (scale & 15) << (4 * (j / 8));
            block[104 + j % 4] |= (scale >> 4) << (2 * (j / 4));
        }
        for (i, code) in codes.iter().enumerate() {
            block[i % 32] |= (code >> 2) << (i / 32);
        }
        join_pairs(&mut block[32..96], 32, |i| codes[i] & 3);
    }
}

/// `d`, `dmin`, per 16 a byte with a scale in its low half and a minimum in its high half; codes 0..=3.
pub(crate) struct Q2K;

impl Packed for Q2K {
    const TYPE: GgmlType = GgmlType::Q2_K;
    const LOW: usize = 2;
    const WORDS: usize = 2;
    const BYTES: usize = 16;

    #[inline(always)]
    fn split(block: &[u8], codes: &mut [u8], words: &mut [u16], bytes: &mut [u8]) {
        bytes.copy_from_slice(&block[..16]);
        split_pairs(&block[16..80], 32, |i, code| codes[i] = code);
        (words[0], words[1]) = (word(block, 80), word(block, 82));
    }

    #[inline(always)]
    fn join(codes: &[u8], words: &[u16], bytes: &[u8], block: &mut [u8]) {
        block[..16].copy_from_slice(bytes);
        join_pairs(&mut block[16..80], 32, |i| codes[i]);
        put_word(block, 80, words[0]);
        put_word(block, 82, words[1]);
    }
}

/// `d`, a scale per 32 (stored less 32, as a signed byte); codes index a table.
pub(crate) struct Iq4Xs;

impl Packed for Iq4Xs {
    const TYPE: GgmlType = GgmlType::IQ4_XS;
    const LOW: usize = 4;
    const WORDS: usize = 1;
    const BYTES: usize = 8;

    #[inline(always)]
    fn split(block: &[u8], codes: &mut [u8], words: &mut [u16], bytes: &mut [u8]) {
        words[0] = word(block, 0);
        let high = word(block, 2);
        for (j, byte) in bytes.iter_mut().enumerate() {
            let low = block[4 + j / 2] >> (4 * (j % 2)) & 15;
            *byte = (low | ((high >> (2 * j) & 3) << 4) as u8).wrapping_sub(32);
        }
        for (qs, codes) in block[8..].chunks_exact(16).zip(codes.chunks_exact_mut(32)) {
            split_nibbles(qs, codes);
        }
    }

    #[inline(always)]
    fn join(codes: &[u8], words: &[u16], bytes: &[u8], block: &mut [u8]) {
        put_word(block, 0, words[0]);
        let mut high = 0;
        for (j, byte) in bytes.iter().enumerate() {
            let scale = byte.wrapping_add(32);
            block[4 + j / 2] |= (scale & 15) << (4 * (j % 2));
            high |= u16::from(scale >> 4) << (2 * j);
        }
        put_word(block, 2, high);
        for (qs, codes) in block[8..].chunks_exact_mut(16).zip(codes.chunks_exact(32)) {
            join_nibbles(codes, qs);
        }
    }
}
