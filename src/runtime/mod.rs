//! Running a model: sessions, sampling, grammars, chat templates.

pub mod chat;
pub mod constraint;
pub mod sampler;
mod session;
mod vocab;

pub use session::{Session, SessionParams};
