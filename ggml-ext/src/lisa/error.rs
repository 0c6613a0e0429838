//! What can be wrong with the extension's keys and tensors.

use crate::gguf::split::SplitError;
use crate::gguf::{GgufError, WriteError};

/// Why a file's LISA extension cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum LisaError {
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error("key lisa.version: {found} is not supported, expected {}", super::VERSION)]
    Version { found: u32 },
    #[error("key {key} is missing")]
    MissingKey { key: &'static str },
    #[error("key {key}: {found} is not {expected}")]
    Value { key: &'static str, found: String, expected: String },
    #[error("key {key}: {found} values, expected one per layer as in lisa.layer.kind: {expected}")]
    Length { key: &'static str, found: usize, expected: usize },
    #[error("key {key}: {what}")]
    BaseKey { key: String, what: String },
    #[error("key lisa.layer.kind: made for a model of {found} layers, this one has {expected}")]
    LayerCount { found: usize, expected: usize },
    #[error(
        "made for another model: its key lisa.base.fingerprint is {}, this model's fingerprint is {}",
        short(found),
        short(expected)
    )]
    Fingerprint { found: String, expected: String },
    #[error("key general.architecture: made for {found:?}, this model is {expected:?}")]
    Architecture { found: String, expected: String },
    #[error("{what}")]
    Container { what: String },
    #[error("layer {layer}: {what}")]
    Layer { layer: usize, what: String },
    #[error("tensor {name} is missing")]
    MissingTensor { name: String },
    #[error("tensor {name}: {what}")]
    Tensor { name: String, what: String },
}

impl LisaError {
    pub(super) fn value(key: &'static str, found: impl ToString, expected: impl ToString) -> Self {
        let (mut found, expected) = (found.to_string(), expected.to_string());
        if let Some((end, _)) = found.char_indices().nth(80) {
            found.truncate(end);
            found.push_str("...");
        }
        Self::Value { key, found: format!("{found:?}"), expected }
    }
}

/// Enough of a fingerprint to tell two apart.
fn short(fingerprint: &str) -> String {
    match fingerprint.char_indices().nth(16) {
        Some((end, _)) => format!("{}...", &fingerprint[..end]),
        None => fingerprint.into(),
    }
}

/// Why a file with the extension could not be made. The variants tell which of the files is at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MakeError {
    /// The model, base or merged.
    #[error(transparent)]
    Model(LisaError),
    /// The parts of a split model.
    #[error(transparent)]
    Parts(#[from] SplitError),
    /// The sidecar, or the plan where there is none.
    #[error(transparent)]
    Sidecar(LisaError),
    /// The file being written.
    #[error(transparent)]
    Write(#[from] WriteError),
}
