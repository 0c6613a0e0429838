//! The engine room: a thread team that runs one program per forward pass, the buffers its members share, and the
//! operations a forward pass is made of.

mod buffer;
mod experts;
mod matrix;
mod norm;
mod ops;
mod pool;
mod profile;
mod shares;
mod slab;

pub use buffer::{ActivationType, Activations, Floats, Form, Operand, SharedBuf};
pub use experts::{Choice, ExpertBuffers, ExpertSizes, Gating, MAX_GROUPS, Networks, Stack, sigmoid};
pub use matrix::{FileBytes, Hold, Linear, Matrix};
pub use norm::{Norm, mean};
pub use ops::{Act, Job, Observer, Ops};
pub use pool::{Pool, Worker, default_threads};
pub use profile::{Laps, Phase, Profile};
pub use shares::Shares;
pub use slab::Slabs;
