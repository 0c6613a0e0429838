//! From a model to a LISA model: which layers to substitute, where their modules start, and training them against the unchanged model.
//!
//! All of it runs in F32 on [`dense::DenseModel`], one window of text per thread. The gradient of every window is summed in the order
//! of the windows, so that results do not depend on the number of threads.

pub mod adam;
pub mod align;
pub mod dense;
pub mod layer;
pub mod modules;
pub mod scores;
pub mod student;
#[cfg(test)]
mod testing;
