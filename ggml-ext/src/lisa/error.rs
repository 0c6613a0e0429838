//! What can be wrong with the extension's keys and tensors.

use crate::gguf::GgufError;

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
