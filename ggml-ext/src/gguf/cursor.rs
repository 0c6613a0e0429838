//! A position in a byte slice, and the reading of values from it.

use super::MAX_ARRAY_DEPTH;
use super::error::{Fault, FaultKind};
use super::value::{Array, Value, ValueType};

/// A bounded little-endian reader over `bytes`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes, pos: 0 }
    }

    pub fn offset(&self) -> u64 {
        self.pos as u64
    }

    pub fn remaining(&self) -> u64 {
        (self.bytes.len() - self.pos) as u64
    }

    #[inline]
    pub fn take(&mut self, n: u64, what: &'static str) -> Result<&'a [u8], Fault> {
        let rest = &self.bytes[self.pos..];
        let taken = usize::try_from(n).ok().and_then(|n| rest.get(..n)).ok_or(Fault {
            offset: self.offset(),
            kind: FaultKind::Truncated { what, needed: n, remaining: rest.len() as u64 },
        })?;
        self.pos += taken.len();
        Ok(taken)
    }

    #[inline]
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Fault> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    pub fn u32(&mut self, what: &'static str) -> Result<u32, Fault> {
        self.array(what).map(u32::from_le_bytes)
    }

    #[inline]
    pub fn u64(&mut self, what: &'static str) -> Result<u64, Fault> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things that take at least `min_bytes` each: more than fit in the rest of the slice is a fault.
    pub fn count(&mut self, what: &'static str, min_bytes: u64) -> Result<u64, Fault> {
        let offset = self.offset();
        let count = self.u64(what)?;
        let max = self.remaining() / min_bytes;
        if count > max {
            return Err(Fault { offset, kind: FaultKind::Count { what, count, max } });
        }
        Ok(count)
    }

    /// A [`count`](Self::count) that also has a limit of its own.
    pub fn limited_count(&mut self, what: &'static str, min_bytes: u64, max: u64) -> Result<u64, Fault> {
        let offset = self.offset();
        match self.count(what, min_bytes)? {
            count if count > max => Err(Fault { offset, kind: FaultKind::Limit { what, count, max } }),
            count => Ok(count),
        }
    }

    /// A length-prefixed string.
    #[inline]
    pub fn string(&mut self, what: &'static str) -> Result<&'a str, Fault> {
        let len = self.u64(what)?;
        let offset = self.offset();
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes)
            .map_err(|e| Fault { offset, kind: FaultKind::NotUtf8 { valid_up_to: e.valid_up_to() as u64 } })
    }

    pub fn value_type(&mut self) -> Result<ValueType, Fault> {
        let offset = self.offset();
        let found = self.u32("the value type")?;
        ValueType::from_id(found).ok_or(Fault { offset, kind: FaultKind::UnknownValueType { found } })
    }

    /// A value of type `ty`; `depth` is the number of arrays around it.
    pub fn value(&mut self, ty: ValueType, depth: usize) -> Result<Value<'a>, Fault> {
        const WHAT: &str = "the value";
        Ok(match ty {
            ValueType::U8 => Value::U8(u8::from_le_bytes(self.array(WHAT)?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(self.array(WHAT)?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(self.array(WHAT)?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(self.array(WHAT)?)),
            ValueType::U32 => Value::U32(u32::from_le_bytes(self.array(WHAT)?)),
            ValueType::I32 => Value::I32(i32::from_le_bytes(self.array(WHAT)?)),
            ValueType::U64 => Value::U64(u64::from_le_bytes(self.array(WHAT)?)),
            ValueType::I64 => Value::I64(i64::from_le_bytes(self.array(WHAT)?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(self.array(WHAT)?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(self.array(WHAT)?)),
            ValueType::Bool => {
                let offset = self.offset();
                Value::Bool(to_bool(u8::from_le_bytes(self.array(WHAT)?), offset)?)
            }
            ValueType::String => Value::String(self.string("the string")?),
            ValueType::Array => Value::Array(self.array_value(depth)?),
        })
    }

    /// An array: element type, count, elements. Every element is checked here, so that iterating cannot fail later.
    fn array_value(&mut self, depth: usize) -> Result<Array<'a>, Fault> {
        if depth == MAX_ARRAY_DEPTH {
            return Err(Fault { offset: self.offset(), kind: FaultKind::Nesting });
        }
        let elem = self.value_type()?;
        let len = self.count("array elements", elem.min_bytes())?;
        let start = self.pos;
        match elem {
            ValueType::String => return self.strings(len),
            ValueType::Array => {
                for _ in 0..len {
                    self.array_value(depth + 1)?;
                }
            }
            ValueType::Bool => {
                for (i, &b) in self.take(len, "the array")?.iter().enumerate() {
                    to_bool(b, (start + i) as u64)?;
                }
            }
            // `count` has just bounded the product by the bytes that remain.
            _ => {
                self.take(len * elem.min_bytes(), "the array")?;
            }
        }
        Ok(Array::new(elem, len as usize, &self.bytes[start..self.pos]))
    }

    /// The elements of an array of strings.
    fn strings(&mut self, len: u64) -> Result<Array<'a>, Fault> {
        const WHAT: &str = "the string";
        let start = *self;
        let mut all_short = true;
        for _ in 0..len {
            let n = self.u64(WHAT)?;
            all_short &= n < 0x80;
            self.take(n, WHAT)?;
        }
        // The prefix of a string under 128 bytes is itself ASCII and no character spans it, so if the whole is UTF-8, so
        // is each string. One long check is faster than many short ones, and then the strings are slices of one text.
        let bytes = &self.bytes[start.pos..self.pos];
        if all_short && let Ok(text) = std::str::from_utf8(bytes) {
            return Ok(Array::of_text(len as usize, text));
        }
        let mut each = start;
        for _ in 0..len {
            each.string(WHAT)?;
        }
        Ok(Array::new(ValueType::String, len as usize, bytes))
    }
}

fn to_bool(found: u8, offset: u64) -> Result<bool, Fault> {
    match found {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Fault { offset, kind: FaultKind::NotBool { found } }),
    }
}
