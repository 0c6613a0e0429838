//! The quantiser of the lattice types.
//!
//! Which signs a block has is settled first; then, with the block's `d` as stored, every group tries the neighbours of its scale, each
//! with the nearest points of the grid, all of which are compared; the choices made, `d` is solved for by least squares; and so on
//! while the error falls. Points are compared side by side, one in each lane of a vector.

use super::super::fit::{self, LANES, Lanes, Levels};
use super::super::{float, inverse, weights};
use super::{HighBits, Kind, LEN, put_point};
#[cfg(target_arch = "x86_64")]
use crate::kernels::Tier;

/// Rounds, at most: more lower the error by less than 0.5 %.
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
    let (mut d, mut scales) = first_guess(kind, x, &w);
    let mut codes = [0; LEN];
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

/// `d` as stored and scales, as if any level could stand next to any other.
#[inline(always)]
fn first_guess(kind: &Kind, x: &[f32; LEN], w: &[f32; LEN]) -> ([u8; 2], [u8; 16]) {
    let mut peak = 0.0_f32;
    for level in kind.levels {
        peak = peak.max(f32::from(level));
    }
    let snap = |v: f32| {
        let mut best = f32::from(kind.levels[0]);
        for &level in &kind.levels[1..1 << kind.bits()] {
            let level = f32::from(level);
            best = if (v - level).abs() < (v - best).abs() { level } else { best };
        }
        best
    };
    let levels = Levels { peak, gap: peak / 4.0, snap };
    let n = LEN / kind.groups;
    let (mut wished, mut heavy) = ([0.0; 16], [0.0; 16]);
    for (j, (x, w)) in x.chunks_exact(n).zip(w.chunks_exact(n)).enumerate() {
        // Levels lie alike on both sides of zero, so the scale may have either sign.
        wished[j] = fit::scale(x, w, &levels).abs();
        for w in w {
            heavy[j] += w;
        }
    }
    let max = f32::from(kind.max_scale);
    let odd = |v: f32| 2.0 * fit::round(0.5 * (v - 1.0), 0.0, 0.5 * (max - 1.0)) + 1.0;
    let scales = Levels { peak: max, gap: 2.0, snap: odd };
    let d = float::scale_bytes(fit::scale(&wished[..kind.groups], &heavy[..kind.groups], &scales) / kind.unit);
    let id = inverse(float::scale(d) * kind.unit);
    let mut scales = [1; 16];
    for (s, wished) in scales.iter_mut().zip(wished) {
        *s = odd(wished * id) as u8;
    }
    (d, scales)
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

    /// Moves the scale `s` of the group that begins at `at` to the better of its neighbours if there is one; writes the codes for it
    /// and returns their weighted squared error.
    #[inline(always)]
    fn choose(&self, kind: &Kind, at: usize, unit: f32, s: &mut u8, codes: &mut [u8]) -> f32 {
        let mut trial = [0; 32];
        let trial = &mut trial[..codes.len()];
        let before = *s;
        let mut least = self.nearest(kind, at, unit * f32::from(before), codes);
        for tried in [before.saturating_sub(2).max(1), (before + 2).min(kind.max_scale)] {
            let error = self.nearest(kind, at, unit * f32::from(tried), trial);
            if error < least {
                (*s, least) = (tried, error);
                codes.copy_from_slice(trial);
            }
        }
        least
    }

    /// The codes for the elements from `at` on, in steps of `step`, and their weighted squared error.
    #[inline(always)]
    fn nearest(&self, kind: &Kind, at: usize, step: f32, codes: &mut [u8]) -> f32 {
        let run = match kind.high_bits {
            HighBits::Shifts(run) => run,
            HighBits::Signs | HighBits::EvenSigns => codes.len(),
        };
        // Levels with the high bit set are so much less than those without.
        let shift = step * f32::from(kind.levels[0] - kind.levels[1 << (kind.bits() - 1)]);
        let (mut error, mut other) = (0.0, [0; 32]);
        for (i, codes) in codes.chunks_exact_mut(run).enumerate() {
            let at = at + i * run;
            if !matches!(kind.high_bits, HighBits::Shifts(_)) {
                error += self.points(kind, at, step, 0.0, |at| self.signs[at / 8] >> (at % 8), codes);
                continue;
            }
            let other = &mut other[..run];
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
