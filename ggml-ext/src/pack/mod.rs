//! Weight layouts for SIMD: 16 rows of a matrix interleaved, so that one vector lane computes one row.
//!
//! In a file a row's blocks follow each other, and a kernel that reads them has to shuffle codes within a vector and to
//! add up its lanes at the end of every row. Packed, neither is needed: the codes of 16 rows lie together in the order
//! in which a product consumes them, and the quantisation stays bit for bit what the file says, so that a packed
//! matrix can be turned back into the file's bytes ([`unpack_row`] does).
//!
//! # Layout
//! A matrix is a sequence of *groups* of [`ROWS`] rows; the last one is filled up with zero rows. A group holds, for all
//! its columns, first the codes and then the scales, and starts at a multiple of [`ALIGN`] bytes.
//!
//! **Codes.** 32 columns of 16 rows are stored as bit planes of 1, 2, 4 or 8 bits: a type of 6-bit codes has a plane
//! of the low 4 bits and one of the high 2 (`LOW` and `HIGH` of the trait `Packed`). A plane of `b` bits is `b` *lines* of 64
//! bytes. Byte `4 * row + c` of a line belongs to column `c` of a *quad*, four consecutive columns: the operand of one
//! 4-way int8 dot product. Quad `g` of the eight is in line `g % b`, at bit `b * (g / b)` of each byte, so that one load
//! serves several quads.
//!
//! **Scales.** For every block of the type: its 16-bit fields, each for 16 rows, then its 8-bit fields, each for 16
//! rows. The 6-bit scales of the K types become bytes, which costs at most 4 % of the size. Only the lattice types, whose points
//! become codes, and TQ1_0 grow by more.

mod k_quants;
mod lattice;
mod small_blocks;
mod ternary;

pub(crate) use k_quants::{Iq4Xs, Q2K, Q3K, Q4K, Q5K, Q6K};
pub(crate) use lattice::Points;
pub(crate) use small_blocks::{Iq4Nl, Mxfp4, Nvfp4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
pub(crate) use ternary::{Q1_0, Q2_0, Tq1_0, Tq2_0};

use std::ops::Range;

use crate::GgmlType;
use crate::blocks::{MAX_LEN, dequantize_row};

/// Rows per group.
pub const ROWS: usize = 16;

/// Groups start at multiples of this many bytes; align the buffer to it as well, so that no line straddles two cache
/// lines.
pub const ALIGN: usize = 64;

/// Columns that share a set of lines.
pub(crate) const COLS: usize = 32;

/// Bytes per line: 16 rows x 4 columns.
pub(crate) const LINE: usize = 64;

/// A weight matrix as the kernels see it.
#[derive(Debug, Clone, Copy)]
pub struct MatrixRef<'a> {
    /// Element type in the file.
    pub ty: GgmlType,
    /// Rows: the length of the product.
    pub rows: usize,
    /// Columns: the length of the operand; a multiple of the type's block length.
    pub cols: usize,
    /// The file's bytes, row after row, or the packed groups.
    pub data: &'a [u8],
    /// Whether `data` is packed.
    pub packed: bool,
}

impl<'a> MatrixRef<'a> {
    /// Bytes of one row as stored in the file.
    ///
    /// # Panics
    /// If the columns are not whole blocks.
    pub fn row_bytes(&self) -> usize {
        self.ty.row_bytes(self.cols).unwrap_or_else(|| panic!("{} columns of {}", self.cols, self.ty))
    }

    /// The bytes of one row of a matrix that is not packed.
    ///
    /// # Panics
    /// If `row` is out of range, or `data` too short.
    pub fn row(&self, row: usize) -> &'a [u8] {
        assert!(!self.packed && row < self.rows, "row {row} of {}", self.rows);
        let n = self.row_bytes();
        &self.data[row * n..(row + 1) * n]
    }

    /// The bytes of one group of a packed matrix.
    ///
    /// # Panics
    /// If `group` is out of range, or `data` too short.
    pub(crate) fn group(&self, group: usize) -> &'a [u8] {
        assert!(self.packed);
        let n = group_bytes(self.ty, self.cols).expect("a packed matrix is of a type with a packed layout");
        &self.data[group * n..(group + 1) * n]
    }
}

/// How the blocks of a type split into codes and scales.
pub(crate) trait Packed {
    /// The type's row in the table.
    const TYPE: GgmlType;
    /// Bits in the first plane.
    const LOW: usize;
    /// Bits in the second plane; 0 if there is none.
    const HIGH: usize = 0;
    /// 16-bit fields per block.
    const WORDS: usize;
    /// 8-bit fields per block.
    const BYTES: usize;

    /// Takes a block apart, losing nothing. Slices have the lengths of the block and of its parts.
    fn split(block: &[u8], codes: &mut [u8], words: &mut [u16], bytes: &mut [u8]);

    /// The inverse of [`Packed::split`]; `block` arrives zeroed.
    fn join(codes: &[u8], words: &[u16], bytes: &[u8], block: &mut [u8]);

    /// Elements per block.
    const LEN: usize = Self::TYPE.block_len();
    /// Bytes of the lines of 32 columns.
    const LINES_BYTES: usize = (Self::LOW + Self::HIGH) * LINE;
    /// Bytes of a group's fields for one block.
    const FIELDS_BYTES: usize = ROWS * (2 * Self::WORDS + Self::BYTES);
}

/// Runs `$body` with `$P` naming the packed layout of a type, or `$none` if it has none.
macro_rules! with_packed {
    ($ty:expr, $P:ident => $body:expr, else => $none:expr) => {
        $crate::pack::with_packed!(@match $ty, $P, $body, $none,
            Q4_0 => Q4_0, Q4_1 => Q4_1, Q5_0 => Q5_0, Q5_1 => Q5_1, Q8_0 => Q8_0, IQ4_NL => Iq4Nl, MXFP4 => Mxfp4,
            NVFP4 => Nvfp4, Q2_K => Q2K, Q3_K => Q3K, Q4_K => Q4K, Q5_K => Q5K, Q6_K => Q6K, IQ4_XS => Iq4Xs,
            IQ1_S => Points<$crate::blocks::IQ1_S>, IQ1_M => Points<$crate::blocks::IQ1_M>,
            IQ2_XXS => Points<$crate::blocks::IQ2_XXS>, IQ2_XS => Points<$crate::blocks::IQ2_XS>,
            IQ2_S => Points<$crate::blocks::IQ2_S>, IQ3_XXS => Points<$crate::blocks::IQ3_XXS>,
            IQ3_S => Points<$crate::blocks::IQ3_S>, TQ1_0 => Tq1_0, TQ2_0 => Tq2_0, Q1_0 => Q1_0, Q2_0 => Q2_0)
    };
    (@match $ty:expr, $P:ident, $body:expr, $none:expr, $($variant:ident => $layout:ident $(<$block:path>)?),*) => {
        match $ty {
            $($crate::GgmlType::$variant => {
                type $P = $crate::pack::$layout$(<$block>)?;
                $body
            })*
            _ => $none,
        }
    };
}
pub(crate) use with_packed;

/// Bytes a packed matrix occupies; `None` if the type has no packed layout, `cols` is not a multiple of its block or
/// the product overflows.
pub fn packed_bytes(ty: GgmlType, rows: usize, cols: usize) -> Option<usize> {
    group_bytes(ty, cols)?.checked_mul(rows.div_ceil(ROWS))
}

/// Bytes from one group to the next; `None` as [`packed_bytes`].
pub(crate) fn group_bytes(ty: GgmlType, cols: usize) -> Option<usize> {
    let (lines, fields) = with_packed!(ty, P => (P::LINES_BYTES, P::FIELDS_BYTES), else => return None);
    if !cols.is_multiple_of(ty.block_len()) {
        return None;
    }
    let codes = (cols / COLS).checked_mul(lines)?;
    codes.checked_add((cols / ty.block_len()).checked_mul(fields)?)?.checked_next_multiple_of(ALIGN)
}

/// Packs rows `rows` of the matrix whose file bytes are `src` into `dst`, the packed bytes of just those rows. Disjoint
/// ranges may be packed by several threads.
///
/// # Panics
/// If `rows` does not start at a multiple of [`ROWS`], or the buffers do not have the lengths that `ty`, `cols` and
/// `rows` call for.
pub fn pack_rows(ty: GgmlType, cols: usize, rows: Range<usize>, src: &[u8], dst: &mut [u8]) {
    assert!(rows.start.is_multiple_of(ROWS), "rows {rows:?} do not start a group");
    assert_eq!(packed_bytes(ty, rows.len(), cols), Some(dst.len()), "{} x {cols} of {ty}", rows.len());
    let row_bytes = ty.row_bytes(cols).expect("checked by packed_bytes");
    let Some(group_bytes) = group_bytes(ty, cols).filter(|&n| n > 0) else { return };
    let src = &src[rows.start * row_bytes..rows.end * row_bytes];
    for (src, dst) in src.chunks(ROWS * row_bytes).zip(dst.chunks_exact_mut(group_bytes)) {
        dst.fill(0);
        for (row, src) in src.chunks_exact(row_bytes).enumerate() {
            with_packed!(ty, P => pack_row::<P>(row, src, cols, dst), else => unreachable!("{ty} has a packed layout"));
        }
    }
}

/// Writes one row into its zeroed place in a group.
fn pack_row<P: Packed>(row: usize, src: &[u8], cols: usize, group: &mut [u8]) {
    let (lines, fields) = group.split_at_mut(cols / COLS * P::LINES_BYTES);
    let (mut codes, mut words, mut bytes) = ([0; MAX_LEN], [0; 2], [0; 16]);
    let (codes, words, bytes) = (&mut codes[..P::LEN], &mut words[..P::WORDS], &mut bytes[..P::BYTES]);
    let blocks = src.chunks_exact(P::TYPE.block_bytes());
    let lines = lines.chunks_exact_mut(P::LINES_BYTES * P::LEN / COLS);
    for ((block, lines), fields) in blocks.zip(lines).zip(fields.chunks_exact_mut(P::FIELDS_BYTES)) {
        P::split(block, codes, words, bytes);
        for (codes, lines) in codes.chunks_exact(COLS).zip(lines.chunks_exact_mut(P::LINES_BYTES)) {
            for (g, quad) in codes.chunks_exact(4).enumerate() {
                let quad = u32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]]);
                put_plane(P::LOW, g, row, quad & spread(P::LOW), lines);
                if P::HIGH > 0 {
                    put_plane(P::HIGH, g, row, quad >> P::LOW & spread(P::HIGH), &mut lines[P::LOW * LINE..]);
                }
            }
        }
        for (i, word) in words.iter().enumerate() {
            let at = 2 * (ROWS * i + row);
            fields[at..at + 2].copy_from_slice(&word.to_le_bytes());
        }
        for (i, &byte) in bytes.iter().enumerate() {
            fields[ROWS * (2 * P::WORDS + i) + row] = byte;
        }
    }
}

/// One row out of a group, as the file has it: the inverse of [`pack_row`]; `out` gets one block at a time.
fn unpack_blocks<P: Packed>(row: usize, cols: usize, group: &[u8], mut out: impl FnMut(&[u8])) {
    let (lines, fields) = group.split_at(cols / COLS * P::LINES_BYTES);
    let (mut codes, mut words, mut bytes) = ([0; MAX_LEN], [0; 2], [0; 16]);
    let (codes, words, bytes) = (&mut codes[..P::LEN], &mut words[..P::WORDS], &mut bytes[..P::BYTES]);
    let mut block = [0; 256];
    let lines = lines.chunks_exact(P::LINES_BYTES * P::LEN / COLS);
    for (lines, fields) in lines.zip(fields.chunks_exact(P::FIELDS_BYTES)) {
        for (codes, lines) in codes.chunks_exact_mut(COLS).zip(lines.chunks_exact(P::LINES_BYTES)) {
            for (g, quad) in codes.chunks_exact_mut(4).enumerate() {
                let mut value = get_plane(P::LOW, g, row, lines) & spread(P::LOW);
                if P::HIGH > 0 {
                    value |= (get_plane(P::HIGH, g, row, &lines[P::LOW * LINE..]) & spread(P::HIGH)) << P::LOW;
                }
                quad.copy_from_slice(&value.to_le_bytes());
            }
        }
        for (i, word) in words.iter_mut().enumerate() {
            let at = 2 * (ROWS * i + row);
            *word = u16::from_le_bytes([fields[at], fields[at + 1]]);
        }
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = fields[ROWS * (2 * P::WORDS + i) + row];
        }
        let block = &mut block[..P::TYPE.block_bytes()];
        block.fill(0);
        P::join(codes, words, bytes, block);
        out(block);
    }
}

/// The low `bits` bits of each of four bytes.
#[inline(always)]
fn spread(bits: usize) -> u32 {
    ((1_u32 << bits) - 1) * 0x0101_0101
}

/// Where in a plane the four codes of quad `g` of a row are: position of its bytes, shift within them.
#[inline(always)]
fn place(bits: usize, g: usize, row: usize) -> (usize, usize) {
    (g % bits * LINE + 4 * row, bits * (g / bits))
}

#[inline(always)]
fn put_plane(bits: usize, g: usize, row: usize, quad: u32, plane: &mut [u8]) {
    let (at, shift) = place(bits, g, row);
    let bytes: &mut [u8; 4] = plane[at..].first_chunk_mut().expect("a line holds four bytes per row");
    *bytes = (u32::from_le_bytes(*bytes) | quad << shift).to_le_bytes();
}

#[inline(always)]
fn get_plane(bits: usize, g: usize, row: usize, plane: &[u8]) -> u32 {
    let (at, shift) = place(bits, g, row);
    let bytes: &[u8; 4] = plane[at..].first_chunk().expect("a line holds four bytes per row");
    u32::from_le_bytes(*bytes) >> shift
}

/// Dequantises one row, packed or not, to the same bits.
///
/// # Panics
/// If `row` is out of range, `out` is not `m.cols` long, or `m.data` is too short.
pub fn unpack_row(m: &MatrixRef, row: usize, out: &mut [f32]) {
    assert!(row < m.rows && out.len() == m.cols, "row {row} of {}, {} of {} columns", m.rows, out.len(), m.cols);
    if !m.packed {
        return dequantize_row(m.ty, m.row(row), out);
    }
    let (group, mut out) = (m.group(row / ROWS), out.chunks_exact_mut(m.ty.block_len()));
    let dequantize = |block: &[u8]| {
        if let Some(out) = out.next() {
            dequantize_row(m.ty, block, out);
        }
    };
    with_packed!(m.ty, P => unpack_blocks::<P>(row % ROWS, m.cols, group, dequantize),
        else => unreachable!("checked by MatrixRef::group"));
}

#[cfg(test)]
mod tests;
