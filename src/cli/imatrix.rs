//! `lisa-cpp imatrix`: which columns of the matrices matter, measured on a text as `llama-imatrix` does.

use super::args::{ComputeArgs, ModelArgs, given_text};
use super::error::CliError;
use super::load;
use super::output::{Inputs, Output};
use super::progress::Log;
use super::signals::Stoppable;
use super::timings::Timings;
use clap::{Args, ValueEnum};
use lisa_cpp::eval::Perplexity;
use lisa_cpp::imatrix::{CHUNK_SIZE, Collector, Format, Imatrix};
use lisa_cpp::runtime::Session;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Flags of `imatrix`.
#[derive(Args, Debug)]
pub struct ImatrixArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The text (`-`: standard input); one trailing newline is dropped
    #[arg(short, long, value_name = "FILE", required_unless_present_any = ["prompt", "in_file"])]
    file: Option<PathBuf>,
    /// The text itself
    #[arg(short, long, value_name = "TEXT", conflicts_with = "file")]
    prompt: Option<String>,
    /// The importance matrix; a file of this name is replaced
    #[arg(short, long, visible_alias = "output-file", value_name = "FILE", default_value = "imatrix.gguf")]
    output: PathBuf,
    /// Its format
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = FormatArg::Gguf)]
    output_format: FormatArg,
    /// Importance matrices to add to what is measured, or without a text to each other (can be given several times)
    #[arg(long, value_name = "FILE")]
    in_file: Vec<PathBuf>,
    /// Tokens per chunk
    #[arg(short, long, value_name = "N", default_value_t = CHUNK_SIZE)]
    ctx_size: u32,
    /// Chunks to process; -1: all
    #[arg(long, value_name = "N", default_value_t = -1)]
    chunks: i64,
    /// Chunks at the beginning to leave out
    #[arg(long, visible_alias = "from-chunk", value_name = "N", default_value_t = 0)]
    chunk: usize,
    /// Measure the output head too
    #[arg(long)]
    process_output: bool,
    /// Write what there is every N chunks [-ofreq]
    #[arg(long, value_name = "N", default_value_t = 10)]
    output_frequency: usize,
    /// Keep a copy, OUTPUT.at_N, every N chunks; 0: none
    #[arg(long, value_name = "N", default_value_t = 0)]
    save_frequency: usize,
    /// Do not compute the perplexity of the text, which costs time
    #[arg(long)]
    no_ppl: bool,
    /// Tokens such as <|im_start|> in the text stand for themselves
    #[arg(long)]
    parse_special: bool,
    /// Nothing on standard error but errors
    #[arg(long)]
    log_disable: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// The formats.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum FormatArg {
    /// GGUF
    Gguf,
    /// The older binary format
    Dat,
}

/// Runs the command.
pub fn run(args: &ImatrixArgs) -> Result<(), CliError> {
    let log = Log::new(!args.log_disable);
    if args.chunks == 0 || args.chunks < -1 {
        return Err(CliError::usage(format!("--chunks {}: must be at least 1, or -1 for all", args.chunks)));
    }
    if args.output_frequency == 0 || args.ctx_size == 0 {
        let flag = if args.ctx_size == 0 { "--ctx-size" } else { "--output-frequency" };
        return Err(CliError::usage(format!("{flag} must be at least 1")));
    }
    let text = given_text(args.prompt.as_deref(), args.file.as_deref())?;
    let mut before = Imatrix { chunk_size: args.ctx_size, ..Imatrix::default() };
    for path in &args.in_file {
        let matrix = Imatrix::read(path)?;
        if before.entries.is_empty() {
            before.chunk_size = matrix.chunk_size;
        }
        before.add(matrix).map_err(|e| CliError::run(format!("{}: {e}", path.display())))?;
    }
    // Not --in-file: what is measured may be added to the file that has it.
    let target = Target { args, inputs: Inputs::of_model(&args.model).with(&args.file), before };
    // A name that cannot be written to should not cost the measurement.
    drop(Output::create(&args.output, &target.inputs)?);
    match text {
        Some(text) => measure(args, &text, &target, log),
        None => target.write(&args.output, None),
    }?;
    log.line(format_args!("wrote {}", args.output.display()));
    Ok(())
}

/// Where results go.
struct Target<'a> {
    args: &'a ImatrixArgs,
    inputs: Inputs,
    /// What the files given had measured.
    before: Imatrix,
}

impl Target<'_> {
    /// Writes what was measured, together with what the files given hold.
    fn write(&self, path: &Path, collector: Option<&Collector>) -> Result<(), CliError> {
        let fault = |e: String| CliError::run(format!("{}: {e}", path.display()));
        let mut matrix = self.before.clone();
        if let Some(collector) = collector {
            let dataset = self.args.file.as_ref().map(|p| p.display().to_string());
            matrix.add(collector.to_imatrix(dataset.as_deref(), self.args.ctx_size)).map_err(fault)?;
        }
        let format = match self.args.output_format {
            FormatArg::Gguf => Format::Gguf,
            FormatArg::Dat => Format::Dat,
        };
        let bytes = matrix.to_bytes(format).map_err(fault)?;
        Output::create(path, &self.inputs)?.whole(&bytes)
    }
}

fn measure(args: &ImatrixArgs, text: &str, target: &Target, log: Log) -> Result<(), CliError> {
    let mut timings = Timings::start();
    let model = load::model(&args.model, &args.compute, log)?;
    let tokenizer = model.tokenizer();
    let ids = tokenizer.encode(text, true, args.parse_special)?;
    let n_ctx = args.ctx_size as usize;
    let skipped = args.chunk.saturating_mul(n_ctx).min(ids.len());
    let ids = &ids[skipped..];
    let n_chunks = Perplexity::windows(ids.len(), n_ctx)?;
    let n_chunks = usize::try_from(args.chunks).map_or(n_chunks, |n| n.min(n_chunks));
    let collector = Arc::new(Collector::new(&model, args.process_output));
    let mut session = load::session(&model, &args.compute, Some(args.ctx_size), log)?;
    session.observe(collector.clone());
    timings.loaded();
    log.line(format_args!("imatrix: {} tokens, {n_chunks} chunks of {n_ctx}", ids.len()));

    // Ctrl-C is looked at between chunks, so that every matrix has met the same rows.
    let stop = Stoppable::install()?;
    if !args.log_disable {
        stop.announce("interrupted: writing the file when this chunk is done");
    }
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    let mut perplexity = Perplexity::default();
    let mut out = std::io::stdout().lock();
    for (i, chunk) in ids.chunks_exact(n_ctx).take(n_chunks).enumerate() {
        let start = Instant::now();
        pass(args, &mut session, chunk, bos, &mut perplexity)?;
        timings.prompt += start.elapsed();
        timings.n_prompt += n_ctx;
        let done = i + 1;
        if !args.no_ppl {
            let told = write!(out, "[{done}]{:.4},", perplexity.estimate().perplexity).and_then(|()| out.flush());
            match told.map_err(CliError::from) {
                // The file is wanted, whoever reads the figures.
                Ok(()) | Err(CliError::BrokenPipe) => {}
                Err(e) => return Err(e),
            }
        }
        if args.save_frequency > 0 && done % args.save_frequency == 0 {
            let mut name = args.output.clone().into_os_string();
            name.push(format!(".at_{done}"));
            target.write(Path::new(&name), Some(&collector))?;
        }
        if done % args.output_frequency == 0 || done == n_chunks || stop.stopped() {
            target.write(&args.output, Some(&collector))?;
        }
        if stop.stopped() {
            log.line(format_args!("\nwrote {}, of {done} of {n_chunks} chunks", args.output.display()));
            return Err(CliError::Interrupted);
        }
    }
    if !args.no_ppl {
        let estimate = perplexity.estimate();
        writeln!(out, "\nFinal estimate: PPL = {:.4} +/- {:.5}", estimate.perplexity, estimate.error)?;
    }
    log.line(format_args!("{timings}"));
    Ok(())
}

/// Sends a chunk through the model, `bos` in place of its first token. The second half counts for the perplexity.
fn pass(
    args: &ImatrixArgs,
    session: &mut Session,
    chunk: &[u32],
    bos: Option<u32>,
    perplexity: &mut Perplexity,
) -> Result<(), CliError> {
    let mut inputs = chunk.to_vec();
    if let Some(bos) = bos {
        inputs[0] = bos;
    }
    session.clear();
    if args.no_ppl && !args.process_output {
        session.prefill(&inputs, &mut |_| ())?;
        return Ok(());
    }
    let kernels = session.model().kernels();
    let scored = chunk.len() / 2;
    // The output head meets every token where it is measured, and else those that are scored.
    let first = if args.process_output { 0 } else { scored };
    if first > 0 {
        session.prefill(&inputs[..first], &mut |_| ())?;
    }
    session.logits_each(&inputs[first..], &mut |i, logits| {
        if let Some(&next) = chunk.get(first + i + 1).filter(|_| first + i >= scored && !args.no_ppl) {
            perplexity.add_logits(kernels, logits, next);
        }
    })?;
    Ok(())
}
