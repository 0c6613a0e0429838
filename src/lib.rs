//! CPU inference for quantised GGUF models whose layers share attention.

pub mod attention;
pub mod compute;
mod error;
pub mod model;
pub mod runtime;
pub mod tokenizer;

pub use error::{Error, Result};
