//! From a model to a LISA model: which layers to substitute, where their modules start, and training them against the unchanged model.
//!
//! All of it runs on [`dense::DenseModel`], one window of text per thread. The gradient of every window is summed in the order
//! of the windows, so that results do not depend on the number of threads.

pub mod adam;
pub mod align;
pub mod basis;
pub mod checkpoint;
pub mod choose;
pub mod compensate;
pub mod data;
pub mod dense;
pub mod frozen;
pub mod layer;
pub mod modules;
mod network;
pub mod scores;
pub mod similarity;
mod solve;
pub mod start;
pub mod student;
pub mod team;
#[cfg(test)]
mod testing;
pub mod trainer;
