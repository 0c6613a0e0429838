//! Packed layouts of the types of one and two bits whose codes have no other scale than `d`.

use super::Packed;
use super::k_quants::{join_pairs, split_pairs};
use super::small_blocks::{put_word, word};
use crate::GgmlType;
use crate::blocks::{join_digits, split_digits};

/// `d`; codes 0..=2.
pub(crate) struct Tq1_0;

impl Packed for Tq1_0 {
    const TYPE: GgmlType = GgmlType::TQ1_0;
    const LOW: usize = 2;
    const WORDS: usize = 1;
    const BYTES: usize = 0;

    #[inline(always)]
    fn split(block: &[u8], codes: &mut [u8], words: &mut [u16], _bytes: &mut [u8]) {
        let digits = block.first_chunk().expect("slices hold a whole block");
        split_digits(digits, codes.first_chunk_mut().expect("slices hold a whole block"));
        words[0] = word(block, 52);
    }

    /// Of several bytes that mean the same digits, the one that quantisers write.
    #[inline(always)]
    fn join(codes: &[u8], words: &[u16], _bytes: &[u8], block: &mut [u8]) {
        let digits = block.first_chunk_mut().expect("slices hold a whole block");
        join_digits(codes.first_chunk().expect("slices hold a whole block"), digits);
        put_word(block, 52, words[0]);
    }
}

/// `d`; codes 0..=3.
pub(crate) struct Tq2_0;

impl Packed for Tq2_0 {
    const TYPE: GgmlType = GgmlType::TQ2_0;
    const LOW: usize = 2;
    const WORDS: usize = 1;
    const BYTES: usize = 0;

    #[inline(always)]
    fn split(block: &[u8], codes: &mut [u8], words: &mut [u16], _bytes: &mut [u8]) {
        split_pairs(&block[..64], 32, |i, code| codes[i] = code);
        words[0] = word(block, 64);
    }

    #[inline(always)]
    fn join(codes: &[u8], words: &[u16], _bytes: &[u8], block: &mut [u8]) {
        join_pairs(&mut block[..64], 32, |i| codes[i]);
        put_word(block, 64, words[0]);
    }
}

/// `d`; codes 0..=3.
pub(crate) struct Q2_0;

impl Packed for Q2_0 {
    const TYPE: GgmlType = GgmlType::Q2_0;
    const LOW: usize = 2;
    const WORDS: usize = 1;
    const BYTES: usize = 0;

    #[inline(always)]
    fn split(block: &[u8], codes: &mut [u8], words: &mut [u16], _bytes: &mut [u8]) {
        words[0] = word(block, 0);
        split_pairs(&block[2..], 1, |i, code| codes[i] = code);
    }

    #[inline(always)]
    fn join(codes: &[u8], words: &[u16], _bytes: &[u8], block: &mut [u8]) {
        put_word(block, 0, words[0]);
        join_pairs(&mut block[2..], 1, |i| codes[i]);
    }
}

/// `d`; codes 0 and 1, for minus and plus.
pub(crate) struct Q1_0;

impl Packed for Q1_0 {
    const TYPE: GgmlType = GgmlType::Q1_0;
    const LOW: usize = 1;
    const WORDS: usize = 1;
    const BYTES: usize = 0;

    #[inline(always)]
    fn split(block: &[u8], codes: &mut [u8], words: &mut [u16], _bytes: &mut [u8]) {
        words[0] = word(block, 0);
        for (i, code) in codes.iter_mut().enumerate() {
            *code = block[2 + i / 8] >> (i % 8) & 1;
        }
    }

    #[inline(always)]
    fn join(codes: &[u8], words: &[u16], _bytes: &[u8], block: &mut [u8]) {
        put_word(block, 0, words[0]);
        for (i, code) in codes.iter().enumerate() {
            block[2 + i / 8] |= code << (i % 8);
        }
    }
}
