//! `perplexity --kl-divergence`: how far the predictions are from a baseline's.

use super::{PerplexityArgs, n_windows, text, window_start};
use crate::cli::args::ModelArgs;
use crate::cli::error::CliError;
use crate::cli::load;
use crate::cli::progress::Log;
use crate::cli::timings::Timings;
use lisa_cpp::eval::divergence::{BaseReader, DivergenceStats};
use lisa_cpp::eval::{Divergence, Perplexity, score_window};
use serde_json::json;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

/// Compares with a file of log-probabilities.
pub fn from_file(args: &PerplexityArgs, path: &Path, log: Log) -> Result<(), CliError> {
    let mut timings = Timings::start();
    let model = load::model(&args.model, &args.compute, log)?;
    let mut reader = BaseReader::open(path, model.tokenizer().n_vocab())?;
    let n_ctx = reader.n_ctx();
    let mut session = load::session(&model, &args.compute, Some(n_ctx as u32), log)?;
    timings.loaded();
    let tokens = reader.tokens().to_vec();
    let n_windows = n_windows(args, tokens.len() / n_ctx);
    log.line(format_args!("kl_divergence: {n_windows} windows of {n_ctx} of {}", path.display()));

    let mut divergence = Divergence::new(model.kernels(), model.tokenizer().n_vocab());
    let bos = window_start(model.tokenizer());
    let mut report = Report::new(args, timings)?;
    for (i, window) in tokens.chunks_exact(n_ctx).take(n_windows).enumerate() {
        let start = Instant::now();
        score_window(&mut session, window, n_ctx / 2, bos, &mut |logits, next| {
            divergence.add_packed(reader.next_row()?, logits, next);
            Ok(())
        })?;
        report.window(divergence.stats(), i + 1, start, n_ctx - 1)?;
    }
    report.finish(divergence.stats(), n_ctx, log)
}

/// Compares with the model `base`, which reads the same windows in turn.
pub fn lockstep(args: &PerplexityArgs, base: &Path, log: Log) -> Result<(), CliError> {
    let mut timings = Timings::start();
    let text = text(args)?;
    let model = load::model(&args.model, &args.compute, log)?;
    let base_args = ModelArgs {
        model: Some(base.into()),
        mmap: args.model.mmap,
        no_mmap: args.model.no_mmap,
        mlock: args.model.mlock,
        ..ModelArgs::default()
    };
    let base_model = load::model(&base_args, &args.compute, log)?;
    let tokenizer = model.tokenizer();
    let ids = tokenizer.encode(&text, true, false)?;
    let n_vocab = tokenizer.n_vocab();
    if base_model.tokenizer().n_vocab() != n_vocab || base_model.tokenizer().encode(&text, true, false)? != ids {
        let what =
            format!("its vocabulary is not that of the model ({n_vocab} tokens): their predictions cannot be compared");
        return Err(CliError::run(format!("--base {}: {what}", base.display())));
    }
    let n_ctx = if args.ctx_size == 0 { model.n_ctx_train() } else { args.ctx_size as usize };
    let n_windows = n_windows(args, Perplexity::windows(ids.len(), n_ctx)?);
    let mut session = load::session(&model, &args.compute, Some(n_ctx as u32), log)?;
    let mut base_session = load::session(&base_model, &args.compute, Some(n_ctx as u32), log)?;
    timings.loaded();
    log.line(format_args!("kl_divergence: {n_windows} windows of {n_ctx}, baseline {}", base.display()));

    let mut divergence = Divergence::new(model.kernels(), n_vocab);
    let bos = window_start(tokenizer);
    let mut report = Report::new(args, timings)?;
    for (i, window) in ids.chunks_exact(n_ctx).take(n_windows).enumerate() {
        let start = Instant::now();
        divergence.add_window(&mut session, &mut base_session, window, bos)?;
        report.window(divergence.stats(), i + 1, start, 2 * (n_ctx - 1))?;
    }
    report.finish(divergence.stats(), n_ctx, log)
}

/// What is printed while a comparison runs and at its end.
struct Report {
    json: bool,
    running: Vec<f64>,
    timings: Timings,
}

impl Report {
    fn new(args: &PerplexityArgs, timings: Timings) -> Result<Self, CliError> {
        if !args.json {
            writeln!(std::io::stdout(), "\n{}", DivergenceStats::HEADING)?;
        }
        Ok(Self { json: args.json, running: Vec::new(), timings })
    }

    /// A window of `n_tokens` was compared from `start` on, the last of `n` so far.
    fn window(&mut self, stats: &DivergenceStats, n: usize, start: Instant, n_tokens: usize) -> Result<(), CliError> {
        self.timings.prompt += start.elapsed();
        self.timings.n_prompt += n_tokens;
        self.running.push(stats.ppl().value);
        if !self.json {
            writeln!(std::io::stdout(), "{}", stats.row(n))?;
        }
        Ok(())
    }

    fn finish(&self, stats: &DivergenceStats, n_ctx: usize, log: Log) -> Result<(), CliError> {
        let mut out = std::io::stdout().lock();
        if self.json {
            let mut object = json!({ "n_ctx": n_ctx, "running": self.running });
            if let (Some(all), serde_json::Value::Object(more)) = (object.as_object_mut(), stats.json()) {
                all.extend(more);
                all.insert("timings".into(), self.timings.json());
            }
            writeln!(out, "{object}")?;
        } else {
            write!(out, "\n{stats}")?;
        }
        out.flush()?;
        log.line(format_args!("\n{}", self.timings));
        Ok(())
    }
}
