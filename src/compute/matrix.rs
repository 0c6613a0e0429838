//! Weight matrices: a view of the file's bytes, or an owned copy, packed for this CPU where there is a packed kernel.

use std::ops::{Deref, Range};
use std::sync::Arc;

use ggml_ext::GgmlType;
use ggml_ext::pack::{self, MatrixRef};

use super::slab::{Piece, Slabs};

/// The bytes of a model file.
pub enum FileBytes {
    /// Mapped from a file.
    Mapped(memmap2::Mmap),
    /// Part of the program (the embedded model) or of a test.
    Static(&'static [u8]),
    /// Held in memory.
    Owned(Vec<u8>),
}

impl Deref for FileBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(m) => m,
            Self::Static(b) => b,
            Self::Owned(v) => v,
        }
    }
}

impl FileBytes {
    /// Tells the system that the pages of `range` are not needed again, so that they stop counting as resident.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self {
            // Whole pages of the usual size, for neighbours may belong to a tensor that is read from the map; larger ones are read again
            // from the file where that takes too much.
            let page = 4096;
            let (start, end) = (range.start.next_multiple_of(page), range.end / page * page);
            if start < end {
                // SAFETY: a read-only file mapping; dropped pages are read again from the file when touched. Failure
                // costs memory, not correctness.
                let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
            }
        }
    }
}

enum Storage {
    File(Arc<FileBytes>, Range<usize>),
    Owned(Piece),
}

/// A weight matrix of `rows` x `cols`, row-major: it maps a vector of `cols` to one of `rows`.
pub struct Matrix {
    ty: GgmlType,
    rows: usize,
    cols: usize,
    packed: bool,
    storage: Storage,
}

/// How a matrix is to be held in memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Packed where the type has a packed layout, else left in the file's mapping.
    Packed,
    /// Packed where the type has a packed layout, else copied, so that the mapping can go.
    Copied,
    /// Left in the file's mapping whatever its type, to see what a model is made of and not to run it.
    Unread,
}

/// Bytes packed at a time.
const SLICE_BYTES: usize = 4 << 20;

impl Matrix {
    /// The matrix of `[rows, cols]` whose rows lie at `range` of `file`, packed by the members of `pool` together.
    ///
    /// # Panics
    /// If `range` is not `rows` rows of `cols` elements of `ty` inside the file; the loader has checked that.
    pub fn load(
        ty: GgmlType,
        [rows, cols]: [usize; 2],
        file: &Arc<FileBytes>,
        range: Range<usize>,
        hold: Hold,
        pool: &mut super::Pool,
        slabs: &mut Slabs,
    ) -> Self {
        let src = &file[range.clone()];
        assert_eq!(ty.row_bytes(cols).and_then(|b| b.checked_mul(rows)), Some(src.len()));
        let packed_bytes = pack::packed_bytes(ty, rows, cols).filter(|_| hold != Hold::Unread);
        let storage = match (packed_bytes, hold) {
            (Some(len), _) => {
                let dst = slabs.take(len);
                let groups = rows.div_ceil(pack::ROWS);
                let (row_bytes, group_bytes) = (src.len() / rows.max(1), len / groups.max(1));
                // Slice by slice, each released when it is packed, so that no large matrix is resident twice.
                let slice = (SLICE_BYTES / group_bytes.max(1)).max(pool.n_threads());
                for first in (0..groups).step_by(slice) {
                    let last = (first + slice).min(groups);
                    pool.run(|w| {
                        let g = w.share(last - first);
                        let (start, end) = (first + g.start, first + g.end);
                        let part = start * pack::ROWS..(end * pack::ROWS).min(rows);
                        // SAFETY: row groups are shared out disjointly.
                        let dst = unsafe { dst.get_mut(start * group_bytes..end * group_bytes) };
                        pack::pack_rows(ty, cols, part, src, dst);
                    });
                    let done = (last * pack::ROWS).min(rows) * row_bytes;
                    file.release(range.start + first * pack::ROWS * row_bytes..range.start + done);
                }
                return Self { ty, rows, cols, packed: true, storage: Storage::Owned(dst) };
            }
            (None, Hold::Copied) => {
                let dst = slabs.take(src.len());
                // SAFETY: nobody else has this piece yet.
                unsafe { dst.get_mut(0..src.len()) }.copy_from_slice(src);
                file.release(range);
                Storage::Owned(dst)
            }
            (None, Hold::Packed | Hold::Unread) => Storage::File(file.clone(), range),
        };
        Self { ty, rows, cols, packed: false, storage }
    }

    /// The matrix of `[rows, cols]` whose rows lie at `range` of `file`, left there as they are.
    ///
    /// # Panics
    /// As [`Matrix::load`].
    pub fn of_file(ty: GgmlType, [rows, cols]: [usize; 2], file: &Arc<FileBytes>, range: Range<usize>) -> Self {
        assert_eq!(ty.row_bytes(cols).and_then(|b| b.checked_mul(rows)), Some(file[range.clone()].len()));
        Self { ty, rows, cols, packed: false, storage: Storage::File(file.clone(), range) }
    }

    /// The element type in the file.
    pub fn ty(&self) -> GgmlType {
        self.ty
    }

    /// Length of the result vector.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Length of the operand vector.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes the weights occupy in memory.
    pub fn n_bytes(&self) -> usize {
        self.view().data.len()
    }

    /// False for F32, F16 and BF16, whose elements are numbers of their own and not codes with a scale.
    pub fn is_quantized(&self) -> bool {
        !self.ty.is_float()
    }

    /// What the kernels compute with.
    pub fn view(&self) -> MatrixRef<'_> {
        let data = match &self.storage {
            Storage::File(file, range) => &file[range.clone()],
            // SAFETY: weights are written while they are loaded and only read afterwards.
            Storage::Owned(piece) => unsafe { piece.get() },
        };
        MatrixRef { ty: self.ty, rows: self.rows, cols: self.cols, data, packed: self.packed }
    }

    /// The matrix of the rows `part` alone, which begins and ends at multiples of [`pack::ROWS`].
    pub fn rows_view(&self, part: Range<usize>) -> MatrixRef<'_> {
        let all = self.view();
        assert!(part.start.is_multiple_of(pack::ROWS) && part.end.is_multiple_of(pack::ROWS) && part.end <= self.rows);
        let unit = if self.packed { pack::ROWS } else { 1 };
        let bytes = all.data.len() / self.rows.div_ceil(unit);
        let at = |row: usize| row / unit * bytes;
        MatrixRef { rows: part.len(), data: &all.data[at(part.start)..at(part.end)], ..all }
    }

    /// Row `row` as floats: the embedding of a token.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        pack::unpack_row(&self.view(), row, out);
    }
}

/// A matrix, and what some families make of its result: `scale * W x + bias`.
pub struct Linear {
    /// The tensor in the file that the weights are, or are rows of.
    pub name: Box<str>,
    /// The weights.
    pub weight: Matrix,
    /// The factor, where there is one.
    pub scale: Option<f32>,
    /// One value per row, or nothing.
    pub bias: Option<Box<[f32]>>,
}

impl Linear {
    /// Multiplies results with `factor`, and with them the bias.
    pub fn scale_by(&mut self, factor: f32) {
        self.bias.iter_mut().flatten().for_each(|b| *b *= factor);
        self.scale = Some(self.scale.unwrap_or(1.0) * factor);
    }
}
