//! Kimi Delta Attention (arXiv 2510.26692): the gated delta rule in which each element of a key fades what a head's matrix has for it by a rate of
//! its own. What these rates are made of, and the gates on results, are made of a layer's input at once or in two steps through a few values.

use ggml_ext::kernels::float::{FloatKernels, Rows, StateRates};

use super::delta::unit_length;
use super::recurrence::RecurrentStep;
use crate::compute::{Activations, Form, Linear, Ops, SharedBuf, sigmoid};

/// A layer's parameters besides those that all recurrent layers have; the layer's own gate projection makes its gates, or is their first step.
pub struct KeyedDelta {
    /// Makes what rates are made of, a number for each element of each head's key, `[n_head * head_dim_k, n_embd]`; or is the first step to that,
    /// `[rank, n_embd]`.
    pub fade: Linear,
    /// The second step, `[n_head * head_dim_k, rank]`, where there are two.
    pub fade_on: Option<Linear>,
    /// What rates are, given these numbers.
    pub fading: KeyedDecay,
    /// Makes what decides how far a head goes to what is new: a number for each.
    pub beta: Linear,
    /// The second step of gates, `[n_values, rank]`, where there are two.
    pub gate_on: Option<Linear>,
    /// RMSNorm on every head's results, `[head_dim_v]`.
    pub norm: Box<[f32]>,
    /// Its epsilon, and that of the normalisation of queries and keys.
    pub eps: f32,
}

/// The logarithms of rates, given a number for each.
pub enum KeyedDecay {
    /// A negative factor for each head, `[n_head]`, on the number's softplus.
    Softplus(Box<[f32]>),
    /// As far from 0 to the number `least` as a logistic function goes.
    Bounded {
        /// Factors for each head, `[n_head]`, on what the function is given.
        factors: Box<[f32]>,
        /// The least logarithm, negative.
        least: f32,
    },
}

impl KeyedDecay {
    /// Makes rates of the numbers `x` of a key of head `h`, in their place.
    fn rates(&self, f: &FloatKernels, h: usize, x: &mut [f32]) {
        match self {
            Self::Softplus(factors) => {
                f.softplus(x);
                f.scale(x, factors[h]);
            }
            Self::Bounded { factors, least } => {
                f.scale(x, factors[h]);
                f.sigmoid(x);
                f.scale(x, *least);
            }
        }
        f.exp(x);
    }
}

/// Work space for second steps, rows for every token of a pass. A model has such layers of one size.
pub struct KeyedBuffers {
    /// What first steps left, as products meet it.
    low: Activations,
    rates: SharedBuf<f32>,
    gates: SharedBuf<f32>,
}

impl KeyedBuffers {
    /// Room for `n` tokens, if there are second steps; `activations` makes it for rows of so many values that products meet.
    pub fn new(rule: &KeyedDelta, n: usize, activations: impl Fn(usize) -> Activations) -> Option<Self> {
        let rank = [&rule.fade_on, &rule.gate_on].into_iter().flatten().map(|l| l.weight.cols()).max()?;
        let room = |linear: &Option<Linear>| SharedBuf::new(n * linear.as_ref().map_or(0, |l| l.weight.rows()));
        Some(Self { low: activations(rank), rates: room(&rule.fade_on), gates: room(&rule.gate_on) })
    }
}

impl KeyedDelta {
    /// The second steps, if there are any, of `n` tokens: to what rates are made of, of the rows `fade` that the first step left. Two phases, or none.
    pub(super) fn make(&self, ops: &mut Ops, b: Option<&KeyedBuffers>, fade: &SharedBuf<f32>, step: RecurrentStep) {
        if let (Some(second), Some(b)) = (&self.fade_on, b) {
            self.go_on(ops, second, b, fade, step.n, (step.form, step.fine_step), &b.rates);
        }
    }

    /// The same to gates, of the rows `gate`.
    pub(super) fn make_gates(
        &self,
        ops: &mut Ops,
        b: Option<&KeyedBuffers>,
        gate: &SharedBuf<f32>,
        n: usize,
        form: (Form, f32),
    ) {
        if let (Some(second), Some(b)) = (&self.gate_on, b) {
            self.go_on(ops, second, b, gate, n, form, &b.gates);
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn go_on(
        &self,
        ops: &mut Ops,
        second: &Linear,
        b: &KeyedBuffers,
        first: &SharedBuf<f32>,
        n: usize,
        (form, fine_step): (Form, f32),
        out: &SharedBuf<f32>,
    ) {
        let rows = b.low.with(form, fine_step);
        ops.norm(first, 0..n, None, self.eps, rows);
        ops.linear(rows, 0..n, &[(second, out)]);
    }

    /// How far a token goes to what is new, `beta` of a head; rates of keys' elements come beside it.
    pub(super) fn step(beta: f32) -> StateRates {
        StateRates { decay: 1.0, step: sigmoid(beta) }
    }

    /// The rates of head `h`, a row of `dim` for each of `n` tokens. `fade`: what the first step left, which they may take the place of.
    ///
    /// # Safety
    /// Nobody else touches this head's numbers while the rates are in use.
    pub(super) unsafe fn rates<'b>(
        &self,
        f: &FloatKernels,
        b: Option<&'b KeyedBuffers>,
        fade: &'b SharedBuf<f32>,
        h: usize,
        n: usize,
        dim: usize,
    ) -> Rows<'b, f32> {
        let (numbers, width) = (b.filter(|_| self.fade_on.is_some()).map_or(fade, |b| &b.rates), self.n_head() * dim);
        for t in 0..n {
            let first = t * width + h * dim;
            // SAFETY: passed on to the caller.
            self.fading.rates(f, h, unsafe { numbers.get_mut(first..first + dim) });
        }
        // SAFETY: passed on to the caller.
        unsafe { Rows::from_raw(numbers.as_ptr().add(h * dim), n, dim, width) }
    }

    fn n_head(&self) -> usize {
        self.beta.weight.rows()
    }

    /// Gives the head of a query or a key its length: 1, of a query divided by the square root of its dimension.
    pub(super) fn normalise(&self, f: &FloatKernels, head: &mut [f32], is_query: bool) {
        unit_length(f, head, is_query, self.eps);
    }

    /// Normalises what token `i` of those asked for has read head by head, and multiplies it with its gates. `gate`: what their first step left.
    ///
    /// # Safety
    /// Nobody writes the gates.
    pub(super) unsafe fn finish(
        &self,
        f: &FloatKernels,
        b: Option<&KeyedBuffers>,
        gate: &SharedBuf<f32>,
        i: usize,
        row: &mut [f32],
    ) {
        let gates = b.filter(|_| self.gate_on.is_some()).map_or(gate, |b| &b.gates);
        row.chunks_exact_mut(self.norm.len()).for_each(|head| f.rms_norm_in_place(head, &self.norm, self.eps));
        // SAFETY: passed on to the caller.
        f.sigmoid_mul(unsafe { gates.get(i * row.len()..(i + 1) * row.len()) }, row);
    }
}
