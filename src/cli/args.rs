//! Flags shared by subcommands, with llama.cpp's names and defaults, and their translation into validated settings.

use super::error::CliError;
use super::overrides::OverrideArgs;
use clap::{Args, ValueEnum};
use lisa_cpp::attention::CacheType;
use lisa_cpp::compute::{ActivationType, default_threads};
use lisa_cpp::runtime::SessionParams;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where the model comes from and how it is held in memory.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// GGUF file (of a split model: its first part). Default: the story model embedded in the program
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Sidecar with LISA modules for the model: a GGUF file made by distilling it; default: the embedded model's
    #[arg(long, value_name = "FILE", conflicts_with = "share")]
    pub lisa: Option<PathBuf>,
    /// Layers that take the attention weights of another: 5,6,7 (of the layer before), 4-9 (each of them), 8:4 (of layer 4),
    /// kv:9 (keys and values instead), or a file with such a list
    #[arg(long, value_name = "LAYERS")]
    pub share: Option<String>,
    /// Map the file into memory (the default)
    #[arg(long, overrides_with = "no_mmap", hide_short_help = true)]
    pub mmap: bool,
    /// Read the file instead of mapping it into memory
    #[arg(long, overrides_with = "mmap")]
    pub no_mmap: bool,
    /// Keep the weights from being swapped out
    #[arg(long)]
    pub mlock: bool,
    #[command(flatten)]
    pub overrides: OverrideArgs,
}

/// Threads and arithmetic.
#[derive(Args, Debug)]
#[command(next_help_heading = "Computation")]
pub struct ComputeArgs {
    /// Threads for generation; 0 or less: as many as this process may use
    #[arg(short, long, value_name = "N", default_value_t = -1, hide_default_value = true)]
    pub threads: i32,
    /// Threads for prompt processing [-tb] [default: as --threads]
    #[arg(long, value_name = "N")]
    pub threads_batch: Option<i32>,
    /// Most prompt tokens given to the engine in one call
    #[arg(short, long, value_name = "N", default_value_t = 2048)]
    pub batch_size: u32,
    /// Most tokens that go through the layers together; fewer do where that is faster [-ub]
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub ubatch_size: u32,
    /// Element type of the cached keys [-ctk] [default: f16; f32 with --exact]
    #[arg(long, value_name = "TYPE", value_enum)]
    pub cache_type_k: Option<CacheTypeArg>,
    /// Element type of the cached values [-ctv] [default: f16; f32 with --exact]
    #[arg(long, value_name = "TYPE", value_enum)]
    pub cache_type_v: Option<CacheTypeArg>,
    /// Cache the full context for layers with a sliding window too: more memory, but going back and context shift never process tokens again
    #[arg(long, hide_short_help = true)]
    pub swa_full: bool,
    #[command(flatten)]
    pub activations: ActivationArgs,
}

/// How exactly to compute.
#[derive(Args, Debug)]
pub struct ActivationArgs {
    /// Compute with f32 activations instead of int8 ones: slower, for studies and tests
    #[arg(long, conflicts_with = "fast")]
    exact: bool,
    /// Plain int8 activations, as in llama.cpp, without the second int8 number that values in blocks with outliers get: faster prompts, less exact
    #[arg(long)]
    fast: bool,
}

impl ActivationArgs {
    /// What the flags ask for.
    pub fn ty(&self) -> ActivationType {
        match (self.exact, self.fast) {
            (true, _) => ActivationType::F32,
            (_, true) => ActivationType::Int8,
            _ => ActivationType::default(),
        }
    }
}

/// `f32`, `f16` or `q8_0` on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
#[allow(non_camel_case_types)]
pub enum CacheTypeArg {
    /// 4 bytes per element
    F32,
    /// 2 bytes per element
    F16,
    /// 34 bytes per 32 elements
    Q8_0,
}

impl CacheTypeArg {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            CacheTypeArg::F32 => "f32",
            CacheTypeArg::F16 => "f16",
            CacheTypeArg::Q8_0 => "q8_0",
        }
    }
}

impl From<CacheTypeArg> for CacheType {
    fn from(arg: CacheTypeArg) -> Self {
        match arg {
            CacheTypeArg::F32 => CacheType::F32,
            CacheTypeArg::F16 => CacheType::F16,
            CacheTypeArg::Q8_0 => CacheType::Q8_0,
        }
    }
}

impl ComputeArgs {
    /// The session parameters these flags describe, for a context of `n_ctx` tokens.
    pub fn session_params(&self, n_ctx: usize) -> Result<SessionParams, CliError> {
        if self.batch_size == 0 {
            return Err(CliError::usage("--batch-size must be at least 1"));
        }
        if self.ubatch_size == 0 {
            return Err(CliError::usage("--ubatch-size must be at least 1"));
        }
        let n_threads = self.n_threads()?;
        let n_threads_batch = match self.threads_batch {
            None => n_threads,
            Some(n) => threads("--threads-batch", n)?,
        };
        let activations = self.activations.ty();
        let cache_type = match activations {
            ActivationType::F32 => CacheTypeArg::F32,
            _ => CacheTypeArg::F16,
        };
        Ok(SessionParams {
            n_ctx,
            n_batch: self.batch_size as usize,
            n_ubatch: self.ubatch_size.min(self.batch_size) as usize,
            n_threads,
            n_threads_batch,
            cache_type_k: self.cache_type_k.unwrap_or(cache_type).into(),
            cache_type_v: self.cache_type_v.unwrap_or(cache_type).into(),
            window_spare: SessionParams::default().window_spare.filter(|_| !self.swa_full),
            activations,
        })
    }

    /// `--threads` resolved to a number of threads.
    pub fn n_threads(&self) -> Result<usize, CliError> {
        threads("--threads", self.threads)
    }
}

/// More threads than any machine this runs on has; a larger number is a slip of the finger.
const MAX_THREADS: i32 = 1024;

/// A number of threads that was given for `flag`; 0 or less: as many as this process may use.
pub fn threads(flag: &str, n: i32) -> Result<usize, CliError> {
    match n {
        ..=0 => Ok(default_threads()),
        1..=MAX_THREADS => Ok(n as usize),
        _ => Err(CliError::usage(format!("{flag}: {n} is more than the {MAX_THREADS} threads supported"))),
    }
}

/// Text given on the command line or in a file.
#[derive(Args, Debug)]
#[command(next_help_heading = "Text")]
pub struct TextArgs {
    /// The text to start from
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Read it from a file (`-`: standard input); one trailing newline is dropped
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,
    /// Turn \n \r \t \' \" \\ \xHH in the texts given by flags, --file included, into the characters they stand for (the default)
    #[arg(short, long, overrides_with = "no_escape")]
    pub escape: bool,
    /// Take those texts as they are
    #[arg(long, overrides_with = "escape")]
    pub no_escape: bool,
}

impl TextArgs {
    /// The prompt, from wherever it was given, with escapes resolved.
    pub fn prompt(&self) -> Result<Option<String>, CliError> {
        let Some(text) = given_text(self.prompt.as_deref(), self.file.as_deref())? else { return Ok(None) };
        let text = self.unescaped(text);
        if self.prompt.is_some() { text.map(Some) } else { text.map(Some).map_err(CliError::of_file) }
    }

    /// `text` with escapes resolved, unless `--no-escape` was given.
    pub fn unescaped(&self, text: String) -> Result<String, CliError> {
        if self.no_escape { Ok(text) } else { unescape(&text) }
    }
}

/// The text of a flag, or of a file less one trailing newline; `None` where neither is given.
pub fn given_text(text: Option<&str>, file: Option<&Path>) -> Result<Option<String>, CliError> {
    match (text, file) {
        (Some(text), _) => Ok(Some(text.into())),
        (None, Some(path)) => {
            let mut text = read_text(path)?;
            if text.ends_with('\n') {
                text.pop();
            }
            Ok(Some(text))
        }
        (None, None) => Ok(None),
    }
}

/// The file's text, or standard input's for `-`, without a byte order mark.
pub fn read_text(path: &Path) -> Result<String, CliError> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().read_to_end(&mut bytes).map(|_| ())
    } else {
        std::fs::read(path).map(|all| bytes = all)
    };
    read.map_err(|e| CliError::run(format!("{}: {e}", path.display())))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        CliError::run(format!("{}: not UTF-8 text (byte {})", path.display(), e.utf8_error().valid_up_to()))
    })?;
    Ok(without_mark(text))
}

/// The text without the byte order mark that some editors put before it, which is no part of it.
pub fn without_mark(text: String) -> String {
    match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    }
}

/// Replaces `\n`, `\r`, `\t`, `\'`, `\"`, `\\` and `\xHH`; any other backslash stays.
///
/// `\xHH` stands for a byte, so the result can fail to be UTF-8: that is an error.
pub fn unescape(text: &str) -> Result<String, CliError> {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let hex = || text.get(i + 2..i + 4).filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit()));
        let (byte, used) = match (bytes[i], bytes.get(i + 1)) {
            (b'\\', Some(b'n')) => (b'\n', 2),
            (b'\\', Some(b'r')) => (b'\r', 2),
            (b'\\', Some(b't')) => (b'\t', 2),
            (b'\\', Some(&b @ (b'\'' | b'"' | b'\\'))) => (b, 2),
            (b'\\', Some(b'x')) => match hex().and_then(|h| u8::from_str_radix(h, 16).ok()) {
                Some(byte) => (byte, 4),
                None => (b'\\', 1),
            },
            (b, _) => (b, 1),
        };
        out.push(byte);
        i += used;
    }
    String::from_utf8(out)
        .map_err(|_| CliError::usage("the \\x escapes in the text do not make UTF-8 (see --no-escape)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        assert_eq!(unescape(r#"a\nb\t\\n\'\"\q\"#).unwrap(), "a\nb\t\\n'\"\\q\\");
        assert_eq!(unescape(r"\x41\xc3\xa9\x4\xg1\x").unwrap(), "Aé\\x4\\xg1\\x");
        assert_eq!(unescape("héé").unwrap(), "héé");
        assert!(unescape(r"\xff").is_err());
    }

    #[test]
    fn exact_runs_cache_floats_unless_told_otherwise() {
        use clap::Parser;
        #[derive(Parser)]
        struct Only {
            #[command(flatten)]
            compute: ComputeArgs,
        }
        let types = |args: &[&str]| {
            let argv = std::iter::once("test").chain(args.iter().copied());
            let p = Only::parse_from(argv).compute.session_params(0).unwrap();
            (p.cache_type_k, p.cache_type_v)
        };
        assert_eq!(types(&[]), (CacheType::F16, CacheType::F16));
        assert_eq!(types(&["--exact"]), (CacheType::F32, CacheType::F32));
        assert_eq!(types(&["--exact", "--cache-type-v", "q8_0"]), (CacheType::F32, CacheType::Q8_0));
    }

    #[test]
    fn thread_counts() {
        assert_eq!(threads("-t", 3).unwrap(), 3);
        assert!(threads("-t", 0).unwrap() >= 1);
        assert!(threads("-t", 1 << 20).is_err());
    }
}
