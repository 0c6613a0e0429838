//! Where the sums of a product go.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::bf16::{Digits, GatedProduct, Product};
use super::product::{BAND_GROUPS, GROUP_SUMS};
use super::unpack::round;
use crate::pack::{COLS, ROWS};

/// Takes the sums of a product.
pub(super) trait Output {
    /// Takes a token's sums with some groups: for each group 16, [`GROUP_SUMS`] after those of the group before.
    ///
    /// # Safety
    /// The sums are there, and the output has room for what becomes of this token and these groups. The CPU has the tier's features.
    unsafe fn put(&self, groups: Range<usize>, token: usize, sums: *const f32);
}

/// As they are.
impl Output for Product<'_> {
    unsafe fn put(&self, groups: Range<usize>, token: usize, sums: *const f32) {
        // SAFETY: passed on.
        unsafe { copy(self, groups, token, sums) }
    }
}

#[target_feature(enable = "avx512f")]
unsafe fn copy(p: &Product, groups: Range<usize>, token: usize, sums: *const f32) {
    let row = p.out.wrapping_add(token * p.out_stride);
    for (i, first) in groups.map(|g| g * ROWS).enumerate() {
        let wanted = ((1u32 << ROWS.min(p.rows.end - first)) - 1) as __mmask16;
        // SAFETY: the caller of the product vouches for these elements of the output.
        unsafe { _mm512_mask_storeu_ps(row.wrapping_add(first), wanted, _mm512_load_ps(sums.add(i * GROUP_SUMS))) }
    }
}

/// Groups of the gate and of what it is for take turns, and what becomes of them is an operand again.
impl Output for GatedProduct<'_> {
    unsafe fn put(&self, groups: Range<usize>, token: usize, sums: *const f32) {
        // SAFETY: passed on.
        unsafe { gate(self, groups, token, sums) }
    }
}

/// Most pairs of groups that are put out together.
const PAIRS: usize = BAND_GROUPS / 2;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn gate(p: &GatedProduct, groups: Range<usize>, token: usize, sums: *const f32) {
    let mut values = [[[0f32; ROWS]; PAIRS]; 3];
    let n_pairs = groups.len() / 2;
    let [gate, up, out] = &mut values;
    // SAFETY: the sums are there; the caller of the product vouches for these elements of the output.
    unsafe {
        for (i, (gate, up)) in gate.iter_mut().zip(up.iter_mut()).enumerate().take(n_pairs) {
            _mm512_storeu_ps(gate.as_mut_ptr(), _mm512_load_ps(sums.add(2 * i * GROUP_SUMS)));
            _mm512_storeu_ps(up.as_mut_ptr(), _mm512_load_ps(sums.add((2 * i + 1) * GROUP_SUMS)));
        }
        let n = n_pairs * ROWS;
        (p.act)(&gate.as_flattened()[..n], &up.as_flattened()[..n], &mut out.as_flattened_mut()[..n]);
        let [first, second] = p.out.row_ptr(token).map(|row| row.add(groups.start / 2 * ROWS));
        for (i, both) in out.as_flattened()[..n].chunks(COLS).enumerate() {
            let wanted = (u64::from(u32::MAX) >> (COLS - both.len())) as __mmask32;
            let at = both.as_ptr();
            let high_half = if both.len() == COLS { _mm512_loadu_ps(at.add(ROWS)) } else { _mm512_setzero_ps() };
            let [high, low] = round([_mm512_loadu_ps(at), high_half]);
            _mm512_mask_storeu_epi16(first.add(i * COLS).cast(), wanted, high);
            if p.out_digits == Digits::Two {
                _mm512_mask_storeu_epi16(second.add(i * COLS).cast(), wanted, low);
            }
        }
    }
}
