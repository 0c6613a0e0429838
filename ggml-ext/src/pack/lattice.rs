//! Packed layouts of the lattice types: the codes of the elements instead of the numbers of their points, in three or four bits, as
//! there is no product with points whose elements are elsewhere. They take up to twice the file's bytes, and no more arithmetic
//! than other types of as many bits.

use std::marker::PhantomData;

use super::Packed;
use crate::GgmlType;
use crate::blocks::{self, Lattice};

/// `d`, an odd scale per group; codes index a table.
pub(crate) struct Points<L>(PhantomData<L>);

impl<L: Lattice> Packed for Points<L> {
    const TYPE: GgmlType = L::KIND.ty;
    const LOW: usize = if L::KIND.bits() == 4 { 4 } else { 2 };
    const HIGH: usize = L::KIND.bits() - Self::LOW;
    const WORDS: usize = 1;
    const BYTES: usize = L::KIND.groups;

    #[inline(always)]
    fn split(block: &[u8], codes: &mut [u8], words: &mut [u16], bytes: &mut [u8]) {
        let codes = codes.first_chunk_mut().expect("slices hold a whole block");
        words[0] = u16::from_le_bytes(blocks::blocks::<L>(block)[0].split(codes, bytes));
    }

    #[inline(always)]
    fn join(codes: &[u8], words: &[u16], bytes: &[u8], block: &mut [u8]) {
        let codes = codes.first_chunk().expect("slices hold a whole block");
        block.copy_from_slice(bytemuck::bytes_of(&L::join(words[0].to_le_bytes(), bytes, codes)));
    }
}
