//! Files that a command writes: complete under their name or not there at all.

use super::error::CliError;
use super::progress::{Log, Progress};
use super::signals::{self, Stoppable};
use ggml_ext::gguf::split::PartName;
use std::fmt::Display;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::{Builder, NamedTempFile};

/// A file in the making. It has another name in the same folder until it is complete; what had its name before stays
/// until then, and for good if writing fails or Ctrl-C ends it.
pub struct Output {
    temp: NamedTempFile,
    path: PathBuf,
    stop: Stoppable,
}

impl Output {
    /// A file to be called `path`.
    ///
    /// # Errors
    /// A path that is one of `inputs` or not that of a file, or a folder that cannot be written to.
    pub fn create(path: &Path, inputs: &[&Path]) -> Result<Self, CliError> {
        // Where a link leads there is the file to be replaced.
        let target = path.canonicalize().unwrap_or_else(|_| path.into());
        if let Some(input) = inputs.iter().flat_map(|p| parts(p)).find(|p| p.canonicalize().is_ok_and(|p| p == target))
        {
            let what = format!("the output {} would replace the input {}", path.display(), input.display());
            return Err(CliError::usage(what));
        }
        if target.exists() && !target.is_file() {
            return Err(CliError::run(format!("{}: is not a file, expected one that can be replaced", path.display())));
        }
        let folder = match target.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        // Before there is a file that Ctrl-C could leave behind.
        signals::install().map_err(|e| CliError::run(format!("cannot install the Ctrl-C handler: {e}")))?;
        let stop = Stoppable::new(Arc::default());
        let temp = temporary(folder).map_err(|e| write_error(path, &std::io::Error::from(e.kind())))?;
        Ok(Output { temp, path: target, stop })
    }

    /// Lets `write` fill the file, which will have about `expected` bytes, and gives it its name.
    ///
    /// # Errors
    /// That of `write`; the system's; Ctrl-C.
    pub fn fill<T>(
        self,
        expected: u64,
        write: impl FnOnce(&mut dyn Write) -> Result<T, CliError>,
    ) -> Result<T, CliError> {
        let progress = Progress::new(Log::new(true), "writing", expected);
        let sink = Sink { file: self.temp.as_file(), stop: &self.stop, progress, done: 0 };
        let mut sink = BufWriter::with_capacity(PIECE, sink);
        let written = write(&mut sink).and_then(|value| {
            sink.flush().map_err(|e| write_error(&self.path, &e))?;
            Ok(value)
        });
        // What is buffered after a failure is of no use; dropping the buffer would try to write it.
        drop(sink.into_parts());
        if self.stop.stopped() {
            return Err(CliError::Interrupted);
        }
        let value = written?;
        self.temp.persist(&self.path).map_err(|e| write_error(&self.path, &e.error))?;
        Ok(value)
    }
}

/// The error of a file that could not be written.
fn write_error(path: &Path, e: &dyn Display) -> CliError {
    CliError::run(format!("{}: cannot write: {e}", path.display()))
}

/// Bytes written at a time, between which Ctrl-C is looked at.
const PIECE: usize = 1 << 20;

/// The file, watched by the progress bar and by Ctrl-C.
struct Sink<'o> {
    file: &'o File,
    stop: &'o Stoppable,
    progress: Progress,
    done: u64,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.stop.stopped() {
            return Err(std::io::Error::other("interrupted"));
        }
        let n = self.file.write(&bytes[..bytes.len().min(PIECE)])?;
        self.done += n as u64;
        self.progress.set(self.done);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// A file whose permissions are those of any new file, not of a private one.
fn temporary(folder: &Path) -> std::io::Result<NamedTempFile> {
    let mut builder = Builder::new();
    builder.prefix(".lisa-cpp-").suffix(".part");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

/// The file at `path`, and where it is the part of a split model all the others.
fn parts(path: &Path) -> Vec<PathBuf> {
    match path.file_name().and_then(|n| n.to_str()).and_then(PartName::parse) {
        Some(part) => part.all().map(|name| path.with_file_name(name)).collect(),
        None => vec![path.into()],
    }
}
