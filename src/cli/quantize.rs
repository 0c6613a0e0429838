//! `lisa-cpp quantize`: a model in fewer bits, with llama-quantize's arguments.

use super::error::CliError;
use super::memory::human;
use super::output::{Complete, Inputs, Output};
use super::progress::Log;
use super::signals::Stoppable;
use clap::Args;
use fancy_regex::Regex;
use ggml_ext::GgmlType;
use ggml_ext::gguf::split::PartName;
use lisa_cpp::compute::{Pool, default_threads};
use lisa_cpp::imatrix::{Imatrix, Importance};
use lisa_cpp::model::{ModelFile, Override, OverrideValue};
use lisa_cpp::quantize::{self, Options, Plan, Recipe, Shard, Step};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Flags of `quantize`.
#[derive(Args, Debug)]
#[command(after_help = types_help())]
pub struct QuantizeArgs {
    /// IN [OUT] TYPE [THREADS]: the model (of a split model: its first part), the file to write [default: ggml-model-TYPE.gguf
    /// beside it], what to quantise to, and how many threads may work
    #[arg(value_name = "ARGS", num_args = 2..=4, required = true)]
    args: Vec<String>,
    /// Quantise what is quantised already: the errors add up
    #[arg(long)]
    allow_requantize: bool,
    /// Leave output.weight as it is
    #[arg(long)]
    leave_output_tensor: bool,
    /// The same type for all matrices, without the mix that TYPE stands for
    #[arg(long)]
    pure: bool,
    /// Importance matrix (GGUF or the older format, as `lisa-cpp imatrix` and llama-imatrix write them)
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Use it for the tensors whose name has this part only (can be given several times)
    #[arg(long, value_name = "NAME", conflicts_with = "exclude_weights")]
    include_weights: Vec<String>,
    /// Do not use it for the tensors whose name has this part (can be given several times)
    #[arg(long, value_name = "NAME")]
    exclude_weights: Vec<String>,
    /// Type of output.weight
    #[arg(long, value_name = "TYPE", value_parser = tensor_type)]
    output_tensor_type: Option<GgmlType>,
    /// Type of the token embeddings
    #[arg(long, value_name = "TYPE", value_parser = tensor_type)]
    token_embedding_type: Option<GgmlType>,
    /// Type of the tensors in whose name the regular expression is found, e.g. ffn_down=q6_k (can be given several times; the
    /// first that matches counts)
    #[arg(long, value_name = "REGEX=TYPE")]
    tensor_type: Vec<String>,
    /// File with more of these, separated by white space
    #[arg(long, value_name = "FILE")]
    tensor_type_file: Option<PathBuf>,
    /// Replace or add metadata; TYPE is int, float, bool or str (can be given several times)
    #[arg(long, value_name = "KEY=TYPE:VALUE")]
    override_kv: Vec<Override>,
    /// Write as many files as the input has
    #[arg(long)]
    keep_split: bool,
    /// Print what would become of every tensor instead of writing
    #[arg(long)]
    dry_run: bool,
    /// Nothing on standard error but errors
    #[arg(long)]
    log_disable: bool,
}

fn types_help() -> String {
    let mut text = "Types:".to_owned();
    for r in Recipe::ALL {
        let _ = write!(text, "\n  {:>2} or {:<9} {}", r.id(), r.name(), r.about());
    }
    text + "\n        COPY      tensors as they are"
}

/// A type of one tensor.
fn tensor_type(name: &str) -> Result<GgmlType, String> {
    // Q8_K is what activations are quantised to, not a type of weights.
    let all = || GgmlType::ALL.iter().filter(|&&ty| ty != GgmlType::Q8_K);
    all().find(|ty| ty.name().eq_ignore_ascii_case(name)).copied().ok_or_else(|| {
        let names: Vec<_> = all().map(|ty| ty.name()).collect();
        format!("'{name}' is no type, expected one of {}", names.join(", "))
    })
}

/// The positional arguments.
struct Positional {
    input: PathBuf,
    output: Option<PathBuf>,
    /// `None`: COPY.
    recipe: Option<Recipe>,
    n_threads: usize,
}

impl QuantizeArgs {
    fn positional(&self) -> Result<Positional, CliError> {
        let recipe = |text: &str| match text.eq_ignore_ascii_case("COPY") {
            true => Some(None),
            false => Recipe::parse(text).map(Some),
        };
        let (input, rest) = self.args.split_first().ok_or_else(|| CliError::usage("the input file is missing"))?;
        // As in llama-quantize, what names a type in second place is one.
        let (output, ty, rest) = match rest {
            [ty, rest @ ..] if recipe(ty).is_some() => (None, ty, rest),
            [output, ty, rest @ ..] => (Some(PathBuf::from(output)), ty, rest),
            [other] => return Err(CliError::usage(format!("'{other}' is no type; see quantize --help"))),
            [] => return Err(CliError::usage("the type is missing; see quantize --help")),
        };
        let recipe = recipe(ty).ok_or_else(|| CliError::usage(format!("'{ty}' is no type; see quantize --help")))?;
        let n_threads = match rest {
            [] => 0,
            [n] => n.parse::<u16>().ok().filter(|&n| n <= 1024).ok_or_else(|| {
                CliError::usage(format!("'{n}' is no number of threads, expected 1 to 1024 (0: all)"))
            })?,
            [_, more, ..] => return Err(CliError::usage(format!("'{more}': one argument too many"))),
        };
        let n_threads = if n_threads == 0 { default_threads() } else { n_threads.into() };
        if let (None, Some(flag)) = (recipe, self.type_flag()) {
            return Err(CliError::usage(format!("COPY leaves tensors as they are, {flag} says otherwise")));
        }
        Ok(Positional { input: input.into(), output, recipe, n_threads })
    }

    /// A flag that gives tensors another type than the recipe does, if there is one.
    fn type_flag(&self) -> Option<&'static str> {
        let flags = [
            ("--tensor-type", !self.tensor_type.is_empty()),
            ("--tensor-type-file", self.tensor_type_file.is_some()),
            ("--output-tensor-type", self.output_tensor_type.is_some()),
            ("--token-embedding-type", self.token_embedding_type.is_some()),
            ("--pure", self.pure),
        ];
        flags.into_iter().find_map(|(name, given)| given.then_some(name))
    }

    /// Which tensors are to have which types, each with the flag or file that says so.
    fn tensor_types(&self) -> Result<Vec<(String, Regex, GgmlType)>, CliError> {
        let mut all = Vec::new();
        for text in &self.tensor_type {
            all.push(tensors_of_type("--tensor-type", text)?);
        }
        if let Some(path) = &self.tensor_type_file {
            let place = path.display().to_string();
            for text in super::args::read_text(path)?.split_whitespace() {
                all.push(tensors_of_type(&place, text).map_err(CliError::of_file)?);
            }
        }
        Ok(all)
    }

    /// The importance matrix, and what the output's metadata say about it.
    fn importance(&self, log: Log) -> Result<Option<(Importance, Vec<Override>)>, CliError> {
        let Some(path) = &self.imatrix else { return Ok(None) };
        let matrix = Imatrix::read(path)?;
        let is_in = |parts: &[String], name: &str| parts.iter().any(|part| name.contains(part.as_str()));
        let importance = Importance::new(&matrix, |name| {
            (self.include_weights.is_empty() || is_in(&self.include_weights, name))
                && !is_in(&self.exclude_weights, name)
        });
        let n_chunks = matrix.n_chunks();
        log.line(format_args!(
            "{}: importances of {} tensors, used for {}, from {n_chunks} chunks of {}",
            path.display(),
            matrix.entries.len(),
            importance.len(),
            matrix.datasets.first().map_or("an unknown text", String::as_str)
        ));
        if importance.is_empty() {
            return Ok(None);
        }
        let key = |name: &str| format!("quantize.imatrix.{name}");
        let int = |name: &str, v: i64| Override::new(key(name), OverrideValue::Int(v));
        let str = |name: &str, v: String| Override::new(key(name), OverrideValue::Str(v));
        let mut settings = vec![str("file", path.display().to_string())];
        settings.extend(matrix.datasets.first().map(|text| str("dataset", text.clone())));
        settings.push(int("entries_count", importance.len() as i64));
        settings.push(int("chunks_count", n_chunks.min(u32::MAX.into()) as i64));
        Ok(Some((importance, settings)))
    }
}

/// Which tensors `text`, a regular expression and a type, gives that type, with where it stands.
fn tensors_of_type(place: &str, text: &str) -> Result<(String, Regex, GgmlType), CliError> {
    let fault = |what: String| CliError::usage(format!("{place} {text}: {what}"));
    let (pattern, ty) = text
        .rsplit_once('=')
        .filter(|(pattern, _)| !pattern.is_empty())
        .ok_or_else(|| fault("expected a regular expression, =, and a type".into()))?;
    let ty = tensor_type(ty).map_err(fault)?;
    let pattern = Regex::new(&format!("(?i){pattern}")).map_err(|e| fault(e.to_string()))?;
    Ok((format!("{place} {text}"), pattern, ty))
}

/// Runs the command.
pub fn run(args: &QuantizeArgs) -> Result<(), CliError> {
    let log = Log::new(!args.log_disable);
    let Positional { input, output, recipe, n_threads } = args.positional()?;
    let mut tensor_types = Vec::new();
    let given_types = args.tensor_types()?;
    let mut settings = Vec::new();
    let file = ModelFile::open(&input)?;
    let parts = file.parse()?;
    for (given, pattern, ty) in given_types {
        let mut names = parts.iter().flat_map(|g| g.tensors()).map(|t| t.name.as_str());
        if !names.any(|name| pattern.is_match(name).unwrap_or(false)) {
            log.line(format_args!("warning: {given}: there is no such tensor"));
        }
        tensor_types.push((pattern, ty));
    }
    let importance = args.importance(log)?.map(|(importance, keys)| {
        settings.extend(keys);
        importance
    });
    settings.extend(args.override_kv.iter().cloned());
    let options = Options {
        recipe,
        pure: args.pure,
        keep_output: args.leave_output_tensor,
        output_type: args.output_tensor_type,
        embedding_type: args.token_embedding_type,
        tensor_types,
        allow_requantize: args.allow_requantize,
    };
    let plan = Plan::new(&parts, &options, importance.as_ref(), args.dry_run)
        .map_err(|e| CliError::run(format!("{}: {e}", file.name)))?;
    warn(&plan, importance.as_ref(), log);
    if args.dry_run {
        let mut out = std::io::stdout().lock();
        out.write_all(listing(&plan).as_bytes())?;
        return Ok(out.flush()?);
    }

    let name = recipe.map_or("COPY", Recipe::name);
    let output = output.unwrap_or_else(|| input.with_file_name(format!("ggml-model-{name}.gguf")));
    let mut pool = Pool::new(n_threads).map_err(|e| CliError::run(format!("cannot start {n_threads} threads: {e}")))?;
    let inputs = Inputs::default().with([&input]).with(&args.imatrix).with(&args.tensor_type_file);
    let paths = match args.keep_split && parts.len() > 1 {
        true => split_paths(&output, parts.len())?,
        false => vec![output.clone()],
    };
    let is_split = paths.len() > 1;
    // Parts get their names together, and between two of them Ctrl-C must not leave one without a name behind.
    let stop = Stoppable::install()?;
    let mut complete = Vec::new();
    for (no, path) in paths.iter().enumerate() {
        let shard = is_split.then_some(Shard { no, count: paths.len() });
        let expected = plan.steps.iter().filter(|s| !is_split || s.part == no).map(Step::n_bytes).sum();
        let (part, ()) = Output::create(path, &inputs)?.complete(log, expected, |out| {
            let written = quantize::write(&parts, &plan, importance.as_ref(), &settings, shard, &mut pool, out);
            written.map(|_| ()).map_err(|e| match e {
                quantize::QuantizeError::Write(e) => CliError::run(format!("{}: {e}", path.display())),
                e => CliError::run(format!("{}: {e}", file.name)),
            })
        })?;
        if stop.stopped() {
            return Err(CliError::Interrupted);
        }
        complete.push(part);
    }
    complete.into_iter().try_for_each(Complete::name)?;
    log.line(format_args!("{}: {}", output.display(), summary(&plan)));
    Ok(())
}

/// The names of the parts of a split model to be called `output`.
fn split_paths(output: &Path, count: usize) -> Result<Vec<PathBuf>, CliError> {
    let name = output
        .file_name()
        .and_then(|n| n.to_str())
        .ok_or_else(|| CliError::usage(format!("{}: is no name of a file", output.display())))?;
    let prefix = name.strip_suffix(".gguf").unwrap_or(name);
    let prefix = PartName::parse(name).map_or(prefix, |part| part.prefix);
    let count = u16::try_from(count).map_err(|_| CliError::run(format!("{count} parts are too many")))?;
    Ok(PartName { prefix, no: 0, count }.all().map(|name| output.with_file_name(name)).collect())
}

/// Says what a user would not expect.
fn warn(plan: &Plan, importance: Option<&Importance>, log: Log) {
    // Tensors of one shape share their fate: one line for all of them.
    let mut fallbacks = BTreeMap::<_, usize>::new();
    for s in &plan.steps {
        if let Some(wished) = s.wished {
            *fallbacks.entry((s.tensor.row_len(), wished, s.ty)).or_default() += 1;
        }
    }
    for ((n, wished, ty), count) in fallbacks {
        log.line(format_args!("rows of {n} do not divide into blocks of {wished}: {ty} instead (tensors: {count})"));
    }
    let Some(importance) = importance else { return };
    let missing: Vec<&str> = plan
        .steps
        .iter()
        .filter(|s| !s.is_copy() && importance.get(&s.tensor.name).is_none())
        .map(|s| s.tensor.name.as_str())
        .collect();
    if let Some((first, more)) = missing.split_first() {
        let more = if more.is_empty() { String::new() } else { format!(" and {} more tensors", more.len()) };
        log.line(format_args!("no importances for {first}{more}: all their columns count alike"));
    }
}

/// The tensors, a line each, and the sum.
fn listing(plan: &Plan) -> String {
    let mut text = String::new();
    let width = plan.steps.iter().map(|s| s.tensor.name.len()).max().unwrap_or(0);
    for s in &plan.steps {
        let shape = s.tensor.shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
        let _ = write!(text, "{:width$}  {shape:>16}  {:>6}", s.tensor.name, s.tensor.ty.name());
        if s.is_copy() {
            let _ = writeln!(text, "            {:>10}", human(s.tensor.n_bytes));
        } else {
            let (was, is) = (human(s.tensor.n_bytes), human(s.n_bytes()));
            let _ = writeln!(text, " -> {:<6}  {was:>10} -> {is}", s.ty.name());
        }
    }
    text + &summary(plan) + "\n"
}

fn summary(plan: &Plan) -> String {
    let ((was, is), n) = (plan.n_bytes(), plan.n_elements());
    let bits = |bytes: u64| bytes as f64 * 8.0 / n.max(1) as f64;
    format!(
        "{} tensors, {} ({:.2} bits a weight) -> {} ({:.2} bits a weight)",
        plan.steps.len(),
        human(was),
        bits(was),
        human(is),
        bits(is)
    )
}
