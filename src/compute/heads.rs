//! Products of attention's heads with matrices of their own, as in multi-head latent attention (DeepSeek-V2, arXiv 2405.04434).

use super::experts::StackJob;
use super::{Operand, Ops, SharedBuf, Stack};

/// Rows of heads, those of one token after each other.
#[derive(Clone, Copy)]
pub struct Heads<T> {
    /// All rows.
    pub rows: T,
    /// How many a token has.
    pub n_head: usize,
    /// Elements of one.
    pub len: usize,
}

impl Ops<'_> {
    /// `out[t][h] = W_h x[t][h]` for all heads `h` of the first `n` tokens, `W_h` being the matrices of `stack`. These meet the first elements
    /// of a row, as many as they have columns, and leave their results at the start of another. `operand` has room for what they meet,
    /// head by head: each matrix meets the rows of all tokens at once. Two phases.
    pub fn of_heads(
        &mut self,
        x: Heads<&[f32]>,
        n: usize,
        stack: &Stack,
        operand: Operand,
        out: Heads<&SharedBuf<f32>>,
    ) {
        let (n_head, k) = (x.n_head, operand.k());
        for i in self.worker.share(n * n_head) {
            let (t, h) = (i / n_head, i % n_head);
            // SAFETY: rows are shared out disjointly.
            unsafe {
                operand.row_mut(h * n + t).copy_from_slice(&x.rows[i * x.len..][..k]);
                operand.finish_row(self.kernels, h * n + t);
            }
        }
        self.worker.barrier();
        let start = &|h: usize| h * out.len;
        let job = StackJob { stack, out: out.rows, start, stride: n_head * out.len };
        self.products(operand, n_head, &|h| h * n..(h + 1) * n, &[job]);
    }
}
