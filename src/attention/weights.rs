//! The step's attention weights: what source layers leave for the layers that read them.
//!
//! They are written and read in the order of tiles: a block of keys, and in it for every head the tokens one after the other. A tile's rows
//! of a block then lie in one piece, which the hardware fetches ahead; rows of the whole context, one below the other, would be pages apart.
//! Only the few tokens whose keys are shared out have rows of the whole context, as their blocks are long.

use std::ops::Range;

use ggml_ext::kernels::float::Rows;

use super::attend::{BLOCK, SPLIT_MAX_TOKENS};
use crate::compute::SharedBuf;

/// Floats of one slot that a step of several tokens may fill: small enough for all slots' reads and writes to be served by a
/// last-level cache.
const SLOT_FLOATS: usize = 4 << 20;
/// The same for steps in bf16, which are worth more tokens because weights are unpacked once in a step.
const BF16_SLOT_FLOATS: usize = 10 << 20;
/// Tokens that a step may have whatever its context.
const MIN_TOKENS: usize = 16;

/// Steps of several of these are whole numbers of them, so that their tiles share out evenly.
const WHOLE_TOKENS: usize = 64;

/// How long a step is, which decides where its weights lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Its tokens.
    pub n_tokens: usize,
    /// Positions up to its last.
    pub n_keys: usize,
}

impl Step {
    /// Positions that lie together: no range of them that is asked for may go beyond a multiple of it.
    fn block(&self) -> usize {
        if self.is_split() { self.n_keys } else { BLOCK }
    }

    /// True if its keys may be shared out, so that its tiles are long and thin.
    pub fn is_split(&self) -> bool {
        self.n_tokens <= SPLIT_MAX_TOKENS
    }

    /// Floats from one token's row of a block to the next.
    fn row(&self) -> usize {
        if self.is_split() { odd_lines(self.n_keys) } else { BLOCK }
    }

    /// From one head's rows of a block to those of the next.
    fn head(&self) -> usize {
        odd_lines(self.n_tokens * self.row())
    }

    /// Floats that the weights of `n_head` heads take.
    fn len(&self, n_head: usize) -> usize {
        self.n_keys.div_ceil(self.block().max(1)) * n_head * self.head()
    }

    /// Where position `key` of the row of token `t` and `head` is.
    fn at(&self, n_head: usize, t: usize, head: usize, key: usize) -> usize {
        let block = self.block();
        (key / block * n_head + head) * self.head() + t * self.row() + key % block
    }
}

/// Slots for the weights of a step's tokens and heads, with the log-sum-exp of each row. Which slot holds what is decided by
/// [`super::Routes`].
pub struct AttnWeights {
    values: SharedBuf<f32>,
    lse: SharedBuf<f32>,
    n_head: usize,
    n_ubatch: usize,
    n_ctx: usize,
    slot_len: usize,
}

impl AttnWeights {
    /// `n_slots` slots for layers of `n_head` heads and steps of up to `n_ubatch` tokens, in bf16 or not, in a context of `n_ctx`.
    pub fn new(n_slots: usize, n_head: usize, n_ubatch: usize, n_ctx: usize, bf16: bool) -> Self {
        let len = |n_tokens| Step { n_tokens, n_keys: n_ctx }.len(n_head);
        let fewest = (1..=MIN_TOKENS.min(n_ubatch)).map(len).max().unwrap_or(0);
        let most = if bf16 { BF16_SLOT_FLOATS } else { SLOT_FLOATS };
        let slot_len = len(n_ubatch).min(most).max(fewest);
        Self {
            values: SharedBuf::new(n_slots * slot_len),
            lse: SharedBuf::new(n_slots * n_ubatch * n_head),
            n_head,
            n_ubatch,
            n_ctx,
            slot_len,
        }
    }

    /// Most tokens that a step from position `pos` on may have, so that its rows fit into their slots.
    pub fn max_tokens(&self, pos: usize) -> usize {
        if self.values.is_empty() {
            return self.n_ubatch;
        }
        let fits = |n_tokens: &usize| {
            let n_keys = (pos + n_tokens).min(self.n_ctx);
            Step { n_tokens: *n_tokens, n_keys }.len(self.n_head) <= self.slot_len
        };
        let whole = (1..=self.n_ubatch / WHOLE_TOKENS).rev().map(|n| n * WHOLE_TOKENS).find(fits);
        whole.or_else(|| (1..=WHOLE_TOKENS.min(self.n_ubatch)).rev().find(fits)).unwrap_or(1)
    }

    fn range(&self, slot: usize, step: Step, t: usize, head: usize, keys: Range<usize>) -> Range<usize> {
        if keys.is_empty() {
            return 0..0;
        }
        debug_assert!(step.len(self.n_head) <= self.slot_len && t < step.n_tokens && keys.end <= step.n_keys);
        debug_assert!(keys.start / step.block() == (keys.end - 1) / step.block(), "{keys:?} are of several blocks");
        let start = slot * self.slot_len + step.at(self.n_head, t, head, keys.start);
        start..start + keys.len()
    }

    /// Positions `keys` of the row of token `t` and `head`, of one block of them.
    ///
    /// # Safety
    /// Nobody writes them before the next barrier.
    pub unsafe fn row(&self, slot: usize, step: Step, t: usize, head: usize, keys: Range<usize>) -> &[f32] {
        // SAFETY: passed on to the caller.
        unsafe { self.values.get(self.range(slot, step, t, head, keys)) }
    }

    /// [`AttnWeights::row`], to write.
    ///
    /// # Safety
    /// No other member touches them before the next barrier, and the caller holds no other reference to them.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn row_mut(&self, slot: usize, step: Step, t: usize, head: usize, keys: Range<usize>) -> &mut [f32] {
        // SAFETY: passed on to the caller.
        unsafe { self.values.get_mut(self.range(slot, step, t, head, keys)) }
    }

    /// Positions `keys`, of one block of them, of the rows of token `t`, of which the layer that left them has `n_head`.
    ///
    /// # Safety
    /// As [`AttnWeights::row`], for the time the result is used.
    pub unsafe fn heads(&self, slot: usize, step: Step, t: usize, n_head: usize, keys: Range<usize>) -> Rows<'_, f32> {
        let first = self.range(slot, step, t, 0, keys.clone());
        assert!(n_head <= self.n_head && self.range(slot, step, t, n_head - 1, keys).end <= self.values.len());
        // SAFETY: in bounds by the assertion; the caller promises that there is no writer.
        unsafe { Rows::from_raw(self.values.as_ptr().add(first.start), n_head, first.len(), step.head()) }
    }

    /// Logarithms of the sums of the exponentials of token `t`'s rows, one per head.
    ///
    /// # Safety
    /// Nobody writes them before the next barrier.
    pub unsafe fn lse(&self, slot: usize, t: usize) -> &[f32] {
        let start = (slot * self.n_ubatch + t) * self.n_head;
        // SAFETY: passed on to the caller.
        unsafe { self.lse.get(start..start + self.n_head) }
    }

    /// Sets one of them.
    ///
    /// # Safety
    /// No other member touches it before the next barrier.
    pub unsafe fn set_lse(&self, slot: usize, t: usize, head: usize, lse: f32) {
        let i = (slot * self.n_ubatch + t) * self.n_head + head;
        // SAFETY: passed on to the caller.
        unsafe { self.lse.get_mut(i..i + 1)[0] = lse }
    }
}

/// `n` floats in whole cache lines, an odd number of them: what lies so far apart does not fall into the same sets of a cache.
fn odd_lines(n: usize) -> usize {
    const LINE: usize = 16;
    (n.div_ceil(LINE) | 1) * LINE
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every element of a step has a place of its own within the step's length, for steps of any shape.
    #[test]
    fn elements_have_places_of_their_own() {
        for (n_tokens, n_keys) in [(1, 1), (4, 300), (5, 5), (17, 128), (7, 257)] {
            let step = Step { n_tokens, n_keys };
            let places = (0..n_tokens).flat_map(|t| (0..3).map(move |h| (t, h)));
            let places = places.flat_map(|(t, h)| (0..n_keys).map(move |k| step.at(3, t, h, k)));
            let mut places: Vec<_> = places.collect();
            assert!(places.iter().all(|&at| at < step.len(3)), "{step:?}");
            places.sort_unstable();
            places.dedup();
            assert_eq!(places.len(), 3 * n_tokens * n_keys, "{step:?}");
        }
    }

    /// Steps as long as they may be fit into a slot, wherever they begin, and a step of some tokens always does.
    #[test]
    fn the_longest_steps_fit() {
        for (n_head, n_ubatch, n_ctx) in [(9, 512, 8192), (32, 512, 131_072), (3, 7, 100), (8, 1, 64)] {
            let weights = AttnWeights::new(1, n_head, n_ubatch, n_ctx, false);
            for pos in (0..n_ctx).step_by(n_ctx / 20) {
                let n_tokens = weights.max_tokens(pos);
                assert!(n_tokens >= MIN_TOKENS.min(n_ubatch) && n_tokens <= n_ubatch);
                let step = Step { n_tokens, n_keys: (pos + n_tokens).min(n_ctx) };
                assert!(step.len(n_head) <= weights.slot_len, "{step:?}");
            }
        }
    }
}
