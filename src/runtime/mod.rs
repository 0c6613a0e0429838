//! Running a model: sessions, sampling, chat templates.

pub mod chat;
pub mod sampler;
mod session;

pub use session::{Session, SessionParams};
