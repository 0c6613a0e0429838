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
