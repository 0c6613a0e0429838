//! The GGUF container format, versions 2 and 3, little-endian.
//!
//! [`Gguf::parse`] is a view over a byte slice (usually a memory map): metadata, names and tensor data are borrowed, not
//! copied. It trusts nothing: every count, length, type, offset and product is checked against the bytes that are there
//! before it is used, so that a damaged or hostile file gives a [`GgufError`] that says where and what, and neither a
//! panic nor a large allocation: memory is used for names and descriptions only, and their number has a limit. [`GgufWriter`] writes such files, [`split`]
//! relates the parts of a model stored in several of them.
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod cursor;
mod error;
mod reader;
pub mod split;
mod value;
mod writer;

pub use error::{GgufError, Place, WriteError};
pub use reader::{Gguf, TensorInfo};
pub use value::{Array, ArrayIter, StringArray, StringIter, Value, ValueType};
pub use writer::GgufWriter;

/// The first four bytes of every GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// The version this crate writes; it reads this one and version 2, which differ in nothing but the number.
pub const VERSION: u32 = 3;
/// Alignment of tensor data in a file without `general.alignment`.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// The key that changes the alignment of tensor data.
pub const ALIGNMENT_KEY: &str = "general.alignment";
/// Most dimensions a tensor can have.
pub const MAX_DIMS: usize = 4;
/// Longest key in bytes: the format's limit.
pub const MAX_KEY_LEN: usize = 65_535;
/// Longest tensor name in bytes that is read. The format says 64; ggml keeps names in 64 bytes with a terminator and so
/// stops at 63, which is what [`GgufWriter`] writes at most.
pub const MAX_NAME_LEN: usize = 64;
/// Most metadata pairs, and most tensors, that are read from one file. The format sets no limit; models have some
/// hundreds. Each takes more memory than the least it takes in the file, and this keeps a hostile file from multiplying.
pub const MAX_ENTRIES: u64 = 65_536;
/// Deepest nesting of arrays that is read. The format sets no limit, files in use have no nested array at all.
pub const MAX_ARRAY_DEPTH: usize = 4;
