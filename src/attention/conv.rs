//! Short convolutions in the place of attention (LFM2, arXiv 2511.23404): every channel of a token's result is a sum over a few positions
//! with fixed weights, between two gates that depend on the input.
//!
//! What is summed is cached like values in a sliding window as long as the filter, so that it is forgotten, cut back and shifted like these.

use std::ops::Range;

use ggml_ext::kernels::Kernels;

use super::attend::Queries;
use super::kv_cache::{Block, LayerCache};
use super::stream::AttentionScratch;
use crate::compute::{Linear, Operand, SharedBuf, Worker};

/// A layer's parameters besides the projection that makes values.
pub struct Convolution {
    /// Makes what values are multiplied with before they are cached.
    pub input: Linear,
    /// Makes what sums are multiplied with.
    pub output: Linear,
    /// The weights, a row of channels for each position, the token's own last.
    pub filter: Box<[f32]>,
}

impl Convolution {
    /// The gated sums of the tokens `queries`, whose own values are cached already, into `out`; `gates` are what `output` made of these tokens.
    /// One phase.
    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &self,
        worker: &Worker,
        kernels: &Kernels,
        queries: Queries,
        values: &LayerCache,
        gates: &SharedBuf<f32>,
        out: Operand,
        scratch: &mut AttentionScratch,
    ) {
        let d = out.k();
        for i in worker.share(queries.n) {
            // SAFETY: rows are shared out disjointly, and nobody writes the cache or the gates in this phase.
            unsafe {
                let row = out.row_mut(i);
                row.fill(0.0);
                for (weights, pos) in self.taps(d, queries.pos + i) {
                    let Block::F32(x) = values.v(kernels, 0, pos..pos + 1, true, scratch.wide()) else {
                        unreachable!("was asked for floats")
                    };
                    kernels.float.add_product(row, x, weights);
                }
                kernels.float.mul_assign(row, gates.get(i * d..(i + 1) * d));
                out.finish_row(kernels, i);
            }
        }
        worker.barrier();
    }

    /// The filter's rows that meet something at `pos`, with the positions that they meet.
    fn taps(&self, d: usize, pos: usize) -> impl Iterator<Item = (&[f32], usize)> {
        let n = self.filter.len() / d;
        let seen: Range<usize> = (pos + 1).saturating_sub(n)..pos + 1;
        self.filter.chunks_exact(d).skip(n - seen.len()).zip(seen)
    }
}
