//! AVX2 with `vpdpbusd` on 256 bits, which multiplies four unsigned codes with four signed ones and adds the products to a sum: CPUs
//! with AVX-VNNI (Intel from Alder Lake on, which has no AVX-512; AMD from Zen 5 on).
//!
//! Those with AVX-512 have the instruction in another encoding, so that the tier can be forced, and so tested, there.

#![expect(unsafe_op_in_unsafe_fn, reason = "each function is a few instructions under the contract of `Isa`")]

use std::arch::x86_64::*;

use super::avx2::{Avx2, Dot, Sums, columns};

/// The instruction of AVX-VNNI.
#[derive(Clone, Copy)]
pub(super) struct Vex;

/// That of AVX-512 VL and VNNI.
#[derive(Clone, Copy)]
pub(super) struct Evex;

macro_rules! dot {
    ($encoding:ty, $dpbusd:ident) => {
        impl Dot for $encoding {
            const UNSIGNED: bool = true;
            const IN_PAIRS: bool = false;
            const UNSIGNED_SECOND: bool = false;

            #[inline(always)]
            unsafe fn dots<const N: usize, const T: usize>(
                _bits: u32,
                _second: bool,
                mut sums: [Sums; T],
                lines: &[Sums; N],
                x: [*const i8; T],
            ) -> [Sums; T] {
                let mut t = 0;
                while t < T {
                    let mut g = 0;
                    while g < N {
                        let x = columns(x[t], g);
                        sums[t][0] = $dpbusd(sums[t][0], lines[g][0], x);
                        sums[t][1] = $dpbusd(sums[t][1], lines[g][1], x);
                        g += 1;
                    }
                    t += 1;
                }
                sums
            }
            #[inline(always)]
            unsafe fn fours(q: __m256i, x: __m256i) -> __m256i {
                $dpbusd(_mm256_setzero_si256(), q, x)
            }
        }
    };
}
dot!(Vex, _mm256_dpbusd_avx_epi32);
dot!(Evex, _mm256_dpbusd_epi32);

super::int_kernels!(VEX: Avx2<Vex>, features "avx2,fma,f16c,avxvnni");
super::int_kernels!(EVEX: Avx2<Evex>, features "avx2,fma,f16c,avx512f,avx512vl,avx512vnni");
