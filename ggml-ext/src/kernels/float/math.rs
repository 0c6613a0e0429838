//! The exponential and what is built on it: softmax, sigmoid gates, soft caps.

use super::simd::Simd;
use super::vector::{self, Binary, Unary};

/// `e^x` within 1.5 units in the last place on the whole range: gradual underflow to 0, overflow to infinity, NaN to NaN.
///
/// Cody and Waite's reduction to `|r| <= ln(2) / 2` with the constant in two parts, the first short enough for `n * LN2_HI`
/// to be exact, then a polynomial of degree 6 (relative error 1.1e-8, interpolated at Chebyshev nodes).
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
unsafe fn exp<V: Simd>(x: V) -> V {
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    /// Adding it leaves the nearest integer in the low bits of the sum; subtracting it again gives it as a float.
    const ROUND: f32 = 12_582_912.0;
    const C2: f32 = 0.5;
    const C3: f32 = 0.166_665_76;
    const C4: f32 = 0.041_666_556;
    const C5: f32 = 0.008_363_179;
    const C6: f32 = 0.001_392_618_4;
    // SAFETY: the caller's contract.
    unsafe {
        // Just past the arguments whose results are 0 and infinity; a NaN passes both.
        let x = V::splat(89.0).min(V::splat(-104.5).max(x));
        let n = x.mul_add(V::splat(std::f32::consts::LOG2_E), V::splat(ROUND)).sub(V::splat(ROUND));
        let r = n.mul_add(V::splat(-LN2_HI), x);
        let r = n.mul_add(V::splat(-LN2_LO), r);
        let q = r.mul_add(V::splat(C6), V::splat(C5));
        let q = q.mul_add(r, V::splat(C4));
        let q = q.mul_add(r, V::splat(C3));
        let q = q.mul_add(r, V::splat(C2));
        let p = q.mul_add(r.mul(r), r).add(V::splat(1.0));
        p.scale2(n)
    }
}

/// `x / (1 + e^-z)`: `x` times the logistic function of `z`.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
unsafe fn gated<V: Simd>(x: V, z: V) -> V {
    // SAFETY: the caller's contract.
    unsafe { x.div(exp(V::splat(0.0).sub(z)).add(V::splat(1.0))) }
}

/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
unsafe fn silu_of<V: Simd>(x: V) -> V {
    // SAFETY: the caller's contract.
    unsafe { gated(x, x) }
}

/// `x / 2 * (1 + tanh u) = x / (1 + e^-2u)` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
unsafe fn gelu_of<V: Simd>(x: V) -> V {
    const TWO_SQRT_2_PI: f32 = 1.595_769;
    // SAFETY: the caller's contract.
    unsafe {
        let cubic = x.mul(x).mul_add(V::splat(0.044715 * TWO_SQRT_2_PI), V::splat(TWO_SQRT_2_PI));
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
                let e = exp(V::load(q).sub(m));
                e.store(q);
                *sum = sum.add(e);
            }
            i += 2 * V::LANES;
        }
        if i + V::LANES <= n {
            let e = exp(V::load(p.add(i)).sub(m));
            e.store(p.add(i));
            sums[0] = sums[0].add(e);
            i += V::LANES;
        }
        if i < n {
            // Read back so that the lanes beyond the slice count as 0 and not as e^-max.
            exp(V::load_partial(p.add(i), n - i).sub(m)).store_partial(p.add(i), n - i);
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
