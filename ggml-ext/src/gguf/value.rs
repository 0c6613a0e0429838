//! Metadata values.

use std::fmt;

use super::cursor::Cursor;

macro_rules! value_types {
    ($($variant:ident = $id:literal, $name:literal, $min:literal;)*) => {
        /// The type of a metadata value, by its id in the format.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs)]
        pub enum ValueType { $($variant = $id,)* }

        impl ValueType {
            /// The type with this id.
            pub const fn from_id(id: u32) -> Option<Self> {
                match id { $($id => Some(ValueType::$variant),)* _ => None }
            }
            /// The type's name, e.g. `u32`.
            pub const fn name(self) -> &'static str {
                match self { $(ValueType::$variant => $name,)* }
            }
            /// Bytes of a value; for strings and arrays those of an empty one.
            pub const fn min_bytes(self) -> u64 {
                match self { $(ValueType::$variant => $min,)* }
            }
        }
    };
}

value_types! {
    U8 = 0, "u8", 1;
    I8 = 1, "i8", 1;
    U16 = 2, "u16", 2;
    I16 = 3, "i16", 2;
    U32 = 4, "u32", 4;
    I32 = 5, "i32", 4;
    F32 = 6, "f32", 4;
    Bool = 7, "bool", 1;
    String = 8, "string", 8;
    Array = 9, "array", 12;
    U64 = 10, "u64", 8;
    I64 = 11, "i64", 8;
    F64 = 12, "f64", 8;
}

impl ValueType {
    /// The type's id in the format.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// True for the eight integer types.
    pub const fn is_int(self) -> bool {
        use ValueType::*;
        matches!(self, U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64)
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A metadata value. Strings and arrays borrow from the file.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(&'a str),
    Array(Array<'a>),
}

impl<'a> Value<'a> {
    /// The value's type.
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F32(_) => ValueType::F32,
            Value::F64(_) => ValueType::F64,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
        }
    }

    /// The type in words, with the element type of an array: `u32`, `array of string`.
    pub fn type_name(&self) -> String {
        match self {
            Value::Array(a) => format!("array of {}", a.elem_type()),
            other => other.value_type().to_string(),
        }
    }

    /// The value of any integer type; `None` for the other types.
    pub fn as_int(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            _ => return None,
        })
    }

    /// The value of type f32 or f64, the latter rounded; `None` for the other types.
    pub fn as_f32(&self) -> Option<f32> {
        match *self {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32),
            _ => None,
        }
    }

    /// The value of type bool.
    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(v) = *self { Some(v) } else { None }
    }

    /// The value of type string.
    pub fn as_str(&self) -> Option<&'a str> {
        if let Value::String(v) = *self { Some(v) } else { None }
    }

    /// The value of type array.
    pub fn as_array(&self) -> Option<Array<'a>> {
        if let Value::Array(v) = *self { Some(v) } else { None }
    }
}

/// A short text for people: strings quoted, of an array its type, length and first elements.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        match self {
            Value::U8(v) => write!(f, "{v}"),
            Value::I8(v) => write!(f, "{v}"),
            Value::U16(v) => write!(f, "{v}"),
            Value::I16(v) => write!(f, "{v}"),
            Value::U32(v) => write!(f, "{v}"),
            Value::I32(v) => write!(f, "{v}"),
            Value::U64(v) => write!(f, "{v}"),
            Value::I64(v) => write!(f, "{v}"),
            Value::F32(v) => write!(f, "{v}"),
            Value::F64(v) => write!(f, "{v}"),
            Value::Bool(v) => write!(f, "{v}"),
            Value::String(v) => write!(f, "{v:?}"),
            Value::Array(a) => {
                write!(f, "{}[{}] [", a.elem_type(), a.len())?;
                for (i, v) in a.iter().take(SHOWN).enumerate() {
                    write!(f, "{}{v}", if i > 0 { ", " } else { "" })?;
                }
                f.write_str(if a.len() > SHOWN { ", ...]" } else { "]" })
            }
        }
    }
}

/// An array of values of one type, kept as the file's bytes. Its elements were checked when the file was parsed.
#[derive(Clone, Copy, PartialEq)]
pub struct Array<'a> {
    elem: ValueType,
    len: usize,
    elems: Elements<'a>,
}

/// The bytes of an array's elements.
#[derive(Clone, Copy, PartialEq)]
enum Elements<'a> {
    Bytes(&'a [u8]),
    /// Strings, each of which together with its length prefix is a piece of this text.
    Text(&'a str),
}

impl<'a> Array<'a> {
    pub(super) fn new(elem: ValueType, len: usize, bytes: &'a [u8]) -> Self {
        Array { elem, len, elems: Elements::Bytes(bytes) }
    }

    /// An array of strings whose length prefixes are UTF-8 too.
    pub(super) fn of_text(len: usize, text: &'a str) -> Self {
        Array { elem: ValueType::String, len, elems: Elements::Text(text) }
    }

    /// The type of the elements.
    pub fn elem_type(&self) -> ValueType {
        self.elem
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for an array without elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements as they stand in the file: little-endian, strings and inner arrays with their length prefixes.
    pub fn bytes(&self) -> &'a [u8] {
        match self.elems {
            Elements::Bytes(bytes) => bytes,
            Elements::Text(text) => text.as_bytes(),
        }
    }

    /// The elements.
    pub fn iter(&self) -> ArrayIter<'a> {
        ArrayIter { elem: self.elem, left: self.len, cursor: Cursor::new(self.bytes()) }
    }

    /// The array as strings; `None` when its elements are of another type.
    pub fn strings(&self) -> Option<StringArray<'a>> {
        (self.elem == ValueType::String).then_some(StringArray { len: self.len, elems: self.elems })
    }

    /// The elements if they are f32 or f64, the latter rounded.
    pub fn f32s(&self) -> Option<Vec<f32>> {
        match self.elem {
            ValueType::F32 => {
                let (chunks, _) = self.bytes().as_chunks::<4>();
                Some(chunks.iter().map(|&b| f32::from_le_bytes(b)).collect())
            }
            ValueType::F64 => {
                let (chunks, _) = self.bytes().as_chunks::<8>();
                Some(chunks.iter().map(|&b| f64::from_le_bytes(b) as f32).collect())
            }
            _ => None,
        }
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Value::Array(*self), f)
    }
}

/// The elements of an [`Array`].
#[derive(Debug, Clone)]
pub struct ArrayIter<'a> {
    elem: ValueType,
    left: usize,
    cursor: Cursor<'a>,
}

impl<'a> Iterator for ArrayIter<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        // The bytes were checked by the parser, which allowed no deeper nesting than one that starts from 0 here.
        self.cursor.value(self.elem, 0).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for ArrayIter<'_> {}

/// An array of strings, such as a vocabulary.
#[derive(Clone, Copy)]
pub struct StringArray<'a> {
    len: usize,
    elems: Elements<'a>,
}

impl<'a> StringArray<'a> {
    /// The number of strings.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for an array without strings.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The strings in order.
    pub fn iter(&self) -> StringIter<'a> {
        let (text, bytes) = match self.elems {
            Elements::Bytes(bytes) => (None, bytes),
            Elements::Text(text) => (Some(text), text.as_bytes()),
        };
        StringIter { left: self.len, text, cursor: Cursor::new(bytes) }
    }
}

impl fmt::Debug for StringArray<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a> IntoIterator for StringArray<'a> {
    type Item = &'a str;
    type IntoIter = StringIter<'a>;

    fn into_iter(self) -> StringIter<'a> {
        self.iter()
    }
}

/// The strings of a [`StringArray`].
#[derive(Debug, Clone)]
pub struct StringIter<'a> {
    left: usize,
    /// The same bytes as the cursor's, if they are UTF-8 with the length prefixes.
    text: Option<&'a str>,
    cursor: Cursor<'a>,
}

impl<'a> Iterator for StringIter<'a> {
    type Item = &'a str;

    #[inline]
    fn next(&mut self) -> Option<&'a str> {
        const WHAT: &str = "the string";
        self.left = self.left.checked_sub(1)?;
        let Some(text) = self.text else {
            return self.cursor.string(WHAT).ok();
        };
        let len = self.cursor.u64(WHAT).ok()?;
        let start = self.cursor.offset() as usize;
        self.cursor.take(len, WHAT).ok()?;
        text.get(start..self.cursor.offset() as usize)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for StringIter<'_> {}
