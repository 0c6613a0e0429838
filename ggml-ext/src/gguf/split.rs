//! Models stored as several files: `NAME-00001-of-00003.gguf` and so on.
//!
//! Each part is a GGUF file of its own. The first holds the model's metadata, each says in `split.no` (from 0) and
//! `split.count` which part it is of how many, and in `split.tensors.count` how many tensors the parts hold together.

use std::collections::HashMap;

use super::error::Name;
use super::{Gguf, GgufError, TensorInfo};

/// The key of a part's number, from 0.
pub const NO_KEY: &str = "split.no";
/// The key of the number of parts.
pub const COUNT_KEY: &str = "split.count";
/// The key of the number of tensors in all parts.
pub const TENSORS_KEY: &str = "split.tensors.count";

/// The name of one part's file, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartName<'a> {
    /// What stands before the numbers; may hold directories.
    pub prefix: &'a str,
    /// The part's number from 0, one less than in the name.
    pub no: u16,
    /// The number of parts.
    pub count: u16,
}

impl<'a> PartName<'a> {
    /// Takes `PREFIX-00001-of-00003.gguf` apart; `None` for any other name.
    pub fn parse(name: &'a str) -> Option<Self> {
        let rest = name.strip_suffix(".gguf")?;
        let (rest, count) = split_number(rest)?;
        let (prefix, no) = split_number(rest.strip_suffix("-of")?)?;
        let no = no.checked_sub(1).filter(|&no| no < count)?;
        Some(PartName { prefix, no, count })
    }

    /// The names of all parts, this one among them, in order.
    pub fn all(&self) -> impl ExactSizeIterator<Item = String> {
        let (prefix, count) = (self.prefix, self.count);
        (0..count).map(move |no| PartName { prefix, no, count }.to_string())
    }
}

/// `TEXT-00012` to `TEXT` and 12: exactly five digits.
fn split_number(s: &str) -> Option<(&str, u16)> {
    let (rest, digits) = s.split_at_checked(s.len().checked_sub(5)?)?;
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((rest.strip_suffix('-')?, digits.parse().ok()?))
}

impl std::fmt::Display for PartName<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{:05}-of-{:05}.gguf", self.prefix, u32::from(self.no) + 1, self.count)
    }
}

/// Why files are not the parts of one model. Parts are numbered from 1, as in their names.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum SplitError {
    #[error("part {part}: {source}")]
    Metadata { part: usize, source: GgufError },
    #[error("part {part}: key {key:?} is missing")]
    MissingKey { part: usize, key: &'static str },
    #[error("part {part}: key \"split.count\" says the model has {found} parts, {given} given")]
    WrongCount { part: usize, found: u64, given: usize },
    #[error("in place of part {part} stands a file whose key \"split.no\" says that it is part {}", u128::from(*found) + 1)]
    WrongPart { part: usize, found: u64 },
    #[error("tensor {} is in part {first} and in part {second}", Name(tensor))]
    DuplicateTensor { tensor: String, first: usize, second: usize },
    #[error("part {part}: key \"split.tensors.count\" says the model has {expected} tensors, its parts hold {found}")]
    TensorCount { part: usize, expected: u64, found: usize },
}

/// The tensors of a model over all its parts.
#[derive(Debug)]
pub struct SplitTensors<'g> {
    by_name: HashMap<&'g str, (usize, &'g TensorInfo)>,
}

impl<'g> SplitTensors<'g> {
    /// Checks that `parts`, in order, are the parts of one model, each there once, and indexes their tensors. A single
    /// file without split keys is a model in one part.
    ///
    /// # Errors
    /// [`SplitError`] names the part (from 1) and the key or tensor.
    pub fn new(parts: &'g [Gguf<'_>]) -> Result<Self, SplitError> {
        let alone = parts.len() == 1 && parts[0].get(COUNT_KEY).is_none();
        if !alone {
            for (i, g) in parts.iter().enumerate() {
                check_numbers(g, i, parts.len())?;
            }
        }
        let mut by_name = HashMap::new();
        for (i, g) in parts.iter().enumerate() {
            for t in g.tensors() {
                if let Some((first, _)) = by_name.insert(t.name.as_str(), (i, t)) {
                    let tensor = t.name.clone();
                    return Err(SplitError::DuplicateTensor { tensor, first: first + 1, second: i + 1 });
                }
            }
        }
        for (i, g) in parts.iter().enumerate() {
            let part = i + 1;
            match g.u64(TENSORS_KEY).map_err(|source| SplitError::Metadata { part, source })? {
                Some(expected) if expected != by_name.len() as u64 => {
                    return Err(SplitError::TensorCount { part, expected, found: by_name.len() });
                }
                _ => {}
            }
        }
        Ok(SplitTensors { by_name })
    }

    /// The tensor of this name and the index (from 0) of the part that holds it.
    pub fn get(&self, name: &str) -> Option<(usize, &'g TensorInfo)> {
        self.by_name.get(name).copied()
    }

    /// The number of tensors in all parts.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// True when no part holds a tensor.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}

/// Checks that `split.count` and `split.no` of the part given at index `i` say what the caller gave.
fn check_numbers(g: &Gguf, i: usize, given: usize) -> Result<(), SplitError> {
    let part = i + 1;
    let number = |key| {
        let n = g.u64(key).map_err(|source| SplitError::Metadata { part, source })?;
        n.ok_or(SplitError::MissingKey { part, key })
    };
    let found = number(COUNT_KEY)?;
    if found != given as u64 {
        return Err(SplitError::WrongCount { part, found, given });
    }
    let found = number(NO_KEY)?;
    if found != i as u64 {
        return Err(SplitError::WrongPart { part, found });
    }
    Ok(())
}
