//! Least-squares choice of scales, shared by the quantisers.
//!
//! Rounding to the grid that spans the data exactly is rarely the best: a grid a little finer or coarser often fits
//! more of the elements. So several grids are tried; each decides the codes, the codes decide the best scale (and
//! offset) in closed form, and the fit with the least squared error is kept.

use super::{extreme, inverse, range};

/// The grids tried: up to `STEPS` steps finer and coarser, `STEP` levels each. Halving the step and doubling their number
/// lowers the error by less than 0.3 %.
const STEPS: i32 = 6;
const STEP: f32 = 0.2;

/// The scale `d` for which `d * snap(x / d)` comes closest to `x` (a multiple of eight elements). `snap` rounds to the
/// nearest level; `peak` is the level farthest from zero and `gap` the typical distance between levels.
pub(super) fn scale(x: &[f32], peak: f32, gap: f32, snap: impl Fn(f32) -> f32) -> f32 {
    let top = extreme(x);
    let (mut best, mut most_gained) = (top / peak, 0.0);
    for sign in [1.0, -1.0] {
        for step in -STEPS..=STEPS {
            let id = sign * (peak + STEP * gap * step as f32) * inverse(top);
            let [xl, ll] = sums(x, |v| {
                let level = snap(v * id);
                [v * level, level * level]
            });
            // With the best scale for these levels, xl / ll, the squared error is sum(x^2) - xl^2 / ll.
            let gained = xl * xl * inverse(ll);
            if gained > most_gained {
                (best, most_gained) = (xl / ll, gained);
            }
        }
    }
    best
}

/// The scale and the minimum `(d, m)`, neither negative, for which `d * c - m` with integers `c` in `0..=max_code` comes
/// closest to `x`.
pub(super) fn scale_and_min(x: &[f32], max_code: f32) -> (f32, f32) {
    let (lo, hi) = range(x);
    let lo = lo.min(0.0);
    let n = x.len() as f32;
    let (mut best, mut least) = (((hi - lo).max(0.0) / max_code, -lo), f32::INFINITY);
    for step in -STEPS..=STEPS {
        let id = (max_code + STEP * step as f32) * inverse(hi - lo);
        let code = |v: f32| round((v - lo) * id, 0.0, max_code);
        let [sum_x, sum_c, sum_xc, sum_cc] = sums(x, |v| {
            let c = code(v);
            [v, c, v * c, c * c]
        });
        let mut d = (n * sum_xc - sum_x * sum_c) * inverse(n * sum_cc - sum_c * sum_c);
        let mut m = (d * sum_c - sum_x) / n;
        if m < 0.0 {
            (d, m) = (sum_xc * inverse(sum_cc), 0.0);
        }
        let [error] = sums(x, |v| [(d * code(v) - m - v).powi(2)]);
        if d >= 0.0 && error < least {
            (best, least) = ((d, m), error);
        }
    }
    best
}

/// Sums of `terms` over `x`, whose length is a multiple of eight: as many partial sums let the compiler use vectors.
#[inline(always)]
fn sums<const N: usize>(x: &[f32], terms: impl Fn(f32) -> [f32; N]) -> [f32; N] {
    let mut partial = [[0.0; 8]; N];
    for x in x.as_chunks::<8>().0 {
        let mut values = [[0.0; 8]; N];
        for lane in 0..8 {
            let terms = terms(x[lane]);
            for n in 0..N {
                values[n][lane] = terms[n];
            }
        }
        for n in 0..N {
            for lane in 0..8 {
                partial[n][lane] += values[n][lane];
            }
        }
    }
    partial.map(|lanes| lanes.iter().sum())
}

/// Rounds to the nearest integer of `lo..=hi`, which are far below 2^22. (`f32::round` is a call on processors before
/// SSE4.1; adding a number whose unit in the last place is one is not.)
#[inline(always)]
pub(super) fn round(v: f32, lo: f32, hi: f32) -> f32 {
    const ONES: f32 = (3_u32 << 22) as f32;
    (v.clamp(lo, hi) + ONES) - ONES
}
