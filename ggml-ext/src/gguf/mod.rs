//! The GGUF container format, versions 2 and 3, little-endian.

/// placeholder
#[derive(Debug, thiserror::Error)]
#[error("placeholder")]
pub struct GgufError;
