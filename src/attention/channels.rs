//! The selective scan of the first Mamba (arXiv 2312.00752; FalconMamba, Jamba): every channel has a memory of its own, which tokens fade and add
//! to by steps of its own. What steps, keys and queries are made of follows the convolutions, so that between these and the scan there are two
//! products more. That of PLaMo 2 has these too, but steps for heads of channels, as Mamba-2 has.

use std::ops::Range;

use ggml_ext::kernels::Kernels;
use ggml_ext::kernels::float::{ChannelUpdate, Rows, RowsMut, StateRates, StateUpdate};

use super::recurrence::{RecurrentStep, softplus};
use crate::compute::{Activations, Linear, Norm, Ops, SharedBuf};

/// A layer's parameters besides those that all recurrent layers have.
pub struct ChannelScan {
    /// Makes of a token's values, after their convolutions, what its steps are made of, a key and a query: rows of `rank + 2 * head_dim_k`.
    pub made: Linear,
    /// RMSNorm on each of the three, where the family has it.
    pub norms: Option<[Norm; 3]>,
    /// Its epsilon.
    pub eps: f32,
    /// Makes a step (`dt`) for each channel or each head, before its softplus, of `rank` values.
    pub step: Linear,
    /// How fast memories fade, and who has steps.
    pub decay: ChannelDecay,
    /// How much of its value a channel's result has besides (`D`), `[n_values]`.
    pub skip: Box<[f32]>,
}

/// What the logarithm of a memory's decay is, relative to a step (`A`): negative.
pub enum ChannelDecay {
    /// For each element of a channel's memory, channels having steps of their own: `[head_dim_k, n_values]`.
    Channels(Box<[f32]>),
    /// The same for all of a head, which has one step: `[n_head]`.
    Heads(Box<[f32]>),
}

/// What is made between convolutions and scan, rows for every token of a step. A model has scans of one size.
pub struct ChannelBuffers {
    /// The values, which `made` meets.
    values: Activations,
    /// What it makes of them.
    made: SharedBuf<f32>,
    /// The first part of that, which `step` meets.
    low: Activations,
    /// A step for each channel or each head.
    steps: SharedBuf<f32>,
}

impl ChannelBuffers {
    /// Room for `n` tokens; `activations` makes it for rows of so many values that products meet.
    pub fn new(scan: &ChannelScan, n: usize, activations: impl Fn(usize) -> Activations) -> Self {
        let (made, step) = (&scan.made.weight, &scan.step.weight);
        Self {
            values: activations(made.cols()),
            made: SharedBuf::new(n * made.rows()),
            low: activations(step.cols()),
            steps: SharedBuf::new(n * step.rows()),
        }
    }
}

impl ChannelScan {
    /// Makes the step's keys, queries and steps of what the convolutions gave, rows of `n_values`. Four phases.
    pub(super) fn make(&self, ops: &mut Ops, b: &ChannelBuffers, convolved: &SharedBuf<f32>, step: RecurrentStep) {
        let [values, low] = [&b.values, &b.low].map(|rows| rows.with(step.form, step.fine_step));
        ops.norm(convolved, 0..step.n, None, self.eps, values);
        ops.linear(values, 0..step.n, &[(&self.made, &b.made)]);
        let (len, rank) = (self.made.weight.rows(), low.k());
        for t in ops.worker.share(step.n) {
            // SAFETY: rows are shared out disjointly.
            unsafe {
                let (first, rest) = b.made.get_mut(t * len..(t + 1) * len).split_at_mut(rank);
                let (key, query) = rest.split_at_mut((len - rank) / 2);
                if let Some(norms) = &self.norms {
                    for (norm, part) in norms.iter().zip([&mut *first, key, query]) {
                        norm.apply_in_place(&ops.kernels.float, part, self.eps);
                    }
                }
                low.row_mut(t).copy_from_slice(first);
                low.finish_row(ops.kernels, t);
            }
        }
        ops.worker.barrier();
        ops.linear(low, 0..step.n, &[(&self.step, &b.steps)]);
    }

    /// Takes tokens' values `v`, of these channels, those of head `h`, into their memory, a row of them for each element of a key. What the last
    /// tokens read goes to `out`. `rates`: room for those of a head, one for each token.
    ///
    /// # Safety
    /// Nobody else touches these channels, and nobody writes what [`ChannelScan::make`] made, before the next barrier.
    #[allow(clippy::too_many_arguments)]
    pub(super) unsafe fn run(
        &self,
        kernels: &Kernels,
        b: &ChannelBuffers,
        h: usize,
        channels: Range<usize>,
        memory: &mut [f32],
        v: Rows<f32>,
        rates: &mut [StateRates],
        out: RowsMut<f32>,
    ) {
        let (n, len, [width, rank]) =
            (v.n_rows(), self.made.weight.rows(), [self.step.weight.rows(), self.step.weight.cols()]);
        let dim = (len - rank) / 2;
        // SAFETY: these rows were made, and nobody writes them in this phase.
        let (k, q) = unsafe {
            let first = b.made.as_ptr().add(rank);
            (Rows::from_raw(first, n, dim, len), Rows::from_raw(first.add(dim), n, dim, len))
        };
        let decay = match &self.decay {
            ChannelDecay::Channels(decay) => decay,
            ChannelDecay::Heads(decay) => {
                for (t, rates) in rates.iter_mut().enumerate() {
                    // SAFETY: passed on to the caller.
                    let step = softplus(unsafe { b.steps.get(t * width + h..t * width + h + 1) }[0]);
                    *rates = StateRates { decay: (decay[h] * step).exp(), step };
                }
                return kernels.float.selective_scan(StateUpdate { state: memory, q, k, v, rates, out });
            }
        };
        for t in 0..n {
            // SAFETY: passed on to the caller.
            let steps = unsafe { b.steps.get_mut(t * width + channels.start..t * width + channels.end) };
            kernels.float.softplus(steps);
        }
        // SAFETY: these rows were made, and nobody writes them in this phase.
        let steps = unsafe { Rows::from_raw(b.steps.as_ptr().add(channels.start), n, channels.len(), width) };
        let rates = Rows::new(&decay[channels.start..], dim, channels.len(), width);
        kernels.float.channel_scan(ChannelUpdate { state: memory, q, k, v, steps, rates, out });
    }
}
