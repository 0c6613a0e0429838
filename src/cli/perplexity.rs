//! `lisa-cpp perplexity`: how well the model predicts a text, as `llama-perplexity` measures it.

use super::args::{ComputeArgs, ModelArgs, given_text};
use super::error::CliError;
use super::load;
use super::progress::Log;
use super::timings::Timings;
use clap::Args;
use lisa_cpp::eval::Perplexity;
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
    #[arg(short, long, value_name = "FILE", required_unless_present = "prompt")]
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
    /// One JSON object: n_ctx, running (after each window), perplexity, error, nll, n_scored, timings
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
    let text = given_text(args.prompt.as_deref(), args.file.as_deref())?.unwrap_or_default();
    if args.chunks == 0 || args.chunks < -1 {
        return Err(CliError::usage(format!("--chunks {}: must be at least 1, or -1 for all", args.chunks)));
    }
    args.compute.session_params(0)?;
    let mut timings = Timings::start();
    let model = load::model(&args.model, &args.compute, log)?;
    let tokenizer = model.tokenizer();
    let ids = tokenizer.encode(&text, true, false)?;
    let n_ctx = if args.ctx_size == 0 { model.n_ctx_train() } else { args.ctx_size as usize };
    let n_windows = Perplexity::windows(ids.len(), n_ctx)?;
    let n_windows = usize::try_from(args.chunks).map_or(n_windows, |n| n.min(n_windows));
    let mut session = load::session(&model, &args.compute, Some(n_ctx as u32), log)?;
    timings.loaded();
    log.line(format_args!("perplexity: {} tokens, {n_windows} windows of {n_ctx}", ids.len()));

    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    let mut perplexity = Perplexity::default();
    let mut running = Vec::with_capacity(n_windows);
    let mut out = std::io::stdout().lock();
    for (i, window) in ids.chunks_exact(n_ctx).take(n_windows).enumerate() {
        let start = Instant::now();
        perplexity.add_window(&mut session, window, bos)?;
        timings.prompt += start.elapsed();
        timings.n_prompt += n_ctx - 1;
        let estimate = perplexity.estimate();
        running.push(estimate.perplexity);
        if !args.json {
            write!(out, "[{}]{:.4},", i + 1, estimate.perplexity)?;
            out.flush()?;
        }
    }
    let estimate = perplexity.estimate();
    if args.json {
        let object = json!({
            "n_ctx": n_ctx,
            "running": running,
            "perplexity": estimate.perplexity,
            "error": estimate.error,
            "nll": estimate.nll,
            "n_scored": estimate.n_scored,
            "timings": timings.json(),
        });
        writeln!(out, "{object}")?;
    } else {
        writeln!(out, "\nFinal estimate: PPL = {:.4} +/- {:.5}", estimate.perplexity, estimate.error)?;
    }
    out.flush()?;
    log.line(format_args!("\n{timings}"));
    Ok(())
}
