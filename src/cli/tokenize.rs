//! `lisa-cpp tokenize`: text to tokens, as `llama-tokenize` prints them.

use super::args::{read_text, unescape};
use super::error::CliError;
use super::generate::token_list;
use super::load;
use clap::Args;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Flags of `tokenize`.
#[derive(Args, Debug)]
pub struct TokenizeArgs {
    /// GGUF file; one that holds a vocabulary alone will do. Default: the embedded story model
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// The text; without --prompt and --file, standard input is read
    #[arg(short, long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Read the text from a file, all of it but a byte order mark (`-`: standard input)
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    file: Option<PathBuf>,
    /// Print a JSON array of ids instead of a line per token
    #[arg(long)]
    ids: bool,
    /// Do not add the start token
    #[arg(long)]
    no_bos: bool,
    /// Take the names of control tokens in the text as plain text
    #[arg(long)]
    no_parse_special: bool,
    /// Turn \n \r \t \' \" \\ \xHH into the characters they stand for (the default)
    #[arg(short, long, overrides_with = "no_escape")]
    escape: bool,
    /// Take the text as it is
    #[arg(long, overrides_with = "escape")]
    no_escape: bool,
    /// Print the number of tokens after them
    #[arg(long, conflicts_with = "ids")]
    show_count: bool,
    /// Nothing on standard error but errors (there is nothing to disable)
    #[arg(long, hide = true)]
    log_disable: bool,
}

/// Runs the command.
pub fn run(args: &TokenizeArgs) -> Result<(), CliError> {
    let tokenizer = load::tokenizer(args.model.as_deref())?;
    let meant = |text: String| if args.no_escape { Ok(text) } else { unescape(&text) };
    let text = match &args.prompt {
        Some(text) => meant(text.clone())?,
        None => meant(read_text(args.file.as_deref().unwrap_or(Path::new("-")))?).map_err(CliError::of_file)?,
    };
    let ids = tokenizer.encode(&text, !args.no_bos, !args.no_parse_special)?;
    let mut out = std::io::stdout().lock();
    if args.ids {
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        writeln!(out, "[{}]", ids.join(", "))?;
    } else {
        if !ids.is_empty() {
            writeln!(out, "{}", token_list(&tokenizer, &ids))?;
        }
        if args.show_count {
            writeln!(out, "Total number of tokens: {}", ids.len())?;
        }
    }
    Ok(out.flush()?)
}
