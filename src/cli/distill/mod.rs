//! `lisa-cpp distill`: trains the modules of a sidecar against the unchanged model.

mod args;
mod report;

use super::error::CliError;
use super::load;
use super::memory;
use super::output::{Inputs, Output};
use super::progress::{Log, Progress};
use super::signals::Stoppable;
use args::Choice;
pub use args::{DEFAULT_RANK, DistillArgs, KindArg, TextSource};
use ggml_ext::lisa::{self, Kind, LisaMeta, Provenance};
use lisa_cpp::distill::basis::Bases;
use lisa_cpp::distill::checkpoint::{Checkpoint, Identity};
use lisa_cpp::distill::choose::{self, SingleModules};
use lisa_cpp::distill::compensate::least_squares;
use lisa_cpp::distill::data::{Windows, slices};
use lisa_cpp::distill::dense::DenseModel;
use lisa_cpp::distill::frozen::Precision;
use lisa_cpp::distill::modules::Modules;
use lisa_cpp::distill::start::{self, Design};
use lisa_cpp::distill::student::Pair;
use lisa_cpp::distill::team::{Stage, Team};
use lisa_cpp::distill::trainer::{Next, Settings, State, Trainer, identity};
use lisa_cpp::model::{Model, ModelFile, ModelParams};
use report::Report;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Windows of text that modules start from.
const N_CALIBRATION: usize = 8;
/// Windows of text on which layers are compared.
const N_CHOICE: usize = 4;

/// Runs the command.
pub fn run(args: &DistillArgs) -> Result<(), CliError> {
    let log = Log::new(!args.log_disable);
    args.check()?;
    let checkpoint = checkpoint_path(&args.output);
    if checkpoint.exists() && !args.resume {
        return Err(CliError::run(format!(
            "{} is the state of a run that is not over: --resume goes on from it; delete the file to start over",
            checkpoint.display()
        )));
    }
    let file = load::file(args.model.as_deref())?;
    let plan = args.layers.as_ref().and_then(|l| l.file.as_ref());
    let inputs = Inputs::default().with(&args.model).with([&args.text.file]).with(&args.from).with(plan);
    // Whether it can be written is better known before the work; a file made now would be left over where the run is killed.
    drop(Output::create(&args.output, &inputs)?);
    let (model, windows, fingerprint) = prepare(&file, &args.text, args.ctx_size as usize, args.held_out, log)?;
    let n_threads = args.n_threads()?;
    let settings = args.settings();
    let reverse = settings.steps(Stage::EndToEnd) > 0;
    let dense = dense(&model, args.ctx_size as usize, precision(args.exact), reverse, log)?;
    let mut team = Team::new(n_threads)?;
    let stop = Stoppable::install()?;
    let mut identity = identity(&settings, &fingerprint, &windows);
    identity.extend(args.design_settings());

    let mut state = match args.resume {
        true => resume(&checkpoint, &identity, &dense, log)?,
        false => None,
    };
    let mut state = match state.take() {
        Some(state) => state,
        None => match &args.from {
            Some(path) => {
                let (modules, tokens) = modules_of(path, &file, &model)?;
                State { tokens, ..State::new(modules) }
            }
            None => State::new(begin(args, &settings, &dense, &windows, &mut team, &stop, log)?),
        },
    };
    describe(&state.modules, &dense, &settings, n_threads, log);
    let started = Instant::now();
    let limit = args.time_limit.map(|m| Duration::from_secs_f64(60.0 * m));
    let mut report = Report::new(log, args.json);
    let bases = Bases::new(&mut team, &dense, &state.modules, &slices(&windows.first(N_CALIBRATION)));
    let mut trainer = Trainer { model: &dense, windows: &windows, settings: &settings, team: &mut team, bases };
    if state.step == 0 && state.stage == Stage::Attention {
        report.start(trainer.held_out(&state.modules, Stage::EndToEnd))?;
    }
    if !args.log_disable {
        stop.announce("interrupted: writing the checkpoint when this step is done");
    }
    let mut n_steps = 0;
    let save = &mut |state: &State| save(&checkpoint, state, &identity);
    let done = trainer.run(
        &mut state,
        &mut |event| {
            report.event(&event);
            let is_step = matches!(event, lisa_cpp::distill::trainer::Event::Step { .. });
            n_steps += usize::from(is_step);
            if stop.stopped() || limit.is_some_and(|l| started.elapsed() > l) {
                Next::Stop
            } else if is_step && n_steps % args.save_every == 0 {
                Next::Save
            } else {
                Next::Go
            }
        },
        save,
    )?;
    report.finish()?;
    if !done {
        log.line(format_args!("stopped: {} holds the state, --resume goes on from it", checkpoint.display()));
        return if stop.stopped() { Err(CliError::Interrupted) } else { Ok(()) };
    }
    let found = trainer.held_out(&state.modules, Stage::EndToEnd);
    report.end(found, state.tokens, started.elapsed())?;
    drop(stop);
    let trained = Provenance {
        tokens: Some(state.tokens),
        data: args.text.file.file_name().map(|n| n.to_string_lossy().into_owned()),
        seed: Some(args.seed),
        base: Some(model.name().map_or_else(|| file.name.clone(), str::to_owned)),
    };
    let output = Output::create(&args.output, &inputs)?;
    let bytes = write(output, log, &model, &state.modules, fingerprint, trained)?;
    log.line(format_args!("{}: {}", args.output.display(), memory::human(bytes)));
    match std::fs::remove_file(&checkpoint) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(CliError::run(format!("{}: {e}", checkpoint.display())))
        }
        _ => Ok(()),
    }
}

/// The model, the text in windows, and the model's fingerprint.
pub fn prepare(
    file: &ModelFile,
    text: &TextSource,
    n_ctx: usize,
    n_held_out: usize,
    log: Log,
) -> Result<(Model, Windows, String), CliError> {
    let parts = file.parse()?;
    let (_, fingerprint) = lisa::identify(&parts).map_err(|e| CliError::run(format!("{}: {e}", file.name)))?;
    let model = Model::load(file, ModelParams::default())?;
    for warning in model.warnings() {
        log.line(format_args!("warning: {warning}"));
    }
    let texts = text.texts()?;
    let mut bar = Progress::new(log, "reading the text", texts.len() as u64);
    let windows = Windows::new(model.tokenizer(), &texts, n_ctx, n_held_out, &mut |i| bar.set(i as u64))?;
    log.line(format_args!(
        "text: {} windows of {n_ctx} tokens to train on, {} held out",
        windows.n_train(),
        windows.held_out.len()
    ));
    Ok((model, windows, fingerprint))
}

/// The model for training, with `reverse` for stages with a reverse pass too.
pub fn dense(
    model: &Model,
    n_ctx: usize,
    precision: Precision,
    reverse: bool,
    log: Log,
) -> Result<DenseModel<'_>, CliError> {
    let need = DenseModel::bytes(model, precision, reverse);
    let free = memory::available();
    log.line(format_args!("memory: {} for weights besides the model's own", memory::human(need)));
    if let Some(free) = free.filter(|&free| need > free) {
        let (need, free) = (memory::human(need), memory::human(free));
        return Err(CliError::run(format!("weights to train with take {need}, and {free} of memory are free")));
    }
    Ok(DenseModel::new(model, n_ctx, precision)?)
}

/// How `--exact` has frozen matrices multiplied.
pub fn precision(exact: bool) -> Precision {
    if exact { Precision::Exact } else { Precision::Int8 }
}

fn checkpoint_path(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".checkpoint");
    name.into()
}

fn resume(path: &Path, identity: &Identity, model: &DenseModel, log: Log) -> Result<Option<State>, CliError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            log.line(format_args!("note: {} does not exist: starting from the beginning", path.display()));
            return Ok(None);
        }
        Err(e) => return Err(CliError::run(format!("{}: {e}", path.display()))),
    };
    let fault = |e: String| CliError::run(format!("{}: {e}", path.display()));
    let state = Checkpoint::read(&bytes, identity, model).map_err(fault)?;
    log.line(format_args!("resumed: {} stage, step {}", state.stage.name(), state.step));
    Ok(Some(state))
}

fn save(path: &Path, state: &State, identity: &Identity) -> lisa_cpp::Result<()> {
    let io = |source| lisa_cpp::Error::Io { path: path.into(), source };
    let folder = path.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."));
    let mut temp = tempfile::NamedTempFile::new_in(folder).map_err(io)?;
    let mut bytes = Vec::new();
    state.checkpoint(identity).write(&mut bytes).map_err(|e| io(std::io::Error::other(e)))?;
    std::io::Write::write_all(&mut temp, &bytes).map_err(io)?;
    // On the disk before it has the name: a power cut leaves the old checkpoint or the new one.
    temp.as_file().sync_all().map_err(io)?;
    temp.persist(path).map(drop).map_err(|e| io(e.error))
}

/// The student before training.
fn begin(
    args: &DistillArgs,
    settings: &Settings,
    model: &DenseModel,
    windows: &Windows,
    team: &mut Team,
    stop: &Stoppable,
    log: Log,
) -> Result<Modules, CliError> {
    let calibration = windows.first(N_CALIBRATION);
    let calibration = slices(&calibration);
    let mut design = Design {
        plan: Vec::new(),
        kind: args.kind.into(),
        rank: args.rank(),
        n_hidden: args.hidden.unwrap_or(0),
        activation: args.activation()?,
        domain: args.domain()?,
        comp: !args.no_comp,
        seed: args.seed,
    };
    let wanted = args.layers.as_ref().ok_or_else(|| CliError::usage("--layers is missing"))?;
    let layers = match &wanted.choice {
        Choice::Plan(plan) => plan.clone(),
        Choice::Auto(n) => {
            let protect = args.protect.unwrap_or_else(|| choose::default_protect(model.layers.len()));
            let candidates = choose::candidates(model, protect);
            choose::enough(&candidates, *n)?;
            let mut all = choose::single(model, &design, &candidates, &calibration)?;
            if design.kind == Kind::Lisa {
                let bases = Bases::new(team, model, &all, &calibration);
                let mut bar = Progress::new(log, "training layers apart", settings.steps_choice as u64);
                let mut trainer = Trainer { model, windows, settings, team, bases };
                trainer.fit(&mut all, Stage::Apart, &mut |step, loss| {
                    bar.set(step as u64);
                    bar.message(format_args!("training layers apart: loss {loss:.4}"));
                    !stop.stopped()
                })?;
            }
            let parts = SingleModules::new(&all);
            let taught = team.teach(model, &slices(&windows.first(N_CHOICE)));
            let mut bar = Progress::new(log, "choosing layers", *n as u64);
            let chosen = choose::greedy(team, model, &parts, &taught, &candidates, *n, &mut |m| {
                bar.set(m.n_chosen as u64);
                bar.message(format_args!("choosing layers: KL {:.4} with {}", m.kl, m.layer));
                !stop.stopped()
            })?;
            drop(bar);
            let text: Vec<_> = chosen.iter().map(|l| l.to_string()).collect();
            log.line(format_args!("layers: {}", text.join(",")));
            chosen.into_iter().map(|l| (l, l - 1)).collect()
        }
    };
    design.plan = args.sources(layers, model);
    let mut modules = start::student(model, &design, &calibration)?;
    if design.kind == Kind::Shared && design.comp {
        log.line("compensation by least squares ...");
        least_squares(model, &mut modules, &slices(&windows.first(4 * N_CALIBRATION)));
    }
    Ok(modules)
}

/// The modules of the sidecar at `path`, and how many tokens they were trained on.
fn modules_of(path: &Path, file: &ModelFile, model: &Model) -> Result<(Modules, u64), CliError> {
    let error = |e: &dyn std::fmt::Display| CliError::run(format!("{}: {e}", path.display()));
    let sidecar = load::sidecar(path)?;
    let (parts, base) = (sidecar.parse()?, file.parse()?);
    let arch = &model.config().arch;
    lisa::check_container(&parts[0], arch).map_err(|e| error(&e))?;
    let meta = LisaMeta::read(&parts[0]).map_err(|e| error(&e))?;
    let meta = meta.ok_or_else(|| error(&format_args!("key {} is missing", lisa::VERSION_KEY)))?;
    let geometry = lisa::check_base(&meta, &base).map_err(|e| error(&e))?;
    lisa::check_sidecar(&meta, &geometry, arch, &parts[0]).map_err(|e| error(&e))?;
    if let Some(layer) = meta.layers.iter().position(|l| l.kind == Kind::Kv) {
        return Err(error(&format_args!("layer {layer} is of kind kv, which has nothing to train")));
    }
    Ok((Modules::read(&meta, &parts[0], &geometry), meta.trained.tokens.unwrap_or(0)))
}

/// Says what will be trained and the memory that it takes.
fn describe(modules: &Modules, model: &DenseModel, settings: &Settings, n_threads: usize, log: Log) {
    let n = modules.iter().len();
    let ranks: Vec<String> = modules.iter().filter(|m| m.rank > 0).map(|m| m.rank.to_string()).collect();
    let (trained, layers) = (modules.values.len(), model.layers.len());
    let ranks = if ranks.is_empty() { String::new() } else { format!(", ranks {}", ranks.join(" ")) };
    log.line(format_args!("student: {n} of {layers} layers substituted, {trained} values to train{ranks}"));
    let pair = Pair { model, modules };
    let stages = [(Stage::Attention, false), (Stage::EndToEnd, true)];
    let space = stages.iter().filter(|(s, _)| settings.steps(*s) > 0).map(|(_, e)| pair.workspace_bytes(*e)).max();
    let state = 4 * trained as u64 * (5 + settings.batch as u64) + Bases::bytes(modules);
    let total = space.unwrap_or(0) * n_threads as u64 + state;
    log.line(format_args!("memory: about {} more for {n_threads} threads at work", memory::human(total)));
    if let Some(free) = memory::available().filter(|&free| total > free) {
        log.line(format_args!(
            "warning: only {} of memory are free: fewer -t or a smaller -c take less",
            memory::human(free)
        ));
    }
}

/// Writes the sidecar; returns its bytes.
fn write(
    output: Output,
    log: Log,
    model: &Model,
    modules: &Modules,
    fingerprint: String,
    trained: Provenance,
) -> Result<u64, CliError> {
    let n_layer = model.config().n_layer;
    let meta = modules.meta(n_layer, fingerprint, trained);
    let tensors = modules.tensors();
    let bytes = tensors.iter().map(|t| t.0.n_bytes).sum();
    let refs = tensors.iter().map(|(info, data)| (info, &data[..]));
    output.fill(log, bytes, |out| {
        lisa::write_sidecar(&model.config().arch, &meta, refs, out).map_err(|e| CliError::run(e.to_string()))
    })?;
    Ok(bytes)
}
