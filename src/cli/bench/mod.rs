//! `lisa-cpp bench`: tokens per second, with `llama-bench`'s tests and output formats, beside what the machine could do.

mod grid;
mod output;
mod record;

use super::args::{ActivationArgs, CacheTypeArg, ModelArgs};
use super::error::CliError;
use super::load;
use super::memory;
use super::progress::Log;
use clap::Args;
use grid::{numbers, pairs};
use lisa_cpp::compute::default_threads;
use lisa_cpp::eval::Roofline;
use lisa_cpp::eval::bench::{Bench, Test};
use lisa_cpp::model::Model;
use lisa_cpp::runtime::SessionParams;
use output::{Format, Printer};
use record::Record;
use std::path::PathBuf;
use std::time::Duration;

/// Flags of `bench`.
///
/// A number can be a list (1,2,4), a range (1-4, 128-512+128, 512-4096*2), and given several times; all combinations are run.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// GGUF files. Default: the story model embedded in the program
    #[arg(short, long, value_name = "FILE", value_delimiter = ',')]
    model: Vec<PathBuf>,
    /// Sidecar with LISA modules for the models
    #[arg(long, value_name = "FILE", conflicts_with = "share")]
    lisa: Option<PathBuf>,
    /// Layers that take the attention weights of another: a list, or a file with one
    #[arg(long, value_name = "LAYERS")]
    share: Option<String>,
    /// Read the files instead of mapping them into memory
    #[arg(long)]
    no_mmap: bool,
    /// Lengths of prompts; 0: none
    #[arg(short = 'p', long, value_name = "N", default_value = "512")]
    n_prompt: Vec<String>,
    /// Numbers of tokens to generate; 0: none
    #[arg(short, long, value_name = "N", default_value = "128")]
    n_gen: Vec<String>,
    /// A prompt and then generation, timed together, such as 512,128 [-pg]
    #[arg(long, value_name = "PP,TG")]
    prompt_gen: Vec<String>,
    /// Tokens in the context before each test
    #[arg(short = 'd', long, value_name = "N", default_value = "0")]
    n_depth: Vec<String>,
    /// Threads; 0: as many as this process may use
    #[arg(short, long, value_name = "N", default_value = "0", hide_default_value = true)]
    threads: Vec<String>,
    /// Most tokens given to the engine in one call
    #[arg(short, long, value_name = "N", default_value = "2048")]
    batch_size: Vec<String>,
    /// Most tokens that go through the layers together; fewer do where that is faster [-ub]
    #[arg(long, value_name = "N", default_value = "512")]
    ubatch_size: Vec<String>,
    /// Element types of cached keys [-ctk]
    #[arg(long, value_name = "TYPE", value_enum, value_delimiter = ',', default_value = "f16")]
    cache_type_k: Vec<CacheTypeArg>,
    /// Element types of cached values [-ctv]
    #[arg(long, value_name = "TYPE", value_enum, value_delimiter = ',', default_value = "f16")]
    cache_type_v: Vec<CacheTypeArg>,
    #[command(flatten)]
    activations: ActivationArgs,
    /// Times each test is repeated
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    repetitions: u32,
    /// Do not run each test once before, uncounted
    #[arg(long)]
    no_warmup: bool,
    /// Seconds to wait before each test
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    delay: u64,
    /// Format of the results on standard output
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Format::Md)]
    output: Format,
    /// Print the results on standard error too, in this format [-oe]
    #[arg(long, value_name = "FORMAT", value_enum)]
    output_err: Option<Format>,
    /// Measure the machine's read bandwidth and peak of products before and after every test, and show the part of them that it reaches
    #[arg(long)]
    roofline: bool,
    /// Print where the time of each test went, by kind of operation, on standard error
    #[arg(long)]
    profile: bool,
    /// Say on standard error which test runs
    #[arg(long)]
    progress: bool,
    /// Nothing on standard error but errors and what was asked for
    #[arg(long)]
    log_disable: bool,
}

/// Runs the command.
pub fn run(args: &BenchArgs) -> Result<(), CliError> {
    if args.repetitions == 0 {
        return Err(CliError::usage("--repetitions must be at least 1"));
    }
    let tests = tests(args)?;
    let params = all_params(args)?;
    let models: Vec<Option<PathBuf>> = match args.model.is_empty() {
        true => vec![None],
        false => args.model.iter().cloned().map(Some).collect(),
    };
    let mut printers = vec![Printer::new(args.output, Box::new(std::io::stdout().lock()), args.roofline)];
    printers.extend(args.output_err.map(|f| Printer::new(f, Box::new(std::io::stderr()), args.roofline)));
    let measured = measure(args, &models, &params, &tests, &mut printers);
    // What was measured before something failed can be read all the same: an array has its end.
    let finished = printers.into_iter().try_for_each(Printer::finish);
    measured.and(finished)
}

/// Runs all tests of all models, and prints each result when it is there.
fn measure(
    args: &BenchArgs,
    models: &[Option<PathBuf>],
    params: &[SessionParams],
    tests: &[Test],
    printers: &mut [Printer],
) -> Result<(), CliError> {
    let log = Log::new(!args.log_disable);
    // For what was asked for by a flag of its own.
    let asked = Log::new(true);
    let (n_all, mut i) = (models.len() * params.len() * tests.len(), 0);
    for (n_before, path) in models.iter().enumerate() {
        // The most memory a model took is not that of a larger one before it.
        let is_own_peak = n_before == 0 || memory::reset_peak();
        let model_args = ModelArgs {
            model: path.clone(),
            lisa: args.lisa.clone(),
            share: args.share.clone(),
            no_mmap: args.no_mmap,
            ..ModelArgs::default()
        };
        let most_threads = params.iter().map(|p| p.n_threads).max().unwrap_or(1);
        let model = load::model_by_threads(&model_args, most_threads, log)?;
        for params in params {
            let limits = || args.roofline.then(|| roofline(&model, params.n_threads)).transpose();
            let mut before = limits()?;
            let mut bench = Bench::new(&model, params, tests)?;
            if args.profile {
                bench.session().start_profile();
            }
            for &test in tests {
                i += 1;
                if args.progress {
                    asked.line(format_args!("lisa-cpp bench: {i} of {n_all}: {test}"));
                }
                std::thread::sleep(Duration::from_secs(args.delay));
                let start = chrono::Utc::now();
                let measurement = bench.run(test, args.repetitions as usize, !args.no_warmup)?;
                let peak_memory = memory::peak_resident().filter(|_| is_own_peak);
                // On a shared machine the limits move: those of a test are the best that was seen on either side of it.
                let after = limits()?;
                let roofline = before.zip(after).map(|(a, b)| a.best(b));
                before = after;
                if let Some(r) = &roofline {
                    asked.line(format_args!(
                        "roofline of {} threads: {:.1} GB/s read, {:.0} G multiply-adds/s",
                        r.n_threads,
                        r.read_bytes_per_second / 1e9,
                        r.macs_per_second / 1e9
                    ));
                }
                let cache = bench.session().cache();
                let record = Record {
                    path: path.as_deref(),
                    model: &model,
                    use_mmap: !args.no_mmap,
                    params,
                    kv_bytes: &|n| cache.bytes_at(n),
                    measurement: &measurement,
                    start,
                    peak_memory,
                    roofline,
                };
                for printer in printers.iter_mut() {
                    printer.print(&record)?;
                }
                if let Some(profile) = bench.session().profile() {
                    asked.line(format_args!("\n{test}, {} threads:\n{profile}\n", params.n_threads));
                }
            }
        }
    }
    Ok(())
}

/// Every test that the flags ask for, shallow ones first.
fn tests(args: &BenchArgs) -> Result<Vec<Test>, CliError> {
    let mut tests = Vec::new();
    for n_depth in numbers("--n-depth", &args.n_depth)? {
        for n_prompt in numbers("--n-prompt", &args.n_prompt)?.into_iter().filter(|&n| n > 0) {
            tests.push(Test { n_prompt, n_gen: 0, n_depth });
        }
        for n_gen in numbers("--n-gen", &args.n_gen)?.into_iter().filter(|&n| n > 0) {
            tests.push(Test { n_prompt: 0, n_gen, n_depth });
        }
        for (n_prompt, n_gen) in pairs("--prompt-gen", &args.prompt_gen)? {
            tests.push(Test { n_prompt, n_gen, n_depth });
        }
    }
    if tests.is_empty() {
        return Err(CliError::usage("nothing to measure: --n-prompt and --n-gen are 0, and there is no --prompt-gen"));
    }
    Ok(tests)
}

/// Every way to run a session that the flags ask for.
fn all_params(args: &BenchArgs) -> Result<Vec<SessionParams>, CliError> {
    let positive = |flag: &str, values: &[String]| {
        let values = numbers(flag, values)?;
        if values.contains(&0) {
            return Err(CliError::usage(format!("{flag} must be at least 1")));
        }
        Ok(values)
    };
    let (batches, ubatches) =
        (positive("--batch-size", &args.batch_size)?, positive("--ubatch-size", &args.ubatch_size)?);
    let mut all = Vec::new();
    for n_threads in numbers("--threads", &args.threads)? {
        let n_threads = match n_threads {
            0 => default_threads(),
            n => super::args::threads("--threads", i32::try_from(n).unwrap_or(i32::MAX))?,
        };
        for &n_batch in &batches {
            for &n_ubatch in &ubatches {
                for &k in &args.cache_type_k {
                    for &v in &args.cache_type_v {
                        all.push(SessionParams {
                            n_ctx: 0,
                            n_batch,
                            n_ubatch: n_ubatch.min(n_batch),
                            n_threads,
                            n_threads_batch: n_threads,
                            cache_type_k: k.into(),
                            cache_type_v: v.into(),
                            activations: args.activations.ty(),
                            ..SessionParams::default()
                        });
                    }
                }
            }
        }
    }
    Ok(all)
}

/// The limits of `n_threads` now. What measuring them takes does not count as peak memory.
fn roofline(model: &Model, n_threads: usize) -> Result<Roofline, CliError> {
    let roofline = Roofline::measure(model.kernels(), n_threads)?;
    memory::reset_peak();
    Ok(roofline)
}
