//! The GGUF container, the GGML block types, and the SIMD kernels that compute with them.
//!
//! This crate knows bytes and numbers only: no threads, no models, no files opened by name.

#[cfg(target_endian = "big")]
compile_error!("GGUF files and packed weights are read as little-endian bytes in place");

pub mod blocks;
pub mod gguf;
pub mod kernels;
pub mod lisa;
pub mod pack;
mod types;

pub use types::GgmlType;
