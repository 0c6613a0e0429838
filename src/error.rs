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
    #[error("{file}: {what}")]
    Model {
        /// The file concerned.
        file: String,
        /// The key or tensor at fault and what was expected.
        what: String,
    },
    /// The tokenizer's metadata is missing, inconsistent or of an unknown kind.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The model's chat template is missing or does not render.
    #[error("chat template: {0}")]
    Template(String),
    /// A parameter outside its range; names the flag.
    #[error("{0}")]
    Params(String),
    /// No token can be chosen from the logits.
    #[error("sampling: {0}")]
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
