//! The memory of a cache: in one piece, so that it can have huge pages. Read from front to back on Zen 3, memory gives a core 15 GB/s in small
//! pages and 19 in huge ones. The rows of a head lie one after the other, so that a query's pass over a head is a linear read.

use std::ops::Range;
use std::sync::Arc;

use ggml_ext::kernels::float::Rows;

use crate::compute::SharedBuf;
use crate::{Error, Result};

/// Most bytes that have huge pages: with these a head's memory is resident from its first position on, and so nearly the whole of what may never be
/// needed.
const MOST_HUGE: usize = 1 << 30;

/// Memory of layers with room for equally many positions.
pub(super) struct CacheMemory {
    bytes: Arc<SharedBuf<u8>>,
    n_positions: usize,
    /// Bytes of a position in all layers.
    position_bytes: usize,
    /// How many of them have been given to rows.
    given: usize,
}

impl CacheMemory {
    /// Memory for `n_positions` of `position_bytes` each, `None` standing for more than can be counted.
    ///
    /// # Errors
    /// [`Error::Impossible`] when there is not so much memory.
    pub fn new(n_positions: usize, position_bytes: Option<usize>) -> Result<Self> {
        let n_bytes = position_bytes.and_then(|n| n.checked_mul(n_positions)).filter(|&n| n <= isize::MAX as usize / 2);
        let bytes = n_bytes.and_then(SharedBuf::try_new).ok_or_else(|| {
            Error::Impossible(format!("a context of {n_positions} tokens needs more memory than there is: lower -c"))
        })?;
        if bytes.len() <= MOST_HUGE {
            bytes.advise_huge_pages();
        }
        Ok(Self { bytes: bytes.into(), n_positions, position_bytes: position_bytes.unwrap_or(0), given: 0 })
    }

    /// Positions there is room for.
    pub fn n_positions(&self) -> usize {
        self.n_positions
    }

    /// The next rows, of `row_bytes` for every head and position.
    ///
    /// # Panics
    /// When that is more than the memory was made for.
    pub fn rows(&mut self, n_head: usize, row_bytes: usize) -> HeadRows {
        let before = self.given;
        self.given += n_head * row_bytes;
        assert!(self.given <= self.position_bytes, "rows of {row_bytes} bytes that were not counted");
        let n_positions = self.n_positions;
        HeadRows { bytes: self.bytes.clone(), n_positions, n_head, row_bytes, first: n_positions * before }
    }
}

/// The rows of one kind that one layer has, for every head and position; later positions take the places of earlier ones when there is
/// no more room.
pub(super) struct HeadRows {
    bytes: Arc<SharedBuf<u8>>,
    n_positions: usize,
    n_head: usize,
    row_bytes: usize,
    /// Where the first is.
    first: usize,
}

impl HeadRows {
    /// Bytes of all of them.
    pub fn n_bytes(&self) -> usize {
        self.n_positions * self.n_head * self.row_bytes
    }

    /// Heads.
    pub fn n_head(&self) -> usize {
        self.n_head
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Where the rows `positions` of `head` lie, which do not reach over the end.
    fn place(&self, head: usize, positions: Range<usize>) -> Range<usize> {
        let (place, n) = (positions.start % self.n_positions, positions.len());
        assert!(head < self.n_head && place + n <= self.n_positions, "{positions:?} of head {head}");
        let first = self.first + (head * self.n_positions + place) * self.row_bytes;
        first..first + n * self.row_bytes
    }

    /// The rows `positions` of `head`, which do not reach over the end.
    ///
    /// # Safety
    /// Nobody writes them before the next barrier.
    pub unsafe fn get(&self, head: usize, positions: Range<usize>) -> &[u8] {
        // SAFETY: passed on to the caller.
        unsafe { self.bytes.get(self.place(head, positions)) }
    }

    /// [`HeadRows::get`], to write.
    ///
    /// # Safety
    /// No other member touches them before the next barrier, and the caller holds no other reference to them.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn get_mut(&self, head: usize, positions: Range<usize>) -> &mut [u8] {
        // SAFETY: passed on to the caller.
        unsafe { self.bytes.get_mut(self.place(head, positions)) }
    }

    /// The address of the rows `positions` of `head`, which do not reach over the end.
    pub fn as_ptr(&self, head: usize, positions: Range<usize>) -> *mut u8 {
        let bytes = self.place(head, positions);
        assert!(bytes.end <= self.bytes.len());
        self.bytes.as_ptr().wrapping_add(bytes.start)
    }

    /// The bytes of the rows `positions`, which do not reach over the end, a row per head.
    ///
    /// # Safety
    /// Nobody writes them before the next barrier.
    pub unsafe fn heads(&self, positions: Range<usize>) -> Rows<'_, u8> {
        let (first, stride) = (self.place(0, positions), self.n_positions * self.row_bytes);
        assert!(first.end + (self.n_head - 1) * stride <= self.bytes.len());
        // SAFETY: in bounds by the assertion; the caller promises that there is no writer.
        unsafe { Rows::from_raw(self.bytes.as_ptr().add(first.start), self.n_head, first.len(), stride) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row of every kind has a place of its own, and all of them fill the memory.
    #[test]
    fn rows_fill_the_memory() {
        for n_positions in [64, 1024 + 192] {
            let mut memory = CacheMemory::new(n_positions, Some(2 * 6 + 3 * 4)).unwrap();
            let rows = [memory.rows(2, 6), memory.rows(3, 4)];
            let mut owner = vec![None; n_positions * 24];
            for (kind, rows) in rows.iter().enumerate() {
                assert_eq!(rows.n_bytes(), n_positions * 12);
                for (head, pos) in (0..rows.n_head()).flat_map(|h| (0..n_positions).map(move |p| (h, p))) {
                    let place = rows.place(head, pos..pos + 1);
                    assert_eq!(place, rows.place(head, pos + n_positions..pos + n_positions + 1));
                    owner[place].iter_mut().for_each(|o| assert!(o.replace((kind, head, pos)).is_none()));
                }
                assert_eq!(rows.place(1, 0..n_positions).len(), n_positions * rows.row_bytes);
            }
            assert!(owner.iter().all(Option::is_some));
        }
    }

    #[test]
    fn too_many_positions_are_counted_one_by_one() {
        let refused = CacheMemory::new(1 << 50, Some(1 << 32)).err().unwrap().to_string();
        assert!(refused.contains(&format!("a context of {} tokens", 1u64 << 50)), "{refused}");
    }

    #[test]
    #[should_panic(expected = "not counted")]
    fn memory_is_not_given_twice() {
        CacheMemory::new(64, Some(10)).unwrap().rows(2, 6);
    }
}
