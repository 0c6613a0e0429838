//! Running a model: sessions, sampling, chat templates.

pub mod chat;
pub mod sampler;
mod session;
mod vocab;

pub use session::{Session, SessionParams};
