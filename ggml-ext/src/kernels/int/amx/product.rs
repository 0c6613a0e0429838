//! The product of weights with activations in tiles.
//!
//! Tile registers hold the sums of 32 tokens with 32 rows while a segment of columns passes by; all tokens meet a segment's weights before
//! the next: a *job*. The jobs of a *band*, 128 rows, share a segment of the activations, which stays in the second level of cache, and so
//! do the band's sums until all columns are in them.
//!
//! Meanwhile, in small steps between the tiles' arithmetic, the vector units unpack the weights of the next job and put the sums of the last
//! band where the product wants them ([`Output`]). That goes token by token: 32 rows' sums of a token are two cache lines, and stores two
//! lines at a time in rows that are far apart cost more than the arithmetic. Of the job after the next, weights are on their way from
//! memory.

use std::ops::Range;

use super::super::bf16::{Bf16View, Line};
use super::block::{Block, SEGMENT, Segment, multiply};
use super::output::Output;
use super::registers::{Sums, TILE_ROWS as TOKENS, configure, release};
use super::unpack::Group;
use crate::pack::{COLS, LINE, ROWS};

/// Most row groups and tokens of a band: of its activations some 320 KiB in a digit are read at a time, and sums of 256 KiB kept while the
/// last band's are put out.
pub(super) const BAND_GROUPS: usize = 8;
const BAND_TOKENS: usize = 512;

/// Elements from a row group's sums to the next one's.
pub(super) const GROUP_SUMS: usize = BAND_TOKENS * ROWS;

/// Work space of the tier's products, for one thread.
#[derive(Debug, Default)]
pub(in crate::kernels::int) struct Tiles {
    /// Two segments: one that the tokens meet, and the next.
    weights: Vec<Line>,
    /// Sums of two bands, one that is made and one that is put out: for each group and token, 16.
    sums: Vec<Line>,
}

/// At least `n` lines.
fn grown(lines: &mut Vec<Line>, n: usize) -> *mut Line {
    lines.resize(lines.len().max(n), Line::ZERO);
    lines.as_mut_ptr()
}

/// What is multiplied.
pub(super) struct Factors<'a, F> {
    /// Which groups of weights.
    pub groups: Range<usize>,
    /// Gives a group; those of several matrices may take turns.
    pub group: F,
    /// Columns of weights and activations.
    pub cols: usize,
    pub x: Bf16View<'a>,
}

/// Rows that some of the tokens meet.
#[derive(Clone)]
struct Band {
    groups: Range<usize>,
    tokens: Range<usize>,
    /// Which of two places its sums have.
    place: usize,
}

impl Band {
    /// How many blocks of tokens there are.
    fn n_blocks(&self) -> usize {
        self.tokens.len().div_ceil(2 * TOKENS)
    }

    /// The sums of the band's first token with its first group.
    fn sums(&self, both: *mut Line) -> *mut f32 {
        both.cast::<f32>().wrapping_add(self.place * BAND_GROUPS * GROUP_SUMS)
    }

    /// Puts out the sums of its `i`th token.
    ///
    /// # Safety
    /// As [`Output::put`].
    unsafe fn put(&self, i: usize, both: *mut Line, output: &impl Output) {
        let sums = self.sums(both).wrapping_add(i * ROWS);
        // SAFETY: passed on.
        unsafe { output.put(self.groups.clone(), self.tokens.start + i, sums) }
    }
}

/// A segment of one or two groups of a band.
struct Job<W> {
    band: Band,
    groups: [W; 2],
    n_groups: usize,
    /// Which of the band's groups is the first.
    first: usize,
    tiles: Range<usize>,
    /// True if the band's sums are complete thereafter.
    is_last: bool,
}

/// All jobs of a product, in order.
fn jobs<'a, W: Group, F: Fn(usize) -> W>(p: &'a Factors<'a, F>) -> impl Iterator<Item = Job<W>> + use<'a, W, F> {
    let (n_tokens, n_tiles) = (p.x.n_rows(), p.cols / COLS);
    let n_segments = n_tiles.div_ceil(SEGMENT);
    let starts = (0..n_tokens).step_by(BAND_TOKENS);
    let bands = starts.flat_map(|t| p.groups.clone().step_by(BAND_GROUPS).map(move |g| (t, g))).enumerate();
    bands.flat_map(move |(i, (t, g))| {
        let groups = g..p.groups.end.min(g + BAND_GROUPS);
        let band = Band { groups: groups.clone(), tokens: t..n_tokens.min(t + BAND_TOKENS), place: i % 2 };
        let parts = (0..n_segments).flat_map(move |s| groups.clone().step_by(2).map(move |g| (s, g)));
        parts.map(move |(segment, g)| {
            let n_groups = (band.groups.end - g).min(2);
            Job {
                groups: [g, g + n_groups - 1].map(&p.group),
                n_groups,
                first: g - band.groups.start,
                tiles: segment * n_tiles / n_segments..(segment + 1) * n_tiles / n_segments,
                is_last: segment + 1 == n_segments && g + n_groups == band.groups.end,
                band: band.clone(),
            }
        })
    })
}

impl<W: Group> Job<W> {
    /// How many tiles there are to unpack.
    fn n_tiles(&self) -> usize {
        self.n_groups * self.tiles.len()
    }

    /// How many steps of arithmetic there are.
    fn n_steps(&self) -> usize {
        self.band.n_blocks() * self.tiles.len()
    }

    /// Unpacks the `i`th tile, in two digits if `D` says so.
    ///
    /// # Safety
    /// As [`Group::unpack`]; the segment is not in use.
    unsafe fn unpack<const D: usize>(&self, i: usize, to: *mut Segment) {
        let (g, tile) = (i % self.n_groups, i / self.n_groups);
        // SAFETY: passed on.
        unsafe {
            let [high, low] = [0, 1].map(|digit| &raw mut (*to)[digit][g][tile]);
            self.groups[g].unpack(self.tiles.start + tile, high, if D == 2 { low } else { std::ptr::null_mut() })
        }
    }

    /// Asks for the `i`th tile's weights.
    fn fetch(&self, i: usize) {
        self.groups[i % self.n_groups].fetch(self.tiles.start + i / self.n_groups);
    }

    /// Multiplies the segment with all tokens, doing `meanwhile` every few steps.
    ///
    /// # Safety
    /// The tiles are configured, the segment is unpacked at `weights`, and there is room for the sums of two bands.
    #[inline(always)]
    unsafe fn multiply<const D: usize>(
        &self,
        x: Bf16View,
        weights: *const Segment,
        sums: *mut Line,
        mut meanwhile: impl FnMut(usize),
    ) {
        let (n, is_first) = (self.tiles.len(), self.tiles.start == 0);
        let first = self.band.sums(sums).wrapping_add(self.first * GROUP_SUMS);
        for t in self.band.tokens.clone().step_by(2 * TOKENS) {
            let place = |i: usize, g: usize| {
                let token = t - self.band.tokens.start + i * TOKENS;
                Sums { at: first.wrapping_add(g * GROUP_SUMS + token * ROWS), stride: LINE }
            };
            let sums = [[place(0, 0), place(0, 1)], [place(1, 0), place(1, 1)]];
            // SAFETY: passed on.
            unsafe {
                let x = Block { x: x.row(t).map(|x| x.add(self.tiles.start * COLS)), stride: x.stride(), sums };
                match (self.band.tokens.end - t > TOKENS, self.n_groups > 1) {
                    (true, true) => multiply::<2, 2, D>(&x, weights, n, is_first, &mut meanwhile),
                    (true, false) => multiply::<2, 1, D>(&x, weights, n, is_first, &mut meanwhile),
                    (false, true) => multiply::<1, 2, D>(&x, weights, n, is_first, &mut meanwhile),
                    (false, false) => multiply::<1, 1, D>(&x, weights, n, is_first, &mut meanwhile),
                }
            }
        }
    }
}

/// Spreads work over steps of arithmetic.
struct Pace {
    n: usize,
    done: usize,
    over: usize,
    steps: usize,
}

impl Pace {
    /// Spreads `n` pieces over so many steps.
    fn new(n: usize, over: usize) -> Self {
        Self { n, done: 0, over: over.max(1), steps: 0 }
    }

    /// The pieces that are due after some more steps.
    #[inline(always)]
    fn after(&mut self, steps: usize) -> Range<usize> {
        self.steps += steps;
        self.up_to((self.steps * self.n / self.over).min(self.n))
    }

    /// The pieces that are left.
    fn rest(&mut self) -> Range<usize> {
        self.up_to(self.n)
    }

    fn up_to(&mut self, end: usize) -> Range<usize> {
        let due = self.done..end;
        self.done = end;
        due
    }
}

/// The whole product, in `D` digits.
///
/// An element is the sum over its columns in their order, however many tokens or rows a call has.
///
/// # Safety
/// The tier is supported; the groups exist and have these columns, as the activations do, and the output takes their sums.
pub(super) unsafe fn matmul<W: Group, const D: usize>(
    p: &Factors<impl Fn(usize) -> W>,
    output: &impl Output,
    tiles: &mut Tiles,
) {
    let segments = grown(&mut tiles.weights, 2 * size_of::<Segment>() / LINE).cast::<Segment>();
    let sums = grown(&mut tiles.sums, 2 * BAND_GROUPS * BAND_TOKENS);
    let mut jobs = jobs(p);
    let (mut next, mut after) = (jobs.next(), jobs.next());
    let steps_of_band = |band: &Band| band.n_blocks() * (p.cols / COLS) * band.groups.len().div_ceil(2);
    let mut finished: Option<(Band, Pace)> = None;
    // SAFETY: there is room for two segments and for the sums of two bands; the rest is passed on.
    unsafe {
        configure();
        if let Some(first) = &next {
            (0..first.n_tiles()).for_each(|i| first.unpack::<D>(i, segments));
        }
        for i in 0.. {
            let Some(now) = next else { break };
            (next, after) = (after, jobs.next());
            let [mut unpacking, mut fetching] =
                [&next, &after].map(|job| Pace::new(job.as_ref().map_or(0, Job::n_tiles), now.n_steps()));
            let (weights, free) = (segments.add(i % 2), segments.add((i + 1) % 2));
            now.multiply::<D>(p.x, weights, sums, |steps| {
                if let Some(next) = &next {
                    unpacking.after(steps).for_each(|i| next.unpack::<D>(i, free));
                }
                if let Some(after) = &after {
                    fetching.after(steps).for_each(|i| after.fetch(i));
                }
                if let Some((band, putting)) = &mut finished {
                    putting.after(steps).for_each(|i| band.put(i, sums, output));
                }
            });
            if now.is_last {
                if let Some((band, mut putting)) = finished {
                    putting.rest().for_each(|i| band.put(i, sums, output));
                }
                let steps = next.as_ref().map_or(1, |next| steps_of_band(&next.band));
                let pace = Pace::new(now.band.tokens.len(), steps);
                finished = Some((now.band, pace));
            }
        }
        release();
        if let Some((band, mut putting)) = finished {
            putting.rest().for_each(|i| band.put(i, sums, output));
        }
    }
}
