//! `lisa-cpp convert-lisa`: a sidecar from modules in a safetensors file, as PyTorch programs write them.

use super::args::read_text;
use super::error::CliError;
use super::load;
use super::memory::human;
use super::merge::make_error;
use super::output::{Inputs, Output};
use super::progress::Log;
use clap::Args;
use ggml_ext::lisa::{self, ConvertError, Kind, Map};
use std::path::{Path, PathBuf};

/// Flags of `convert-lisa`.
#[derive(Args, Debug)]
pub struct ConvertArgs {
    /// GGUF file of the base model (of a split model: its first part). Default: the embedded story model
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// The modules
    #[arg(long, value_name = "FILE")]
    safetensors: PathBuf,
    /// JSON that says where the modules are and how they are stored; ggml-ext/SPEC.md describes it
    #[arg(long, value_name = "FILE")]
    map: PathBuf,
    /// The sidecar; a file of this name is replaced
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Nothing on standard error but errors
    #[arg(long)]
    log_disable: bool,
}

/// Runs the command.
pub fn run(args: &ConvertArgs) -> Result<(), CliError> {
    let file_error = |path: &Path, e: &dyn std::fmt::Display| CliError::run(format!("{}: {e}", path.display()));
    let read = |path: &Path| std::fs::read(path).map_err(|e| file_error(path, &e));
    let text = read_text(&args.map)?;
    let map = Map::parse(&text).map_err(|e| file_error(&args.map, &e))?;
    let modules = read(&args.safetensors)?;
    let file = load::file(args.model.as_deref())?;
    let base = file.parse()?;

    let inputs = Inputs::default().with(&args.model).with([&args.safetensors, &args.map]);
    let output = Output::create(&args.output, &inputs)?;
    let log = Log::new(!args.log_disable);
    let (meta, sum) = output.fill(log, modules.len() as u64, |out| {
        lisa::convert(&base, &modules, &map, out).map_err(|e| match e {
            ConvertError::Make(e) => make_error(e, &file.name, &file.name, &args.output),
            ConvertError::Map(_) => file_error(&args.map, &e),
            _ => file_error(&args.safetensors, &e),
        })
    })?;
    let shared = meta.layers.iter().filter(|l| l.kind != Kind::Full).count();
    log.line(format_args!(
        "{}: {shared} of {} layers substituted, {} tensors ({})",
        args.output.display(),
        meta.layers.len(),
        sum.tensors,
        human(sum.bytes)
    ));
    Ok(())
}
