//! `lisa-cpp eval`: benchmarks of questions, as the Language Model Evaluation Harness scores them.

use super::args::{ComputeArgs, ModelArgs};
use super::error::CliError;
use super::load;
use super::progress::{Log, Progress};
use super::timings::Timings;
use clap::Args;
use lisa_cpp::Model;
use lisa_cpp::eval::tasks::{Evaluation, Item, READY, TASKS, Task, evaluate, find_files, read_items};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Flags of `eval`.
#[derive(Args, Debug)]
#[command(after_help = after_help())]
pub struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Benchmarks by name, and files of questions that are ready to be scored; see below
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', required = true)]
    tasks: Vec<String>,
    /// Folder with the benchmarks' files (NAME.jsonl, NAME/validation.jsonl ...), or the file of the only benchmark
    #[arg(long, value_name = "DIR|FILE")]
    data: Option<PathBuf>,
    /// Only so many questions of each benchmark, the first
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Questions scored side by side, which share the threads [-np] [default: one for each thread, at most 8]
    #[arg(long, value_name = "N")]
    parallel: Option<usize>,
    /// Most tokens of a question; the start of longer contexts is dropped. 0: the context the model was trained for
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    ctx_size: u32,
    /// Write a line of JSON for each question: scores of its answers, predictions, the right one [--log_samples]
    #[arg(long, value_name = "FILE")]
    log_samples: Option<PathBuf>,
    /// One JSON object: results by benchmark, timings
    #[arg(long)]
    json: bool,
    /// Nothing on standard error but errors
    #[arg(long)]
    log_disable: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

fn after_help() -> String {
    let names: Vec<_> = TASKS.iter().map(|t| t.name).collect();
    format!(
        "Benchmarks: {}\n\n\
         Files hold a JSON object a line (or one list), in the data set's own fields as on the Hugging Face Hub, or ready:\n  \
         {{\"context\": \"2 and 2 is\", \"choices\": [\"four\", \"five\"], \"answer\": 0}}\n  \
         {{\"contexts\": [\"Ann thanked Bea because Ann\", \"Ann thanked Bea because Bea\"], \"continuation\": \"had helped.\", \"answer\": 1}}\n  \
         {{\"context\": \"He opened the\", \"target\": \"door\"}}\n\n\
         acc: the most probable answer is right; acc_norm: the most probable per character; acc_bytes: per byte.",
        names.join(", ")
    )
}

/// A benchmark and its questions.
pub struct Questions {
    /// Its name in results.
    pub name: String,
    /// Where they come from.
    pub files: Vec<PathBuf>,
    /// The questions.
    pub items: Vec<Item>,
}

/// Reads the questions of `name`, a benchmark's name or a file's, of the folder or file `data`.
pub fn questions(name: &str, data: Option<&Path>, limit: Option<usize>) -> Result<Questions, CliError> {
    let limit = limit.unwrap_or(usize::MAX);
    let (name, task, files) = match (Task::by_name(name), data) {
        (Some(task), Some(data)) => (task.name.to_owned(), task, find_files(data, task)?),
        (Some(task), None) => {
            return Err(CliError::usage(format!(
                "--data: where are the questions of {}? A folder or a file",
                task.name
            )));
        }
        (None, _) if Path::new(name).is_file() => {
            let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy().into_owned();
            (stem, &READY, vec![PathBuf::from(name)])
        }
        (None, _) => {
            let names: Vec<_> = TASKS.iter().map(|t| t.name).collect();
            let what = format!("'{name}' is neither a file nor one of {}", names.join(", "));
            return Err(CliError::usage(format!("--tasks: {what}")));
        }
    };
    let mut items = Vec::new();
    for file in &files {
        items.extend(read_items(file, task, limit - items.len())?);
        if items.len() == limit {
            break;
        }
    }
    Ok(Questions { name, files, items })
}

/// Runs the command.
pub fn run(args: &EvalArgs) -> Result<(), CliError> {
    let log = Log::new(!args.log_disable);
    if args.limit == Some(0) {
        return Err(CliError::usage("--limit must be at least 1"));
    }
    if args.parallel == Some(0) {
        return Err(CliError::usage("--parallel must be at least 1"));
    }
    if args.data.as_ref().is_some_and(|d| d.is_file()) && args.tasks.len() > 1 {
        return Err(CliError::usage("--data: one file cannot be that of several benchmarks, give a folder"));
    }
    let params = args.compute.session_params(args.ctx_size as usize)?;
    let n_parallel = args.parallel.unwrap_or_else(|| params.n_threads.min(MAX_PARALLEL));
    // Mistakes in any of the files show before anything is computed.
    let read = |name: &String| questions(name, args.data.as_deref(), args.limit);
    let all = args.tasks.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let mut timings = Timings::start();
    let model = load::model(&args.model, &args.compute, log)?;
    timings.loaded();

    let mut samples = args.log_samples.as_deref().map(Samples::create).transpose()?;
    let mut results = serde_json::Map::new();
    let mut out = std::io::stdout().lock();
    if !args.json {
        writeln!(out, "| {:<16} | {:>9} | {:<10} | {:>8} | {:>8} |", "task", "questions", "metric", "value", "stderr")?;
        writeln!(out, "|{:-<18}|{:->10}:|{:-<12}|{:->9}:|{:->9}:|", "", "", "", "", "")?;
    }
    for q in &all {
        let start = Instant::now();
        let e = score(&model, q, &params, n_parallel, log)?;
        timings.prompt += start.elapsed();
        timings.n_prompt += e.n_tokens;
        if let Some(samples) = &mut samples {
            samples.add(&q.name, &e)?;
        }
        if e.n_truncated > 0 {
            log.line(format_args!(
                "warning: {}: {} of the texts are longer than the context and lost their start",
                q.name, e.n_truncated
            ));
        }
        if !args.json {
            table(&mut out, q, &e)?;
        }
        results.insert(q.name.clone(), result_json(q, &e));
    }
    if let Some(samples) = samples {
        samples.finish()?;
    }
    if args.json {
        writeln!(out, "{}", json!({ "results": results, "timings": timings.json() }))?;
    }
    out.flush()?;
    log.line(format_args!("\n{timings}"));
    Ok(())
}

/// More sessions side by side than this take more memory than they bring speed, unless they are asked for.
const MAX_PARALLEL: usize = 8;

fn score(
    model: &Arc<Model>,
    q: &Questions,
    params: &lisa_cpp::SessionParams,
    n_parallel: usize,
    log: Log,
) -> Result<Evaluation, CliError> {
    log.line(format_args!("{}: {} questions of {}", q.name, q.items.len(), file_names(&q.files)));
    let mut bar = Progress::new(log, "questions", q.items.len() as u64);
    Ok(evaluate(model, &q.items, params, n_parallel, &mut |n| bar.set(n as u64))?)
}

fn file_names(files: &[PathBuf]) -> String {
    match files {
        [one] => one.display().to_string(),
        [first, ..] => format!("{} and {} more files", first.display(), files.len() - 1),
        [] => String::new(),
    }
}

fn table(out: &mut impl Write, q: &Questions, e: &Evaluation) -> Result<(), CliError> {
    for (i, m) in e.metrics.iter().enumerate() {
        let (name, n) = if i == 0 { (q.name.as_str(), q.items.len().to_string()) } else { ("", String::new()) };
        writeln!(out, "| {name:<16} | {n:>9} | {:<10} | {:>8.4} | {:>8.4} |", m.name, m.value, m.stderr)?;
    }
    Ok(out.flush()?)
}

fn result_json(q: &Questions, e: &Evaluation) -> Value {
    let mut object = json!({ "n": q.items.len(), "files": q.files, "n_truncated": e.n_truncated });
    for m in &e.metrics {
        object[m.name] = json!(m.value);
        object[format!("{}_stderr", m.name)] = json!(m.stderr);
    }
    object
}

/// The file of `--log-samples`.
struct Samples<'a> {
    path: &'a Path,
    file: std::io::BufWriter<std::fs::File>,
}

impl<'a> Samples<'a> {
    fn create(path: &'a Path) -> Result<Self, CliError> {
        let file = std::fs::File::create(path).map_err(|e| CliError::run(format!("{}: {e}", path.display())))?;
        Ok(Self { path, file: std::io::BufWriter::new(file) })
    }

    fn add(&mut self, task: &str, e: &Evaluation) -> Result<(), CliError> {
        for (i, item) in e.items.iter().enumerate() {
            let mut line = json!({ "task": task, "doc_id": i });
            if let (Some(line), Ok(Value::Object(item))) = (line.as_object_mut(), serde_json::to_value(item)) {
                line.extend(item);
            }
            writeln!(self.file, "{line}").map_err(|e| CliError::run(format!("{}: {e}", self.path.display())))?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), CliError> {
        self.file.flush().map_err(|e| CliError::run(format!("{}: {e}", self.path.display())))
    }
}
