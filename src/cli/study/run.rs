//! Running the cells of a study that have no record yet.

use super::child::{self, Request};
use super::keys::{Ready, ready};
use crate::cli::error::CliError;
use crate::cli::progress::Log;
use lisa_cpp::eval::study::{Cell, Config, GridPart, Hashes, Quant, Record, Status, grid, read_records};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A record as it stands in the file.
pub fn line(record: &Record) -> String {
    serde_json::to_string(record).unwrap_or_default() + "\n"
}

/// Measures what is missing and returns the records of all cells, or of the shard's; `None` after a dry run.
pub fn cells(
    config: &Config,
    dir: &Path,
    shard: Option<GridPart>,
    dry_run: bool,
    log: Log,
) -> Result<Option<Vec<Record>>, CliError> {
    let cells: Vec<(usize, Cell)> =
        grid(config).into_iter().enumerate().filter(|(i, _)| shard.is_none_or(|s| s.has(*i))).collect();
    let file = dir.join(shard.map_or(super::RECORDS.into(), |s| format!("records-{}-of-{}.jsonl", s.i, s.n)));
    let mut store = (!dry_run).then(|| Store::open(&file)).transpose()?;
    let known = read_records(&file)?;
    let mut hashes = Hashes::default();
    let mut records = Vec::with_capacity(cells.len());
    let mut n_impossible = 0;
    // What a dry run is asked for is its answer.
    let say = |text: &str| -> Result<(), CliError> {
        if dry_run {
            writeln!(std::io::stdout(), "{text}")?;
        } else {
            log.line(text);
        }
        Ok(())
    };
    for (n, (index, cell)) in cells.iter().enumerate() {
        let name = format!("{}, {}, sharing {}, cache {}", cell.model, cell.quant, cell.sharing, cell.kv);
        let place = format!("[{}/{}] {name}", n + 1, cells.len());
        let prepared = ready(config, cell, &mut hashes);
        let old = prepared.as_ref().ok().and_then(|r| known.iter().rfind(|k| k.key == r.key && k.status == Status::Ok));
        if let Some(old) = old {
            say(&format!("{place}: measured already"))?;
            // Names and places can change without a new measurement.
            records.push(Record { index: *index, cell: cell.clone(), ..old.clone() });
            continue;
        }
        let Some(store) = &mut store else {
            match &prepared {
                Ok(_) => say(&format!("{place}: to be measured"))?,
                Err(e) => {
                    n_impossible += 1;
                    say(&format!("{place}: cannot be measured: {e}"))?;
                }
            }
            continue;
        };
        log.line(format_args!("{place} ..."));
        let start = Instant::now();
        let record = measured(*index, cell, prepared, &dir.join("models"));
        store.add(&record)?;
        match &record.error {
            Some(e) => log.line(format_args!("    failed: {e}")),
            None => log.line(format_args!("    {}{:.0} s", summary(&record), start.elapsed().as_secs_f64())),
        }
        records.push(record);
    }
    if n_impossible > 0 {
        return Err(CliError::run(format!("{n_impossible} of {} cells cannot be measured", cells.len())));
    }
    Ok((!dry_run).then_some(records))
}

/// The file of records, opened for adding to it, and locked: two studies that write to one file would tear each other's lines.
pub struct Store {
    path: PathBuf,
    file: File,
}

impl Store {
    /// Opens the file and removes what a kill left of a last line.
    pub fn open(path: &Path) -> Result<Self, CliError> {
        let failed = |e: std::io::Error| CliError::run(format!("{}: {e}", path.display()));
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(|e| CliError::run(format!("{}: {e}", dir.display())))?;
        }
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(failed)?;
        // A study that was killed while it started a process for a cell has the lock until that process has become another program.
        let patience = Instant::now() + Duration::from_millis(500);
        let lock = loop {
            match file.try_lock() {
                Err(TryLockError::WouldBlock) if Instant::now() < patience => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                lock => break lock,
            }
        };
        match lock {
            Err(TryLockError::WouldBlock) => {
                return Err(CliError::run(format!("{}: another study is writing to it", path.display())));
            }
            // Not every file system has locks; then this is the user's to see to.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        let bytes = std::fs::read(path).map_err(failed)?;
        let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
        file.set_len(whole as u64).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(Self { path: path.into(), file })
    }

    fn add(&mut self, record: &Record) -> Result<(), CliError> {
        let written = self.file.write_all(line(record).as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(|e| CliError::run(format!("{}: {e}", self.path.display())))
    }
}

fn measured(index: usize, cell: &Cell, prepared: Result<Ready, CliError>, models: &Path) -> Record {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let mut record = Record {
        key: String::new(),
        index,
        cell: cell.clone(),
        status: Status::Failed,
        error: None,
        quality: Value::Null,
        speed: Value::Null,
        memory: Value::Null,
        provenance: Value::Null,
    };
    let mut ready = match prepared {
        Ok(ready) => ready,
        Err(e) => {
            // Without its inputs it has no key; the place in the grid stands for it.
            record.key = format!("unprepared-{index}");
            record.error = Some(e.to_string());
            return record;
        }
    };
    record.key.clone_from(&ready.key);
    ready.provenance["started"] = json!(now());
    let result = weights(cell, &mut ready, models).and_then(|()| {
        let q = &ready.job.quality;
        if q.text.is_some() || !q.tasks.is_empty() {
            record.quality = child::measure(&Request::Quality(ready.job.clone()))?;
        }
        let measured = child::measure(&Request::Speed(ready.job.clone()))?;
        ready.provenance["kernels"] = measured["speed"]["kernels"].clone();
        record.speed = measured["speed"].clone();
        record.memory = measured["memory"].clone();
        Ok(())
    });
    ready.provenance["finished"] = json!(now());
    record.provenance = ready.provenance;
    match result {
        Ok(()) => record.status = Status::Ok,
        Err(e) => record.error = Some(e),
    }
    record
}

/// Makes the model of a type, unless it was made before.
fn weights(cell: &Cell, ready: &mut Ready, models: &Path) -> Result<(), String> {
    let Quant::Make { from, ty, imatrix } = &cell.weights else { return Ok(()) };
    let stem = from.file_stem().unwrap_or_default().to_string_lossy();
    let made = models.join(format!("{stem}-{ty}-{}.gguf", ready.weights));
    if !made.is_file() {
        std::fs::create_dir_all(models).map_err(|e| format!("{}: {e}", models.display()))?;
        let text = |p: &Path| p.to_str().map(String::from).ok_or_else(|| format!("{}: not UTF-8", p.display()));
        let (from, to) = (text(from)?, text(&made)?);
        let threads = ready.job.threads.to_string();
        let imatrix = imatrix.as_deref().map(text).transpose()?;
        let mut arguments: Vec<&str> = Vec::new();
        if let Some(imatrix) = &imatrix {
            arguments.extend(["--imatrix", imatrix]);
        }
        arguments.extend([&from[..], &to[..], &ty[..], &threads[..]]);
        child::quantise(&arguments)?;
    }
    ready.provenance["made"] = json!({ "file": made, "from": from, "type": ty });
    ready.job.model = made;
    Ok(())
}

/// The main figures in a few words.
fn summary(r: &Record) -> String {
    let mut text = String::new();
    if let (Some(ppl), Some(kl)) =
        (r.number("/quality/divergence/ppl/value"), r.number("/quality/divergence/kld/value"))
    {
        text += &format!("ppl {ppl:.3}, KL {kl:.4}, ");
    }
    for t in r.speed["tests"].as_array().into_iter().flatten() {
        if let (Some(name), Some(rate)) = (t["test"].as_str(), t["mean"].as_f64()) {
            text += &format!("{name} {rate:.1} tokens/s, ");
        }
    }
    text
}
