//! Sampling parameters: llama.cpp's names, defaults and flag syntax, and the check of every range.

use crate::{Error, Result};

/// The seed that stands for "choose one at random" (`-1` on the command line).
pub const RANDOM_SEED: u32 = u32::MAX;

/// One stage of the sampling chain, as named by `--samplers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SamplerKind {
    /// Repeat, frequency and presence penalties.
    Penalties,
    /// DRY: penalises tokens that would extend a repeated sequence.
    Dry,
    /// Keeps logits within n standard deviations of the maximum.
    TopNSigma,
    /// Keeps the k most likely tokens.
    TopK,
    /// Locally typical sampling.
    TypicalP,
    /// Nucleus sampling: the smallest set whose probabilities sum to p.
    TopP,
    /// Keeps tokens at least p times as likely as the most likely one.
    MinP,
    /// Exclude top choices: sometimes removes all but the least likely of the likely tokens.
    Xtc,
    /// Temperature, fixed or following the entropy.
    Temperature,
    /// Draws tokens near a target probability; replaces the final draw wherever it is named.
    AdaptiveP,
}

impl SamplerKind {
    /// Every stage, in the default order; [`SamplerKind::AdaptiveP`], last, is not part of the default chain.
    pub const ALL: [SamplerKind; 10] = [
        SamplerKind::Penalties,
        SamplerKind::Dry,
        SamplerKind::TopNSigma,
        SamplerKind::TopK,
        SamplerKind::TypicalP,
        SamplerKind::TopP,
        SamplerKind::MinP,
        SamplerKind::Xtc,
        SamplerKind::Temperature,
        SamplerKind::AdaptiveP,
    ];

    /// The name used by `--samplers`.
    pub fn name(self) -> &'static str {
        match self {
            SamplerKind::Penalties => "penalties",
            SamplerKind::Dry => "dry",
            SamplerKind::TopNSigma => "top_n_sigma",
            SamplerKind::TopK => "top_k",
            SamplerKind::TypicalP => "typ_p",
            SamplerKind::TopP => "top_p",
            SamplerKind::MinP => "min_p",
            SamplerKind::Xtc => "xtc",
            SamplerKind::Temperature => "temperature",
            SamplerKind::AdaptiveP => "adaptive_p",
        }
    }

    /// The letter used by `--sampling-seq`.
    pub fn letter(self) -> char {
        match self {
            SamplerKind::Penalties => 'e',
            SamplerKind::Dry => 'd',
            SamplerKind::TopNSigma => 's',
            SamplerKind::TopK => 'k',
            SamplerKind::TypicalP => 'y',
            SamplerKind::TopP => 'p',
            SamplerKind::MinP => 'm',
            SamplerKind::Xtc => 'x',
            SamplerKind::Temperature => 't',
            SamplerKind::AdaptiveP => 'a',
        }
    }

    fn from_name(name: &str) -> Option<SamplerKind> {
        // `top-k` and `topk` are accepted for `top_k`, in any case.
        let squeeze = |s: &str| s.to_ascii_lowercase().replace(['_', '-'], "");
        match squeeze(name).as_str() {
            "nucleus" => Some(SamplerKind::TopP),
            "temp" => Some(SamplerKind::Temperature),
            "typ" | "typical" | "typicalp" => Some(SamplerKind::TypicalP),
            s => SamplerKind::ALL.into_iter().find(|k| squeeze(k.name()) == s),
        }
    }

    /// Parses `--samplers`: names separated by `;`, in the order they are applied.
    ///
    /// # Errors
    /// [`Error::Params`] naming a stage that does not exist.
    pub fn parse_names(list: &str) -> Result<Vec<SamplerKind>> {
        let names = list.split(';').map(str::trim).filter(|n| !n.is_empty());
        names
            .map(|n| {
                SamplerKind::from_name(n).ok_or_else(|| {
                    let known: Vec<_> = SamplerKind::ALL.iter().map(|k| k.name()).collect();
                    Error::Params(format!("--samplers: unknown sampler `{n}` (known: {})", known.join(", ")))
                })
            })
            .collect()
    }

    /// Parses `--sampling-seq`: one letter per stage, in the order they are applied.
    ///
    /// # Errors
    /// [`Error::Params`] naming a letter that stands for no stage.
    pub fn parse_letters(seq: &str) -> Result<Vec<SamplerKind>> {
        seq.chars()
            .map(|c| {
                SamplerKind::ALL.into_iter().find(|k| k.letter() == c).ok_or_else(|| {
                    let known: Vec<_> =
                        SamplerKind::ALL.iter().map(|k| format!("{} = {}", k.letter(), k.name())).collect();
                    Error::Params(format!("--sampling-seq: unknown letter `{c}` (known: {})", known.join(", ")))
                })
            })
            .collect()
    }
}

/// A constant added to one token's logit before the chain runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogitBias {
    /// The token.
    pub token: u32,
    /// What is added; `-inf` forbids the token, `+inf` forces it.
    pub bias: f32,
}

impl std::str::FromStr for LogitBias {
    type Err = Error;

    /// Parses `TOKEN_ID(+/-)BIAS`: `15043+1`, `15043-0.5`, `29905-inf`.
    fn from_str(s: &str) -> Result<Self> {
        let bad =
            || Error::Params(format!("--logit-bias: `{s}` is not TOKEN_ID(+/-)BIAS, such as 15043+1 or 29905-inf"));
        let text = s.trim();
        let at = text.find(['+', '-']).ok_or_else(bad)?;
        let token = text[..at].trim_end().parse().map_err(|_| bad())?;
        let size = text[at + 1..].trim_start();
        if size.starts_with(['+', '-']) {
            return Err(bad());
        }
        let size: f32 = size.parse().map_err(|_| bad())?;
        if size.is_nan() {
            return Err(bad());
        }
        let bias = if text.as_bytes()[at] == b'-' { -size } else { size };
        Ok(LogitBias { token, bias })
    }
}

/// Parses `--seed`: `-1` (or 4294967295) chooses one at random.
///
/// # Errors
/// [`Error::Params`] when the text is no integer in -1..=4294967295.
pub fn parse_seed(s: &str) -> Result<u32> {
    match s.trim().parse::<i64>() {
        Ok(-1) => Ok(RANDOM_SEED),
        Ok(n) if (0..=i64::from(u32::MAX)).contains(&n) => Ok(n as u32),
        _ => Err(Error::Params(format!("--seed: `{s}` is not an integer from -1 (random) to 4294967295"))),
    }
}

/// How the next token is chosen. The fields carry llama.cpp's names and [`Default`] its defaults; the flag of each is in its
/// description.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerParams {
    /// `--seed`; [`RANDOM_SEED`] chooses one, see [`Sampler::seed`](super::Sampler::seed).
    pub seed: u32,
    /// `--min-keep`: truncating samplers leave at least this many tokens; 0 or 1 = at least one.
    pub min_keep: usize,
    /// `--top-k`; <= 0 keeps the whole vocabulary.
    pub top_k: i32,
    /// `--top-p`; 1 = off.
    pub top_p: f32,
    /// `--min-p`; 0 = off.
    pub min_p: f32,
    /// `--xtc-probability`: chance that XTC acts on a token; 0 = off.
    pub xtc_probability: f32,
    /// `--xtc-threshold`: probability above which a token counts as a top choice; above 0.5 = off.
    pub xtc_threshold: f32,
    /// `--typical`; 1 = off.
    pub typ_p: f32,
    /// `--temp`; <= 0 takes the most likely token.
    pub temp: f32,
    /// `--dynatemp-range`: the temperature follows the entropy within temp ± range; 0 = off.
    pub dynatemp_range: f32,
    /// `--dynatemp-exp`: exponent on the normalised entropy.
    pub dynatemp_exponent: f32,
    /// `--repeat-last-n`: tokens the penalties look back on; 0 = off, -1 = the whole context.
    pub penalty_last_n: i32,
    /// `--repeat-penalty`; 1 = off.
    pub penalty_repeat: f32,
    /// `--frequency-penalty`, per occurrence; 0 = off.
    pub penalty_freq: f32,
    /// `--presence-penalty`, once; 0 = off.
    pub penalty_present: f32,
    /// `--dry-multiplier`; 0 = off.
    pub dry_multiplier: f32,
    /// `--dry-base`: penalty = multiplier * base ^ (repeated length - allowed length).
    pub dry_base: f32,
    /// `--dry-allowed-length`: repetitions shorter than this go unpunished.
    pub dry_allowed_length: i32,
    /// `--dry-penalty-last-n`: tokens DRY looks back on; 0 = off, -1 = the whole context.
    pub dry_penalty_last_n: i32,
    /// `--dry-sequence-breaker`: strings across which no repetition is counted.
    pub dry_sequence_breakers: Vec<String>,
    /// `--adaptive-target`: probability the adaptive-p sampler aims at; negative = plain draw.
    pub adaptive_target: f32,
    /// `--adaptive-decay`: memory of the adaptive-p sampler, about 1 / (1 - decay) tokens.
    pub adaptive_decay: f32,
    /// `--mirostat`: 0 = off, 1 or 2 = that version in place of the chain.
    pub mirostat: u32,
    /// `--mirostat-ent`: target surprise tau, in bits.
    pub mirostat_tau: f32,
    /// `--mirostat-lr`: learning rate eta.
    pub mirostat_eta: f32,
    /// `--top-n-sigma`; <= 0 = off.
    pub top_n_sigma: f32,
    /// `--ignore-eos`: never choose a token that ends the generation.
    pub ignore_eos: bool,
    /// `--logit-bias`.
    pub logit_bias: Vec<LogitBias>,
    /// `--samplers` or `--sampling-seq`: the chain, in order. Not used with mirostat.
    pub samplers: Vec<SamplerKind>,
}

impl Default for SamplerParams {
    fn default() -> Self {
        SamplerParams {
            seed: RANDOM_SEED,
            min_keep: 0,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            xtc_probability: 0.0,
            xtc_threshold: 0.10,
            typ_p: 1.0,
            temp: 0.8,
            dynatemp_range: 0.0,
            dynatemp_exponent: 1.0,
            penalty_last_n: 64,
            penalty_repeat: 1.0,
            penalty_freq: 0.0,
            penalty_present: 0.0,
            dry_multiplier: 0.0,
            dry_base: 1.75,
            dry_allowed_length: 2,
            dry_penalty_last_n: 64,
            dry_sequence_breakers: ["\n", ":", "\"", "*"].map(String::from).to_vec(),
            adaptive_target: -1.0,
            adaptive_decay: 0.9,
            mirostat: 0,
            mirostat_tau: 5.0,
            mirostat_eta: 0.1,
            top_n_sigma: -1.0,
            ignore_eos: false,
            logit_bias: Vec::new(),
            samplers: SamplerKind::ALL[..9].to_vec(),
        }
    }
}

impl SamplerParams {
    /// Checks every range.
    ///
    /// # Errors
    /// [`Error::Params`] naming the flag, its value and its range.
    pub fn validate(&self) -> Result<()> {
        let fail = |flag: &str, value: &dyn std::fmt::Display, range: &str| {
            Err(Error::Params(format!("{flag} {value}: must be {range}")))
        };
        let unit = [
            ("--top-p", self.top_p),
            ("--min-p", self.min_p),
            ("--xtc-probability", self.xtc_probability),
            ("--xtc-threshold", self.xtc_threshold),
            ("--typical", self.typ_p),
        ];
        for (flag, v) in unit {
            if !(0.0..=1.0).contains(&v) {
                return fail(flag, &v, "from 0 to 1");
            }
        }
        let finite = [
            ("--temp", self.temp),
            ("--frequency-penalty", self.penalty_freq),
            ("--presence-penalty", self.penalty_present),
            ("--dry-multiplier", self.dry_multiplier),
            ("--top-n-sigma", self.top_n_sigma),
        ];
        for (flag, v) in finite {
            if !v.is_finite() {
                return fail(flag, &v, "a finite number");
            }
        }
        let not_negative = [
            ("--dynatemp-range", self.dynatemp_range),
            ("--dynatemp-exp", self.dynatemp_exponent),
            ("--mirostat-ent", self.mirostat_tau),
            ("--mirostat-lr", self.mirostat_eta),
        ];
        for (flag, v) in not_negative {
            if !(v.is_finite() && v >= 0.0) {
                return fail(flag, &v, "a finite number >= 0");
            }
        }
        if !(self.penalty_repeat.is_normal() && self.penalty_repeat > 0.0 && self.penalty_repeat.recip().is_finite()) {
            return fail("--repeat-penalty", &self.penalty_repeat, "a finite number > 0");
        }
        if !(self.dry_base.is_finite() && self.dry_base >= 1.0) {
            return fail("--dry-base", &self.dry_base, "a finite number >= 1");
        }
        if self.dry_allowed_length < 0 {
            return fail("--dry-allowed-length", &self.dry_allowed_length, ">= 0");
        }
        for (flag, v) in [("--repeat-last-n", self.penalty_last_n), ("--dry-penalty-last-n", self.dry_penalty_last_n)] {
            if v < -1 {
                return fail(flag, &v, ">= 0, or -1 for the whole context");
            }
        }
        if self.mirostat > 2 {
            return fail("--mirostat", &self.mirostat, "0, 1 or 2");
        }
        if !(self.adaptive_target.is_finite() && self.adaptive_target <= 1.0) {
            return fail("--adaptive-target", &self.adaptive_target, "from 0 to 1, or negative to switch it off");
        }
        if !(0.0..=0.99).contains(&self.adaptive_decay) {
            return fail("--adaptive-decay", &self.adaptive_decay, "from 0 to 0.99");
        }
        if let Some(b) = self.logit_bias.iter().find(|b| b.bias.is_nan()) {
            return fail("--logit-bias", &format_args!("of token {} NaN", b.token), "a number");
        }
        Ok(())
    }
}
