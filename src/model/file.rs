//! A model's file or files: opened, mapped, parsed, and checked to belong together.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ggml_ext::gguf::Gguf;
use ggml_ext::gguf::split::{self, PartName, SplitTensors};

use super::config::{gguf_error, model_error};
use super::overrides::Override;
use crate::compute::FileBytes;
use crate::{Error, Result};

/// The default model, part of the program: stories260K, a 264 thousand parameter story teller.
static EMBEDDED: &[u8] = include_bytes!("../../models/stories260K.gguf");

/// A sidecar of it, trained by the command in the README.
static EMBEDDED_SIDECAR: &[u8] = include_bytes!("../../models/stories260K.lisa.gguf");

/// A model's bytes: one file, or the parts of a split.
pub struct ModelFile {
    /// What messages call it.
    pub name: String,
    /// The bytes of each part.
    pub parts: Vec<Arc<FileBytes>>,
    /// What the metadata say instead of what is in the file; keys are whole.
    overrides: Vec<Override>,
}

impl ModelFile {
    /// Maps the file at `path`, and the other parts where it is the first of a split.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file that cannot be opened, [`Error::Gguf`] when a part's name or count is wrong.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let first = Arc::new(map(path)?);
        let mut parts = vec![first.clone()];
        let gguf = Gguf::parse(&first).map_err(|e| gguf_error(&name, e))?;
        let count = gguf.u64(split::COUNT_KEY).map_err(|e| gguf_error(&name, e))?.unwrap_or(1);
        if count > 1 {
            for sibling in sibling_paths(path, count, &name)? {
                parts.push(Arc::new(map(&sibling)?));
            }
        }
        Ok(Self { name, parts, overrides: Vec::new() })
    }

    /// The embedded default model.
    pub fn embedded() -> Self {
        Self::of_part("<embedded model>", FileBytes::Static(EMBEDDED))
    }

    /// The sidecar of the embedded model, with which some of its layers share attention.
    pub fn embedded_sidecar() -> Self {
        Self::of_part("<embedded sidecar>", FileBytes::Static(EMBEDDED_SIDECAR))
    }

    /// A model held in memory, called `name` in messages.
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Self {
        Self::of_part(name, FileBytes::Owned(bytes))
    }

    fn of_part(name: &str, bytes: FileBytes) -> Self {
        Self { name: name.into(), parts: vec![Arc::new(bytes)], overrides: Vec::new() }
    }

    /// Puts other metadata in place of the file's, from the next [`ModelFile::parse`] on.
    ///
    /// # Errors
    /// As [`ModelFile::parse`].
    pub fn set_overrides(&mut self, overrides: Vec<Override>) -> Result<()> {
        if overrides.is_empty() {
            return Ok(());
        }
        let parts = self.parse()?;
        let arch = parts[0].str("general.architecture").map_err(|e| gguf_error(&self.name, e))?.unwrap_or_default();
        let whole =
            |o: Override| if o.key.starts_with('.') { Override { key: format!("{arch}{}", o.key), ..o } } else { o };
        self.overrides = overrides.into_iter().map(whole).collect();
        Ok(())
    }

    /// Parses every part; the first holds the metadata.
    ///
    /// # Errors
    /// [`Error::Gguf`] for a malformed part, [`Error::Model`] for parts that do not belong together.
    pub fn parse(&self) -> Result<Vec<Gguf<'_>>> {
        let parts = self.parts.iter().map(|p| Gguf::parse(p)).collect::<std::result::Result<Vec<_>, _>>();
        let mut parts = parts.map_err(|e| gguf_error(&self.name, e))?;
        if let Some(first) = parts.first_mut() {
            self.overrides.iter().for_each(|o| first.set(&o.key, o.value.as_metadata()));
        }
        SplitTensors::new(&parts).map_err(|e| model_error(&self.name, e))?;
        Ok(parts)
    }

    /// Bytes of all parts.
    pub fn n_bytes(&self) -> usize {
        self.parts.iter().map(|p| p.len()).sum()
    }
}

/// The other parts of the split whose first is `path`.
fn sibling_paths(path: &Path, count: u64, name: &str) -> Result<Vec<PathBuf>> {
    let part = path.file_name().and_then(|n| n.to_str()).and_then(PartName::parse);
    let Some(part) = part.filter(|p| u64::from(p.count) == count) else {
        let what = format!("is one of {count} parts, but its name does not end in -00001-of-{count:05}.gguf");
        return Err(model_error(name, what));
    };
    let mut all = part.all();
    let first = all.next().unwrap_or_default();
    if part.no != 0 {
        let what = format!("is part {} of {count}; give the first part, {first}, instead", u32::from(part.no) + 1);
        return Err(model_error(name, what));
    }
    Ok(all.map(|sibling| path.with_file_name(sibling)).collect())
}

fn map(path: &Path) -> Result<FileBytes> {
    let io = |source| Error::Io { path: path.into(), source };
    let file = File::open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    if meta.is_dir() {
        return Err(io(std::io::Error::from(std::io::ErrorKind::IsADirectory)));
    }
    if meta.len() == 0 {
        return Err(model_error(&path.display().to_string(), "the file is empty, expected a GGUF model"));
    }
    // SAFETY: the mapping is read-only. As with every program that maps its input, nobody may write or truncate the file while the program
    // runs.
    unsafe { memmap2::Mmap::map(&file) }.map(FileBytes::Mapped).map_err(io)
}
