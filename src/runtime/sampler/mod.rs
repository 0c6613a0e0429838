//! Choosing the next token from the logits: llama.cpp's samplers, in llama.cpp's order, with its names and defaults.
//!
//! The chain is: logit biases, then the stages of [`SamplerParams::samplers`] in order, then a draw. With mirostat it is:
//! logit biases, temperature, mirostat. The same seed, parameters, logits and accepted tokens choose the same tokens on
//! every machine: the generator is MT19937, all orders are total (ties go to the lower id), and nothing depends on the
//! number of threads. Where no stage breaks ties differently, the token is also the one llama.cpp draws with that seed.
//!
//! NaN logits count as forbidden (-inf); when nothing is left to choose from, [`Sampler::sample`] says so.

mod adaptive;
mod candidates;
mod dry;
mod mirostat;
mod params;
mod penalties;
mod recommended;
mod rng;
mod stages;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

pub use params::{LogitBias, RANDOM_SEED, SamplerKind, SamplerParams, parse_seed};

use super::constraint::Constraint;
use crate::{Error, Result};
use adaptive::Adaptive;
use candidates::Candidates;
use dry::Dry;
use mirostat::Mirostat;
use penalties::Penalties;
use rng::Mt19937;
use toktrie::SimpleVob;

/// What the sampler needs to know of a vocabulary.
pub trait SamplerVocab {
    /// Number of tokens.
    fn n_vocab(&self) -> usize;
    /// True when the token ends the generation.
    fn is_eog(&self, id: u32) -> bool;
    /// Tokens that are never chosen, whatever the parameters say.
    fn suppressed(&self) -> &[u32] {
        &[]
    }
    /// The bytes of the token, special ones written out. Used for DRY's sequence breakers.
    fn token_bytes(&self, id: u32) -> Cow<'_, [u8]>;
    /// Plain text to tokens, without BOS and without special tokens. Used for DRY's sequence breakers.
    ///
    /// # Errors
    /// The tokenizer's.
    fn encode(&self, text: &str) -> Result<Vec<u32>>;
}

/// A sampling chain and its state.
pub struct Sampler {
    params: SamplerParams,
    n_vocab: usize,
    seed: u32,
    rng: Mt19937,
    xtc_rng: Mt19937,
    biases: Vec<LogitBias>,
    penalties: Option<Penalties>,
    dry: Option<Dry>,
    mirostat: Option<Mirostat>,
    adaptive: Option<Adaptive>,
    candidates: Candidates,
}

impl Sampler {
    /// Builds the chain. `n_ctx` is what a window of -1 stands for.
    ///
    /// # Errors
    /// [`Error::Params`] naming the flag that is out of range, [`Error::Impossible`] for a biased token that the vocabulary does
    /// not have.
    pub fn new(params: &SamplerParams, vocab: &(impl SamplerVocab + ?Sized), n_ctx: usize) -> Result<Sampler> {
        params.validate()?;
        let n_vocab = vocab.n_vocab();
        let mut biases = params.logit_bias.clone();
        if let Some(b) = biases.iter().find(|b| b.token as usize >= n_vocab) {
            let what = format!("--logit-bias: token {}: the vocabulary has {n_vocab} tokens", b.token);
            return Err(Error::Impossible(what));
        }
        if params.ignore_eos {
            let ends = (0..n_vocab as u32).filter(|&id| vocab.is_eog(id));
            biases.extend(ends.map(|token| LogitBias { token, bias: f32::NEG_INFINITY }));
        }
        biases.extend(vocab.suppressed().iter().map(|&token| LogitBias { token, bias: f32::NEG_INFINITY }));
        let in_chain = |kind| params.mirostat == 0 && params.samplers.contains(&kind);
        let penalties = if in_chain(SamplerKind::Penalties) { Penalties::new(params, n_vocab, n_ctx) } else { None };
        let dry = if in_chain(SamplerKind::Dry) { Dry::new(params, vocab, n_ctx)? } else { None };
        let mirostat = (params.mirostat > 0)
            .then(|| Mirostat::new(params.mirostat, params.mirostat_tau, params.mirostat_eta, n_vocab));
        let adaptive =
            in_chain(SamplerKind::AdaptiveP).then(|| Adaptive::new(params.adaptive_target, params.adaptive_decay));
        let seed = if params.seed == RANDOM_SEED { random_seed() } else { params.seed };
        Ok(Sampler {
            params: params.clone(),
            n_vocab,
            seed,
            rng: Mt19937::new(seed),
            xtc_rng: Mt19937::new(seed),
            biases,
            penalties,
            dry,
            mirostat,
            adaptive,
            candidates: Candidates::default(),
        })
    }

    /// The seed in use: the one given, or the one chosen when that was [`RANDOM_SEED`].
    pub fn seed(&self) -> u32 {
        self.seed
    }

    /// Records a token that entered the context, from the prompt or sampled: the penalties and DRY look back on it.
    /// Ids the vocabulary does not have are ignored.
    pub fn accept(&mut self, id: u32) {
        if id as usize >= self.n_vocab {
            return;
        }
        if let Some(p) = &mut self.penalties {
            p.accept(id);
        }
        if let Some(d) = &mut self.dry {
            d.accept(id);
        }
        if let Some(a) = &mut self.adaptive {
            a.accept(id);
        }
    }

    /// Forgets the accepted tokens and starts the generator again from the seed.
    pub fn reset(&mut self) {
        self.rng = Mt19937::new(self.seed);
        self.xtc_rng = Mt19937::new(self.seed);
        if let Some(p) = &mut self.penalties {
            p.reset();
        }
        if let Some(d) = &mut self.dry {
            d.reset();
        }
        if let Some(m) = &mut self.mirostat {
            m.reset();
        }
        if let Some(a) = &mut self.adaptive {
            a.reset();
        }
    }

    /// Chooses a token by its logit, `logits[id]`. It is not recorded: call [`Sampler::accept`] when it enters the context.
    ///
    /// # Errors
    /// [`Error::Sampling`] when every token is forbidden or has a logit of NaN or -inf: the model is broken or the biases
    /// forbid everything.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        self.choose(logits, None).ok_or_else(|| {
            Error::Sampling(if logits.iter().any(|l| l.is_nan()) {
                "the model's logits are not numbers (NaN)".into()
            } else {
                "every token is forbidden (by --logit-bias or --ignore-eos, or the model's logits are all -inf)".into()
            })
        })
    }

    /// Chooses a token as [`Sampler::sample`] does, among those that the constraint allows. It is not recorded, here or there.
    ///
    /// The first draw is made without the constraint. Only if what it chooses is not allowed, the others that are not
    /// allowed are forbidden too and a second draw is made, with the next random numbers: as llama.cpp does it, and so that
    /// a constraint costs next to nothing where the model keeps to it by itself. Where nothing but the end of the text is
    /// allowed, a token that ends it is chosen even if `ignore_eos` or a bias forbids all of them.
    ///
    /// # Errors
    /// As of [`Sampler::sample`]; [`Error::Sampling`] too when the constraint allows no token of the vocabulary, and when a
    /// JSON schema needs more work than its limits allow.
    pub fn sample_constrained(&mut self, logits: &[f32], constraint: &mut Constraint) -> Result<u32> {
        // Nothing to choose from is no error yet: what is forbidden may be all that the constraint allows.
        let first = self.choose(logits, None);
        if let Some(id) = first
            && constraint.allows(id)?
        {
            return Ok(id);
        }
        let allowed = constraint.allowed()?;
        if let Some(id) = self.choose(logits, Some(&allowed)) {
            return Ok(id);
        }
        if constraint.ends_here(&allowed)? {
            let logit = |id: &u32| logits.get(*id as usize).map_or(f32::NEG_INFINITY, |l| l.max(f32::MIN));
            let best = allowed.iter().max_by(|a, b| logit(a).total_cmp(&logit(b)).then(b.cmp(a)));
            return best.ok_or_else(|| Error::Sampling("the vocabulary has no token that ends a text".into()));
        }
        if first.is_none() {
            return self.sample(logits);
        }
        Err(Error::Sampling(if allowed.is_zero() {
            "the grammar allows no token of this vocabulary here".into()
        } else {
            "what the grammar allows here is forbidden by --logit-bias, or its logits are all -inf".into()
        }))
    }

    /// Runs the chain over the `allowed` tokens, all of them if none are given.
    fn choose(&mut self, logits: &[f32], allowed: Option<&SimpleVob>) -> Option<u32> {
        let c = &mut self.candidates;
        c.load(logits);
        if let Some(allowed) = allowed {
            c.keep_only(allowed.as_slice());
        }
        for b in &self.biases {
            c.edit(b.token, |l| l + b.bias);
        }
        let p = &self.params;
        let chosen = if let Some(m) = &mut self.mirostat {
            stages::temperature(c, p.temp);
            m.choose(c, &mut self.rng)
        } else {
            let min_keep = p.min_keep;
            for kind in &p.samplers {
                match kind {
                    SamplerKind::Penalties => {
                        if let Some(s) = &self.penalties {
                            s.apply(c, p);
                        }
                    }
                    SamplerKind::Dry => {
                        if let Some(s) = &mut self.dry {
                            s.apply(c, p);
                        }
                    }
                    SamplerKind::TopNSigma => stages::top_n_sigma(c, p.top_n_sigma),
                    SamplerKind::TopK => stages::top_k(c, p.top_k),
                    SamplerKind::TypicalP => stages::typical(c, p.typ_p, min_keep),
                    SamplerKind::TopP => stages::top_p(c, p.top_p, min_keep),
                    SamplerKind::MinP => stages::min_p(c, p.min_p, min_keep),
                    SamplerKind::Xtc => {
                        stages::xtc(c, p.xtc_probability, p.xtc_threshold, min_keep, &mut self.xtc_rng);
                    }
                    SamplerKind::Temperature => {
                        stages::dynamic_temperature(c, p.temp, p.dynatemp_range, p.dynatemp_exponent);
                    }
                    SamplerKind::AdaptiveP => {}
                }
            }
            match &mut self.adaptive {
                Some(a) => a.choose(c, &mut self.rng),
                None => stages::draw(c, &mut self.rng),
            }
        };
        chosen.map(|i| self.candidates.list()[i].id)
    }

    /// The stages that act, in order, with their parameters: `logits -> top_k 40 -> top_p 0.95 -> ... -> draw`.
    pub fn describe_chain(&self) -> String {
        let p = &self.params;
        let mut parts = vec!["logits".to_string()];
        if !self.biases.is_empty() {
            parts.push(format!("logit_bias ({} tokens)", self.biases.len()));
        }
        if p.mirostat > 0 {
            parts.push(format!("temperature {}", p.temp));
            parts.push(format!("mirostat {} (ent {}, lr {})", p.mirostat, p.mirostat_tau, p.mirostat_eta));
            return parts.join(" -> ");
        }
        for kind in &p.samplers {
            let detail = match kind {
                SamplerKind::Penalties => self.penalties.is_some().then(|| {
                    format!(
                        "(last {}, repeat {}, frequency {}, presence {})",
                        p.penalty_last_n, p.penalty_repeat, p.penalty_freq, p.penalty_present
                    )
                }),
                SamplerKind::Dry => self.dry.is_some().then(|| {
                    format!(
                        "(multiplier {}, base {}, allowed {}, last {})",
                        p.dry_multiplier, p.dry_base, p.dry_allowed_length, p.dry_penalty_last_n
                    )
                }),
                SamplerKind::TopNSigma => (p.top_n_sigma > 0.0).then(|| p.top_n_sigma.to_string()),
                SamplerKind::TopK => (p.top_k > 0).then(|| p.top_k.to_string()),
                SamplerKind::TypicalP => (p.typ_p < 1.0).then(|| p.typ_p.to_string()),
                SamplerKind::TopP => (p.top_p < 1.0).then(|| p.top_p.to_string()),
                SamplerKind::MinP => (p.min_p > 0.0).then(|| p.min_p.to_string()),
                SamplerKind::Xtc => (p.xtc_probability > 0.0 && p.xtc_threshold <= 0.5)
                    .then(|| format!("(probability {}, threshold {})", p.xtc_probability, p.xtc_threshold)),
                SamplerKind::Temperature if p.dynatemp_range > 0.0 => {
                    Some(format!("{} ± {} (exponent {})", p.temp, p.dynatemp_range, p.dynatemp_exponent))
                }
                SamplerKind::Temperature => Some(p.temp.to_string()),
                SamplerKind::AdaptiveP => None,
            };
            parts.extend(detail.map(|d| format!("{} {d}", kind.name())));
        }
        parts.push(match &self.adaptive {
            Some(_) => format!("adaptive_p (target {}, decay {})", p.adaptive_target, p.adaptive_decay),
            None => "draw".into(),
        });
        parts.join(" -> ")
    }
}

/// A seed from the keys the standard library draws from the operating system; never [`RANDOM_SEED`].
fn random_seed() -> u32 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let seed = RandomState::new().build_hasher().finish() as u32;
    if seed == RANDOM_SEED { 0 } else { seed }
}
