//! A model, a session and a sampler working together: feed tokens, generate an answer, keep the books.

use super::error::CliError;
use super::progress::{Log, Progress};
use super::signals::Stoppable;
use super::timings::Timings;
use lisa_cpp::Error;
use lisa_cpp::compute::Profile;
use lisa_cpp::model::Model;
use lisa_cpp::runtime::Session;
use lisa_cpp::runtime::constraint::Constraint;
use lisa_cpp::runtime::sampler::Sampler;
use lisa_cpp::tokenizer::{StreamDecoder, Tokenizer};
use std::sync::Arc;
use std::time::Instant;

/// Prompts of at least this many tokens get a progress bar.
const LONG_PROMPT: usize = 64;

/// How an answer is generated and when it ends.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most tokens of an answer; `None`: no limit.
    pub n_predict: Option<usize>,
    /// Forget old tokens when the context is full.
    pub context_shift: bool,
    /// Tokens of the first prompt that shifting keeps, besides the start token.
    pub n_keep: usize,
    /// Texts that end the answer.
    pub reverse_prompts: Vec<String>,
    /// Control tokens are part of the text.
    pub special: bool,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stop {
    /// The model ended it, or the grammar allows nothing more.
    EndOfText,
    /// `--predict` tokens were generated.
    #[default]
    Limit,
    /// A `--reverse-prompt` appeared.
    ReversePrompt,
    /// No room in the context.
    ContextFull,
    /// Ctrl-C.
    Interrupted,
}

impl Stop {
    /// The name used in `--json` output.
    pub fn name(self) -> &'static str {
        match self {
            Stop::EndOfText => "eog",
            Stop::Limit => "limit",
            Stop::ReversePrompt => "reverse-prompt",
            Stop::ContextFull => "context-full",
            Stop::Interrupted => "interrupted",
        }
    }
}

/// What was generated.
#[derive(Default)]
pub struct Answer {
    /// The text, as it was passed to the sink.
    pub text: String,
    /// The text without control tokens, whether the sink gets these or not.
    pub message: String,
    /// The tokens, the one that ended the text included.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub stop: Stop,
    /// The last token, when it belongs to the text and the session has not seen it yet.
    pub pending: Option<u32>,
    /// Ctrl-C came while tokens were read again: the session has not all that it should.
    pub lost: bool,
}

/// Everything a run needs after loading.
pub struct Engine {
    /// The weights and the vocabulary.
    pub model: Arc<Model>,
    /// Where the time goes.
    pub timings: Timings,
    /// Standard error.
    pub log: Log,
    /// When answers end.
    pub limits: Limits,
    session: Session,
    sampler: Sampler,
    /// What answers must be.
    constraint: Option<Constraint>,
    /// The constraint allows an end here.
    complete: bool,
    /// A token that the sampler has been told of and the session has not.
    accepted: Option<u32>,
    /// Length of the prompt the context began with.
    n_first: usize,
}

impl Engine {
    /// Where the time of the forward passes went, if that was measured.
    pub fn profile(&self) -> Option<&Profile> {
        self.session.profile()
    }

    /// Takes over a fresh session and a fresh sampler.
    pub fn new(
        model: Arc<Model>,
        session: Session,
        sampler: Sampler,
        constraint: Option<Constraint>,
        timings: Timings,
        log: Log,
        limits: Limits,
    ) -> Self {
        Engine { model, timings, log, limits, session, sampler, constraint, complete: true, accepted: None, n_first: 0 }
    }

    /// The model's vocabulary.
    pub fn tokenizer(&self) -> &Tokenizer {
        self.model.tokenizer()
    }

    /// Tokens the context can hold.
    pub fn n_ctx(&self) -> usize {
        self.session.n_ctx()
    }

    /// The tokens the session holds.
    pub fn held(&self) -> &[u32] {
        self.session.ids()
    }

    /// Forgets all tokens.
    pub fn clear(&mut self) {
        self.session.clear();
    }

    /// Forgets all but the first `n` tokens.
    pub fn truncate(&mut self, n: usize) -> Result<(), CliError> {
        Ok(self.session.truncate(n)?)
    }

    /// Replaces the sampler; the new one is told the tokens the session holds.
    pub fn set_sampler(&mut self, sampler: Sampler) {
        self.sampler = sampler;
        self.accepted = None;
        for &id in self.session.ids() {
            self.sampler.accept(id);
        }
    }

    /// Whether the last answer is not all that the grammar asks for.
    pub fn is_cut_short(&self) -> bool {
        !self.complete
    }

    /// Points Ctrl-C at the computation for as long as the result lives.
    pub fn stoppable(&self) -> Stoppable {
        Stoppable::new(self.session.abort_flag())
    }

    /// An error unless `n` more tokens fit, or shifting makes room for them.
    fn check_room(&self, n: usize) -> Result<(), CliError> {
        let (n_prompt, n_ctx) = (self.held().len() + n, self.n_ctx());
        if n_prompt <= n_ctx || self.limits.context_shift {
            return Ok(());
        }
        Err(CliError::run(format!(
            "the prompt has {n_prompt} tokens and the context holds {n_ctx}: {} too many (shorten it, raise -c, or pass \
             --context-shift)",
            n_prompt - n_ctx
        )))
    }

    /// Processes `ids` and chooses the token that follows them.
    ///
    /// When this fails, [`Engine::held`] tells how far it came.
    pub fn feed(&mut self, ids: &[u32]) -> Result<u32, CliError> {
        if ids.is_empty() {
            return Err(CliError::run("the prompt has no tokens and the model has no start token to begin with"));
        }
        self.check_room(ids.len())?;
        if self.held().is_empty() {
            self.n_first = ids.len();
        }
        // Every answer begins the grammar anew.
        if let Some(constraint) = &mut self.constraint {
            constraint.reset();
        }
        let mut rest = ids;
        let next = loop {
            let mut room = self.n_ctx() - self.held().len();
            if rest.len() >= room && self.limits.context_shift {
                // Leave a place for the first token of the answer.
                if room <= 1 {
                    let n = self.shift()?;
                    self.log.line(format_args!("note: the context is full: forgot {n} of its older tokens"));
                    room = self.n_ctx() - self.held().len();
                }
                room -= 1;
            }
            let (now, later) = rest.split_at(rest.len().min(room));
            rest = later;
            if let Some(next) = self.feed_at_once(now, rest.is_empty())? {
                break next;
            }
        };
        Ok(next)
    }

    /// Processes `ids`, and if they are the `last` for now chooses what follows.
    fn feed_at_once(&mut self, ids: &[u32], last: bool) -> Result<Option<u32>, CliError> {
        let log = if ids.len() >= LONG_PROMPT { self.log } else { Log::new(false) };
        let mut progress = Progress::new(log, "processing the prompt", ids.len() as u64);
        let start = Instant::now();
        let logits = self.session.prefill(ids, &mut |done| progress.set(done as u64))?;
        self.timings.prompt += start.elapsed();
        self.timings.n_prompt += ids.len();
        let start = Instant::now();
        // An answer's last token may come again with the text after it.
        let known = self.accepted.take().filter(|id| ids.first() == Some(id)).map_or(0, |_| 1);
        ids[known..].iter().for_each(|&id| self.sampler.accept(id));
        let next = if last { Some(choose(&mut self.sampler, &mut self.constraint, logits)?) } else { None };
        self.timings.sampling += start.elapsed();
        Ok(next)
    }

    /// Makes room: keeps the start, forgets the older half of the rest. Tells how many tokens that was.
    fn shift(&mut self) -> Result<usize, CliError> {
        let bos = usize::from(self.tokenizer().add_bos());
        let n_keep = self.limits.n_keep.saturating_add(bos).min(self.n_first).min(self.held().len());
        let n_discard = (self.held().len() - n_keep) / 2;
        if n_discard == 0 {
            return Err(CliError::run(format!(
                "the context of {} tokens is full, and too small for --context-shift: the first {n_keep} are kept (--keep)",
                self.n_ctx()
            )));
        }
        self.session.shift(n_keep, n_discard)?;
        Ok(n_discard)
    }

    /// Generates an answer that begins with the token `next`, which [`Engine::feed`] chose. `sink` gets the text as it
    /// comes, in whole characters.
    pub fn generate(
        &mut self,
        mut next: u32,
        stoppable: &Stoppable,
        sink: &mut dyn FnMut(&str) -> Result<(), CliError>,
    ) -> Result<Answer, CliError> {
        let model = self.model.clone();
        let tokenizer = model.tokenizer();
        let (mut decoder, mut said) = (StreamDecoder::default(), StreamDecoder::default());
        let mut answer = Answer::default();
        let mut emit = |answer: &mut Answer, piece: &str| {
            answer.text.push_str(piece);
            sink(piece)
        };
        answer.stop = loop {
            if stoppable.stopped() {
                break Stop::Interrupted;
            }
            if self.limits.n_predict.is_some_and(|n| answer.tokens.len() >= n) {
                break Stop::Limit;
            }
            let id = next;
            self.sampler.accept(id);
            self.accepted = Some(id);
            answer.tokens.push(id);
            let mut finished = false;
            if let Some(constraint) = &mut self.constraint {
                let start = Instant::now();
                constraint.accept(id)?;
                finished = constraint.is_finished();
                self.timings.sampling += start.elapsed();
            }
            let before = answer.text.len();
            emit(&mut answer, &decoder.push(&tokenizer.token_bytes(id, self.limits.special)))?;
            answer.message.push_str(&said.push(&tokenizer.token_bytes(id, false)));
            if tokenizer.is_eog(id) {
                answer.pending = None;
                break Stop::EndOfText;
            }
            answer.pending = Some(id);
            if self.limits.reverse_prompts.iter().any(|stop| appears_after(&answer.text, before, stop)) {
                break Stop::ReversePrompt;
            }
            if finished {
                break Stop::EndOfText;
            }
            if self.limits.n_predict.is_some_and(|n| answer.tokens.len() >= n) {
                break Stop::Limit;
            }
            if self.held().len() >= self.n_ctx() {
                if !self.limits.context_shift {
                    break Stop::ContextFull;
                }
                match self.shift() {
                    Ok(_) => {}
                    Err(_) if stoppable.stopped() => {
                        answer.lost = true;
                        break Stop::Interrupted;
                    }
                    Err(e) => return Err(e),
                }
            }
            let start = Instant::now();
            let logits = match self.session.decode(id) {
                Ok(logits) => logits,
                Err(Error::Interrupted) => break Stop::Interrupted,
                Err(e) => return Err(e.into()),
            };
            self.timings.eval += start.elapsed();
            self.timings.n_eval += 1;
            answer.pending = None;
            self.accepted = None;
            let start = Instant::now();
            next = choose(&mut self.sampler, &mut self.constraint, logits)?;
            self.timings.sampling += start.elapsed();
        };
        if let Some(constraint) = &mut self.constraint {
            self.complete = constraint.is_complete()?;
        }
        emit(&mut answer, &decoder.finish())?;
        answer.message.push_str(&said.finish());
        Ok(answer)
    }
}

/// The next token, one that the constraint allows if there is one.
fn choose(sampler: &mut Sampler, constraint: &mut Option<Constraint>, logits: &[f32]) -> Result<u32, lisa_cpp::Error> {
    match constraint {
        Some(constraint) => sampler.sample_constrained(logits, constraint),
        None => sampler.sample(logits),
    }
}

/// Whether `stop` appears in `text` and was not complete in its first `before` bytes.
fn appears_after(text: &str, before: usize, stop: &str) -> bool {
    let mut from = (before + 1).saturating_sub(stop.len()).min(before);
    // Nothing begins within a character.
    while !text.is_char_boundary(from) {
        from += 1;
    }
    !stop.is_empty() && text[from..].contains(stop)
}

#[cfg(test)]
mod tests {
    use super::appears_after;

    #[test]
    fn reverse_prompts_across_pieces() {
        assert!(appears_after("User: hi", 4, "User:"));
        assert!(appears_after("…User", 5, "User"));
        assert!(!appears_after("User: hello", 9, "User:"));
        assert!(!appears_after("abc", 3, ""));
        assert!(!appears_after("User: hello", 5, "User:"), "was complete before");
        assert!(appears_after("é:", 2, "é:") && !appears_after("é", 2, "é"));
    }
}
