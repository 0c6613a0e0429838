//! Files that a command writes: complete under their name or not there at all.

use super::args::ModelArgs;
use super::error::CliError;
use super::progress::{Log, Progress};
use super::signals::Stoppable;
use ggml_ext::gguf::split::PartName;
use std::fmt::Display;
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use tempfile::{Builder, NamedTempFile};

/// The files that a command reads. None of them may be the one that it writes.
#[derive(Debug, Default)]
pub struct Inputs(Vec<PathBuf>);

impl Inputs {
    /// These too, of a split model all parts. A text that names no file, such as a list of layers where a file with one could
    /// stand, does no harm.
    pub fn with<P: AsRef<Path>>(mut self, files: impl IntoIterator<Item = P>) -> Self {
        self.0.extend(files.into_iter().map(|p| p.as_ref().to_owned()));
        self
    }

    /// Those that the flags about the model name: the model, its sidecar, its sharing plan.
    pub fn of_model(args: &ModelArgs) -> Self {
        Self::default().with(&args.model).with(&args.lisa).with(&args.share)
    }

    /// Refuses an output that is one of them.
    ///
    /// # Errors
    /// Names both.
    pub fn check(&self, output: &Path) -> Result<(), CliError> {
        let Ok(target) = output.canonicalize() else { return Ok(()) };
        match self.0.iter().flat_map(|p| parts(p)).find(|p| p.canonicalize().is_ok_and(|p| p == target)) {
            None => Ok(()),
            Some(input) => {
                let what = format!("the output {} would replace the input {}", output.display(), input.display());
                Err(CliError::usage(what))
            }
        }
    }
}

/// A file in the making. It has another name in the same folder until it is complete; what had its name before stays
/// until then, and for good if writing fails or Ctrl-C ends it.
pub struct Output {
    temp: NamedTempFile,
    path: PathBuf,
    stop: Stoppable,
}

/// A file that is complete and on the disk, but for its name.
pub struct Complete {
    temp: NamedTempFile,
    path: PathBuf,
}

impl Output {
    /// A file to be called `path`.
    ///
    /// # Errors
    /// A path that is one of `inputs` or not that of a file, or a folder that cannot be written to.
    pub fn create(path: &Path, inputs: &Inputs) -> Result<Self, CliError> {
        inputs.check(path)?;
        // Where a link leads there is the file to be replaced.
        let target = path.canonicalize().unwrap_or_else(|_| path.into());
        if target.exists() && !target.is_file() {
            return Err(CliError::run(format!("{}: is not a file, expected one that can be replaced", path.display())));
        }
        // Before there is a file that Ctrl-C could leave behind.
        let stop = Stoppable::install()?;
        let folder = folder(&target);
        let temp = temporary(folder).map_err(|e| match e.kind() {
            ErrorKind::NotFound => write_error(path, &format!("there is no folder {}", folder.display())),
            kind => write_error(path, &std::io::Error::from(kind)),
        })?;
        Ok(Output { temp, path: target, stop })
    }

    /// Lets `write` fill the file, which will have about `expected` bytes, and gives it its name. `log` tells whether a bar shows
    /// how far it is.
    ///
    /// # Errors
    /// That of `write`; the system's; Ctrl-C.
    pub fn fill<T>(
        self,
        log: Log,
        expected: u64,
        write: impl FnOnce(&mut dyn Write) -> Result<T, CliError>,
    ) -> Result<T, CliError> {
        let (complete, value) = self.complete(log, expected, write)?;
        complete.name()?;
        Ok(value)
    }

    /// [`Output::fill`], but for the name: files that belong together get theirs when all of them are complete.
    ///
    /// # Errors
    /// That of `write`; the system's; Ctrl-C.
    pub fn complete<T>(
        self,
        log: Log,
        expected: u64,
        write: impl FnOnce(&mut dyn Write) -> Result<T, CliError>,
    ) -> Result<(Complete, T), CliError> {
        let progress = Progress::new(log, "writing", expected);
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
        Ok((Complete::new(self.temp, self.path)?, value))
    }

    /// Writes `bytes`, all that the file is to hold, and gives it its name. Ctrl-C waits until that is done.
    ///
    /// # Errors
    /// The system's.
    pub fn whole(self, bytes: &[u8]) -> Result<(), CliError> {
        self.temp.as_file().write_all(bytes).map_err(|e| write_error(&self.path, &e))?;
        Complete::new(self.temp, self.path)?.name()
    }
}

impl Complete {
    /// On the disk before it has the name: a power cut leaves the old file or the new one.
    fn new(temp: NamedTempFile, path: PathBuf) -> Result<Self, CliError> {
        temp.as_file().sync_all().map_err(|e| write_error(&path, &e))?;
        Ok(Self { temp, path })
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// The system's.
    pub fn name(self) -> Result<(), CliError> {
        self.temp.persist(&self.path).map_err(|e| write_error(&self.path, &e.error))?;
        // Names are kept by the folder. Not every file system can be asked to write one down.
        #[cfg(unix)]
        let _ = File::open(folder(&self.path)).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

/// The folder that a file is in.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."))
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
pub fn parts(path: &Path) -> Vec<PathBuf> {
    match path.file_name().and_then(|n| n.to_str()).and_then(PartName::parse) {
        Some(part) => part.all().map(|name| path.with_file_name(name)).collect(),
        None => vec![path.into()],
    }
}
