//! `lisa-cpp bench`: tokens per second, as `llama-bench` measures them.

use super::args::{ComputeArgs, ModelArgs};
use super::error::CliError;
use super::load;
use super::progress::Log;
use clap::Args;
use lisa_cpp::eval::bench::{BenchParams, Measurement, bench};
use serde_json::json;
use std::io::Write;

/// Flags of `bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Length of the prompt whose processing is measured; 0: none
    #[arg(short = 'p', long, value_name = "N", default_value_t = 512)]
    n_prompt: u32,
    /// Tokens whose generation is measured; 0: none
    #[arg(short, long, value_name = "N", default_value_t = 128)]
    n_gen: u32,
    /// Tokens in the context before each test
    #[arg(short = 'd', long, value_name = "N", default_value_t = 0)]
    n_depth: u32,
    /// Times each test is repeated, after one that is not counted
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    repetitions: u32,
    /// One JSON object: model, threads, kernels, tests
    #[arg(long)]
    json: bool,
    /// Nothing on standard error but errors
    #[arg(long)]
    log_disable: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// Runs the command.
pub fn run(args: &BenchArgs) -> Result<(), CliError> {
    let log = Log::new(!args.log_disable);
    if args.n_prompt == 0 && args.n_gen == 0 {
        return Err(CliError::usage("nothing to measure: --n-prompt and --n-gen are both 0"));
    }
    if args.repetitions == 0 {
        return Err(CliError::usage("--repetitions must be at least 1"));
    }
    let model = load::model(&args.model, &args.compute, log)?;
    let session = args.compute.session_params(0)?;
    let params = BenchParams {
        n_prompt: args.n_prompt as usize,
        n_gen: args.n_gen as usize,
        n_depth: args.n_depth as usize,
        repetitions: args.repetitions as usize,
    };
    let mut out = std::io::stdout().lock();
    if !args.json {
        writeln!(out, "| test            |     tokens/s |          best | of bandwidth |")?;
        writeln!(out, "|-----------------|-------------:|--------------:|-------------:|")?;
    }
    let mut written = Ok(());
    let mut report = |m: &Measurement| {
        if !args.json && written.is_ok() {
            written = row(&mut out, m);
        }
    };
    let tests = bench(&model, &session, &params, &mut report)?;
    written?;
    if args.json {
        let object = json!({
            "model": model.name(),
            "architecture": model.config().arch,
            "n_file_bytes": model.n_file_bytes(),
            "kernels": model.kernels().tier.name(),
            "n_threads": session.n_threads,
            "tests": tests,
        });
        writeln!(out, "{object}")?;
    }
    Ok(out.flush()?)
}

fn row(out: &mut impl Write, m: &Measurement) -> std::io::Result<()> {
    let (mean, deviation) = m.mean_and_deviation();
    let bandwidth = m.bandwidth_fraction.map_or(String::new(), |f| format!("{:.0} %", 100.0 * f));
    let mean = format!("{mean:.1} ± {deviation:.1}");
    writeln!(out, "| {:<15} | {mean:>12} | {:>13.1} | {bandwidth:>12} |", m.test, m.best())?;
    out.flush()
}
