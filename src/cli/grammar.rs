//! The flags that constrain what is generated.

use super::args::read_text;
use super::error::CliError;
use clap::Args;
use lisa_cpp::Error;
use lisa_cpp::runtime::constraint::{Constraint, Grammar};
use lisa_cpp::tokenizer::Tokenizer;
use std::path::{Path, PathBuf};

/// What the answer must be.
#[derive(Args, Debug)]
#[command(next_help_heading = "Grammar")]
pub struct GrammarArgs {
    /// Generate nothing but texts of this grammar, in llama.cpp's notation (GBNF): 'root ::= "yes" | "no"'
    #[arg(long, value_name = "GRAMMAR", group = "constraint")]
    pub grammar: Option<String>,
    /// The same, from a file
    #[arg(long, value_name = "FILE", group = "constraint")]
    pub grammar_file: Option<PathBuf>,
    /// Generate nothing but JSON that fulfils this schema; {} is any JSON. Objects have the listed properties and no others, unless additionalProperties says so
    #[arg(short, long, value_name = "SCHEMA", group = "constraint")]
    pub json_schema: Option<String>,
    /// The same, from a file [-jf]
    #[arg(long, value_name = "FILE", group = "constraint")]
    pub json_schema_file: Option<PathBuf>,
}

/// A grammar and where it was given, for messages.
pub struct Given {
    grammar: Grammar,
    place: String,
}

impl GrammarArgs {
    /// The grammar, if one was given.
    pub fn given(&self) -> Result<Option<Given>, CliError> {
        let gbnf = text("--grammar", &self.grammar, &self.grammar_file)?;
        let json = text("--json-schema", &self.json_schema, &self.json_schema_file)?;
        let (place, grammar) = match (gbnf, json) {
            (Some((place, text)), _) => (place, Grammar::gbnf(&text)),
            (None, Some((place, text))) => (place, Grammar::json_schema(&text)),
            (None, None) => return Ok(None),
        };
        let grammar = grammar.map_err(|e| wrong(&place, e))?;
        Ok(Some(Given { grammar, place }))
    }
}

impl Given {
    /// The grammar over the tokens of a model.
    pub fn constraint(&self, tokenizer: &Tokenizer) -> Result<Constraint, CliError> {
        Constraint::new(&self.grammar, tokenizer).map_err(|e| wrong(&self.place, e))
    }
}

/// The text of a flag or of a file, and where it is from.
fn text(flag: &str, text: &Option<String>, file: &Option<PathBuf>) -> Result<Option<(String, String)>, CliError> {
    Ok(match (text, file) {
        (Some(text), _) => Some((flag.to_owned(), text.clone())),
        (None, Some(path)) if path == Path::new("-") => Some(("standard input".to_owned(), read_text(path)?)),
        (None, Some(path)) => Some((path.display().to_string(), read_text(path)?)),
        (None, None) => None,
    })
}

fn wrong(place: &str, e: Error) -> CliError {
    let text = e.to_string();
    CliError::run(format!("{place}: {}", text.strip_prefix("grammar: ").unwrap_or(&text)))
}
