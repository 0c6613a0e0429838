//! A tile's pass over its keys: block by block scores, weights, weighted values.
//!
//! In floats a tile is worked on as a whole. In bf16 a block's keys and values are rounded into the order of the CPU's matrix instructions
//! first, for a tile of many tokens, of which few are worked on at a time so that their scores stay in a near cache. Queries and keys then
//! have two digits, for scores are exponents; weights and values have those of the product that follows.

use std::ops::Range;

use ggml_ext::kernels::float::{KEY_GROUP, Rows, RowsMut};
use ggml_ext::kernels::{Bf16Factor, Bf16Rows, Digits};

use super::alibi::subtract_distances;
use super::attend::{Attend, BLOCK, LONGEST_BLOCK, ScoreSource, WIDEN_ROWS};
use super::keys::Products;
use super::kv_cache::{Block, LayerCache};
use super::lisa::{LisaAttention, LisaScratch};
use super::{AttentionShape, Holds};
use crate::compute::Floats;

/// Bytes of values that are fetched while a `lisa` layer aligns one token's heads: where its reading starts for each head.
const READ_AHEAD: usize = 192 << 10;

/// What one member works on at a time.
pub(super) struct Tile {
    /// Tokens that attend.
    pub tokens: Range<usize>,
    /// Key/value heads: one, or all of them.
    pub groups: Range<usize>,
    /// Positions.
    pub keys: Range<usize>,
    /// Most of them in a block.
    pub block: usize,
    /// Most tokens in a part.
    pub part: usize,
    /// Whether products are made in bf16.
    pub bf16: bool,
}

/// Some of a tile's tokens. Its rows are ordered by head, then by token.
pub(super) struct TilePart {
    /// Tokens that attend.
    pub tokens: Range<usize>,
    /// Its first row among those of the tile.
    pub row: usize,
    /// How many it has.
    pub n_rows: usize,
}

impl Tile {
    /// All parts; each has rows for `group` heads of every key/value head.
    pub fn parts(&self, group: usize) -> impl Iterator<Item = TilePart> + use<> {
        let (all, part, heads) = (self.tokens.clone(), self.part, self.groups.len() * group);
        all.clone().step_by(part).map(move |start| {
            let tokens = start..(start + part).min(all.end);
            TilePart { row: (start - all.start) * heads, n_rows: tokens.len() * heads, tokens }
        })
    }

    /// The first position that is read.
    fn start(&self) -> usize {
        // What is added up in one instruction does not depend on where a tile begins.
        if self.bf16 { self.keys.start / BLOCK * BLOCK } else { self.keys.start }
    }
}

/// One member's work space.
pub struct AttentionScratch {
    q: Floats,
    scores: Floats,
    wide: Floats,
    /// Weighted value sums, greatest scores and total weights of the tile's rows.
    pub(super) sums: Floats,
    pub(super) max: Floats,
    pub(super) total: Floats,
    lisa: LisaScratch,
    factors: Option<Factors>,
}

/// Both sides of products in bf16.
struct Factors {
    queries: Bf16Rows,
    /// Of a part.
    weights: Bf16Rows,
    keys: Bf16Factor,
    /// Of all key/value heads of a tile.
    values: Box<[Bf16Factor]>,
}

/// What work space has to hold.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Rows of a tile.
    pub rows: usize,
    /// Rows of a part.
    pub part_rows: usize,
    pub n_head: usize,
    /// Key/value heads of a tile.
    pub n_groups: usize,
    pub head_dim_k: usize,
    pub head_dim_v: usize,
    /// Values of a low-rank key.
    pub rank: usize,
    /// Hidden units of a `lisa` layer.
    pub n_hidden: usize,
    /// Channels of a convolution.
    pub n_channels: usize,
    /// Digits of queries and keys, and of weights and values, if products are made in bf16.
    pub digits: Option<[Digits; 2]>,
}

impl AttentionScratch {
    /// Room for values that are widened.
    pub(super) fn wide(&mut self) -> &mut [f32] {
        &mut self.wide
    }

    pub(super) fn new(r: &Room) -> Self {
        let (dk, dv) = (r.head_dim_k.max(r.rank), r.head_dim_v);
        let factors = |[digits, value_digits]: [Digits; 2]| Factors {
            queries: Bf16Rows::new(r.rows, r.head_dim_k.next_multiple_of(32)),
            weights: Bf16Rows::new(r.part_rows, BLOCK),
            keys: Bf16Factor::new(r.head_dim_k, BLOCK, digits),
            values: (0..r.n_groups)
                .map(|_| Bf16Factor::new(BLOCK, dv.next_multiple_of(Bf16Factor::COLUMNS), value_digits))
                .collect(),
        };
        Self {
            q: Floats::new(r.rows * dk),
            scores: Floats::new((r.part_rows * BLOCK).max(r.n_head * LONGEST_BLOCK)),
            wide: Floats::new((KEY_GROUP * dk).max(BLOCK * dv).max(dk.next_multiple_of(32)).max(r.n_channels)),
            sums: Floats::new(r.rows * dv),
            max: Floats::new(r.rows),
            total: Floats::new(r.rows),
            lisa: LisaScratch::new(r.n_head, r.n_hidden),
            factors: r.digits.map(factors),
        }
    }
}

impl AttentionShape {
    /// Whether its values divide into the columns of products in bf16.
    pub fn takes_bf16(&self) -> bool {
        self.head_dim_v.is_multiple_of(Bf16Factor::COLUMNS)
    }
}

impl Attend<'_> {
    /// Streams a tile's keys. Leaves, for each of its rows, the weighted value sum, the greatest score and the total weight
    /// in `scratch`; a row that sees none of the keys has total 0.
    ///
    /// # Safety
    /// Nobody writes queries or caches, and nobody else touches the tile's part of the slots, before the next barrier.
    pub(super) unsafe fn stream(&self, tile: &Tile, scratch: &mut AttentionScratch) {
        let group = self.shape.group();
        for part in tile.parts(group) {
            // SAFETY: passed on to the caller.
            unsafe { self.begin(tile, &part, scratch) };
        }
        // Block boundaries are multiples of their length whatever the tile, so that a query's result does not depend on it.
        let mut start = tile.start();
        while start < tile.keys.end {
            let block = start..((start / tile.block + 1) * tile.block).min(tile.keys.end);
            if tile.bf16 {
                // SAFETY: passed on to the caller.
                unsafe { self.round_block(tile, block.clone(), scratch) };
            }
            for part in tile.parts(group) {
                let (first, end) = (self.first_key(part.tokens.start), self.queries.pos + part.tokens.end);
                let block = start..block.end.min(end);
                if block.is_empty() || first >= block.end {
                    continue;
                }
                // SAFETY: passed on to the caller.
                unsafe {
                    self.block_scores(tile, &part, block.clone(), scratch);
                    self.block_weights(tile, &part, block.clone(), scratch);
                    self.add_values(tile, &part, block, scratch);
                }
            }
            start = block.end;
        }
    }

    /// Head and token of row `r` of a part.
    pub(super) fn row_of(&self, tile: &Tile, part: &TilePart, r: usize) -> (usize, usize) {
        let n_tokens = part.tokens.len();
        (tile.groups.start * self.shape.group() + r / n_tokens, part.tokens.start + r % n_tokens)
    }

    /// Elements between the rows of a block's scores.
    fn stride(tile: &Tile, block: &Range<usize>) -> usize {
        if tile.bf16 { BLOCK } else { block.len() }
    }

    /// Copies the queries of a part together and sets what its rows add up to to nothing.
    ///
    /// # Safety
    /// Nobody writes queries before the next barrier.
    unsafe fn begin(&self, tile: &Tile, part: &TilePart, scratch: &mut AttentionScratch) {
        let (dv, rows) = (self.shape.head_dim_v, part.row..part.row + part.n_rows);
        scratch.sums[rows.start * dv..rows.end * dv].fill(0.0);
        for (r, i) in rows.enumerate() {
            let (h, t) = self.row_of(tile, part, r);
            (scratch.max[i], scratch.total[i]) = match (self.scores, self.route.reads) {
                // Weights add up to 1 over all keys; the first run of keys says so. A run that ends before the token's
                // window is empty, and begins where the window does.
                (ScoreSource::Shared, Some((_, Holds::Weights))) => {
                    let first = tile.keys.start <= self.first_key(t) && !tile.keys.is_empty();
                    (0.0, f32::from(u8::from(first)))
                }
                (ScoreSource::Shared, _) => (0.0, 0.0),
                _ => (f32::NEG_INFINITY, 0.0),
            };
            let factors = scratch.factors.as_ref().filter(|_| tile.bf16);
            // Where there are products in bf16, with queries and keys of full length, queries go there.
            let (q, len, scale, rounded) = match (self.scores, factors) {
                (ScoreSource::Keys { q, .. }, Some(f)) => {
                    (q, self.shape.head_dim_k, self.shape.scale, Some(&f.queries))
                }
                (ScoreSource::Keys { q, .. }, None) => (q, self.shape.head_dim_k, 1.0, None),
                (ScoreSource::Lisa { lisa, q, .. }, _) => (q, lisa.rank(), lisa.scale, None),
                (ScoreSource::Shared, _) => continue,
            };
            let query = (t * self.shape.n_head + h) * len;
            // SAFETY: passed on to the caller.
            let query = unsafe { q.get(query..query + len) };
            let into = match rounded {
                Some(rows) => &mut scratch.wide[..rows.k()],
                None => &mut scratch.q[i * len..(i + 1) * len],
            };
            let (start, rest) = into.split_at_mut(len);
            start.copy_from_slice(query);
            rest.fill(0.0);
            if scale != 1.0 {
                self.kernels.float.scale(start, scale);
            }
            if let Some(rows) = rounded {
                // SAFETY: the rows are this member's.
                unsafe { rows.round_row(self.kernels, i, into) };
            }
        }
    }

    /// Rounds the keys and values of a block, which begins where blocks of [`BLOCK`] do.
    ///
    /// # Safety
    /// Nobody writes the caches before the next barrier.
    unsafe fn round_block(&self, tile: &Tile, block: Range<usize>, scratch: &mut AttentionScratch) {
        let factors = scratch.factors.as_mut().expect("work space for bf16");
        // SAFETY: passed on to the caller.
        unsafe {
            if let ScoreSource::Keys { keys, .. } = self.scores {
                keys.keys().round(self.kernels, tile.groups.start, block.clone(), &mut factors.keys, &mut scratch.wide);
            }
            for (g, factor) in tile.groups.clone().zip(&mut factors.values) {
                self.values.round_v(self.kernels, g, block.clone(), factor, &mut scratch.wide);
            }
        }
    }

    /// Makes the scores of one block of keys for all rows of a part; `shared` layers have none to make.
    ///
    /// # Safety
    /// As [`Attend::stream`].
    unsafe fn block_scores(&self, tile: &Tile, part: &TilePart, block: Range<usize>, scratch: &mut AttentionScratch) {
        let (n, stride, float) = (block.len(), Self::stride(tile, &block), &self.kernels.float);
        let AttentionScratch { q, scores, wide, lisa: lisa_scratch, factors, .. } = scratch;
        let scores = &mut scores[..part.n_rows * stride];
        match self.scores {
            ScoreSource::Shared => {}
            ScoreSource::Keys { keys, .. } => {
                let dk = self.shape.head_dim_k;
                if let (true, Some(factors)) = (tile.bf16, factors) {
                    let into = RowsMut::new(scores, part.n_rows, n.next_multiple_of(Bf16Factor::COLUMNS), stride);
                    // SAFETY: this member wrote the queries before.
                    let queries = unsafe { factors.queries.view(part.row..part.row + part.n_rows) };
                    self.kernels.int.product_of_rows(queries, &factors.keys, dk, false, into);
                } else {
                    let scale = Products::Scaled(self.shape.scale);
                    let queries = Rows::new(q, part.n_rows, dk, dk);
                    let (keys, head) = (keys.keys(), tile.groups.start);
                    // SAFETY: passed on to the caller.
                    unsafe { keys.scores(self.kernels, head, block.clone(), queries, scale, scores, stride, wide) };
                }
                if let Some(cap) = self.shape.softcap {
                    float.soft_cap(scores, cap);
                }
                if let Some(slopes) = self.slopes {
                    for (r, row) in scores.chunks_exact_mut(stride).enumerate() {
                        let (h, t) = self.row_of(tile, part, r);
                        subtract_distances(&mut row[..n], slopes[h], block.start, self.queries.pos + t);
                    }
                }
            }
            ScoreSource::Lisa { lisa, keys, .. } => {
                let (slot, holds) = self.route.reads.expect("a lisa layer reads its source");
                let n_tokens = part.tokens.len();
                for (i, t) in part.tokens.clone().enumerate() {
                    let row = self.row(t);
                    // SAFETY: passed on to the caller.
                    let ahead = unsafe { self.read_ahead(lisa, keys, slot, tile, t, block.clone()) };
                    // SAFETY: passed on to the caller.
                    let (source, lse) = unsafe {
                        (
                            self.weights.heads(slot, self.step(), row, self.shape.n_head, block.clone()),
                            &self.weights.lse(slot, row)[..self.shape.n_head],
                        )
                    };
                    let into = RowsMut::new(&mut scores[i * stride..], self.shape.n_head, n, n_tokens * stride);
                    lisa.align(self.kernels, source, lse, holds, ahead, lisa_scratch, into);
                }
                let q = &q[part.row * lisa.rank()..];
                // SAFETY: passed on to the caller.
                unsafe { lisa.add_low_rank(self.kernels, self.shape, q, keys, n_tokens, block, scores, stride, wide) };
            }
        }
    }

    /// Makes a block's scores weights, relative to the greatest score so far, and counts them.
    ///
    /// # Safety
    /// As [`Attend::stream`].
    unsafe fn block_weights(&self, tile: &Tile, part: &TilePart, block: Range<usize>, scratch: &mut AttentionScratch) {
        let (dv, float) = (self.shape.head_dim_v, &self.kernels.float);
        let (n, stride) = (block.len(), Self::stride(tile, &block));
        let rounded = scratch.factors.as_ref().filter(|_| tile.bf16).map(|f| (&f.weights, f.values[0].digits()));
        for r in 0..part.n_rows {
            let ((h, t), i) = (self.row_of(tile, part, r), part.row + r);
            let row = &mut scratch.scores[r * stride..][..n];
            let seen = self.first_key(t).clamp(block.start, block.end)
                ..(self.queries.pos + t + 1).clamp(block.start, block.end);
            let within = seen.start - block.start..seen.end - block.start;
            if let (ScoreSource::Shared, Some((slot, _)), Some((weights, digits))) =
                (self.scores, self.route.reads, rounded)
            {
                let t = self.row(t);
                // SAFETY: passed on to the caller; the row of weights is this member's.
                scratch.total[i] += unsafe {
                    let (scores, lse) =
                        (self.weights.row(slot, self.step(), t, h, block.clone()), self.weights.lse(slot, t)[h]);
                    weights.exp_row(self.kernels, r, scores, within, lse, digits)
                };
                continue;
            }
            if matches!(self.scores, ScoreSource::Shared) {
                row[..within.start].fill(0.0);
                row[within.end..].fill(0.0);
                if !seen.is_empty() {
                    // SAFETY: passed on to the caller.
                    scratch.total[i] += unsafe { self.source_weights(t, h, seen, &mut row[within]) };
                }
                continue;
            }
            if let Some(slot) = self.route.writes {
                // SAFETY: passed on to the caller.
                let kept = unsafe { self.weights.row_mut(slot, self.step(), self.row(t), h, seen) };
                kept.copy_from_slice(&row[within.clone()]);
            }
            let (max, total) = (&mut scratch.max[i], &mut scratch.total[i]);
            let new_max = max.max(float.max(&row[within.clone()]));
            let sum = match rounded {
                // SAFETY: the row is this member's.
                Some((weights, digits)) => unsafe { weights.exp_row(self.kernels, r, row, within, new_max, digits) },
                None => {
                    row[..within.start].fill(0.0);
                    row[within.end..].fill(0.0);
                    float.exp_sub_sum(&mut row[within], new_max)
                }
            };
            if new_max > *max {
                let shrink = (*max - new_max).exp();
                *total *= shrink;
                float.scale(&mut scratch.sums[i * dv..(i + 1) * dv], shrink);
                *max = new_max;
            }
            *total += sum;
        }
    }

    /// Adds a block's weighted values to the rows' sums.
    ///
    /// # Safety
    /// Nobody writes the cache before the next barrier.
    unsafe fn add_values(&self, tile: &Tile, part: &TilePart, block: Range<usize>, scratch: &mut AttentionScratch) {
        let (dv, float) = (self.shape.head_dim_v, &self.kernels.float);
        let (n, stride) = (block.len(), Self::stride(tile, &block));
        let rows = self.shape.group() * part.tokens.len();
        for (i, g) in tile.groups.clone().enumerate() {
            let sums = (part.row + i * rows) * dv..;
            if let (true, Some(factors)) = (tile.bf16, &scratch.factors) {
                let into = RowsMut::new(&mut scratch.sums[sums], rows, dv, dv);
                // SAFETY: this member wrote the weights before.
                let weights = unsafe { factors.weights.view(i * rows..(i + 1) * rows) };
                self.kernels.int.product_of_rows(weights, &factors.values[i], n, true, into);
                continue;
            }
            let widen = rows >= WIDEN_ROWS;
            let step = if widen { BLOCK } else { n };
            for at in block.clone().step_by(step) {
                let keys = at..(at + step).min(block.end);
                let k = keys.len();
                let weights = Rows::new(&scratch.scores[i * rows * stride + at - block.start..], rows, k, stride);
                let into = RowsMut::new(&mut scratch.sums[sums.clone()], rows, dv, dv);
                // SAFETY: passed on to the caller.
                match unsafe { self.values.v(self.kernels, g, keys, widen, &mut scratch.wide) } {
                    Block::F16(v) => float.values_f16(weights, Rows::new(v, k, dv, dv), into),
                    Block::Q8_0(v) => float.values_q8_0(weights, Rows::new(v, k, v.len() / k, v.len() / k), into),
                    Block::F32(v) => float.sgemm_nn_acc(weights, Rows::new(v, k, dv, dv), into),
                }
            }
        }
    }

    /// What a `lisa` layer reads after the alignment of token `t`, to be fetched meanwhile. In a tile of several tokens that is the source's
    /// weights of the next token, or of the first in the next block: their rows are too short for the hardware to find its stride, and
    /// keys and values serve several tiles and are in a cache already. Else it is the low-rank keys, and the beginning of each head's values.
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
                return [self.weights.heads(slot, self.step(), self.row(next), self.shape.n_head, block).bytes(), none];
            }
            let values = keys.v_bytes(block.start..block.start + 1);
            let n = READ_AHEAD / (values.n_rows() * values.len()).max(1);
            let values = block.start..block.start + block.len().min(n);
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
            row.copy_from_slice(self.weights.row(slot, self.step(), t, h, keys.clone()));
            if holds == Holds::Weights {
                return 0.0;
            }
            let sum = self.kernels.float.exp_sub_sum(row, self.weights.lse(slot, t)[h]);
            if self.route.leaves_weights {
                self.weights.row_mut(slot, self.step(), t, h, keys).copy_from_slice(row);
            }
            sum
        }
    }
}
