//! Metadata that a user puts in place of a file's, for one run or in a new file: llama.cpp's `--override-kv`, and its flags about
//! RoPE.

use std::str::FromStr;

use ggml_ext::gguf::Value;

/// A key and the value it is to have.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    /// The whole key, or one that begins with a dot and follows the architecture's name: `.rope.freq_base`.
    pub key: String,
    /// The value.
    pub value: OverrideValue,
}

/// A value of one of the four types that can be given.
#[derive(Debug, Clone, PartialEq)]
pub enum OverrideValue {
    /// A whole number, in metadata u32, or i32 if it is negative.
    Int(i64),
    /// A number, in metadata f32.
    Float(f32),
    /// True or false.
    Bool(bool),
    /// Text.
    Str(String),
}

impl OverrideValue {
    /// As the metadata of a file have it.
    pub fn as_metadata(&self) -> Value<'_> {
        match *self {
            Self::Int(v) if v < 0 => i32::try_from(v).map_or(Value::I64(v), Value::I32),
            Self::Int(v) => u32::try_from(v).map_or(Value::I64(v), Value::U32),
            Self::Float(v) => Value::F32(v),
            Self::Bool(v) => Value::Bool(v),
            Self::Str(ref v) => Value::String(v),
        }
    }
}

impl Override {
    /// `key` is to be `value`.
    pub fn new(key: impl Into<String>, value: OverrideValue) -> Self {
        Self { key: key.into(), value }
    }
}

impl FromStr for Override {
    type Err = String;

    /// Reads `KEY=TYPE:VALUE`, with the types `int`, `float`, `bool` and `str`.
    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("'{text}' is not of the form KEY=TYPE:VALUE");
        let (key, typed) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(form)?;
        let (ty, value) = typed.split_once(':').ok_or_else(form)?;
        let no = |what: &str| format!("'{value}' is not {what}");
        let value = match ty {
            "int" => OverrideValue::Int(value.parse().map_err(|_| no("an integer"))?),
            "float" => OverrideValue::Float(value.parse().map_err(|_| no("a number"))?),
            "bool" => OverrideValue::Bool(value.parse().map_err(|_| no("true or false"))?),
            "str" => OverrideValue::Str(value.into()),
            _ => return Err(format!("unknown type '{ty}', expected int, float, bool or str")),
        };
        Ok(Self::new(key, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_read() {
        let read = |text: &str| text.parse::<Override>().unwrap();
        let want = |key: &str, value| Override::new(key, value);
        assert_eq!(read("a.b=int:-7"), want("a.b", OverrideValue::Int(-7)));
        assert_eq!(read("a=float:1e-5"), want("a", OverrideValue::Float(1e-5)));
        assert_eq!(read("a=bool:false"), want("a", OverrideValue::Bool(false)));
        assert_eq!(read("a=str:x=y:z"), want("a", OverrideValue::Str("x=y:z".into())));
        assert_eq!(read("a=str:"), want("a", OverrideValue::Str(String::new())));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let error = |text: &str| text.parse::<Override>().unwrap_err();
        for text in ["", "a", "a=1", "=int:1"] {
            assert!(error(text).contains("KEY=TYPE:VALUE"), "{text}");
        }
        assert_eq!(error("a=int:1.5"), "'1.5' is not an integer");
        assert_eq!(error("a=bool:yes"), "'yes' is not true or false");
        assert!(error("a=u8:1").starts_with("unknown type 'u8'"));
    }
}
