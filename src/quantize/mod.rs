//! Quantising whole models: [`Plan`] decides what becomes of every tensor, [`write()`] does it.
//!
//! Recipes, and which matrix gets which type, are llama.cpp's; the blocks are made by [`ggml_ext::blocks`], which searches longer
//! for scales than llama.cpp does.

mod mix;
mod plan;
mod recipe;
mod write;

pub use mix::fallback;
pub use plan::{Options, Plan, Step};
pub use recipe::Recipe;
pub use write::{QuantizeError, Shard, write};
