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
#[inline(always)]
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

/// Puts the bits of `high` above the lowest `bits` of each code.
#[inline(always)]
pub(super) fn add_high<const M: usize>(codes: &mut [u8; M], high: &[u8; M], bits: u32) {
    for (code, high) in codes.iter_mut().zip(high) {
        *code |= high << bits;
    }
}

/// The codes of the 32-element blocks: the low halves of all bytes, then the high halves.
#[inline(always)]
pub(super) fn nibbles(packed: &[u8; 16]) -> [u8; 32] {
    unpack::<4, 16, 16, 32>(packed)
}

/// The inverse of [`nibbles`].
#[inline(always)]
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
#[inline(always)]
pub(super) fn pack_five_bits(codes: &[u8; 32]) -> ([u8; 16], [u8; 4]) {
    let high = codes.iter().rev().fold(0_u32, |bits, &code| bits << 1 | u32::from(code >> 4 & 1));
    (pack_nibbles(codes), high.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_inverse<const BITS: usize, const STRIDE: usize, const N: usize, const M: usize>() {
        let bytes: [u8; N] = std::array::from_fn(|i| (i * 167 + 13) as u8);
        assert_eq!(pack::<BITS, STRIDE, N, M>(&unpack::<BITS, STRIDE, N, M>(&bytes)), bytes);
    }

    #[test]
    fn packing_keeps_every_bit() {
        assert_inverse::<4, 64, 128, 256>();
        assert_inverse::<2, 32, 64, 256>();
        assert_inverse::<1, 32, 32, 256>();
        let (low, high) = (std::array::from_fn(|i| (i * 167 + 13) as u8), [0x01, 0x80, 0xa5, 0x5a]);
        assert_eq!(pack_five_bits(&five_bits(&low, high)), (low, high));
    }

    #[test]
    fn codes_lie_in_planes() {
        let codes = unpack::<2, 2, 4, 16>(&[0b11_10_01_00, 0b00_01_10_11, 0xff, 0]);
        assert_eq!(codes, [0, 3, 1, 2, 2, 1, 3, 0, 3, 0, 3, 0, 3, 0, 3, 0]);
    }
}
