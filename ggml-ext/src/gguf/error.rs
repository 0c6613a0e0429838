//! What can be wrong with a GGUF file, or with the calls that write one.

use std::fmt;

use super::value::ValueType;
use super::{MAX_ARRAY_DEPTH, MAX_DIMS, VERSION};
use crate::GgmlType;

/// The part of a file in which a [`GgufError`] was found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// Magic, version and the two counts.
    Header,
    /// The n-th metadata pair (from 0), before its key is known.
    Key(u64),
    /// The value of this key.
    Value(String),
    /// The n-th tensor description (from 0), before its name is known.
    TensorInfo(u64),
    /// The description or the data of the tensor of this name.
    Tensor(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Header => f.write_str("header"),
            Place::Key(i) => write!(f, "metadata key {i}"),
            Place::Value(key) => write!(f, "key {}", Name(key)),
            Place::TensorInfo(i) => write!(f, "tensor description {i}"),
            Place::Tensor(name) => write!(f, "tensor {}", Name(name)),
        }
    }
}

/// A name from a file, quoted, escaped, and cut where it would flood the terminal.
pub(super) struct Name<'a>(pub &'a str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 96;
        match self.0.char_indices().nth(SHOWN) {
            None => write!(f, "{:?}", self.0),
            Some((end, _)) => write!(f, "{:?}... ({} bytes)", &self.0[..end], self.0.len()),
        }
    }
}

/// Why bytes are not a GGUF file that this crate reads, or why a value in it is not what was asked for.
///
/// Offsets count bytes from the start of the file.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum GgufError {
    #[error("not a GGUF file: it starts with \"{}\", expected \"GGUF\"", found.escape_ascii())]
    Magic { found: Vec<u8> },
    #[error(
        "offset 4: this is a big-endian GGUF file (version {version}), only little-endian files are supported; \
         convert it with gguf_convert_endian.py"
    )]
    BigEndian { version: u32 },
    #[error("offset 4: GGUF version {version} is not supported, expected 2 or {VERSION}{}", if *version == 1 { "; version 1 predates the current layout, convert the model again" } else { "" })]
    Version { version: u32 },
    #[error("{place}: {what} at offset {offset} needs {needed} bytes, the file has {remaining} left")]
    Truncated { place: Place, what: &'static str, offset: u64, needed: u64, remaining: u64 },
    #[error(
        "{place}: the count of {what} at offset {offset} is {count}, more than the {max} that the rest of the file could hold"
    )]
    Count { place: Place, what: &'static str, offset: u64, count: u64, max: u64 },
    #[error("{place}: {count} {what} (offset {offset}), more than the limit of {max}")]
    Limit { place: Place, what: &'static str, offset: u64, count: u64, max: u64 },
    #[error("{place}: the name at offset {offset} has {len} bytes, expected 1 to {max}")]
    NameLength { place: Place, offset: u64, len: u64, max: u64 },
    #[error("{place}: the string at offset {offset} is not UTF-8 from its byte {valid_up_to} on")]
    NotUtf8 { place: Place, offset: u64, valid_up_to: u64 },
    #[error("{place}: value type {found} at offset {offset} is unknown, expected 0 to 12")]
    UnknownValueType { place: Place, offset: u64, found: u32 },
    #[error("{place}: the bool at offset {offset} is {found}, expected 0 or 1")]
    NotBool { place: Place, offset: u64, found: u8 },
    #[error("{place}: the array at offset {offset} is nested deeper than {MAX_ARRAY_DEPTH} levels")]
    Nesting { place: Place, offset: u64 },
    #[error("key {} at offset {offset} appears twice", Name(key))]
    DuplicateKey { key: String, offset: u64 },
    #[error("tensor {} at offset {offset} appears twice", Name(tensor))]
    DuplicateTensor { tensor: String, offset: u64 },
    #[error("key \"general.alignment\" is {found}, expected a power of two of type u32")]
    Alignment { found: String },
    #[error("tensor {}: {found} dimensions at offset {offset}, expected 1 to {MAX_DIMS}", Name(tensor))]
    DimCount { tensor: String, offset: u64, found: u32 },
    #[error("tensor {}: dimension {dim} at offset {offset} is zero", Name(tensor))]
    ZeroDim { tensor: String, offset: u64, dim: usize },
    #[error(
        "tensor {}: shape {shape:?} at offset {offset} has more elements or bytes than fit in 63 bits",
        Name(tensor)
    )]
    TooLarge { tensor: String, offset: u64, shape: Vec<u64> },
    #[error("tensor {}: its type at offset {offset} is {}, which is not supported", Name(tensor), type_text(*id))]
    UnsupportedType { tensor: String, offset: u64, id: u32 },
    #[error(
        "tensor {}: rows of {row} elements (shape {shape:?} at offset {offset}) do not divide into {ty} blocks of {}",
        Name(tensor), ty.block_len()
    )]
    RowLength { tensor: String, offset: u64, shape: Vec<u64>, row: u64, ty: GgmlType },
    #[error(
        "tensor {}: data offset {found} (stated at offset {offset}) is not a multiple of the alignment {alignment}",
        Name(tensor)
    )]
    Misaligned { tensor: String, offset: u64, found: u64, alignment: u64 },
    #[error(
        "tensor {}: {n_bytes} bytes of data from offset {start} on end behind the file's {file_len} bytes",
        Name(tensor)
    )]
    OutOfBounds { tensor: String, start: u64, n_bytes: u64, file_len: u64 },
    #[error(
        "tensor {}: its data at offset {start} overlaps that of tensor {}, which ends at offset {end}",
        Name(tensor),
        Name(other)
    )]
    Overlap { tensor: String, start: u64, other: String, end: u64 },
    #[error("key {} is of type {found}, expected {expected}", Name(key))]
    WrongType { key: String, found: String, expected: &'static str },
    #[error("key {} is {found}, which does not fit in {expected}", Name(key))]
    OutOfRange { key: String, found: String, expected: &'static str },
}

fn type_text(id: u32) -> String {
    match GgmlType::unsupported_name(id) {
        Some(name) => format!("{name} (id {id})"),
        None => format!("id {id}, unknown to the format"),
    }
}

/// A fault at an offset, found by code that does not know yet whose value it was reading.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fault {
    pub offset: u64,
    pub kind: FaultKind,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum FaultKind {
    Truncated { what: &'static str, needed: u64, remaining: u64 },
    Count { what: &'static str, count: u64, max: u64 },
    Limit { what: &'static str, count: u64, max: u64 },
    NotUtf8 { valid_up_to: u64 },
    UnknownValueType { found: u32 },
    NotBool { found: u8 },
    Nesting,
}

impl Fault {
    pub fn at(self, place: Place) -> GgufError {
        let offset = self.offset;
        match self.kind {
            FaultKind::Truncated { what, needed, remaining } => {
                GgufError::Truncated { place, what, offset, needed, remaining }
            }
            FaultKind::Count { what, count, max } => GgufError::Count { place, what, offset, count, max },
            FaultKind::Limit { what, count, max } => GgufError::Limit { place, what, offset, count, max },
            FaultKind::NotUtf8 { valid_up_to } => GgufError::NotUtf8 { place, offset, valid_up_to },
            FaultKind::UnknownValueType { found } => GgufError::UnknownValueType { place, offset, found },
            FaultKind::NotBool { found } => GgufError::NotBool { place, offset, found },
            FaultKind::Nesting => GgufError::Nesting { place, offset },
        }
    }
}

/// Why [`GgufWriter`](super::GgufWriter) refused a call, or could not write.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum WriteError {
    #[error("cannot write: {0}")]
    Io(#[from] std::io::Error),
    #[error("{what} {} has {} bytes, expected 1 to {max}", Name(name), name.len())]
    NameLength { what: &'static str, name: String, max: usize },
    #[error("key {} was added before", Name(key))]
    DuplicateKey { key: String },
    #[error("tensor {} was declared before", Name(tensor))]
    DuplicateTensor { tensor: String },
    #[error("key \"general.alignment\" is {found}, expected a power of two of type u32")]
    Alignment { found: String },
    #[error("key {}: an array of {found} among elements of type {expected}", Name(key))]
    MixedArray { key: String, found: ValueType, expected: ValueType },
    #[error("tensor {}: shape {shape:?} of {ty}: {reason}", Name(tensor))]
    Shape { tensor: String, shape: Vec<u64>, ty: GgmlType, reason: &'static str },
    #[error("{what} {} was added after the first tensor {after}", Name(name))]
    TooLate { what: &'static str, name: String, after: &'static str },
    #[error("data for tensor {}, expected {}", Name(found), match expected { Some(n) => format!("tensor {}", Name(n)), None => "no more tensors".into() })]
    Order { found: String, expected: Option<String> },
    #[error("tensor {} has {found} bytes of data, its declaration says {expected}", Name(tensor))]
    DataLength { tensor: String, found: u64, expected: u64 },
    #[error("no data for tensor {} and {more} more", Name(tensor))]
    MissingData { tensor: String, more: usize },
}
