//! Speed of prompt processing and generation, as `llama-bench` measures it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::Model;
use crate::runtime::{Session, SessionParams};
use crate::{Error, Result};

/// What is timed: a prompt, generation, or one after the other, in a context that has some tokens already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Test {
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Tokens generated after it.
    pub n_gen: usize,
    /// Tokens in the context before.
    pub n_depth: usize,
}

impl Test {
    /// Tokens that the test processes.
    pub fn n_tokens(&self) -> usize {
        self.n_prompt + self.n_gen
    }
}

/// `pp512`, `tg128`, `pp512+tg128`, `tg128 @ d4096`.
impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let name = match (self.n_prompt, self.n_gen) {
            (p, 0) => format!("pp{p}"),
            (0, n) => format!("tg{n}"),
            (p, n) => format!("pp{p}+tg{n}"),
        };
        match self.n_depth {
            0 => f.pad(&name),
            d => f.pad(&format!("{name} @ d{d}")),
        }
    }
}

/// The times of a test.
#[derive(Debug, Clone)]
pub struct Measurement {
    /// What was measured.
    pub test: Test,
    /// How long each repetition took.
    pub samples: Vec<Duration>,
}

impl Measurement {
    /// Tokens per second of each repetition.
    pub fn tokens_per_second(&self) -> Vec<f64> {
        self.samples.iter().map(|t| self.test.n_tokens() as f64 / t.as_secs_f64()).collect()
    }

    /// The best repetition, in tokens per second: the one the rest of the machine disturbed least.
    pub fn best(&self) -> f64 {
        self.tokens_per_second().into_iter().fold(0.0, f64::max)
    }
}

/// Mean and sample standard deviation.
pub fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    (mean, if n > 1.0 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
}

/// A session that runs tests on random tokens, the same in every run.
pub struct Bench {
    session: Session,
    ids: Vec<u32>,
}

impl Bench {
    /// A bench for `tests`, with a context as long as the longest needs.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn new(model: &Arc<Model>, params: &SessionParams, tests: &[Test]) -> Result<Self> {
        let n_ctx = tests.iter().map(|t| t.n_depth + t.n_tokens()).max().unwrap_or(0).max(1);
        let session = Session::new(model.clone(), SessionParams { n_ctx, ..params.clone() })?;
        Ok(Self { session, ids: random_ids(model.decoder().n_vocab(), n_ctx) })
    }

    /// The session, for its sizes and its profile.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Runs a test `repetitions` times, after once that is not counted if `warm_up`.
    ///
    /// # Errors
    /// [`Error::Params`] if there is nothing to measure; else as [`Session::prefill`].
    pub fn run(&mut self, test: Test, repetitions: usize, warm_up: bool) -> Result<Measurement> {
        if repetitions == 0 || test.n_tokens() == 0 {
            return Err(Error::Params("nothing to measure: no tokens, or no repetitions".into()));
        }
        // What the context holds is always a beginning of the same tokens.
        let held = self.session.n_past();
        if held < test.n_depth {
            self.session.prefill(&self.ids[held..test.n_depth], &mut |_| ())?;
        }
        if warm_up {
            self.once(test)?;
        }
        if let Some(profile) = self.session.profile() {
            profile.reset();
        }
        let samples = (0..repetitions).map(|_| self.once(test)).collect::<Result<_>>()?;
        Ok(Measurement { test, samples })
    }

    fn once(&mut self, test: Test) -> Result<Duration> {
        self.session.truncate(test.n_depth)?;
        let (prompt, generated) = self.ids[test.n_depth..test.n_depth + test.n_tokens()].split_at(test.n_prompt);
        let start = Instant::now();
        if !prompt.is_empty() {
            self.session.prefill(prompt, &mut |_| ())?;
        }
        for &id in generated {
            self.session.decode(id)?;
        }
        Ok(start.elapsed())
    }
}

/// Token ids that look random but are the same in every run.
fn random_ids(n_vocab: usize, n: usize) -> Vec<u32> {
    let mut rng = fastrand::Rng::with_seed(1);
    (0..n).map(|_| rng.usize(0..n_vocab.max(1)) as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_named_as_llama_bench_names_them() {
        let name = |n_prompt, n_gen, n_depth| Test { n_prompt, n_gen, n_depth }.to_string();
        assert_eq!(name(512, 0, 0), "pp512");
        assert_eq!(name(0, 128, 4096), "tg128 @ d4096");
        assert_eq!(name(512, 128, 0), "pp512+tg128");
    }

    #[test]
    fn deviation_is_that_of_a_sample() {
        let (mean, deviation) = mean_and_deviation(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
        assert!((mean - 5.0).abs() < 1e-12 && (deviation - (32.0_f64 / 7.0).sqrt()).abs() < 1e-12);
        assert_eq!(mean_and_deviation(&[3.0]), (3.0, 0.0));
    }
}
