//! What a model's answers are worth and what they cost: measurements over whole models.

pub mod bench;
mod cost;
pub mod divergence;
mod perplexity;
mod probability;
mod roofline;
pub mod study;
pub mod tasks;

pub use cost::{BeforeAfter, LayerCost, PlanCost};
pub use divergence::Divergence;
pub use perplexity::{Estimate, Perplexity, Strided, score_window};
pub use probability::{log_sum_exp, top};
pub use roofline::Roofline;

/// What is wrong with one line of JSON. serde counts lines in what it was given, which was that line alone.
pub(crate) fn json_fault(e: &serde_json::Error) -> String {
    let text = e.to_string();
    let place = format!(" at line {} column {}", e.line(), e.column());
    match text.strip_suffix(&place) {
        Some(what) => format!("{what} at column {}", e.column()),
        None => text,
    }
}
