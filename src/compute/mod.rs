//! The engine room: a thread team that runs one program per forward pass, the buffers its members share, and the
//! operations a forward pass is made of.

mod buffer;
mod chunks;
mod experts;
mod heads;
mod matrix;
mod norm;
mod ops;
mod pool;
mod profile;
mod slab;

pub use buffer::ActivationType;
pub use matrix::Linear;
pub use ops::Observer;
pub use pool::{Pool, default_threads};
pub use profile::{Phase, Profile};

// What members of a team do together: sound where its rules are kept, which the compiler does not check.
pub(crate) use buffer::{Activations, Floats, Form, Operand, SharedBuf, Widths};
pub(crate) use chunks::Chunks;
pub(crate) use experts::{Choice, ExpertBuffers, ExpertSizes, Gating, MAX_GROUPS, Networks, Stack, Units, sigmoid};
pub(crate) use heads::Heads;
pub(crate) use matrix::{FileBytes, Hold, Matrix};
pub(crate) use norm::{Norm, mean};
pub(crate) use ops::{Act, Job, Ops, Xielu};
pub(crate) use pool::Worker;
pub(crate) use profile::Laps;
pub(crate) use slab::Slabs;
