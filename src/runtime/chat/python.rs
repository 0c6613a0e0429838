//! What chat templates expect of Jinja2 in Python beyond minijinja's own: string methods, `tojson` as `json.dumps` writes it,
//! Python's spelling of printed values, `raise_exception`, `strftime_now`, and Hugging Face's `{% generation %}` blocks.

use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};

/// The kind and the beginning of the detail of an error that the template itself raised.
pub(super) const RAISED: ErrorKind = ErrorKind::InvalidOperation;
pub(super) const RAISED_PREFIX: &str = "raise_exception: ";

pub(super) fn install(env: &mut Environment<'static>) {
    minijinja_contrib::add_to_environment(env);
    env.set_unknown_method_callback(method);
    env.set_formatter(|out, state, value| match float_repr(value) {
        Some(text) => minijinja::escape_formatter(out, state, &Value::from(text)),
        None => minijinja::escape_formatter(out, state, value),
    });
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(RAISED, format!("{RAISED_PREFIX}{message}")))
    });
    env.add_function("strftime_now", strftime_now);
    env.add_filter("tojson", tojson);
    env.add_filter("default", default);
    env.add_filter("d", default);
    env.add_filter("wordcount", |s: &str| s.split_whitespace().count());
    env.add_filter("truncate", truncate);
    env.add_filter("center", |s: &str, width: Option<usize>| pad(s, width.unwrap_or(80), ' ', Side::Both));
    // In Python a string is a sequence, and so is anything with a length and an index.
    env.add_test("sequence", |v: &Value| matches!(v.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map));
    env.add_test("iterable", |v: &Value| {
        matches!(v.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Iterable)
    });
    // Functions, macros and namespace-like objects are all this prints as plain.
    env.add_test("callable", |v: &Value| matches!(v.kind(), ValueKind::Plain));
}

/// `default(value, other, boolean=false)`.
fn default(value: &Value, other: Option<Value>, lax: Option<bool>, args: Kwargs) -> Result<Value, Error> {
    let other = match other {
        Some(other) => other,
        None => args.get::<Option<Value>>("default_value")?.unwrap_or_else(|| Value::from("")),
    };
    let lax = match lax {
        Some(lax) => lax,
        None => args.get::<Option<bool>>("boolean")?.unwrap_or(false),
    };
    args.assert_all_used()?;
    let absent = value.is_undefined() || (lax && !value.is_true());
    Ok(if absent { other } else { value.clone() })
}

/// `truncate(value, length=255, killwords=false, end='...', leeway=5)`: whole words, and nothing for the sake of a few characters.
fn truncate(
    s: &str,
    length: Option<usize>,
    kill_words: Option<bool>,
    end: Option<String>,
    named: Kwargs,
) -> Result<String, Error> {
    let length = length.map_or_else(|| named.get::<Option<usize>>("length"), |n| Ok(Some(n)))?.unwrap_or(255);
    let kill_words = kill_words.map_or_else(|| named.get::<Option<bool>>("killwords"), |b| Ok(Some(b)))?;
    let end = end.map_or_else(|| named.get::<Option<String>>("end"), |e| Ok(Some(e)))?.unwrap_or_else(|| "...".into());
    let leeway = named.get::<Option<usize>>("leeway")?.unwrap_or(5);
    named.assert_all_used()?;
    if s.chars().count() <= length.saturating_add(leeway) {
        return Ok(s.to_owned());
    }
    let Some(kept) = length.checked_sub(end.chars().count()) else {
        let what = format!("truncate: expected a length of at least {}, got {length}", end.chars().count());
        return Err(Error::new(ErrorKind::InvalidOperation, what));
    };
    let cut: String = s.chars().take(kept).collect();
    let words =
        if kill_words.unwrap_or(false) { &cut[..] } else { cut.rsplit_once(' ').map_or(&cut[..], |(words, _)| words) };
    Ok(words.to_owned() + &end)
}

/// A float as Python prints it; `None` for everything else.
fn float_repr(value: &Value) -> Option<String> {
    if value.kind() != ValueKind::Number || value.is_integer() {
        return None;
    }
    let x = f64::try_from(value.clone()).ok()?;
    let (digits, exponent) = match format!("{x:e}").split_once('e') {
        Some((d, e)) => (d.to_string(), e.parse::<i32>().ok()?),
        None => return None,
    };
    // Python leaves positional notation at 1e16 and below 1e-4.
    (x != 0.0 && !(-4..16).contains(&exponent))
        .then(|| format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()))
}

/// The string, list and dict methods that minijinja's own compatibility layer lacks, then that layer.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let (Some(s), true, [what, range @ ..]) = (value.as_str(), SEARCHES.contains(&name), args)
        && !range.is_empty()
    {
        return search(state, s, name, what, range);
    }
    let found = match value.kind() {
        ValueKind::String => string_method(value.as_str().unwrap_or_default(), name, args)?,
        ValueKind::Seq => list_method(value, name, args)?,
        ValueKind::Map if name == "copy" => Some(value.clone()),
        _ => None,
    };
    match found {
        Some(result) => Ok(result),
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// The string methods that can be told where to begin and where to end.
const SEARCHES: [&str; 7] = ["find", "rfind", "index", "rindex", "count", "startswith", "endswith"];

/// One of [`SEARCHES`] in the characters from `range[0]` to `range[1]`, which count from the end where they are negative.
fn search(state: &mut State, s: &str, name: &str, what: &Value, range: &[Value]) -> Result<Value, Error> {
    let (start, end): (Option<i64>, Option<i64>) = from_args(range)?;
    let n = s.chars().count() as i64;
    let place = |i: i64| if i < 0 { (i + n).max(0) } else { i };
    let (start, end) = (place(start.unwrap_or(0)), place(end.unwrap_or(n)).min(n));
    if start > end {
        return match name {
            "find" | "rfind" => Ok(Value::from(-1)),
            "index" | "rindex" => Err(Error::new(ErrorKind::InvalidOperation, "substring not found")),
            "count" => Ok(Value::from(0)),
            _ => Ok(Value::from(false)),
        };
    }
    let part: String = s.chars().skip(start as usize).take((end - start) as usize).collect();
    let found = method(state, &Value::from(part), name, std::slice::from_ref(what))?;
    Ok(match (name, i64::try_from(found.clone())) {
        ("find" | "rfind" | "index" | "rindex", Ok(at)) if at >= 0 => Value::from(at + start),
        _ => found,
    })
}

fn list_method(value: &Value, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    match name {
        "index" => {
            let (what,): (&Value,) = from_args(args)?;
            match value.try_iter()?.position(|v| v == *what) {
                Some(i) => Ok(Some(Value::from(i))),
                None => Err(Error::new(ErrorKind::InvalidOperation, format!("{what} is not in list"))),
            }
        }
        "copy" => Ok(Some(value.clone())),
        _ => Ok(None),
    }
}

fn string_method(s: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let chars_before = |at: usize| s[..at].chars().count();
    Ok(Some(match name {
        "index" | "rindex" => {
            let (what,): (&str,) = from_args(args)?;
            let at = if name == "index" { s.find(what) } else { s.rfind(what) };
            match at {
                Some(at) => Value::from(chars_before(at)),
                None => return Err(Error::new(ErrorKind::InvalidOperation, "substring not found")),
            }
        }
        "rsplit" => {
            let (separator, max): (Option<&str>, Option<i64>) = from_args(args)?;
            let max = max.and_then(|m| usize::try_from(m).ok()).unwrap_or(usize::MAX);
            let mut parts: Vec<Value> = match separator {
                Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
                Some(sep) => s.rsplitn(max.saturating_add(1), sep).map(Value::from).collect(),
                None => rsplit_whitespace(s, max),
            };
            parts.reverse();
            Value::from(parts)
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (at, missing) = match name {
                "partition" => (s.find(separator), [s, "", ""]),
                _ => (s.rfind(separator), ["", "", s]),
            };
            let parts = at.map_or(missing, |at| [&s[..at], separator, &s[at + separator.len()..]]);
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(s.strip_prefix(prefix).unwrap_or(s))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(s.strip_suffix(suffix).unwrap_or(s))
        }
        "swapcase" => Value::from(
            s.chars()
                .flat_map(|c| {
                    if c.is_lowercase() { c.to_uppercase().collect() } else { c.to_lowercase().collect::<Vec<_>>() }
                })
                .collect::<String>(),
        ),
        "casefold" => Value::from(s.to_lowercase()),
        "isdecimal" => Value::from(!s.is_empty() && s.chars().all(|c| c.is_ascii_digit())),
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = s.split_at(usize::from(s.starts_with(['+', '-'])));
            Value::from(sign.to_string() + &pad(digits, width.saturating_sub(sign.len()), '0', Side::Left)?)
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<&str>) = from_args(args)?;
            let fill = fill.and_then(|f| f.chars().next()).unwrap_or(' ');
            let side = match name {
                "ljust" => Side::Right,
                "rjust" => Side::Left,
                _ => Side::Both,
            };
            Value::from(pad(s, width, fill, side)?)
        }
        _ => return Ok(None),
    }))
}

/// At most `max` fields from the end, last first; what is left over comes as one.
fn rsplit_whitespace(s: &str, max: usize) -> Vec<Value> {
    let mut parts = Vec::new();
    let mut rest = s.trim();
    while !rest.is_empty() {
        let cut = if parts.len() < max { rest.rfind(char::is_whitespace) } else { None };
        let Some(cut) = cut else {
            parts.push(Value::from(rest));
            break;
        };
        let field = rest[cut..].trim_start();
        parts.push(Value::from(field));
        rest = rest[..cut].trim_end();
    }
    parts
}

enum Side {
    Left,
    Right,
    Both,
}

fn pad(s: &str, width: usize, fill: char, side: Side) -> Result<String, Error> {
    // The width comes from the template, and must not become an allocation of any size.
    if width > 10_000 {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("width {width} is too large")));
    }
    let missing = width.saturating_sub(s.chars().count());
    let left = match side {
        Side::Left => missing,
        Side::Right => 0,
        // Python puts the odd one left when the width is odd.
        Side::Both => missing / 2 + (missing & width & 1),
    };
    let run = |n: usize| std::iter::repeat_n(fill, n);
    Ok(run(left).chain(s.chars()).chain(run(missing - left)).collect())
}

/// Makes the text acceptable to minijinja: line ends become `\n`, as Jinja2 does; `{% generation %}`, which only marks what
/// the assistant says, becomes a block that renders its body.
pub(super) fn adapt_syntax(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = source.as_str();
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
            ValueKind::Number => self.out.push_str(&float_repr(v).unwrap_or_else(|| v.to_string())),
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
                    match (k.as_str(), k.kind()) {
                        (Some(s), _) => self.string(s),
                        (_, ValueKind::None) => self.string("null"),
                        (_, ValueKind::Bool) => self.string(if k.is_true() { "true" } else { "false" }),
                        _ => self.string(&float_repr(&k).unwrap_or_else(|| k.to_string())),
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
