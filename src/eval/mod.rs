//! What a model's answers are worth and what they cost: measurements over whole models.

pub mod bench;
mod cost;
mod perplexity;
mod probability;

pub use cost::{BeforeAfter, LayerCost, PlanCost};
pub use perplexity::{Estimate, Perplexity};
pub use probability::{log_sum_exp, top};
