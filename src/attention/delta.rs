//! The gated delta rule in the place of attention (arXiv 2412.06464; Qwen3-Next, Qwen3.5): what a layer knows of the tokens before is a
//! matrix for each head, from keys to values, which every token fades, corrects and reads. It does not grow with the context, and there
//! is no way back from it.
//!
//! Queries, keys and values first go through short convolutions; the few inputs that the next token's meet are a part of the state.

use std::ops::Range;

use ggml_ext::kernels::Kernels;
use ggml_ext::kernels::float::{DeltaRates, Rows, RowsMut};

use super::kv_cache::LayerCache;
use crate::compute::{Linear, Operand, SharedBuf, Worker, sigmoid};

/// A layer's heads and parameters, but for the projection of its results.
pub struct DeltaNet {
    /// Sizes.
    pub shape: DeltaShape,
    /// Makes queries, keys and values: rows of [`DeltaShape::n_mixed`].
    pub mixed: Linear,
    /// Makes what results are multiplied with: rows of `n_head * head_dim_v`.
    pub gate: Linear,
    /// Makes what decides how fast a head forgets: a number for each.
    pub alpha: Linear,
    /// Makes what decides how far a head goes to what is new: a number for each.
    pub beta: Linear,
    /// The convolutions' weights, `[n_filter, n_mixed]`: a row of channels for each position, the token's own last.
    pub filter: Box<[f32]>,
    /// Added to what `alpha` makes.
    pub alpha_bias: Box<[f32]>,
    /// What the logarithm of a head's decay is, relative to a softplus of that: negative.
    pub decay: Box<[f32]>,
    /// RMSNorm on every head's results, `[head_dim_v]`.
    pub norm: Box<[f32]>,
    /// Its epsilon, and that of the normalisation of queries and keys.
    pub eps: f32,
}

/// The heads of a layer with the delta rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaShape {
    /// Heads, each with a value and a state.
    pub n_head: usize,
    /// Query and key heads; divides `n_head`.
    pub n_head_k: usize,
    /// Length of a query or key head.
    pub head_dim_k: usize,
    /// Length of a value head.
    pub head_dim_v: usize,
    /// Positions that convolutions go over.
    pub n_filter: usize,
    /// Whether key head `h / (n_head / n_head_k)` serves head `h`, or `h % n_head_k`.
    pub in_groups: bool,
}

impl DeltaShape {
    /// Channels of queries, keys and values together.
    pub fn n_mixed(&self) -> usize {
        2 * self.n_head_k * self.head_dim_k + self.n_head * self.head_dim_v
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

    /// The channels of piece `i` of queries, keys and values: a head of one of these.
    fn channels(&self, i: usize) -> Range<usize> {
        let (n, d) = (2 * self.n_head_k, self.head_dim_k);
        match i.checked_sub(n) {
            None => i * d..(i + 1) * d,
            Some(h) => n * d + h * self.head_dim_v..n * d + (h + 1) * self.head_dim_v,
        }
    }
}

/// What the layers' projections make of a step's tokens, and work space.
pub struct DeltaBuffers {
    /// Queries, keys and values before the convolutions, rows of [`DeltaShape::n_mixed`].
    pub mixed: SharedBuf<f32>,
    /// What results are multiplied with, rows of `n_head * head_dim_v`.
    pub gate: SharedBuf<f32>,
    /// Numbers of every head.
    pub alpha: SharedBuf<f32>,
    /// Numbers of every head.
    pub beta: SharedBuf<f32>,
    /// Queries, keys and values after the convolutions, rows of the same.
    convolved: SharedBuf<f32>,
    /// Rates of every head, a run of `n_ubatch` for each.
    rates: SharedBuf<DeltaRates>,
    n_ubatch: usize,
}

impl DeltaBuffers {
    /// Room for `n_ubatch` tokens in layers of these shapes; `None` where there are none.
    pub fn new(shapes: impl Iterator<Item = DeltaShape> + Clone, n_ubatch: usize) -> Option<Self> {
        let most = |n: &dyn Fn(DeltaShape) -> usize| shapes.clone().map(n).max();
        let (n_mixed, n_head) = (most(&|s| s.n_mixed())?, most(&|s| s.n_head)?);
        let room = |n: usize| SharedBuf::new(n_ubatch * n);
        Some(Self {
            mixed: room(n_mixed),
            gate: room(most(&|s| s.n_head * s.head_dim_v)?),
            alpha: room(n_head),
            beta: room(n_head),
            convolved: room(n_mixed),
            rates: SharedBuf::new(n_ubatch * n_head),
            n_ubatch,
        })
    }
}

/// A step's tokens.
#[derive(Clone, Copy)]
pub struct DeltaStep {
    /// Whether the sequence begins with them.
    pub begins: bool,
    /// How many.
    pub n: usize,
    /// Of how many, the last ones, results are wanted.
    pub n_wanted: usize,
}

impl DeltaNet {
    /// Takes the step's tokens, whose projections are in `buf`, into the state that `cache` keeps. What they read there goes to `out`. Two
    /// phases, and one more where a sequence begins.
    pub fn absorb(
        &self,
        worker: &Worker,
        kernels: &Kernels,
        buf: &DeltaBuffers,
        cache: &LayerCache,
        step: DeltaStep,
        out: Operand,
    ) {
        let (s, n, state) = (&self.shape, step.n, cache.state());
        if step.begins {
            // SAFETY: shared out disjointly.
            unsafe { state.get_mut(worker.share(state.len())) }.fill(0.0);
            worker.barrier();
        }
        let n_pieces = 2 * s.n_head_k + s.n_head;
        for i in worker.share(n * n_pieces) {
            // SAFETY: projections and state are only read in this phase; pieces of rows, and rates, are shared out disjointly.
            unsafe { self.convolve(kernels, buf, state, i / n_pieces, i % n_pieces) };
        }
        worker.barrier();
        let (dk, dv, width) = (s.head_dim_k, s.head_dim_v, s.n_mixed());
        worker.for_each_chunk(s.n_head, |h| {
            let piece = |i: usize| {
                let channels = s.channels(i);
                // SAFETY: nobody writes these rows in this phase.
                unsafe { Rows::from_raw(buf.convolved.as_ptr().add(channels.start), n, channels.len(), width) }
            };
            let [q, k, v] = [s.key_head(h), s.n_head_k + s.key_head(h), 2 * s.n_head_k + h].map(piece);
            let memory = s.n_inputs() + h * dk * dv;
            // SAFETY: a head's matrix, rates and results belong to one member.
            unsafe {
                let first = out.part_mut(0, h * dv..(h + 1) * dv).as_mut_ptr();
                let results = RowsMut::from_raw(first, step.n_wanted, dv, out.k());
                let rates = buf.rates.get(h * buf.n_ubatch..h * buf.n_ubatch + n);
                kernels.float.delta_rule(state.get_mut(memory..memory + dk * dv), q, k, v, rates, results);
            }
        });
        // SAFETY: channels are shared out disjointly, and the convolutions of this step are done.
        unsafe { self.keep_inputs(&buf.mixed, state, n, worker.share(width)) };
        worker.barrier();
    }

    /// Piece `i` of token `t`'s queries, keys and values after their convolutions, those of queries and keys normalised; and with a value its
    /// head's rates.
    ///
    /// # Safety
    /// Nobody writes projections and state, and nobody else this piece and these rates, before the next barrier.
    unsafe fn convolve(&self, kernels: &Kernels, buf: &DeltaBuffers, state: &SharedBuf<f32>, t: usize, i: usize) {
        let (s, f, width) = (&self.shape, &kernels.float, self.shape.n_mixed());
        let channels = s.channels(i);
        // SAFETY: passed on to the caller.
        unsafe {
            let at = |row: usize| row * width + channels.start..row * width + channels.end;
            let out = buf.convolved.get_mut(at(t));
            out.fill(0.0);
            for (j, weights) in self.filter.chunks_exact(width).enumerate() {
                let input = match (t + j).checked_sub(s.n_filter - 1) {
                    Some(row) => buf.mixed.get(at(row)),
                    None => state.get(at(t + j)),
                };
                f.add_product(out, input, &weights[channels.clone()]);
            }
            f.silu(out);
            if let Some(h) = i.checked_sub(2 * s.n_head_k) {
                let [alpha, beta] = [&buf.alpha, &buf.beta].map(|x| x.get(t * s.n_head + h..t * s.n_head + h + 1)[0]);
                let decay = (self.decay[h] * softplus(alpha + self.alpha_bias[h])).exp();
                let place = h * buf.n_ubatch + t;
                buf.rates.get_mut(place..place + 1)[0] = DeltaRates { decay, step: sigmoid(beta) };
            } else {
                let length = (f.dot(out, out) + self.eps).sqrt();
                let scale = if i < s.n_head_k { (s.head_dim_k as f32).sqrt() } else { 1.0 };
                f.scale(out, 1.0 / (length * scale));
            }
        }
    }

    /// Keeps what the next tokens' convolutions meet of the last of `n` tokens, and of those before, in these channels.
    ///
    /// # Safety
    /// Nobody else touches these channels of the state, and nobody writes `mixed`, before the next barrier.
    unsafe fn keep_inputs(&self, mixed: &SharedBuf<f32>, state: &SharedBuf<f32>, n: usize, channels: Range<usize>) {
        let (width, n_rows) = (self.shape.n_mixed(), self.shape.n_filter - 1);
        let at = |row: usize| row * width + channels.start..row * width + channels.end;
        for row in 0..n_rows {
            // SAFETY: passed on to the caller; later rows of the state are read before they are written.
            unsafe {
                let input = match (row + n).checked_sub(n_rows) {
                    Some(token) => mixed.get(at(token)),
                    None => state.get(at(row + n)),
                };
                state.get_mut(at(row)).copy_from_slice(input);
            }
        }
    }

    /// Normalises what the first `n` rows of `out` have read, and multiplies it with their gates. One phase.
    pub fn finish(&self, worker: &Worker, kernels: &Kernels, gates: &SharedBuf<f32>, n: usize, out: Operand) {
        for i in worker.share(n) {
            // SAFETY: rows are shared out disjointly.
            unsafe {
                let (row, gates) = (out.row_mut(i), gates.get_mut(i * out.k()..(i + 1) * out.k()));
                row.chunks_exact_mut(self.norm.len())
                    .for_each(|head| kernels.float.rms_norm_in_place(head, &self.norm, self.eps));
                kernels.float.silu(gates);
                kernels.float.mul_assign(row, gates);
                out.finish_row(kernels, i);
            }
        }
        worker.barrier();
    }
}

/// `ln(1 + e^x)`, which is `x` for large `x`.
fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}
