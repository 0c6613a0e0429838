//! The search for the two-level scales of the 256-element types, in the form in which they are stored.
//!
//! Fitting each group and then rounding its scale loses much of what the fit has won. So the fits are only where the search
//! begins: for every group the neighbours of its stored scale (and minimum) are tried with the block's `d` as stored; the
//! choices made, `d` (and `dmin`) are solved for by least squares; and so on while the error falls.

use super::fit::{self, Levels, Offset, lanes, round};
use super::{float, inverse};

/// Rounds of both steps, at most. Eight lower the error of Q4_K by 0.4 % over four, of the others by less.
const ROUNDS: usize = 8;

/// The `G` groups of a block.
#[inline(always)]
fn groups<const G: usize>(x: &[f32; 256]) -> impl Iterator<Item = &[f32]> {
    x.chunks_exact(256 / G)
}

/// A block's `d` as stored, and the integer scales of its groups, `-peak..peak`.
#[inline(always)]
pub(super) fn symmetric<const G: usize>(
    x: &[f32; 256],
    w: &[f32; 256],
    levels: &Levels<impl Fn(f32) -> f32>,
    peak: f32,
) -> ([u8; 2], [i8; G]) {
    let mut wished = [0.0; G];
    for ((wished, x), w) in wished.iter_mut().zip(groups::<G>(x)).zip(groups::<G>(w)) {
        *wished = fit::scale(x, w, levels);
    }
    // Scales are fitted as elements are, by the weight of their groups.
    let mut heavy = [0.0; G];
    for (heavy, w) in heavy.iter_mut().zip(groups::<G>(w)) {
        for w in w {
            *heavy += w;
        }
    }
    let mut d = float::scale_bytes(fit::scale(&wished, &heavy, &fit::integers(peak)));
    let id = inverse(float::scale(d));
    let mut scales = wished;
    for s in &mut scales {
        *s = round(*s * id, -peak, peak - 1.0);
    }
    let (mut best, mut least) = ((d, scales), f32::INFINITY);
    for _ in 0..ROUNDS {
        let stored = float::scale(d);
        // Sums of x * s * level and of (s * level)^2.
        let (mut error, mut xl, mut ll) = (0.0, 0.0, 0.0);
        for ((s, x), w) in scales.iter_mut().zip(groups::<G>(x)).zip(groups::<G>(w)) {
            let tried = lanes(|l| (*s + (l as f32 - 8.0)).clamp(-peak, peak - 1.0));
            let errors = fit::scale_errors(x, w, &lanes(|l| stored * tried[l]), levels);
            let chosen = fit::least(&errors, 8);
            *s = tried[chosen];
            error += errors[chosen];
            let id = inverse(stored * *s);
            for (&x, &w) in x.iter().zip(w) {
                let level = *s * (levels.snap)(x * id);
                xl += w * level * x;
                ll += w * level * level;
            }
        }
        if error >= least {
            break;
        }
        (best, least) = ((d, scales), error);
        let next = float::scale_bytes(xl * inverse(ll));
        if next == d || !float::scale(next).is_finite() {
            break;
        }
        d = next;
    }
    let mut scales = [0; G];
    for (out, s) in scales.iter_mut().zip(best.1) {
        *out = s as i8;
    }
    (best.0, scales)
}

/// The codes for scales as stored; `nearest` rounds to the nearest code.
#[inline(always)]
pub(super) fn codes<const G: usize>(
    x: &[f32; 256],
    d: [u8; 2],
    scales: &[i8; G],
    nearest: impl Fn(f32) -> u8,
) -> [u8; 256] {
    let mut codes = [0; 256];
    for ((codes, x), &s) in codes.chunks_exact_mut(256 / G).zip(groups::<G>(x)).zip(scales) {
        let id = inverse(float::scale(d) * f32::from(s));
        for (code, x) in codes.iter_mut().zip(x) {
            *code = nearest(x * id);
        }
    }
    codes
}

/// The codes `0..=max_code` for a scale and an offset per 16 elements.
#[inline(always)]
pub(super) fn offset_codes(x: &[f32; 256], scale: &[f32; 16], offset: &[f32; 16], max_code: f32) -> [u8; 256] {
    let mut codes = [0; 256];
    for (j, (codes, x)) in codes.chunks_exact_mut(16).zip(groups::<16>(x)).enumerate() {
        let id = inverse(scale[j]);
        for (code, x) in codes.iter_mut().zip(x) {
            *code = round((x - offset[j]) * id, 0.0, max_code) as u8;
        }
    }
    codes
}

/// The scales and minima of a block as stored.
pub(super) struct Affine<const G: usize> {
    pub d: [u8; 2],
    pub dmin: [u8; 2],
    pub scales: [u8; G],
    pub mins: [u8; G],
}

/// A group's integer scale and minimum.
type Pair = [f32; 2];

/// The scales and minima, `0..=max_scale`, of a block of codes `0..=max_code`.
#[inline(always)]
pub(super) fn affine<const G: usize>(x: &[f32; 256], w: &[f32; 256], max_code: f32, max_scale: f32) -> Affine<G> {
    let mut pairs = [[0.0; 2]; G];
    let mut largest = [0.0_f32; 2];
    for ((pair, x), w) in pairs.iter_mut().zip(groups::<G>(x)).zip(groups::<G>(w)) {
        let (d, o) = fit::scale_and_offset(x, w, max_code, Offset::NotPositive);
        *pair = [d, -o];
        largest = [largest[0].max(d), largest[1].max(-o)];
    }
    let mut d = largest.map(|v| float::scale_bytes(v / max_scale));
    let id = d.map(|d| inverse(float::scale(d)));
    for pair in &mut pairs {
        *pair = [0, 1].map(|i| round(pair[i] * id[i], 0.0, max_scale));
    }
    let (mut best, mut least) = ((d, pairs), f32::INFINITY);
    for _ in 0..ROUNDS {
        let stored = d.map(float::scale);
        let mut error = 0.0;
        let mut normal = Normal::default();
        for ((pair, x), w) in pairs.iter_mut().zip(groups::<G>(x)).zip(groups::<G>(w)) {
            error += improve(pair, x, w, stored, max_code, max_scale);
            normal.add(*pair, x, w, stored, max_code);
        }
        if error >= least {
            break;
        }
        (best, least) = ((d, pairs), error);
        let Some(next) = normal.solve() else { break };
        let next = next.map(float::scale_bytes);
        if next == d || !next.iter().all(|&d| float::scale(d).is_finite()) {
            break;
        }
        d = next;
    }
    let (mut scales, mut mins) = ([0; G], [0; G]);
    for ((s, m), pair) in scales.iter_mut().zip(&mut mins).zip(best.1) {
        (*s, *m) = (pair[0] as u8, pair[1] as u8);
    }
    Affine { d: best.0[0], dmin: best.0[1], scales, mins }
}

/// Moves a group's scale and minimum to the best of their neighbours while that helps; returns the error.
#[inline(always)]
fn improve(pair: &mut Pair, x: &[f32], w: &[f32], [d, dmin]: [f32; 2], max_code: f32, max_scale: f32) -> f32 {
    /// Moves are at most this many; one or two are usual.
    const MOVES: usize = 4;
    /// The lane without a move: of five scales and three minima the middle ones.
    const STAY: usize = 7;
    let mut error = f32::INFINITY;
    for _ in 0..MOVES {
        let [s, m] = *pair;
        // The last lane repeats the first.
        let scales = lanes(|l| (s + (l % 15 % 5) as f32 - 2.0).clamp(0.0, max_scale));
        let mins = lanes(|l| (m + (l % 15 / 5) as f32 - 1.0).clamp(0.0, max_scale));
        let errors = fit::offset_errors(x, w, &lanes(|l| d * scales[l]), &lanes(|l| -(dmin * mins[l])), max_code);
        let chosen = fit::least(&errors, STAY);
        *pair = [scales[chosen], mins[chosen]];
        error = errors[chosen];
        if chosen == STAY {
            break;
        }
    }
    error
}

/// The normal equations of `d` and `dmin` for scales, minima and codes that are given.
#[derive(Default)]
struct Normal {
    ss: f32,
    sm: f32,
    mm: f32,
    xs: f32,
    xm: f32,
}

impl Normal {
    /// Adds a group.
    #[inline(always)]
    fn add(&mut self, [s, m]: Pair, x: &[f32], w: &[f32], [d, dmin]: [f32; 2], max_code: f32) {
        let (id, offset) = (inverse(d * s), -(dmin * m));
        let (mut sum_w, mut sum_x, mut sum_c, mut sum_cc, mut sum_xc) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (&x, &w) in x.iter().zip(w) {
            let c = round((x - offset) * id, 0.0, max_code);
            sum_w += w;
            sum_x += w * x;
            sum_c += w * c;
            sum_cc += w * c * c;
            sum_xc += w * x * c;
        }
        self.ss += s * s * sum_cc;
        self.sm += s * m * sum_c;
        self.mm += m * m * sum_w;
        self.xs += s * sum_xc;
        self.xm += m * sum_x;
    }

    /// `d` and `dmin`, unless no good ones follow.
    #[inline(always)]
    fn solve(&self) -> Option<[f32; 2]> {
        let det = self.ss * self.mm - self.sm * self.sm;
        let pair = if self.mm == 0.0 {
            [self.xs * inverse(self.ss), 0.0]
        } else {
            [(self.xs * self.mm - self.xm * self.sm) / det, (self.xs * self.sm - self.xm * self.ss) / det]
        };
        pair.iter().all(|v| *v >= 0.0).then_some(pair)
    }
}
