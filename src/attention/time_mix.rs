//! RWKV's time mixing (RWKV-6, arXiv 2404.05892; RWKV-7, arXiv 2503.14456) in the place of attention: a matrix for each head, from keys to values,
//! whose rows fade by rates that each token has for itself.
//!
//! Nothing is convolved: queries, keys, values and what the rest is made of are each given the token leaning to the one before by another measure
//! ([`TokenShift`]). Rates and gates are made in two steps through a few values. How a token changes the matrix is up to the layer's rule.

use std::ops::Range;

use ggml_ext::kernels::Kernels;
use ggml_ext::kernels::float::{FloatKernels, Rows, RowsMut};

use super::kv_cache::LayerCache;
use super::recurrence::RecurrentStep;
use super::token_shift::{Before, TokenShift};
use super::wkv6::Fading;
use super::wkv7::Moving;
use crate::compute::{Activations, Form, Job, Linear, Norm, Operand, Ops, SharedBuf};

/// A layer's heads and parameters.
pub struct TimeMix {
    /// Sizes.
    pub shape: TimeShape,
    /// What each of the operands is given.
    pub shift: TokenShift,
    /// What makes factors that tokens have for themselves in that, where the family has them.
    pub own: Option<OwnLeaning>,
    /// Makes queries, rows of [`TimeShape::n_embd`].
    pub q: Given<Linear>,
    /// Makes keys.
    pub k: Given<Linear>,
    /// Makes values.
    pub v: Given<Linear>,
    /// Makes what rates are made of, before the curve that the rule has for them.
    pub decay: Given<TwoSteps>,
    /// How tokens change the state, and what else there is for that.
    pub rule: TimeRule,
    /// LayerNorm on every head's results, each with weights of its own, where the family has it.
    pub norm: Option<Box<[Norm]>>,
    /// Its epsilon.
    pub norm_eps: f32,
    /// Output projection.
    pub out: Linear,
}

/// What one of the operands is given to.
pub struct Given<T> {
    /// Which operand.
    pub operand: usize,
    /// What it meets.
    pub meets: T,
}

/// How a token changes a head's matrix, with the parameters for that.
pub enum TimeRule {
    /// RWKV-6: it fades.
    Fading(Fading),
    /// RWKV-7: what the matrix has for a key moves to another besides.
    Moving(Box<Moving>),
}

/// What makes factors by which each token leans to the one before.
pub struct OwnLeaning {
    /// What the first step is given.
    pub shift: TokenShift,
    /// The first, to a few values for each operand, `[n_operands * rank, n_embd]`; a hyperbolic tangent follows.
    pub down: Linear,
    /// The second, for each operand, `[n_embd, rank]`.
    pub up: Box<[Linear]>,
}

/// A matrix of low rank: two steps through a few values, with a curve between them.
pub struct TwoSteps {
    /// The first, `[rank, n_embd]`.
    pub down: Linear,
    /// What the values between go through.
    pub curve: Curve,
    /// The second, `[n_embd, rank]`.
    pub up: Linear,
}

/// What values go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// Nothing.
    Straight,
    /// The hyperbolic tangent.
    Tanh,
    /// The logistic function.
    Sigmoid,
}

/// The heads of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeShape {
    /// Heads, each with a state.
    pub n_head: usize,
    /// Length of a query, key and value of a head.
    pub head_dim: usize,
    /// Rows that a state keeps of what was given of the last token: one for this half of the layer, another where the other half leans too.
    pub n_shifted: usize,
}

impl TimeShape {
    /// Values of all heads: the width of the residual stream.
    pub fn n_embd(&self) -> usize {
        self.n_head * self.head_dim
    }

    /// Floats of the state: what was given of the last token, and the heads' matrices; what the other half was given comes last.
    pub fn n_state(&self) -> usize {
        self.n_embd().saturating_mul(self.n_shifted.saturating_add(self.head_dim))
    }

    /// Where the matrix of head `h` is in the state.
    fn memory(&self, h: usize) -> Range<usize> {
        let (first, len) = (self.n_embd(), self.head_dim * self.head_dim);
        first + h * len..first + (h + 1) * len
    }
}

/// What is made in two steps: of how many kinds it is at most, and which is which.
const N_TWO_STEPS: usize = 4;
const DECAY: usize = 0;
/// How far what moves goes.
pub(super) const RATE: usize = 1;
/// How far values lean to those of the first layer.
pub(super) const LEAN: usize = 2;
pub(super) const GATE: usize = 3;

/// Work space, rows for every token of a step. A model has such layers of one size.
pub struct TimeMixBuffers {
    /// What projections meet.
    operands: Vec<Activations>,
    q: SharedBuf<f32>,
    k: SharedBuf<f32>,
    v: SharedBuf<f32>,
    /// What is between the two steps of each kind, and what meets the second; what that makes.
    low: [SharedBuf<f32>; N_TWO_STEPS],
    rows: [Option<Activations>; N_TWO_STEPS],
    made: [SharedBuf<f32>; N_TWO_STEPS],
    /// What is between the two steps of factors that tokens have for themselves, and for each operand what meets the second and what that makes.
    own_low: SharedBuf<f32>,
    own_rows: Vec<Activations>,
    own: Vec<SharedBuf<f32>>,
    /// Keys that the rule makes of others.
    keys: SharedBuf<f32>,
    /// The values of the first layer.
    first_values: SharedBuf<f32>,
}

impl TimeMixBuffers {
    /// Room for `n` tokens in these layers; `None` where there are none. `activations` makes it for rows of so many values that products meet.
    pub fn new<'a>(
        layers: impl Iterator<Item = &'a TimeMix> + Clone,
        n: usize,
        activations: impl Fn(usize) -> Activations,
    ) -> Option<Self> {
        let first = layers.clone().next()?;
        let n_embd = first.shape.n_embd();
        let room = |width: usize| SharedBuf::new(n * width);
        let steps = |i: usize| layers.clone().find_map(|l| l.two_steps()[i]).map(|s| &s.meets);
        let rank = |i: usize| steps(i).map(|s| s.up.weight.cols());
        let kinds = [DECAY, RATE, LEAN, GATE];
        let own = first.own.as_ref();
        let up = || own.into_iter().flat_map(|own| &own.up);
        Some(Self {
            operands: (0..first.shift.n_operands(n_embd)).map(|_| activations(n_embd)).collect(),
            q: room(n_embd),
            k: room(first.k.meets.weight.rows()),
            v: room(first.v.meets.weight.rows()),
            low: kinds.map(|i| room(rank(i).unwrap_or(0))),
            rows: kinds.map(|i| rank(i).map(&activations)),
            made: kinds.map(|_| room(n_embd)),
            own_low: room(own.map_or(0, |own| own.down.weight.rows())),
            own_rows: up().map(|up| activations(up.weight.cols())).collect(),
            own: up().map(|up| room(up.weight.rows())).collect(),
            keys: room(n_embd),
            first_values: room(n_embd),
        })
    }

    /// The operands, of rows that meet weights in this form, with second digits from this step on.
    pub fn operands(&self, form: Form, fine_step: f32) -> Vec<Operand<'_>> {
        self.operands.iter().map(|rows| rows.with(form, fine_step)).collect()
    }

    /// Room for gates, rows as wide as the residual stream.
    pub fn gates(&self) -> &SharedBuf<f32> {
        &self.made[GATE]
    }
}

/// One head's part of a step's buffers.
pub(super) struct Head<'a> {
    buf: &'a TimeMixBuffers,
    /// Tokens.
    pub n: usize,
    at: Range<usize>,
    width: usize,
    /// The same of keys and values, which heads may share.
    kv_at: Range<usize>,
    kv_width: usize,
}

impl<'a> Head<'a> {
    /// Its elements for token `t` in a buffer with rows of all heads.
    ///
    /// # Safety
    /// The head is this member's, which holds no other reference to them.
    #[allow(clippy::mut_from_ref)]
    unsafe fn of(&self, rows: &'a SharedBuf<f32>, t: usize) -> &'a mut [f32] {
        // SAFETY: passed on to the caller.
        unsafe { rows.get_mut(t * self.width + self.at.start..t * self.width + self.at.end) }
    }

    /// # Safety
    /// As [`Head::of`].
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn query(&self, t: usize) -> &'a mut [f32] {
        // SAFETY: passed on to the caller.
        unsafe { self.of(&self.buf.q, t) }
    }

    /// The key of a token, of a rule whose heads have keys of their own.
    ///
    /// # Safety
    /// As [`Head::of`].
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn key(&self, t: usize) -> &'a mut [f32] {
        // SAFETY: passed on to the caller.
        unsafe { self.of(&self.buf.k, t) }
    }

    /// The value, likewise.
    ///
    /// # Safety
    /// As [`Head::of`].
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn value(&self, t: usize) -> &'a mut [f32] {
        // SAFETY: passed on to the caller.
        unsafe { self.of(&self.buf.v, t) }
    }

    /// The key of a token, which may be that of other heads too.
    ///
    /// # Safety
    /// Nobody writes it as long as it is borrowed.
    pub unsafe fn shared_key(&self, t: usize) -> &'a [f32] {
        // SAFETY: passed on to the caller.
        unsafe { self.buf.k.get(t * self.kv_width + self.kv_at.start..t * self.kv_width + self.kv_at.end) }
    }

    /// The value, likewise.
    ///
    /// # Safety
    /// As [`Head::shared_key`].
    pub unsafe fn shared_value(&self, t: usize) -> &'a [f32] {
        // SAFETY: passed on to the caller.
        unsafe { self.buf.v.get(t * self.kv_width + self.kv_at.start..t * self.kv_width + self.kv_at.end) }
    }

    /// What the second step of this kind made.
    ///
    /// # Safety
    /// As [`Head::of`].
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn made(&self, kind: usize, t: usize) -> &'a mut [f32] {
        // SAFETY: passed on to the caller.
        unsafe { self.of(&self.buf.made[kind], t) }
    }

    /// The rates of a token, or what they are made of.
    ///
    /// # Safety
    /// As [`Head::of`].
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn rates(&self, t: usize) -> &'a mut [f32] {
        // SAFETY: passed on to the caller.
        unsafe { self.made(DECAY, t) }
    }

    /// Room for a key that the rule makes.
    ///
    /// # Safety
    /// As [`Head::of`].
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn other_key(&self, t: usize) -> &'a mut [f32] {
        // SAFETY: passed on to the caller.
        unsafe { self.of(&self.buf.keys, t) }
    }

    /// The value of the first layer, or room for it.
    ///
    /// # Safety
    /// As [`Head::of`].
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn first_value(&self, t: usize) -> &'a mut [f32] {
        // SAFETY: passed on to the caller.
        unsafe { self.of(&self.buf.first_values, t) }
    }

    /// Queries, keys, values and rates; keys that the rule made; what decides how far what moves goes.
    ///
    /// # Safety
    /// Nobody writes them as long as they are borrowed.
    pub unsafe fn all(&self) -> [Rows<'a, f32>; 6] {
        let b = self.buf;
        // SAFETY: passed on to the caller; rows are as wide as they are said to be.
        let rows = |of: &'a SharedBuf<f32>, at: &Range<usize>, width| unsafe {
            Rows::from_raw(of.as_ptr().add(at.start), self.n, at.len(), width)
        };
        let own = |of| rows(of, &self.at, self.width);
        let shared = |of| rows(of, &self.kv_at, self.kv_width);
        [own(&b.q), shared(&b.k), shared(&b.v), own(&b.made[DECAY]), own(&b.keys), own(&b.made[RATE])]
    }
}

impl TimeMix {
    /// What is made in two steps, by kind.
    fn two_steps(&self) -> [Option<&Given<TwoSteps>>; N_TWO_STEPS] {
        match &self.rule {
            TimeRule::Fading(_) => [Some(&self.decay), None, None, None],
            TimeRule::Moving(rule) => [Some(&self.decay), Some(&rule.rate), rule.lean.as_ref(), rule.gate.as_ref()],
        }
    }

    /// What makes gates in one step.
    fn gate(&self) -> Option<&Given<Linear>> {
        match &self.rule {
            TimeRule::Fading(rule) => Some(&rule.gate),
            TimeRule::Moving(_) => None,
        }
    }

    /// How many heads have keys and values of their own.
    fn n_head_kv(&self) -> usize {
        match &self.rule {
            TimeRule::Fading(rule) => rule.n_head_kv,
            TimeRule::Moving(_) => self.shape.n_head,
        }
    }

    /// The projections that make what the state takes in, and what is made beside that.
    pub fn cached(&self) -> impl Iterator<Item = &Linear> {
        let own = self.own.iter().flat_map(|own| own.up.iter().chain([&own.down]));
        let steps = self.two_steps().into_iter().flatten().flat_map(|s| [&s.meets.down, &s.meets.up]);
        let whole = [&self.q, &self.k, &self.v].into_iter().chain(self.gate()).map(|g| &g.meets);
        own.chain(whole).chain(steps)
    }

    /// Every matrix.
    pub fn matrices(&self) -> impl Iterator<Item = &Linear> {
        self.cached().chain([&self.out])
    }

    /// Takes the step's tokens, given as rows of `x`, into the state that `cache` keeps. What the last of them read there goes to `out`. Six
    /// phases, four more where tokens lean by factors of their own, and one where a sequence begins.
    pub fn absorb(
        &self,
        ops: &mut Ops,
        buf: &TimeMixBuffers,
        x: Operand,
        cache: &LayerCache,
        step: RecurrentStep,
        out: Operand,
    ) {
        let (worker, kernels, s) = (ops.worker, ops.kernels, &self.shape);
        let (state, n) = (cache.state(), step.n);
        if step.begins {
            // SAFETY: shared out disjointly.
            unsafe { state.get_mut(worker.share(state.len())) }.fill(0.0);
            worker.barrier();
        }
        let (operands, before) = (buf.operands(step.form, step.fine_step), Before { state, at: 0 });
        if let Some(own) = &self.own {
            own.shift.lean(ops, x, 0..n, before, None, &operands[..1]);
            own.make(ops, buf, operands[0], step);
        }
        self.shift.lean(ops, x, 0..n, before, self.own.is_some().then_some(&buf.own), &operands);
        before.keep(ops, x, n);
        let whole = [(&self.q, &buf.q), (&self.k, &buf.k), (&self.v, &buf.v)];
        let whole = whole
            .into_iter()
            .chain(self.gate().map(|gate| (gate, buf.gates())))
            .map(|(g, to)| (operands[g.operand], (&g.meets, to)));
        let first_steps = self.two_steps().into_iter().zip(&buf.low).filter_map(|(g, low)| Some((g?, low)));
        let first_steps = first_steps.map(|(g, low)| (operands[g.operand], (&g.meets.down, low)));
        ops.linear_apart(0..n, &whole.chain(first_steps).collect::<Vec<(Operand, Job)>>());
        self.second_steps(ops, buf, step);
        let n_head_kv = self.n_head_kv();
        worker.for_each_chunk(s.n_head, |h| {
            let elements = |h: usize| h * s.head_dim..(h + 1) * s.head_dim;
            let (at, kv_at) = (elements(h), elements(h / (s.n_head / n_head_kv)));
            // SAFETY: a head's matrix, its elements of all rows and its results belong to one member.
            unsafe {
                let memory = state.get_mut(s.memory(h));
                let first = out.part_mut(0, at.clone()).as_mut_ptr();
                let results = RowsMut::from_raw(first, step.n_wanted, s.head_dim, out.k());
                let (width, kv_width) = (s.n_embd(), n_head_kv * s.head_dim);
                let head = Head { buf, n, at: at.clone(), width, kv_at, kv_width };
                match &self.rule {
                    TimeRule::Fading(rule) => rule.run(&kernels.float, &head, memory, results),
                    TimeRule::Moving(rule) => rule.run(&kernels.float, &head, h, memory, results),
                }
                for row in 0..step.n_wanted {
                    let result = out.part_mut(row, at.clone());
                    self.finish(kernels, &head, h, n - step.n_wanted + row, result);
                }
            }
        });
        worker.barrier();
        for i in worker.share(step.n_wanted) {
            // SAFETY: rows are shared out disjointly.
            unsafe { out.finish_row(kernels, i) };
        }
        worker.barrier();
    }

    /// The second steps of what is made in two. Two phases.
    fn second_steps(&self, ops: &mut Ops, buf: &TimeMixBuffers, step: RecurrentStep) {
        let operand = |i: usize| {
            let rows = buf.rows[i].as_ref().expect("room for what some layer makes in two steps");
            rows.with(step.form, step.fine_step)
        };
        let steps = self.two_steps();
        let all: Vec<_> = steps
            .iter()
            .enumerate()
            .filter_map(|(i, s)| Some((&(*s)?.meets, operand(i), &buf.low[i], &buf.made[i])))
            .collect();
        for i in ops.worker.share(step.n * all.len()) {
            let (t, (steps, rows, low, _)) = (i / all.len(), &all[i % all.len()]);
            // SAFETY: rows of each kind are shared out disjointly.
            unsafe {
                let row = rows.row_mut(t);
                row.copy_from_slice(low.get(t * rows.k()..(t + 1) * rows.k()));
                steps.curve.apply(&ops.kernels.float, row);
                rows.finish_row(ops.kernels, t);
            }
        }
        ops.worker.barrier();
        let jobs: Vec<(Operand, Job)> = all.iter().map(|(s, rows, _, made)| (*rows, (&s.up, *made))).collect();
        ops.linear_apart(0..step.n, &jobs);
    }

    /// Makes of what head `h` read for token `t` its result.
    ///
    /// # Safety
    /// The head is this member's.
    unsafe fn finish(&self, kernels: &Kernels, head: &Head, h: usize, t: usize, result: &mut [f32]) {
        if let TimeRule::Fading(rule) = &self.rule {
            // SAFETY: passed on to the caller.
            unsafe { rule.add_own(&kernels.float, head, h, t, result) };
        }
        if let Some(norms) = &self.norm {
            norms[h].apply_in_place(&kernels.float, result, self.norm_eps);
        }
        // SAFETY: passed on to the caller.
        unsafe {
            match &self.rule {
                TimeRule::Fading(rule) => rule.finish(&kernels.float, head, t, result),
                TimeRule::Moving(rule) => rule.finish(&kernels.float, head, h, t, result),
            }
        }
    }
}

impl OwnLeaning {
    /// Makes factors for every operand, of the rows of `x` for a step's tokens. Three phases.
    fn make(&self, ops: &mut Ops, buf: &TimeMixBuffers, x: Operand, step: RecurrentStep) {
        ops.linear(x, 0..step.n, &[(&self.down, &buf.own_low)]);
        let rows: Vec<Operand> = buf.own_rows.iter().map(|rows| rows.with(step.form, step.fine_step)).collect();
        for i in ops.worker.share(step.n * rows.len()) {
            let (t, rows) = (i / rows.len(), rows[i % rows.len()]);
            // SAFETY: rows of each operand are shared out disjointly; `i` counts them as they lie in the first step's result.
            unsafe {
                let row = rows.row_mut(t);
                row.copy_from_slice(buf.own_low.get(i * rows.k()..(i + 1) * rows.k()));
                Curve::Tanh.apply(&ops.kernels.float, row);
                rows.finish_row(ops.kernels, t);
            }
        }
        ops.worker.barrier();
        let jobs: Vec<(Operand, Job)> = rows.into_iter().zip(self.up.iter().zip(&buf.own)).collect();
        ops.linear_apart(0..step.n, &jobs);
    }
}

impl Curve {
    fn apply(self, f: &FloatKernels, x: &mut [f32]) {
        match self {
            Self::Straight => {}
            Self::Tanh => f.soft_cap(x, 1.0),
            Self::Sigmoid => f.sigmoid(x),
        }
    }
}
