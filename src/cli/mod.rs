//! The command line: one file per subcommand, and what they share.
//!
//! Standard output carries the answer alone; everything else goes to standard error.

mod analyze;
mod args;
mod argv;
mod bench;
mod chat;
mod commands;
mod conversation;
mod convert;
mod distill;
mod engine;
mod error;
mod eval;
mod extract;
mod foreign;
mod generate;
mod grammar;
mod imatrix;
mod input;
mod inspect;
mod load;
mod logits;
mod memory;
mod merge;
mod output;
mod overrides;
mod perplexity;
mod progress;
mod quantize;
mod sampling;
mod signals;
mod study;
mod synth;
mod timings;
mod tokenize;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use error::CliError;
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

/// CPU inference for quantised GGUF models whose layers share attention.
///
/// Without a subcommand, continues a prompt; flags and defaults are llama.cpp's. Letters in [brackets] are short forms.
#[derive(Parser, Debug)]
#[command(version, args_conflicts_with_subcommands = true, after_help = AFTER_HELP, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    generate: generate::GenerateArgs,
}

const AFTER_HELP: &str = "\
Environment:
  LISA_CPU  force a set of kernels: portable, avx2, avxvnni, avx512, amx, neon (default: the best this CPU has)

Examples:
  lisa-cpp -p \"Once upon a time\"
  lisa-cpp -m model.gguf -p \"The capital of France is\" -n 32 --temp 0
  lisa-cpp -m model.gguf -cnv -sys \"You are a helpful assistant.\"";

#[derive(Subcommand, Debug)]
enum Command {
    /// Show what a GGUF file holds and the memory it needs
    Inspect(inspect::InspectArgs),
    /// Turn text into tokens
    Tokenize(tokenize::TokenizeArgs),
    /// Print the model's predictions at every position of a text
    Logits(logits::LogitsArgs),
    /// Measure the speed of prompt processing and generation
    Bench(bench::BenchArgs),
    /// Measure how well the model predicts a text
    Perplexity(perplexity::PerplexityArgs),
    /// Write a model in fewer bits
    Quantize(quantize::QuantizeArgs),
    /// Measure which columns of the matrices matter, for quantize
    Imatrix(imatrix::ImatrixArgs),
    /// Score benchmarks of questions: HellaSwag, ARC, MMLU ...
    Eval(eval::EvalArgs),
    /// Measure quality, speed and memory of a grid of quantisations and sharing plans, with a report
    Study(study::StudyArgs),
    /// Write a model of random weights in the shape of a real one, to measure speed
    Synth(synth::SynthArgs),
    /// Join a model and a sidecar into one file
    Merge(merge::MergeArgs),
    /// Get the sidecar back out of a merged model
    Extract(extract::ExtractArgs),
    /// Compare how layers attend, and measure what sharing each of them does
    Analyze(analyze::AnalyzeArgs),
    /// Train a sidecar: layers take attention weights from an earlier one, and learn to do as the unchanged model does
    Distill(distill::DistillArgs),
    /// Make a sidecar of modules in a safetensors file
    ConvertLisa(convert::ConvertArgs),
}

/// Runs the command line `argv`, the program's name first.
pub fn run(argv: impl IntoIterator<Item = OsString>) -> ExitCode {
    match parse(argv).and_then(|cli| dispatch(&cli)) {
        Ok(()) | Err(CliError::BrokenPipe) => ExitCode::SUCCESS,
        Err(CliError::Interrupted) => ExitCode::from(signals::EXIT_INTERRUPTED),
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "error: {e}");
            ExitCode::from(if matches!(e, CliError::Usage(_)) { 2 } else { 1 })
        }
    }
}

fn dispatch(cli: &Cli) -> Result<(), CliError> {
    match &cli.command {
        None => generate::run(&cli.generate),
        Some(Command::Inspect(args)) => inspect::run(args),
        Some(Command::Tokenize(args)) => tokenize::run(args),
        Some(Command::Logits(args)) => logits::run(args),
        Some(Command::Bench(args)) => bench::run(args),
        Some(Command::Perplexity(args)) => perplexity::run(args),
        Some(Command::Quantize(args)) => quantize::run(args),
        Some(Command::Imatrix(args)) => imatrix::run(args),
        Some(Command::Eval(args)) => eval::run(args),
        Some(Command::Study(args)) => study::run(args),
        Some(Command::Synth(args)) => synth::run(args),
        Some(Command::Merge(args)) => merge::run(args),
        Some(Command::Extract(args)) => extract::run(args),
        Some(Command::Analyze(args)) => analyze::run(args),
        Some(Command::Distill(args)) => distill::run(args),
        Some(Command::ConvertLisa(args)) => convert::run(args),
    }
}

fn parse(argv: impl IntoIterator<Item = OsString>) -> Result<Cli, CliError> {
    // As in llama.cpp, of a flag given twice the later counts.
    let mut command = Cli::command().args_override_self(true).mut_subcommands(|sub| sub.args_override_self(true));
    // Global flags such as --help appear only in a built command.
    command.build();
    let argv = argv::normalise(&command, argv)?;
    match command.try_get_matches_from(argv).and_then(|m| Cli::from_arg_matches(&m)) {
        Ok(cli) => Ok(cli),
        Err(e) if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            e.print()?;
            std::process::exit(0)
        }
        Err(e) => Err(CliError::Usage(one_line(&e))),
    }
}

/// clap's message without the usage text: what is wrong, and its tip if there is one.
fn one_line(e: &clap::Error) -> String {
    let text = e.render().to_string();
    let mut parts = text.split("\n\n").map(|p| p.split_whitespace().collect::<Vec<_>>().join(" "));
    let what = parts.next().unwrap_or_default();
    let what = what.strip_prefix("error: ").unwrap_or(&what);
    let tip = parts.find_map(|p| p.strip_prefix("tip: ").map(str::to_owned));
    format!("{what} ({})", tip.as_deref().unwrap_or("see --help"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Cli, CliError> {
        parse(std::iter::once("lisa-cpp").chain(args.iter().copied()).map(OsString::from))
    }

    #[test]
    fn clap_finds_no_fault_with_the_definition() {
        Cli::command().debug_assert();
    }

    #[test]
    fn llama_cpp_spellings() {
        for args in [
            &["-m", "m.gguf", "-p", "x", "-n", "-1", "--temp", "-1", "-l", "15-inf", "--logit-bias", "15043+1"][..],
            &["-ub", "64", "-tb", "2", "-b", "128", "-c", "0", "-ctk", "q8_0", "-ctv", "f32", "-t", "-1"],
            &["-cnv", "-sys", "-be brief-", "-st", "-sp", "-p", "-n"],
            &["-no-cnv", "-cnv", "--no-mmap", "--mmap", "--mlock", "-e", "--no-escape", "-r", "User:", "-r", "-"],
            &["--n_predict", "3", "--top_k", "0", "--top-n-sigma", "1", "--typical-p", "0.5", "--temperature", "1"],
            &["--repeat-last-n", "-1", "--mirostat-ent", "5", "--sampler-seq", "kt", "--log-disable", "--no-perf"],
            &["perplexity", "-f", "x", "-c", "512", "--chunks", "-1"],
            &["tokenize", "-p", "--ids", "--ids", "--no-bos"],
        ] {
            assert!(parsed(args).is_ok(), "{args:?}: {}", parsed(args).unwrap_err());
        }
    }

    #[test]
    fn the_later_of_two_values_counts_and_lists_grow() {
        let cli = parsed(&["-s", "1", "-r", "a", "-s", "2", "-r", "b", "-l", "1+1", "-l", "2+1"]).unwrap();
        let text = format!("{:?}", cli.generate);
        for part in [r#"seed: "2""#, r#"reverse_prompt: ["a", "b"]"#, r#"logit_bias: ["1+1", "2+1"]"#] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        assert!(parsed(&["tokenize", "-p", "a", "-p", "b"]).is_ok());
    }

    #[test]
    fn mistakes_are_one_line_that_names_the_flag() {
        for (args, named) in [
            (&["--tempp", "1"][..], "--tempp"),
            (&["-n", "many"], "--predict"),
            (&["-n"], "--predict"),
            (&["-st"], "--conversation"),
            (&["-ctk", "q3"], "--cache-type-k"),
            (&["nonsense"], "nonsense"),
            (&["-p", "x", "-f", "y"], "--file"),
            (&["inspect", "a", "b"], "b"),
        ] {
            let message = parsed(args).unwrap_err().to_string();
            assert!(message.contains(named) && !message.contains('\n'), "{args:?}: {message}");
        }
    }
}
