//! The formats of the results.

use super::record::{BACKEND, Record, millions};
use crate::cli::error::CliError;
use crate::cli::memory::human;
use clap::ValueEnum;
use serde_json::{Map, Value};
use std::io::Write;

/// `llama-bench`'s output formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table
    Md,
    /// Comma-separated values, with a header
    Csv,
    /// An array of objects
    Json,
    /// An object on each line
    Jsonl,
    /// A table for a database
    Sql,
}

/// Writes results as they come.
pub struct Printer<'w> {
    format: Format,
    out: Box<dyn Write + 'w>,
    n: usize,
    roofline: bool,
}

/// Columns of the Markdown table with their widths; a minus: left-aligned.
const COLUMNS: [(&str, i32); 11] = [
    ("model", -30),
    ("size", 10),
    ("params", 10),
    ("backend", 10),
    ("threads", 7),
    ("batch", 9),
    ("k, v", 10),
    ("memory", 10),
    ("cache", 10),
    ("test", 15),
    ("t/s", 16),
];

impl<'w> Printer<'w> {
    /// A printer to `out`; `roofline` tells whether there are limits to show.
    pub fn new(format: Format, out: Box<dyn Write + 'w>, roofline: bool) -> Self {
        Self { format, out, n: 0, roofline }
    }

    /// Prints one result.
    pub fn print(&mut self, record: &Record) -> Result<(), CliError> {
        if self.n == 0 {
            self.header(record)?;
        }
        let out = &mut self.out;
        match self.format {
            Format::Md => writeln!(out, "{}", table_row(&cells(record, self.roofline)))?,
            Format::Csv => {
                let values: Vec<_> = record.fields().values().map(|v| quoted(&plain(v), '"')).collect();
                writeln!(out, "{}", values.join(","))?;
            }
            Format::Json => {
                let object =
                    serde_json::to_string_pretty(&record.fields_and_samples()).map_err(std::io::Error::from)?;
                let object = object.replace('\n', "\n  ");
                write!(out, "{}\n  {object}", if self.n == 0 { "[" } else { "," })?;
            }
            Format::Jsonl => writeln!(out, "{}", Value::Object(record.fields_and_samples()))?,
            Format::Sql => writeln!(out, "{}", insert(&record.fields()))?,
        }
        self.n += 1;
        Ok(out.flush()?)
    }

    /// Ends the output, if there is any.
    pub fn finish(mut self) -> Result<(), CliError> {
        if self.format == Format::Json && self.n > 0 {
            writeln!(self.out, "\n]")?;
        }
        Ok(self.out.flush()?)
    }

    fn header(&mut self, record: &Record) -> Result<(), CliError> {
        let out = &mut self.out;
        match self.format {
            Format::Md => {
                let columns = || COLUMNS.into_iter().chain(self.roofline.then_some(("of limit", 8)));
                let names: Vec<_> = columns().map(|(name, width)| aligned(name, width)).collect();
                let rules: Vec<_> = columns()
                    .map(|(_, width)| "-".repeat(width.unsigned_abs() as usize - 1) + if width < 0 { "-" } else { ":" })
                    .collect();
                writeln!(out, "| {} |\n| {} |", names.join(" | "), rules.join(" | "))?;
            }
            Format::Csv => {
                let names: Vec<_> = record.fields().keys().cloned().collect();
                writeln!(out, "{}", names.join(","))?;
            }
            Format::Sql => writeln!(out, "{}\n", create(&record.fields()))?,
            Format::Json | Format::Jsonl => {}
        }
        Ok(())
    }
}

fn aligned(text: &str, width: i32) -> String {
    let n = width.unsigned_abs() as usize;
    if width < 0 { format!("{text:<n$}") } else { format!("{text:>n$}") }
}

fn table_row(cells: &[String]) -> String {
    let columns = COLUMNS.into_iter().chain([("of limit", 8)]);
    let cells: Vec<_> = cells.iter().zip(columns).map(|(cell, (_, width))| aligned(cell, width)).collect();
    format!("| {} |", cells.join(" | "))
}

fn cells(record: &Record, roofline: bool) -> Vec<String> {
    let (m, p) = (record.model, record.params);
    let (mean, deviation) = record.rate();
    let mut cells = vec![
        record.model_type(),
        human(m.n_tensor_bytes()),
        millions(m.n_params()),
        BACKEND.into(),
        p.n_threads.to_string(),
        format!("{}/{}", p.n_batch, p.n_ubatch),
        format!("{}, {}", p.cache_type_k, p.cache_type_v),
        record.peak_memory.map_or("unknown".into(), human),
        human(record.kv_bytes() as u64),
        record.measurement.test.to_string(),
        format!("{mean:.2} ± {deviation:.2}"),
    ];
    if roofline {
        cells.push(record.limit().map_or(String::new(), |f| format!("{:.1} %", 100.0 * f)));
    }
    cells
}

/// A value without JSON's quotes; truth values are numbers, as `llama-bench` writes them outside of JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Null => String::new(),
        Value::Bool(b) => u8::from(*b).to_string(),
        other => other.to_string(),
    }
}

/// `text` between quotes, with those inside doubled.
fn quoted(text: &str, quote: char) -> String {
    let doubled: String = [quote, quote].iter().collect();
    format!("{quote}{}{quote}", text.replace(quote, &doubled))
}

fn create(fields: &Map<String, Value>) -> String {
    let ty = |value: &Value| match value {
        Value::Number(n) if n.is_f64() => "REAL",
        Value::Number(_) | Value::Bool(_) => "INTEGER",
        _ => "TEXT",
    };
    let columns: Vec<_> =
        fields.iter().map(|(name, value)| format!("  {name} {}", sql_type(name, ty(value)))).collect();
    format!("CREATE TABLE IF NOT EXISTS llama_bench (\n{}\n);", columns.join(",\n"))
}

/// The type of a column, also where the first record has nothing in it.
fn sql_type<'t>(name: &str, seen: &'t str) -> &'t str {
    match name {
        "peak_memory_bytes" => "INTEGER",
        "read_bytes_per_second" | "macs_per_second" | "fraction_of_limit" => "REAL",
        _ => seen,
    }
}

fn insert(fields: &Map<String, Value>) -> String {
    let names: Vec<_> = fields.keys().cloned().collect();
    let value = |value: &Value| match value {
        Value::Null => "NULL".into(),
        Value::Bool(_) | Value::Number(_) => plain(value),
        other => quoted(&plain(other), '\''),
    };
    let values: Vec<_> = fields.values().map(value).collect();
    format!("INSERT INTO llama_bench ({}) VALUES ({});", names.join(", "), values.join(", "))
}
