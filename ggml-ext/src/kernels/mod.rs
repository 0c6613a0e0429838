//! SIMD kernels, one table per instruction-set tier, chosen once at run time.
//!
//! A plain `cargo build` makes a binary that runs on any CPU of its architecture and uses the widest instructions the
//! CPU at hand has: nothing here depends on `-C target-cpu`. A [`Kernels`] value can only be obtained through
//! [`Kernels::for_tier`] and its relatives, which check the CPU first, so holding one *is* the proof that its functions
//! may be called; the `SAFETY` comments of the calls into `#[target_feature]` functions rest on that.

pub mod float;
pub mod int;

pub use float::FloatKernels;
pub use int::{
    Bf16Factor, Bf16Rows, Bf16View, Digits, FINE_STEP, GateFn, IntKernels, MatmulScratch, Q8Rows, Q8View, takes_bf16,
};

use std::sync::LazyLock;

/// An instruction-set tier: a set of CPU features that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tier {
    /// Whatever the build target guarantees (SSE2 on x86-64, NEON without dot products on AArch64).
    Portable,
    /// x86-64 with AVX2, FMA and F16C (Intel Haswell, AMD Zen and later).
    Avx2,
    /// The same with `vpdpbusd`: AVX-VNNI (Intel Alder Lake, AMD Zen 5 and later), or the instruction's AVX-512 encoding.
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI (Intel Ice Lake, AMD Zen 4 and later).
    Avx512,
    /// The same with AMX-BF16, products of tiles (Intel Sapphire Rapids and later), on Linux.
    Amx,
    /// AArch64 with the dot product extension (Armv8.2 `dotprod`: Cortex-A76, Apple M1 and later).
    Neon,
}

impl Tier {
    /// Every tier of every architecture, narrowest first.
    pub const ALL: [Tier; 6] = [Tier::Portable, Tier::Avx2, Tier::AvxVnni, Tier::Avx512, Tier::Amx, Tier::Neon];

    /// The name used by `LISA_CPU` and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Tier::Portable => "portable",
            Tier::Avx2 => "avx2",
            Tier::AvxVnni => "avxvnni",
            Tier::Avx512 => "avx512",
            Tier::Amx => "amx",
            Tier::Neon => "neon",
        }
    }

    /// True if this CPU (and operating system) can run the tier's kernels.
    pub fn is_supported(self) -> bool {
        match self {
            Tier::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Tier::AvxVnni => {
                let evex = is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512vnni");
                Tier::Avx2.is_supported() && (is_x86_feature_detected!("avxvnni") || evex)
            }
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512 => {
                Tier::Avx2.is_supported()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Tier::Amx => Tier::Avx512.is_supported() && int::amx::is_supported(),
            #[cfg(target_arch = "aarch64")]
            Tier::Neon => {
                std::arch::is_aarch64_feature_detected!("neon") && std::arch::is_aarch64_feature_detected!("dotprod")
            }
            _ => false,
        }
    }
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The kernels of one tier: a table of functions that this CPU can run.
#[derive(Debug)]
#[non_exhaustive]
pub struct Kernels {
    /// The tier all functions of the table are compiled for.
    pub tier: Tier,
    /// Products with quantised weights.
    pub int: IntKernels,
    /// Everything computed in f32.
    pub float: FloatKernels,
}

impl Kernels {
    /// The widest tier this CPU has.
    pub fn detect() -> &'static Kernels {
        static BEST: LazyLock<&'static Kernels> = LazyLock::new(|| {
            let widest = Tier::ALL.iter().rev().find_map(|&tier| Kernels::for_tier(tier));
            widest.expect("the portable tier runs everywhere")
        });
        *BEST
    }

    /// The kernels of one tier; `None` if this CPU lacks it.
    pub fn for_tier(tier: Tier) -> Option<&'static Kernels> {
        static TABLES: LazyLock<[Option<Kernels>; Tier::ALL.len()]> = LazyLock::new(|| {
            Tier::ALL.map(|tier| {
                tier.is_supported().then(|| Kernels {
                    tier,
                    int: IntKernels::for_supported_tier(tier),
                    float: FloatKernels::for_supported_tier(tier),
                })
            })
        });
        TABLES.iter().flatten().find(|kernels| kernels.tier == tier)
    }

    /// The tier named by the environment variable `LISA_CPU`, or the widest one when it is unset or empty.
    ///
    /// # Errors
    /// A message for the user: the value is no tier's name, or this CPU lacks the tier.
    pub fn from_env() -> Result<&'static Kernels, String> {
        match std::env::var_os("LISA_CPU") {
            None => Ok(Kernels::detect()),
            Some(value) if value.is_empty() => Ok(Kernels::detect()),
            Some(value) => Kernels::by_name(&value.to_string_lossy()),
        }
    }

    /// The tier of this name, as `LISA_CPU` has it.
    ///
    /// # Errors
    /// As [`Kernels::from_env`].
    pub fn by_name(name: &str) -> Result<&'static Kernels, String> {
        let runs_here = || Kernels::available().iter().map(|k| k.tier.name()).collect::<Vec<_>>().join(", ");
        let Some(tier) = Tier::ALL.into_iter().find(|tier| tier.name().eq_ignore_ascii_case(name)) else {
            return Err(format!("LISA_CPU={name}: no such instruction set; this CPU runs {}", runs_here()));
        };
        Kernels::for_tier(tier)
            .ok_or_else(|| format!("LISA_CPU={name}: this CPU lacks the instruction set; it runs {}", runs_here()))
    }

    /// Every tier this CPU can run, narrowest first.
    pub fn available() -> Vec<&'static Kernels> {
        Tier::ALL.into_iter().filter_map(Kernels::for_tier).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_widest_available_tier_is_detected() {
        let available = Kernels::available();
        assert_eq!(available[0].tier, Tier::Portable);
        assert_eq!(available.last().unwrap().tier, Kernels::detect().tier);
        for kernels in available {
            assert!(kernels.tier.is_supported());
        }
    }

    #[test]
    fn names_of_tiers_are_accepted_and_others_explained() {
        assert_eq!(Kernels::by_name("Portable").unwrap().tier, Tier::Portable);
        let message = Kernels::by_name("sse9").unwrap_err();
        assert!(message.contains("sse9") && message.contains("portable"), "{message}");
        let foreign = if cfg!(target_arch = "x86_64") { "neon" } else { "avx2" };
        assert!(Kernels::by_name(foreign).unwrap_err().contains("lacks"));
    }
}
