//! CPU inference for quantised GGUF models whose layers share attention.
//!
//! Open a [`Model`], start a [`Session`], and let a sampler choose from the logits:
//!
//! ```
//! use std::sync::Arc;
//! use lisa_cpp::runtime::sampler::{Sampler, SamplerParams};
//! use lisa_cpp::{Model, ModelParams, Session, SessionParams};
//!
//! let model = Arc::new(Model::embedded(ModelParams::default())?); // or Model::open("model.gguf".as_ref(), ...)
//! let tokenizer = model.tokenizer();
//! let mut session = Session::new(model.clone(), SessionParams::default())?;
//! let ids = tokenizer.encode("Once upon a time", true, true)?;
//! let mut logits = session.prefill(&ids, &mut |_| ())?;
//! let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
//! assert_eq!(tokenizer.decode(&[best as u32], false), ",");
//! # Ok::<(), lisa_cpp::Error>(())
//! ```

pub mod attention;
pub mod compute;
pub mod distill;
mod error;
pub mod eval;
pub mod imatrix;
pub mod model;
pub mod quantize;
pub mod runtime;
pub mod tokenizer;

pub use attention::SharePlan;
pub use compute::ActivationType;
pub use error::{Error, Result};
pub use model::{Model, ModelFile, ModelParams};
pub use runtime::{Session, SessionParams};
