//! `lisa-cpp perplexity`: how well the model predicts a text, as `llama-perplexity` measures it.

mod divergence;

use super::args::{ComputeArgs, ModelArgs, given_text};
use super::error::CliError;
use super::load;
use super::output::{Inputs, Output};
use super::progress::Log;
use super::timings::Timings;
use clap::Args;
use lisa_cpp::eval::divergence::BaseWriter;
use lisa_cpp::eval::{Perplexity, Strided, score_window};
use lisa_cpp::runtime::Session;
use lisa_cpp::tokenizer::Tokenizer;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

/// Flags of `perplexity`.
#[derive(Args, Debug)]
pub struct PerplexityArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The text (`-`: standard input); one trailing newline is dropped
    #[arg(short, long, value_name = "FILE", required_unless_present_any = ["prompt", "kl_divergence"])]
    file: Option<PathBuf>,
    /// The text itself
    #[arg(short, long, value_name = "TEXT", conflicts_with = "file")]
    prompt: Option<String>,
    /// Tokens per window, of which the second half is scored; 0: the context the model was trained for
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    ctx_size: u32,
    /// Windows to score; -1: all
    #[arg(long, value_name = "N", default_value_t = -1)]
    chunks: i64,
    /// Overlapping windows: each begins N tokens after the one before, its last N tokens are scored, and it has N/2 tokens more
    /// than -c, rounded up to a multiple of 256 as in llama.cpp. 0: off
    #[arg(long, value_name = "N", default_value_t = 0)]
    ppl_stride: u32,
    /// 0: running perplexity in brackets; 1: a line for each window: position, perplexity, mean log-loss, its error
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=1))]
    ppl_output_type: u8,
    /// Compare each prediction with that of a baseline: --base or --kl-divergence-base
    #[arg(long)]
    kl_divergence: bool,
    /// The baseline: a model that runs in lock-step, without a file of logits in between
    #[arg(long, value_name = "FILE", requires = "kl_divergence")]
    base: Option<PathBuf>,
    /// File of log-probabilities in llama.cpp's format: read with --kl-divergence (text and -c are the file's), else written
    #[arg(long, value_name = "FILE", alias = "save-all-logits", conflicts_with_all = ["base", "ppl_stride"])]
    kl_divergence_base: Option<PathBuf>,
    /// One JSON object: n_ctx, running (after each window), perplexity, error, nll, n_scored, timings; with --kl-divergence
    /// all its statistics
    #[arg(long)]
    json: bool,
    /// Nothing on standard error but errors
    #[arg(long)]
    log_disable: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// Runs the command.
pub fn run(args: &PerplexityArgs) -> Result<(), CliError> {
    let log = Log::new(!args.log_disable);
    if args.chunks == 0 || args.chunks < -1 {
        return Err(CliError::usage(format!("--chunks {}: must be at least 1, or -1 for all", args.chunks)));
    }
    args.compute.session_params(0)?;
    if args.kl_divergence {
        if args.ppl_stride > 0 {
            return Err(CliError::usage("--kl-divergence compares windows without overlap: leave --ppl-stride out"));
        }
        return match (&args.kl_divergence_base, &args.base) {
            (Some(path), _) => divergence::from_file(args, path, log),
            (None, Some(base)) => divergence::lockstep(args, base, log),
            (None, None) => Err(CliError::usage("--kl-divergence needs a baseline: --base or --kl-divergence-base")),
        };
    }
    perplexity(args, log)
}

/// What one run counts and prints.
struct Run<'a> {
    args: &'a PerplexityArgs,
    perplexity: Perplexity,
    running: Vec<f64>,
    timings: Timings,
}

impl Run<'_> {
    /// Notes that a window of `n_tokens` that began at `position` was scored from `start` on.
    fn window(&mut self, start: Instant, position: usize, n_tokens: usize) -> Result<(), CliError> {
        self.timings.prompt += start.elapsed();
        self.timings.n_prompt += n_tokens;
        let e = self.perplexity.estimate();
        self.running.push(e.perplexity);
        if self.args.json {
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        match self.args.ppl_output_type {
            0 => write!(out, "[{}]{:.4},", self.running.len(), e.perplexity)?,
            _ => writeln!(out, "{position:8}  {:.4}  {:4.6}  {:4.6}", e.perplexity, e.nll, e.error / e.perplexity)?,
        }
        Ok(out.flush()?)
    }
}

fn perplexity(args: &PerplexityArgs, log: Log) -> Result<(), CliError> {
    let mut run = Run { args, perplexity: Perplexity::default(), running: Vec::new(), timings: Timings::start() };
    let text = text(args)?;
    let model = load::model(&args.model, &args.compute, log)?;
    let tokenizer = model.tokenizer();
    let ids = tokenizer.encode(&text, true, false)?;
    let n_ctx = if args.ctx_size == 0 { model.n_ctx_train() } else { args.ctx_size as usize };
    let n_halves = Perplexity::windows(ids.len(), n_ctx)?;
    let strided = (args.ppl_stride > 0).then(|| Strided::new(ids.len(), n_ctx, args.ppl_stride as usize));
    let strided = strided.transpose()?;
    let (len, n_all) = strided.map_or((n_ctx, n_halves), |s| (s.len, s.count));
    let n_windows = n_windows(args, n_all);
    let mut session = load::session(&model, &args.compute, Some(len as u32), log)?;
    run.timings.loaded();
    log.line(format_args!("perplexity: {} tokens, {n_windows} windows of {len}", ids.len()));

    match (strided, &args.kl_divergence_base) {
        (Some(s), _) => {
            for i in 0..n_windows {
                let start = Instant::now();
                run.perplexity.add_tail(&mut session, &ids[s.range(i)], s.first(), None)?;
                run.window(start, i * s.stride, s.len - 1)?;
            }
        }
        (None, None) => {
            let bos = window_start(tokenizer);
            for (i, window) in ids.chunks_exact(n_ctx).take(n_windows).enumerate() {
                let start = Instant::now();
                run.perplexity.add_window(&mut session, window, bos)?;
                run.window(start, i * n_ctx, n_ctx - 1)?;
            }
        }
        (None, Some(path)) => write_base(&mut run, &mut session, &ids[..n_windows * n_ctx], n_ctx, path)?,
    }

    let estimate = run.perplexity.estimate();
    let mut out = std::io::stdout().lock();
    if args.json {
        let object = json!({
            "n_ctx": n_ctx,
            "running": run.running,
            "perplexity": estimate.perplexity,
            "error": estimate.error,
            "nll": estimate.nll,
            "n_scored": estimate.n_scored,
            "timings": run.timings.json(),
        });
        writeln!(out, "{object}")?;
    } else {
        writeln!(out, "\nFinal estimate: PPL = {:.4} +/- {:.5}", estimate.perplexity, estimate.error)?;
    }
    out.flush()?;
    log.line(format_args!("\n{}", run.timings));
    Ok(())
}

/// Scores `tokens` and writes the log-probabilities of every scored position to `path`.
fn write_base(
    run: &mut Run,
    session: &mut Session,
    tokens: &[u32],
    n_ctx: usize,
    path: &std::path::Path,
) -> Result<(), CliError> {
    let model = session.model().clone();
    let (kernels, n_vocab) = (model.kernels(), model.tokenizer().n_vocab());
    let bos = window_start(model.tokenizer());
    let inputs = Inputs::of_model(&run.args.model).with(&run.args.file);
    let n_bytes = BaseWriter::file_bytes(n_ctx, n_vocab, tokens.len() / n_ctx);
    let failed = |e: std::io::Error| CliError::run(format!("{}: {e}", path.display()));
    Output::create(path, &inputs)?.fill(Log::new(!run.args.log_disable), n_bytes, |out| {
        let mut writer = BaseWriter::new(out, kernels, n_ctx, n_vocab, tokens).map_err(failed)?;
        for (i, window) in tokens.chunks_exact(n_ctx).enumerate() {
            let start = Instant::now();
            let mut written = Ok(());
            let perplexity = &mut run.perplexity;
            score_window(session, window, n_ctx / 2, bos, &mut |logits, next| {
                perplexity.add_logits(kernels, logits, next);
                if written.is_ok() {
                    written = writer.add(logits);
                }
                Ok(())
            })?;
            written.map_err(failed)?;
            match run.window(start, i * n_ctx, n_ctx - 1) {
                // The file is wanted, whoever reads the figures.
                Ok(()) | Err(CliError::BrokenPipe) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    })
}

/// The text that the flags give.
fn text(args: &PerplexityArgs) -> Result<String, CliError> {
    given_text(args.prompt.as_deref(), args.file.as_deref())?
        .ok_or_else(|| CliError::usage("no text: -f or -p is needed here"))
}

/// Windows to score of `n` that there are.
fn n_windows(args: &PerplexityArgs, n: usize) -> usize {
    usize::try_from(args.chunks).map_or(n, |wanted| wanted.min(n))
}

/// What every window begins with.
fn window_start(tokenizer: &Tokenizer) -> Option<u32> {
    tokenizer.bos().filter(|_| tokenizer.add_bos())
}
