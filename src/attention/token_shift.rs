//! Token shift (RWKV): what a layer is given of a token leans to what it was given of the one before, element by element, and for each of several
//! operands by factors of their own. What the last token was given is a part of the layer's state.

use std::ops::Range;

use crate::compute::{Operand, Ops, SharedBuf};

/// How far the operands of a layer lean to the token before.
pub struct TokenShift {
    /// For each operand a factor on the difference for each element, one operand's after another's, `[n_operands, n_embd]`: 0 is the token itself, 1
    /// the one before.
    pub leaning: Box<[f32]>,
}

/// Where a layer's state has what it was given of the token before a step's first.
#[derive(Clone, Copy)]
pub struct Before<'a> {
    /// The state.
    pub state: &'a SharedBuf<f32>,
    /// Its element from which on it is there.
    pub at: usize,
}

impl TokenShift {
    /// How many operands there are, of `n_embd` values each.
    pub fn n_operands(&self, n_embd: usize) -> usize {
        self.leaning.len() / n_embd
    }

    /// Leaves in rows of `out` what operands are given of tokens `wanted`, of those whose rows are in `x`. Tokens may have factors of their own,
    /// which are added: rows of `added` for each operand. One phase.
    pub fn lean(
        &self,
        ops: &Ops,
        x: Operand,
        wanted: Range<usize>,
        before: Before,
        added: Option<&[SharedBuf<f32>]>,
        out: &[Operand],
    ) {
        let (width, n) = (x.k(), self.n_operands(x.k()));
        for i in ops.worker.share(wanted.len() * n) {
            let (row, j) = (i / n, i % n);
            let t = wanted.start + row;
            // SAFETY: rows of each operand are shared out disjointly, and nobody writes the rest in this phase.
            unsafe {
                let given = x.f32(t..t + 1);
                let before = match t.checked_sub(1) {
                    Some(t) => x.f32(t..t + 1),
                    None => before.state.get(before.at..before.at + width),
                };
                let by = &self.leaning[j * width..(j + 1) * width];
                let row_out = out[j].row_mut(row);
                for (e, out) in row_out.iter_mut().enumerate() {
                    *out = (before[e] - given[e]) * by[e] + given[e];
                }
                if let Some(added) = added {
                    let more = added[j].get(row * width..(row + 1) * width);
                    for (e, out) in row_out.iter_mut().enumerate() {
                        *out = (before[e] - given[e]) * (more[e] + by[e]) + given[e];
                    }
                }
                out[j].finish_row(ops.kernels, row);
            }
        }
        ops.worker.barrier();
    }
}

impl Before<'_> {
    /// Keeps what the last of `n` tokens was given, whose rows are in `x`. Another barrier is to follow before anybody reads it or writes `x`.
    pub fn keep(self, ops: &Ops, x: Operand, n: usize) {
        let part = ops.worker.share(x.k());
        // SAFETY: elements are shared out disjointly, and the operands of this step have been made of the state.
        unsafe {
            let to = self.state.get_mut(self.at + part.start..self.at + part.end);
            to.copy_from_slice(&x.f32(n - 1..n)[part]);
        }
    }
}
