//! Constrained generation: texts that belong to a language, by a GBNF grammar or a JSON schema.
//!
//! A [`Grammar`] is read once; a [`Constraint`] follows a text through it, token by token, and tells which tokens may come
//! next. [`Sampler::sample_constrained`](super::sampler::Sampler::sample_constrained) chooses among these.
//!
//! ```
//! use lisa_cpp::runtime::constraint::{Constraint, Grammar};
//! use lisa_cpp::runtime::sampler::{Sampler, SamplerParams};
//! use lisa_cpp::{Model, ModelParams, Session, SessionParams};
//!
//! let model = std::sync::Arc::new(Model::embedded(ModelParams::default())?);
//! let tokenizer = model.tokenizer();
//! let mut constraint = Constraint::new(&Grammar::gbnf(r#"root ::= " yes" | " no""#)?, tokenizer)?;
//! let mut session = Session::new(model.clone(), SessionParams::default())?;
//! let mut sampler = Sampler::new(&SamplerParams::default(), tokenizer, session.n_ctx())?;
//! let mut logits = session.prefill(&tokenizer.encode("Did it rain?", true, true)?, &mut |_| ())?;
//! let mut answer = Vec::new();
//! while !constraint.is_finished() {
//!     let id = sampler.sample_constrained(logits, &mut constraint)?;
//!     constraint.accept(id)?;
//!     answer.push(id);
//!     logits = session.decode(id)?;
//! }
//! assert!([" yes", " no"].contains(&&*String::from_utf8_lossy(
//!     &answer.iter().flat_map(|&id| tokenizer.token_bytes(id, false).into_owned()).collect::<Vec<_>>()
//! )));
//! # Ok::<(), lisa_cpp::Error>(())
//! ```

mod automaton;
mod follow;
mod gbnf;
mod json;
mod narrow;
mod rules;
#[cfg(test)]
mod tests;
mod tokens;

use std::sync::Arc;

use toktrie::SimpleVob;

use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use tokens::Tokens;

/// A language that was read and understood, for any vocabulary.
#[derive(Clone, Debug)]
pub struct Grammar(Source);

#[derive(Clone, Debug)]
enum Source {
    Gbnf(rules::Rules),
    Json(json::Schema),
}

impl Grammar {
    /// Reads a grammar in llama.cpp's notation, GBNF. A text of its language is what the rule `root` matches, all of it.
    ///
    /// Rules are matched as they are written: no match is preferred over another. Only left recursion is refused.
    /// `<name>` and `<[12]>` stand for a token by its text or number, `!<name>` for any other that texts are made of.
    ///
    /// # Errors
    /// [`Error::Grammar`] with the line and the column, and what was expected there.
    pub fn gbnf(text: &str) -> Result<Self> {
        gbnf::parse(text).map(|rules| Grammar(Source::Gbnf(rules)))
    }

    /// Reads a JSON schema: a text of its language is a JSON value that fulfils it, properties in the schema's order.
    ///
    /// An object that lists `properties` has no others unless `additionalProperties` says so, and an integer without bounds
    /// has at most 15 digits. Of `oneOf` at least one is fulfilled. References lead to definitions in the schema itself.
    ///
    /// # Errors
    /// [`Error::Grammar`] if the text is not JSON, or asks for what cannot be followed (`not`, `if`, ...).
    pub fn json_schema(text: &str) -> Result<Self> {
        json::Schema::parse(text).map(|schema| Grammar(Source::Json(schema)))
    }
}

/// A text on its way through a grammar.
pub struct Constraint {
    tokens: Tokens,
    follower: Follower,
}

enum Follower {
    Gbnf(Box<follow::Follower>),
    Json(Box<json::Follower>),
}

impl Constraint {
    /// The beginning of a text of the language, in the tokens of this vocabulary.
    ///
    /// # Errors
    /// [`Error::Grammar`] if the grammar names a token that the vocabulary does not have or that ends a text, or if the
    /// vocabulary is larger than any known.
    pub fn new(grammar: &Grammar, tokenizer: &Tokenizer) -> Result<Self> {
        let tokens = Tokens::new(tokenizer)?;
        let follower = match &grammar.0 {
            Source::Gbnf(rules) => Follower::Gbnf(Box::new(follow::Follower::new(rules, tokenizer)?)),
            Source::Json(schema) => Follower::Json(Box::new(json::Follower::new(schema, &tokens)?)),
        };
        Ok(Constraint { tokens, follower })
    }

    /// Goes back to the beginning.
    pub fn reset(&mut self) {
        match &mut self.follower {
            Follower::Gbnf(f) => f.reset(),
            Follower::Json(f) => f.reset(),
        }
    }

    /// Whether the text so far belongs to the language.
    ///
    /// # Errors
    /// [`Error::Sampling`] if a JSON schema needs more work than its limits allow.
    pub fn is_complete(&mut self) -> Result<bool> {
        match &mut self.follower {
            Follower::Gbnf(f) => Ok(f.is_complete()),
            Follower::Json(f) => f.is_complete(),
        }
    }

    /// Whether the text belongs to the language and nothing can follow it there.
    pub fn is_finished(&self) -> bool {
        match &self.follower {
            Follower::Gbnf(f) => f.is_finished(),
            Follower::Json(f) => f.is_finished(),
        }
    }

    /// Whether the token may come next. One that ends a text may where the text is complete; one that prints nothing may
    /// not, unless the grammar names it.
    ///
    /// # Errors
    /// As of [`Constraint::is_complete`].
    pub fn allows(&mut self, id: u32) -> Result<bool> {
        if self.tokens.is_end(id) {
            return self.is_complete();
        }
        match &mut self.follower {
            Follower::Gbnf(f) => Ok(f.allows(id, self.tokens.bytes(id))),
            Follower::Json(f) => Ok(!self.tokens.bytes(id).is_empty() && f.allows(id)?),
        }
    }

    /// Adds a token to the text. One that ends it changes nothing.
    ///
    /// # Errors
    /// [`Error::Sampling`] if the token may not come next.
    pub fn accept(&mut self, id: u32) -> Result<()> {
        if !self.allows(id)? {
            return Err(Error::Sampling(format!("the grammar does not allow token {id} here")));
        }
        if self.tokens.is_end(id) {
            return Ok(());
        }
        match &mut self.follower {
            Follower::Gbnf(f) => f.accept(id, self.tokens.bytes(id)),
            Follower::Json(f) => f.accept(id)?,
        }
        Ok(())
    }

    /// Whether the tokens that may come next, `allowed`, all end the text, and the text is complete.
    pub(super) fn ends_here(&mut self, allowed: &SimpleVob) -> Result<bool> {
        Ok(self.is_complete()? && allowed.iter().all(|id| self.tokens.is_end(id)))
    }

    /// All tokens that may come next.
    pub(super) fn allowed(&mut self) -> Result<Arc<SimpleVob>> {
        match &mut self.follower {
            Follower::Gbnf(f) => Ok(f.allowed(&self.tokens)),
            Follower::Json(f) => {
                let complete = f.is_complete()?;
                Ok(Arc::new(self.tokens.with_ends(f.allowed()?, complete)))
            }
        }
    }
}
