//! The exponential and what is built on it: softmax, sigmoid gates, soft caps.

use std::f32::consts::LOG2_E;

use super::simd::Simd;
use super::vector::{self, Binary, Unary};

/// `2^x` within 2 units in the last place: gradual underflow to 0, overflow to infinity, NaN to NaN.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
unsafe fn exp2<V: Simd>(x: V) -> V {
    // SAFETY: the caller's contract.
    unsafe {
        let (n, r) = x.nearest_and_rest();
        exp2_rest(r).scale2(n)
    }
}

/// [`exp2`] of `x * factor`, which is [`LEAST_EXPONENT`] to 128: less work where a tier has no instruction for scaling.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
unsafe fn exp2_bounded<V: Simd>(x: V, factor: f32) -> V {
    // SAFETY: the caller's contract.
    unsafe {
        let (n, r) = x.bounded_nearest_and_rest(V::splat(factor));
        exp2_rest(r).scale2_bounded(n)
    }
}

/// `2^r` for -1/2 to 1/2: a polynomial of degree 5 (relative error 9.1e-8, minimax with `2^0 = 1`).
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
unsafe fn exp2_rest<V: Simd>(r: V) -> V {
    #[expect(clippy::approx_constant, reason = "the first is near ln 2, and better than it")]
    const C: [f32; 5] = [0.693_147, 0.240_222_42, 0.055_507_34, 0.009_671_513, 0.001_326_471_5];
    // SAFETY: the caller's contract.
    unsafe {
        let last = r.mul_add(V::splat(C[4]), V::splat(C[3]));
        if V::SHORT_CHAINS {
            let square = r.mul(r);
            let first = r.mul_add(V::splat(C[0]), V::splat(1.0));
            let middle = r.mul_add(V::splat(C[2]), V::splat(C[1]));
            return last.mul_add(square, middle).mul_add(square, first);
        }
        let q = last.mul_add(r, V::splat(C[2]));
        let q = q.mul_add(r, V::splat(C[1]));
        let q = q.mul_add(r, V::splat(C[0]));
        q.mul_add(r, V::splat(1.0))
    }
}

/// As [`exp2_bounded`] of `x`, with a relative error of 2e-7, `2^0` among them, where that is less work.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
unsafe fn exp2_near<V: Simd>(x: V) -> V {
    /// For 0 to 1, minimax of the relative error, 7.5e-8.
    const C: [f32; 6] = [0.999_999_93, 0.693_153_1, 0.240_153_62, 0.055_826_32, 0.008_989_34, 0.001_877_58];
    // SAFETY: the caller's contract.
    unsafe {
        let Some(r) = x.above_integer() else { return exp2_bounded(x.at_most_128(), 1.0) };
        let q = r.mul_add(V::splat(C[5]), V::splat(C[4]));
        let q = q.mul_add(r, V::splat(C[3]));
        let q = q.mul_add(r, V::splat(C[2]));
        let q = q.mul_add(r, V::splat(C[1]));
        q.mul_add(r, V::splat(C[0])).scale2(x)
    }
}

/// `e^x`, as [`exp2`] of a product that is rounded: that changes the result by no more than rounding `x` does.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
pub(super) unsafe fn exp<V: Simd>(x: V) -> V {
    // SAFETY: the caller's contract.
    unsafe { exp2(x.mul(V::splat(LOG2_E))) }
}

/// Results that are not normal numbers, below about 1e-38, cost some hundred times as much as others, and nothing that is built here tells
/// them from slightly greater ones: arguments that lead there are taken as this one.
const LEAST_EXPONENT: f32 = -126.0;

/// The same for `e`, and for what may be divided by a sum of such.
const LEAST_LOG: f32 = -80.0;

/// `e^x` of no more than a little above 0, for the weights of a softmax: those below 2e-35 are 2e-35, negative infinity's among them.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
unsafe fn weight<V: Simd>(x: V) -> V {
    // SAFETY: the caller's contract.
    unsafe { exp2_bounded(V::splat(LEAST_LOG).max(x), LOG2_E) }
}

/// `x / (1 + 2^-z)`, `z` given as `-z`: `x` times a logistic function.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
unsafe fn gated<V: Simd>(x: V, minus_z: V) -> V {
    // SAFETY: the caller's contract.
    unsafe {
        let exponent = V::splat(LEAST_EXPONENT).max(minus_z).at_most_128();
        x.div(exp2_bounded(exponent, 1.0).add(V::splat(1.0)))
    }
}

/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
unsafe fn silu_of<V: Simd>(x: V) -> V {
    // SAFETY: the caller's contract.
    unsafe { gated(x, x.mul(V::splat(-LOG2_E))) }
}

/// `x / 2 * (1 + tanh u) = x / (1 + e^-2u)` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
unsafe fn gelu_of<V: Simd>(x: V) -> V {
    /// `2 sqrt(2 / pi) / ln 2`
    const A: f32 = 2.302_208_2;
    // SAFETY: the caller's contract.
    unsafe {
        let cubic = x.mul(x).mul_add(V::splat(-0.044715 * A), V::splat(-A));
        gated(x, x.mul(cubic))
    }
}

/// `tanh y`: an odd polynomial where `1 - 2 / (e^2y + 1)` would cancel.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
unsafe fn tanh<V: Simd>(y: V) -> V {
    const T: [f32; 5] = [-0.333_333_28, 0.133_327_19, -0.053_843_264, 0.020_961_33, -0.006_045_165];
    // SAFETY: the caller's contract.
    unsafe {
        let z = y.mul(y);
        let q = z.mul_add(V::splat(T[4]), V::splat(T[3]));
        let q = q.mul_add(z, V::splat(T[2]));
        let q = q.mul_add(z, V::splat(T[1]));
        let q = q.mul_add(z, V::splat(T[0]));
        let near = q.mul_add(y.mul(z), y);
        let e = exp(y.add(y));
        let far = V::splat(1.0).sub(V::splat(2.0).div(e.add(V::splat(1.0))));
        y.abs().if_less(V::splat(0.625), near, far)
    }
}

pub(super) struct Relu;
impl Unary for Relu {
    #[inline(always)]
    unsafe fn apply<V: Simd>(&self, x: V) -> V {
        // SAFETY: the caller's contract.
        unsafe { V::splat(0.0).max(x) }
    }
}

pub(super) struct Silu;
impl Unary for Silu {
    #[inline(always)]
    unsafe fn apply<V: Simd>(&self, x: V) -> V {
        // SAFETY: the caller's contract.
        unsafe { silu_of(x) }
    }
}
impl Binary for Silu {
    #[inline(always)]
    unsafe fn apply<V: Simd>(&self, gate: V, up: V) -> V {
        // SAFETY: the caller's contract.
        unsafe { silu_of(gate).mul(up) }
    }
}

/// `1 / (1 + e^-x)`; of two, `x / (1 + e^-gate)`.
struct Sigmoid;
impl Unary for Sigmoid {
    #[inline(always)]
    unsafe fn apply<V: Simd>(&self, x: V) -> V {
        // SAFETY: the caller's contract.
        unsafe { gated(V::splat(1.0), x.mul(V::splat(-LOG2_E))) }
    }
}
impl Binary for Sigmoid {
    #[inline(always)]
    unsafe fn apply<V: Simd>(&self, gate: V, x: V) -> V {
        // SAFETY: the caller's contract.
        unsafe { gated(x, gate.mul(V::splat(-LOG2_E))) }
    }
}

/// The clamped SwiGLU of gpt-oss: `g / (1 + e^(-1.702 g)) * (u + 1)` of `g = min(gate, 7)` and `u = clamp(up, -7, 7)`.
pub(super) struct ClampedSwiglu;
impl Binary for ClampedSwiglu {
    #[inline(always)]
    unsafe fn apply<V: Simd>(&self, gate: V, up: V) -> V {
        const ALPHA: f32 = 1.702;
        const LIMIT: f32 = 7.0;
        // SAFETY: the caller's contract.
        unsafe {
            let g = V::splat(LIMIT).min(gate);
            let u = V::splat(LIMIT).min(V::splat(-LIMIT).max(up));
            gated(g, g.mul(V::splat(-ALPHA * LOG2_E))).mul(u.add(V::splat(1.0)))
        }
    }
}

/// `x / (1 + 2^x)`.
pub(super) struct Silu2;
impl Unary for Silu2 {
    #[inline(always)]
    unsafe fn apply<V: Simd>(&self, x: V) -> V {
        // SAFETY: the caller's contract.
        unsafe { x.div(exp2_near(V::splat(LEAST_EXPONENT).max(x)).add(V::splat(1.0))) }
    }
}

pub(super) struct Gelu;
impl Unary for Gelu {
    #[inline(always)]
    unsafe fn apply<V: Simd>(&self, x: V) -> V {
        // SAFETY: the caller's contract.
        unsafe { gelu_of(x) }
    }
}
impl Binary for Gelu {
    #[inline(always)]
    unsafe fn apply<V: Simd>(&self, gate: V, up: V) -> V {
        // SAFETY: the caller's contract.
        unsafe { gelu_of(gate).mul(up) }
    }
}

struct SoftCap(f32);
impl Unary for SoftCap {
    #[inline(always)]
    unsafe fn apply<V: Simd>(&self, x: V) -> V {
        // SAFETY: the caller's contract.
        unsafe { tanh(x.mul(V::splat(1.0 / self.0))).mul(V::splat(self.0)) }
    }
}

struct Exp;
impl Unary for Exp {
    #[inline(always)]
    unsafe fn apply<V: Simd>(&self, x: V) -> V {
        // SAFETY: the caller's contract.
        unsafe { exp(x) }
    }
}

/// What is above 0, and of `u = e^-|x|` the logarithm of `1 + u`, which is `2 artanh(s)` for `s = u / (2 + u)`: its series up to `s^15`, after
/// which there is 2e-9 of it.
struct Softplus;
impl Unary for Softplus {
    #[inline(always)]
    unsafe fn apply<V: Simd>(&self, x: V) -> V {
        // SAFETY: the caller's contract.
        unsafe {
            let u = exp(V::splat(0.0).sub(x.abs()));
            let s = u.div(u.add(V::splat(2.0)));
            let square = s.mul(s);
            let mut series = V::splat(1.0 / 15.0);
            for odd in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
                series = series.mul_add(square, V::splat(1.0 / odd));
            }
            s.add(s).mul_add(series, V::splat(0.0).max(x))
        }
    }
}

#[inline(always)]
pub(super) unsafe fn softplus<V: Simd>(x: &mut [f32]) {
    // SAFETY: the caller's contract.
    unsafe { vector::map::<V, _>(x, &Softplus) }
}

#[inline(always)]
pub(super) unsafe fn exp_in_place<V: Simd>(x: &mut [f32]) {
    // SAFETY: the caller's contract.
    unsafe { vector::map::<V, _>(x, &Exp) }
}

#[inline(always)]
pub(super) unsafe fn relu<V: Simd>(x: &mut [f32]) {
    // SAFETY: the caller's contract.
    unsafe { vector::map::<V, _>(x, &Relu) }
}

#[inline(always)]
pub(super) unsafe fn silu<V: Simd>(x: &mut [f32]) {
    // SAFETY: the caller's contract.
    unsafe { vector::map::<V, _>(x, &Silu) }
}

#[inline(always)]
pub(super) unsafe fn gelu<V: Simd>(x: &mut [f32]) {
    // SAFETY: the caller's contract.
    unsafe { vector::map::<V, _>(x, &Gelu) }
}

#[inline(always)]
pub(super) unsafe fn soft_cap<V: Simd>(x: &mut [f32], cap: f32) {
    // SAFETY: the caller's contract.
    unsafe { vector::map::<V, _>(x, &SoftCap(cap)) }
}

#[inline(always)]
pub(super) unsafe fn silu_mul<V: Simd>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    // SAFETY: the slices are of one length (checked by the caller).
    unsafe { vector::zip::<V, _>(gate.as_ptr(), up.as_ptr(), out.as_mut_ptr(), out.len(), &Silu) }
}

#[inline(always)]
pub(super) unsafe fn gelu_mul<V: Simd>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    // SAFETY: the slices are of one length (checked by the caller).
    unsafe { vector::zip::<V, _>(gate.as_ptr(), up.as_ptr(), out.as_mut_ptr(), out.len(), &Gelu) }
}

#[inline(always)]
pub(super) unsafe fn sigmoid<V: Simd>(x: &mut [f32]) {
    // SAFETY: the caller's contract.
    unsafe { vector::map::<V, _>(x, &Sigmoid) }
}

#[inline(always)]
pub(super) unsafe fn sigmoid_mul<V: Simd>(gate: &[f32], x: &mut [f32]) {
    let (n, x) = (x.len(), x.as_mut_ptr());
    // SAFETY: the slices are of one length (checked by the caller).
    unsafe { vector::zip::<V, _>(gate.as_ptr(), x, x, n, &Sigmoid) }
}

#[inline(always)]
pub(super) unsafe fn clamped_swiglu<V: Simd>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    // SAFETY: the slices are of one length (checked by the caller).
    unsafe { vector::zip::<V, _>(gate.as_ptr(), up.as_ptr(), out.as_mut_ptr(), out.len(), &ClampedSwiglu) }
}

#[inline(always)]
pub(super) unsafe fn exp_sub_sum<V: Simd>(x: &mut [f32], max: f32) -> f32 {
    if max == f32::NEG_INFINITY {
        x.fill(0.0);
        return 0.0;
    }
    let (n, p) = (x.len(), x.as_mut_ptr());
    // SAFETY: every access is below `n`.
    unsafe {
        let m = V::splat(max);
        let mut sums = [V::splat(0.0); 2];
        let mut i = 0;
        while i + 2 * V::LANES <= n {
            for (j, sum) in sums.iter_mut().enumerate() {
                let q = p.add(i + j * V::LANES);
                let e = weight(V::load(q).sub(m));
                e.store(q);
                *sum = sum.add(e);
            }
            i += 2 * V::LANES;
        }
        if i + V::LANES <= n {
            let e = weight(V::load(p.add(i)).sub(m));
            e.store(p.add(i));
            sums[0] = sums[0].add(e);
            i += V::LANES;
        }
        if i < n {
            // Read back so that the lanes beyond the slice count as 0 and not as e^-max.
            weight(V::load_partial(p.add(i), n - i).sub(m)).store_partial(p.add(i), n - i);
            sums[1] = sums[1].add(V::load_partial(p.add(i), n - i));
        }
        sums[0].add(sums[1]).sum()
    }
}

#[inline(always)]
pub(super) unsafe fn softmax<V: Simd>(x: &mut [f32]) {
    // SAFETY: the caller's contract.
    unsafe {
        let max = vector::max::<V>(x);
        let sum = exp_sub_sum::<V>(x, max);
        if sum != 0.0 {
            vector::scale::<V>(x, 1.0 / sum);
        }
    }
}
