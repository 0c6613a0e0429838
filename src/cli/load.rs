//! Opening models and sessions for the subcommands.

use super::args::{ComputeArgs, ModelArgs, without_mark};
use super::error::CliError;
use super::memory;
use super::progress::{Log, Progress};
use lisa_cpp::attention::SharePlan;
use lisa_cpp::model::{Model, ModelFile, ModelParams};
use lisa_cpp::runtime::{Session, SessionParams};
use lisa_cpp::tokenizer::Tokenizer;
use std::path::Path;
use std::sync::Arc;

/// The file at `path`, or the embedded model's.
pub fn file(path: Option<&Path>) -> Result<ModelFile, CliError> {
    match path {
        Some(path) => Ok(ModelFile::open(path)?),
        None => Ok(ModelFile::embedded()),
    }
}

/// What `--lisa` names for the sidecar that is part of the program.
const DEFAULT_SIDECAR: &str = "default";

/// The sidecar at `path`, or that of the embedded model.
pub fn sidecar(path: &Path) -> lisa_cpp::Result<ModelFile> {
    match path == Path::new(DEFAULT_SIDECAR) {
        true => Ok(ModelFile::embedded_sidecar()),
        false => ModelFile::open(path),
    }
}

/// The vocabulary alone, which needs no weights.
pub fn tokenizer(path: Option<&Path>) -> Result<Tokenizer, CliError> {
    let file = file(path)?;
    let parts = file.parse()?;
    Ok(Tokenizer::from_gguf(&parts[0])?)
}

/// Loads the model the flags name, with a progress bar, and says what it is.
pub fn model(args: &ModelArgs, compute: &ComputeArgs, log: Log) -> Result<Arc<Model>, CliError> {
    model_by_threads(args, compute.n_threads()?, log)
}

/// [`model`], packed by `n_threads`.
pub fn model_by_threads(args: &ModelArgs, n_threads: usize, log: Log) -> Result<Arc<Model>, CliError> {
    const STEPS: f32 = 1000.0;
    let mut file = file(args.model.as_deref())?;
    file.set_overrides(args.overrides.all())?;
    let sidecar = args.lisa.as_deref().map(sidecar).transpose()?;
    let plan = args.share.as_deref().map(share_plan).transpose()?;
    let model = {
        let mut bar = Progress::new(log, "loading the model", STEPS as u64);
        let mut progress = |done: f32| bar.set((done * STEPS) as u64);
        Model::load(
            &file,
            ModelParams {
                use_mmap: !args.no_mmap,
                mlock: args.mlock,
                n_threads,
                lisa: sidecar.as_ref(),
                share: plan.as_ref(),
                progress: Some(&mut progress),
            },
        )?
    };
    for warning in model.warnings() {
        log.line(format_args!("warning: {warning}"));
    }
    log.line(format_args!(
        "model: {} ({}, {} layers, {}), kernels: {}",
        model.name().unwrap_or(&file.name),
        model.config().arch,
        model.config().n_layer,
        memory::human(model.n_file_bytes() as u64),
        model.kernels().tier.name(),
    ));
    Ok(Arc::new(model))
}

/// The plan that `--share` gives: a list of layers, or a file with one.
pub fn share_plan(given: &str) -> Result<SharePlan, CliError> {
    let is_list = given.starts_with(|c: char| c.is_ascii_digit()) || given.starts_with("kv:");
    if is_list && !Path::new(given).exists() {
        return given.parse().map_err(|e| CliError::usage(format!("--share: {e}")));
    }
    let text = std::fs::read_to_string(given).map_err(|e| {
        CliError::usage(format!(
            "--share: '{given}' is neither a list of layers such as 5,6,7 or 4-9 nor a readable file: {e}"
        ))
    })?;
    without_mark(text).parse().map_err(|e| CliError::run(format!("{given}: {e}")))
}

/// Opens a session with a context of `wanted` tokens: 0 for the model's own, `None` for as much of it as memory allows.
pub fn session(model: &Arc<Model>, compute: &ComputeArgs, wanted: Option<u32>, log: Log) -> Result<Session, CliError> {
    let n_ctx_train = model.n_ctx_train();
    let mut params = compute.session_params(0)?;
    params.n_ctx = match wanted {
        Some(0) => n_ctx_train,
        Some(n) => n as usize,
        None => {
            let bytes =
                |n_ctx| Session::cache_bytes(model, &SessionParams { n_ctx, ..params.clone() }).unwrap_or(0) as u64;
            let n_ctx = affordable_context(n_ctx_train, bytes, memory::available());
            if n_ctx < n_ctx_train {
                log.line(format_args!(
                    "note: context of {n_ctx} tokens instead of the model's {n_ctx_train}, whose cache would take {}; -c 0 \
                     takes it all",
                    memory::human(bytes(n_ctx_train))
                ));
            }
            n_ctx
        }
    };
    if params.n_ctx > n_ctx_train {
        log.line(format_args!(
            "warning: the model was trained for {n_ctx_train} tokens of context, and {} are asked for",
            params.n_ctx
        ));
    }
    let (n_threads, n_threads_batch) = (params.n_threads, params.n_threads_batch);
    let session = Session::new(model.clone(), params)?;
    let threads = match n_threads_batch {
        0 => n_threads.to_string(),
        n if n == n_threads => n.to_string(),
        n => format!("{n_threads} ({n} for prompts)"),
    };
    log.line(format_args!(
        "context: {} tokens, cache: {}, threads: {threads}",
        session.n_ctx(),
        memory::human(session.cache().n_bytes() as u64)
    ));
    Ok(session)
}

/// Contexts are not reduced below this.
const MIN_CONTEXT: usize = 4096;

/// The largest context up to `n_ctx_train`, in steps of 256, whose cache takes at most half of the `available` bytes.
fn affordable_context(n_ctx_train: usize, bytes: impl Fn(usize) -> u64, available: Option<u64>) -> usize {
    const STEP: usize = 256;
    // Where the system does not tell what is free, assume a small machine.
    let budget = available.unwrap_or(4 << 30) / 2;
    if bytes(n_ctx_train) <= budget {
        return n_ctx_train;
    }
    // More steps of context take more bytes.
    let (mut fits, mut over) = (0, n_ctx_train / STEP + 1);
    while over - fits > 1 {
        let middle = fits.midpoint(over);
        *(if bytes(middle * STEP) <= budget { &mut fits } else { &mut over }) = middle;
    }
    n_ctx_train.min((fits * STEP).max(MIN_CONTEXT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_that_fit() {
        let gib = 1u64 << 30;
        let each = |bytes: u64| move |n: usize| n as u64 * bytes;
        assert_eq!(affordable_context(2048, each(1 << 10), Some(gib)), 2048);
        assert_eq!(affordable_context(131_072, each(1 << 15), Some(2 * gib)), 32_768);
        assert_eq!(affordable_context(131_072, each(1 << 15), Some(0)), MIN_CONTEXT);
        assert_eq!(affordable_context(512, each(1 << 30), None), 512);
        assert_eq!(affordable_context(131_072, each(100_000), Some(gib)) % 256, 0);
        // Most layers keep a window alone.
        let windows = |n: usize| (n as u64 + 9 * n.min(1024) as u64) << 10;
        assert_eq!(affordable_context(131_072, windows, Some(gib / 16)), 32_768 - 9 * 1024);
    }
}
