//! Causal attention with a streaming softmax (arXiv 2205.14135): block by block of keys, whatever the scores come from. A
//! [`ScoreSource`] makes the scores of a block; what follows is the same for all kinds of attention. Only where other layers
//! read a layer's scores are they kept whole, in the step's [`AttnWeights`].

use ggml_ext::kernels::{Digits, Kernels};

use super::gates::Gates;
use super::kv_cache::LayerCache;
use super::lisa::LisaAttention;
use super::route::Route;
use super::stream::{AttentionScratch, Room, Tile};
use super::weights::Step;
use super::{AttentionShape, AttnWeights};
use crate::compute::{Chunks, Operand, SharedBuf, Worker};

/// Keys per block: scores of a tile and a widened block stay in the first-level caches.
pub(super) const BLOCK: usize = 128;
/// Query rows (tokens x heads) that are worked on at a time.
const PART_ROWS: usize = 48;
/// The same with all heads.
const ALL_HEADS_ROWS: usize = 144;
/// Tokens that are worked on then at least, for each pass over a block of values to serve several.
const ALL_HEADS_TOKENS: usize = 6;
/// In bf16 tokens are worked on in multiples of these.
const BF16_ROWS: usize = 16;
/// Most query rows that keys and values are rounded to bf16 for.
const BF16_TILE_ROWS: usize = 512;
/// Tiles in bf16 that each member should have.
const TILES_PER_MEMBER: usize = 4;
/// With few queries, members share the keys out in runs: this many, unless they would be shorter than the shortest run or longer than
/// the longest block. Constants, so that the result does not depend on the number of threads.
const RUNS: usize = 8;
/// Fewest keys in a run.
const SHORTEST_RUN: usize = 512;
/// The same where a tile has all heads, and so there are fewer tiles.
const ALL_HEADS_SHORTEST_RUN: usize = 128;
/// Most keys in a run there.
const ALL_HEADS_LONGEST_RUN: usize = 512;
/// Most keys per block for one query. Its scores are few, and where memory is read head by head long stretches are what the
/// hardware fetches ahead.
pub(super) const LONGEST_BLOCK: usize = 1024;
/// Most query tokens for which keys are shared out.
pub(super) const SPLIT_MAX_TOKENS: usize = 4;
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
    /// Whether the window is a chunk of positions, of which a query sees those in its own, and not one that slides.
    pub chunked: bool,
    /// What a score of each head with keys loses for every position between query and key (ALiBi, arXiv 2108.12409).
    pub slopes: Option<&'a [f32]>,
    /// What each head's softmax counts besides its keys: the score of a key without a value (gpt-oss, arXiv 2508.10925; StreamingLLM, arXiv
    /// 2309.17453, calls it a sink).
    pub sinks: Option<&'a [f32]>,
    /// What results are multiplied with, where the family has that.
    pub gates: Option<Gates<'a>>,
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
    /// Whether products of many queries are made in bf16: in all layers of a step or in none.
    pub bf16: bool,
}

/// Work space of one member for layers of these shapes, `lisa` layers among them having up to `n_hidden` units and keys of `rank`, and for
/// convolutions of `n_channels`. If products are made in bf16, then in so many `digits`: of queries and keys, and of weights and values.
pub fn attention_scratch(
    shapes: impl IntoIterator<Item = AttentionShape>,
    n_hidden: usize,
    rank: usize,
    n_channels: usize,
    digits: Option<[Digits; 2]>,
) -> AttentionScratch {
    let mut room = Room { rank, n_hidden, n_channels, digits, ..Room::default() };
    for s in shapes {
        let bf16 = digits.is_some();
        for all_heads in [false, true] {
            let heads = if all_heads { s.n_head } else { s.group() };
            let part = part_tokens(&s, all_heads, bf16);
            let tile = if bf16 { most_tokens(part, heads) } else { part };
            room.part_rows = room.part_rows.max(part * heads);
            room.rows = room.rows.max(tile * heads);
        }
        room.n_head = room.n_head.max(s.n_head);
        room.n_groups = room.n_groups.max(s.n_head_kv);
        room.head_dim_k = room.head_dim_k.max(s.head_dim_k);
        room.head_dim_v = room.head_dim_v.max(s.head_dim_v);
    }
    AttentionScratch::new(&room)
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
        let runs = SPLIT_MAX_TOKENS * (n_ctx.div_ceil(ALL_HEADS_LONGEST_RUN).max(RUNS) + 1);
        let (mut sums, mut heads) = (0, 0);
        for s in shapes {
            sums = sums.max(s.n_head * s.head_dim_v);
            heads = heads.max(s.n_head);
        }
        Self { sums: SharedBuf::new(runs * sums), stats: SharedBuf::new(runs * heads * 2) }
    }
}

/// Tokens that are worked on at a time: of one group's heads, or of all.
fn part_tokens(s: &AttentionShape, all_heads: bool, bf16: bool) -> usize {
    match (all_heads, (PART_ROWS / s.group()).max(1)) {
        (true, _) => (ALL_HEADS_ROWS / s.n_head).max(ALL_HEADS_TOKENS),
        (false, n) if bf16 => n.next_multiple_of(BF16_ROWS),
        (false, n) => n,
    }
}

/// Tokens of the largest tile in bf16, in parts of `part` tokens with `heads` heads.
fn most_tokens(part: usize, heads: usize) -> usize {
    (BF16_TILE_ROWS / (part * heads)).max(1) * part
}

impl Attend<'_> {
    /// Computes the layer's weighted values. Two phases, or three where the keys are shared out.
    pub fn run(&self, scratch: &mut AttentionScratch) {
        let n_keys = self.n_keys() - self.first_key(0);
        let (shortest, longest) = if self.all_heads() {
            (ALL_HEADS_SHORTEST_RUN, ALL_HEADS_LONGEST_RUN)
        } else {
            (SHORTEST_RUN, LONGEST_BLOCK)
        };
        let run = n_keys.div_ceil(RUNS).next_power_of_two().clamp(shortest, longest);
        if self.queries.n <= SPLIT_MAX_TOKENS && n_keys > run {
            self.runs(run, scratch);
        } else {
            self.tiles(scratch);
        }
        for t in self.worker.share(self.queries.n) {
            // SAFETY: rows are shared out disjointly, and with them their gates.
            unsafe {
                if let Some(gates) = self.gates {
                    gates.apply(self.kernels, t, self.out.row_mut(t));
                }
                self.out.finish_row(self.kernels, t);
            }
        }
        self.worker.barrier();
    }

    /// First key that token `t` sees.
    pub(super) fn first_key(&self, t: usize) -> usize {
        let pos = self.queries.pos + t;
        match self.shape.window {
            None => 0,
            Some(n) if self.chunked => pos / n * n,
            Some(n) => (pos + 1).saturating_sub(n),
        }
    }

    /// Token `t`'s row of [`AttnWeights`], which have one for every token of the step.
    pub(super) fn row(&self, t: usize) -> usize {
        self.queries.first + t
    }

    /// Positions up to the step's last.
    pub(super) fn n_keys(&self) -> usize {
        self.queries.pos + self.queries.n
    }

    /// The step that these tokens are the last of.
    pub(super) fn step(&self) -> Step {
        Step { n_tokens: self.queries.first + self.queries.n, n_keys: self.n_keys() }
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
        let (n_head_tiles, groups) = self.head_tiles();
        let (dv, group) = (self.shape.head_dim_v, self.shape.group());
        let bf16 = self.bf16;
        let part = part_tokens(self.shape, self.all_heads(), bf16);
        let tokens = if bf16 {
            // Enough tiles for the members to finish together.
            let few = self.queries.n * n_head_tiles / (TILES_PER_MEMBER * self.worker.n);
            few.next_multiple_of(part).clamp(part, most_tokens(part, groups * group))
        } else {
            part
        };
        let tokens = tokens.min(self.queries.n);
        let n_token_tiles = self.queries.n.div_ceil(tokens);
        self.worker.for_each_chunk(n_token_tiles * n_head_tiles, |i| {
            // Late tiles see more keys: they go first, so that the members finish together.
            let (tile, g) = (n_token_tiles - 1 - i / n_head_tiles, i % n_head_tiles * groups);
            let tokens = tile * tokens..((tile + 1) * tokens).min(self.queries.n);
            let keys = self.first_key(tokens.start)..self.queries.pos + tokens.end;
            let tile = Tile { tokens, groups: g..g + groups, keys, block: BLOCK, part, bf16 };
            // SAFETY: queries and caches are only read in this phase; rows of the slots belong to this tile.
            unsafe { self.stream(&tile, scratch) };
            for part in tile.parts(group) {
                for r in 0..part.n_rows {
                    let ((h, t), i) = (self.row_of(&tile, &part, r), part.row + r);
                    // SAFETY: these rows and heads belong to this tile alone.
                    unsafe {
                        let dst = self.out.part_mut(t, h * dv..(h + 1) * dv);
                        let (factor, lse) = self.normaliser(h, scratch.max[i], scratch.total[i]);
                        dst.iter_mut().zip(&scratch.sums[i * dv..]).for_each(|(d, s)| *d = s * factor);
                        if let Some(slot) = self.route.writes {
                            self.weights.set_lse(slot, self.row(t), h, lse);
                        }
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
        // A window's positions lie in a ring, whose end no block may reach over; and the weights of longer steps lie block by block.
        let short = self.shape.window.is_some() || !self.step().is_split();
        let block = if short { BLOCK } else { run_len };
        let slot = |t: usize, run: usize, head: usize| (t * n_runs + run) * n_head + head;
        // Chunks of consecutive runs of the same heads: what a member reads next follows what it read.
        let n_tokens = self.queries.n;
        let chunks = Chunks::new(n_head_tiles * n_runs * n_tokens, self.worker.n);
        let mut one = |i: usize| {
            let (i, t) = (i / n_tokens, i % n_tokens);
            let (g, run) = (i / n_runs * groups, i % n_runs);
            let keys = (first + run) * run_len..(first + run + 1) * run_len;
            let keys = keys.start.max(self.first_key(t))..keys.end.min(self.queries.pos + t + 1);
            let tile = Tile { tokens: t..t + 1, groups: g..g + groups, keys, block, part: 1, bf16: false };
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
        self.worker.for_each_chunk(chunks.n_chunks(), |chunk| chunks.chunk(chunk).for_each(&mut one));
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
                let (factor, lse) = self.normaliser(h, max, total);
                let dst = self.out.part_mut(t, h * dv..(h + 1) * dv);
                dst.fill(0.0);
                for run in 0..n_runs {
                    let weight = (stat(run).0 - max).exp() * factor;
                    let s = slot(t, run, h);
                    self.kernels.float.axpy(weight, self.partial.sums.get(s * dv..(s + 1) * dv), dst);
                }
                if let Some(slot) = self.route.writes {
                    self.weights.set_lse(slot, self.row(t), h, lse);
                }
            }
        }
        self.worker.barrier();
    }

    /// What the value sum of head `h` is multiplied with, the weights in it being relative to a score `max` and `total` in all, and the
    /// logarithm of the sum of the scores' exponentials.
    fn normaliser(&self, h: usize, max: f32, total: f32) -> (f32, f32) {
        let Some(sinks) = self.sinks else { return (1.0 / total, max + total.ln()) };
        let greatest = max.max(sinks[h]);
        let shrink = (max - greatest).exp();
        let total = total * shrink + (sinks[h] - greatest).exp();
        (shrink / total, greatest + total.ln())
    }
}
