//! Alternating updates (AltUp, arXiv 2301.13310): the residual stream of a token is several rows wide, and a layer computes the first of them
//! alone. Before the layer all are predicted, each from all; after it they are corrected by what the layer changed about the first. How
//! much of one goes into another depends on the token: a router, given the first row before the layer and the layer's result after it, says
//! so. More rows of memory cost a layer next to nothing that way.

use std::ops::Range;

use super::decoder::Decoder;
use crate::compute::{Linear, Norm, Operand, Ops, SharedBuf};

/// Most rows of a token's residual stream.
pub const MAX_STREAMS: usize = 16;
/// Values of all rows that are predicted together.
const BLOCK: usize = 64;

/// How one row becomes several before the first layer, and one again after the last.
pub struct Streams {
    /// `n - 1` matrices `[n_embd, n_embd]` that make the others of the first row. Their results are given its length.
    pub expand: Box<[Linear]>,
    /// As many that each of the others meets at last. Given the length of the first again, the mean of all is what the head is given.
    pub merge: Box<[Linear]>,
}

impl Streams {
    /// How many rows.
    pub fn n(&self) -> usize {
        self.expand.len() + 1
    }

    /// Every matrix.
    pub fn matrices(&self) -> impl Iterator<Item = &Linear> {
        self.expand.iter().chain(&self.merge)
    }

    /// Work space for passes of up to `n_ubatch` tokens, if the model has several streams: for each `[n_ubatch, n_embd]`.
    pub(super) fn buffers(model: &Decoder, n_ubatch: usize) -> Option<Box<[SharedBuf<f32>]>> {
        let len = n_ubatch * model.embed.weight.cols();
        model.streams.as_ref().map(|s| (0..s.n()).map(|_| SharedBuf::new(len)).collect())
    }

    /// Makes the streams `all` of the first `n` rows of `x`, one for each token. `to`: room for these.
    pub(super) fn expand(&self, ops: &mut Ops, all: &[SharedBuf<f32>], x: &SharedBuf<f32>, n: usize, to: Operand) {
        let (first, others) = all.split_first().expect("several streams");
        ops.norm(x, 0..n, None, 0.0, to);
        ops.linear_some(to, 0..n, &self.expand.iter().zip(others).map(Some).collect::<Vec<_>>());
        let k = &ops.kernels.float;
        for t in ops.worker.share(n) {
            let row = t * to.k()..(t + 1) * to.k();
            // SAFETY: rows are shared out disjointly, and nobody writes `x` in this phase.
            unsafe {
                let x = x.get(row.clone());
                first.get_mut(row.clone()).copy_from_slice(x);
                for other in others {
                    let other = other.get_mut(row.clone());
                    k.scale(other, ratio(k.dot(x, x), k.dot(other, other)));
                }
            }
        }
        ops.worker.barrier();
    }

    /// Makes one row of each token `asked` of its streams, into `x`. `made` and `to`: room for these rows.
    pub(super) fn merge(
        &self,
        ops: &mut Ops,
        all: &[SharedBuf<f32>],
        x: &SharedBuf<f32>,
        asked: &Range<usize>,
        made: &SharedBuf<f32>,
        to: Operand,
    ) {
        let (first, others) = all.split_first().expect("several streams");
        for (j, (matrix, other)) in self.merge.iter().zip(others).enumerate() {
            ops.norm(other, asked.clone(), None, 0.0, to);
            ops.linear(to, 0..asked.len(), &[(matrix, made)]);
            let k = &ops.kernels.float;
            for i in ops.worker.share(asked.len()) {
                let row = |i: usize| i * to.k()..(i + 1) * to.k();
                // SAFETY: rows are shared out disjointly, and nobody writes the streams in this phase.
                unsafe {
                    let (x, first) = (x.get_mut(row(asked.start + i)), first.get(row(asked.start + i)));
                    let made = made.get(row(i));
                    if j == 0 {
                        x.copy_from_slice(first);
                    }
                    k.axpy(ratio(k.dot(first, first), k.dot(made, made)), made, x);
                    if j + 1 == others.len() {
                        k.scale(x, 1.0 / all.len() as f32);
                    }
                }
            }
            ops.worker.barrier();
        }
    }
}

/// What a row is multiplied with so that its square becomes `wanted`: nothing makes that of 0.
fn ratio(wanted: f32, square: f32) -> f32 {
    if square > 0.0 { wanted.sqrt() / square.sqrt() } else { 0.0 }
}

/// What a layer has to predict and correct `n` streams.
pub struct StreamLayer {
    /// RMSNorm before the router; what the router's input is divided by is part of its weights.
    pub router_norm: Norm,
    /// The router, `[n, n_embd]`: `tanh` of what it makes weighs the columns of the two matrices below.
    pub router: Box<[f32]>,
    /// Makes, for each stream, how much of every one is added to predict it: `[n * n, n]`.
    pub predict: Box<[f32]>,
    /// Makes, for each stream, how much more than once what the layer changed is added to it: `[n, n]`.
    pub correct: Box<[f32]>,
    /// Factors on the first stream, `[n_embd]`, where a side network is given it.
    pub side_scale: Box<[f32]>,
}

impl StreamLayer {
    /// What the router makes of a row of `x`, and with it `matrix`, into `out`. `room`: for another row.
    fn weights(&self, ops: &Ops, x: &[f32], matrix: &[f32], eps: f32, room: &mut [f32], out: &mut [f32]) {
        let k = &ops.kernels.float;
        self.router_norm.apply(k, x, eps, room);
        let mut routed = [0.0; MAX_STREAMS];
        let rows = self.router.chunks_exact(x.len());
        let n = rows.len();
        routed.iter_mut().zip(rows).for_each(|(r, row)| *r = k.dot(row, room).tanh());
        out.iter_mut().zip(matrix.chunks_exact(n)).for_each(|(out, row)| *out = k.dot(row, &routed[..n]));
    }

    /// Predicts the streams `all` of tokens `asked`, and leaves the first in `x`.
    pub(super) fn predict(
        &self,
        ops: &Ops,
        all: &[SharedBuf<f32>],
        x: &SharedBuf<f32>,
        asked: &Range<usize>,
        eps: f32,
    ) {
        let (n, len, k) = (all.len(), self.side_scale.len(), &ops.kernels.float);
        for i in ops.worker.share(asked.len()) {
            let row = (asked.start + i) * len..(asked.start + i + 1) * len;
            // SAFETY: tokens are shared out disjointly.
            let (x, first) = unsafe { (x.get_mut(row.clone()), all[0].get(row.clone())) };
            let mut weights = [0.0; MAX_STREAMS * MAX_STREAMS];
            let weights = &mut weights[..n * n];
            self.weights(ops, first, &self.predict, eps, x, weights);
            for start in row.clone().step_by(BLOCK) {
                let part = start..(start + BLOCK).min(row.end);
                let mut before = [[0.0; BLOCK]; MAX_STREAMS];
                for (before, stream) in before.iter_mut().zip(all) {
                    // SAFETY: as above.
                    before[..part.len()].copy_from_slice(unsafe { stream.get(part.clone()) });
                }
                for (stream, weights) in all.iter().zip(weights.chunks_exact(n)) {
                    // SAFETY: as above.
                    let stream = unsafe { stream.get_mut(part.clone()) };
                    before.iter().zip(weights).for_each(|(other, &w)| k.axpy(w, &other[..part.len()], stream));
                }
            }
            // SAFETY: as above.
            x.copy_from_slice(unsafe { all[0].get(row) });
        }
        ops.worker.barrier();
    }

    /// Corrects the streams `all` of tokens `asked` by the layer's result, which `x` has, and leaves what a side network is given in `to`.
    pub(super) fn correct(
        &self,
        ops: &Ops,
        all: &[SharedBuf<f32>],
        x: &SharedBuf<f32>,
        asked: &Range<usize>,
        eps: f32,
        to: Operand,
    ) {
        let (n, len, k) = (all.len(), self.side_scale.len(), &ops.kernels.float);
        for i in ops.worker.share(asked.len()) {
            let row = (asked.start + i) * len..(asked.start + i + 1) * len;
            // SAFETY: tokens are shared out disjointly.
            unsafe {
                let (x, room) = (x.get_mut(row.clone()), to.row_mut(i));
                let mut weights = [0.0; MAX_STREAMS];
                let weights = &mut weights[..n];
                self.weights(ops, x, &self.correct, eps, room, weights);
                k.axpy(-1.0, all[0].get(row.clone()), x);
                all.iter().zip(weights).for_each(|(stream, w)| k.axpy(1.0 + *w, x, stream.get_mut(row.clone())));
                room.copy_from_slice(all[0].get(row));
                k.mul_assign(room, &self.side_scale);
                to.finish_row(ops.kernels, i);
            }
        }
        ops.worker.barrier();
    }

    /// Adds `norm` of what a side network made of tokens `asked`, in `made`, to all streams but the first.
    pub(super) fn add_to_others(
        ops: &Ops,
        all: &[SharedBuf<f32>],
        made: &SharedBuf<f32>,
        norm: &Norm,
        asked: &Range<usize>,
        eps: f32,
    ) {
        let (k, len) = (&ops.kernels.float, norm.weight.len());
        for i in ops.worker.share(asked.len()) {
            let t = asked.start + i;
            // SAFETY: tokens are shared out disjointly.
            unsafe {
                let made = made.get_mut(i * len..(i + 1) * len);
                norm.apply_in_place(k, made, eps);
                all[1..].iter().for_each(|stream| k.add_assign(stream.get_mut(t * len..(t + 1) * len), made));
            }
        }
        ops.worker.barrier();
    }
}
