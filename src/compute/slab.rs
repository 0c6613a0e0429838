//! Memory for weights: a few large pieces instead of one per matrix, so that the system can back them with huge pages. A
//! generated token reads every weight once, and with small pages every 4 KiB of that begin with a walk through page tables.

use std::ops::Range;
use std::sync::Arc;

use super::SharedBuf;

/// Bytes per slab, unless there will be fewer in all. Of the last one only what is used becomes resident.
const SLAB: usize = 64 << 20;

/// Where matrices start: on cache lines, as the kernels want them.
const ALIGN: usize = 64;

/// Hands out pieces of slabs.
pub struct Slabs {
    current: Option<Arc<SharedBuf<u8>>>,
    used: usize,
    len: usize,
}

/// A piece of a slab.
#[derive(Clone)]
pub struct Piece {
    slab: Arc<SharedBuf<u8>>,
    range: Range<usize>,
}

impl Slabs {
    /// Slabs for about `n_bytes` in all.
    pub fn for_bytes(n_bytes: u64) -> Self {
        let len = usize::try_from(n_bytes).map_or(SLAB, |n| n.min(SLAB)).next_multiple_of(ALIGN);
        Self { current: None, used: 0, len }
    }

    /// `len` zeroed bytes that start on a cache line.
    pub fn take(&mut self, len: usize) -> Piece {
        if len > self.len / 2 {
            let slab = SharedBuf::new(len);
            slab.advise_huge_pages();
            return Piece { slab: Arc::new(slab), range: 0..len };
        }
        let slab = match self.current.take() {
            Some(slab) if self.used + len <= self.len => slab,
            _ => {
                self.used = 0;
                let slab = SharedBuf::new(self.len);
                slab.advise_huge_pages();
                Arc::new(slab)
            }
        };
        let start = self.used;
        self.used = (start + len).next_multiple_of(ALIGN);
        self.current = Some(slab.clone());
        Piece { slab, range: start..start + len }
    }
}

impl Piece {
    /// Bytes in the piece.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// The bytes.
    ///
    /// # Safety
    /// As [`SharedBuf::get`].
    pub unsafe fn get(&self) -> &[u8] {
        // SAFETY: passed on to the caller.
        unsafe { self.slab.get(self.range.clone()) }
    }

    /// The bytes `range` of the piece, to write.
    ///
    /// # Safety
    /// As [`SharedBuf::get_mut`].
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn get_mut(&self, range: Range<usize>) -> &mut [u8] {
        assert!(range.end <= self.len(), "{range:?} of {}", self.len());
        let start = self.range.start;
        // SAFETY: passed on to the caller.
        unsafe { self.slab.get_mut(start + range.start..start + range.end) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_apart_and_on_cache_lines() {
        let mut slabs = Slabs::for_bytes(u64::MAX);
        let sizes = [1, 63, 64, 65, 0, SLAB / 2, SLAB / 2, SLAB / 2 + 1, 10];
        let pieces: Vec<Piece> = sizes.iter().map(|&n| slabs.take(n)).collect();
        for (i, piece) in pieces.iter().enumerate() {
            assert_eq!(piece.len(), sizes[i]);
            // SAFETY: nobody else has the piece.
            let bytes = unsafe { piece.get_mut(0..piece.len()) };
            assert!(bytes.as_ptr().addr().is_multiple_of(ALIGN));
            if let Some(first) = bytes.first_mut() {
                assert_eq!(*first, 0, "piece {i} overlaps another");
                *first = 1;
            }
            if let Some(last) = bytes.last_mut() {
                *last = 1;
            }
        }
    }
}
