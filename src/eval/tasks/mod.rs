//! Benchmarks of questions whose possible answers are scored by the probability the model gives them, with the prompts and
//! the rules of the Language Model Evaluation Harness (Gao et al., <https://github.com/EleutherAI/lm-evaluation-harness>).

mod data;
mod docs;
mod formats;
mod metrics;
mod requests;
mod run;
mod score;

pub use data::{Source, find_files, read_items};
pub use metrics::{Metric, metrics};
pub use requests::{Encoded, encode};
pub use run::{Evaluation, ItemScores, evaluate};
pub use score::{Score, Scorer};

use docs::Doc;
use formats::Format;

/// One text that is scored after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What the model is given.
    pub context: String,
    /// What it is asked the probability of, with the space before it.
    pub continuation: String,
}

/// What the scores of an item's requests are judged by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// The request with this number should be the most probable.
    Choice {
        /// The right one.
        gold: usize,
        /// Length of each choice in characters and in bytes; empty where one continuation follows different contexts, and its
        /// length means nothing.
        lengths: Vec<(usize, usize)>,
    },
    /// The one continuation should be what the model itself says.
    Word,
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// One text for each possible answer.
    pub requests: Vec<Request>,
    /// How the answers are judged.
    pub goal: Goal,
    /// The file and line it was read from; empty for one that was not.
    pub place: String,
}

impl Item {
    /// One context and several choices, of which `gold` is right.
    fn choices(context: &str, choices: &[String], gold: usize) -> Self {
        let request = |c: &String| Request { context: context.into(), continuation: format!(" {c}") };
        Item {
            requests: choices.iter().map(request).collect(),
            goal: Goal::Choice { gold, lengths: choices.iter().map(|c| (c.chars().count(), c.len())).collect() },
            place: String::new(),
        }
    }

    /// One continuation after several contexts, of which `gold` is right.
    fn contexts(contexts: &[String], continuation: &str, gold: usize) -> Self {
        let request = |c: &String| Request { context: c.clone(), continuation: format!(" {continuation}") };
        let goal = Goal::Choice { gold, lengths: Vec::new() };
        Item { requests: contexts.iter().map(request).collect(), goal, place: String::new() }
    }

    /// A word that should follow.
    fn word(context: &str, target: &str) -> Self {
        Item {
            requests: vec![Request { context: context.into(), continuation: format!(" {target}") }],
            goal: Goal::Word,
            place: String::new(),
        }
    }
}

/// A benchmark: its name, where its questions are found, and how they are read.
pub struct Task {
    /// As on the command line and in results.
    pub name: &'static str,
    /// Other spellings, of the harness and of folders; compared without case and signs.
    pub aliases: &'static [&'static str],
    /// The splits to take, the preferred first; none: every file there is.
    splits: &'static [&'static str],
    /// How a question in the data set's own fields is read.
    format: Format,
}

const VALIDATION: &[&str] = &["validation", "valid", "val", "dev", "test"];
const TEST: &[&str] = &["test", "validation", "valid", "val", "dev"];

/// The benchmarks known by name; splits are those that the harness reports.
pub const TASKS: &[Task] = &[
    Task { name: "hellaswag", aliases: &[], splits: VALIDATION, format: formats::hellaswag },
    Task { name: "piqa", aliases: &[], splits: VALIDATION, format: formats::piqa },
    Task { name: "arc_easy", aliases: &["arce"], splits: TEST, format: formats::arc },
    Task { name: "arc_challenge", aliases: &["arcc"], splits: TEST, format: formats::arc },
    Task { name: "openbookqa", aliases: &["obqa"], splits: TEST, format: formats::openbookqa },
    Task { name: "winogrande", aliases: &["winograndexl"], splits: VALIDATION, format: formats::winogrande },
    Task { name: "boolq", aliases: &[], splits: VALIDATION, format: formats::boolq },
    Task { name: "copa", aliases: &[], splits: VALIDATION, format: formats::copa },
    Task { name: "commonsense_qa", aliases: &["csqa"], splits: VALIDATION, format: formats::lettered },
    Task {
        name: "truthfulqa_mc1",
        aliases: &["truthfulqa", "truthful_qa"],
        splits: VALIDATION,
        format: formats::truthfulqa,
    },
    Task { name: "mmlu", aliases: &[], splits: TEST, format: formats::mmlu },
    Task { name: "lambada_openai", aliases: &["lambada"], splits: TEST, format: formats::lambada },
    Task { name: "blimp", aliases: &[], splits: &[], format: formats::blimp },
    Task { name: "sciq", aliases: &[], splits: TEST, format: formats::sciq },
    Task { name: "social_iqa", aliases: &["siqa"], splits: VALIDATION, format: formats::social_iqa },
];

/// Questions that are ready to be scored, in a file of any name.
pub const READY: Task = Task { name: "questions", aliases: &[], splits: &[], format: formats::unknown };

impl Task {
    /// The task of that name, in any of its spellings.
    pub fn by_name(name: &str) -> Option<&'static Task> {
        let name = plain(name);
        TASKS.iter().find(|t| t.keys().any(|k| k == name))
    }

    /// Its spellings without case and signs.
    fn keys(&self) -> impl Iterator<Item = String> + '_ {
        std::iter::once(self.name).chain(self.aliases.iter().copied()).map(plain)
    }

    /// Reads a question: one that is ready (`context` and `choices`, `contexts` and `continuation`, `context` and `target`), or
    /// one in the data set's own fields.
    ///
    /// # Errors
    /// Names the field that is missing or not as expected.
    pub fn item(&self, object: &serde_json::Value) -> Result<Item, String> {
        let doc = Doc::new(object)?;
        let item = match formats::ready(&doc)? {
            Some(item) => item,
            None => (self.format)(&doc)?,
        };
        match item.goal {
            Goal::Choice { gold, .. } if gold >= item.requests.len() => {
                Err(format!("the answer is choice {gold}, counted from 0, of {}", item.requests.len()))
            }
            _ if item.requests.iter().any(|r| r.continuation.trim().is_empty()) => Err("an answer is empty".into()),
            _ => Ok(item),
        }
    }
}

/// Letters and digits alone, in lower case.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_spellings() {
        for (given, name) in [
            ("HellaSwag", "hellaswag"),
            ("arc-challenge", "arc_challenge"),
            ("commonsenseqa", "commonsense_qa"),
            ("truthfulqa", "truthfulqa_mc1"),
            ("lambada", "lambada_openai"),
        ] {
            assert_eq!(Task::by_name(given).map(|t| t.name), Some(name), "{given}");
        }
        assert!(Task::by_name("hella").is_none());
    }

    #[test]
    fn answers_must_be_among_the_choices() {
        let item = |text: &str| READY.item(&serde_json::from_str(text).unwrap());
        assert!(item(r#"{"context": "a", "choices": ["b", "c"], "answer": 1}"#).is_ok());
        let e = item(r#"{"context": "a", "choices": ["b", "c"], "answer": 2}"#).unwrap_err();
        assert!(e.contains("choice 2"), "{e}");
        let e = item(r#"{"context": "a", "choices": ["b", " "], "answer": 1}"#).unwrap_err();
        assert!(e.contains("empty"), "{e}");
    }
}
