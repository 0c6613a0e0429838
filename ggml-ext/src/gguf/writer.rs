//! The writer: metadata, then tensor declarations, then each tensor's data, streamed.

use std::collections::HashSet;
use std::io::Write;

use super::error::WriteError;
use super::reader::checked_bytes;
use super::value::{Value, ValueType};
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, MAX_KEY_LEN, VERSION};
use crate::GgmlType;

/// Longest tensor name written: what ggml's own reader accepts, one less than [`MAX_NAME_LEN`](super::MAX_NAME_LEN).
const MAX_WRITTEN_NAME_LEN: usize = 63;

/// Writes one GGUF file (version 3) to `W`.
///
/// Metadata and tensor declarations are collected first, in order; the first call of [`data`](Self::data) writes them,
/// and from then on each tensor's bytes go straight to `W`, in the order of declaration. [`finish`](Self::finish) checks
/// that no tensor is missing. What would make a file that [`Gguf`](super::Gguf) refuses is an error of the call that
/// asks for it.
///
/// ```
/// use ggml_ext::{GgmlType, gguf::{Gguf, GgufWriter}};
///
/// let mut w = GgufWriter::new(Vec::new());
/// w.str("general.architecture", "llama")?;
/// w.u32("llama.block_count", 5)?;
/// w.tensor("output_norm.weight", &[3], GgmlType::F32)?;
/// w.data("output_norm.weight", &[0; 12])?;
/// let bytes = w.finish()?;
/// assert_eq!(Gguf::parse(&bytes)?.u32("llama.block_count")?, Some(5));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct GgufWriter<W: Write> {
    out: W,
    pairs: Section,
    infos: Section,
    tensors: Vec<Declared>,
    alignment: u64,
    /// Where the next declared tensor's data starts, relative to the data section.
    next_offset: u64,
    /// Tensors whose data is written; `None` before the header is.
    written: Option<usize>,
    /// Bytes written of the tensor after those.
    partial: u64,
}

/// Serialised entries and the names they go by.
#[derive(Debug, Default)]
struct Section {
    bytes: Vec<u8>,
    names: HashSet<String>,
}

#[derive(Debug)]
struct Declared {
    name: String,
    n_bytes: u64,
}

impl<W: Write> GgufWriter<W> {
    /// A writer of an empty file. Nothing reaches `out` before the first tensor's data or [`finish`](Self::finish).
    pub fn new(out: W) -> Self {
        GgufWriter {
            out,
            pairs: Section::default(),
            infos: Section::default(),
            tensors: Vec::new(),
            alignment: DEFAULT_ALIGNMENT,
            next_offset: 0,
            written: None,
            partial: 0,
        }
    }

    /// Adds any value, for example one read from another file.
    ///
    /// # Errors
    /// A key that is empty, too long or there already; a bad `general.alignment`, or one after the first tensor
    /// declaration; any key after the first data.
    pub fn value(&mut self, key: &str, value: &Value) -> Result<(), WriteError> {
        let alignment = if key == ALIGNMENT_KEY { self.checked_alignment(value)? } else { self.alignment };
        self.begin_pair(key, value.value_type())?;
        put_value(&mut self.pairs.bytes, value);
        self.alignment = alignment;
        Ok(())
    }

    /// Adds a string.
    ///
    /// # Errors
    /// As [`value`](Self::value), like all the methods below that add metadata.
    pub fn str(&mut self, key: &str, value: &str) -> Result<(), WriteError> {
        self.value(key, &Value::String(value))
    }

    /// Adds a u16.
    pub fn u16(&mut self, key: &str, value: u16) -> Result<(), WriteError> {
        self.value(key, &Value::U16(value))
    }

    /// Adds a u32.
    pub fn u32(&mut self, key: &str, value: u32) -> Result<(), WriteError> {
        self.value(key, &Value::U32(value))
    }

    /// Adds an i32.
    pub fn i32(&mut self, key: &str, value: i32) -> Result<(), WriteError> {
        self.value(key, &Value::I32(value))
    }

    /// Adds a u64.
    pub fn u64(&mut self, key: &str, value: u64) -> Result<(), WriteError> {
        self.value(key, &Value::U64(value))
    }

    /// Adds an f32.
    pub fn f32(&mut self, key: &str, value: f32) -> Result<(), WriteError> {
        self.value(key, &Value::F32(value))
    }

    /// Adds a bool.
    pub fn bool(&mut self, key: &str, value: bool) -> Result<(), WriteError> {
        self.value(key, &Value::Bool(value))
    }

    /// Adds an array of strings.
    pub fn strings<S: AsRef<str>>(&mut self, key: &str, values: &[S]) -> Result<(), WriteError> {
        self.array(key, ValueType::String, values.iter().map(|s| Value::String(s.as_ref())))
    }

    /// Adds an array of f32.
    pub fn f32s(&mut self, key: &str, values: &[f32]) -> Result<(), WriteError> {
        self.array(key, ValueType::F32, values.iter().map(|&v| Value::F32(v)))
    }

    /// Adds an array of i32.
    pub fn i32s(&mut self, key: &str, values: &[i32]) -> Result<(), WriteError> {
        self.array(key, ValueType::I32, values.iter().map(|&v| Value::I32(v)))
    }

    /// Adds an array of u32.
    pub fn u32s(&mut self, key: &str, values: &[u32]) -> Result<(), WriteError> {
        self.array(key, ValueType::U32, values.iter().map(|&v| Value::U32(v)))
    }

    /// Adds an array of `elem` values.
    ///
    /// # Errors
    /// As [`value`](Self::value), and a value of another type than `elem`; the key is then not added.
    pub fn array<'a>(
        &mut self,
        key: &str,
        elem: ValueType,
        values: impl ExactSizeIterator<Item = Value<'a>>,
    ) -> Result<(), WriteError> {
        let mut bytes = Vec::new();
        put_array_head(&mut bytes, elem, values.len());
        for v in values {
            if v.value_type() != elem {
                return Err(WriteError::MixedArray { key: key.into(), found: v.value_type(), expected: elem });
            }
            put_value(&mut bytes, &v);
        }
        if key == ALIGNMENT_KEY {
            return Err(WriteError::Alignment { found: format!("an array of {elem}") });
        }
        self.begin_pair(key, ValueType::Array)?;
        self.pairs.bytes.extend(bytes);
        Ok(())
    }

    /// Declares a tensor; `shape` has 1 to 4 dimensions, fastest first. Its data follows with [`data`](Self::data).
    ///
    /// # Errors
    /// A name that is empty, over 63 bytes (ggml reads no longer one) or declared already; a shape that is empty, too
    /// long, has a zero, overflows, or has rows that do not divide into blocks of `ty`; a declaration after the first
    /// data.
    pub fn tensor(&mut self, name: &str, shape: &[u64], ty: GgmlType) -> Result<(), WriteError> {
        if self.written.is_some() {
            return Err(WriteError::TooLate { what: "tensor", name: name.into(), after: "data" });
        }
        check_name("tensor", name, MAX_WRITTEN_NAME_LEN)?;
        let shape_error = |reason| WriteError::Shape { tensor: name.into(), shape: shape.into(), ty, reason };
        if shape.is_empty() || shape.len() > MAX_DIMS {
            return Err(shape_error("expected 1 to 4 dimensions"));
        }
        if shape.contains(&0) {
            return Err(shape_error("a dimension is zero"));
        }
        if !shape[0].is_multiple_of(ty.block_len() as u64) {
            return Err(shape_error("the first dimension does not divide into blocks"));
        }
        const TOO_LARGE: &str = "the elements or bytes do not fit in 63 bits";
        let n_bytes = checked_bytes(shape, ty).ok_or_else(|| shape_error(TOO_LARGE))?;
        let end = self.next_offset.checked_add(n_bytes).and_then(|end| end.checked_next_multiple_of(self.alignment));
        let end = end.ok_or_else(|| shape_error(TOO_LARGE))?;
        if !self.infos.names.insert(name.into()) {
            return Err(WriteError::DuplicateTensor { tensor: name.into() });
        }
        let out = &mut self.infos.bytes;
        put_string(out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
        out.extend(ty.id().to_le_bytes());
        out.extend(self.next_offset.to_le_bytes());
        self.tensors.push(Declared { name: name.into(), n_bytes });
        self.next_offset = end;
        Ok(())
    }

    /// Writes the data of the next declared tensor, which must be `name`, and pads it to the alignment.
    ///
    /// # Errors
    /// Another name than the next in order, another length than declared, or a failure of `W`.
    pub fn data(&mut self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        let (n_bytes, found) = (self.next_bytes(name)?, self.partial + bytes.len() as u64);
        if found != n_bytes {
            return Err(WriteError::DataLength { tensor: name.into(), found, expected: n_bytes });
        }
        self.part(name, bytes)
    }

    /// Writes a piece of the data of the next declared tensor, which must be `name`: for data that is not held whole. The
    /// tensor is complete with its last byte.
    ///
    /// # Errors
    /// Another name than the next in order, more bytes than declared, or a failure of `W`.
    pub fn part(&mut self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        let (n_bytes, found) = (self.next_bytes(name)?, self.partial + bytes.len() as u64);
        if found > n_bytes {
            return Err(WriteError::DataLength { tensor: name.into(), found, expected: n_bytes });
        }
        let written = self.begin_data()?;
        self.out.write_all(bytes)?;
        self.partial = found;
        if found == n_bytes {
            pad(&mut self.out, n_bytes, self.alignment)?;
            self.written = Some(written + 1);
            self.partial = 0;
        }
        Ok(())
    }

    /// Bytes of the next tensor to be written, which must be `name`.
    fn next_bytes(&self, name: &str) -> Result<u64, WriteError> {
        match self.tensors.get(self.written.unwrap_or(0)) {
            Some(t) if t.name == name => Ok(t.n_bytes),
            next => Err(WriteError::Order { found: name.into(), expected: next.map(|t| t.name.clone()) }),
        }
    }

    /// Flushes and returns the output; a file without tensors is written by this call.
    ///
    /// # Errors
    /// A declared tensor without data, or a failure of `W`.
    pub fn finish(mut self) -> Result<W, WriteError> {
        let written = self.begin_data()?;
        if let Some(t) = self.tensors.get(written) {
            let more = self.tensors.len() - written - 1;
            return Err(WriteError::MissingData { tensor: t.name.clone(), more });
        }
        self.out.flush()?;
        Ok(self.out)
    }

    fn checked_alignment(&self, value: &Value) -> Result<u64, WriteError> {
        if !self.tensors.is_empty() {
            return Err(WriteError::TooLate { what: "key", name: ALIGNMENT_KEY.into(), after: "declaration" });
        }
        match *value {
            Value::U32(a) if a.is_power_of_two() => Ok(a.into()),
            v => Err(WriteError::Alignment { found: format!("{v} ({})", v.type_name()) }),
        }
    }

    fn begin_pair(&mut self, key: &str, ty: ValueType) -> Result<(), WriteError> {
        if self.written.is_some() {
            return Err(WriteError::TooLate { what: "key", name: key.into(), after: "data" });
        }
        check_name("key", key, MAX_KEY_LEN)?;
        if !self.pairs.names.insert(key.into()) {
            return Err(WriteError::DuplicateKey { key: key.into() });
        }
        put_string(&mut self.pairs.bytes, key);
        self.pairs.bytes.extend(ty.id().to_le_bytes());
        Ok(())
    }

    /// Writes everything before the data unless that is done; returns the number of tensors whose data is written.
    fn begin_data(&mut self) -> Result<usize, WriteError> {
        if let Some(written) = self.written {
            return Ok(written);
        }
        let mut head = MAGIC.to_vec();
        head.extend(VERSION.to_le_bytes());
        head.extend((self.infos.names.len() as u64).to_le_bytes());
        head.extend((self.pairs.names.len() as u64).to_le_bytes());
        let len = [&head, &self.pairs.bytes, &self.infos.bytes].map(|part| part.len() as u64).iter().sum();
        for part in [&head, &self.pairs.bytes, &self.infos.bytes] {
            self.out.write_all(part)?;
        }
        pad(&mut self.out, len, self.alignment)?;
        self.written = Some(0);
        Ok(0)
    }
}

fn check_name(what: &'static str, name: &str, max: usize) -> Result<(), WriteError> {
    if name.is_empty() || name.len() > max {
        return Err(WriteError::NameLength { what, name: name.into(), max });
    }
    Ok(())
}

/// Zeros from `len` to the next multiple of `alignment`.
fn pad(out: &mut impl Write, len: u64, alignment: u64) -> std::io::Result<()> {
    let mut left = len.next_multiple_of(alignment) - len;
    while left > 0 {
        let n = left.min(4096);
        out.write_all(&[0; 4096][..n as usize])?;
        left -= n;
    }
    Ok(())
}

fn put_string(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn put_array_head(out: &mut Vec<u8>, elem: ValueType, len: usize) {
    out.extend(elem.id().to_le_bytes());
    out.extend((len as u64).to_le_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match *value {
        Value::U8(v) => out.extend(v.to_le_bytes()),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(v.into()),
        Value::String(v) => put_string(out, v),
        Value::Array(a) => {
            put_array_head(out, a.elem_type(), a.len());
            out.extend(a.bytes());
        }
    }
}
