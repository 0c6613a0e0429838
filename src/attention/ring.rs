//! What layers with a sliding window still hold of a sequence. They have room for the window and some positions more, and new
//! positions take the places of those that left it: position `p` lies at `p % n_positions`.

use super::attend::BLOCK;

/// The rows of layers with one length of window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ring {
    /// A token sees itself and the `window - 1` positions before it.
    window: usize,
    /// Positions there is room for.
    pub n_positions: usize,
    /// No position from this one on has been overwritten.
    intact: usize,
}

impl Ring {
    /// An empty ring that keeps at least `spare` positions beyond the window; `None` where that is the whole context. Blocks of keys do not
    /// wrap around its end.
    pub fn new(window: usize, spare: usize, n_ctx: usize) -> Option<Self> {
        let n_positions = window.checked_add(spare)?.checked_next_multiple_of(BLOCK)?;
        (n_positions < n_ctx).then_some(Self { window, n_positions, intact: 0 })
    }

    /// Positions up to `end` have been written.
    pub fn filled(&mut self, end: usize) {
        self.intact = self.intact.max(end.saturating_sub(self.n_positions));
    }

    /// Whether everything is there that a token at position `end` sees.
    pub fn serves(&self, end: usize) -> bool {
        end == 0 || end.saturating_sub(self.window - 1) >= self.intact
    }

    /// The first `end` positions are all there are from now on.
    pub fn cut(&mut self, end: usize) {
        if end == 0 {
            self.intact = 0;
        }
    }

    /// Positions `from + n..end` have moved down by `n`.
    pub fn moved(&mut self, from: usize, n: usize, end: usize) {
        if self.intact > from {
            self.intact = from.max(self.intact.saturating_sub(n));
        }
        self.filled(end - n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms() {
        let n = |window, spare, n_ctx| Ring::new(window, spare, n_ctx).map(|r| r.n_positions);
        assert_eq!(n(512, 512, 4096), Some(1024));
        assert_eq!(n(8, 1, 256), Some(128));
        assert_eq!(n(8, 1, 128), None);
        assert_eq!(n(usize::MAX, 1, 128), None);
    }

    /// Against a table of what each place holds.
    #[test]
    fn knows_what_is_lost() {
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..200 {
            let window = rng.usize(1..100);
            let mut ring = Ring::new(window, rng.usize(0..50), usize::MAX).unwrap();
            let n = ring.n_positions;
            // Places hold the token of a position, named by when it was written.
            let (mut places, mut sequence, mut clock) = (vec![0; n], Vec::new(), 0);
            for _ in 0..50 {
                match rng.u8(0..4) {
                    0 => {
                        sequence.truncate(rng.usize(0..=sequence.len()));
                        ring.cut(sequence.len());
                    }
                    1 if !sequence.is_empty() => {
                        let from = rng.usize(0..sequence.len());
                        let by = rng.usize(1..=sequence.len() - from);
                        let end = sequence.len();
                        sequence.drain(from..from + by);
                        let kept = places.clone();
                        for q in from.max((end - by).saturating_sub(n))..end - by {
                            places[q % n] = kept[(q + by) % n];
                        }
                        ring.moved(from, by, end);
                    }
                    _ => {
                        for _ in 0..rng.usize(1..=n - window + 1) {
                            clock += 1;
                            places[sequence.len() % n] = clock;
                            sequence.push(clock);
                        }
                        ring.filled(sequence.len());
                    }
                }
                let end = sequence.len();
                let there = |p: usize| places[p % n] == sequence[p];
                let all = (end.saturating_sub(window - 1)..end).all(there);
                assert!(all || !ring.serves(end), "a loss was missed");
                if !ring.serves(end) {
                    // The session reads the sequence again.
                    ring.cut(0);
                    (0..end).for_each(|p| places[p % n] = sequence[p]);
                    ring.filled(end);
                }
            }
        }
    }
}
