//! The selective scan of the first Mamba (arXiv 2312.00752; FalconMamba, Jamba): every channel has a memory of its own, which tokens fade and add
//! to by steps of its own. What steps, keys and queries are made of follows the convolutions, so that between these and the scan there are two
//! products more.

use std::ops::Range;

use ggml_ext::kernels::Kernels;
use ggml_ext::kernels::float::{ChannelUpdate, Rows, RowsMut};

use super::recurrence::RecurrentStep;
use crate::compute::{Activations, Linear, Norm, Ops, SharedBuf};

/// A layer's parameters besides those that all recurrent layers have.
pub struct ChannelScan {
    /// Makes of a token's values, after their convolutions, what its steps are made of, a key and a query: rows of `rank + 2 * head_dim_k`.
    pub made: Linear,
    /// RMSNorm on each of the three, where the family has it.
    pub norms: Option<[Norm; 3]>,
    /// Its epsilon.
    pub eps: f32,
    /// Makes a step (`dt`) for each channel, before its softplus, of `rank` values.
    pub step: Linear,
    /// What the logarithm of a memory's decay is, relative to its channel's step (`A`): negative, `[head_dim_k, n_values]`.
    pub decay: Box<[f32]>,
    /// How much of its value a channel's result has besides (`D`), `[n_values]`.
    pub skip: Box<[f32]>,
}

/// What is made between convolutions and scan, rows for every token of a step. A model has scans of one size.
pub struct ChannelBuffers {
    /// The values, which `made` meets.
    values: Activations,
    /// What it makes of them.
    made: SharedBuf<f32>,
    /// The first part of that, which `step` meets.
    low: Activations,
    /// A step for each channel.
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

    /// Takes tokens' values `v`, of these channels, into their memory, a row of them for each element of a key. What the last tokens read goes to
    /// `out`.
    ///
    /// # Safety
    /// Nobody else touches these channels, and nobody writes what [`ChannelScan::make`] made, before the next barrier.
    pub(super) unsafe fn run(
        &self,
        kernels: &Kernels,
        b: &ChannelBuffers,
        channels: Range<usize>,
        memory: &mut [f32],
        v: Rows<f32>,
        out: RowsMut<f32>,
    ) {
        let (n, width, len, rank) = (v.n_rows(), self.skip.len(), self.made.weight.rows(), self.step.weight.cols());
        let dim = (len - rank) / 2;
        for t in 0..n {
            // SAFETY: passed on to the caller.
            let steps = unsafe { b.steps.get_mut(t * width + channels.start..t * width + channels.end) };
            kernels.float.softplus(steps);
        }
        // SAFETY: these rows were made, and nobody writes them in this phase.
        let (k, q, steps) = unsafe {
            let first = b.made.as_ptr().add(rank);
            let steps = Rows::from_raw(b.steps.as_ptr().add(channels.start), n, channels.len(), width);
            (Rows::from_raw(first, n, dim, len), Rows::from_raw(first.add(dim), n, dim, len), steps)
        };
        let rates = Rows::new(&self.decay[channels.start..], dim, channels.len(), width);
        kernels.float.channel_scan(ChannelUpdate { state: memory, q, k, v, steps, rates, out });
    }
}
