//! Perplexity by llama.cpp's convention: the text is cut into windows of `n_ctx` tokens, each begins with the start token
//! if the model wants one (in place of its first token), and the second half of each is scored. With a stride the windows
//! overlap and only the last tokens of each are scored, so that each has more context.

use super::log_sum_exp;
use crate::runtime::Session;
use crate::{Error, Result};
use ggml_ext::kernels::Kernels;

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
pub(super) const MIN_WINDOW: usize = 4;

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
    /// [`Error::Impossible`] when the text has less than two windows, [`Error::Params`] when the windows are too short to score.
    pub fn windows(n_tokens: usize, n_ctx: usize) -> Result<usize> {
        if n_ctx < MIN_WINDOW {
            return Err(Error::Params(format!("--ctx-size {n_ctx}: a window needs at least {MIN_WINDOW} tokens")));
        }
        if n_tokens < 2 * n_ctx {
            return Err(Error::Impossible(format!(
                "the text has {n_tokens} tokens; a context of {n_ctx} needs at least {} (a longer text, or a smaller -c)",
                2 * n_ctx
            )));
        }
        Ok(n_tokens / n_ctx)
    }

    /// Scores one window: the second half of `window`, each token given those before it. `bos` replaces the first token.
    ///
    /// # Errors
    /// The session's; [`Error::Params`] for a window that is too short, [`Error::Impossible`] for a token outside the vocabulary.
    pub fn add_window(&mut self, session: &mut Session, window: &[u32], bos: Option<u32>) -> Result<()> {
        self.add_tail(session, window, window.len() / 2, bos)
    }

    /// Scores the tokens of `window` after position `first`, each given those before it. `bos` replaces the first token.
    ///
    /// # Errors
    /// As [`Perplexity::add_window`].
    pub fn add_tail(&mut self, session: &mut Session, window: &[u32], first: usize, bos: Option<u32>) -> Result<()> {
        let kernels = session.model().kernels();
        score_window(session, window, first, bos, &mut |logits, next| {
            self.add_logits(kernels, logits, next);
            Ok(())
        })
    }

    /// Adds a position that the token `next` follows.
    ///
    /// # Panics
    /// When there is no logit for `next`.
    pub fn add_logits(&mut self, kernels: &Kernels, logits: &[f32], next: u32) {
        self.add(log_sum_exp(kernels, logits) - f64::from(logits[next as usize]));
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

/// The tokens of a window that the model reads: all but the last, the first replaced by `bos`.
///
/// # Errors
/// [`Error::Params`] for a window with nothing to score after position `first`, [`Error::Impossible`] for a token outside the vocabulary.
pub(super) fn window_inputs(session: &Session, window: &[u32], first: usize, bos: Option<u32>) -> Result<Vec<u32>> {
    if window.len() < MIN_WINDOW || first == 0 || first + 1 >= window.len() {
        return Err(Error::Params(format!("a window of {} tokens is too short to score", window.len())));
    }
    let n_vocab = session.model().tokenizer().n_vocab();
    if let Some(id) = window.iter().find(|&&id| id as usize >= n_vocab) {
        return Err(Error::Impossible(format!("token id {id} is outside the vocabulary of {n_vocab}")));
    }
    let mut inputs = window[..window.len() - 1].to_vec();
    if let Some(bos) = bos {
        inputs[0] = bos;
    }
    Ok(inputs)
}

/// Hands the logits at each position of `window` from `first` on, and the token that follows there, to `each`; `bos`
/// replaces the first token. What the session held before is forgotten.
///
/// # Errors
/// The session's and `each`'s; [`Error::Params`] for a window that is too short, [`Error::Impossible`] for a token outside the vocabulary.
pub fn score_window(
    session: &mut Session,
    window: &[u32],
    first: usize,
    bos: Option<u32>,
    each: &mut dyn FnMut(&[f32], u32) -> Result<()>,
) -> Result<()> {
    let inputs = window_inputs(session, window, first, bos)?;
    session.clear();
    session.prefill(&inputs[..first], &mut |_| ())?;
    let nexts = &window[first + 1..];
    let mut result = Ok(());
    session.logits_each(&inputs[first..], &mut |i, logits| {
        if result.is_ok() {
            result = each(logits, nexts[i]);
        }
    })?;
    result
}

/// Overlapping windows, of which only the last tokens are scored: the next window begins `stride` tokens later, and
/// `stride` tokens of each are scored. So that the figures are llama.cpp's, windows are as long as it makes them, and the
/// start token is not put into their first place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strided {
    /// Tokens of a window.
    pub len: usize,
    /// Tokens from one window to the next, and tokens scored in each.
    pub stride: usize,
    /// Number of windows.
    pub count: usize,
}

/// llama.cpp's contexts are multiples of this.
const CONTEXT_STEP: usize = 256;

impl Strided {
    /// Windows of `n_ctx + stride / 2` tokens, rounded up to a multiple of 256, in a text of `n_tokens`.
    ///
    /// # Errors
    /// [`Error::Params`] for a stride that leaves no context, [`Error::Impossible`] for a text that is too short.
    pub fn new(n_tokens: usize, n_ctx: usize, stride: usize) -> Result<Self> {
        if stride == 0 || n_ctx < MIN_WINDOW || stride > n_ctx {
            return Err(Error::Params(format!("--ppl-stride {stride}: expected 1 to the context size, {n_ctx}")));
        }
        let len = n_ctx.saturating_add(stride / 2 + CONTEXT_STEP - 1) / CONTEXT_STEP * CONTEXT_STEP;
        if n_tokens / 2 < len {
            let what =
                format!("the text has {n_tokens} tokens; windows of {len} need at least {}", len.saturating_mul(2));
            return Err(Error::Impossible(format!("{what} (a longer text, or a smaller -c)")));
        }
        Ok(Self { len, stride, count: (n_tokens - len).div_ceil(stride) })
    }

    /// Where window `i` stands in the text.
    pub fn range(&self, i: usize) -> std::ops::Range<usize> {
        i * self.stride..i * self.stride + self.len
    }

    /// The first position of a window whose next token is scored.
    pub fn first(&self) -> usize {
        self.len - self.stride - 1
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

    #[test]
    fn strided_windows_score_each_token_once() {
        let w = Strided::new(3000, 500, 200).unwrap();
        assert_eq!((w.len, w.count), (768, 12));
        assert_eq!(w.range(w.count - 1).end, 2968);
        // A window scores the tokens after `first` to its end; the next goes on where it stopped.
        let scored = |i: usize| w.range(i).start + w.first() + 1..w.range(i).end;
        assert_eq!(scored(0), 568..768);
        assert_eq!(scored(1), 768..968);
        assert!(Strided::new(3000, 500, 0).is_err());
        assert!(Strided::new(3000, 500, 501).is_err());
        assert!(Strided::new(1535, 500, 200).unwrap_err().to_string().contains("1536"));
    }
}
