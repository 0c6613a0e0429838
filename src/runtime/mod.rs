//! Running a model: sessions, sampling, chat templates.

pub mod chat;
pub mod sampler;
