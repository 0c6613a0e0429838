//! From the scores of the answers to the figures of a benchmark.

use super::{Goal, Item, Score};
use serde::Serialize;

/// A figure and its standard error.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Metric {
    /// `acc`, `acc_norm` (log-probability per character), `acc_bytes` (per byte), `perplexity`.
    pub name: &'static str,
    /// Fractions from 0 to 1, but for the perplexity.
    pub value: f64,
    /// Standard error of the mean over the questions; a single one tells nothing about it.
    pub stderr: Option<f64>,
}

/// The number of the largest value, the first of equal ones.
fn argmax(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (i, v) in values.enumerate() {
        if v > best.1 {
            best = (i, v);
        }
    }
    best.0
}

/// The answer that each rule chooses: most probable, most probable per character, most probable per byte.
pub fn predictions(scores: &[Score], lengths: &[(usize, usize)]) -> [usize; 3] {
    let per = |length: &dyn Fn(&(usize, usize)) -> usize| {
        argmax(scores.iter().zip(lengths).map(|(s, l)| s.log_prob / length(l) as f64))
    };
    let plain = argmax(scores.iter().map(|s| s.log_prob));
    if lengths.len() < scores.len() {
        return [plain; 3];
    }
    [plain, per(&|l| l.0), per(&|l| l.1)]
}

/// The figures of questions and the scores of their answers. Length-normalised accuracies where every question has choices of
/// its own; the perplexity of the answers where they are to be guessed.
pub fn metrics<'a>(scored: impl Iterator<Item = (&'a Item, &'a [Score])>) -> Vec<Metric> {
    let mut right: [Vec<f64>; 3] = Default::default();
    let mut log_probs = Vec::new();
    let mut has_lengths = true;
    for (item, scores) in scored {
        match &item.goal {
            Goal::Choice { gold, lengths } => {
                has_lengths &= !lengths.is_empty();
                for (all, p) in right.iter_mut().zip(predictions(scores, lengths)) {
                    all.push(f64::from(u8::from(p == *gold)));
                }
            }
            Goal::Word => {
                has_lengths = false;
                right[0].extend(scores.iter().map(|s| f64::from(u8::from(s.greedy))));
                log_probs.extend(scores.iter().map(|s| s.log_prob));
            }
        }
    }
    let names = ["acc", "acc_norm", "acc_bytes"];
    let n_names = if has_lengths { 3 } else { 1 };
    let mut all: Vec<Metric> = names
        .into_iter()
        .zip(&right)
        .take(n_names)
        .map(|(name, right)| {
            let (value, stderr) = mean(right);
            Metric { name, value, stderr }
        })
        .collect();
    if !log_probs.is_empty() {
        let (m, e) = mean(&log_probs);
        // The error to first order.
        all.push(Metric { name: "perplexity", value: (-m).exp(), stderr: e.map(|e| (-m).exp() * e) });
    }
    all
}

/// Mean and its standard error, from the sample's deviation, where there are at least two values.
fn mean(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, (n > 1.0).then(|| (squares / (n - 1.0) / n).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(log_prob: f64) -> Score {
        Score { log_prob, greedy: false, n_tokens: 1 }
    }

    #[test]
    fn each_rule_has_its_own_choice() {
        // -6/2, -8/4 and -9/3 per character; -6/2, -8/4 and -9/9 per byte.
        let scores = [score(-6.0), score(-8.0), score(-9.0)];
        assert_eq!(predictions(&scores, &[(2, 2), (4, 4), (3, 9)]), [0, 1, 2]);
        assert_eq!(predictions(&scores, &[]), [0, 0, 0]);
        assert_eq!(predictions(&[score(-1.0), score(-1.0)], &[(1, 1), (1, 1)]), [0, 0, 0]);
    }

    #[test]
    fn accuracies_and_errors_by_hand() {
        let right = Item::choices("c", &["ab".into(), "é".into()], 0);
        let wrong = Item::choices("c", &["ab".into(), "é".into()], 1);
        let scores = [score(-1.0), score(-2.0)];
        let all = [(&right, &scores[..]), (&wrong, &scores[..]), (&right, &scores[..]), (&right, &scores[..])];
        let m = metrics(all.into_iter());
        assert_eq!(m.iter().map(|m| m.name).collect::<Vec<_>>(), ["acc", "acc_norm", "acc_bytes"]);
        assert_eq!(m[0].value, 0.75);
        // sqrt(p (1 - p) / (n - 1))
        assert!((m[0].stderr.unwrap() - (0.75f64 * 0.25 / 3.0).sqrt()).abs() < 1e-12);
        let contexts = Item::contexts(&["a".into(), "b".into()], "c", 0);
        assert_eq!(metrics([(&contexts, &scores[..])].into_iter()).len(), 1);
    }

    #[test]
    fn words_have_a_perplexity() {
        let item = Item::word("a", "b");
        let scores =
            [Score { log_prob: -1.0, greedy: true, n_tokens: 1 }, Score { log_prob: -3.0, greedy: false, n_tokens: 2 }];
        let m = metrics(scores.iter().map(|s| (&item, std::slice::from_ref(s))));
        assert_eq!((m[0].name, m[0].value), ("acc", 0.5));
        assert!((m[1].value - 2f64.exp()).abs() < 1e-12);
        // Deviation sqrt 2, over sqrt 2 questions.
        assert!((m[1].stderr.unwrap() - 2f64.exp()).abs() < 1e-12);
        assert_eq!(metrics([(&item, &scores[..1])].into_iter())[0].stderr, None);
    }
}
