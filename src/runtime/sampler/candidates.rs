//! The tokens still in play while the chain runs.
//!
//! A step starts *dense* (one logit per vocabulary entry, indexed by id) and becomes a *list* when the first truncating
//! sampler runs, so that the default chain touches a 256k vocabulary twice (copy, top-k scan) and sorts 40 entries.
//! All buffers are reused from token to token.
//!
//! Order is total and machine-independent: by logit, highest first, ties to the lower id.

use std::cmp::Ordering;

/// A token, its logit, and its probability where one was computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub id: u32,
    pub logit: f32,
    pub p: f32,
    /// Room for a stage's own sorting key.
    pub key: f32,
}

impl Candidate {
    fn new(id: u32, logit: f32) -> Self {
        Candidate { id, logit, p: 0.0, key: 0.0 }
    }
}

/// Highest logit first, ties to the lower id.
fn by_logit(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

#[derive(Default)]
pub(super) struct Candidates {
    /// Logits by id; meaningful while `is_dense`.
    dense: Vec<f32>,
    is_dense: bool,
    list: Vec<Candidate>,
    /// `list` is in the order of [`by_logit`].
    sorted: bool,
}

impl Candidates {
    /// Starts a step. NaN counts as -inf, +inf as the largest finite number, so that the stages need no special cases.
    pub fn load(&mut self, logits: &[f32]) {
        self.dense.clear();
        self.dense.extend(logits.iter().map(|&l| if l.is_nan() { f32::NEG_INFINITY } else { l.min(f32::MAX) }));
        self.is_dense = true;
        self.sorted = false;
        self.list.clear();
    }

    /// Forbids the tokens that are not `allowed`, which has a bit for each, 32 in a number. At the start of a step.
    pub fn keep_only(&mut self, allowed: &[u32]) {
        let n = self.dense.len().min(32 * allowed.len());
        for (logits, &bits) in self.dense[..n].chunks_mut(32).zip(allowed) {
            match bits {
                0 => logits.fill(f32::NEG_INFINITY),
                u32::MAX => {}
                _ => {
                    for (_, logit) in logits.iter_mut().enumerate().filter(|(i, _)| bits >> i & 1 == 0) {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
        self.dense[n..].fill(f32::NEG_INFINITY);
    }

    /// Changes the logit of one token, if it is still in play.
    pub fn edit(&mut self, id: u32, f: impl FnOnce(f32) -> f32) {
        let slot = if self.is_dense {
            self.dense.get_mut(id as usize)
        } else {
            self.list.iter_mut().find(|c| c.id == id).map(|c| &mut c.logit)
        };
        if let Some(logit) = slot {
            let new = f(*logit);
            // -inf - -inf and the like: a forbidden token stays forbidden.
            *logit = if new.is_nan() { f32::NEG_INFINITY } else { new.min(f32::MAX) };
            self.sorted = false;
        }
    }

    /// Applies `f`, which must not reverse the order of any two, to every logit in play.
    pub fn map(&mut self, f: impl Fn(f32) -> f32) {
        if self.is_dense {
            self.dense.iter_mut().for_each(|l| *l = f(*l));
        } else {
            self.list.iter_mut().for_each(|c| c.logit = f(c.logit));
        }
    }

    /// The logits in play, in no particular order.
    pub fn logits(&self) -> impl Iterator<Item = f32> + Clone {
        let dense: &[f32] = if self.is_dense { &self.dense } else { &[] };
        dense.iter().copied().chain(self.list.iter().map(|c| c.logit))
    }

    /// The largest logit in play; -inf when there is none.
    pub fn max_logit(&self) -> f32 {
        self.logits().fold(f32::NEG_INFINITY, f32::max)
    }

    pub fn len(&self) -> usize {
        if self.is_dense { self.dense.len() } else { self.list.len() }
    }

    /// The tokens as a list.
    pub fn list(&mut self) -> &mut Vec<Candidate> {
        if self.is_dense {
            self.is_dense = false;
            self.sorted = false;
            self.list.clear();
            let all = self.dense.iter().enumerate();
            self.list.extend(all.map(|(id, &logit)| Candidate::new(id as u32, logit)));
        }
        &mut self.list
    }

    /// The tokens as a list, best first.
    pub fn sorted(&mut self) -> &mut Vec<Candidate> {
        self.list();
        if !self.sorted {
            self.list.sort_unstable_by(by_logit);
            self.sorted = true;
        }
        &mut self.list
    }

    /// The tokens as a list of which the first `k` are sorted and better than the rest. `k >= 1`.
    pub fn partly_sorted(&mut self, k: usize) -> &mut Vec<Candidate> {
        self.list();
        if !self.sorted && k < self.list.len() {
            self.list.select_nth_unstable_by(k - 1, by_logit);
            self.list[..k].sort_unstable_by(by_logit);
        } else {
            self.sorted();
        }
        &mut self.list
    }

    pub fn is_sorted(&self) -> bool {
        !self.is_dense && self.sorted
    }

    /// Declares that a stage left the list in (true) or out of (false) order.
    pub fn set_sorted(&mut self, sorted: bool) {
        self.sorted = sorted;
    }

    /// Keeps the `k` best, sorted. `k >= 1`.
    pub fn keep_top(&mut self, k: usize) {
        if self.is_dense && k < self.dense.len() {
            self.keep_top_of_dense(k);
        } else {
            self.sorted().truncate(k);
        }
    }

    /// Scans the dense logits once, collecting what beats a rising bar: whenever 4k + 256 candidates have gathered, the best
    /// k are selected and the bar rises to the worst of them. Most logits cost one comparison.
    fn keep_top_of_dense(&mut self, k: usize) {
        let limit = (4 * k + 256).min(self.dense.len());
        self.is_dense = false;
        self.list.clear();
        self.list.reserve(limit);
        let mut bar = f32::NEG_INFINITY;
        for (id, &logit) in self.dense.iter().enumerate() {
            // Strictly above the bar, because of two equal logits the earlier id stays; while the list is short, anything.
            if logit > bar || self.list.len() < k {
                self.list.push(Candidate::new(id as u32, logit));
                if self.list.len() == limit {
                    self.list.select_nth_unstable_by(k - 1, by_logit);
                    self.list.truncate(k);
                    bar = self.list[k - 1].logit;
                }
            }
        }
        self.list.sort_unstable_by(by_logit);
        self.list.truncate(k);
        self.sorted = true;
    }

    /// Keeps the tokens whose logit is at least `bar`, in their order.
    pub fn retain_at_least(&mut self, bar: f32) {
        if self.is_dense {
            self.is_dense = false;
            self.list.clear();
            let all = self.dense.iter().enumerate();
            self.list.extend(all.filter(|&(_, &l)| l >= bar).map(|(id, &logit)| Candidate::new(id as u32, logit)));
        } else {
            self.list.retain(|c| c.logit >= bar);
        }
    }

    /// Fills in the probabilities (softmax over the tokens in play). Returns false when no token is above -inf.
    pub fn softmax(&mut self) -> bool {
        self.list();
        softmax(&mut self.list)
    }
}

/// Softmax over `list`; false (and all zero) when no logit is above -inf.
pub(super) fn softmax(list: &mut [Candidate]) -> bool {
    let max = list.iter().fold(f32::NEG_INFINITY, |m, c| m.max(c.logit));
    if max == f32::NEG_INFINITY {
        list.iter_mut().for_each(|c| c.p = 0.0);
        return false;
    }
    let mut sum = 0.0f64;
    for c in list.iter_mut() {
        // Equality first: a temperature near zero can push the maximum to +inf, and inf - inf is NaN.
        c.p = if c.logit == max { 1.0 } else { (c.logit - max).exp() };
        sum += f64::from(c.p);
    }
    let scale = (1.0 / sum) as f32;
    list.iter_mut().for_each(|c| c.p *= scale);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(c: &mut Candidates) -> Vec<u32> {
        c.list().iter().map(|c| c.id).collect()
    }

    /// A fixed scramble with many ties.
    fn logits(n: u32) -> Vec<f32> {
        (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as f32 / 100.0).collect()
    }

    #[test]
    fn top_k_equals_a_full_sort_for_every_k() {
        let logits = logits(9000);
        let mut want: Vec<u32> = (0..9000).collect();
        want.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize])); // stable: ties to the lower id
        let mut c = Candidates::default();
        for k in [1, 2, 3, 40, 41, 1000, 8999, 9000, 20_000] {
            c.load(&logits);
            c.keep_top(k);
            assert_eq!(ids(&mut c), want[..k.min(9000)], "k = {k}");
            c.load(&logits);
            let list = c.partly_sorted(k);
            assert!(
                list[..k.min(9000)].iter().map(|c| c.id).eq(want[..k.min(9000)].iter().copied()),
                "partly, k = {k}"
            );
        }
    }

    #[test]
    fn top_k_of_forbidden_and_broken_logits() {
        let mut c = Candidates::default();
        c.load(&[f32::NEG_INFINITY, f32::NAN, 1.0, f32::INFINITY]);
        c.keep_top(3);
        assert_eq!(ids(&mut c), [3, 2, 0]);
        assert!(c.softmax());
        assert_eq!(c.list()[0].p, 1.0);
        c.load(&[f32::NAN; 4]);
        c.keep_top(2);
        assert!(!c.softmax());
    }

    #[test]
    fn only_what_is_allowed_is_kept() {
        let mut c = Candidates::default();
        c.load(&[1.0; 100]);
        c.keep_only(&[u32::MAX, 0, 0b101]);
        let kept: Vec<usize> = (0..100).filter(|&i| c.dense[i] == 1.0).collect();
        assert_eq!(kept, (0..32).chain([64, 66]).collect::<Vec<_>>());
        c.load(&[1.0; 3]);
        c.keep_only(&[0b110, u32::MAX]);
        assert_eq!(c.dense, [f32::NEG_INFINITY, 1.0, 1.0]);
    }

    #[test]
    fn buffers_are_reused() {
        let logits = logits(5000);
        let mut c = Candidates::default();
        let mut run = || {
            c.load(&logits);
            c.keep_top(40);
            (c.dense.as_ptr(), c.list.as_ptr())
        };
        let first = run();
        assert_eq!(run(), first);
    }
}
