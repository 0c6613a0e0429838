//! Log-probabilities of the answers of a question, whose context is processed once.

use super::Encoded;
use crate::Result;
use crate::eval::log_sum_exp;
use crate::runtime::Session;

/// What the model thinks of one answer.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Score {
    /// Log-probability of the continuation's tokens, in nats.
    pub log_prob: f64,
    /// Each of its tokens is the most likely one.
    pub greedy: bool,
    /// Tokens of the continuation.
    pub n_tokens: usize,
}

/// Scores questions one after another; what a question's tokens have in common with the previous one's is not processed
/// again.
pub struct Scorer {
    session: Session,
}

impl Scorer {
    /// Scores with `session`, whose context is emptied.
    pub fn new(mut session: Session) -> Self {
        session.clear();
        Self { session }
    }

    /// Scores every answer of a question.
    ///
    /// # Errors
    /// The session's.
    pub fn score(&mut self, answers: &[Encoded]) -> Result<Vec<Score>> {
        let Some((first, rest)) = answers.split_first() else { return Ok(Vec::new()) };
        // What all answers begin with, at most the shortest context.
        let n_shared = rest.iter().fold(first.n_context, |n, a| n.min(a.n_context).min(n_equal(&first.ids, &a.ids)));
        let after_shared = self.read_shared(&first.ids[..n_shared])?;
        answers.iter().map(|a| self.score_one(a, n_shared, &after_shared)).collect()
    }

    /// Makes the context `ids` and returns the logits after it; empty for no tokens.
    fn read_shared(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        let Some(last) = ids.len().checked_sub(1) else { return Ok(Vec::new()) };
        let kept = n_equal(self.session.ids(), ids).min(last);
        self.session.truncate(kept)?;
        Ok(self.session.prefill(&ids[kept..], &mut |_| ())?.to_vec())
    }

    /// Scores an answer, of which `n_shared` tokens are in the context already and `after_shared` are the logits after them.
    fn score_one(&mut self, a: &Encoded, n_shared: usize, after_shared: &[f32]) -> Result<Score> {
        self.session.truncate(n_shared)?;
        let kernels = self.session.model().kernels();
        let continuation = &a.ids[a.n_context..];
        let mut score = Score { log_prob: 0.0, greedy: true, n_tokens: continuation.len() };
        let mut add = |logits: &[f32], next: u32| {
            let chosen = logits[next as usize];
            score.log_prob += f64::from(chosen) - log_sum_exp(kernels, logits);
            // Of equal ones the first is taken.
            let better = |(i, &l): (usize, &f32)| l > chosen || (l == chosen && i < next as usize);
            score.greedy &= !logits.iter().enumerate().any(better);
        };
        let inputs = &a.ids[..a.ids.len() - 1];
        let mut from = n_shared;
        if a.n_context == n_shared {
            add(after_shared, continuation[0]);
        } else {
            // Up to the last token of the context, whose logits are the first that count.
            from = a.n_context - 1;
            if from > n_shared {
                self.session.prefill(&inputs[n_shared..from], &mut |_| ())?;
            }
        }
        if from < inputs.len() {
            self.session.logits_each(&inputs[from..], &mut |i, logits| add(logits, a.ids[from + i + 1]))?;
        }
        Ok(score)
    }
}

/// Tokens at the start that are equal.
fn n_equal(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::ActivationType;
    use crate::{Model, ModelParams, SessionParams};
    use std::sync::Arc;

    fn session() -> Session {
        let model = Arc::new(Model::embedded(ModelParams::default()).unwrap());
        Session::new(
            model,
            SessionParams { n_threads: 1, activations: ActivationType::F32, ..SessionParams::default() },
        )
        .unwrap()
    }

    /// The scores of answers read from start to end, without anything shared.
    fn plainly(answer: &Encoded) -> (f64, bool) {
        let mut s = session();
        let (mut log_prob, mut greedy) = (0.0, true);
        let kernels = s.model().kernels();
        let inputs = &answer.ids[..answer.ids.len() - 1];
        s.logits_each(inputs, &mut |i, logits| {
            if i + 1 >= answer.n_context {
                let next = answer.ids[i + 1];
                log_prob += f64::from(logits[next as usize]) - log_sum_exp(kernels, logits);
                greedy &= crate::eval::top(logits, 1)[0].0 == next;
            }
        })
        .unwrap();
        (log_prob, greedy)
    }

    #[test]
    fn sharing_the_context_changes_nothing() {
        let mut scorer = Scorer::new(session());
        let model = scorer.session.model().clone();
        let ids =
            model.tokenizer().encode("Once upon a time, there was a little girl named Lily", true, false).unwrap();
        let answer = |n_context: usize, tail: &[u32]| Encoded { ids: [&ids[..n_context], tail].concat(), n_context };
        let n = ids.len();
        for question in [
            // The usual case, with answers of one and of several tokens, two of which begin alike.
            vec![answer(n, &[300]), answer(n, &[300, 301, 302]), answer(n, &ids[..4])],
            // The previous question's context is a part of this one's, and the first answer is what the model says itself.
            vec![answer(n - 2, &ids[n - 2..]), answer(n - 2, &[400, 401])],
            // Different contexts before one continuation.
            vec![answer(n, &[310, 311]), Encoded { ids: vec![ids[0], ids[1], 77, 310, 311], n_context: 3 }],
            // No token in common.
            vec![answer(4, &[9]), Encoded { ids: vec![5, 6, 9], n_context: 2 }],
        ] {
            let scores = scorer.score(&question).unwrap();
            for (a, s) in question.iter().zip(&scores) {
                let (log_prob, greedy) = plainly(a);
                assert!((s.log_prob - log_prob).abs() < 1e-4, "{a:?}: {s:?} instead of {log_prob}");
                assert_eq!((s.greedy, s.n_tokens), (greedy, a.ids.len() - a.n_context));
            }
        }
        assert!(scorer.score(&[answer(n - 2, &ids[n - 2..])]).unwrap()[0].greedy);
    }
}
