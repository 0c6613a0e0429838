//! Importance matrices: how much each input column of each matrix matters, measured as the sum of the squares of the
//! activations that meet it over a text. Quantisers spend their precision accordingly.
//!
//! The files are those of `llama-imatrix`: GGUF (`general.type` is `imatrix`; for every matrix a tensor `NAME.in_sum2` of sums
//! and a tensor `NAME.counts` of how many rows of activations were summed), and the older binary format.

mod collect;
mod gguf;
mod legacy;

pub use collect::Collector;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use crate::{Error, Result};

/// Tokens per chunk unless told otherwise.
pub const CHUNK_SIZE: u32 = 512;

/// What was measured for one tensor: `counts.len()` matrices (more than one for a stack of experts).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Entry {
    /// Sums of squares, a row of columns for each matrix.
    pub squares: Vec<f64>,
    /// Rows of activations that were summed, for each matrix.
    pub counts: Vec<u64>,
}

impl Entry {
    /// Columns of each matrix.
    pub fn n_cols(&self) -> usize {
        self.squares.len() / self.counts.len().max(1)
    }
}

/// An importance matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Imatrix {
    /// By tensor, e.g. `blk.0.attn_q.weight`.
    pub entries: BTreeMap<String, Entry>,
    /// The texts it was measured on.
    pub datasets: Vec<String>,
    /// Tokens per chunk of text.
    pub chunk_size: u32,
}

impl Default for Imatrix {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), datasets: Vec::new(), chunk_size: CHUNK_SIZE }
    }
}

/// The two file formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// GGUF.
    Gguf,
    /// The older binary format: averages instead of sums and counts, and one count for a stack of matrices.
    Dat,
}

impl Imatrix {
    /// Reads a file of either format.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Model`] naming what is wrong with the file.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.into(), source })?;
        Self::parse(&bytes).map_err(|what| Error::Model { file: path.display().to_string(), what })
    }

    /// Reads the bytes of a file of either format.
    ///
    /// # Errors
    /// A message that names the tensor or the offset at fault.
    pub fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        let matrix = if bytes.starts_with(b"GGUF") { gguf::parse(bytes)? } else { legacy::parse(bytes)? };
        if matrix.entries.is_empty() {
            return Err("holds no importances, expected tensors such as blk.0.attn_q.weight.in_sum2".into());
        }
        for (name, e) in &matrix.entries {
            if let Some(v) = e.squares.iter().find(|v| !v.is_finite() || **v < 0.0) {
                return Err(format!("tensor {name}: {v} is no sum of squares"));
            }
        }
        Ok(matrix)
    }

    /// The bytes of a file.
    ///
    /// # Errors
    /// A message that names the tensor whose sums are not finite or whose name is too long for the format.
    pub fn to_bytes(&self, format: Format) -> std::result::Result<Vec<u8>, String> {
        if let Some((name, _)) = self.entries.iter().find(|(_, e)| e.squares.iter().any(|v| !(*v as f32).is_finite())) {
            return Err(format!("tensor {name}: its activations are not finite"));
        }
        match format {
            Format::Gguf => gguf::write(self).map_err(|e| e.to_string()),
            Format::Dat => legacy::write(self),
        }
    }

    /// Chunks of text that were measured.
    pub fn n_chunks(&self) -> u64 {
        let most = self.entries.values().flat_map(|e| &e.counts).max().copied().unwrap_or(0);
        let size = u64::from(self.chunk_size.max(1));
        (most + size / 2) / size
    }

    /// Adds another measurement of the same model.
    ///
    /// # Errors
    /// A message that names the tensor whose shape differs.
    pub fn add(&mut self, other: Imatrix) -> std::result::Result<(), String> {
        for (name, e) in other.entries {
            let Some(own) = self.entries.get_mut(&name) else {
                self.entries.insert(name, e);
                continue;
            };
            if (own.squares.len(), own.counts.len()) != (e.squares.len(), e.counts.len()) {
                let [a, b] = [&*own, &e].map(|e| format!("{} x {}", e.n_cols(), e.counts.len()));
                return Err(format!("tensor {name}: {b} sums, expected {a} as in the others"));
            }
            own.squares.iter_mut().zip(e.squares).for_each(|(a, b)| *a += b);
            own.counts.iter_mut().zip(e.counts).for_each(|(a, b)| *a = a.saturating_add(b));
        }
        self.datasets.extend(other.datasets);
        Ok(())
    }
}

/// What quantisers make of an [`Imatrix`]: the mean square of every column.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Importance {
    columns: HashMap<String, Vec<f32>>,
}

impl Importance {
    /// The mean squares of the tensors whose name `wanted` accepts. Experts that were never chosen count as if all their columns
    /// mattered equally.
    pub fn new(matrix: &Imatrix, wanted: impl Fn(&str) -> bool) -> Self {
        let mean = |e: &Entry| {
            let matrices = e.squares.chunks(e.n_cols().max(1)).zip(&e.counts);
            let mean = |(squares, &n): (&[f64], &u64)| -> Vec<f32> {
                let of = |v: &f64| if n > 0 { (v / n as f64) as f32 } else { 1.0 };
                squares.iter().map(of).collect()
            };
            matrices.flat_map(mean).collect()
        };
        let entries = matrix.entries.iter().filter(|(name, _)| wanted(name));
        Self { columns: entries.map(|(name, e)| (name.clone(), mean(e))).collect() }
    }

    /// One number per column of the tensor (of every matrix of a stack), if it was measured.
    pub fn get(&self, tensor: &str) -> Option<&[f32]> {
        self.columns.get(tensor).map(Vec::as_slice)
    }

    /// Tensors measured.
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    /// True when nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }
}

#[cfg(test)]
mod tests;
