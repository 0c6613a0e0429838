//! Codes of one, two or four bits as the blocks pack them.
//!
//! All but the fifth bits of Q5_0 and Q5_1 follow one scheme: bytes come in chunks of `STRIDE`; the lowest `BITS` of a
//! chunk's bytes are the first `STRIDE` codes, the next `BITS` the following `STRIDE`, and so on.

/// Codes from packed bytes; `M` is `N * 8 / BITS`.
#[inline(always)]
pub(super) fn unpack<const BITS: usize, const STRIDE: usize, const N: usize, const M: usize>(
    packed: &[u8; N],
) -> [u8; M] {
    const { assert!(N * 8 == M * BITS && N.is_multiple_of(STRIDE)) };
    let mask = ((1_u32 << BITS) - 1) as u8;
    let mut codes = [0; M];
    for (bytes, codes) in packed.chunks_exact(STRIDE).zip(codes.chunks_exact_mut(STRIDE * 8 / BITS)) {
        for (plane, codes) in codes.chunks_exact_mut(STRIDE).enumerate() {
            for (code, byte) in codes.iter_mut().zip(bytes) {
                *code = byte >> (plane * BITS) & mask;
            }
        }
    }
    codes
}

/// The inverse of [`unpack`]; bits of a code above the lowest `BITS` are ignored.
pub(super) fn pack<const BITS: usize, const STRIDE: usize, const N: usize, const M: usize>(codes: &[u8; M]) -> [u8; N] {
    const { assert!(N * 8 == M * BITS && N.is_multiple_of(STRIDE)) };
    let mask = ((1_u32 << BITS) - 1) as u8;
    let mut packed = [0; N];
    for (bytes, codes) in packed.chunks_exact_mut(STRIDE).zip(codes.chunks_exact(STRIDE * 8 / BITS)) {
        for (plane, codes) in codes.chunks_exact(STRIDE).enumerate() {
            for (byte, code) in bytes.iter_mut().zip(codes) {
                *byte |= (code & mask) << (plane * BITS);
            }
        }
    }
    packed
}

/// The codes of the 32-element blocks: the low halves of all bytes, then the high halves.
#[inline(always)]
pub(super) fn nibbles(packed: &[u8; 16]) -> [u8; 32] {
    unpack::<4, 16, 16, 32>(packed)
}

/// The inverse of [`nibbles`].
pub(super) fn pack_nibbles(codes: &[u8; 32]) -> [u8; 16] {
    pack::<4, 16, 16, 32>(codes)
}

/// 32 five-bit codes: the low four bits as in [`nibbles`], the fifth of code `j` in bit `j` of `high`.
#[inline(always)]
pub(super) fn five_bits(packed: &[u8; 16], high: [u8; 4]) -> [u8; 32] {
    let mut codes = nibbles(packed);
    for (codes, bits) in codes.chunks_exact_mut(8).zip(high) {
        for (j, code) in codes.iter_mut().enumerate() {
            *code |= (bits >> j & 1) << 4;
        }
    }
    codes
}

/// The inverse of [`five_bits`].
pub(super) fn pack_five_bits(codes: &[u8; 32]) -> ([u8; 16], [u8; 4]) {
    let high = codes.iter().rev().fold(0_u32, |bits, &code| bits << 1 | u32::from(code >> 4 & 1));
    (pack_nibbles(codes), high.to_le_bytes())
}
