//! The one error type of the library. Every message names the file, key, tensor, token or flag at fault and what was
//! expected; the command line prints it as one line.

use std::path::PathBuf;

/// What can go wrong when a model is opened or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file concerned.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The bytes are not a well-formed GGUF file.
    #[error("{file}: {source}")]
    Gguf {
        /// The file concerned (or `<embedded model>`).
        file: String,
        /// What is wrong, and at which offset.
        source: ggml_ext::gguf::GgufError,
    },
    /// A well-formed file that does not describe a model this engine can run: `what` names the key or tensor.
    #[error("{file}: {}", one_line(what))]
    Model {
        /// The file concerned.
        file: String,
        /// The key or tensor at fault and what was expected.
        what: String,
    },
    /// A file of questions or settings that is not as expected.
    #[error("{place}: {}", one_line(what))]
    Data {
        /// The file, and the line where there is one.
        place: String,
        /// The field at fault and what was expected.
        what: String,
    },
    /// The tokenizer's metadata is missing, inconsistent or of an unknown kind.
    #[error("tokenizer: {}", one_line(.0))]
    Tokenizer(String),
    /// The model's chat template is missing or does not render.
    #[error("chat template: {}", one_line(.0))]
    Template(String),
    /// A parameter that is wrong whatever the model; names the flag.
    #[error("{}", one_line(.0))]
    Params(String),
    /// What is asked for cannot be had of this model, these files or this machine.
    #[error("{}", one_line(.0))]
    Impossible(String),
    /// A grammar or JSON schema that is not as expected.
    #[error("grammar: {}", one_line(.0))]
    Grammar(String),
    /// No token can be chosen from the logits.
    #[error("sampling: {}", one_line(.0))]
    Sampling(String),
    /// More tokens than the context can hold.
    #[error("{n_prompt} tokens do not fit into a context of {n_ctx}: {} too many; raise -c or shorten the prompt",
        n_prompt.saturating_sub(*n_ctx))]
    ContextFull {
        /// Tokens asked for, those already in the context included.
        n_prompt: usize,
        /// Tokens the context holds.
        n_ctx: usize,
    },
    /// The caller asked for the computation to stop (Ctrl-C).
    #[error("interrupted")]
    Interrupted,
}

/// Shorthand used throughout the crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Texts from a file may hold control characters; a message is one line whatever they are.
fn one_line(text: &str) -> std::borrow::Cow<'_, str> {
    if !text.contains(char::is_control) {
        return text.into();
    }
    text.chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect::<String>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line_whatever_the_file_holds() {
        let e = Error::Tokenizer("token 5 reads `\n\u{1b}[2J\r`".into());
        assert_eq!(e.to_string(), "tokenizer: token 5 reads `\\n\\u{1b}[2J\\r`");
        assert_eq!(Error::Params("-t must be at least 1".into()).to_string(), "-t must be at least 1");
    }
}
