//! JSON schemas. The crate `llguidance` turns them into a grammar and follows it.

use std::fmt::Display;
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::{JsonCompileOptions, Matcher, ParserFactory, TokenParser};
use serde_json::{Map, Value};
use toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv};

use super::narrow;
use super::tokens::Tokens;
use crate::{Error, Result};

/// White space between the parts: nothing, a blank, or lines indented by what people use. A model that may put as much as
/// it likes sometimes puts nothing else.
const WHITE_SPACE: &str = r" |\n{1,2}[ \t]{0,20}";

/// A schema that was understood.
#[derive(Clone, Debug)]
pub(super) struct Schema(Value);

impl Schema {
    /// # Errors
    /// [`Error::Grammar`] if the text is not JSON, or no schema, or one that cannot be followed.
    pub fn parse(text: &str) -> Result<Self> {
        let mut schema: Value = serde_json::from_str(text).map_err(|e| {
            let what = e.to_string();
            let what = what.rsplit_once(" at line ").map_or(&*what, |(what, _)| what);
            Error::Grammar(format!("line {}, column {}: not JSON: {what}", e.line(), e.column()))
        })?;
        match &schema {
            // The schema that everything fulfils.
            Value::Bool(true) => schema = Value::Object(Map::new()),
            Value::Object(_) => {}
            _ => return Err(Error::Grammar("a JSON schema is an object".into())),
        }
        narrow::narrow(&mut schema);
        JsonCompileOptions {
            whitespace_pattern: Some(WHITE_SPACE.into()),
            // To be valid by exactly one of several is beyond a grammar: by at least one.
            coerce_one_of: true,
            // A schema says nothing about how a string is spelt.
            json_allow_general_unicode_escapes: true,
            ..Default::default()
        }
        .apply_to(&mut schema);
        let schema = Schema(schema);
        // Whether it can be followed does not depend on the vocabulary.
        schema.parser(&ApproximateTokEnv::single_byte_env(), false)?;
        Ok(schema)
    }

    /// `large`: for a vocabulary of more than a few tokens, of which many are treated alike within strings.
    fn parser(&self, tokens: &TokEnv, large: bool) -> Result<TokenParser> {
        let capabilities = InferenceCapabilities::default();
        let factory =
            if large { ParserFactory::new_simple(tokens) } else { ParserFactory::new(tokens, capabilities, &[]) };
        let parser = factory.and_then(|mut factory| {
            factory.quiet().limits_mut().verbose_errors = false;
            factory.create_parser(TopLevelGrammar::from_json_schema(self.0.clone()))
        });
        parser.map_err(|e| Error::Grammar(told(e)))
    }
}

/// An error of the crate in one line, without what it appends about itself and without pointers into the line above.
fn told(e: impl Display) -> String {
    let text = format!("{e:#}");
    let text = text.split("\n<").next().unwrap_or_default().replace(" without 'referencing' feature", "");
    let lines = text.lines().map(str::trim).filter(|line| !line.trim_matches('^').is_empty());
    lines.collect::<Vec<_>>().join(" ")
}

/// A schema being followed.
pub(super) struct Follower {
    beginning: Matcher,
    now: Matcher,
}

impl Follower {
    pub fn new(schema: &Schema, tokens: &Tokens) -> Result<Self> {
        let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(tokens.trie.clone()));
        let beginning = Matcher::new(Ok(schema.parser(&tokens, true)?));
        let now = beginning.clone();
        Ok(Follower { beginning, now })
    }

    pub fn reset(&mut self) {
        self.now = self.beginning.clone();
    }

    pub fn is_complete(&mut self) -> Result<bool> {
        if self.is_finished() {
            return Ok(true);
        }
        self.now.is_accepting().map_err(failed)
    }

    /// Whether nothing can follow.
    pub fn is_finished(&self) -> bool {
        self.now.is_stopped() && !self.now.is_error()
    }

    pub fn allows(&mut self, id: u32) -> Result<bool> {
        self.now.validate_tokens(&[id]).map(|n| n == 1).map_err(failed)
    }

    pub fn accept(&mut self, id: u32) -> Result<()> {
        self.now.consume_token(id).map_err(failed)
    }

    /// All tokens that can follow.
    pub fn allowed(&mut self) -> Result<SimpleVob> {
        self.now.compute_mask_or_eos().map_err(failed)
    }
}

/// What goes wrong on the way: the limits on the work for a token.
fn failed(e: impl Display) -> Error {
    Error::Sampling(format!("JSON schema: {}", told(e)))
}
