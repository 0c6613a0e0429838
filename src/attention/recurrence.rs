//! Layers that know the tokens before as a whole, in the place of attention or beside it: a matrix for each head, from keys to values, which
//! every token changes and reads. It does not grow with the context, and there is no way back from it.
//!
//! Queries, keys and values first go through short convolutions; the few inputs that the next token's meet are a part of the state. How
//! a token changes the matrix is up to the layer's rule: the gated delta rule, with one rate of fading for a head or one for each element of its keys,
//! the selective scan of Mamba-2, or lightning attention, whose convolutions go over a token alone. The scan of the first Mamba has
//! for each channel of values a memory of its own; its heads are channels that members of a team take together, and its queries and keys go
//! through no convolutions.

use std::ops::Range;

use ggml_ext::kernels::Kernels;
use ggml_ext::kernels::float::{Rows, RowsMut, StateRates, StateUpdate};

use super::channels::{ChannelBuffers, ChannelScan};
use super::delta::DeltaRule;
use super::kda::{KeyedBuffers, KeyedDelta};
use super::kv_cache::LayerCache;
use super::lightning::Lightning;
use super::scan::SelectiveScan;
use crate::compute::{Activations, Form, Job, Linear, Operand, Ops, SharedBuf};

/// A layer's heads and parameters.
pub struct Recurrence {
    /// Sizes.
    pub shape: RecurrentShape,
    /// Make queries, keys and values: rows of [`RecurrentShape::n_mixed`], those of one matrix after those of the one before.
    pub mixed: Box<[Linear]>,
    /// Makes what results are multiplied with: rows of [`RecurrentShape::n_values`]; or what that is made of, where the rule has a second step.
    pub gate: Linear,
    /// The convolutions' weights, `[n_filter, n_mixed]`: a row of channels for each position, the token's own last.
    pub filter: Box<[f32]>,
    /// Added to what they make, `[n_mixed]`, where the family has it.
    pub filter_bias: Option<Box<[f32]>>,
    /// How tokens change the state.
    pub rule: Rule,
    /// Output projection.
    pub out: Linear,
}

/// How a token changes a head's matrix, with the parameters for that.
pub enum Rule {
    /// The gated delta rule.
    Delta(DeltaRule),
    /// The same with rates for each element of a key.
    Keyed(KeyedDelta),
    /// The selective scan.
    Scan(SelectiveScan),
    /// The same with rates that are the layer's own.
    Lightning(Lightning),
    /// The selective scan of the first Mamba, channel by channel, or of PLaMo 2.
    Channels(ChannelScan),
}

impl Rule {
    /// For messages about a layer: what it has.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Delta(_) | Self::Keyed(_) => "the gated delta rule",
            Self::Scan(_) | Self::Channels(_) => "a selective scan",
            Self::Lightning(_) => "lightning attention",
        }
    }

    /// The projections to the numbers that rates are made of: one for each head or each element of its keys, or a few values that a second step follows.
    fn numbers(&self) -> [Option<&Linear>; 2] {
        match self {
            Self::Delta(rule) => [Some(&rule.alpha), Some(&rule.beta)],
            Self::Keyed(rule) => [Some(&rule.fade), Some(&rule.beta)],
            Self::Scan(scan) => [Some(&scan.step), None],
            Self::Lightning(_) | Self::Channels(_) => [None, None],
        }
    }

    /// The projections of what the convolutions or other projections gave.
    fn of_values(&self) -> [Option<&Linear>; 2] {
        match self {
            Self::Channels(scan) => [Some(&scan.made), Some(&scan.step)],
            Self::Keyed(rule) => [rule.fade_on.as_ref(), None],
            Self::Delta(_) | Self::Scan(_) | Self::Lightning(_) => [None, None],
        }
    }

    /// The second step of gates.
    fn gate(&self) -> Option<&Linear> {
        match self {
            Self::Keyed(rule) => rule.gate_on.as_ref(),
            Self::Delta(_) | Self::Scan(_) | Self::Lightning(_) | Self::Channels(_) => None,
        }
    }
}

/// The heads of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecurrentShape {
    /// Heads, each with a value and a state.
    pub n_head: usize,
    /// Query and key heads that go through convolutions; divides `n_head`. 0 where queries and keys are made after these.
    pub n_head_k: usize,
    /// Length of a query or key head.
    pub head_dim_k: usize,
    /// Length of a value head.
    pub head_dim_v: usize,
    /// Positions that convolutions go over.
    pub n_filter: usize,
    /// Whether key head `h / (n_head / n_head_k)` serves head `h`, or `h % n_head_k`.
    pub in_groups: bool,
    /// Whether what goes through convolutions is values, keys and queries, or queries, keys and values.
    pub values_first: bool,
}

impl RecurrentShape {
    /// Channels of queries, keys and values together.
    pub fn n_mixed(&self) -> usize {
        2 * self.n_head_k * self.head_dim_k + self.n_values()
    }

    /// Those of values.
    pub fn n_values(&self) -> usize {
        self.n_head * self.head_dim_v
    }

    /// Floats of the state: earlier inputs of the convolutions, and the heads' matrices.
    pub fn n_state(&self) -> usize {
        self.n_inputs() + self.n_head * self.n_memory()
    }

    /// Those of the convolutions' inputs.
    fn n_inputs(&self) -> usize {
        (self.n_filter - 1) * self.n_mixed()
    }

    /// Those of a head's matrix.
    fn n_memory(&self) -> usize {
        self.head_dim_k * self.head_dim_v
    }

    fn key_head(&self, head: usize) -> usize {
        if self.in_groups { head / (self.n_head / self.n_head_k) } else { head % self.n_head_k }
    }

    /// Pieces of a row that goes through convolutions, each of one head: of queries, keys and values, in this order.
    fn n_pieces(&self) -> usize {
        2 * self.n_head_k + self.n_head
    }

    /// The channels of piece `i`.
    fn channels(&self, i: usize) -> Range<usize> {
        let (n, d) = (self.n_head_k, self.head_dim_k);
        let [queries, keys, values] =
            if self.values_first { [self.n_values() + n * d, self.n_values(), 0] } else { [0, n * d, 2 * n * d] };
        let (start, len) = match i {
            i if i < n => (queries + i * d, d),
            i if i < 2 * n => (keys + (i - n) * d, d),
            i => (values + (i - 2 * n) * self.head_dim_v, self.head_dim_v),
        };
        start..start + len
    }
}

/// What the layers' projections make of a step's tokens, and work space.
pub struct RecurrentBuffers {
    /// Queries, keys and values before the convolutions: what each matrix of [`Recurrence::mixed`] makes.
    mixed: [SharedBuf<f32>; N_MIXED],
    /// What results are multiplied with, rows of [`RecurrentShape::n_values`].
    gate: SharedBuf<f32>,
    /// Numbers of every head, or what these are made of.
    numbers: [SharedBuf<f32>; 2],
    /// Queries, keys and values after the convolutions, rows of the same.
    convolved: SharedBuf<f32>,
    /// Rates of every head, a run of `n_ubatch` for each.
    rates: SharedBuf<StateRates>,
    /// What scans of channels make between convolutions and scan.
    channels: Option<ChannelBuffers>,
    /// What the second steps of the delta rule with rates for each element of a key work in.
    keyed: Option<KeyedBuffers>,
    n_ubatch: usize,
}

/// Most matrices that make queries, keys and values.
const N_MIXED: usize = 3;

impl RecurrentBuffers {
    /// Room for `n_ubatch` tokens in these layers; `None` where there are none. `activations` makes it for rows of so many values that products meet.
    pub fn new<'a>(
        layers: impl Iterator<Item = &'a Recurrence> + Clone,
        n_ubatch: usize,
        activations: impl Fn(usize) -> Activations,
    ) -> Option<Self> {
        let most = |n: &dyn Fn(RecurrentShape) -> usize| layers.clone().map(|l| n(l.shape)).max();
        let scan = layers.clone().find_map(|l| if let Rule::Channels(scan) = &l.rule { Some(scan) } else { None });
        let keyed = layers.clone().find_map(|l| if let Rule::Keyed(rule) = &l.rule { Some(rule) } else { None });
        let rows = |linear: Option<&Linear>| linear.map_or(0, |l| l.weight.rows());
        let most_rows =
            |of: &dyn Fn(&'a Recurrence) -> Option<&'a Linear>| layers.clone().map(|l| rows(of(l))).max().unwrap_or(0);
        let (n_mixed, n_values, n_head) = (most(&|s| s.n_mixed())?, most(&|s| s.n_values())?, most(&|s| s.n_head)?);
        let room = |n: usize| SharedBuf::new(n_ubatch * n);
        Some(Self {
            mixed: std::array::from_fn(|i| room(most_rows(&|l| l.mixed.get(i)))),
            gate: room(n_values),
            numbers: [0, 1].map(|i| room(most_rows(&|l| l.rule.numbers()[i]))),
            convolved: room(n_mixed),
            rates: SharedBuf::new(n_ubatch * n_head),
            channels: scan.map(|scan| ChannelBuffers::new(scan, n_ubatch, &activations)),
            keyed: keyed.and_then(|rule| KeyedBuffers::new(rule, n_ubatch, &activations)),
            n_ubatch,
        })
    }

    fn of_channels(&self) -> &ChannelBuffers {
        self.channels.as_ref().expect("work space for scans of channels")
    }
}

/// A step's tokens.
#[derive(Clone, Copy)]
pub struct RecurrentStep {
    /// Whether the sequence begins with them.
    pub begins: bool,
    /// How many.
    pub n: usize,
    /// Of how many, the last ones, results are wanted.
    pub n_wanted: usize,
    /// In which form rows meet weights on the way to the scan.
    pub form: Form,
    /// From which step on they get second digits.
    pub fine_step: f32,
}

impl Recurrence {
    /// The projections that make what the state takes in.
    pub fn cached(&self) -> impl Iterator<Item = &Linear> {
        let of_rule = [self.rule.numbers(), self.rule.of_values()];
        self.mixed.iter().chain(of_rule.into_iter().flatten().flatten())
    }

    /// Every matrix.
    pub fn matrices(&self) -> impl Iterator<Item = &Linear> {
        self.cached().chain([&self.gate, &self.out]).chain(self.rule.gate())
    }

    /// The products of a layer's input that the state takes in, and those that serve tokens' own results, with where they go.
    pub fn products<'a>(&'a self, buf: &'a RecurrentBuffers) -> ([Option<Job<'a>>; 2 + N_MIXED], Job<'a>) {
        let mut cached = [None; 2 + N_MIXED];
        let numbers = self.rule.numbers().into_iter().zip(&buf.numbers).map(|(linear, out)| Some((linear?, out)));
        let mixed = self.mixed.iter().zip(&buf.mixed).map(Some);
        cached.iter_mut().zip(numbers.chain(mixed)).for_each(|(place, job)| *place = job);
        (cached, (&self.gate, &buf.gate))
    }

    /// Which of the matrices makes these channels of queries, keys and values, and the first that it makes.
    fn maker(&self, channels: &Range<usize>) -> (usize, usize) {
        let mut first = 0;
        for (i, linear) in self.mixed.iter().enumerate() {
            let end = first + linear.weight.rows();
            if channels.start < end {
                return (i, first);
            }
            first = end;
        }
        unreachable!("channels that no matrix makes")
    }

    /// Takes the step's tokens, whose projections are in `buf`, into the state that `cache` keeps. What they read there goes to `out`. Two
    /// phases, one more where a sequence begins, and four where channels have steps of their own.
    pub fn absorb(&self, ops: &mut Ops, buf: &RecurrentBuffers, cache: &LayerCache, step: RecurrentStep, out: Operand) {
        let (worker, kernels) = (ops.worker, ops.kernels);
        let (s, n, state) = (&self.shape, step.n, cache.state());
        if step.begins {
            // SAFETY: shared out disjointly.
            unsafe { state.get_mut(worker.share(state.len())) }.fill(0.0);
            worker.barrier();
        }
        let n_pieces = s.n_pieces();
        for i in worker.share(n * n_pieces) {
            // SAFETY: projections and state are only read in this phase; pieces of rows, and rates, are shared out disjointly.
            unsafe { self.convolve(kernels, buf, state, i / n_pieces, i % n_pieces) };
        }
        worker.barrier();
        match &self.rule {
            Rule::Channels(scan) => scan.make(ops, buf.of_channels(), &buf.convolved, step),
            Rule::Keyed(rule) => rule.make(ops, buf.keyed.as_ref(), &buf.numbers[0], step),
            Rule::Delta(_) | Rule::Scan(_) | Rule::Lightning(_) => {}
        }
        let (dk, dv, width) = (s.head_dim_k, s.head_dim_v, s.n_mixed());
        worker.for_each_chunk(s.n_head, |h| {
            let piece = |i: usize| {
                let channels = s.channels(i);
                // SAFETY: nobody writes these rows in this phase.
                unsafe { Rows::from_raw(buf.convolved.as_ptr().add(channels.start), n, channels.len(), width) }
            };
            let v = piece(2 * s.n_head_k + h);
            let memory = s.n_inputs() + h * dk * dv;
            // SAFETY: a head's matrix, rates and results belong to one member.
            unsafe {
                let first = out.part_mut(0, h * dv..(h + 1) * dv).as_mut_ptr();
                let results = RowsMut::from_raw(first, step.n_wanted, dv, out.k());
                let memory = state.get_mut(memory..memory + dk * dv);
                let update = |state, out| {
                    let [q, k] = [s.key_head(h), s.n_head_k + s.key_head(h)].map(piece);
                    let rates = buf.rates.get(h * buf.n_ubatch..h * buf.n_ubatch + n);
                    StateUpdate { state, q, k, v, rates, out }
                };
                match &self.rule {
                    Rule::Delta(_) => kernels.float.delta_rule(update(memory, results)),
                    Rule::Keyed(rule) => {
                        let rates = rule.rates(&kernels.float, buf.keyed.as_ref(), &buf.numbers[0], h, n, dk);
                        kernels.float.keyed_delta_rule(update(memory, results), rates);
                    }
                    Rule::Scan(_) | Rule::Lightning(_) => kernels.float.selective_scan(update(memory, results)),
                    Rule::Channels(scan) => {
                        let channels = s.channels(2 * s.n_head_k + h);
                        let rates = buf.rates.get_mut(h * buf.n_ubatch..h * buf.n_ubatch + n);
                        scan.run(kernels, buf.of_channels(), h, channels, memory, v, rates, results);
                    }
                }
                for t in 0..step.n_wanted {
                    let (value, result) = (v.row(n - step.n_wanted + t), out.part_mut(t, h * dv..(h + 1) * dv));
                    match &self.rule {
                        Rule::Delta(_) | Rule::Keyed(_) | Rule::Lightning(_) => {}
                        Rule::Scan(scan) => kernels.float.axpy(scan.skip[h], value, result),
                        Rule::Channels(scan) => {
                            kernels.float.add_product(result, value, &scan.skip[h * dv..(h + 1) * dv]);
                        }
                    }
                }
            }
        });
        // SAFETY: channels are shared out disjointly, and the convolutions of this step are done.
        unsafe { self.keep_inputs(&buf.mixed, state, n, worker.share(width)) };
        worker.barrier();
    }

    /// Piece `i` of token `t`'s queries, keys and values after their convolutions; and with a value its head's rates.
    ///
    /// # Safety
    /// Nobody writes projections and state, and nobody else this piece and these rates, before the next barrier.
    unsafe fn convolve(&self, kernels: &Kernels, buf: &RecurrentBuffers, state: &SharedBuf<f32>, t: usize, i: usize) {
        let (s, f, width) = (&self.shape, &kernels.float, self.shape.n_mixed());
        let channels = s.channels(i);
        let (maker, first) = self.maker(&channels);
        let made = self.mixed[maker].weight.rows();
        let given = |row: usize| row * made + channels.start - first..row * made + channels.end - first;
        // SAFETY: passed on to the caller.
        unsafe {
            let at = |row: usize| row * width + channels.start..row * width + channels.end;
            let out = buf.convolved.get_mut(at(t));
            match &self.filter_bias {
                Some(bias) => out.copy_from_slice(&bias[channels.clone()]),
                None => out.fill(0.0),
            }
            for (j, weights) in self.filter.chunks_exact(width).enumerate() {
                let input = match (t + j).checked_sub(s.n_filter - 1) {
                    Some(row) => buf.mixed[maker].get(given(row)),
                    None => state.get(at(t + j)),
                };
                f.add_product(out, input, &weights[channels.clone()]);
            }
            f.silu(out);
            let place = |h: usize| h * buf.n_ubatch + t..h * buf.n_ubatch + t + 1;
            let number = |which: usize, h: usize| buf.numbers[which].get(t * s.n_head + h..t * s.n_head + h + 1)[0];
            match (&self.rule, i.checked_sub(2 * s.n_head_k)) {
                (Rule::Delta(rule), Some(h)) => {
                    buf.rates.get_mut(place(h))[0] = rule.rates(h, number(0, h), number(1, h));
                }
                (Rule::Keyed(_), Some(h)) => buf.rates.get_mut(place(h))[0] = KeyedDelta::step(number(1, h)),
                (Rule::Delta(rule), None) => rule.normalise(f, out, i < s.n_head_k),
                (Rule::Keyed(rule), None) => rule.normalise(f, out, i < s.n_head_k),
                (Rule::Scan(scan), Some(h)) => buf.rates.get_mut(place(h))[0] = scan.rates(h, number(0, h)),
                (Rule::Lightning(rule), Some(h)) => buf.rates.get_mut(place(h))[0] = rule.rates(h),
                (Rule::Scan(_) | Rule::Lightning(_), None) | (Rule::Channels(_), _) => {}
            }
        }
    }

    /// Keeps what the next tokens' convolutions meet of the last of `n` tokens, and of those before, in these channels.
    ///
    /// # Safety
    /// Nobody else touches these channels of the state, and nobody writes `mixed`, before the next barrier.
    unsafe fn keep_inputs(&self, mixed: &[SharedBuf<f32>], state: &SharedBuf<f32>, n: usize, channels: Range<usize>) {
        let (width, n_rows) = (self.shape.n_mixed(), self.shape.n_filter - 1);
        let mut first = 0;
        for (linear, mixed) in self.mixed.iter().zip(mixed) {
            let made = linear.weight.rows();
            let own = channels.start.max(first)..channels.end.min(first + made);
            for row in 0..if own.is_empty() { 0 } else { n_rows } {
                let at = |row: usize| row * width + own.start..row * width + own.end;
                let given = |row: usize| row * made + own.start - first..row * made + own.end - first;
                // SAFETY: passed on to the caller; later rows of the state are read before they are written.
                unsafe {
                    let input = match (row + n).checked_sub(n_rows) {
                        Some(token) => mixed.get(given(token)),
                        None => state.get(at(row + n)),
                    };
                    state.get_mut(at(row)).copy_from_slice(input);
                }
            }
            first += made;
        }
    }

    /// Normalises what the first `n` rows of `out` have read, and multiplies it with their gates, as the rule has it. One phase, and two more where
    /// gates are made in two steps, which meet weights in this form and with second digits from this step on.
    pub fn finish(&self, ops: &mut Ops, buf: &RecurrentBuffers, n: usize, form: (Form, f32), out: Operand) {
        if let Rule::Keyed(rule) = &self.rule {
            rule.make_gates(ops, buf.keyed.as_ref(), &buf.gate, n, form);
        }
        let (worker, kernels) = (ops.worker, ops.kernels);
        for i in worker.share(n) {
            // SAFETY: rows are shared out disjointly.
            unsafe {
                let (f, row) = (&kernels.float, out.row_mut(i));
                let gates = || buf.gate.get_mut(i * out.k()..(i + 1) * out.k());
                let curved = || {
                    let gates = gates();
                    f.silu(gates);
                    gates
                };
                match &self.rule {
                    Rule::Delta(rule) => rule.finish(f, row, curved()),
                    Rule::Keyed(rule) => rule.finish(f, buf.keyed.as_ref(), &buf.gate, i, row),
                    Rule::Scan(scan) => scan.finish(f, row, curved()),
                    Rule::Lightning(rule) => rule.finish(f, row, gates()),
                    Rule::Channels(_) => f.mul_assign(row, curved()),
                }
                out.finish_row(kernels, i);
            }
        }
        worker.barrier();
    }
}

/// `ln(1 + e^x)`, which is `x` for large `x`.
pub(super) fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_all_channels_once() {
        for values_first in [false, true] {
            let shape = RecurrentShape {
                n_head: 6,
                n_head_k: 2,
                head_dim_k: 5,
                head_dim_v: 3,
                n_filter: 4,
                in_groups: true,
                values_first,
            };
            let mut all: Vec<_> = (0..shape.n_pieces()).flat_map(|i| shape.channels(i)).collect();
            let first_value = shape.channels(2 * shape.n_head_k).start;
            assert_eq!(first_value, if values_first { 0 } else { 20 });
            all.sort_unstable();
            assert_eq!(all, (0..shape.n_mixed()).collect::<Vec<_>>());
        }
    }
}
