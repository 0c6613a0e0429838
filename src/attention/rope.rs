//! Rotary position embeddings (RoPE, arXiv 2104.09864) and the ways long-context models stretch them.

use ggml_ext::kernels::Kernels;

use crate::compute::SharedBuf;

/// Which dimensions of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// Pair `p` is dimensions `(2p, 2p + 1)`: GGUF `llama` files, whose Q and K rows are permuted for it.
    Norm,
    /// Pair `p` is dimensions `(p, p + n_rot / 2)`: GPT-NeoX and most later families.
    Neox,
}

/// How the angular frequencies are stretched beyond the trained context.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum RopeScaling {
    /// As trained.
    #[default]
    None,
    /// Positions divided by a factor (arXiv 2306.15595).
    Linear {
        /// Context growth.
        factor: f32,
    },
    /// YaRN (arXiv 2309.00071): slow pairs interpolated, fast pairs kept, attention sharpened.
    Yarn {
        /// Context growth.
        factor: f32,
        /// Context the model was trained with.
        n_ctx_orig: usize,
        /// Weight of the extrapolated frequencies, usually 1.
        ext_factor: f32,
        /// Turns within `n_ctx_orig` from which a pair is kept.
        beta_fast: f32,
        /// Turns within `n_ctx_orig` below which a pair is interpolated.
        beta_slow: f32,
    },
    /// Llama 3.1's piecewise rule, where a file gives its parameters instead of the finished factors.
    Llama3 {
        /// Context growth.
        factor: f32,
        /// Context the model was trained with.
        n_ctx_orig: usize,
        /// Wavelengths above `n_ctx_orig / low_freq_factor` are divided by `factor`.
        low_freq_factor: f32,
        /// Wavelengths below `n_ctx_orig / high_freq_factor` are kept.
        high_freq_factor: f32,
    },
}

/// A rotary embedding: the angular frequency of every pair and the factor on the rotated values.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    style: RopeStyle,
    /// Dimensions of a head before those that turn.
    first: usize,
    /// Radians per position, one per pair.
    freq: Vec<f64>,
    /// Factor on sine and cosine (YaRN and LongRoPE sharpen the attention with it).
    magnitude: f64,
}

impl Rope {
    /// The embedding of the first `n_rot` dimensions of a head with frequency base `base`; `divisors` (one per pair)
    /// divide the frequencies, `magnitude` multiplies the result.
    pub fn new(
        style: RopeStyle,
        n_rot: usize,
        base: f32,
        scaling: &RopeScaling,
        divisors: Option<&[f32]>,
        magnitude: f32,
    ) -> Self {
        use std::f64::consts::TAU;
        let base = f64::from(base);
        let mut freq: Vec<f64> = (0..n_rot / 2).map(|p| base.powf(-2.0 * p as f64 / n_rot as f64)).collect();
        if let Some(divisors) = divisors {
            freq.iter_mut().zip(divisors).for_each(|(f, &d)| *f /= f64::from(d));
        }
        let mut magnitude = f64::from(magnitude);
        match *scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => freq.iter_mut().for_each(|f| *f /= f64::from(factor)),
            RopeScaling::Yarn { factor, n_ctx_orig, ext_factor, beta_fast, beta_slow } => {
                // The pair that makes `turns` turns within the original context (YaRN, section 3.2).
                let pair =
                    |turns: f32| n_rot as f64 * (n_ctx_orig as f64 / (f64::from(turns) * TAU)).ln() / (2.0 * base.ln());
                let low = pair(beta_fast).floor().max(0.0);
                let high = pair(beta_slow).ceil().min(n_rot as f64 - 1.0);
                for (p, f) in freq.iter_mut().enumerate() {
                    let keep = 1.0 - ((p as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                    let keep = keep * f64::from(ext_factor);
                    *f = *f / f64::from(factor) * (1.0 - keep) + *f * keep;
                }
                if ext_factor != 0.0 {
                    magnitude *= 1.0 + 0.1 * f64::from(factor).ln();
                }
            }
            RopeScaling::Llama3 { factor, n_ctx_orig, low_freq_factor, high_freq_factor } => {
                let (low, high) = (f64::from(low_freq_factor), f64::from(high_freq_factor));
                for f in &mut freq {
                    let turns = n_ctx_orig as f64 * *f / TAU;
                    let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    *f = *f / f64::from(factor) * (1.0 - keep) + *f * keep;
                }
            }
        }
        Self { style, first: 0, freq, magnitude }
    }

    /// The same for dimensions from `first` on.
    pub fn turning_from(self, first: usize) -> Self {
        Self { first, ..self }
    }

    /// No rotation: for layers without positions.
    pub fn none() -> Self {
        Self { style: RopeStyle::Norm, first: 0, freq: Vec::new(), magnitude: 1.0 }
    }

    /// Pairs that turn.
    pub fn n_pairs(&self) -> usize {
        self.freq.len()
    }

    /// Which dimensions of a head turn together.
    pub fn style(&self) -> RopeStyle {
        self.style
    }

    /// Radians per position, one per pair.
    pub fn frequencies(&self) -> &[f64] {
        &self.freq
    }

    /// Factor on the rotated values.
    pub fn magnitude(&self) -> f64 {
        self.magnitude
    }

    /// A rotation by `-n` positions, for keys that move down in the cache.
    pub fn backwards(&self, n: usize) -> RopeTable {
        let pure = Self { magnitude: 1.0, ..self.clone() };
        let table = RopeTable::new(&pure, 1);
        // SAFETY: nobody else has the table yet.
        unsafe { table.fill(&pure, 0, -(n as f64)) };
        table
    }
}

/// A factor on queries that grows with their position, so that attention over many more keys stays as sharp (as in Llama 4 and Ministral 3):
/// `1 + scale ln(1 + floor((position + offset) / n_ctx))`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperature {
    /// How fast it grows.
    pub scale: f32,
    /// Positions from one step to the next.
    pub n_ctx: usize,
    /// By how many positions all steps come earlier.
    pub offset: usize,
}

impl Temperature {
    /// The factor at position `pos`.
    pub fn at(&self, pos: usize) -> f32 {
        1.0 + self.scale * (((pos + self.offset) / self.n_ctx + 1) as f32).ln()
    }
}

/// Sines and cosines of the positions of one step's rows.
pub struct RopeTable {
    style: RopeStyle,
    first: usize,
    n_pairs: usize,
    cos: SharedBuf<f32>,
    sin: SharedBuf<f32>,
}

impl RopeTable {
    /// Room for `n_rows` positions of `rope`.
    pub fn new(rope: &Rope, n_rows: usize) -> Self {
        let n = n_rows * rope.n_pairs();
        let (cos, sin) = (SharedBuf::new(n), SharedBuf::new(n));
        Self { style: rope.style, first: rope.first, n_pairs: rope.n_pairs(), cos, sin }
    }

    /// Computes row `row` for position `pos`. Rows are shared out among a team by number.
    ///
    /// # Safety
    /// Nobody else touches the row before the next barrier.
    pub unsafe fn fill(&self, rope: &Rope, row: usize, pos: f64) {
        let range = row * self.n_pairs..(row + 1) * self.n_pairs;
        // SAFETY: passed on to the caller.
        let (cos, sin) = unsafe { (self.cos.get_mut(range.clone()), self.sin.get_mut(range)) };
        for ((c, s), f) in cos.iter_mut().zip(sin).zip(&rope.freq) {
            // In f64: at position 100,000 an f32 angle is off by up to 4e-3 radians.
            let (sine, cosine) = (pos * f).sin_cos();
            (*c, *s) = ((cosine * rope.magnitude) as f32, (sine * rope.magnitude) as f32);
        }
    }

    /// Turns one head by the position of row `row`.
    pub fn rotate(&self, kernels: &Kernels, row: usize, head: &mut [f32]) {
        let range = row * self.n_pairs..(row + 1) * self.n_pairs;
        // SAFETY: rows are filled in an earlier phase.
        let (cos, sin) = unsafe { (self.cos.get(range.clone()), self.sin.get(range)) };
        let turning = &mut head[self.first..];
        match self.style {
            RopeStyle::Norm => kernels.float.rope_norm(turning, cos, sin),
            RopeStyle::Neox => kernels.float.rope_neox(turning, cos, sin),
        }
    }
}
