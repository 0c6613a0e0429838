//! RWKV's channel mixing: a layer's second half is given each token leaning to the one before, and may have gates made of the same.

use std::ops::Range;

use super::token_shift::{Before, TokenShift};
use crate::compute::{Linear, Operand, Ops, SharedBuf};

/// What is before a feed-forward network, and beside it.
pub struct ChannelMix {
    /// What the network is given, and after it what gates are made of, where there are any.
    pub shift: TokenShift,
    /// Makes gates on what the network makes, before their sigmoid, where the family has them.
    pub gate: Option<Linear>,
}

impl ChannelMix {
    /// Makes of the second half's input, rows of `x` for each of a step's `n` tokens, the operands of tokens `wanted`; keeps what the next token leans
    /// to at the end of the layer's `state`. One phase.
    pub fn lean(
        &self,
        ops: &Ops,
        x: Operand,
        n: usize,
        wanted: Range<usize>,
        state: &SharedBuf<f32>,
        operands: &[Operand],
    ) {
        let before = Before { state, at: state.len() - x.k() };
        self.shift.lean(ops, x, wanted, before, None, operands);
        before.keep(ops, x, n);
    }

    /// Multiplies what the network made of the first of its `operands`, rows for `n` tokens, with gates, where there are any: made of the second,
    /// into `gates`.
    pub fn gate(&self, ops: &mut Ops, operands: &[Operand], n: usize, gates: &SharedBuf<f32>, made: &SharedBuf<f32>) {
        let Some(gate) = &self.gate else { return };
        ops.linear(operands[1], 0..n, &[(gate, gates)]);
        let part = ops.worker.share(n * gate.weight.rows());
        // SAFETY: shared out disjointly, and nobody writes the gates in this phase.
        unsafe { ops.kernels.float.sigmoid_mul(gates.get(part.clone()), made.get_mut(part)) };
        ops.worker.barrier();
    }
}
