//! How work is cut into chunks that members of a team take in turn.
//!
//! Chunks get smaller towards the end: large ones because each costs something to begin (a product looks through the activations
//! first), small ones last so that nobody waits long for the slowest. A member that is held up in a large chunk leaves the rest to the
//! others.

use std::ops::Range;

/// Fewest and most units in the smallest chunk, where there are enough.
const SMALLEST: Range<usize> = 2..32;

/// Halvings of a member's share that are made if chunks do not become too small by it.
const HALVINGS: u32 = 3;

/// A number of units of work, cut up.
#[derive(Debug, Clone, Copy)]
pub struct Chunks {
    n_units: usize,
    n_members: usize,
    /// The members' chunks are a half, a quarter ... of their shares, so many times, and then once more what the last was.
    halvings: u32,
}

impl Chunks {
    /// Cuts `n_units` up for `n_members`.
    pub fn new(n_units: usize, n_members: usize) -> Self {
        let smallest = |halvings: u32| n_units / (n_members << halvings);
        let mut halvings = 0;
        while n_members > 1
            && smallest(halvings + 1) >= SMALLEST.start
            && (halvings < HALVINGS || smallest(halvings) > SMALLEST.end)
        {
            halvings += 1;
        }
        Self { n_units, n_members, halvings }
    }

    /// How many chunks there are; some may be empty.
    pub fn n_chunks(&self) -> usize {
        self.n_members * (self.halvings as usize + 1)
    }

    /// The units of a chunk. Together the chunks cover all of them, in order.
    pub fn chunk(&self, i: usize) -> Range<usize> {
        self.start(i)..self.start(i + 1)
    }

    /// Where chunk `i` starts.
    fn start(&self, i: usize) -> usize {
        // In parts as large as the smallest chunk.
        let all = 1 << self.halvings;
        let (round, member) = (i / self.n_members, i % self.n_members);
        let left = all >> round;
        let parts = self.n_members * (all - left) + member * (left / 2).max(1);
        parts * self.n_units / (self.n_members * all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_everything_once_and_get_smaller() {
        for n_members in [1, 2, 3, 4, 7, 16, 64] {
            for n_units in (0..100).chain([192, 3072, 3211, 8191]) {
                let cut = Chunks::new(n_units, n_members);
                let chunks: Vec<_> = (0..cut.n_chunks()).map(|i| cut.chunk(i)).collect();
                let mut end = 0;
                for chunk in &chunks {
                    assert_eq!(chunk.start, end, "{n_units} for {n_members}");
                    end = chunk.end;
                }
                assert_eq!(end, n_units, "{n_units} for {n_members}");
                // To within rounding.
                assert!(
                    chunks.windows(2).all(|c| c[1].len() <= c[0].len() + 1),
                    "{n_units} for {n_members}: {chunks:?}"
                );
            }
        }
    }

    #[test]
    fn a_member_alone_takes_all() {
        assert_eq!((Chunks::new(500, 1).n_chunks(), Chunks::new(500, 1).chunk(0)), (1, 0..500));
    }

    #[test]
    fn the_last_chunks_are_small_but_not_tiny() {
        let sizes = |n_units, n_members| {
            let cut = Chunks::new(n_units, n_members);
            (0..cut.n_chunks()).map(|i| cut.chunk(i).len()).collect::<Vec<_>>()
        };
        assert_eq!(sizes(64, 2), [16, 16, 8, 8, 4, 4, 4, 4]);
        assert_eq!(sizes(8, 2), [2, 2, 2, 2]);
        assert_eq!(sizes(3, 2), [1, 2]);
        assert!(sizes(3072, 2).last().is_some_and(|&n| n <= 32), "a vocabulary's");
    }
}
