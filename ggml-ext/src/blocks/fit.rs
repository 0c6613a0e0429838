//! Least-squares choice of scales, shared by the quantisers.
//!
//! Rounding to the grid that spans the data exactly is rarely the best: a grid a little finer or coarser often fits
//! more of the elements. So several grids are tried; each decides the codes, the codes decide the best scale (and
//! offset) in closed form, and the fit with the least squared error is kept.

use super::{extreme, inverse, range};

/// The scale `d` for which `d * snap(x / d)` comes closest to `x`. `snap` rounds to the nearest level; `peak` is the
/// level farthest from zero and `gap` the typical distance between levels.
pub(super) fn scale(x: &[f32], peak: f32, gap: f32, snap: impl Fn(f32) -> f32) -> f32 {
    let top = extreme(x);
    let (mut best, mut most_gained) = (top / peak, 0.0);
    for sign in [1.0, -1.0] {
        for step in -12..=12 {
            let id = sign * (peak + 0.1 * gap * step as f32) * inverse(top);
            let (mut xl, mut ll) = (0.0, 0.0);
            for &v in x {
                let level = snap(v * id);
                xl += v * level;
                ll += level * level;
            }
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
    for step in -12..=12 {
        let id = (max_code + 0.1 * step as f32) * inverse(hi - lo);
        let code = |v: f32| ((v - lo) * id).round().clamp(0.0, max_code);
        let (mut sum_x, mut sum_c, mut sum_xc, mut sum_cc) = (0.0, 0.0, 0.0, 0.0);
        for &v in x {
            let c = code(v);
            sum_x += v;
            sum_c += c;
            sum_xc += v * c;
            sum_cc += c * c;
        }
        let mut d = (n * sum_xc - sum_x * sum_c) * inverse(n * sum_cc - sum_c * sum_c);
        let mut m = (d * sum_c - sum_x) / n;
        if m < 0.0 {
            (d, m) = (sum_xc * inverse(sum_cc), 0.0);
        }
        let error: f32 = x.iter().map(|&v| (d * code(v) - m - v).powi(2)).sum();
        if d >= 0.0 && error < least {
            (best, least) = ((d, m), error);
        }
    }
    best
}

/// Rounds to the nearest integer of `lo..=hi`.
pub(super) fn round(v: f32, lo: f32, hi: f32) -> f32 {
    v.round().clamp(lo, hi)
}
