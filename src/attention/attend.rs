//! Causal attention with a streaming softmax (arXiv 2205.14135): block by block of keys, whatever the scores come from. A
//! [`ScoreSource`] makes the scores of a block; what follows is the same for all kinds of attention. Only where other layers
//! read a layer's scores are they kept whole, in the step's [`AttnWeights`].

use std::ops::Range;

use ggml_ext::kernels::Kernels;
use ggml_ext::kernels::float::{KEY_GROUP, Rows, RowsMut};

use super::keys::Scores;
use super::kv_cache::{Block, LayerCache};
use super::lisa::{LisaAttention, LisaScratch};
use super::route::{Holds, Route};
use super::{AttentionShape, AttnWeights};
use crate::compute::{Operand, SharedBuf, Shares, Worker};

/// Keys per block: scores of a tile and a widened block stay in the first-level caches.
pub(super) const BLOCK: usize = 128;
/// Query rows (tokens x heads) per tile.
const TILE_ROWS: usize = 48;
/// The same where a tile has all heads.
const ALL_HEADS_ROWS: usize = 144;
/// Tokens that such a tile has at least, for each pass over a block of values to serve several.
const ALL_HEADS_TOKENS: usize = 6;
/// With few queries, members share the keys out in runs: this many, unless they would be shorter than the shortest run or longer than
/// the longest block. Constants, so that the result does not depend on the number of threads.
const RUNS: usize = 8;
/// Fewest keys in a run.
const SHORTEST_RUN: usize = 512;
/// The same where a tile has all heads, and so there are fewer tiles.
const ALL_HEADS_SHORTEST_RUN: usize = 128;
/// Most keys per block for one query. Its scores are few, and where memory is read head by head long stretches are what the
/// hardware fetches ahead.
pub(super) const LONGEST_BLOCK: usize = 1024;
/// Most query tokens for which keys are shared out.
const SPLIT_MAX_TOKENS: usize = 4;
/// Positions whose values are fetched while a `lisa` layer aligns one token's heads: where its reading starts for each head.
const READ_AHEAD: usize = 32;
/// Query rows from which widening a block of keys or values once beats converting them in registers for each few rows.
pub(super) const WIDEN_ROWS: usize = 8;

/// Where a layer's scores come from.
#[derive(Clone, Copy)]
pub enum ScoreSource<'a> {
    /// Queries, rows of `n_head * head_dim_k` with their positions applied, and cached keys: the layer's own, or those of the layer it
    /// shares them with.
    Keys {
        /// Queries of the tokens that attend.
        q: &'a SharedBuf<f32>,
        /// The layer whose keys they meet.
        keys: &'a LayerCache,
    },
    /// The source layer's weights as they are (Shared Attention, arXiv 2407.12866).
    Shared,
    /// The source layer's weights re-arranged, and low-rank scores (LISA, arXiv 2408.01890).
    Lisa {
        /// The layer's parameters.
        lisa: &'a LisaAttention,
        /// Low-rank queries, rows of `n_head * rank` with their positions applied.
        q: &'a SharedBuf<f32>,
        /// The layer's cache, for its low-rank keys.
        keys: &'a LayerCache,
    },
}

/// Tokens that attend: all of a step, or its last ones.
#[derive(Debug, Clone, Copy)]
pub struct Queries {
    /// Position of the first.
    pub pos: usize,
    /// Tokens of the step before it.
    pub first: usize,
    /// How many.
    pub n: usize,
}

/// One layer's attention in one step, whose own keys and values are cached already.
pub struct Attend<'a> {
    /// The member.
    pub worker: &'a Worker<'a>,
    /// The kernel table.
    pub kernels: &'static Kernels,
    /// The layer's heads, scale, window.
    pub shape: &'a AttentionShape,
    /// Who attends.
    pub queries: Queries,
    /// Where scores come from.
    pub scores: ScoreSource<'a>,
    /// The cache with the layer's values.
    pub values: &'a LayerCache,
    /// What other layers left, and what this one leaves.
    pub weights: &'a AttnWeights,
    /// Which slots of `weights` the layer reads and writes.
    pub route: Route,
    /// Work space for sharing keys out.
    pub partial: &'a PartialSums,
    /// Gets rows of `n_head * head_dim_v`.
    pub out: Operand<'a>,
}

/// One member's work space.
pub struct AttentionScratch {
    q: Vec<f32>,
    scores: Vec<f32>,
    wide: Vec<f32>,
    sums: Vec<f32>,
    max: Vec<f32>,
    total: Vec<f32>,
    lisa: LisaScratch,
}

impl AttentionScratch {
    /// Work space for layers of these shapes, `lisa` layers among them having up to `n_hidden` units and keys of `rank`.
    pub fn new(shapes: impl IntoIterator<Item = AttentionShape>, n_hidden: usize, rank: usize) -> Self {
        let (mut dk, mut dv, mut rows, mut heads) = (0, 0, 0, 0);
        for s in shapes {
            (dk, dv, heads) = (dk.max(s.head_dim_k), dv.max(s.head_dim_v), heads.max(s.n_head));
            rows = rows.max(group_tokens(&s) * s.group()).max(all_heads_tokens(&s) * s.n_head);
        }
        let n_scores = (rows * BLOCK).max(heads * LONGEST_BLOCK);
        Self {
            q: vec![0.0; rows * dk.max(rank)],
            scores: vec![0.0; n_scores],
            wide: vec![0.0; (KEY_GROUP * dk.max(rank)).max(BLOCK * dv)],
            sums: vec![0.0; rows * dv],
            max: vec![0.0; rows],
            total: vec![0.0; rows],
            lisa: LisaScratch::new(heads, n_hidden),
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
        // One more than there are whole ones, where a window starts within a run.
        let runs = SPLIT_MAX_TOKENS * (n_ctx.div_ceil(LONGEST_BLOCK).max(RUNS) + 1);
        let (mut sums, mut heads) = (0, 0);
        for s in shapes {
            sums = sums.max(s.n_head * s.head_dim_v);
            heads = heads.max(s.n_head);
        }
        Self { sums: SharedBuf::new(runs * sums), stats: SharedBuf::new(runs * heads * 2) }
    }
}

/// Tokens of a tile with the heads of one group.
fn group_tokens(s: &AttentionShape) -> usize {
    (TILE_ROWS / s.group()).max(1)
}

/// Tokens of a tile with all heads.
fn all_heads_tokens(s: &AttentionShape) -> usize {
    (ALL_HEADS_ROWS / s.n_head).max(ALL_HEADS_TOKENS)
}

/// What one member works on at a time. Its rows are ordered by head, then by token.
struct Tile {
    /// Tokens that attend.
    tokens: Range<usize>,
    /// Key/value heads: one, or all of them.
    groups: Range<usize>,
    /// Positions.
    keys: Range<usize>,
    /// Most of them in a block.
    block: usize,
}

impl Attend<'_> {
    /// Computes the layer's weighted values. Two phases, or three where the keys are shared out.
    pub fn run(&self, scratch: &mut AttentionScratch) {
        let n_keys = self.n_keys() - self.first_key(0);
        let shortest = if self.all_heads() { ALL_HEADS_SHORTEST_RUN } else { SHORTEST_RUN };
        let run = n_keys.div_ceil(RUNS).next_power_of_two().clamp(shortest, LONGEST_BLOCK);
        if self.queries.n <= SPLIT_MAX_TOKENS && n_keys > run {
            self.runs(run, scratch);
        } else {
            self.tiles(scratch);
        }
        for t in self.worker.share(self.queries.n) {
            // SAFETY: rows are shared out disjointly.
            unsafe { self.out.finish_row(self.kernels, t) };
        }
        self.worker.barrier();
    }

    /// First key that token `t` sees.
    fn first_key(&self, t: usize) -> usize {
        self.shape.window.map_or(0, |w| (self.queries.pos + t + 1).saturating_sub(w))
    }

    /// Token `t`'s row of [`AttnWeights`], which have one for every token of the step.
    fn row(&self, t: usize) -> usize {
        self.queries.first + t
    }

    /// Positions up to the step's last.
    fn n_keys(&self) -> usize {
        self.queries.pos + self.queries.n
    }

    /// The alignment of `lisa` layers mixes heads, so that a tile must have all of them.
    fn all_heads(&self) -> bool {
        matches!(self.scores, ScoreSource::Lisa { .. })
    }

    /// Tiles for one range of tokens, and the key/value heads of each.
    fn head_tiles(&self) -> (usize, usize) {
        let n = self.shape.n_head_kv;
        if self.all_heads() { (1, n) } else { (n, 1) }
    }

    /// The usual case: members take tiles of queries.
    fn tiles(&self, scratch: &mut AttentionScratch) {
        let tokens = if self.all_heads() { all_heads_tokens(self.shape) } else { group_tokens(self.shape) };
        let tokens = tokens.min(self.queries.n);
        let n_token_tiles = self.queries.n.div_ceil(tokens);
        let (n_head_tiles, groups) = self.head_tiles();
        let (dv, group) = (self.shape.head_dim_v, self.shape.group());
        self.worker.for_each_chunk(n_token_tiles * n_head_tiles, |i| {
            // Late tiles see more keys: they go first, so that the members finish together.
            let (tile, g) = (n_token_tiles - 1 - i / n_head_tiles, i % n_head_tiles * groups);
            let tokens = tile * tokens..((tile + 1) * tokens).min(self.queries.n);
            let keys = self.first_key(tokens.start)..self.queries.pos + tokens.end;
            let tile = Tile { tokens, groups: g..g + groups, keys, block: BLOCK };
            // SAFETY: queries and caches are only read in this phase; rows of the slots belong to this tile.
            unsafe { self.stream(&tile, scratch) };
            let heads = tile.groups.start * group..tile.groups.end * group;
            for (r, (h, t)) in heads.flat_map(|h| tile.tokens.clone().map(move |t| (h, t))).enumerate() {
                // SAFETY: these rows and heads belong to this tile alone.
                unsafe {
                    let dst = self.out.part_mut(t, h * dv..(h + 1) * dv);
                    let inv = 1.0 / scratch.total[r];
                    dst.iter_mut().zip(&scratch.sums[r * dv..]).for_each(|(d, s)| *d = s * inv);
                    if let Some(slot) = self.route.writes {
                        self.weights.set_lse(slot, self.row(t), h, scratch.max[r] + scratch.total[r].ln());
                    }
                }
            }
        });
        self.worker.barrier();
    }

    /// The few-queries case: members take runs of keys, and the runs' results are merged.
    fn runs(&self, run_len: usize, scratch: &mut AttentionScratch) {
        let (dv, group, n_head) = (self.shape.head_dim_v, self.shape.group(), self.shape.n_head);
        let first = self.first_key(0) / run_len;
        let n_runs = self.n_keys().div_ceil(run_len) - first;
        let (n_head_tiles, groups) = self.head_tiles();
        // A window's positions lie in a ring, whose end no block may reach over.
        let block = if self.shape.window.is_some() { BLOCK } else { run_len };
        let slot = |t: usize, run: usize, head: usize| (t * n_runs + run) * n_head + head;
        // Chunks of consecutive runs of the same heads: what a member reads next follows what it read.
        let n_tokens = self.queries.n;
        let shares = Shares::new(n_head_tiles * n_runs * n_tokens, self.worker.n);
        let mut one = |i: usize| {
            let (i, t) = (i / n_tokens, i % n_tokens);
            let (g, run) = (i / n_runs * groups, i % n_runs);
            let keys = (first + run) * run_len..(first + run + 1) * run_len;
            let keys = keys.start.max(self.first_key(t))..keys.end.min(self.queries.pos + t + 1);
            let tile = Tile { tokens: t..t + 1, groups: g..g + groups, keys, block };
            let heads = tile.groups.len() * group;
            // SAFETY: queries and caches are only read in this phase; these keys of the slots' rows, and the partial
            // results of (t, run, heads), belong to this tile.
            unsafe {
                self.stream(&tile, scratch);
                let s = slot(t, run, g * group);
                self.partial.sums.get_mut(s * dv..(s + heads) * dv).copy_from_slice(&scratch.sums[..heads * dv]);
                let stats = self.partial.stats.get_mut(s * 2..(s + heads) * 2);
                for (h, stat) in stats.chunks_exact_mut(2).enumerate() {
                    stat.copy_from_slice(&[scratch.max[h], scratch.total[h]]);
                }
            }
        };
        self.worker.for_each_chunk(shares.n_chunks(), |chunk| shares.chunk(chunk).for_each(&mut one));
        self.worker.barrier();
        for i in self.worker.share(self.queries.n * n_head) {
            let (t, h) = (i / n_head, i % n_head);
            // SAFETY: partial results are only read in this phase; head `h` of row `t` is this member's.
            unsafe {
                let stat = |run| {
                    let s = slot(t, run, h);
                    let x = self.partial.stats.get(s * 2..s * 2 + 2);
                    (x[0], x[1])
                };
                let max = (0..n_runs).map(|r| stat(r).0).fold(f32::NEG_INFINITY, f32::max);
                let total: f32 = (0..n_runs).map(|r| stat(r).1 * (stat(r).0 - max).exp()).sum();
                let dst = self.out.part_mut(t, h * dv..(h + 1) * dv);
                dst.fill(0.0);
                for run in 0..n_runs {
                    let weight = (stat(run).0 - max).exp() / total;
                    let s = slot(t, run, h);
                    self.kernels.float.axpy(weight, self.partial.sums.get(s * dv..(s + 1) * dv), dst);
                }
                if let Some(slot) = self.route.writes {
                    self.weights.set_lse(slot, self.row(t), h, max + total.ln());
                }
            }
        }
        self.worker.barrier();
    }

    /// Streams a tile's keys. Leaves, for each of its rows, the weighted value sum, the greatest score and the total weight
    /// in `scratch`; a row that sees none of the keys has total 0.
    ///
    /// # Safety
    /// Nobody writes queries or caches, and nobody else touches the tile's part of the slots, before the next barrier.
    unsafe fn stream(&self, tile: &Tile, scratch: &mut AttentionScratch) {
        let (dv, group, float) = (self.shape.head_dim_v, self.shape.group(), &self.kernels.float);
        let n_tokens = tile.tokens.len();
        let first_head = tile.groups.start * group;
        let m = tile.groups.len() * group * n_tokens;
        // SAFETY: passed on to the caller.
        unsafe { self.gather_queries(tile, &mut scratch.q) };
        scratch.sums[..m * dv].fill(0.0);
        for (r, (max, total)) in scratch.max[..m].iter_mut().zip(&mut scratch.total).enumerate() {
            (*max, *total) = match (self.scores, self.route.reads) {
                // Weights add up to 1 over all keys; the first run of keys says so. A run that ends before the token's
                // window is empty, and begins where the window does.
                (ScoreSource::Shared, Some((_, Holds::Weights))) => {
                    let first = tile.keys.start <= self.first_key(tile.tokens.start + r % n_tokens);
                    let first = first && !tile.keys.is_empty();
                    (0.0, f32::from(u8::from(first)))
                }
                (ScoreSource::Shared, _) => (0.0, 0.0),
                _ => (f32::NEG_INFINITY, 0.0),
            };
        }
        // Block boundaries are multiples of their length whatever the tile, so that a query's result does not depend on it.
        let mut start = tile.keys.start;
        while start < tile.keys.end {
            let block = start..((start / tile.block + 1) * tile.block).min(tile.keys.end);
            let n = block.len();
            // SAFETY: passed on to the caller.
            unsafe { self.block_scores(tile, block.clone(), scratch) };
            for r in 0..m {
                let (h, t) = (first_head + r / n_tokens, tile.tokens.start + r % n_tokens);
                let row = &mut scratch.scores[r * n..(r + 1) * n];
                let seen =
                    self.first_key(t).clamp(start, block.end)..(self.queries.pos + t + 1).clamp(start, block.end);
                row[..seen.start - start].fill(0.0);
                row[seen.end - start..].fill(0.0);
                if seen.is_empty() {
                    continue;
                }
                let row = &mut row[seen.start - start..seen.end - start];
                // SAFETY: passed on to the caller.
                unsafe {
                    if matches!(self.scores, ScoreSource::Shared) {
                        scratch.total[r] += self.source_weights(t, h, seen, row);
                        continue;
                    }
                    if let Some(slot) = self.route.writes {
                        self.weights.row_mut(slot, self.row(t), h, self.n_keys(), seen).copy_from_slice(row);
                    }
                }
                let (max, total) = (&mut scratch.max[r], &mut scratch.total[r]);
                let new_max = max.max(float.max(row));
                let sum = float.exp_sub_sum(row, new_max);
                if new_max > *max {
                    let shrink = (*max - new_max).exp();
                    *total *= shrink;
                    float.scale(&mut scratch.sums[r * dv..(r + 1) * dv], shrink);
                    *max = new_max;
                }
                *total += sum;
            }
            let rows = group * n_tokens;
            let widen = rows >= WIDEN_ROWS;
            let part = if widen { BLOCK } else { n };
            for (i, g) in tile.groups.clone().enumerate() {
                for at in block.clone().step_by(part) {
                    let keys = at..(at + part).min(block.end);
                    let k = keys.len();
                    let weights = Rows::new(&scratch.scores[i * rows * n + at - start..], rows, k, n);
                    let into = RowsMut::new(&mut scratch.sums[i * rows * dv..], rows, dv, dv);
                    // SAFETY: passed on to the caller.
                    match unsafe { self.values.v(self.kernels, g, keys, widen, &mut scratch.wide) } {
                        Block::F16(v) => float.values_f16(weights, Rows::new(v, k, dv, dv), into),
                        Block::Q8_0(v) => float.values_q8_0(weights, Rows::new(v, k, v.len() / k, v.len() / k), into),
                        Block::F32(v) => float.sgemm_nn_acc(weights, Rows::new(v, k, dv, dv), into),
                    }
                }
            }
            start = block.end;
        }
    }

    /// Copies the tile's queries together, by head and token.
    ///
    /// # Safety
    /// Nobody writes them before the next barrier.
    unsafe fn gather_queries(&self, tile: &Tile, into: &mut [f32]) {
        let (q, len, scale) = match self.scores {
            ScoreSource::Keys { q, .. } => (q, self.shape.head_dim_k, 1.0),
            ScoreSource::Lisa { lisa, q, .. } => (q, lisa.rank(), lisa.scale),
            ScoreSource::Shared => return,
        };
        let heads = tile.groups.start * self.shape.group()..tile.groups.end * self.shape.group();
        let rows = heads.flat_map(|h| tile.tokens.clone().map(move |t| t * self.shape.n_head + h));
        for (row, dst) in rows.zip(into.chunks_exact_mut(len.max(1))).filter(|_| len > 0) {
            // SAFETY: passed on to the caller.
            dst.copy_from_slice(unsafe { q.get(row * len..(row + 1) * len) });
            if scale != 1.0 {
                self.kernels.float.scale(dst, scale);
            }
        }
    }

    /// Makes the scores of one block of keys for all rows of the tile; `shared` layers have none to make.
    ///
    /// # Safety
    /// As [`Attend::stream`].
    unsafe fn block_scores(&self, tile: &Tile, block: Range<usize>, scratch: &mut AttentionScratch) {
        let (n, float) = (block.len(), &self.kernels.float);
        let rows = tile.groups.len() * self.shape.group() * tile.tokens.len();
        let AttentionScratch { q, scores, wide, lisa: lisa_scratch, .. } = scratch;
        let scores = &mut scores[..rows * n];
        match self.scores {
            ScoreSource::Shared => {}
            ScoreSource::Keys { keys, .. } => {
                let (dk, scale) = (self.shape.head_dim_k, Scores::Scaled(self.shape.scale));
                let queries = Rows::new(q, rows, dk, dk);
                let (keys, head) = (keys.keys(), tile.groups.start);
                // SAFETY: passed on to the caller.
                unsafe { keys.scores(self.kernels, head, block, queries, scale, scores, wide) };
                if let Some(cap) = self.shape.softcap {
                    float.soft_cap(scores, cap);
                }
            }
            ScoreSource::Lisa { lisa, keys, .. } => {
                let (slot, holds) = self.route.reads.expect("a lisa layer reads its source");
                let n_tokens = tile.tokens.len();
                for (i, t) in tile.tokens.clone().enumerate() {
                    let row = self.row(t);
                    // SAFETY: passed on to the caller.
                    let ahead = unsafe { self.read_ahead(lisa, keys, slot, tile, t, block.clone()) };
                    // SAFETY: passed on to the caller.
                    let (source, lse) = unsafe {
                        (self.weights.heads(slot, row, self.n_keys(), block.clone()), self.weights.lse(slot, row))
                    };
                    let into = RowsMut::new(&mut scores[i * n..], self.shape.n_head, n, n_tokens * n);
                    lisa.align(self.kernels, source, lse, holds, ahead, lisa_scratch, into);
                }
                // SAFETY: passed on to the caller.
                unsafe { lisa.add_low_rank(self.kernels, self.shape, q, keys, n_tokens, block, scores, wide) };
            }
        }
    }

    /// What a `lisa` layer reads after the alignment of token `t`, to be fetched meanwhile. In a tile of several tokens that is the source's
    /// weights of the next token, or of the first in the next block: their rows are too short for the hardware to find its stride, and
    /// keys and values serve several tiles and are in a cache already. Else it is the low-rank keys, and where each head's values
    /// begin: the hardware goes on from there.
    ///
    /// # Safety
    /// Nobody writes the caches or the slot's weights before the next barrier.
    unsafe fn read_ahead<'a>(
        &self,
        lisa: &LisaAttention,
        keys: &'a LayerCache,
        slot: usize,
        tile: &Tile,
        t: usize,
        block: Range<usize>,
    ) -> [Rows<'a, u8>; 2]
    where
        Self: 'a,
    {
        let none = Rows::new(&[], 0, 0, 0);
        // SAFETY: passed on to the caller.
        unsafe {
            if tile.tokens.len() > 1 {
                let (next, block) = if t + 1 < tile.tokens.end {
                    (t + 1, block)
                } else {
                    (tile.tokens.start, block.end..(block.end + BLOCK).min(tile.keys.end))
                };
                return [self.weights.heads(slot, self.row(next), self.n_keys(), block).bytes(), none];
            }
            let values = block.start..block.start + block.len().min(READ_AHEAD);
            let low_rank = lisa.low_rank.as_ref().map_or(none, |_| keys.low_rank().group_rows(block));
            [low_rank, keys.v_bytes(values)]
        }
    }

    /// The source's weights of token `t` and head `h` for positions `keys`; returns their sum where it is not known to be
    /// 1 in all.
    ///
    /// # Safety
    /// Nobody else touches these elements before the next barrier.
    unsafe fn source_weights(&self, t: usize, h: usize, keys: Range<usize>, row: &mut [f32]) -> f32 {
        let (slot, holds) = self.route.reads.expect("a shared layer reads its source");
        let t = self.row(t);
        // SAFETY: passed on to the caller.
        unsafe {
            row.copy_from_slice(self.weights.row(slot, t, h, self.n_keys(), keys.clone()));
            if holds == Holds::Weights {
                return 0.0;
            }
            let sum = self.kernels.float.exp_sub_sum(row, self.weights.lse(slot, t)[h]);
            if self.route.leaves_weights {
                self.weights.row_mut(slot, t, h, self.n_keys(), keys).copy_from_slice(row);
            }
            sum
        }
    }
}
