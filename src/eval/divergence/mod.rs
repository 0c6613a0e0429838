//! How far a model's predictions are from a baseline's, token by token, with the statistics that `llama-perplexity
//! --kl-divergence` prints. The baseline is a second model that runs in lock-step, or a file of its log-probabilities in
//! llama.cpp's format.

mod base_file;
mod stats;

pub use base_file::{BaseReader, BaseWriter, PackedRow};
pub use stats::{Distribution, DivergenceStats, Measured};

use super::log_sum_exp;
use super::perplexity::window_inputs;
use crate::Result;
use crate::runtime::Session;
use ggml_ext::kernels::Kernels;

/// What one position tells about the two models.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenDivergence {
    /// Negative log-likelihood of the token that follows, in nats.
    pub nll: f64,
    /// The same by the baseline.
    pub nll_base: f64,
    /// Kullback-Leibler divergence of the model's prediction from the baseline's, in nats.
    pub kld: f64,
    /// Both find the same token most likely.
    pub same_top: bool,
}

/// Baseline log-probabilities up to this are left out of the divergence when they come from a file, which has no finer
/// ones.
const FILE_FLOOR: f32 = -16.0;

/// Compares predictions at one position after another.
pub struct Divergence {
    kernels: &'static Kernels,
    stats: DivergenceStats,
    /// The baseline's log-probabilities.
    base: Vec<f32>,
    /// Baseline logits of a piece of a window.
    held: Vec<f32>,
}

/// Most bytes of baseline logits held at a time.
const HELD_BYTES: usize = 64 << 20;

impl Divergence {
    /// Nothing compared yet; the models have `n_vocab` tokens.
    pub fn new(kernels: &'static Kernels, n_vocab: usize) -> Self {
        Self { kernels, stats: DivergenceStats::default(), base: vec![0.0; n_vocab], held: Vec::new() }
    }

    /// The statistics so far.
    pub fn stats(&self) -> &DivergenceStats {
        &self.stats
    }

    /// Runs both models over the second half of `window` and compares them at each position. `bos` replaces the first
    /// token. The logits held in between are bounded, whatever the window's length.
    ///
    /// # Errors
    /// The sessions'; [`crate::Error::Params`] for a window that is too short, [`crate::Error::Impossible`] for a token outside the vocabulary.
    pub fn add_window(
        &mut self,
        session: &mut Session,
        base: &mut Session,
        window: &[u32],
        bos: Option<u32>,
    ) -> Result<()> {
        let first = window.len() / 2;
        let inputs = window_inputs(session, window, first, bos)?;
        for s in [&mut *session, &mut *base] {
            s.clear();
            s.prefill(&inputs[..first], &mut |_| ())?;
        }
        let n_vocab = self.base.len();
        let n_rows = (HELD_BYTES / 4 / n_vocab.max(1)).max(1);
        let nexts = window[first + 1..].chunks(n_rows);
        for (piece, nexts) in inputs[first..].chunks(n_rows).zip(nexts) {
            let mut held = std::mem::take(&mut self.held);
            held.clear();
            base.logits_each(piece, &mut |_, logits| held.extend_from_slice(logits))?;
            session.logits_each(piece, &mut |i, logits| {
                self.add_logits(&held[i * n_vocab..(i + 1) * n_vocab], logits, nexts[i]);
            })?;
            self.held = held;
        }
        Ok(())
    }

    /// Compares the logits of both models at a position that `next` follows.
    pub fn add_logits(&mut self, base: &[f32], logits: &[f32], next: u32) {
        let norm = log_sum_exp(self.kernels, base) as f32;
        self.base.iter_mut().zip(base).for_each(|(b, &l)| *b = l - norm);
        self.add(logits, next, f32::NEG_INFINITY);
    }

    /// Compares a row of a base file with the model's logits at a position that `next` follows.
    pub fn add_packed(&mut self, base: &PackedRow, logits: &[f32], next: u32) {
        base.unpack(&mut self.base);
        self.add(logits, next, FILE_FLOOR);
    }

    fn add(&mut self, logits: &[f32], next: u32, floor: f32) {
        self.stats.add(&compare(self.kernels, &self.base, logits, next, floor));
    }
}

/// Compares log-probabilities of the baseline above `floor` with logits of the model.
fn compare(kernels: &Kernels, base: &[f32], logits: &[f32], next: u32, floor: f32) -> TokenDivergence {
    const PIECE: usize = 1024;
    let norm = log_sum_exp(kernels, logits) as f32;
    let mut kld = 0.0;
    let mut p = [0f32; PIECE];
    for (base, logits) in base.chunks(PIECE).zip(logits.chunks(PIECE)) {
        let p = &mut p[..base.len()];
        p.copy_from_slice(base);
        kernels.float.exp_sub_sum(p, 0.0);
        let terms = p.iter().zip(base).zip(logits);
        // Eight sums at a time, which the compiler turns into vector instructions.
        let mut sums = [0f64; 8];
        for (i, ((&p, &b), &l)) in terms.enumerate() {
            let term = if b > floor { f64::from(p) * f64::from(b - (l - norm)) } else { 0.0 };
            sums[i % 8] += term;
        }
        kld += sums.iter().sum::<f64>();
    }
    let next = next as usize;
    TokenDivergence {
        nll: f64::from(norm - logits[next]),
        nll_base: f64::from(-base[next]),
        kld,
        same_top: first_max(base) == first_max(logits),
    }
}

/// The index of the largest value, the first of equal ones.
fn first_max(x: &[f32]) -> usize {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    x.iter().position(|&v| v == max).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_of_known_predictions() {
        for kernels in Kernels::available() {
            let base: Vec<f32> = [0.5f32, 0.25, 0.25].iter().map(|p| p.ln()).collect();
            let logits: Vec<f32> = [0.25f32, 0.5, 0.25].iter().map(|p| p.ln() + 3.0).collect();
            let d = compare(kernels, &base, &logits, 1, f32::NEG_INFINITY);
            // 0.5 ln 2 - 0.25 ln 2
            assert!((d.kld - 0.25 * 2f64.ln()).abs() < 1e-6, "{d:?}");
            assert!((d.nll - 2f64.ln()).abs() < 1e-6 && (d.nll_base - 4f64.ln()).abs() < 1e-6, "{d:?}");
            assert!(!d.same_top);
            let same = compare(kernels, &base, &base, 0, f32::NEG_INFINITY);
            assert!(same.same_top && same.kld.abs() < 1e-7, "{same:?}");
        }
    }

    #[test]
    fn what_lies_under_the_floor_does_not_count() {
        let kernels = Kernels::available()[0];
        let base = [-1e-7f32, -16.5];
        let logits = [0.0f32, -40.0];
        let with = compare(kernels, &base, &logits, 0, f32::NEG_INFINITY).kld;
        let without = compare(kernels, &base, &logits, 0, FILE_FLOOR).kld;
        assert!(with > 1e-6 && without.abs() < 1e-6, "{with} {without}");
    }
}
