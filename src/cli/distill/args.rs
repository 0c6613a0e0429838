//! Flags of `distill`.

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use ggml_ext::lisa::{Activation, Domain, Kind};
use lisa_cpp::distill::choose::{can_take, predecessor};
use lisa_cpp::distill::data::{Exclude, texts};
use lisa_cpp::distill::dense::DenseModel;
use lisa_cpp::distill::start::Rank;
use lisa_cpp::distill::trainer::Settings;
use std::path::PathBuf;
use std::str::FromStr;

use crate::cli::args::{read_text, threads, without_mark};
use crate::cli::error::CliError;

/// Text to train or measure on.
#[derive(Args, Debug)]
pub struct TextSource {
    /// The text: plain, or JSON lines with a field `text` where the name ends in .jsonl
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Of JSON lines, leave out those whose FIELD is VALUE (may be given several times)
    #[arg(long, value_name = "FIELD=VALUE")]
    pub exclude: Vec<Exclude>,
}

impl TextSource {
    /// The texts of the file.
    pub fn texts(&self) -> Result<Vec<String>, CliError> {
        Ok(texts(&self.file, &read_text(&self.file)?, &self.exclude)?)
    }
}

/// The layers to substitute, and the file that says which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers {
    /// Which.
    pub choice: Choice,
    /// Where they are listed, if not on the command line.
    pub file: Option<PathBuf>,
}

/// Which layers to substitute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// That many, chosen by measured damage.
    Auto(usize),
    /// These, with their sources.
    Plan(Vec<(usize, usize)>),
}

impl FromStr for Layers {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if let Some(n) = s.strip_prefix("auto:") {
            let n = n.parse().ok().filter(|&n: &usize| n > 0);
            let choice = n.map(Choice::Auto).ok_or_else(|| format!("'{s}': expected auto:N, N layers"))?;
            return Ok(Self { choice, file: None });
        }
        let (text, file) = match std::fs::read_to_string(s) {
            Ok(text) => (without_mark(text), Some(s.into())),
            Err(_) => (s.to_owned(), None),
        };
        let plan: lisa_cpp::SharePlan = text.parse()?;
        if let Some((layer, _)) = plan.iter().find(|(_, share)| share.kind == Kind::Kv) {
            return Err(format!("layer {layer}: kind kv has nothing to train"));
        }
        let choice = Choice::Plan(plan.iter().map(|(layer, share)| (layer, share.source)).collect());
        Ok(Self { choice, file })
    }
}

/// `--rank` unless it is given.
pub const DEFAULT_RANK: Rank = Rank::Factor(6.0);

/// Kinds of sharing that can be trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KindArg {
    /// Aligned heads and low-rank scores (LISA)
    Lisa,
    /// The source's weights as they are, with linear compensation (Shared Attention, UniAttn)
    Shared,
}

impl From<KindArg> for Kind {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Lisa => Kind::Lisa,
            KindArg::Shared => Kind::Shared,
        }
    }
}

/// Where layers take attention weights from, unless the plan names another layer than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SourceArg {
    /// The nearest layer before that computes its own, with the same heads and window
    Full,
    /// The nearest layer before with the same heads and window, which may take its weights from another
    Chain,
}

/// Flags of `distill`.
#[derive(Args, Debug)]
pub struct DistillArgs {
    /// GGUF file of the model (of a split model: its first part). Default: the embedded story model
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub text: TextSource,
    /// Layers to substitute: auto:16 (the 16 that do least damage together), 4-10,14 (these), 8:4 (layer 8
    /// from layer 4), or a file with such a list
    #[arg(long, value_name = "LAYERS", required_unless_present = "from")]
    pub layers: Option<Layers>,
    /// Begin with the modules of a sidecar of the same model, in place of --layers
    #[arg(long, value_name = "FILE", conflicts_with_all = ["layers", "kind", "rank", "hidden", "activation", "domain", "source",
        "no_comp", "protect", "steps_choice"])]
    pub from: Option<PathBuf>,
    /// The sidecar; a file of this name is replaced. The state of a run that is not over is beside it, in FILE.checkpoint
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// What takes the place of queries and keys
    #[arg(long, value_name = "KIND", value_enum, default_value = "lisa")]
    pub kind: KindArg,
    /// Values per low-rank head, even; or 6x: a sixth of the original on the average [default: 6x]
    #[arg(long, value_name = "R")]
    rank: Option<Rank>,
    /// Hidden units of the network over the heads [default: 0]
    #[arg(long, value_name = "M")]
    pub hidden: Option<usize>,
    /// Activation of the hidden units: relu, silu, gelu [default: silu]
    #[arg(long, value_name = "NAME")]
    activation: Option<String>,
    /// What that network sees of the source's weights: log, weight [default: log]
    #[arg(long, value_name = "NAME")]
    domain: Option<String>,
    /// Which layer a layer takes weights from, where --layers does not say
    #[arg(long, value_name = "WHICH", value_enum, default_value = "full")]
    source: SourceArg,
    /// With --kind shared: no linear compensation
    #[arg(long)]
    pub no_comp: bool,
    /// With auto: layers at the beginning that are left alone [default: one in eight]
    #[arg(long, value_name = "N")]
    pub protect: Option<usize>,
    /// Tokens per window of text: modules serve contexts of about this length best
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    pub ctx_size: u32,
    /// Windows per step
    #[arg(short, long, value_name = "N", default_value_t = 2)]
    batch_size: usize,
    /// With auto: steps of training all layers one by one, before the damage of each is measured [default: 100]
    #[arg(long, value_name = "N")]
    steps_choice: Option<usize>,
    /// Steps of stage 1: every layer's attention weights, on the unchanged model's inputs
    #[arg(long, value_name = "N", default_value_t = 400)]
    steps_attention: usize,
    /// Steps of stage 2: the model's predictions, end to end
    #[arg(long, value_name = "N", default_value_t = 400)]
    steps: usize,
    /// Learning rate of stage 1, relative to the size of the values
    #[arg(long, value_name = "X", default_value_t = 0.1)]
    lr_attention: f64,
    /// Learning rate of stage 2, likewise
    #[arg(long, value_name = "X", default_value_t = 0.015)]
    lr: f64,
    /// Part of each stage's steps in which the learning rate rises
    #[arg(long, value_name = "X", default_value_t = 0.05)]
    warmup: f64,
    /// Largest norm of a gradient
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    clip: f64,
    /// Weight decay (AdamW)
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    weight_decay: f64,
    /// Part of the tokens trained on that give way to others, drawn from the text: against learning a short text by heart
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    noise: f64,
    /// Seed of the order of the text and of hidden units
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Windows of text held out to measure on
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub held_out: usize,
    /// Steps between losses on the text held out
    #[arg(long, value_name = "N", default_value_t = 50)]
    eval_every: usize,
    /// End a stage after so many losses on the text held out without progress; 0: never
    #[arg(long, value_name = "N", default_value_t = 0)]
    patience: usize,
    /// Steps between checkpoints
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub save_every: usize,
    /// Go on from FILE.checkpoint, to the same result as without a break
    #[arg(long)]
    pub resume: bool,
    /// Stop with a checkpoint after so many minutes
    #[arg(long, value_name = "MINUTES")]
    pub time_limit: Option<f64>,
    /// Products with the model's weights in F32 instead of int8: slower, for comparison
    #[arg(long)]
    pub exact: bool,
    /// Threads; 0 or less: as many as this process may use
    #[arg(short, long, value_name = "N", default_value_t = -1, hide_default_value = true)]
    threads: i32,
    /// Steps and held-out losses as JSON lines on standard output
    #[arg(long)]
    pub json: bool,
    /// Nothing on standard error but errors
    #[arg(long)]
    pub log_disable: bool,
}

impl DistillArgs {
    /// Refuses what no run can do.
    pub fn check(&self) -> Result<(), CliError> {
        let positive = [
            ("--batch-size", self.batch_size),
            ("--held-out", self.held_out),
            ("--eval-every", self.eval_every),
            ("--save-every", self.save_every),
        ];
        if let Some((flag, _)) = positive.iter().find(|(_, n)| *n == 0) {
            return Err(CliError::usage(format!("{flag} must be at least 1")));
        }
        if self.ctx_size < 2 {
            return Err(CliError::usage(format!("--ctx-size {}: must be at least 2", self.ctx_size)));
        }
        let ranges = [
            ("--lr", self.lr, 0.0, 1.0),
            ("--lr-attention", self.lr_attention, 0.0, 1.0),
            ("--warmup", self.warmup, 0.0, 1.0),
            ("--noise", self.noise, 0.0, 0.9),
            ("--clip", self.clip, f64::MIN_POSITIVE, f64::MAX),
            ("--weight-decay", self.weight_decay, 0.0, f64::MAX),
            ("--time-limit", self.time_limit.unwrap_or(1.0), 0.0, 1e9),
        ];
        // Written so that not-a-number is out of every range.
        if let Some((flag, x, low, high)) = ranges.into_iter().find(|(_, x, low, high)| !(x >= low && x <= high)) {
            let range = if high < 1e8 { format!("{low} to {high}") } else { "a positive number".into() };
            return Err(CliError::usage(format!("{flag} {x}: expected {range}")));
        }
        self.activation()?;
        self.domain()?;
        self.check_dead_flags()
    }

    /// Refuses flags that would do nothing beside the others.
    fn check_dead_flags(&self) -> Result<(), CliError> {
        let is_shared = self.kind == KindArg::Shared;
        let is_auto = self.layers.as_ref().is_some_and(|l| matches!(l.choice, Choice::Auto(_)));
        let (lisa, shared, auto) = ("--kind lisa", "--kind shared", "--layers auto:N");
        let dead = [
            ("--rank", self.rank.is_some() && is_shared, lisa),
            ("--hidden", self.hidden.is_some() && is_shared, lisa),
            ("--activation", self.activation.is_some() && is_shared, lisa),
            ("--domain", self.domain.is_some() && is_shared, lisa),
            ("--no-comp", self.no_comp && !is_shared, shared),
            ("--protect", self.protect.is_some() && !is_auto, auto),
            ("--steps-choice", self.steps_choice.is_some() && !is_auto, auto),
            ("--steps-choice", self.steps_choice.is_some() && is_shared, lisa),
        ];
        match dead.iter().find(|(_, is_dead, _)| *is_dead) {
            Some((flag, _, needed)) => Err(CliError::usage(format!("{flag} does something with {needed} only"))),
            None => Ok(()),
        }
    }

    /// `--rank`.
    pub fn rank(&self) -> Rank {
        self.rank.unwrap_or(DEFAULT_RANK)
    }

    /// The training's settings.
    pub fn settings(&self) -> Settings {
        Settings {
            batch: self.batch_size,
            steps_choice: self.steps_choice.unwrap_or(100),
            steps_attention: self.steps_attention,
            steps_end_to_end: self.steps,
            lr_attention: self.lr_attention,
            lr_end_to_end: self.lr,
            warmup: self.warmup,
            clip: self.clip,
            decay: self.weight_decay,
            noise: self.noise,
            seed: self.seed,
            eval_every: self.eval_every,
            patience: self.patience,
        }
    }

    /// Everything about the student that flags say, by their names.
    pub fn design_settings(&self) -> Vec<(String, String)> {
        let layers = self.layers.as_ref().map_or(String::new(), |l| match &l.choice {
            Choice::Auto(n) => format!("auto:{n}"),
            Choice::Plan(plan) => plan.iter().map(|(l, s)| format!("{l}:{s}")).collect::<Vec<_>>().join(","),
        });
        let rank = match self.rank() {
            Rank::Each(r) => r.to_string(),
            Rank::Factor(f) => format!("{f}x"),
        };
        let name = |value: Option<PossibleValue>| value.map_or(String::new(), |v| v.get_name().to_owned());
        [
            ("--from", self.from.as_ref().map_or(String::new(), |p| p.display().to_string())),
            ("--layers", layers),
            ("--kind", name(self.kind.to_possible_value())),
            ("--rank", rank),
            ("--hidden", self.hidden.unwrap_or(0).to_string()),
            ("--activation", self.activation.clone().unwrap_or_else(|| Activation::Silu.name().into())),
            ("--domain", self.domain.clone().unwrap_or_else(|| Domain::Log.name().into())),
            ("--source", name(self.source.to_possible_value())),
            ("--no-comp", self.no_comp.to_string()),
            ("--protect", self.protect.map_or("one in eight".into(), |n| n.to_string())),
            ("--exact", self.exact.to_string()),
            ("--ctx-size", self.ctx_size.to_string()),
            ("--held-out", self.held_out.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// `--activation`.
    pub fn activation(&self) -> Result<Activation, CliError> {
        let name = self.activation.as_deref().unwrap_or(Activation::Silu.name());
        Activation::from_name(name)
            .ok_or_else(|| CliError::usage(format!("--activation {name}: expected one of {}", Activation::names())))
    }

    /// `--domain`.
    pub fn domain(&self) -> Result<Domain, CliError> {
        let name = self.domain.as_deref().unwrap_or(Domain::Log.name());
        Domain::from_name(name)
            .ok_or_else(|| CliError::usage(format!("--domain {name}: expected one of {}", Domain::names())))
    }

    /// The plan with the sources that `--source` asks for; a source that is not the layer before was asked for by name.
    pub fn sources(&self, plan: Vec<(usize, usize)>, model: &DenseModel) -> Vec<(usize, usize)> {
        let substituted = |layer: usize| plan.iter().any(|p| p.0 == layer);
        let nearest = |layer| (0..layer).rev().find(|&l| !substituted(l) && can_take(model, layer, l));
        let source_of = |&(layer, source): &(usize, usize)| {
            if source + 1 != layer || layer >= model.layers.len() {
                return source;
            }
            let full = nearest(layer).filter(|_| self.source == SourceArg::Full);
            full.or_else(|| predecessor(model, layer)).unwrap_or(source)
        };
        plan.iter().map(|p| (p.0, source_of(p))).collect()
    }

    /// `--threads`, resolved.
    pub fn n_threads(&self) -> Result<usize, CliError> {
        threads("--threads", self.threads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_on_the_command_line() {
        let choice = |s: &str| s.parse::<Layers>().unwrap().choice;
        assert_eq!(choice("auto:16"), Choice::Auto(16));
        assert_eq!(choice("4-5,9:7"), Choice::Plan(vec![(4, 3), (5, 4), (9, 7)]));
        for (text, named) in [("auto:0", "auto:N"), ("auto:x", "auto:N"), ("kv:5", "layer 5"), ("0", "layer 0")] {
            let message = text.parse::<Layers>().unwrap_err();
            assert!(message.contains(named), "{text}: {message}");
        }
    }
}
