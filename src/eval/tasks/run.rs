//! Running a benchmark: questions shared out over sessions that work side by side.

use super::metrics::predictions;
use super::{Encoded, Goal, Item, Metric, Score, Scorer, encode, metrics};
use crate::model::Model;
use crate::runtime::{Session, SessionParams};
use crate::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

/// The scores of one question's answers.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ItemScores {
    /// One for each answer.
    pub scores: Vec<Score>,
    /// The answers chosen by probability, probability per character and per byte.
    pub predictions: [usize; 3],
    /// The right answer, where there are several.
    pub gold: Option<usize>,
}

/// The result of a benchmark.
pub struct Evaluation {
    /// Its figures.
    pub metrics: Vec<Metric>,
    /// Each question's scores.
    pub items: Vec<ItemScores>,
    /// Requests that had to lose their start.
    pub n_truncated: usize,
    /// Tokens of all requests.
    pub n_tokens: usize,
}

/// Scores `items`. `params.n_ctx` is the longest context to use, 0 for the model's own; `n_parallel` sessions share the
/// threads. `progress` hears how many questions are done, and says whether to go on.
///
/// # Errors
/// As [`Session::new`]; as [`encode`], naming the question's file and line; [`Error::Interrupted`] when `progress` said so.
pub fn evaluate(
    model: &Arc<Model>,
    items: &[Item],
    params: &SessionParams,
    n_parallel: usize,
    progress: &mut dyn FnMut(usize) -> bool,
) -> Result<Evaluation> {
    let n_ctx = if params.n_ctx == 0 { model.n_ctx_train() } else { params.n_ctx };
    let mut n_truncated = 0;
    let mut encoded: Vec<Vec<Encoded>> = Vec::with_capacity(items.len());
    for item in items {
        let mut answers = Vec::with_capacity(item.requests.len());
        for request in &item.requests {
            let mut e = encode(model.tokenizer(), request).map_err(|e| at(item, e))?;
            n_truncated += usize::from(e.truncate(n_ctx));
            answers.push(e);
        }
        encoded.push(answers);
    }
    let lengths = || encoded.iter().flatten().map(|e| e.ids.len());
    let longest = lengths().max().unwrap_or(1);
    let n_sessions = n_parallel.clamp(1, params.n_threads).min(items.len().max(1));
    let per_session = |threads: usize| (threads / n_sessions).max(1);
    let params = SessionParams {
        n_ctx: longest,
        n_threads: per_session(params.n_threads),
        n_threads_batch: per_session(params.n_threads_batch.max(params.n_threads)),
        ..params.clone()
    };
    let scorers = (0..n_sessions).map(|_| Ok(Scorer::new(Session::new(model.clone(), params.clone())?)));
    let scores = share_out(scorers.collect::<Result<_>>()?, &encoded, progress)?;

    let pairs = || items.iter().zip(&scores);
    let item_scores = |(item, scores): (&Item, &Vec<Score>)| {
        let (gold, lengths) = match &item.goal {
            Goal::Choice { gold, lengths } => (Some(*gold), &lengths[..]),
            Goal::Word => (None, &[][..]),
        };
        ItemScores { scores: scores.clone(), predictions: predictions(scores, lengths), gold }
    };
    Ok(Evaluation {
        metrics: metrics(pairs().map(|(i, s)| (i, &s[..]))),
        items: pairs().map(item_scores).collect(),
        n_truncated,
        n_tokens: lengths().sum(),
    })
}

/// The error `e` of a question, with the place where that stands.
fn at(item: &Item, e: Error) -> Error {
    if item.place.is_empty() { e } else { Error::Data { place: item.place.clone(), what: e.to_string() } }
}

/// Lets every scorer take the next question until there are none; the scores in the questions' order.
fn share_out(
    scorers: Vec<Scorer>,
    questions: &[Vec<Encoded>],
    progress: &mut dyn FnMut(usize) -> bool,
) -> Result<Vec<Vec<Score>>> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (send, receive) = mpsc::channel::<Result<(usize, Vec<Score>)>>();
    std::thread::scope(|scope| {
        for mut scorer in scorers {
            let (send, next, failed) = (send.clone(), &next, &failed);
            scope.spawn(move || {
                while !failed.load(Ordering::Relaxed) {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(question) = questions.get(i) else { break };
                    let scores = scorer.score(question).map(|s| (i, s));
                    if scores.is_err() {
                        failed.store(true, Ordering::Relaxed);
                    }
                    if send.send(scores).is_err() {
                        break;
                    }
                }
            });
        }
        drop(send);
        let mut all = vec![Vec::new(); questions.len()];
        let mut n_done = 0;
        for scored in receive {
            let (i, scores) = scored?;
            all[i] = scores;
            n_done += 1;
            if !progress(n_done) {
                failed.store(true, Ordering::Relaxed);
                break;
            }
        }
        if n_done < questions.len() {
            return Err(Error::Interrupted);
        }
        Ok(all)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelParams;
    use crate::eval::tasks::Request;

    #[test]
    fn a_question_that_cannot_be_scored_is_named() {
        let model = Arc::new(Model::embedded(ModelParams::default()).unwrap());
        let request = Request { context: String::new(), continuation: String::new() };
        let item = Item { requests: vec![request], goal: Goal::Word, place: "q.jsonl:3".into() };
        let message = evaluate(&model, &[item], &SessionParams::default(), 1, &mut |_| true).err().unwrap().to_string();
        assert_eq!(message, "q.jsonl:3: '' has no tokens to score");
    }

    #[test]
    fn scoring_ends_when_it_is_told_to() {
        let model = Arc::new(Model::embedded(ModelParams::default()).unwrap());
        let request = || Request { context: "Once".into(), continuation: " upon".into() };
        let item = || Item { requests: vec![request()], goal: Goal::Word, place: String::new() };
        let items: Vec<_> = (0..50).map(|_| item()).collect();
        let mut done = 0;
        let ended = evaluate(&model, &items, &SessionParams::default(), 1, &mut |n| {
            done = n;
            n < 3
        });
        assert!(matches!(ended.err(), Some(Error::Interrupted)) && done == 3, "{done}");
    }
}
