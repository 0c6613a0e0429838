//! `lisa-cpp merge`: a base model and a sidecar in one file, without the tensors that the plan makes idle.

use super::error::CliError;
use super::load;
use super::memory::human;
use super::output::{Inputs, Output};
use super::progress::Log;
use clap::Args;
use ggml_ext::gguf::Gguf;
use ggml_ext::lisa::{self, LisaMeta, MakeError};
use lisa_cpp::model::ModelFile;
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
}

/// Runs the command.
pub fn run(args: &MergeArgs) -> Result<(), CliError> {
    let base_file = load::file(args.model.as_deref())?;
    let base = base_file.parse()?;
    let sidecar_file = args.lisa.as_deref().map(load::sidecar).transpose()?;
    let sidecar = sidecar_file.as_ref().map(ModelFile::parse).transpose()?;
    let plan_name = sidecar_file.as_ref().map_or("--share", |f| &f.name);
    let meta = match (&sidecar, &sidecar_file, &args.share) {
        (Some(sidecar), Some(file), _) => read_plan(sidecar, file)?,
        (_, _, share) => {
            let plan = load::share_plan(share.as_deref().unwrap_or_default())?;
            let at_fault = |e| make_error(e, &base_file.name, plan_name, &args.output);
            let (geometry, fingerprint) = lisa::identify(&base).map_err(at_fault)?;
            let n_layer = geometry.layers.len();
            plan.check_layers(n_layer).map_err(|e| CliError::usage(format!("--share: {e}")))?;
            plan.to_meta(n_layer, fingerprint)
        }
    };

    let inputs = Inputs::default().with(&args.model).with(&args.lisa).with(&args.share);
    let output = Output::create(&args.output, &inputs)?;
    let expected = base_file.n_bytes() + sidecar_file.as_ref().map_or(0, ModelFile::n_bytes);
    let report = output.fill(expected as u64, |out| {
        let merged = lisa::merge(&base, &meta, sidecar.as_ref().map(|s| &s[0]), out);
        merged.map_err(|e| make_error(e, &base_file.name, plan_name, &args.output))
    })?;

    let sum = |s: lisa::Sum| format!("{} tensors ({})", s.tensors, human(s.bytes));
    let mut line = format!("{}: dropped {}", args.output.display(), sum(report.dropped));
    if report.cut.tensors > 0 {
        line += &format!(", cut {} off {} fused tensors", human(report.cut.bytes), report.cut.tensors);
    }
    Log::new(true).line(format_args!("{line}, added {}", sum(report.added)));
    Ok(())
}

/// The plan of a sidecar in one file.
fn read_plan(sidecar: &[Gguf], file: &ModelFile) -> Result<LisaMeta, CliError> {
    let error = |e: &dyn std::fmt::Display| CliError::run(format!("{}: {e}", file.name));
    if sidecar.len() != 1 {
        return Err(error(&"is split, expected a sidecar in one file"));
    }
    match LisaMeta::read(&sidecar[0]) {
        Ok(Some(meta)) => Ok(meta),
        Ok(None) => Err(error(&format!("not a LISA sidecar: key {} is missing", lisa::VERSION_KEY))),
        Err(e) => Err(error(&e)),
    }
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
