//! Perplexity by llama.cpp's convention: the text is cut into windows of `n_ctx` tokens, each begins with the start token
//! if the model wants one (in place of its first token), and the second half of each is scored.

use super::log_sum_exp;
use crate::runtime::Session;
use crate::{Error, Result};

/// A perplexity and how sure it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// `exp` of the mean negative log-likelihood.
    pub perplexity: f64,
    /// Standard error of `perplexity`; NaN for fewer than two tokens.
    pub error: f64,
    /// Mean negative log-likelihood per token, in nats.
    pub nll: f64,
    /// Tokens scored.
    pub n_scored: usize,
}

/// Tokens of the shortest window with something to score.
const MIN_WINDOW: usize = 4;

/// A running estimate over windows of a text.
#[derive(Debug, Clone, Default)]
pub struct Perplexity {
    nll: f64,
    nll_squared: f64,
    n_scored: usize,
}

impl Perplexity {
    /// Windows of the context `n_ctx` in a text of `n_tokens`.
    ///
    /// # Errors
    /// [`Error::Params`] when the text has less than two windows, or the windows are too short to score.
    pub fn windows(n_tokens: usize, n_ctx: usize) -> Result<usize> {
        if n_ctx < MIN_WINDOW {
            return Err(Error::Params(format!("--ctx-size {n_ctx}: a window needs at least {MIN_WINDOW} tokens")));
        }
        if n_tokens < 2 * n_ctx {
            return Err(Error::Params(format!(
                "the text has {n_tokens} tokens; a context of {n_ctx} needs at least {} (a longer text, or a smaller -c)",
                2 * n_ctx
            )));
        }
        Ok(n_tokens / n_ctx)
    }

    /// Scores one window: the second half of `window`, each token given those before it. `bos` replaces the first token.
    ///
    /// # Errors
    /// The session's; [`Error::Params`] for a window that is too short or a token outside the vocabulary.
    pub fn add_window(&mut self, session: &mut Session, window: &[u32], bos: Option<u32>) -> Result<()> {
        if window.len() < MIN_WINDOW {
            return Err(Error::Params(format!("a window of {} tokens is too short to score", window.len())));
        }
        let n_vocab = session.model().tokenizer().n_vocab();
        if let Some(id) = window.iter().find(|&&id| id as usize >= n_vocab) {
            return Err(Error::Params(format!("token id {id} is outside the vocabulary of {n_vocab}")));
        }
        let kernels = session.model().kernels();
        let first = window.len() / 2;
        let mut inputs = window[..window.len() - 1].to_vec();
        if let (Some(bos), Some(start)) = (bos, inputs.first_mut()) {
            *start = bos;
        }
        session.truncate(0);
        session.prefill(&inputs[..first], &mut |_| ())?;
        let nexts = &window[first + 1..];
        session.logits_each(&inputs[first..], &mut |i, logits| {
            self.add(log_sum_exp(kernels, logits) - f64::from(logits[nexts[i] as usize]));
        })
    }

    /// Adds a token's negative log-likelihood.
    fn add(&mut self, nll: f64) {
        self.nll += nll;
        self.nll_squared += nll * nll;
        self.n_scored += 1;
    }

    /// The estimate so far; NaN when nothing was scored.
    pub fn estimate(&self) -> Estimate {
        let n = self.n_scored as f64;
        let nll = self.nll / n;
        let variance = (self.nll_squared / n - nll * nll).max(0.0);
        let perplexity = nll.exp();
        Estimate { perplexity, error: (variance / (n - 1.0)).sqrt() * perplexity, nll, n_scored: self.n_scored }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimate_of_known_losses() {
        let mut p = Perplexity::default();
        for nll in [1.0, 2.0, 3.0] {
            p.add(nll);
        }
        let e = p.estimate();
        assert_eq!((e.nll, e.n_scored), (2.0, 3));
        assert!((e.perplexity - 2f64.exp()).abs() < 1e-12);
        // Variance 2/3 over n - 1 = 2.
        assert!((e.error - (1f64 / 3.0).sqrt() * 2f64.exp()).abs() < 1e-12);
    }

    #[test]
    fn nothing_scored_is_nan() {
        assert!(Perplexity::default().estimate().perplexity.is_nan());
    }

    #[test]
    fn windows_of_a_text() {
        assert_eq!(Perplexity::windows(1024, 512).unwrap(), 2);
        assert_eq!(Perplexity::windows(1535, 512).unwrap(), 2);
        assert!(Perplexity::windows(1023, 512).unwrap_err().to_string().contains("1024"));
        assert!(Perplexity::windows(1024, 3).is_err());
    }
}
