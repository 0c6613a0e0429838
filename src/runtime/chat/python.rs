//! What chat templates expect of Jinja2 in Python beyond minijinja's own: string methods, `tojson` as `json.dumps` writes it,
//! Python's spelling of printed values, `raise_exception`, `strftime_now`, and Hugging Face's `{% generation %}` blocks.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};

/// The kind and the beginning of the detail of an error that the template itself raised.
pub(super) const RAISED: ErrorKind = ErrorKind::InvalidOperation;
pub(super) const RAISED_PREFIX: &str = "raise_exception: ";

pub(super) fn install(env: &mut Environment<'static>) {
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(RAISED, format!("{RAISED_PREFIX}{message}")))
    });
    env.add_function("strftime_now", strftime_now);
    env.add_filter("tojson", tojson);
    // In Python a string is a sequence, and so is anything with a length and an index.
    env.add_test("sequence", |v: &Value| matches!(v.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map));
    env.add_test("iterable", |v: &Value| {
        matches!(v.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Iterable)
    });
}

/// Makes the text acceptable to minijinja: `{% generation %}` only marks what the assistant says and renders its body.
pub(super) fn adapt_syntax(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let inner = &rest[start + 2..];
        let Some(end) = inner.find("%}") else { break };
        let tag = &inner[..end];
        let word = tag.trim_matches(['-', '+']).trim();
        out.push_str(&rest[..start + 2]);
        match word {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        out.push_str("%}");
        rest = &inner[end + 2..];
    }
    out.push_str(rest);
    out
}

fn strftime_now(format: String) -> Result<String, Error> {
    use std::fmt::Write;
    let mut out = String::new();
    match write!(out, "{}", chrono::Local::now().format(&format)) {
        Ok(()) => Ok(out),
        Err(_) => Err(Error::new(ErrorKind::InvalidOperation, format!("strftime_now: bad format `{format}`"))),
    }
}

/// A template value of a JSON value.
pub(super) fn from_json(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Value::from(i),
            (None, Some(u)) => Value::from(u),
            (None, None) => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => Value::from(s.as_str()),
        Json::Array(items) => items.iter().map(from_json).collect(),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(k, v)| (k.as_str(), from_json(v)))),
    }
}

/// `json.dumps(value, ensure_ascii=False)` with its parameters `indent`, `separators`, `sort_keys` and `ensure_ascii`.
fn tojson(value: &Value, indent: Option<Value>, args: Kwargs) -> Result<String, Error> {
    let indent = match indent {
        Some(i) => Some(i),
        None => args.get::<Option<Value>>("indent")?,
    };
    let indent = match indent {
        Some(v) if v.is_none() || v.is_undefined() => None,
        Some(v) => Some(match v.as_str() {
            Some(s) => s.to_string(),
            None => " ".repeat(v.as_usize().unwrap_or(0).min(64)),
        }),
        None => None,
    };
    let (mut item, mut key) = (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string());
    if let Some(pair) = args.get::<Option<Value>>("separators")?.filter(|v| !v.is_none()) {
        let part = |i| Ok::<_, Error>(pair.get_item_by_index(i)?.as_str().unwrap_or_default().to_string());
        (item, key) = (part(0)?, part(1)?);
    }
    let sort_keys = args.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let ensure_ascii = args.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    args.assert_all_used()?;
    let mut json = Json { out: String::new(), indent, item, key, sort_keys, ensure_ascii };
    json.write(value, 0)?;
    Ok(json.out)
}

struct Json {
    out: String,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
    ensure_ascii: bool,
}

impl Json {
    fn write(&mut self, v: &Value, depth: usize) -> Result<(), Error> {
        let bad = |what: String| Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}")));
        if depth > 200 {
            return bad("nested too deeply".into());
        }
        match v.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if v.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&v.to_string()),
            ValueKind::String => self.string(v.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                self.out.push('[');
                let mut any = false;
                for x in v.try_iter()? {
                    self.next(&mut any, depth);
                    self.write(&x, depth + 1)?;
                }
                self.close(any, depth, ']');
            }
            ValueKind::Map => {
                self.out.push('{');
                let mut any = false;
                let mut keys: Vec<Value> = v.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                for k in keys {
                    self.next(&mut any, depth);
                    match k.as_str() {
                        Some(s) => self.string(s),
                        None => self.string(&k.to_string()),
                    }
                    self.out.push_str(&self.key);
                    self.write(&v.get_item(&k)?, depth + 1)?;
                }
                self.close(any, depth, '}');
            }
            kind => return bad(format!("a value of type {kind} is not JSON serializable")),
        }
        Ok(())
    }

    /// What stands before an element.
    fn next(&mut self, any: &mut bool, depth: usize) {
        if *any {
            self.out.push_str(&self.item);
        }
        *any = true;
        self.line(depth + 1);
    }

    fn close(&mut self, any: bool, depth: usize, bracket: char) {
        if any {
            self.line(depth);
        }
        self.out.push(bracket);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    fn string(&mut self, s: &str) {
        use std::fmt::Write;
        self.out.push('"');
        for c in s.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.ensure_ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}
