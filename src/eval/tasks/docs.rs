//! Fields of a question as data sets have them: numbers that are strings, choices as lists or as objects of lists.

use serde_json::{Map, Value};

/// One question as it stands in a file.
pub struct Doc<'a>(&'a Map<String, Value>);

impl<'a> Doc<'a> {
    /// `value`, which must be an object.
    pub fn new(value: &'a Value) -> Result<Self, String> {
        value.as_object().map(Doc).ok_or_else(|| "expected an object such as {\"context\": ...}".into())
    }

    /// Whether there is such a field with anything in it.
    pub fn has(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|v| !v.is_null())
    }

    fn get(&self, key: &str) -> Result<&'a Value, String> {
        self.0.get(key).filter(|v| !v.is_null()).ok_or_else(|| {
            let have: Vec<_> = self.0.keys().take(12).map(String::as_str).collect();
            format!("no field '{key}', only {}", have.join(", "))
        })
    }

    /// A text.
    pub fn str(&self, key: &str) -> Result<&'a str, String> {
        self.get(key)?.as_str().ok_or_else(|| format!("'{key}': expected a text"))
    }

    /// An object.
    pub fn object(&self, key: &str) -> Result<Doc<'a>, String> {
        self.get(key)?.as_object().map(Doc).ok_or_else(|| format!("'{key}': expected an object"))
    }

    /// Names and values of the fields.
    pub fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.0.iter()
    }

    /// A list of texts.
    pub fn strs(&self, key: &str) -> Result<Vec<String>, String> {
        let all = self.get(key)?.as_array().and_then(|a| a.iter().map(|v| v.as_str().map(String::from)).collect());
        all.ok_or_else(|| format!("'{key}': expected a list of texts"))
    }

    /// A list of whole numbers.
    pub fn numbers(&self, key: &str) -> Result<Vec<i64>, String> {
        let all = self.get(key)?.as_array().and_then(|a| a.iter().map(number).collect());
        all.ok_or_else(|| format!("'{key}': expected a list of whole numbers"))
    }

    /// A whole number that is not negative, as a number, a truth value or a string of digits.
    pub fn index(&self, key: &str) -> Result<usize, String> {
        let value = self.get(key)?;
        let n = number(value).ok_or_else(|| format!("'{key}' is {value}, expected a number"))?;
        usize::try_from(n).map_err(|_| format!("'{key}' is {n}: this split has no answers"))
    }

    /// The number of a choice, given as a number or as its letter.
    pub fn index_or_letter(&self, key: &str) -> Result<usize, String> {
        let value = self.get(key)?;
        match value.as_str().map(|s| s.trim().as_bytes()) {
            Some([letter @ b'A'..=b'Z']) => Ok(usize::from(letter - b'A')),
            _ if number(value).is_none() => {
                Err(format!("'{key}' is {value}, expected the number of a choice, from 0, or its letter, from A"))
            }
            _ => self.index(key),
        }
    }

    /// Choices and their labels: `{"text": [...], "label": [...]}` or `[{"text": ..., "label": ...}, ...]`.
    pub fn labelled(&self, key: &str) -> Result<(Vec<String>, Vec<String>), String> {
        match self.get(key)? {
            Value::Object(o) => Ok((Doc(o).strs("text")?, Doc(o).strs("label")?)),
            Value::Array(all) => {
                let pair = |v: &Value| -> Result<(String, String), String> {
                    let doc = Doc::new(v).map_err(|_| format!("'{key}': expected choices with text and label"))?;
                    Ok((doc.str("text")?.into(), doc.str("label")?.into()))
                };
                Ok(all.iter().map(pair).collect::<Result<Vec<_>, _>>()?.into_iter().unzip())
            }
            _ => Err(format!("'{key}': expected choices with text and label")),
        }
    }
}

/// A whole number in any of its forms.
fn number(v: &Value) -> Option<i64> {
    match v {
        // Tables of numbers with gaps are known to be written as 1.0.
        Value::Number(n) => n.as_i64().or_else(|| n.as_f64().filter(|f| f.fract() == 0.0).map(|f| f as i64)),
        Value::Bool(b) => Some(i64::from(*b)),
        Value::String(s) => s.trim().parse().ok(),
        _ => None,
    }
}
