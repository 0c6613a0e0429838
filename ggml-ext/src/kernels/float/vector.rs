//! Loops over whole vectors: sums, maxima, element-by-element arithmetic, normalisation.

use super::simd::Simd;

/// An operation on one element, vector by vector.
pub(super) trait Unary {
    /// # Safety
    /// As [`Simd`]'s.
    unsafe fn apply<V: Simd>(&self, x: V) -> V;
}

/// An operation on two elements, vector by vector.
pub(super) trait Binary {
    /// # Safety
    /// As [`Simd`]'s.
    unsafe fn apply<V: Simd>(&self, a: V, b: V) -> V;
}

/// `x[i] = f(x[i])`.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
pub(super) unsafe fn map<V: Simd, F: Unary>(x: &mut [f32], f: &F) {
    let (n, p) = (x.len(), x.as_mut_ptr());
    let mut i = 0;
    // SAFETY: every access is below `n`.
    unsafe {
        while i + V::LANES <= n {
            f.apply(V::load(p.add(i))).store(p.add(i));
            i += V::LANES;
        }
        if i < n {
            f.apply(V::load_partial(p.add(i), n - i)).store_partial(p.add(i), n - i);
        }
    }
}

/// `out[i] = f(a[i], b[i])`; `out` may be `a` or `b`.
///
/// # Safety
/// As [`Simd`]'s; each pointer is valid for `n` elements.
#[inline(always)]
pub(super) unsafe fn zip<V: Simd, F: Binary>(a: *const f32, b: *const f32, out: *mut f32, n: usize, f: &F) {
    let mut i = 0;
    // SAFETY: every access is below `n`.
    unsafe {
        while i + V::LANES <= n {
            f.apply(V::load(a.add(i)), V::load(b.add(i))).store(out.add(i));
            i += V::LANES;
        }
        if i < n {
            let r = n - i;
            f.apply(V::load_partial(a.add(i), r), V::load_partial(b.add(i), r)).store_partial(out.add(i), r);
        }
    }
}

struct Add;
impl Binary for Add {
    #[inline(always)]
    unsafe fn apply<V: Simd>(&self, a: V, b: V) -> V {
        // SAFETY: the caller's contract.
        unsafe { a.add(b) }
    }
}

struct Mul;
impl Binary for Mul {
    #[inline(always)]
    unsafe fn apply<V: Simd>(&self, a: V, b: V) -> V {
        // SAFETY: the caller's contract.
        unsafe { a.mul(b) }
    }
}

struct Axpy(f32);
impl Binary for Axpy {
    #[inline(always)]
    unsafe fn apply<V: Simd>(&self, x: V, y: V) -> V {
        // SAFETY: the caller's contract.
        unsafe { V::splat(self.0).mul_add(x, y) }
    }
}

struct Scale(f32);
impl Unary for Scale {
    #[inline(always)]
    unsafe fn apply<V: Simd>(&self, x: V) -> V {
        // SAFETY: the caller's contract.
        unsafe { x.mul(V::splat(self.0)) }
    }
}

/// `a * (b * s)`: a normalised row times its weight.
struct ScaleMul(f32);
impl Binary for ScaleMul {
    #[inline(always)]
    unsafe fn apply<V: Simd>(&self, x: V, w: V) -> V {
        // SAFETY: the caller's contract.
        unsafe { x.mul(V::splat(self.0)).mul(w) }
    }
}

#[inline(always)]
pub(super) unsafe fn add_assign<V: Simd>(y: &mut [f32], x: &[f32]) {
    let (n, y) = (y.len(), y.as_mut_ptr());
    // SAFETY: the slices are of one length (checked by the caller).
    unsafe { zip::<V, _>(y, x.as_ptr(), y, n, &Add) }
}

#[inline(always)]
pub(super) unsafe fn mul_assign<V: Simd>(y: &mut [f32], x: &[f32]) {
    let (n, y) = (y.len(), y.as_mut_ptr());
    // SAFETY: the slices are of one length (checked by the caller).
    unsafe { zip::<V, _>(y, x.as_ptr(), y, n, &Mul) }
}

#[inline(always)]
pub(super) unsafe fn axpy<V: Simd>(a: f32, x: &[f32], y: &mut [f32]) {
    let (n, y) = (y.len(), y.as_mut_ptr());
    // SAFETY: the slices are of one length (checked by the caller).
    unsafe { zip::<V, _>(x.as_ptr(), y, y, n, &Axpy(a)) }
}

#[inline(always)]
pub(super) unsafe fn add_product<V: Simd>(y: &mut [f32], a: &[f32], b: &[f32]) {
    let (n, y, a, b) = (y.len(), y.as_mut_ptr(), a.as_ptr(), b.as_ptr());
    let mut i = 0;
    // SAFETY: the slices are of one length (checked by the caller) and every access is below it.
    unsafe {
        while i + V::LANES <= n {
            V::load(a.add(i)).mul_add(V::load(b.add(i)), V::load(y.add(i))).store(y.add(i));
            i += V::LANES;
        }
        if i < n {
            let r = n - i;
            let sum = V::load_partial(a.add(i), r).mul_add(V::load_partial(b.add(i), r), V::load_partial(y.add(i), r));
            sum.store_partial(y.add(i), r);
        }
    }
}

#[inline(always)]
pub(super) unsafe fn scale<V: Simd>(x: &mut [f32], s: f32) {
    // SAFETY: the caller's contract.
    unsafe { map::<V, _>(x, &Scale(s)) }
}

#[inline(always)]
pub(super) unsafe fn dot<V: Simd>(a: &[f32], b: &[f32]) -> f32 {
    let (n, a, b) = (a.len(), a.as_ptr(), b.as_ptr());
    // SAFETY: the slices are of one length (checked by the caller) and every access is below it.
    unsafe {
        let mut sums = [V::splat(0.0); 4];
        let mut i = 0;
        while i + 4 * V::LANES <= n {
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = V::load(a.add(i + j * V::LANES)).mul_add(V::load(b.add(i + j * V::LANES)), *sum);
            }
            i += 4 * V::LANES;
        }
        while i + V::LANES <= n {
            sums[0] = V::load(a.add(i)).mul_add(V::load(b.add(i)), sums[0]);
            i += V::LANES;
        }
        if i < n {
            sums[1] = V::load_partial(a.add(i), n - i).mul_add(V::load_partial(b.add(i), n - i), sums[1]);
        }
        sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum()
    }
}

#[inline(always)]
pub(super) unsafe fn max<V: Simd>(x: &[f32]) -> f32 {
    let (n, p) = (x.len(), x.as_ptr());
    if n < V::LANES {
        return x.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    }
    // SAFETY: every access is below `n`, which is at least one vector; the last vector may overlap the one before.
    unsafe {
        let mut m = V::load(p.add(n - V::LANES));
        let mut i = 0;
        while i + V::LANES <= n {
            m = V::load(p.add(i)).max(m);
            i += V::LANES;
        }
        m.lane_max()
    }
}

/// `1 / sqrt(mean of squares + eps)`.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
unsafe fn inverse_rms<V: Simd>(x: &[f32], eps: f32) -> f32 {
    // SAFETY: the caller's contract.
    let squares = unsafe { dot::<V>(x, x) };
    1.0 / (squares / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
pub(super) unsafe fn rms_norm<V: Simd>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    // SAFETY: the slices are of one length (checked by the caller).
    unsafe {
        let s = inverse_rms::<V>(x, eps);
        zip::<V, _>(x.as_ptr(), weight.as_ptr(), out.as_mut_ptr(), out.len(), &ScaleMul(s));
    }
}

#[inline(always)]
pub(super) unsafe fn rms_norm_in_place<V: Simd>(x: &mut [f32], weight: &[f32], eps: f32) {
    // SAFETY: the slices are of one length (checked by the caller).
    unsafe {
        let s = inverse_rms::<V>(x, eps);
        let (n, x) = (x.len(), x.as_mut_ptr());
        zip::<V, _>(x, weight.as_ptr(), x, n, &ScaleMul(s));
    }
}
