//! AArch64 with NEON, which every such CPU has: four lanes, fused multiply-add, hardware f16 conversion.

use super::simd::Simd;
use half::f16;
use std::arch::aarch64::*;
use std::arch::asm;

#[derive(Clone, Copy)]
pub(super) struct V(float32x4_t);

/// `2^n` for whole `n` in `-126..=127`.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn pow2(n: int32x4_t) -> float32x4_t {
    // SAFETY: the caller's contract.
    unsafe { vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n, vdupq_n_s32(127)))) }
}

// SAFETY (of every block below): the trait's contract is that the CPU has NEON and that pointers are valid for the lanes
// named. The two conversions are assembly because the intrinsics' half-precision vector types are newer than the
// oldest compiler supported; they are plain register operations of the base instruction set.
impl Simd for V {
    const LANES: usize = 4;
    const NT_ROWS: usize = 4;
    const NN_ROWS: usize = 6;
    const NN_VECS: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: see the impl.
        V(unsafe { vdupq_n_f32(x) })
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: see the impl.
        V(unsafe { vld1q_f32(p) })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: see the impl.
        unsafe { vst1q_f32(p, self.0) }
    }
    #[inline(always)]
    unsafe fn load_partial(p: *const f32, n: usize) -> Self {
        let mut all = [0.0f32; 4];
        // SAFETY: see the impl; n < 4 elements are copied into four.
        unsafe {
            std::ptr::copy_nonoverlapping(p, all.as_mut_ptr(), n);
            Self::load(all.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, n: usize) {
        let mut all = [0.0f32; 4];
        // SAFETY: see the impl; n < 4 elements are copied out of four.
        unsafe {
            self.store(all.as_mut_ptr());
            std::ptr::copy_nonoverlapping(all.as_ptr(), p, n);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        let out: float32x4_t;
        // SAFETY: see the impl.
        unsafe {
            let h = vld1_u16(p.cast());
            asm!("fcvtl {o:v}.4s, {h:v}.4h", o = out(vreg) out, h = in(vreg) h, options(pure, nomem, nostack, preserves_flags));
        }
        V(out)
    }
    #[inline(always)]
    unsafe fn load_f16_partial(p: *const f16, n: usize) -> Self {
        let mut all = [f16::ZERO; 4];
        // SAFETY: see the impl; n < 4 elements are copied into four.
        unsafe {
            std::ptr::copy_nonoverlapping(p, all.as_mut_ptr(), n);
            Self::load_f16(all.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        // SAFETY: see the impl.
        unsafe { Self::load(p.cast::<[i8; 4]>().read_unaligned().map(f32::from).as_ptr()) }
    }
    #[inline(always)]
    unsafe fn splat_f16(x: f16) -> Self {
        // SAFETY: see the impl.
        unsafe { Self::load_f16([x; 4].as_ptr()) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut f16) {
        let h: uint16x4_t;
        // SAFETY: see the impl.
        unsafe {
            asm!("fcvtn {h:v}.4h, {x:v}.4s", h = out(vreg) h, x = in(vreg) self.0, options(pure, nomem, nostack, preserves_flags));
            vst1_u16(p.cast(), h);
        }
    }
    #[inline(always)]
    unsafe fn store_f16_partial(self, p: *mut f16, n: usize) {
        let mut all = [f16::ZERO; 4];
        // SAFETY: see the impl; n < 4 elements are copied out of four.
        unsafe {
            self.store_f16(all.as_mut_ptr());
            std::ptr::copy_nonoverlapping(all.as_ptr(), p, n);
        }
    }

    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { vaddq_f32(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { vsubq_f32(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { vmulq_f32(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { vdivq_f32(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { vfmaq_f32(c.0, self.0, b.0) })
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { vminq_f32(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { vmaxq_f32(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { vabsq_f32(self.0) })
    }
    #[inline(always)]
    unsafe fn if_less(self, limit: Self, a: Self, b: Self) -> Self {
        // SAFETY: see the impl.
        V(unsafe { vbslq_f32(vcltq_f32(self.0, limit.0), a.0, b.0) })
    }
    #[inline(always)]
    unsafe fn scale2(self, n: Self) -> Self {
        // SAFETY: see the impl.
        unsafe {
            // In two steps, because 2^n itself may not be a normal float; only the last one can round.
            let n = vcvtq_s32_f32(n.0);
            let half = vshrq_n_s32::<1>(n);
            let rest = vsubq_s32(n, half);
            V(vmulq_f32(vmulq_f32(self.0, pow2(half)), pow2(rest)))
        }
    }
    #[inline(always)]
    unsafe fn scale2_bounded(self, n: Self) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let n = vshlq_n_s32::<23>(vreinterpretq_s32_f32(n.0));
            V(vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(self.0), n)))
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: see the impl.
        unsafe { vaddvq_f32(self.0) }
    }
    #[inline(always)]
    unsafe fn lane_max(self) -> f32 {
        // SAFETY: see the impl.
        unsafe { vmaxvq_f32(self.0) }
    }
    #[inline(always)]
    unsafe fn store_sums(v: [Self; 4], alpha: f32, p: *mut f32) {
        // SAFETY: see the impl; four floats are written.
        unsafe {
            let s = vpaddq_f32(vpaddq_f32(v[0].0, v[1].0), vpaddq_f32(v[2].0, v[3].0));
            vst1q_f32(p, vmulq_n_f32(s, alpha));
        }
    }
}
