//! What a model's answers are worth and what they cost: measurements over whole models.

pub mod bench;
