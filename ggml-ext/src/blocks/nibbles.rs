//! Four- and five-bit codes as the 32-element blocks pack them.

/// 32 codes from 16 bytes: the low halves of all bytes, then the high halves.
#[inline(always)]
pub(super) fn unpack(packed: &[u8; 16]) -> [u8; 32] {
    let mut codes = [0; 32];
    for (j, &byte) in packed.iter().enumerate() {
        codes[j] = byte & 0x0f;
        codes[16 + j] = byte >> 4;
    }
    codes
}

/// The inverse of [`unpack`]; bits above the fourth are ignored.
pub(super) fn pack(codes: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|j| codes[j] & 0x0f | codes[16 + j] << 4)
}

/// 32 five-bit codes: the low four bits as in [`unpack`], the fifth of code `j` in bit `j` of `high`.
#[inline(always)]
pub(super) fn unpack5(packed: &[u8; 16], high: [u8; 4]) -> [u8; 32] {
    let high = u32::from_le_bytes(high);
    let mut codes = unpack(packed);
    for (j, code) in codes.iter_mut().enumerate() {
        *code |= ((high >> j & 1) << 4) as u8;
    }
    codes
}

/// The inverse of [`unpack5`].
pub(super) fn pack5(codes: &[u8; 32]) -> ([u8; 16], [u8; 4]) {
    let high = codes
        .iter()
        .rev()
        .fold(0_u32, |bits, &code| bits << 1 | u32::from(code >> 4 & 1));
    (pack(codes), high.to_le_bytes())
}
