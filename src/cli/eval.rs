//! `lisa-cpp eval`: benchmarks of questions, as the Language Model Evaluation Harness scores them.

use super::args::{ComputeArgs, ModelArgs};
use super::error::CliError;
use super::load;
use super::output::{Inputs, Output};
use super::progress::{Log, Progress};
use super::signals::Stoppable;
use super::timings::Timings;
use clap::Args;
use lisa_cpp::Model;
use lisa_cpp::eval::tasks::{Evaluation, Item, Source, TASKS, evaluate};
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
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
    /// Questions scored side by side, at most one for each thread [-np] [default: one for each thread, at most 8]
    #[arg(long, value_name = "N")]
    parallel: Option<usize>,
    /// Most tokens of a question; longer ones lose their start. 0: the context the model was trained for
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
struct Questions {
    source: Source,
    items: Vec<Item>,
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
    let n_parallel = args.parallel.unwrap_or(MAX_PARALLEL).min(params.n_threads);
    if let Some(wanted) = args.parallel.filter(|&wanted| wanted > n_parallel) {
        let n = params.n_threads;
        log.line(format_args!(
            "note: --parallel {wanted}: {n} questions side by side, one for each of the {n} threads"
        ));
    }
    // Mistakes in any of the files show before anything is computed.
    let mut all = Vec::new();
    for source in Source::all(&args.tasks, args.data.as_deref())? {
        let items = source.read(args.limit.unwrap_or(usize::MAX))?;
        all.push(Questions { source, items });
    }
    let inputs = Inputs::of_model(&args.model).with(all.iter().flat_map(|q| &q.source.files));
    let output = || args.log_samples.as_deref().map(|path| Output::create(path, &inputs)).transpose();
    // A name that cannot be written to should not cost the measurement.
    drop(output()?);
    let mut timings = Timings::start();
    let model = load::model(&args.model, &args.compute, log)?;
    timings.loaded();

    // Ctrl-C is looked at between questions: what was measured before is still written.
    let stop = Stoppable::install()?;
    let mut samples = String::new();
    let mut results = serde_json::Map::new();
    let mut out = std::io::stdout().lock();
    let mut failure = None;
    let mut printed = Ok(());
    for (i, q) in all.iter().enumerate() {
        let start = Instant::now();
        let e = match score(&model, q, &params, n_parallel, &stop, log) {
            Ok(e) => e,
            Err(e) => {
                failure = Some(e);
                break;
            }
        };
        timings.prompt += start.elapsed();
        timings.n_prompt += e.n_tokens;
        add_samples(&mut samples, &q.source.name, &e);
        if e.n_truncated > 0 {
            log.line(format_args!(
                "warning: {}: {} of the texts are longer than the context and lost their start",
                q.source.name, e.n_truncated
            ));
        }
        if !args.json && printed.is_ok() {
            printed = table(&mut out, i == 0, q, &e);
        }
        // The samples are wanted, whoever reads the table.
        if printed.is_err() && args.log_samples.is_none() {
            break;
        }
        results.insert(q.source.name.clone(), result_json(q, &e));
    }
    // What is known of other benchmarks is worth having, whatever went wrong with one.
    if args.json && (failure.is_none() || !results.is_empty()) {
        let object = json!({ "results": results, "timings": timings.json() });
        printed = writeln!(out, "{object}").and_then(|()| out.flush()).map_err(CliError::from);
    }
    let written = match results.is_empty() && failure.is_some() {
        true => Ok(()),
        false => output().and_then(|output| output.map_or(Ok(()), |output| output.whole(samples.as_bytes()))),
    };
    if let Some(e) = failure {
        let names: Vec<_> = results.keys().map(String::as_str).collect();
        match (&args.log_samples, written) {
            (_, Err(lost)) => log.line(format_args!("warning: {lost}")),
            (Some(path), Ok(())) if !names.is_empty() => {
                log.line(format_args!("note: {} holds the samples of {} alone", path.display(), names.join(", ")));
            }
            _ => {}
        }
        return Err(e);
    }
    written?;
    printed?;
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
    stop: &Stoppable,
    log: Log,
) -> Result<Evaluation, CliError> {
    log.line(format_args!("{}: {} questions of {}", q.source.name, q.items.len(), file_names(&q.source.files)));
    let mut bar = Progress::new(log, "questions", q.items.len() as u64);
    let mut go_on = |n| {
        bar.set(n as u64);
        !stop.stopped()
    };
    Ok(evaluate(model, &q.items, params, n_parallel, &mut go_on)?)
}

fn file_names(files: &[PathBuf]) -> String {
    match files {
        [one] => one.display().to_string(),
        [first, ..] => format!("{} and {} more files", first.display(), files.len() - 1),
        [] => String::new(),
    }
}

fn table(out: &mut impl Write, is_first: bool, q: &Questions, e: &Evaluation) -> Result<(), CliError> {
    if is_first {
        writeln!(out, "| {:<16} | {:>9} | {:<10} | {:>8} | {:>8} |", "task", "questions", "metric", "value", "stderr")?;
        writeln!(out, "|{:-<18}|{:->10}:|{:-<12}|{:->9}:|{:->9}:|", "", "", "", "", "")?;
    }
    for (i, m) in e.metrics.iter().enumerate() {
        let (name, n) = if i == 0 { (q.source.name.as_str(), q.items.len().to_string()) } else { ("", String::new()) };
        let stderr = m.stderr.map_or("-".into(), |e| format!("{e:.4}"));
        writeln!(out, "| {name:<16} | {n:>9} | {:<10} | {:>8.4} | {stderr:>8} |", m.name, m.value)?;
    }
    Ok(out.flush()?)
}

fn result_json(q: &Questions, e: &Evaluation) -> Value {
    let mut object = json!({ "n": q.items.len(), "files": q.source.files, "n_truncated": e.n_truncated });
    for m in &e.metrics {
        object[m.name] = json!(m.value);
        object[format!("{}_stderr", m.name)] = json!(m.stderr);
    }
    object
}

/// Adds a line for each question.
fn add_samples(lines: &mut String, task: &str, e: &Evaluation) {
    for (i, item) in e.items.iter().enumerate() {
        let mut line = json!({ "task": task, "doc_id": i });
        if let (Some(line), Ok(Value::Object(item))) = (line.as_object_mut(), serde_json::to_value(item)) {
            line.extend(item);
        }
        lines.push_str(&line.to_string());
        lines.push('\n');
    }
}
