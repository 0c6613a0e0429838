//! Any CPU: four lanes of the `wide` crate, which uses what the build's target is sure to have (SSE2 on x86-64).

use super::convert;
use super::simd::Simd;
use half::f16;
use wide::bytemuck::cast;
use wide::{f32x4, i32x4, u32x4};

#[derive(Clone, Copy)]
pub(super) struct V(f32x4);

/// `2^n` for whole `n` in `-126..=127`.
#[inline(always)]
fn pow2(n: i32x4) -> f32x4 {
    cast((n + i32x4::splat(127)) << 23)
}

/// [`convert::f16_to_f32_bits`] on four lanes.
#[inline(always)]
fn f16_to_f32(h: [f16; 4]) -> f32x4 {
    let h = u32x4::new(h.map(|h| u32::from(h.to_bits())));
    let magnitude: u32x4 = (h & u32x4::splat(0x7fff)) << 13;
    let scaled: u32x4 = cast(cast::<_, f32x4>(magnitude) * f32x4::splat(f32::from_bits(0x7780_0000)));
    let special = magnitude.simd_gt(u32x4::splat(0x0f7f_ffff)) & u32x4::splat(0x7f80_0000);
    cast(scaled | special | (h & u32x4::splat(0x8000)) << 16)
}

// SAFETY (of every block below): the trait's contract is that pointers are valid for the lanes named.
impl Simd for V {
    const LANES: usize = 4;
    const NT_ROWS: usize = 2;
    const NN_ROWS: usize = 4;
    const NN_VECS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        V(f32x4::splat(x))
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: see the impl.
        V(f32x4::new(unsafe { p.cast::<[f32; 4]>().read_unaligned() }))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: see the impl.
        unsafe { p.cast::<[f32; 4]>().write_unaligned(self.0.to_array()) }
    }
    #[inline(always)]
    unsafe fn load_partial(p: *const f32, n: usize) -> Self {
        let mut all = [0.0f32; 4];
        // SAFETY: see the impl; n < 4 elements are copied into four.
        unsafe { std::ptr::copy_nonoverlapping(p, all.as_mut_ptr(), n) };
        V(f32x4::new(all))
    }
    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, n: usize) {
        // SAFETY: see the impl; n < 4 elements are copied out of four.
        unsafe { std::ptr::copy_nonoverlapping(self.0.to_array().as_ptr(), p, n) };
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        // SAFETY: see the impl.
        V(f16_to_f32(unsafe { p.cast::<[f16; 4]>().read_unaligned() }))
    }
    #[inline(always)]
    unsafe fn load_f16_partial(p: *const f16, n: usize) -> Self {
        let mut all = [f16::ZERO; 4];
        // SAFETY: see the impl; n < 4 elements are copied into four.
        unsafe { std::ptr::copy_nonoverlapping(p, all.as_mut_ptr(), n) };
        V(f16_to_f32(all))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        // SAFETY: see the impl.
        V(f32x4::new(unsafe { p.cast::<[i8; 4]>().read_unaligned() }.map(f32::from)))
    }
    #[inline(always)]
    unsafe fn splat_f16(x: f16) -> Self {
        V(f32x4::splat(convert::f16_to_f32_bits(x)))
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut f16) {
        // SAFETY: see the impl.
        unsafe { p.cast::<[f16; 4]>().write_unaligned(self.0.to_array().map(convert::f32_to_f16_bits)) }
    }
    #[inline(always)]
    unsafe fn store_f16_partial(self, p: *mut f16, n: usize) {
        let all = self.0.to_array().map(convert::f32_to_f16_bits);
        // SAFETY: see the impl; n < 4 elements are copied out of four.
        unsafe { std::ptr::copy_nonoverlapping(all.as_ptr(), p, n) };
    }

    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        V(self.0 + o.0)
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        V(self.0 - o.0)
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        V(self.0 * o.0)
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        V(self.0 / o.0)
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        V(self.0 * b.0 + c.0)
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        let (a, b) = (self.0.to_array(), o.0.to_array());
        V(f32x4::new(std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })))
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        let (a, b) = (self.0.to_array(), o.0.to_array());
        V(f32x4::new(std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })))
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        V(self.0.abs())
    }
    #[inline(always)]
    unsafe fn if_less(self, limit: Self, a: Self, b: Self) -> Self {
        V(self.0.simd_lt(limit.0).select(a.0, b.0))
    }
    #[inline(always)]
    unsafe fn scale2(self, n: Self) -> Self {
        // In two steps, because 2^n itself may not be a normal float; only the last one can round.
        let n = n.0.fast_round_int();
        let half = n >> 1;
        V(self.0 * pow2(half) * pow2(n - half))
    }
    #[inline(always)]
    unsafe fn scale2_bounded(self, n: Self) -> Self {
        V(cast(cast::<_, i32x4>(self.0) + (cast::<_, i32x4>(n.0) << 23)))
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b, c, d] = self.0.to_array();
        (a + c) + (b + d)
    }
    #[inline(always)]
    unsafe fn lane_max(self) -> f32 {
        let [a, b, c, d] = self.0.to_array();
        a.max(b).max(c.max(d))
    }
    #[inline(always)]
    unsafe fn store_sums(v: [Self; 4], alpha: f32, p: *mut f32) {
        let [a, b, c, d] = f32x4::transpose(v.map(|v| v.0));
        // SAFETY: see the impl; four floats are written.
        unsafe { V(((a + c) + (b + d)) * f32x4::splat(alpha)).store(p) }
    }
}
