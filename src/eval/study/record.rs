//! Records of cells: a JSON object a line, added as cells finish. A line that a kill cut off is as if it were not there.

use super::grid::Cell;
use crate::eval::json_fault;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// How a cell ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Everything was measured.
    Ok,
    /// It could not be measured; [`Record::error`] says why.
    Failed,
}

/// What is known of one cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Hash of all that the measurement depends on; cells with the same key need not be measured again.
    pub key: String,
    /// The cell's place in the grid.
    pub index: usize,
    /// The combination.
    pub cell: Cell,
    /// How it ended.
    pub status: Status,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Perplexity, divergence from the baseline, benchmarks: the same in every run.
    #[serde(default)]
    pub quality: Value,
    /// Tokens per second, time to the first token.
    #[serde(default)]
    pub speed: Value,
    /// Bytes.
    #[serde(default)]
    pub memory: Value,
    /// Hashes, settings, machine, version, time.
    #[serde(default)]
    pub provenance: Value,
}

impl Record {
    /// A number by its path: `/quality/divergence/kld/value`.
    pub fn number(&self, pointer: &str) -> Option<f64> {
        let (head, rest) = pointer.strip_prefix('/')?.split_once('/')?;
        let part = match head {
            "quality" => &self.quality,
            "speed" => &self.speed,
            "memory" => &self.memory,
            _ => &self.provenance,
        };
        part.pointer(&format!("/{rest}"))?.as_f64()
    }

    /// A number of what was measured for a benchmark, whose name may be a path: `value` or `error` of a metric.
    pub fn of_task(&self, task: &str, metric: &str, part: &str) -> Option<f64> {
        self.quality.get("tasks")?.get(task)?.get(metric)?.get(part)?.as_f64()
    }

    /// Tokens per second of the test called `name`.
    pub fn rate(&self, name: &str) -> Option<f64> {
        let tests = self.speed.get("tests")?.as_array()?;
        tests.iter().find(|t| t["test"] == name)?["mean"].as_f64()
    }
}

/// The records in the file at `path`; none where there is no file.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] naming the line that is no record, unless it is the last and cut off.
pub fn read_records(path: &Path) -> Result<Vec<Record>> {
    let text = match std::fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::Io { path: path.into(), source }),
    };
    let mut records = Vec::new();
    for (i, line) in text.split_inclusive('\n').enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        match serde_json::from_str(line) {
            Ok(record) => records.push(record),
            Err(_) if !line.ends_with('\n') => break,
            Err(e) => {
                let place = format!("{}:{}", path.display(), i + 1);
                return Err(Error::Data { place, what: format!("not a record of a study: {}", json_fault(&e)) });
            }
        }
    }
    Ok(records)
}

/// The records of several files as one list in the grid's order: of several of one cell the last that succeeded, or the last. A
/// study whose settings changed has older records of its cells, too. Two names for the same file are two cells.
pub fn join(all: impl IntoIterator<Item = Record>) -> Vec<Record> {
    let mut joined: Vec<Record> = Vec::new();
    for record in all {
        let of_this_cell = |r: &&mut Record| r.cell.names() == record.cell.names();
        match joined.iter_mut().find(of_this_cell) {
            Some(old) if record.status == Status::Ok || old.status == Status::Failed => *old = record,
            Some(_) => {}
            None => joined.push(record),
        }
    }
    joined.sort_by(|a, b| a.index.cmp(&b.index).then_with(|| a.key.cmp(&b.key)));
    joined
}

#[cfg(test)]
pub mod tests {
    use super::super::grid::Quant;
    use super::*;
    use serde_json::json;

    /// A record with round figures.
    pub fn record(index: usize, quant: &str, sharing: &str, ln_ratio: f64, status: Status) -> Record {
        let cell = Cell {
            model: "m".into(),
            quant: quant.into(),
            sharing: sharing.into(),
            kv: "f16".into(),
            weights: Quant::File("m.gguf".into()),
            baseline: "m.gguf".into(),
            share: None,
            lisa: None,
        };
        let value = |v: f64| json!({ "value": v, "error": 0.01 });
        Record {
            key: format!("{quant}{sharing}"),
            index,
            cell,
            status,
            error: (status == Status::Failed).then(|| "it broke".into()),
            quality: json!({ "divergence": { "ppl": value(20.0 * ln_ratio.exp()), "ppl_base": value(20.0),
                "ln_ppl_ratio": value(ln_ratio), "kld": value(ln_ratio.abs()), "same_top_p": value(0.9) } }),
            speed: json!({ "tests": [{ "test": "pp512", "mean": 100.0, "deviation": 1.0 },
                { "test": "tg64", "mean": 50.0 + 10.0 * ln_ratio, "deviation": 1.0 }], "time_to_first_token_ms": 5120.0 }),
            memory: json!({ "weight_bytes": (1u64 << 26) + (1 << 22) * index as u64, "peak_rss_bytes": 1u64 << 27, "kv_bytes_per_token": 23040, "kv_bytes_of_context": 4096 * 23040 }),
            provenance: json!({ "version": "1", "cpu": "a CPU", "threads": 2 }),
        }
    }

    #[test]
    fn a_line_that_was_cut_off_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.jsonl");
        assert!(read_records(&path).unwrap().is_empty());
        let line = |i| serde_json::to_string(&record(i, &i.to_string(), "none", 0.1, Status::Ok)).unwrap();
        std::fs::write(&path, format!("{}\n{}\n{}", line(0), line(1), &line(2)[..40])).unwrap();
        let read = read_records(&path).unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!(read[1], record(1, "1", "none", 0.1, Status::Ok));
        std::fs::write(&path, format!("{}\nnonsense\n{}\n", line(0), line(1))).unwrap();
        assert!(read_records(&path).unwrap_err().to_string().contains("r.jsonl:2"));
    }

    #[test]
    fn joining_keeps_what_succeeded_in_the_order_of_the_grid() {
        let all = [
            record(1, "b", "none", 0.2, Status::Ok),
            record(0, "a", "none", 0.1, Status::Failed),
            record(1, "b", "none", 0.2, Status::Failed),
            record(0, "a", "none", 0.1, Status::Ok),
        ];
        let joined = join(all);
        assert_eq!(joined.iter().map(|r| (r.index, r.status)).collect::<Vec<_>>(), [(0, Status::Ok), (1, Status::Ok)]);
        // The same measurement under another name.
        let twin = Record { key: "bnone".into(), ..record(2, "twin", "none", 0.2, Status::Ok) };
        assert_eq!(join(joined.clone().into_iter().chain([twin])).len(), 3);
        // Measured again with other settings.
        let again = Record { key: "other".into(), ..record(1, "b", "none", 0.3, Status::Ok) };
        assert_eq!(join(joined.into_iter().chain([again.clone()]))[1], again);
    }

    #[test]
    fn figures_by_name() {
        let r = record(0, "a", "none", 0.0, Status::Ok);
        assert_eq!(r.number("/quality/divergence/ppl/value"), Some(20.0));
        assert_eq!((r.rate("tg64"), r.rate("tg128")), (Some(50.0), None));
    }
}
