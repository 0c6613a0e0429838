//! `lisa-cpp extract`: the sidecar that was merged into a model.

use super::error::CliError;
use super::load;
use super::memory::human;
use super::merge::make_error;
use super::output::{Inputs, Output};
use super::progress::Log;
use clap::Args;
use ggml_ext::lisa::{self, is_lisa_name};
use std::path::PathBuf;

/// Flags of `extract`.
#[derive(Args, Debug)]
pub struct ExtractArgs {
    /// Merged model (of a split model: its first part)
    #[arg(short, long, value_name = "FILE")]
    model: PathBuf,
    /// The sidecar; a file of this name is replaced
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Nothing on standard error but errors
    #[arg(long)]
    log_disable: bool,
}

/// Runs the command.
pub fn run(args: &ExtractArgs) -> Result<(), CliError> {
    let file = load::file(Some(&args.model))?;
    let model = file.parse()?;
    let tensors = model.iter().flat_map(|g| g.tensors()).filter(|t| is_lisa_name(&t.name));
    let (n, bytes) = tensors.fold((0, 0), |(n, bytes), t| (n + 1, bytes + t.n_bytes));
    let output = Output::create(&args.output, &Inputs::default().with([&args.model]))?;
    let log = Log::new(!args.log_disable);
    output.fill(log, bytes, |out| {
        lisa::extract(&model, out).map_err(|e| make_error(e, &file.name, &file.name, &args.output))
    })?;
    log.line(format_args!("{}: {n} tensors ({})", args.output.display(), human(bytes)));
    Ok(())
}
