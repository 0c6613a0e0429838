//! Packed layouts of the types with 32-element blocks, and of NVFP4, which has 64.

use super::Packed;
use crate::GgmlType;
use crate::blocks::UE4M3_NAN;

/// Twice as many codes as bytes: the low halves of all bytes, then the high halves.
#[inline(always)]
pub(super) fn split_nibbles(packed: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(packed.len());
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(packed) {
        (*low, *high) = (byte & 0x0f, byte >> 4);
    }
}

/// The inverse of [`split_nibbles`]; bits above the fourth are ignored.
#[inline(always)]
pub(super) fn join_nibbles(codes: &[u8], packed: &mut [u8]) {
    let (low, high) = codes.split_at(packed.len());
    for ((&low, &high), byte) in low.iter().zip(high).zip(packed) {
        *byte = low & 0x0f | high << 4;
    }
}

#[inline(always)]
pub(super) fn word(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

#[inline(always)]
pub(super) fn put_word(block: &mut [u8], at: usize, word: u16) {
    block[at..at + 2].copy_from_slice(&word.to_le_bytes());
}

/// Declares a layout: 16-bit fields at the start of the block, fifth bits (if any), then nibbles.
macro_rules! nibble_layout {
    ($(#[$doc:meta])* $name:ident, $ty:ident, words $words:literal, fifth_bits $high:literal) => {
        $(#[$doc])*
        pub(crate) struct $name;

        impl Packed for $name {
            const TYPE: GgmlType = GgmlType::$ty;
            const LOW: usize = 4;
            const HIGH: usize = $high;
            const WORDS: usize = $words;
            const BYTES: usize = 0;

            #[inline(always)]
            fn split(block: &[u8], codes: &mut [u8], words: &mut [u16], _bytes: &mut [u8]) {
                let (head, body) = block.split_at(2 * $words);
                for (i, w) in words.iter_mut().enumerate() {
                    *w = word(head, 2 * i);
                }
                let (fifth, nibbles) = body.split_at(4 * $high);
                split_nibbles(nibbles, codes);
                for (i, code) in codes.iter_mut().enumerate().take(32 * $high) {
                    *code |= (fifth[i / 8] >> (i % 8) & 1) << 4;
                }
            }

            #[inline(always)]
            fn join(codes: &[u8], words: &[u16], _bytes: &[u8], block: &mut [u8]) {
                let (head, body) = block.split_at_mut(2 * $words);
                for (i, &w) in words.iter().enumerate() {
                    put_word(head, 2 * i, w);
                }
                let (fifth, nibbles) = body.split_at_mut(4 * $high);
                join_nibbles(codes, nibbles);
                for (i, code) in codes.iter().enumerate().take(32 * $high) {
                    fifth[i / 8] |= (code >> 4) << (i % 8);
                }
            }
        }
    };
}

nibble_layout!(/** `d`; codes 0..=15. */ Q4_0, Q4_0, words 1, fifth_bits 0);
nibble_layout!(/** `d`, `m`; codes 0..=15. */ Q4_1, Q4_1, words 2, fifth_bits 0);
nibble_layout!(/** `d`; codes 0..=31. */ Q5_0, Q5_0, words 1, fifth_bits 1);
nibble_layout!(/** `d`, `m`; codes 0..=31. */ Q5_1, Q5_1, words 2, fifth_bits 1);
nibble_layout!(/** `d`; codes index a table. */ Iq4Nl, IQ4_NL, words 1, fifth_bits 0);

/// `d`; codes are signed bytes.
pub(crate) struct Q8_0;

impl Packed for Q8_0 {
    const TYPE: GgmlType = GgmlType::Q8_0;
    const LOW: usize = 8;
    const WORDS: usize = 1;
    const BYTES: usize = 0;

    #[inline(always)]
    fn split(block: &[u8], codes: &mut [u8], words: &mut [u16], _bytes: &mut [u8]) {
        words[0] = word(block, 0);
        codes.copy_from_slice(&block[2..]);
    }

    #[inline(always)]
    fn join(codes: &[u8], words: &[u16], _bytes: &[u8], block: &mut [u8]) {
        put_word(block, 0, words[0]);
        block[2..].copy_from_slice(codes);
    }
}

/// An exponent; codes index a table.
pub(crate) struct Mxfp4;

impl Packed for Mxfp4 {
    const TYPE: GgmlType = GgmlType::MXFP4;
    const LOW: usize = 4;
    const WORDS: usize = 0;
    const BYTES: usize = 1;

    #[inline(always)]
    fn split(block: &[u8], codes: &mut [u8], _words: &mut [u16], bytes: &mut [u8]) {
        bytes[0] = block[0];
        split_nibbles(&block[1..], codes);
    }

    #[inline(always)]
    fn join(codes: &[u8], _words: &[u16], bytes: &[u8], block: &mut [u8]) {
        block[0] = bytes[0];
        join_nibbles(codes, &mut block[1..]);
    }
}

/// A scale per 16; codes index a table. The scale that is not a number becomes the zero that it is read as, so that no
/// kernel has to know it.
pub(crate) struct Nvfp4;

impl Packed for Nvfp4 {
    const TYPE: GgmlType = GgmlType::NVFP4;
    const LOW: usize = 4;
    const WORDS: usize = 0;
    const BYTES: usize = 4;

    #[inline(always)]
    fn split(block: &[u8], codes: &mut [u8], _words: &mut [u16], bytes: &mut [u8]) {
        let (scales, packed) = block.split_at(4);
        for (byte, &scale) in bytes.iter_mut().zip(scales) {
            *byte = if scale == UE4M3_NAN { 0 } else { scale };
        }
        for (packed, codes) in packed.chunks_exact(8).zip(codes.chunks_exact_mut(16)) {
            split_nibbles(packed, codes);
        }
    }

    #[inline(always)]
    fn join(codes: &[u8], _words: &[u16], bytes: &[u8], block: &mut [u8]) {
        let (scales, packed) = block.split_at_mut(4);
        scales.copy_from_slice(bytes);
        for (packed, codes) in packed.chunks_exact_mut(8).zip(codes.chunks_exact(16)) {
            join_nibbles(codes, packed);
        }
    }
}
