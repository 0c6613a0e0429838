//! The sampling flags and what they make of [`SamplerParams`].

use super::args::unescape;
use super::error::CliError;
use clap::Args;
use lisa_cpp::runtime::sampler::{LogitBias, SamplerKind, SamplerParams, parse_seed};

/// How the next token is chosen.
#[derive(Args, Debug)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Seed of the random numbers; -1 chooses one
    #[arg(short, long, value_name = "SEED", default_value = "-1")]
    pub seed: String,
    /// Temperature; 0 takes the most likely token every time [default: the model's, else 0.8]
    #[arg(long, value_name = "N", alias = "temperature")]
    pub temp: Option<f32>,
    /// Keep the k most likely tokens; 0 keeps all [default: the model's, else 40]
    #[arg(long, value_name = "N")]
    pub top_k: Option<i32>,
    /// Keep the smallest set of tokens whose probabilities sum to N; 1 = off [default: the model's, else 0.95]
    #[arg(long, value_name = "N")]
    pub top_p: Option<f32>,
    /// Keep tokens at least N times as likely as the most likely; 0 = off [default: the model's, else 0.05]
    #[arg(long, value_name = "N")]
    pub min_p: Option<f32>,
    /// Locally typical sampling; 1 = off
    #[arg(long, value_name = "N", default_value_t = 1.0, alias = "typical-p")]
    pub typical: f32,
    /// Keep logits within N standard deviations of the largest; -1 = off
    #[arg(long, value_name = "N", default_value_t = -1.0, alias = "top-n-sigma")]
    pub top_nsigma: f32,
    /// Leave at least N tokens to choose from
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub min_keep: usize,
    /// Chance that XTC removes the top choices; 0 = off [default: the model's, else 0]
    #[arg(long, value_name = "N")]
    pub xtc_probability: Option<f32>,
    /// Probability from which XTC counts a token as a top choice; above 0.5 = off [default: the model's, else 0.1]
    #[arg(long, value_name = "N")]
    pub xtc_threshold: Option<f32>,
    /// Let the temperature follow the entropy within --temp +/- N; 0 = off
    #[arg(long, value_name = "N", default_value_t = 0.0)]
    pub dynatemp_range: f32,
    /// Exponent of the entropy in --dynatemp-range
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    pub dynatemp_exp: f32,
    /// Tokens the penalties look back on; 0 = off, -1 = the whole context [default: the model's, else 64]
    #[arg(long, value_name = "N")]
    pub repeat_last_n: Option<i32>,
    /// Penalty on tokens that occurred; 1 = off [default: the model's, else 1]
    #[arg(long, value_name = "N")]
    pub repeat_penalty: Option<f32>,
    /// Subtracted once from the logit of every token that has occurred; 0 = off
    #[arg(long, value_name = "N", default_value_t = 0.0)]
    pub presence_penalty: f32,
    /// Subtracted from a token's logit for each time it has occurred; 0 = off
    #[arg(long, value_name = "N", default_value_t = 0.0)]
    pub frequency_penalty: f32,
    /// Strength of the DRY penalty on repeated sequences; 0 = off
    #[arg(long, value_name = "N", default_value_t = 0.0)]
    pub dry_multiplier: f32,
    /// Base of the DRY penalty's growth
    #[arg(long, value_name = "N", default_value_t = 1.75)]
    pub dry_base: f32,
    /// DRY penalises repetitions of at least this many tokens
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub dry_allowed_length: i32,
    /// Tokens DRY looks back on; 0 = off, -1 = the whole context
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub dry_penalty_last_n: i32,
    /// String across which DRY sees no repetition; replaces the defaults \n : " *, can be repeated; `none` for none
    #[arg(long, value_name = "TEXT")]
    pub dry_sequence_breaker: Vec<String>,
    /// Aim at tokens of about this probability (adaptive_p must be in --samplers); negative = off
    #[arg(long, value_name = "N", default_value_t = -1.0)]
    pub adaptive_target: f32,
    /// Memory of --adaptive-target, about 1 / (1 - N) tokens
    #[arg(long, value_name = "N", default_value_t = 0.9)]
    pub adaptive_decay: f32,
    /// Mirostat 1 or 2 in place of the samplers; 0 = off [default: the model's, else 0]
    #[arg(long, value_name = "N")]
    pub mirostat: Option<u32>,
    /// Mirostat's learning rate, eta [default: the model's, else 0.1]
    #[arg(long, value_name = "N")]
    pub mirostat_lr: Option<f32>,
    /// Mirostat's target entropy, tau [default: the model's, else 5]
    #[arg(long, value_name = "N")]
    pub mirostat_ent: Option<f32>,
    /// Added to a token's logit: 15043+1, 15043-1, 29905-inf; can be repeated
    #[arg(short = 'l', long, value_name = "TOKEN_ID(+/-)BIAS")]
    pub logit_bias: Vec<String>,
    /// Never choose a token that ends the text
    #[arg(long)]
    pub ignore_eos: bool,
    /// The samplers, in order, separated by `;`
    /// [default: the model's, else penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature]
    #[arg(long, value_name = "NAMES")]
    pub samplers: Option<String>,
    /// The same, a letter each [default: the model's, else edskypmxt]
    #[arg(long, value_name = "LETTERS", alias = "sampler-seq", conflicts_with = "samplers")]
    pub sampling_seq: Option<String>,
}

impl SamplingArgs {
    /// The parameters these flags describe, every range checked. `escape` resolves escapes in the sequence breakers.
    pub fn params(&self, escape: bool) -> Result<SamplerParams, CliError> {
        let defaults = SamplerParams::default();
        let samplers = match (&self.samplers, &self.sampling_seq) {
            (Some(names), _) => SamplerKind::parse_names(names)?,
            (None, Some(letters)) => SamplerKind::parse_letters(letters)?,
            (None, None) => defaults.samplers,
        };
        let params = SamplerParams {
            seed: parse_seed(&self.seed)?,
            min_keep: self.min_keep,
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            xtc_probability: self.xtc_probability.unwrap_or(defaults.xtc_probability),
            xtc_threshold: self.xtc_threshold.unwrap_or(defaults.xtc_threshold),
            typ_p: self.typical,
            temp: self.temp.unwrap_or(defaults.temp),
            dynatemp_range: self.dynatemp_range,
            dynatemp_exponent: self.dynatemp_exp,
            penalty_last_n: self.repeat_last_n.unwrap_or(defaults.penalty_last_n),
            penalty_repeat: self.repeat_penalty.unwrap_or(defaults.penalty_repeat),
            penalty_freq: self.frequency_penalty,
            penalty_present: self.presence_penalty,
            dry_multiplier: self.dry_multiplier,
            dry_base: self.dry_base,
            dry_allowed_length: self.dry_allowed_length,
            dry_penalty_last_n: self.dry_penalty_last_n,
            dry_sequence_breakers: self.breakers(defaults.dry_sequence_breakers, escape)?,
            adaptive_target: self.adaptive_target,
            adaptive_decay: self.adaptive_decay,
            mirostat: self.mirostat.unwrap_or(defaults.mirostat),
            mirostat_tau: self.mirostat_ent.unwrap_or(defaults.mirostat_tau),
            mirostat_eta: self.mirostat_lr.unwrap_or(defaults.mirostat_eta),
            top_n_sigma: self.top_nsigma,
            ignore_eos: self.ignore_eos,
            logit_bias: self.logit_bias.iter().map(|s| s.parse::<LogitBias>()).collect::<Result<_, _>>()?,
            samplers,
        };
        params.validate()?;
        Ok(params)
    }

    /// Takes over what a model's file recommends where no flag says otherwise. What that was, in words; `None` for nothing.
    pub fn take_recommended(
        &self,
        params: &mut SamplerParams,
        recommended: &[(String, String)],
    ) -> Result<Option<String>, CliError> {
        let mut taken = Vec::new();
        for (name, value) in recommended.iter().filter(|(name, _)| !self.says(name)) {
            if params.recommend(name, value)? {
                taken.push(format!("{name} {value}"));
            }
        }
        Ok((!taken.is_empty()).then(|| taken.join(", ")))
    }

    /// Whether a flag was given for what a file's key of this name recommends.
    fn says(&self, name: &str) -> bool {
        match name {
            "sequence" => self.samplers.is_some() || self.sampling_seq.is_some(),
            "top_k" => self.top_k.is_some(),
            "top_p" => self.top_p.is_some(),
            "min_p" => self.min_p.is_some(),
            "xtc_probability" => self.xtc_probability.is_some(),
            "xtc_threshold" => self.xtc_threshold.is_some(),
            "temp" => self.temp.is_some(),
            "penalty_last_n" => self.repeat_last_n.is_some(),
            "penalty_repeat" => self.repeat_penalty.is_some(),
            "mirostat" => self.mirostat.is_some(),
            "mirostat_tau" => self.mirostat_ent.is_some(),
            "mirostat_eta" => self.mirostat_lr.is_some(),
            _ => false,
        }
    }

    fn breakers(&self, defaults: Vec<String>, escape: bool) -> Result<Vec<String>, CliError> {
        if self.dry_sequence_breaker.is_empty() {
            return Ok(defaults);
        }
        let mut breakers = Vec::new();
        for text in &self.dry_sequence_breaker {
            match text.as_str() {
                "none" => breakers.clear(),
                text if escape => breakers.push(unescape(text)?),
                text => breakers.push(text.to_owned()),
            }
        }
        Ok(breakers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        sampling: SamplingArgs,
    }

    fn params(args: &[&str]) -> Result<SamplerParams, CliError> {
        let argv = std::iter::once("test").chain(args.iter().copied());
        Only::try_parse_from(argv).map_err(|e| CliError::usage(e.to_string()))?.sampling.params(true)
    }

    #[test]
    fn the_defaults_are_the_librarys() {
        assert_eq!(params(&[]).unwrap(), SamplerParams::default());
    }

    #[test]
    fn values_reach_their_fields() {
        let p =
            params(&["--seed=7", "--temp=-1", "--samplers=top_k;temperature", "-l", "15-inf", "-l", "3+0.5"]).unwrap();
        assert_eq!((p.seed, p.temp), (7, -1.0));
        assert_eq!(p.samplers, [SamplerKind::TopK, SamplerKind::Temperature]);
        assert_eq!(p.logit_bias[0], LogitBias { token: 15, bias: f32::NEG_INFINITY });
        assert_eq!(p.logit_bias[1], LogitBias { token: 3, bias: 0.5 });
        assert_eq!(params(&["--sampling-seq=kt"]).unwrap().samplers, p.samplers);
    }

    #[test]
    fn flags_come_before_what_the_file_recommends() {
        let file = [("temp", "0.6"), ("top_k", "20"), ("sequence", "temperature"), ("new", "1")];
        let file = file.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let with = |args: &[&str]| {
            let argv = std::iter::once("test").chain(args.iter().copied());
            let flags = Only::parse_from(argv).sampling;
            let mut params = flags.params(true).unwrap();
            let taken = flags.take_recommended(&mut params, &file).unwrap();
            (params, taken)
        };
        let (p, taken) = with(&[]);
        assert_eq!((p.temp, p.top_k, &p.samplers[..]), (0.6, 20, &[SamplerKind::Temperature][..]));
        assert_eq!(taken.as_deref(), Some("temp 0.6, top_k 20, sequence temperature"));
        let (p, taken) = with(&["--temp", "0.8", "--sampling-seq", "k"]);
        assert_eq!((p.temp, p.top_k, &p.samplers[..]), (0.8, 20, &[SamplerKind::TopK][..]));
        assert_eq!(taken.as_deref(), Some("top_k 20"));
        assert_eq!(with(&["--temp", "1", "--top-k", "1", "--samplers", "top_k"]).1, None);
    }

    #[test]
    fn breakers_replace_the_defaults() {
        let p = params(&["--dry-sequence-breaker", "none", "--dry-sequence-breaker", r"\n"]).unwrap();
        assert_eq!(p.dry_sequence_breakers, ["\n"]);
        assert!(params(&["--dry-sequence-breaker", "none"]).unwrap().dry_sequence_breakers.is_empty());
    }

    #[test]
    fn errors_name_the_flag() {
        for (args, flag) in [
            (["--top-p=1.5"], "--top-p"),
            (["--temp=nan"], "--temp"),
            (["--mirostat=3"], "--mirostat"),
            (["--seed=x"], "--seed"),
            (["--samplers=top_q"], "--samplers"),
            (["-lfoo"], "--logit-bias"),
            (["--repeat-penalty=0"], "--repeat-penalty"),
        ] {
            let message = params(&args).unwrap_err().to_string();
            assert!(message.contains(flag), "{args:?}: {message}");
        }
    }
}
