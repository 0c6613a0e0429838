//! The quantiser of the lattice types.
//!
//! Which signs a block has is settled first; then, with the block's `d` as stored, every group takes the best of all scales with the
//! nearest points of the grid; the choices made, `d` is solved for by least squares; and so on while the error falls. What the
//! error would be if any levels made a point bounds it from below, so that few scales are tried in earnest; and where the
//! nearest levels do make a point, no other can be better. Otherwise all points are compared, side by side in the lanes of
//! vectors.

use super::super::fit::{self, LANES, Lanes, Levels};
use super::super::{float, inverse, weights};
use super::{HighBits, Kind, LEN, level_bits, put_point};
#[cfg(target_arch = "x86_64")]
use crate::kernels::Tier;

/// Rounds, at most.
const ROUNDS: usize = 3;

/// A block in the parts that [`super::Lattice::join`] puts together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Found {
    pub d: [u8; 2],
    /// Those of the kind's groups come first.
    pub scales: [u8; 16],
    pub codes: [u8; LEN],
}

/// The block whose values are near `x`. The result does not depend on the CPU. (Compiled here for several instruction sets, and not
/// in callers for every type: it is long.)
pub(super) fn search(kind: &Kind, x: &[f32; LEN], importance: Option<&[f32]>) -> Found {
    #[cfg(target_arch = "x86_64")]
    if Tier::Avx512.is_supported() {
        // SAFETY: the CPU has these features, the tier asks for them all.
        return unsafe { search_avx512(kind, x, importance) };
    } else if Tier::Avx2.is_supported() {
        // SAFETY: as above.
        return unsafe { search_avx2(kind, x, importance) };
    }
    search_with(kind, x, importance)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn search_avx512(kind: &Kind, x: &[f32; LEN], importance: Option<&[f32]>) -> Found {
    search_with(kind, x, importance)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn search_avx2(kind: &Kind, x: &[f32; LEN], importance: Option<&[f32]>) -> Found {
    search_with(kind, x, importance)
}

/// Inlined, so that it is compiled for the instruction set of its caller.
#[inline(always)]
fn search_with(kind: &Kind, x: &[f32; LEN], importance: Option<&[f32]>) -> Found {
    let w = weights(x, importance);
    let block = Block::new(kind, x, &w);
    let mut d = block.first_guess(kind);
    let (mut scales, mut codes) = ([1; 16], [0; LEN]);
    let mut best: Option<(f32, Found)> = None;
    let n = LEN / kind.groups;
    for _ in 0..ROUNDS {
        let unit = float::scale(d) * kind.unit;
        // Sums of x * s * level and of (s * level)^2.
        let (mut error, mut xl, mut ll) = (0.0, 0.0, 0.0);
        for (j, s) in scales[..kind.groups].iter_mut().enumerate() {
            let at = j * n;
            error += block.choose(kind, at, unit, s, &mut codes[at..at + n]);
            for i in at..at + n {
                let level = kind.unit * f32::from(*s) * f32::from(kind.levels[usize::from(codes[i] & 15)]);
                xl += w[i] * level * x[i];
                ll += w[i] * level * level;
            }
        }
        if best.is_some_and(|(least, _)| error >= least || error.is_nan()) {
            break;
        }
        best = Some((error, Found { d, scales, codes }));
        let next = float::scale_bytes(xl * inverse(ll));
        if next == d || !float::scale(next).is_finite() {
            break;
        }
        d = next;
    }
    best.expect("there is a first round").1
}

/// Levels of which one is nearest to anything. The first eight are all there are or, in points of four elements, all magnitudes; so
/// errors with them are never larger than with points.
#[inline(always)]
fn levels(kind: &Kind) -> Levels<impl Fn(f32) -> f32> {
    let all = kind.levels;
    let mut peak = 0.0_f32;
    for level in all {
        peak = peak.max(f32::from(level));
    }
    let snap = move |v: f32| {
        let mut best = f32::from(all[0]);
        for &level in &all[1..8] {
            let level = f32::from(level);
            best = if (v - level).abs() < (v - best).abs() { level } else { best };
        }
        best
    };
    Levels { peak, gap: peak / 4.0, snap }
}

/// A block of values and weights that is being quantised.
struct Block<'a> {
    /// What points should come close to: magnitudes where the kind has signs, else the elements themselves.
    targets: [f32; LEN],
    /// The signs of eight elements; nothing where the kind has shifts.
    signs: [u8; LEN / 8],
    w: &'a [f32; LEN],
}

impl<'a> Block<'a> {
    #[inline(always)]
    fn new(kind: &Kind, x: &[f32; LEN], w: &'a [f32; LEN]) -> Self {
        let (mut targets, mut signs) = (*x, [0; LEN / 8]);
        if matches!(kind.high_bits, HighBits::Shifts(_)) {
            return Block { targets, signs, w };
        }
        for (at, signs) in (0..LEN).step_by(8).zip(&mut signs) {
            for (i, x) in targets[at..at + 8].iter_mut().enumerate() {
                *signs |= u8::from(*x < 0.0) << i;
                *x = x.abs();
            }
            if kind.high_bits == HighBits::EvenSigns && signs.count_ones() % 2 == 1 {
                // One sign has to be wrong: where that costs least.
                let cost = |i: usize| w[at + i] * targets[at + i] * targets[at + i];
                let cheapest = (1..8).fold(0, |best, i| if cost(i) < cost(best) { i } else { best });
                *signs ^= 1 << cheapest;
                targets[at + cheapest] = -targets[at + cheapest];
            }
        }
        Block { targets, signs, w }
    }

    /// `d` as stored, as if any levels could make a point.
    #[inline(always)]
    fn first_guess(&self, kind: &Kind) -> [u8; 2] {
        let (levels, n) = (levels(kind), LEN / kind.groups);
        let (mut wished, mut heavy) = ([0.0; 16], [0.0; 16]);
        for (j, (x, w)) in self.targets.chunks_exact(n).zip(self.w.chunks_exact(n)).enumerate() {
            // Levels lie alike on both sides of zero, so the scale may have either sign.
            wished[j] = fit::scale(x, w, &levels).abs();
            for w in w {
                heavy[j] += w;
            }
        }
        let max = f32::from(kind.max_scale);
        let snap = |v: f32| 2.0 * fit::round(0.5 * (v - 1.0), 0.0, 0.5 * (max - 1.0)) + 1.0;
        let scales = Levels { peak: max, gap: 2.0, snap };
        float::scale_bytes(fit::scale(&wished[..kind.groups], &heavy[..kind.groups], &scales) / kind.unit)
    }

    /// Chooses the scale `s` of the group that begins at `at`; writes the codes for it and returns their weighted squared error.
    #[inline(always)]
    fn choose(&self, kind: &Kind, at: usize, unit: f32, s: &mut u8, codes: &mut [u8]) -> f32 {
        let mut trial = [0; 32];
        let trial = &mut trial[..codes.len()];
        let (x, w) = (&self.targets[at..at + codes.len()], &self.w[at..at + codes.len()]);
        // Lane `l` is scale `2 * l + 1`.
        let n_scales = usize::from(kind.max_scale).div_ceil(2);
        let mut bounds = fit::scale_errors(x, w, &fit::lanes(|l| unit * (2 * l + 1) as f32), &levels(kind));
        let mut least = f32::INFINITY;
        for i in 0..n_scales {
            let lane = (1..n_scales).fold(0, |best, l| if bounds[l] < bounds[best] { l } else { best });
            if i > 0 && bounds[lane] >= least {
                break;
            }
            bounds[lane] = f32::INFINITY;
            let error = self.nearest(kind, at, unit * (2 * lane + 1) as f32, trial);
            if error < least || i == 0 {
                (*s, least) = (2 * lane as u8 + 1, error);
                codes.copy_from_slice(trial);
            }
        }
        least
    }

    /// The codes for the elements from `at` on, in steps of `step`, and their weighted squared error.
    #[inline(always)]
    fn nearest(&self, kind: &Kind, at: usize, step: f32, codes: &mut [u8]) -> f32 {
        let HighBits::Shifts(run) = kind.high_bits else {
            return self.points(kind, at, step, 0.0, |at| self.signs[at / 8] >> (at % 8), codes);
        };
        // Levels with the high bit set are so much less than those without.
        let shift = step * f32::from(kind.levels[0] - kind.levels[1 << (kind.bits() - 1)]);
        let (mut error, mut other) = (0.0, [0; 32]);
        for (i, codes) in codes.chunks_exact_mut(run).enumerate() {
            let (at, other) = (at + i * run, &mut other[..run]);
            let plain = self.points(kind, at, step, 0.0, |_| 0, codes);
            let shifted = self.points(kind, at, step, shift, |_| 0xff, other);
            if shifted < plain {
                codes.copy_from_slice(other);
            }
            error += plain.min(shifted);
        }
        error
    }

    /// The same with all targets `shift` higher and given high bits.
    #[inline(always)]
    fn points(
        &self,
        kind: &Kind,
        at: usize,
        step: f32,
        shift: f32,
        high: impl Fn(usize) -> u8,
        codes: &mut [u8],
    ) -> f32 {
        let mut error = 0.0;
        for (i, codes) in codes.chunks_exact_mut(kind.point).enumerate() {
            let at = at + i * kind.point;
            let (target, w) = (&self.targets[at..], &self.w[at..]);
            error += match kind.point {
                8 => nearest_point::<8>(kind, target, shift, w, step, high(at), codes),
                _ => nearest_point::<4>(kind, target, shift, w, step, high(at), codes),
            };
        }
        error
    }
}

/// The codes of the point that is nearest to `D` targets, each `shift` higher than it is, and its error.
#[inline(always)]
fn nearest_point<const D: usize>(
    kind: &Kind,
    target: &[f32],
    shift: f32,
    w: &[f32],
    step: f32,
    high: u8,
    codes: &mut [u8],
) -> f32 {
    // The error of a level is w * (x - step * level)^2 = base + level * (p + level * q).
    let (mut base, mut p, mut q) = (0.0, [0.0; D], [0.0; D]);
    for i in 0..D {
        let x = target[i] + shift;
        base += w[i] * x * x;
        (p[i], q[i]) = (-2.0 * w[i] * x * step, w[i] * step * step);
    }
    // The nearest levels; if there is such a point, none is nearer.
    let (mut point, mut error) = (0, 0.0);
    for i in 0..D {
        let n_levels = 1 << level_bits(D);
        let of = |level: i8| f32::from(level) * (p[i] + f32::from(level) * q[i]);
        let (mut best, mut level) = (of(kind.levels[0]), 0);
        for (l, &value) in kind.levels[1..n_levels].iter().enumerate() {
            let off = of(value);
            (best, level) = if off < best { (off, l as u16 + 1) } else { (best, level) };
        }
        point |= level << (16 / D * i);
        error += best;
    }
    if kind.grid.contains(point) {
        put_point::<D>(point, high, codes);
        return base + error;
    }
    let (mut least, mut chunk_of): (Lanes, [u32; LANES]) = ([f32::INFINITY; LANES], [0; LANES]);
    for (c, elements) in kind.grid.lanes(D, &kind.levels).chunks_exact(D).enumerate() {
        let mut errors = [0.0; LANES];
        for i in 0..D {
            for l in 0..LANES {
                errors[l] += elements[i][l] * (p[i] + elements[i][l] * q[i]);
            }
        }
        for l in 0..LANES {
            let better = errors[l] < least[l];
            least[l] = if better { errors[l] } else { least[l] };
            chunk_of[l] = if better { c as u32 } else { chunk_of[l] };
        }
    }
    let lane = fit::least(&least, 0);
    put_point::<D>(kind.grid.point(chunk_of[lane] as usize * LANES + lane), high, codes);
    base + least[lane]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::lattice::{IQ1_M, IQ1_S, IQ2_XS, IQ3_S, Lattice};

    #[test]
    fn what_is_found_does_not_depend_on_the_instruction_set() {
        let x: [f32; LEN] = std::array::from_fn(|i| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / 8e6 - 1.0);
        let importance: Vec<f32> = (1..=LEN).map(|i| (i % 31) as f32).collect();
        for kind in [IQ1_S::KIND, IQ1_M::KIND, IQ2_XS::KIND, IQ3_S::KIND] {
            for importance in [None, Some(&importance[..])] {
                let plain = search_with(&kind, &x, importance);
                assert_eq!(search(&kind, &x, importance), plain, "{}", kind.ty);
                #[cfg(target_arch = "x86_64")]
                if Tier::Avx2.is_supported() {
                    // SAFETY: the CPU has these features.
                    assert_eq!(unsafe { search_avx2(&kind, &x, importance) }, plain, "{}, AVX2", kind.ty);
                }
            }
        }
    }
}
