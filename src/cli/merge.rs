//! `lisa-cpp merge`: a base model and a sidecar in one file, without the tensors that the plan makes idle.

use super::error::CliError;
use super::load;
use super::memory::human;
use super::output::{Inputs, Output};
use super::progress::Log;
use clap::Args;
use ggml_ext::lisa::{self, MakeError};
use lisa_cpp::model::{ModelFile, SharingSource};
use std::path::{Path, PathBuf};

/// Flags of `merge`.
#[derive(Args, Debug)]
pub struct MergeArgs {
    /// GGUF file of the base model (of a split model: its first part). Default: the embedded story model
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Sidecar: the modules and the sharing plan
    #[arg(long, value_name = "FILE", conflicts_with = "share", required_unless_present = "share")]
    lisa: Option<PathBuf>,
    /// Without a sidecar: layers that take the attention weights of another, as for generation
    #[arg(long, value_name = "LAYERS")]
    share: Option<String>,
    /// The merged model; a file of this name is replaced
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Nothing on standard error but errors
    #[arg(long)]
    log_disable: bool,
}

/// Runs the command.
pub fn run(args: &MergeArgs) -> Result<(), CliError> {
    let base_file = load::file(args.model.as_deref())?;
    let base = base_file.parse()?;
    let sidecar_file = args.lisa.as_deref().map(load::sidecar).transpose()?;
    let share = args.share.as_deref().map(load::share_plan).transpose()?;
    let plan_name = sidecar_file.as_ref().map_or("--share", |f| &f.name);
    let at_fault = |e| make_error(e, &base_file.name, plan_name, &args.output);
    lisa::check_unmerged(&base).map_err(at_fault)?;
    let sharing = SharingSource::read(&base_file, &base, sidecar_file.as_ref(), share.as_ref())?;
    // What could not be loaded is not written.
    sharing.check(&base_file, &base)?;
    let meta = match sharing.meta {
        Some(meta) => meta,
        None => {
            let (geometry, fingerprint) = lisa::identify(&base).map_err(at_fault)?;
            sharing.plan.to_meta(geometry.layers.len(), fingerprint)
        }
    };
    let sidecar = sidecar_file.as_ref().map(ModelFile::parse).transpose()?;

    let inputs = Inputs::default().with(&args.model).with(&args.lisa).with(&args.share);
    let output = Output::create(&args.output, &inputs)?;
    let expected = base_file.n_bytes() + sidecar_file.as_ref().map_or(0, ModelFile::n_bytes);
    let log = Log::new(!args.log_disable);
    let report = output.fill(log, expected as u64, |out| {
        lisa::merge(&base, &meta, sidecar.as_ref().map(|s| &s[0]), out).map_err(at_fault)
    })?;

    let sum = |s: lisa::Sum| format!("{} tensors ({})", s.tensors, human(s.bytes));
    let mut line = format!("{}: dropped {}", args.output.display(), sum(report.dropped));
    if report.cut.tensors > 0 {
        line += &format!(", cut {} off {} fused tensors", human(report.cut.bytes), report.cut.tensors);
    }
    log.line(format_args!("{line}, added {}", sum(report.added)));
    Ok(())
}

/// Puts the name of the file at fault before the message.
pub fn make_error(e: MakeError, model: &str, sidecar: &str, output: &Path) -> CliError {
    let output = output.display().to_string();
    let file = match &e {
        MakeError::Sidecar(_) => sidecar,
        MakeError::Write(_) => &output,
        _ => model,
    };
    CliError::run(format!("{file}: {e}"))
}
