//! `lisa-cpp analyze`: how alike layers attend, and what sharing each of them really does to the model.

mod html;

use super::args::threads;
use super::distill::{DEFAULT_RANK, KindArg, TextSource, dense, precision, prepare};
use super::error::CliError;
use super::load;
use super::output::{Inputs, Output};
use super::progress::{Log, Progress};
use super::signals::Stoppable;
use clap::Args;
use ggml_ext::lisa::{Activation, Domain, Kind};
use lisa_cpp::distill::choose::{SingleModules, candidates, single};
use lisa_cpp::distill::data::slices;
use lisa_cpp::distill::similarity::{self, Similarity, rank_correlation};
use lisa_cpp::distill::start::{Design, Rank};
use lisa_cpp::distill::team::Team;
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;

/// Flags of `analyze`.
#[derive(Args, Debug)]
pub struct AnalyzeArgs {
    /// GGUF file of the model (of a split model: its first part). Default: the embedded story model
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    #[command(flatten)]
    text: TextSource,
    /// Tokens per window of text
    #[arg(short, long, value_name = "N", default_value_t = 256)]
    ctx_size: u32,
    /// Windows to measure on, from the beginning of the text
    #[arg(long, value_name = "N", default_value_t = 8)]
    chunks: usize,
    /// How a layer shares when its damage is measured: shared (weights of its source as they are), lisa (an untrained sidecar). Its
    /// source is the nearest earlier layer with the same heads and window
    #[arg(long, value_name = "KIND", value_enum, default_value = "shared")]
    kind: KindArg,
    /// With --kind lisa: values per low-rank head, or 6x [default: 6x]
    #[arg(long, value_name = "R")]
    rank: Option<Rank>,
    /// Heat maps and damage as a web page that needs nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// One JSON object: layers, matrices, rank correlations
    #[arg(long)]
    json: bool,
    /// Products with the model's weights in F32 instead of int8: slower, for comparison
    #[arg(long)]
    exact: bool,
    /// Threads; 0 or less: as many as this process may use
    #[arg(short, long, value_name = "N", default_value_t = -1, hide_default_value = true)]
    threads: i32,
    /// Nothing on standard error but errors
    #[arg(long)]
    log_disable: bool,
}

/// What sharing one layer does.
pub struct Damage {
    layer: usize,
    source: usize,
    kl: f64,
    perplexity: f64,
}

/// Everything measured.
pub struct Findings {
    name: String,
    kind: Kind,
    similarity: Similarity,
    /// Layers that can share, each with its source.
    layers: Vec<(usize, usize)>,
    damage: Vec<Damage>,
    /// Perplexity of the unchanged model; `None` where nothing was compared with it.
    unchanged: Option<f64>,
}

/// The names of the measures, in the order of [`Findings::matrices`].
const MEASURES: [&str; 4] = ["cosine", "cosine_matched", "divergence", "divergence_matched"];

impl Findings {
    /// All pairs of layers.
    fn matrices(&self) -> [&[f64]; 4] {
        let s = &self.similarity;
        [&s.cosine, &s.cosine_matched, &s.divergence, &s.divergence_matched]
    }

    /// A measure of two layers.
    fn between(&self, measure: usize, layer: usize, source: usize) -> f64 {
        self.matrices()[measure][layer * self.similarity.n_layer + source]
    }

    /// Spearman's correlation of a measure's dissimilarity with the damage: 1 where it ranks layers as the damage does.
    fn correlation(&self, measure: usize) -> Option<f64> {
        let sign = if measure < 2 { -1.0 } else { 1.0 };
        let (a, b): (Vec<_>, Vec<_>) =
            self.damage.iter().map(|d| (sign * self.between(measure, d.layer, d.source), d.kl)).unzip();
        Some(rank_correlation(&a, &b)).filter(|c| c.is_finite())
    }

    fn json(&self) -> Value {
        let n = self.similarity.n_layer;
        let rows = |m: &[f64]| m.chunks_exact(n).map(<[f64]>::to_vec).collect::<Vec<_>>();
        let matrices: serde_json::Map<_, _> =
            MEASURES.iter().zip(self.matrices()).map(|(k, m)| ((*k).into(), json!(rows(m)))).collect();
        let correlations: serde_json::Map<_, _> =
            MEASURES.iter().enumerate().map(|(i, k)| ((*k).into(), json!(self.correlation(i)))).collect();
        let layers: Vec<Value> = self
            .damage
            .iter()
            .map(|d| json!({ "layer": d.layer, "source": d.source, "kl": d.kl, "perplexity": d.perplexity }))
            .collect();
        json!({ "model": self.name, "kind": self.kind.name(), "n_layer": n, "perplexity_unchanged": self.unchanged,
            "layers": layers, "similarity": matrices, "rank_correlation": correlations })
    }

    fn table(&self, out: &mut impl Write) -> std::io::Result<()> {
        writeln!(out, "layer  source  cosine  matched  divergence  matched      KL  perplexity")?;
        for &(layer, source) in &self.layers {
            let [c, cm, d, dm] = [0, 1, 2, 3].map(|m| self.between(m, layer, source));
            write!(out, "{layer:>5}  {source:>6}  {c:>6.3}  {cm:>7.3}  {d:>10.4}  {dm:>7.4}")?;
            match self.damage.iter().find(|d| d.layer == layer) {
                Some(d) => writeln!(out, "  {:>6.4}  {:>10.2}", d.kl, d.perplexity)?,
                None => writeln!(out, "       -           -")?,
            }
        }
        writeln!(out, "source: the nearest earlier layer with the same heads and window")?;
        if let Some(unchanged) = self.unchanged {
            writeln!(out, "unchanged: perplexity {unchanged:.2}")?;
        }
        for (i, name) in MEASURES.iter().enumerate() {
            if let Some(c) = self.correlation(i) {
                let what = if i < 2 { "1 - " } else { "" };
                writeln!(out, "rank correlation of {what}{name} with the damage: {c:.2}")?;
            }
        }
        Ok(())
    }
}

/// Runs the command.
pub fn run(args: &AnalyzeArgs) -> Result<(), CliError> {
    let log = Log::new(!args.log_disable);
    if args.chunks == 0 || args.ctx_size < 16 {
        return Err(CliError::usage("--chunks must be at least 1 and --ctx-size at least 16"));
    }
    if args.rank.is_some() && args.kind == KindArg::Shared {
        return Err(CliError::usage("--rank does something with --kind lisa only"));
    }
    let n_threads = threads("--threads", args.threads)?;
    let file = load::file(args.model.as_deref())?;
    let inputs = Inputs::default().with(&args.model).with([&args.text.file]);
    let page = || args.html.as_deref().map(|p| Output::create(p, &inputs)).transpose();
    // A name that cannot be written to should not cost the measurement.
    drop(page()?);
    let (model, windows, _) = prepare(&file, &args.text, args.ctx_size as usize, 0, log)?;
    let dense = dense(&model, args.ctx_size as usize, precision(args.exact), false, log)?;
    let mut team = Team::new(n_threads)?;
    let stop = Stoppable::install()?;
    let chosen = windows.first(args.chunks);
    let chosen = slices(&chosen);

    let mut bar = Progress::new(log, "comparing layers", chosen.len() as u64);
    let similarity = similarity::measure(&mut team, &dense, &chosen, &mut |done| {
        bar.set(done as u64);
        !stop.stopped()
    });
    drop(bar);
    let Some(similarity) = similarity else { return Err(CliError::Interrupted) };
    let mut found = Findings {
        name: model.name().unwrap_or(&file.name).into(),
        kind: args.kind.into(),
        similarity,
        layers: candidates(&dense, 1),
        damage: Vec::new(),
        unchanged: None,
    };
    if found.layers.is_empty() {
        log.line("note: no layer has the heads and window of an earlier one: none can share");
    } else if !stop.stopped() {
        let design = Design {
            plan: Vec::new(),
            kind: found.kind,
            rank: args.rank.unwrap_or(DEFAULT_RANK),
            n_hidden: 0,
            activation: Activation::Silu,
            domain: Domain::Log,
            comp: false,
            seed: 0,
        };
        let layers = found.layers.clone();
        let parts = SingleModules::new(&single(&dense, &design, &layers, &slices(&windows.first(args.chunks.min(8))))?);
        let taught = team.teach(&dense, &chosen);
        let mut bar = Progress::new(log, "sharing each layer", layers.len() as u64);
        for (i, &(layer, source)) in layers.iter().enumerate() {
            if stop.stopped() {
                break;
            }
            let out = team.compare(&dense, &parts.student(&[layer]), &taught);
            found.unchanged = Some(out.perplexity_teacher());
            found.damage.push(Damage { layer, source, kl: out.mean_loss(), perplexity: out.perplexity() });
            bar.set(i as u64 + 1);
        }
    }
    let interrupted = stop.stopped();
    drop(stop);
    if interrupted {
        log.line(format_args!("interrupted: damage of {} layers measured", found.damage.len()));
    }
    if let Some(page) = page()? {
        page.whole(html::page(&found).as_bytes())?;
    }
    let mut out = std::io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", found.json())?,
        false => found.table(&mut out)?,
    }
    out.flush()?;
    if interrupted { Err(CliError::Interrupted) } else { Ok(()) }
}
