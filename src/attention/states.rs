//! Where a sequence can go on whose layers know it as a whole: at its end, and wherever a copy of their states was kept.

/// How many copies are kept: enough for a prompt that many texts have in common, for one of these, and for the place before its end.
pub(super) const COPIES: usize = 3;

/// The states of all such layers at some position.
struct Copy {
    pos: usize,
    states: Vec<f32>,
    used: u64,
}

/// The position that states are at, and copies of earlier ones.
#[derive(Default)]
pub(super) struct States {
    pos: usize,
    copies: Vec<Copy>,
    /// Counts uses, so that the copy is given up that was not used for longest.
    clock: u64,
}

impl States {
    /// Positions up to `end` have been taken in.
    pub fn filled(&mut self, end: usize) {
        self.pos = end;
    }

    /// Positions up to `end` from which the sequence can go on, the last first.
    pub fn until(&self, end: usize) -> Vec<usize> {
        let all = self.copies.iter().map(|c| c.pos).chain([self.pos, 0]);
        let mut until: Vec<usize> = all.filter(|&pos| pos <= end).collect();
        until.sort_unstable_by(|a, b| b.cmp(a));
        until
    }

    /// Goes back to `pos`, one of those. The copy to be put in place of the states, unless these are right; those that begin a sequence are
    /// made when it begins.
    pub fn back_to(&mut self, pos: usize) -> Option<&[f32]> {
        self.copies.retain(|c| c.pos <= pos);
        if std::mem::replace(&mut self.pos, pos) == pos {
            return None;
        }
        self.clock += 1;
        let copy = self.copies.iter_mut().find(|c| c.pos == pos)?;
        copy.used = self.clock;
        Some(&copy.states)
    }

    /// Room for a copy of the states as they are, unless there is one, or nothing to copy.
    pub fn room(&mut self) -> Option<&mut Vec<f32>> {
        self.clock += 1;
        if let Some(copy) = self.copies.iter_mut().find(|c| c.pos == self.pos) {
            copy.used = self.clock;
            return None;
        }
        if self.pos == 0 {
            return None;
        }
        if self.copies.len() < COPIES {
            self.copies.push(Copy { pos: 0, states: Vec::new(), used: 0 });
        }
        let copy = self.copies.iter_mut().min_by_key(|c| c.used)?;
        (copy.pos, copy.used) = (self.pos, self.clock);
        copy.states.clear();
        Some(&mut copy.states)
    }

    /// `n` positions after the first `from` are no longer counted. What is known of them stays known.
    pub fn moved(&mut self, from: usize, n: usize) {
        self.pos -= n;
        self.copies.retain(|c| c.pos <= from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(states: &mut States, pos: usize) -> bool {
        states.filled(pos);
        states.room().map(|room| room.push(pos as f32)).is_some()
    }

    #[test]
    fn goes_back_to_copies_and_nowhere_else() {
        let mut states = States::default();
        assert!(!keep(&mut states, 0), "a sequence's beginning needs no copy");
        assert!(keep(&mut states, 10) && !keep(&mut states, 10) && keep(&mut states, 20));
        states.filled(25);
        assert_eq!(states.until(25), [25, 20, 10, 0]);
        assert_eq!(states.until(24), [20, 10, 0]);
        assert_eq!(states.back_to(25), None, "the states are those already");
        assert_eq!(states.back_to(10), Some(&[10.0][..]));
        assert_eq!(states.until(100), [10, 10, 0], "what comes after is another text now");
        assert_eq!(states.back_to(0), None);
        assert_eq!(states.until(100), [0, 0]);
    }

    #[test]
    fn gives_up_what_was_not_used_for_longest() {
        let mut states = States::default();
        (1..=COPIES).for_each(|i| assert!(keep(&mut states, 10 * i)));
        states.filled(35);
        assert_eq!(states.back_to(10), Some(&[10.0][..]));
        (2..=COPIES).for_each(|i| assert!(keep(&mut states, 10 * i)));
        assert!(!keep(&mut states, 20));
        assert!(keep(&mut states, 50));
        assert_eq!(states.until(100), [50, 50, 30, 20, 0], "20 was wanted since");
    }

    #[test]
    fn copies_of_what_moved_are_gone() {
        let mut states = States::default();
        assert!(keep(&mut states, 10) && keep(&mut states, 20));
        states.filled(30);
        states.moved(10, 5);
        assert_eq!(states.until(100), [25, 10, 0]);
    }
}
