//! Weighted least-squares choice of scales, shared by the quantisers.
//!
//! Rounding to the grid that spans the data exactly is rarely the best: a grid a little finer or coarser often fits
//! more of the elements. So several grids are tried; each decides the codes, the codes decide the best scale (and
//! offset) in closed form, and the fit with the least squared error is kept. The trials run side by side, one in each lane
//! of a vector, so that there are no sums across lanes.

use super::{extreme, float, inverse, range};

/// Trials side by side: a vector of AVX-512, two of AVX2.
pub(super) const LANES: usize = 16;
/// A number for every trial.
pub(super) type Lanes = [f32; LANES];

/// A number for every lane. (A loop, as `array::from_fn` is left as a call that knows nothing of the caller's instruction set.)
#[inline(always)]
pub(super) fn lanes(f: impl Fn(usize) -> f32) -> Lanes {
    let mut out = [0.0; LANES];
    for (l, out) in out.iter_mut().enumerate() {
        *out = f(l);
    }
    out
}

/// Levels around zero that a scale stretches: `snap` rounds to the nearest one; `peak` is the level farthest from zero
/// and `gap` the typical distance between levels.
#[derive(Clone, Copy)]
pub(super) struct Levels<S> {
    pub peak: f32,
    pub gap: f32,
    pub snap: S,
}

/// The integers `-peak..peak`.
#[inline(always)]
pub(super) fn integers(peak: f32) -> Levels<impl Fn(f32) -> f32 + Copy> {
    Levels { peak: -peak, gap: 1.0, snap: move |v| round(v, -peak, peak - 1.0) }
}

/// The step between the grids tried, in levels.
const STEP: f32 = 0.15;

/// The scale `d` for which `d * level` comes closest to `x`, each element weighted by its `w`.
#[inline(always)]
pub(super) fn scale(x: &[f32], w: &[f32], levels: &Levels<impl Fn(f32) -> f32>) -> f32 {
    let top = extreme(x);
    let (mut best, mut most_gained) = (top / levels.peak, 0.0);
    for sign in [1.0, -1.0] {
        let id = lanes(|l| sign * (levels.peak + STEP * levels.gap * (l as f32 - 7.0)) * inverse(top));
        let (mut xl, mut ll) = ([0.0; LANES], [0.0; LANES]);
        for (&x, &w) in x.iter().zip(w) {
            for l in 0..LANES {
                let level = (levels.snap)(x * id[l]);
                let weighted = w * level;
                xl[l] += weighted * x;
                ll[l] += weighted * level;
            }
        }
        for l in 0..LANES {
            // With the best scale for these levels, xl / ll, the squared error is sum(w x^2) - xl^2 / ll.
            let gained = xl[l] * xl[l] * inverse(ll[l]);
            if gained > most_gained {
                (best, most_gained) = (xl[l] / ll[l], gained);
            }
        }
    }
    best
}

/// The weighted squared error of each of several scales.
#[inline(always)]
pub(super) fn scale_errors(x: &[f32], w: &[f32], scales: &Lanes, levels: &Levels<impl Fn(f32) -> f32>) -> Lanes {
    let id = lanes(|l| inverse(scales[l]));
    let mut errors = [0.0; LANES];
    for (&x, &w) in x.iter().zip(w) {
        for l in 0..LANES {
            let off = (levels.snap)(x * id[l]) * scales[l] - x;
            errors[l] += w * off * off;
        }
    }
    errors
}

/// What an offset may be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Offset {
    /// Anything; stored, like the scale, in half precision.
    Stored,
    /// At most zero.
    NotPositive,
}

/// The scale and the offset `(d, o)`, the scale not negative, for which `d * c + o` with integers `c` in `0..=max_code` comes
/// closest to `x`, each element weighted by its `w`.
#[inline(always)]
pub(super) fn scale_and_offset(x: &[f32], w: &[f32], max_code: f32, offset: Offset) -> (f32, f32) {
    let (lo, hi) = range(x);
    let lo = if offset == Offset::NotPositive { lo.min(0.0) } else { lo };
    let span = inverse(hi - lo);
    let id = lanes(|l| (max_code + STEP * (l as f32 - 6.0)) * span);
    let (mut sum_c, mut sum_xc, mut sum_cc) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    let (mut sum_w, mut sum_x) = (0.0, 0.0);
    for (&x, &w) in x.iter().zip(w) {
        for l in 0..LANES {
            let c = round((x - lo) * id[l], 0.0, max_code);
            let weighted = w * c;
            sum_c[l] += weighted;
            sum_xc[l] += weighted * x;
            sum_cc[l] += weighted * c;
        }
        sum_w += w;
        sum_x += w * x;
    }
    let (mut d, mut o) = ([0.0; LANES], [0.0; LANES]);
    for l in 0..LANES {
        d[l] = (sum_w * sum_xc[l] - sum_x * sum_c[l]) * inverse(sum_w * sum_cc[l] - sum_c[l] * sum_c[l]);
        o[l] = (sum_x - d[l] * sum_c[l]) * inverse(sum_w);
        if offset == Offset::NotPositive && o[l] > 0.0 {
            (d[l], o[l]) = (sum_xc[l] * inverse(sum_cc[l]), 0.0);
        }
    }
    // The grid that spans the data exactly competes too.
    (d[LANES - 1], o[LANES - 1]) = ((hi - lo).max(0.0) / max_code, lo);
    if offset == Offset::Stored {
        // Where the data lie on a grid already, what rounding does to it decides.
        for l in 0..LANES {
            (d[l], o[l]) = (float::scale(float::scale_bytes(d[l])), float::scale(float::scale_bytes(o[l])));
        }
    }
    let errors = offset_errors(x, w, &d, &o, max_code);
    let best = least(&lanes(|l| if d[l] >= 0.0 { errors[l] } else { f32::INFINITY }), LANES - 1);
    (d[best], o[best])
}

/// The weighted squared error of each of several scales and offsets.
#[inline(always)]
pub(super) fn offset_errors(x: &[f32], w: &[f32], scales: &Lanes, offsets: &Lanes, max_code: f32) -> Lanes {
    let id = lanes(|l| inverse(scales[l]));
    let mut errors = [0.0; LANES];
    for (&x, &w) in x.iter().zip(w) {
        for l in 0..LANES {
            let c = round((x - offsets[l]) * id[l], 0.0, max_code);
            let off = scales[l] * c + offsets[l] - x;
            errors[l] += w * off * off;
        }
    }
    errors
}

/// The lane with the least error; of several `first`, if it is among them.
#[inline(always)]
pub(super) fn least(errors: &Lanes, first: usize) -> usize {
    (0..LANES).fold(first, |best, l| if errors[l] < errors[best] { l } else { best })
}

/// Rounds to the nearest integer of `lo..=hi`, which are far below 2^22. (`f32::round` is a call on processors before
/// SSE4.1; adding a number whose unit in the last place is one is not.)
#[inline(always)]
pub(super) fn round(v: f32, lo: f32, hi: f32) -> f32 {
    const ONES: f32 = (3_u32 << 22) as f32;
    (v.clamp(lo, hi) + ONES) - ONES
}
