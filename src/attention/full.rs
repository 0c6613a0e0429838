//! Exact causal attention with a streaming softmax (arXiv 2205.14135): scores are made block by block of keys and
//! never stored whole. The query heads of a group share one pass over their keys and values.

use std::ops::Range;

use ggml_ext::kernels::Kernels;
use ggml_ext::kernels::float::{Rows, RowsMut};

use super::AttentionShape;
use super::kv_cache::{Block, LayerCache};
use crate::compute::{Activations, SharedBuf, Worker};

/// Keys per block: scores of a tile and a widened block stay in the first-level caches.
const BLOCK: usize = 128;
/// Query rows (tokens x heads of a group) per tile.
const TILE_ROWS: usize = 48;
/// With few queries, members share the keys out in runs of this many. A constant, so that the result does not depend
/// on the number of threads.
const SPLIT: usize = 512;
/// Most query tokens for which keys are shared out.
const SPLIT_MAX_TOKENS: usize = 4;
/// Query rows from which widening a block of f16 keys once beats converting them in registers for each few rows.
const WIDEN_ROWS: usize = 8;

/// One member's work space.
pub struct AttentionScratch {
    q: Vec<f32>,
    scores: Vec<f32>,
    wide: Vec<f32>,
    sums: Vec<f32>,
    max: Vec<f32>,
    total: Vec<f32>,
}

impl AttentionScratch {
    /// Work space for layers of these shapes.
    pub fn new(shapes: impl IntoIterator<Item = AttentionShape>) -> Self {
        let (mut dk, mut dv, mut rows) = (0, 0, 0);
        for s in shapes {
            (dk, dv) = (dk.max(s.head_dim_k), dv.max(s.head_dim_v));
            rows = rows.max(tile_tokens(&s) * s.group());
        }
        Self {
            q: vec![0.0; rows * dk],
            scores: vec![0.0; rows * BLOCK],
            wide: vec![0.0; BLOCK * dk.max(dv)],
            sums: vec![0.0; rows * dv],
            max: vec![0.0; rows],
            total: vec![0.0; rows],
        }
    }
}

/// Results of runs of keys, to be merged: for each (token, head, run) the value sum, the maximum and the total weight.
pub struct PartialSums {
    sums: SharedBuf<f32>,
    stats: SharedBuf<f32>,
}

impl PartialSums {
    /// Room for layers of these shapes with up to `n_ctx` keys.
    pub fn new(shapes: impl IntoIterator<Item = AttentionShape>, n_ctx: usize) -> Self {
        let runs = SPLIT_MAX_TOKENS * n_ctx.div_ceil(SPLIT);
        let (mut sums, mut heads) = (0, 0);
        for s in shapes {
            sums = sums.max(s.n_head * s.head_dim_v);
            heads = heads.max(s.n_head);
        }
        Self { sums: SharedBuf::new(runs * sums), stats: SharedBuf::new(runs * heads * 2) }
    }
}

fn tile_tokens(s: &AttentionShape) -> usize {
    (TILE_ROWS / s.group()).max(1)
}

/// First key a query at `pos` sees.
fn first_key(s: &AttentionShape, pos: usize) -> usize {
    s.window.map_or(0, |w| (pos + 1).saturating_sub(w))
}

/// Attention of `n_tokens` queries at positions `pos..` over the cache, which holds their own keys already.
///
/// `q` holds rows of `n_head * head_dim_k`, rotated; rows of `n_head * head_dim_v` go to
/// `out`. One phase, or two where the keys are shared out.
#[allow(clippy::too_many_arguments)]
pub fn attend(
    worker: &Worker,
    kernels: &Kernels,
    shape: &AttentionShape,
    cache: &LayerCache,
    q: &SharedBuf<f32>,
    pos: usize,
    n_tokens: usize,
    scratch: &mut AttentionScratch,
    partial: &PartialSums,
    out: &Activations,
) {
    let n_keys = pos + n_tokens - first_key(shape, pos);
    if n_tokens <= SPLIT_MAX_TOKENS && n_keys > SPLIT {
        return attend_split(worker, kernels, shape, cache, q, pos, n_tokens, scratch, partial, out);
    }
    let tokens = tile_tokens(shape).min(n_tokens);
    let n_tiles = n_tokens.div_ceil(tokens);
    worker.for_each_chunk(n_tiles * shape.n_head_kv, |i| {
        // Late tiles see more keys: they go first, so that the members finish together.
        let (tile, g) = (n_tiles - 1 - i / shape.n_head_kv, i % shape.n_head_kv);
        let rows = tile * tokens..((tile + 1) * tokens).min(n_tokens);
        let keys = first_key(shape, pos + rows.start)..pos + rows.end;
        // SAFETY: queries and cache are only read in this phase.
        unsafe { stream(kernels, shape, cache, q, pos, rows.clone(), g, keys, scratch) };
        let (dv, group) = (shape.head_dim_v, shape.group());
        for (i, t) in rows.enumerate() {
            // SAFETY: heads of group `g` of these rows belong to this chunk alone.
            let dst = unsafe { out.part_mut(t, g * group * dv..(g + 1) * group * dv) };
            for (h, dst) in dst.chunks_exact_mut(dv).enumerate() {
                let r = i * group + h;
                let inv = 1.0 / scratch.total[r];
                dst.iter_mut().zip(&scratch.sums[r * dv..]).for_each(|(d, s)| *d = s * inv);
            }
        }
    });
    worker.barrier();
    finish(worker, kernels, n_tokens, out);
}

/// The few-queries case: members take runs of keys, and the runs' results are merged.
#[allow(clippy::too_many_arguments)]
fn attend_split(
    worker: &Worker,
    kernels: &Kernels,
    shape: &AttentionShape,
    cache: &LayerCache,
    q: &SharedBuf<f32>,
    pos: usize,
    n_tokens: usize,
    scratch: &mut AttentionScratch,
    partial: &PartialSums,
    out: &Activations,
) {
    let (dv, group, n_head) = (shape.head_dim_v, shape.group(), shape.n_head);
    let first = first_key(shape, pos) / SPLIT;
    let n_runs = (pos + n_tokens).div_ceil(SPLIT) - first;
    let slot = |t: usize, run: usize, head: usize| (t * n_runs + run) * n_head + head;
    worker.for_each_chunk(n_tokens * n_runs * shape.n_head_kv, |i| {
        let (g, run, t) = (i % shape.n_head_kv, i / shape.n_head_kv % n_runs, i / shape.n_head_kv / n_runs);
        let run_keys = (first + run) * SPLIT..(first + run + 1) * SPLIT;
        let keys = run_keys.start.max(first_key(shape, pos + t))..run_keys.end.min(pos + t + 1);
        // SAFETY: queries and cache are only read in this phase; the slots of (t, run, group g) are this chunk's.
        unsafe {
            stream(kernels, shape, cache, q, pos, t..t + 1, g, keys, scratch);
            let s = slot(t, run, g * group);
            partial.sums.get_mut(s * dv..(s + group) * dv).copy_from_slice(&scratch.sums[..group * dv]);
            let stats = partial.stats.get_mut(s * 2..(s + group) * 2);
            for (h, stat) in stats.chunks_exact_mut(2).enumerate() {
                stat.copy_from_slice(&[scratch.max[h], scratch.total[h]]);
            }
        }
    });
    worker.barrier();
    for i in worker.share(n_tokens * n_head) {
        let (t, h) = (i / n_head, i % n_head);
        // SAFETY: partial results are only read in this phase; head `h` of row `t` is this member's.
        unsafe {
            let stat = |run| {
                let s = slot(t, run, h);
                let x = partial.stats.get(s * 2..s * 2 + 2);
                (x[0], x[1])
            };
            let max = (0..n_runs).map(|r| stat(r).0).fold(f32::NEG_INFINITY, f32::max);
            let total: f32 = (0..n_runs).map(|r| stat(r).1 * (stat(r).0 - max).exp()).sum();
            let dst = out.part_mut(t, h * dv..(h + 1) * dv);
            dst.fill(0.0);
            for run in 0..n_runs {
                let weight = (stat(run).0 - max).exp() / total;
                let s = slot(t, run, h);
                kernels.float.axpy(weight, partial.sums.get(s * dv..(s + 1) * dv), dst);
            }
        }
    }
    worker.barrier();
    finish(worker, kernels, n_tokens, out);
}

fn finish(worker: &Worker, kernels: &Kernels, n_tokens: usize, out: &Activations) {
    for t in worker.share(n_tokens) {
        // SAFETY: rows are shared out disjointly.
        unsafe { out.finish_row(kernels, t) };
    }
    worker.barrier();
}

/// Streams `keys` for the queries of tokens `rows` and the heads of group `g`. Leaves, per (token, head), the weighted
/// value sum, the greatest score and the total weight in `scratch`; a row that sees none of the keys has total 0.
///
/// # Safety
/// Nobody writes the queries or these cache rows before the next barrier.
#[allow(clippy::too_many_arguments)]
unsafe fn stream(
    kernels: &Kernels,
    shape: &AttentionShape,
    cache: &LayerCache,
    q: &SharedBuf<f32>,
    pos: usize,
    rows: Range<usize>,
    g: usize,
    keys: Range<usize>,
    scratch: &mut AttentionScratch,
) {
    let (dk, dv, group) = (shape.head_dim_k, shape.head_dim_v, shape.group());
    let m = rows.len() * group;
    for (i, t) in rows.clone().enumerate() {
        let start = (t * shape.n_head + g * group) * dk;
        // SAFETY: passed on to the caller.
        let src = unsafe { q.get(start..start + group * dk) };
        scratch.q[i * group * dk..][..group * dk].copy_from_slice(src);
    }
    let AttentionScratch { q, scores, wide, sums, max, total } = scratch;
    let (sums, max, total) = (&mut sums[..m * dv], &mut max[..m], &mut total[..m]);
    sums.fill(0.0);
    max.fill(f32::NEG_INFINITY);
    total.fill(0.0);
    let widen = m >= WIDEN_ROWS;
    let float = &kernels.float;
    // Block boundaries are multiples of BLOCK whatever the tile, so that a query's result does not depend on it.
    let mut start = keys.start;
    while start < keys.end {
        let end = ((start / BLOCK + 1) * BLOCK).min(keys.end);
        let n = end - start;
        let (queries, into) = (Rows::new(q, m, dk, dk), RowsMut::new(scores, m, n, n));
        // SAFETY: passed on to the caller.
        match unsafe { cache.k(kernels, g, start..end, widen, wide) } {
            Block::F16(k) => float.scores_f16(shape.scale, queries, Rows::new(k, n, dk, dk), into),
            Block::F32(k) => float.sgemm_nt(shape.scale, queries, Rows::new(k, n, dk, dk), into),
        }
        for r in 0..m {
            let row = &mut scores[r * n..(r + 1) * n];
            if let Some(cap) = shape.softcap {
                float.soft_cap(row, cap);
            }
            let p = pos + rows.start + r / group;
            let visible = first_key(shape, p).clamp(start, end) - start..(p + 1).clamp(start, end) - start;
            if visible.is_empty() {
                row.fill(0.0);
                continue;
            }
            row[..visible.start].fill(0.0);
            row[visible.end..].fill(0.0);
            let row = &mut row[visible];
            let new_max = max[r].max(float.max(row));
            let sum = float.exp_sub_sum(row, new_max);
            if new_max > max[r] {
                let shrink = (max[r] - new_max).exp();
                total[r] *= shrink;
                float.scale(&mut sums[r * dv..(r + 1) * dv], shrink);
                max[r] = new_max;
            }
            total[r] += sum;
        }
        let (weights, into) = (Rows::new(scores, m, n, n), RowsMut::new(sums, m, dv, dv));
        // SAFETY: passed on to the caller.
        match unsafe { cache.v(kernels, g, start..end, widen, wide) } {
            Block::F16(v) => float.values_f16(weights, Rows::new(v, n, dv, dv), into),
            Block::F32(v) => float.sgemm_nn_acc(weights, Rows::new(v, n, dv, dv), into),
        }
        start = end;
    }
}
