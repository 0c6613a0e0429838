//! The step's attention weights: what source layers leave for the layers that read them.

use std::ops::Range;

use ggml_ext::kernels::float::Rows;

use crate::compute::SharedBuf;

/// Floats of one slot that a step of several tokens may fill: small enough for all slots' reads and writes to be served by a
/// last-level cache.
const SLOT_FLOATS: usize = 4 << 20;
/// Tokens that a step may have whatever its context.
const MIN_TOKENS: usize = 16;

/// Steps of several of these are whole numbers of them, so that their tiles share out evenly.
const WHOLE_TOKENS: usize = 64;

/// Slots of rows, one for each (token, head) of the step, one value for each position of the context, with the
/// log-sum-exp of each row. Which slot holds what is decided by [`super::Routes`].
pub struct AttnWeights {
    values: SharedBuf<f32>,
    lse: SharedBuf<f32>,
    n_head: usize,
    n_ubatch: usize,
    n_ctx: usize,
    slot_len: usize,
}

impl AttnWeights {
    /// `n_slots` slots for layers of `shape` and steps of up to `n_ubatch` tokens in a context of `n_ctx`.
    pub fn new(n_slots: usize, n_head: usize, n_ubatch: usize, n_ctx: usize) -> Self {
        let longest = n_head * stride(n_ctx);
        let slot_len = (longest * n_ubatch).min(SLOT_FLOATS.max(longest * MIN_TOKENS));
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
        let rows = self.slot_len / (self.n_head * stride((pos + self.n_ubatch).min(self.n_ctx)));
        let whole = rows / WHOLE_TOKENS * WHOLE_TOKENS;
        (if whole > 0 { whole } else { rows }).clamp(1, self.n_ubatch)
    }

    fn start(&self, slot: usize, t: usize, head: usize, n_keys: usize) -> usize {
        let row = (t * self.n_head + head) * stride(n_keys);
        debug_assert!(row + n_keys <= self.slot_len);
        slot * self.slot_len + row
    }

    /// Positions `keys` of the row of token `t` and `head`, in a step that reaches up to `n_keys` positions.
    ///
    /// # Safety
    /// Nobody writes them before the next barrier.
    pub unsafe fn row(&self, slot: usize, t: usize, head: usize, n_keys: usize, keys: Range<usize>) -> &[f32] {
        let start = self.start(slot, t, head, n_keys);
        // SAFETY: passed on to the caller.
        unsafe { self.values.get(start + keys.start..start + keys.end) }
    }

    /// [`AttnWeights::row`], to write.
    ///
    /// # Safety
    /// No other member touches them before the next barrier, and the caller holds no other reference to them.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn row_mut(&self, slot: usize, t: usize, head: usize, n_keys: usize, keys: Range<usize>) -> &mut [f32] {
        let start = self.start(slot, t, head, n_keys);
        // SAFETY: passed on to the caller.
        unsafe { self.values.get_mut(start + keys.start..start + keys.end) }
    }

    /// Positions `keys` of all heads' rows of token `t`.
    ///
    /// # Safety
    /// As [`AttnWeights::row`], for the time the result is used.
    pub unsafe fn heads(&self, slot: usize, t: usize, n_keys: usize, keys: Range<usize>) -> Rows<'_, f32> {
        let start = self.start(slot, t, 0, n_keys) + keys.start;
        assert!(self.start(slot, t, self.n_head - 1, n_keys) + keys.end <= self.values.len());
        // SAFETY: in bounds by the assertion; the caller promises that there is no writer.
        unsafe { Rows::from_raw(self.values.as_ptr().add(start), self.n_head, keys.len(), stride(n_keys)) }
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

/// Floats between rows of `n_keys`: an odd number of cache lines, so that the heads' rows do not fall into the same
/// sets of a cache.
fn stride(n_keys: usize) -> usize {
    const LINE: usize = 16;
    (n_keys.div_ceil(LINE) | 1) * LINE
}
