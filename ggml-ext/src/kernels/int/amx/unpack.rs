//! Weights as operands of tile products.
//!
//! The second operand of `tdpbf16ps` is a tile of 16 lines; line `p` holds columns `2 p` and `2 p + 1` of 16 weight rows, next to
//! each other. A packed line, four columns of 16 rows, makes two such lines; rows of floats are transposed in pairs of columns.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::block::Tile;
use crate::kernels::int::avx512::Avx512;
use crate::kernels::int::dense::Weights;
use crate::kernels::int::formats::{Format, with_format};
use crate::kernels::int::packed;
use crate::pack::{COLS, LINE, MatrixRef, Packed, ROWS};

/// 16 rows of weights.
pub(super) trait Group {
    /// Rows `16 * i..` of a matrix.
    ///
    /// # Safety
    /// `w` is of the type that the implementation is for, and has such rows.
    unsafe fn new(w: &MatrixRef, i: usize) -> Self;

    /// Writes columns `32 * i..` rounded to bf16 and, to `low`, what that rounds off, unless it is null. Rows that the matrix does not have
    /// are zeros.
    ///
    /// # Safety
    /// The CPU has the tier's features, and the matrix has these columns.
    unsafe fn unpack(&self, i: usize, high: *mut Tile, low: *mut Tile);

    /// Asks for columns `32 * i..`, which are to be unpacked later.
    fn fetch(&self, i: usize);
}

/// Asks memory for a cache line.
#[inline(always)]
fn fetch(at: *const u8) {
    // SAFETY: no address is bad for that.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
}

pub(super) fn bits(pairs: __m512bh) -> __m512i {
    // SAFETY: 64 bytes either way.
    unsafe { std::mem::transmute(pairs) }
}

/// Two vectors rounded to bf16, one after the other, and what that rounds off, likewise.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) fn round([first, second]: [__m512; 2]) -> [__m512i; 2] {
    let high = bits(_mm512_cvtne2ps_pbh(second, first));
    let float = |half: __m256i| _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    let first = _mm512_sub_ps(first, float(_mm512_castsi512_si256(high)));
    let second = _mm512_sub_ps(second, float(_mm512_extracti64x4_epi64(high, 1)));
    [high, bits(_mm512_cvtne2ps_pbh(second, first))]
}

/// Puts the elements of two columns, which are one after the other, next to each other.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn interleave(columns: __m512i) -> __m512i {
    let pairs = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1,
        16, 0,
    );
    _mm512_permutexvar_epi16(pairs, columns)
}

/// A group of a packed matrix. Formats are told apart here and not by the products' types, as those would all be compiled for each.
pub(super) struct PackedGroup {
    group: packed::Group,
    unpack: unsafe fn(&packed::Group, usize, *mut Tile, *mut Tile),
    lines_bytes: usize,
    fields_bytes: usize,
    /// Sets of lines that share fields.
    per_field: usize,
}

impl Group for PackedGroup {
    unsafe fn new(w: &MatrixRef, i: usize) -> Self {
        with_format!(w.ty, P => Self {
            group: packed::group::<P>(w, i),
            unpack: unpack_packed::<P>,
            lines_bytes: P::LINES_BYTES,
            fields_bytes: P::FIELDS_BYTES,
            per_field: P::LEN / COLS,
        })
    }

    #[inline(always)]
    unsafe fn unpack(&self, i: usize, high: *mut Tile, low: *mut Tile) {
        // SAFETY: passed on; the function is that of the matrix's format.
        unsafe { (self.unpack)(&self.group, i, high, low) }
    }

    #[inline(always)]
    fn fetch(&self, i: usize) {
        let lines = self.group.lines.wrapping_add(i * self.lines_bytes);
        (0..self.lines_bytes).step_by(LINE).for_each(|l| fetch(lines.wrapping_add(l)));
        fetch(self.group.fields.wrapping_add(i / self.per_field * self.fields_bytes));
    }
}

/// [`Group::unpack`] of a packed group.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
unsafe fn unpack_packed<P: Format>(group: &packed::Group, i: usize, high: *mut Tile, low: *mut Tile) {
    let per_block = P::LEN / COLS;
    // SAFETY: as the caller promises.
    unsafe {
        let lines = group.lines.add(i * P::LINES_BYTES);
        let fields = group.fields.add(i / per_block * P::FIELDS_BYTES);
        let codes = P::codes::<Avx512>(lines, &group.book);
        let s =
            P::scales::<Avx512>(P::head::<Avx512>(fields, &group.book), fields.add(2 * P::WORDS * ROWS), i % per_block);
        // element = scale * code + offset
        let zero = _mm512_set1_ps(match P::ZERO {
            _ if P::BITS == 8 => -128.0,
            Some(shift) => -((1_u32 << shift) as f32),
            None => 0.0,
        });
        let offset = if P::HAS_MIN { s.min } else { s.scale.map(|scale| _mm512_mul_ps(zero, scale)) };
        let byte = _mm512_set1_epi32(0xff);
        let mut g = 0;
        while g < 8 {
            let (c, h) = (codes[g], if P::HALVES { g / 4 } else { 0 });
            let columns = [
                _mm512_and_si512(c, byte),
                _mm512_and_si512(_mm512_srli_epi32(c, 8), byte),
                _mm512_and_si512(_mm512_srli_epi32(c, 16), byte),
                _mm512_srli_epi32(c, 24),
            ];
            let element = |i: usize| _mm512_fmadd_ps(_mm512_cvtepi32_ps(columns[i]), s.scale[h], offset[h]);
            let mut j = 0;
            while j < 2 {
                let both = [element(2 * j), element(2 * j + 1)];
                let at = 2 * g + j;
                if low.is_null() {
                    store(high, at, interleave(bits(_mm512_cvtne2ps_pbh(both[1], both[0]))));
                } else {
                    let digits = round(both);
                    store(high, at, interleave(digits[0]));
                    store(low, at, interleave(digits[1]));
                }
                j += 1;
            }
            g += 1;
        }
    }
}

/// Writes line `i` of a tile.
///
/// # Safety
/// The tile may be written.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store(tile: *mut Tile, i: usize, line: __m512i) {
    // SAFETY: as the caller promises.
    unsafe { _mm512_store_si512((&raw mut (*tile)[i]).cast(), line) }
}

/// Up to 16 rows of floats of a matrix as the file has it.
pub(super) struct FloatGroup<W> {
    first: *const u8,
    row_bytes: usize,
    n_rows: usize,
    ty: PhantomData<W>,
}

impl<W: Weights> Group for FloatGroup<W> {
    unsafe fn new(w: &MatrixRef, i: usize) -> Self {
        let n_rows = ROWS.min(w.rows - i * ROWS);
        Self { first: w.row(i * ROWS).as_ptr(), row_bytes: w.row_bytes(), n_rows, ty: PhantomData }
    }

    unsafe fn unpack(&self, i: usize, high: *mut Tile, low: *mut Tile) {
        // SAFETY: passed on.
        unsafe { unpack_floats(self, i, high, low) }
    }

    #[inline(always)]
    fn fetch(&self, i: usize) {
        let first = self.first.wrapping_add(i * COLS * W::BYTES);
        (0..self.n_rows).for_each(|r| fetch(first.wrapping_add(r * self.row_bytes)));
    }
}

/// [`Group::unpack`] of a group of floats.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
unsafe fn unpack_floats<W: Weights>(group: &FloatGroup<W>, i: usize, high: *mut Tile, low: *mut Tile) {
    let mut digits = [[_mm512_setzero_si512(); ROWS]; 2];
    // SAFETY: the matrix has these columns of these rows.
    unsafe {
        let [first, second] = &mut digits;
        for (r, (first, second)) in first.iter_mut().zip(second).enumerate().take(group.n_rows) {
            let at = group.first.add(r * group.row_bytes + i * COLS * W::BYTES);
            let x = [W::load::<Avx512>(at), W::load::<Avx512>(at.add(COLS / 2 * W::BYTES))];
            [*first, *second] = round(x);
        }
        transpose(&digits[0], high);
        if !low.is_null() {
            transpose(&digits[1], low);
        }
    }
}

/// Writes 16 rows of 16 pairs as 16 lines of the pairs of 16 rows.
///
/// # Safety
/// The tile may be written.
#[target_feature(enable = "avx512f")]
unsafe fn transpose(rows: &[__m512i; ROWS], to: *mut Tile) {
    // Quarter `l` of `fours[q][c]` is pair `4 l + c` of rows `4 q` to `4 q + 3`.
    let mut fours = [[_mm512_setzero_si512(); 4]; 4];
    for (q, fours) in fours.iter_mut().enumerate() {
        let r = &rows[4 * q..][..4];
        let (low01, high01) = (_mm512_unpacklo_epi32(r[0], r[1]), _mm512_unpackhi_epi32(r[0], r[1]));
        let (low23, high23) = (_mm512_unpacklo_epi32(r[2], r[3]), _mm512_unpackhi_epi32(r[2], r[3]));
        fours[0] = _mm512_unpacklo_epi64(low01, low23);
        fours[1] = _mm512_unpackhi_epi64(low01, low23);
        fours[2] = _mm512_unpacklo_epi64(high01, high23);
        fours[3] = _mm512_unpackhi_epi64(high01, high23);
    }
    let [a, b, d, e] = fours;
    for (c, (((a, b), d), e)) in a.into_iter().zip(b).zip(d).zip(e).enumerate() {
        let even = [_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(d, e, 0x88)];
        let odd = [_mm512_shuffle_i32x4(a, b, 0xdd), _mm512_shuffle_i32x4(d, e, 0xdd)];
        // SAFETY: passed on.
        unsafe {
            store(to, c, _mm512_shuffle_i32x4(even[0], even[1], 0x88));
            store(to, 4 + c, _mm512_shuffle_i32x4(odd[0], odd[1], 0x88));
            store(to, 8 + c, _mm512_shuffle_i32x4(even[0], even[1], 0xdd));
            store(to, 12 + c, _mm512_shuffle_i32x4(odd[0], odd[1], 0xdd));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_pairs_become_lines_of_rows() {
        if !super::super::is_supported() {
            return;
        }
        // SAFETY: the CPU has the features; both have 16 times 16 pairs.
        unsafe {
            let pairs: [[u32; 16]; ROWS] = std::array::from_fn(|r| std::array::from_fn(|p| (100 * r + p) as u32));
            let rows = pairs.map(|row| _mm512_loadu_si512(row.as_ptr().cast()));
            let mut tile = [super::super::super::bf16::Line::ZERO; 16];
            transpose(&rows, &mut tile);
            let lines: [[u32; ROWS]; 16] = std::mem::transmute(tile);
            for (p, line) in lines.iter().enumerate() {
                assert_eq!(*line, std::array::from_fn(|r| (100 * r + p) as u32), "line {p}");
            }
        }
    }
}
