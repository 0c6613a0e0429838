//! `lisa-cpp study`: a grid of models, quantisations, cache types and ways of sharing attention, a record for each cell, and a
//! report.

mod child;
mod keys;
mod run;

use super::args::{CacheTypeArg, read_text};
use super::error::CliError;
use super::output::{Inputs, Output};
use super::progress::Log;
use clap::Args;
use lisa_cpp::eval::study::{
    Config, GridPart, ModelEntry, Quality, QuantEntry, Record, SharingEntry, Speed, Status, join, read_records, report,
};
use serde_json::Value;
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Flags of `study`.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct StudyArgs {
    /// A study's TOML file; or `merge FILE...`: join records of shards into the folder -o; or `report DIR`: make the report again
    #[arg(value_name = "STUDY.toml")]
    args: Vec<PathBuf>,
    /// Folder of records.jsonl, report.html, report.csv and models made on the way [default: the study's name; without a file: study]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Only part I of N of the grid, for another machine or an array job; records go to records-I-of-N.jsonl
    #[arg(long, value_name = "I/N")]
    shard: Option<GridPart>,
    /// List the cells and what is measured already, on standard output, and stop
    #[arg(long)]
    dry_run: bool,
    /// Print the records as JSON, one a line, instead of a table
    #[arg(long, conflicts_with = "dry_run")]
    json: bool,
    /// With merge and report: title of the page
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
    /// With merge and report: JSON of `analyze --json` for the page (can be given several times)
    #[arg(long, value_name = "FILE")]
    analyze: Vec<PathBuf>,
    /// Without a file: the model
    #[arg(short, long, value_name = "FILE", conflicts_with = "args")]
    model: Option<PathBuf>,
    /// Without a file: what predictions are compared with [default: the model]
    #[arg(long, value_name = "FILE", requires = "model", conflicts_with = "args")]
    base: Option<PathBuf>,
    /// Without a file: types to make of the model, files, as-is
    #[arg(long, value_name = "TYPE|FILE,...", value_delimiter = ',', requires = "model", conflicts_with = "args")]
    quants: Vec<String>,
    /// Without a file: layers that share, or a plan (can be given several times)
    #[arg(long, value_name = "LAYERS", requires = "model", conflicts_with = "args")]
    share: Vec<String>,
    /// Without a file: sidecar (can be given several times)
    #[arg(long, value_name = "FILE", requires = "model", conflicts_with = "args")]
    lisa: Vec<PathBuf>,
    /// Without a file: types of the cache
    #[arg(long, value_name = "TYPE,...", value_delimiter = ',', requires = "model", conflicts_with = "args", value_enum, default_values = ["f16"])]
    kv: Vec<CacheTypeArg>,
    /// Without a file: the text of perplexity and divergence
    #[arg(short, long, value_name = "FILE", requires = "model", conflicts_with = "args")]
    file: Option<PathBuf>,
    /// Without a file: tokens per window
    #[arg(short, long, value_name = "N", requires = "model", conflicts_with = "args", default_value_t = 512)]
    ctx_size: usize,
    /// Without a file: windows; 0 or less: all
    #[arg(long, value_name = "N", requires = "model", conflicts_with = "args", default_value_t = -1)]
    chunks: i64,
    /// Without a file: benchmarks
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', requires = "model", conflicts_with = "args")]
    tasks: Vec<String>,
    /// Without a file: folder of the benchmarks' files
    #[arg(long, value_name = "DIR", requires = "model", conflicts_with = "args")]
    data: Option<PathBuf>,
    /// Without a file: questions of each benchmark; 0: all
    #[arg(long, value_name = "N", requires = "model", conflicts_with = "args", default_value_t = 0)]
    limit: usize,
    /// Without a file: length of the prompt whose processing is measured; 0: none
    #[arg(short = 'p', long, value_name = "N", requires = "model", conflicts_with = "args", default_value_t = 512)]
    n_prompt: usize,
    /// Without a file: tokens whose generation is measured; 0: none
    #[arg(short, long, value_name = "N", requires = "model", conflicts_with = "args", default_value_t = 64)]
    n_gen: usize,
    /// Without a file: tokens in the context before
    #[arg(short = 'd', long, value_name = "N,...", value_delimiter = ',', requires = "model", conflicts_with = "args", default_values_t = [0])]
    n_depth: Vec<usize>,
    /// Without a file: repetitions
    #[arg(short, long, value_name = "N", requires = "model", conflicts_with = "args", default_value_t = 3)]
    repetitions: usize,
    /// Threads; 0 or less: as many as this process may use
    #[arg(short, long, value_name = "N", default_value_t = -1, hide_default_value = true)]
    threads: i32,
    /// Nothing on standard error but errors
    #[arg(long)]
    log_disable: bool,
    /// Measures what standard input asks for: how cells run in processes of their own
    #[arg(long, hide = true)]
    child: bool,
}

const HELP: &str = "\
A study's file; paths are relative to it, and everything but [[model]] can be left out:
  title = \"SmolLM2\"
  kv = [\"f16\", \"q8_0\"]                # types of the cache
  threads = 2
  [[model]]
  name = \"SmolLM2-135M\"
  file = \"SmolLM2-135M.Q8_0.gguf\"     # quantisations are made from it
  baseline = \"SmolLM2-135M.F16.gguf\"  # what predictions are compared with [default: file]
  quants = [\"as-is\", \"Q4_K_M\", { type = \"Q4_0\", imatrix = \"im.gguf\" }, { name = \"mine\", file = \"x.gguf\" }]
  analyze = \"layers.json\"             # of analyze --json, for the report
  [[sharing]]                         # beside the model as it is
  name = \"16 shared\"
  share = \"smollm2-16.plan\"           # or lisa = \"x.lisa.gguf\"
  [quality]
  text = \"wiki.test.raw\"
  ctx-size = 512
  chunks = 20
  tasks = [\"hellaswag\", \"piqa\"]
  data = \"data\"
  limit = 200
  [speed]
  prompt = 512
  generate = 64
  depths = [0, 2048]
  repetitions = 3

Records are kept: a study that was stopped goes on where it was, and one that changed measures only what is new. Cells that
failed are tried again.";

/// Runs the command.
pub fn run(args: &StudyArgs) -> Result<(), CliError> {
    if args.child {
        return child::serve();
    }
    let log = Log::new(!args.log_disable);
    let first = args.args.first().map(|p| p.to_string_lossy().into_owned());
    match (first.as_deref(), &args.args[..]) {
        (Some("merge"), [_, files @ ..]) => args.only_for_report().and_then(|()| merge(args, files, log)),
        (Some("report"), [_, _]) if args.output.is_some() => {
            Err(CliError::usage("--output is for a study and merge; report writes to the folder that it reads"))
        }
        (Some("report"), [_, dir]) => args.only_for_report().and_then(|()| again(args, dir, log)),
        (Some("report"), _) => Err(CliError::usage("study report: expected one folder, that of the records")),
        (Some(_), [file]) => args.only_for_study().and_then(|()| study(args, Config::read(file)?, log)),
        (None, _) if args.model.is_some() => args.only_for_study().and_then(|()| study(args, args.config()?, log)),
        (None, _) => Err(CliError::usage("expected a study's TOML file, or -m and flags; see study --help")),
        (Some(_), _) => Err(CliError::usage("expected one TOML file, merge FILE..., or report DIR; see study --help")),
    }
}

impl StudyArgs {
    /// Refuses flags of `merge` and `report` beside a study.
    fn only_for_study(&self) -> Result<(), CliError> {
        let flags = [("--title", self.title.is_some()), ("--analyze", !self.analyze.is_empty())];
        match flags.iter().find(|(_, given)| *given) {
            Some((flag, _)) => {
                Err(CliError::usage(format!("{flag} is for merge and report; a study's file says it itself")))
            }
            None => Ok(()),
        }
    }

    /// Refuses flags of a study beside `merge` and `report`.
    fn only_for_report(&self) -> Result<(), CliError> {
        let flags = [("--shard", self.shard.is_some()), ("--dry-run", self.dry_run), ("--threads", self.threads > 0)];
        match flags.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(CliError::usage(format!("{flag} is for a study; merge and report measure nothing"))),
            None => Ok(()),
        }
    }

    /// The study that the flags describe.
    fn config(&self) -> Result<Config, CliError> {
        let file = self.model.clone().unwrap_or_default();
        let stem = |p: &Path| p.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
        let quant = |q: &String| match Path::new(q).extension() {
            Some(e) if e == "gguf" => QuantEntry::file(q.into()),
            _ => QuantEntry::Type(q.clone()),
        };
        let plans = self.share.iter().map(|s| SharingEntry { name: s.clone(), share: Some(s.clone()), lisa: None });
        let sidecars = self.lisa.iter().map(|l| SharingEntry { name: stem(l), share: None, lisa: Some(l.clone()) });
        let config = Config {
            title: Some(stem(&file)),
            output: Some("study".into()),
            threads: 0,
            kv: self.kv.iter().map(|&t| t.name().to_owned()).collect(),
            models: vec![ModelEntry {
                name: stem(&file),
                file,
                baseline: self.base.clone(),
                quants: self.quants.iter().map(quant).collect(),
                analyze: None,
            }],
            sharings: plans.chain(sidecars).collect(),
            quality: Quality {
                text: self.file.clone(),
                ctx_size: self.ctx_size,
                chunks: usize::try_from(self.chunks).unwrap_or(0),
                tasks: self.tasks.clone(),
                data: self.data.clone(),
                limit: self.limit,
            },
            speed: Speed {
                prompt: self.n_prompt,
                generate: self.n_gen,
                depths: self.n_depth.clone(),
                repetitions: self.repetitions,
            },
        };
        config.check().map_err(CliError::usage)?;
        Ok(config)
    }
}

fn study(args: &StudyArgs, mut config: Config, log: Log) -> Result<(), CliError> {
    if let Some(output) = &args.output {
        config.output = Some(output.clone());
    }
    config.threads = match i32::try_from(config.threads).unwrap_or(i32::MAX) {
        n @ 1.. if args.threads <= 0 => {
            let file = args.args.first().map_or_else(String::new, |f| format!("{}: ", f.display()));
            super::args::threads(&format!("{file}threads"), n).map_err(CliError::of_file)?
        }
        _ => super::args::threads("--threads", args.threads)?,
    };
    let dir = config.output.clone().unwrap_or_else(|| "study".into());
    let inputs = inputs(&config, args);
    outputs(&dir).iter().try_for_each(|output| inputs.check(output))?;
    let mut analyses = Vec::new();
    for m in &config.models {
        if let Some(path) = &m.analyze {
            analyses.push((m.name.clone(), analysis(path)?));
        }
    }
    let Some(records) = run::cells(&config, &dir, args.shard, args.dry_run, log)? else { return Ok(()) };
    // The report first: whoever reads the table may leave early.
    if args.shard.is_none() {
        write_report(&dir, config.title.as_deref().unwrap_or("Study"), &records, &analyses, log)?;
    }
    print(&records, args.json)?;
    match records.iter().filter(|r| r.status == Status::Failed).count() {
        0 => Ok(()),
        n => Err(CliError::run(format!("{n} of {} cells failed; the report says why", records.len()))),
    }
}

fn merge(args: &StudyArgs, files: &[PathBuf], log: Log) -> Result<(), CliError> {
    let Some(dir) = &args.output else {
        return Err(CliError::usage("study merge: -o is needed, the folder to write to"));
    };
    if files.is_empty() {
        return Err(CliError::usage("study merge: expected files of records"));
    }
    let mut all = Vec::new();
    for file in files {
        if !file.is_file() {
            return Err(CliError::run(format!("{}: no such file of records", file.display())));
        }
        all.extend(read_records(file)?);
    }
    let inputs = Inputs::default().with(files).with(&args.analyze);
    outputs(dir).iter().try_for_each(|output| inputs.check(output))?;
    let target = dir.join(RECORDS);
    // What a study that runs now adds to the file would be lost with it.
    let _locked = run::Store::open(&target)?;
    let lost = read_records(&target)?.iter().filter(|old| !all.iter().any(|r| r.key == old.key)).count();
    if lost > 0 {
        return Err(CliError::run(format!(
            "{}: holds {lost} records that are in none of the given files and would be lost: choose another folder for -o, or \
             give a copy of this file too",
            target.display()
        )));
    }
    let records = join(all);
    let lines: String = records.iter().map(run::line).collect();
    write_file(&target, &lines)?;
    report_of(args, dir, &records, log)
}

fn again(args: &StudyArgs, dir: &Path, log: Log) -> Result<(), CliError> {
    let file = dir.join(RECORDS);
    if !file.is_file() {
        return Err(CliError::run(format!("{}: no such file of records", file.display())));
    }
    report_of(args, dir, &join(read_records(&file)?), log)
}

fn report_of(args: &StudyArgs, dir: &Path, records: &[Record], log: Log) -> Result<(), CliError> {
    let name = |p: &PathBuf| p.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
    let mut analyses = Vec::new();
    for path in &args.analyze {
        let json = analysis(path)?;
        analyses.push((json["model"].as_str().map_or_else(|| name(path), String::from), json));
    }
    let folder = dir.file_name().map_or_else(|| "Study".into(), |n| n.to_string_lossy().into_owned());
    write_report(dir, args.title.as_deref().unwrap_or(&folder), records, &analyses, log)?;
    print(records, args.json)
}

/// The files that a study reads.
fn inputs(config: &Config, args: &StudyArgs) -> Inputs {
    let mut inputs = Inputs::default().with(&args.args).with(&config.quality.text).with(&config.quality.tasks);
    for m in &config.models {
        inputs = inputs.with([&m.file]).with(&m.baseline).with(&m.analyze);
        for q in &m.quants {
            if let QuantEntry::Table(t) = q {
                inputs = inputs.with(&t.file).with(&t.imatrix);
            }
        }
    }
    config.sharings.iter().fold(inputs, |inputs, s| inputs.with(&s.share).with(&s.lisa))
}

/// The files that a study writes besides records of shards.
fn outputs(dir: &Path) -> [PathBuf; 3] {
    [RECORDS, "report.csv", "report.html"].map(|name| dir.join(name))
}

/// The name of the file of records in a study's folder.
const RECORDS: &str = "records.jsonl";

fn analysis(path: &Path) -> Result<Value, CliError> {
    let failed = |e: &dyn Display| CliError::run(format!("{}: not the JSON of analyze: {e}", path.display()));
    let json: Value = serde_json::from_str(&read_text(path)?).map_err(|e| failed(&e))?;
    match report::is_analysis(&json) {
        true => Ok(json),
        false => Err(failed(&"expected a square matrix of numbers at similarity.cosine")),
    }
}

/// Writes page and table.
fn write_report(
    dir: &Path,
    title: &str,
    records: &[Record],
    analyses: &[(String, Value)],
    log: Log,
) -> Result<(), CliError> {
    write_file(&dir.join("report.csv"), &report::csv(records))?;
    let page = dir.join("report.html");
    write_file(&page, &report::html(title, records, analyses))?;
    log.line(format_args!("report: {}", page.display()));
    Ok(())
}

/// Writes a small file so that it is whole or not there. What it is made of was checked before.
fn write_file(path: &Path, text: &str) -> Result<(), CliError> {
    Output::create(path, &Inputs::default())?.whole(text.as_bytes())
}

/// The records on standard output.
fn print(records: &[Record], json: bool) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    if json {
        records.iter().try_for_each(|r| out.write_all(run::line(r).as_bytes()))?;
        return Ok(out.flush()?);
    }
    writeln!(
        out,
        "| {:<20} | {:<12} | {:<20} | {:<5} | {:>10} | {:>8} | {:>10} | {:>11} | {:>8} |",
        "model", "quant", "sharing", "cache", "ppl", "KL", "same top %", "weights MiB", "tokens/s"
    )?;
    writeln!(out, "|{0:-<22}|{0:-<14}|{0:-<22}|{0:-<7}|{0:->11}:|{0:->9}:|{0:->11}:|{0:->12}:|{0:->9}:|", "")?;
    for r in records {
        let c = &r.cell;
        let figure = |pointer: &str, digits: usize, factor: f64| {
            r.number(pointer).map_or("-".into(), |v| format!("{:.digits$}", factor * v))
        };
        let generation = r.speed["tests"].as_array().into_iter().flatten();
        let mut generation = generation.filter(|t| t["test"].as_str().is_some_and(|n| n.starts_with("tg")));
        let rate = generation.next().and_then(|t| t["mean"].as_f64()).map_or("-".into(), |v| format!("{v:.1}"));
        let ppl = match r.status {
            Status::Ok => figure("/quality/divergence/ppl/value", 4, 1.0),
            Status::Failed => "failed".into(),
        };
        // A name cannot end its cell.
        let [model, quant, sharing, kv] = c.names().map(|n| n.replace('|', "\\|").replace(['\n', '\r'], " "));
        writeln!(
            out,
            "| {model:<20} | {quant:<12} | {sharing:<20} | {kv:<5} | {ppl:>10} | {:>8} | {:>10} | {:>11} | {rate:>8} |",
            figure("/quality/divergence/kld/value", 5, 1.0),
            figure("/quality/divergence/same_top_p/value", 2, 100.0),
            figure("/memory/weight_bytes", 1, 1.0 / (1 << 20) as f64),
        )?;
    }
    Ok(out.flush()?)
}
