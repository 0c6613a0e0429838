//! Kimi Delta Attention (arXiv 2510.26692): the gated delta rule in which each element of a key fades what a head's matrix has for it by a rate of
//! its own. What these rates are made of, and the gates on results, are made of a layer's input in two steps through a few values.

use ggml_ext::kernels::Kernels;
use ggml_ext::kernels::float::{FloatKernels, Rows, RowsMut, StateRates, StateUpdate};

use super::delta::unit_length;
use super::recurrence::RecurrentStep;
use crate::compute::{Activations, Form, Linear, Operand, Ops, SharedBuf, sigmoid};

/// A layer's parameters besides those that all recurrent layers have; the layer's own gate projection is the first step of its gates.
pub struct KeyedDelta {
    /// The first step of what rates are made of, `[rank, n_embd]`.
    pub low: Linear,
    /// The second: for each element of each head's key, `[n_head * head_dim_k, rank]`.
    pub fade: Linear,
    /// What the logarithm of a rate is, relative to a softplus of that: negative, `[n_head]`.
    pub decay: Box<[f32]>,
    /// Makes what decides how far a head goes to what is new: a number for each.
    pub beta: Linear,
    /// The second step of gates, `[n_values, rank]`.
    pub gate: Linear,
    /// RMSNorm on every head's results, `[head_dim_v]`.
    pub norm: Box<[f32]>,
    /// Its epsilon, and that of the normalisation of queries and keys.
    pub eps: f32,
}

/// Work space between the two steps and after them, rows for every token of a step. A model has such layers of one size.
pub struct KeyedBuffers {
    low: Activations,
    rates: SharedBuf<f32>,
    gates: SharedBuf<f32>,
}

impl KeyedBuffers {
    /// Room for `n` tokens; `activations` makes it for rows of so many values that products meet.
    pub fn new(rule: &KeyedDelta, n: usize, activations: impl Fn(usize) -> Activations) -> Self {
        Self {
            low: activations(rule.fade.weight.cols()),
            rates: SharedBuf::new(n * rule.fade.weight.rows()),
            gates: SharedBuf::new(n * rule.gate.weight.rows()),
        }
    }
}

impl KeyedDelta {
    /// The second step of rates: of `low`, rows that the first left. Two phases.
    pub(super) fn make(&self, ops: &mut Ops, b: &KeyedBuffers, low: &SharedBuf<f32>, step: RecurrentStep) {
        let rows = b.low.with(step.form, step.fine_step);
        ops.norm(low, 0..step.n, None, self.eps, rows);
        ops.linear(rows, 0..step.n, &[(&self.fade, &b.rates)]);
    }

    /// Takes tokens into the matrix of head `h`, one after another. What the last `n_wanted` read goes to rows of `out`. `betas`: a row of numbers
    /// for each token.
    ///
    /// # Safety
    /// Nobody else touches this head's rates, and nobody writes what others made, before the next barrier.
    #[allow(clippy::too_many_arguments)]
    pub(super) unsafe fn run(
        &self,
        kernels: &Kernels,
        b: &KeyedBuffers,
        h: usize,
        memory: &mut [f32],
        [q, k, v]: [Rows<f32>; 3],
        betas: &SharedBuf<f32>,
        n_wanted: usize,
        out: Operand,
    ) {
        let (f, n, [dim, dv], n_head) = (&kernels.float, v.n_rows(), [k.len(), v.len()], self.decay.len());
        for t in 0..n {
            let (number, first) = (t * n_head + h, (t * n_head + h) * dim);
            // SAFETY: passed on to the caller.
            let (rates, beta) = unsafe { (b.rates.get_mut(first..first + dim), betas.get(number..number + 1)[0]) };
            f.softplus(rates);
            f.scale(rates, self.decay[h]);
            f.exp(rates);
            memory.chunks_exact_mut(dv).zip(&*rates).for_each(|(row, &rate)| f.scale(row, rate));
            let result: &mut [f32] = match (t + n_wanted).checked_sub(n) {
                // SAFETY: passed on to the caller.
                Some(row) => unsafe { out.part_mut(row, h * dv..(h + 1) * dv) },
                None => &mut [],
            };
            let out = RowsMut::new(result, usize::from(t + n_wanted >= n), dv, dv);
            let [q, k, v] = [&q, &k, &v].map(|rows| Rows::new(rows.row(t), 1, rows.len(), rows.len()));
            let rates = &[StateRates { decay: 1.0, step: sigmoid(beta) }];
            f.delta_rule(StateUpdate { state: memory, q, k, v, rates, out });
        }
    }

    /// Gives the head of a query or a key its length: 1, of a query divided by the square root of its dimension.
    pub(super) fn normalise(&self, f: &FloatKernels, head: &mut [f32], is_query: bool) {
        unit_length(f, head, is_query, self.eps);
    }

    /// Normalises what token `i` of those asked for has read head by head, and multiplies it with its gates.
    ///
    /// # Safety
    /// Nobody writes the gates.
    pub(super) unsafe fn finish(&self, f: &FloatKernels, b: &KeyedBuffers, i: usize, row: &mut [f32]) {
        row.chunks_exact_mut(self.norm.len()).for_each(|head| f.rms_norm_in_place(head, &self.norm, self.eps));
        // SAFETY: passed on to the caller.
        f.sigmoid_mul(unsafe { b.gates.get(i * row.len()..(i + 1) * row.len()) }, row);
    }

    /// The second step of the gates of `n` tokens: of `low`, rows that the first left. Two phases.
    pub(super) fn make_gates(
        &self,
        ops: &mut Ops,
        b: &KeyedBuffers,
        low: &SharedBuf<f32>,
        n: usize,
        (form, fine_step): (Form, f32),
    ) {
        let rows = b.low.with(form, fine_step);
        ops.norm(low, 0..n, None, self.eps, rows);
        ops.linear(rows, 0..n, &[(&self.gate, &b.gates)]);
    }
}
