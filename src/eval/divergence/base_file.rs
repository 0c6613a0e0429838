//! Files of a baseline's log-probabilities as `llama-perplexity --kl-divergence-base` writes and reads them: `_logits_`, the
//! context, the sizes of vocabulary and text, the text's tokens, then a row of 16-bit codes for each scored position with
//! the scale and the smallest value of that row before it. Little-endian.

use crate::eval::log_sum_exp;
use crate::{Error, Result};
use ggml_ext::kernels::Kernels;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"_logits_";

/// Logits further below the largest than this are written as that much below.
const RANGE: f32 = 16.0;

/// Codes of the scale and the smallest value at the start of a row.
const ROW_HEAD: usize = 4;

/// 16-bit codes of a row, its head included: an even number.
fn row_codes(n_vocab: usize) -> usize {
    n_vocab.next_multiple_of(2) + ROW_HEAD
}

/// Positions of a window that are scored.
fn rows_of(n_ctx: usize) -> usize {
    n_ctx - 1 - n_ctx / 2
}

/// A row of codes: token `i` has the log-probability `scale * codes[i] + min`.
#[derive(Debug, Clone, Default)]
pub struct PackedRow {
    scale: f32,
    min: f32,
    codes: Vec<u16>,
}

impl PackedRow {
    /// Packs the log-probabilities of `logits`.
    pub fn pack(&mut self, kernels: &Kernels, logits: &[f32]) {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let min = logits.iter().copied().fold(f32::INFINITY, f32::min).max(max - RANGE);
        self.scale = (max - min) / f32::from(u16::MAX);
        self.min = min - log_sum_exp(kernels, logits) as f32;
        let inverse = if self.scale > 0.0 { 1.0 / self.scale } else { 0.0 };
        self.codes.clear();
        self.codes.extend(logits.iter().map(|&l| ((l - min).max(0.0) * inverse).round_ties_even() as u16));
    }

    /// Writes the log-probability of every token to `out`.
    pub fn unpack(&self, out: &mut [f32]) {
        for (o, &c) in out.iter_mut().zip(&self.codes) {
            *o = self.scale * f32::from(c) + self.min;
        }
    }

    fn write(&self, out: &mut (impl Write + ?Sized), bytes: &mut Vec<u8>) -> std::io::Result<()> {
        bytes.clear();
        bytes.extend(self.scale.to_le_bytes());
        bytes.extend(self.min.to_le_bytes());
        bytes.extend(self.codes.iter().flat_map(|c| c.to_le_bytes()));
        bytes.resize(2 * row_codes(self.codes.len()), 0);
        out.write_all(bytes)
    }

    fn read(&mut self, bytes: &[u8], n_vocab: usize) {
        let float = |i: usize| f32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
        (self.scale, self.min) = (float(0), float(4));
        let codes = bytes[2 * ROW_HEAD..].chunks_exact(2).take(n_vocab);
        self.codes.clear();
        self.codes.extend(codes.map(|c| u16::from_le_bytes([c[0], c[1]])));
    }
}

/// Writes a base file to any sink.
pub struct BaseWriter<'w> {
    out: &'w mut dyn Write,
    kernels: &'static Kernels,
    row: PackedRow,
    bytes: Vec<u8>,
}

impl<'w> BaseWriter<'w> {
    /// Writes the head: windows of `n_ctx` tokens, all of them in `tokens`, for a vocabulary of `n_vocab`.
    ///
    /// # Errors
    /// The sink's.
    pub fn new(
        out: &'w mut dyn Write,
        kernels: &'static Kernels,
        n_ctx: usize,
        n_vocab: usize,
        tokens: &[u32],
    ) -> std::io::Result<Self> {
        out.write_all(MAGIC)?;
        for n in [n_ctx, n_vocab, tokens.len() / n_ctx.max(1)] {
            out.write_all(&(n as u32).to_le_bytes())?;
        }
        let bytes: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
        out.write_all(&bytes)?;
        Ok(Self { out, kernels, row: PackedRow::default(), bytes })
    }

    /// Writes the row of the next scored position.
    ///
    /// # Errors
    /// The sink's.
    pub fn add(&mut self, logits: &[f32]) -> std::io::Result<()> {
        self.row.pack(self.kernels, logits);
        self.row.write(self.out, &mut self.bytes)
    }

    /// Bytes of a file of `n_windows` windows.
    pub fn file_bytes(n_ctx: usize, n_vocab: usize, n_windows: usize) -> u64 {
        let (n_ctx, n_vocab, n_windows) = (n_ctx as u64, n_vocab as u64, n_windows as u64);
        let row = 2 * (n_vocab.next_multiple_of(2) + ROW_HEAD as u64);
        let rows = n_ctx.saturating_sub(1 + n_ctx / 2);
        20u64.saturating_add(n_windows.saturating_mul(4 * n_ctx + rows.saturating_mul(row)))
    }
}

/// Reads a base file, a row at a time.
pub struct BaseReader {
    path: PathBuf,
    input: BufReader<File>,
    n_ctx: usize,
    n_vocab: usize,
    tokens: Vec<u32>,
    row: PackedRow,
    bytes: Vec<u8>,
}

impl BaseReader {
    /// Opens the file at `path` for a model of `n_vocab` tokens.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Model`] for a file that is no base file, is cut off, or is of a model with another vocabulary.
    pub fn open(path: &Path, n_vocab: usize) -> Result<Self> {
        let io = |source| Error::Io { path: path.into(), source };
        let bad = |what: String| Error::Model { file: path.display().to_string(), what };
        let file = File::open(path).map_err(io)?;
        let n_bytes = file.metadata().map_err(io)?.len();
        let mut input = BufReader::with_capacity(1 << 20, file);
        let mut head = [0u8; 20];
        let is_base = input.read_exact(&mut head).is_ok() && head.starts_with(MAGIC);
        if !is_base {
            return Err(bad("is no file of log-probabilities made by --kl-divergence-base".into()));
        }
        let number = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]) as usize;
        let (n_ctx, vocab, n_windows) = (number(8), number(12), number(16));
        if vocab != n_vocab {
            return Err(bad(format!(
                "was made by a model with a vocabulary of {vocab} tokens, this one has {n_vocab}"
            )));
        }
        if n_ctx < super::super::perplexity::MIN_WINDOW || n_windows == 0 {
            return Err(bad(format!("has {n_windows} windows of {n_ctx} tokens: nothing to compare")));
        }
        // Checked before anything of that size is allocated.
        let expected = BaseWriter::file_bytes(n_ctx, n_vocab, n_windows);
        if n_bytes < expected {
            let what =
                format!("has {n_bytes} bytes, {n_windows} windows of {n_ctx} tokens take {expected}: it is cut off");
            return Err(bad(what));
        }
        let mut bytes = vec![0u8; 4 * n_ctx * n_windows];
        input.read_exact(&mut bytes).map_err(io)?;
        let tokens: Vec<u32> = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= n_vocab) {
            return Err(bad(format!("has the token {id}, the vocabulary has {n_vocab}")));
        }
        let bytes = vec![0; 2 * row_codes(n_vocab)];
        Ok(Self { path: path.into(), input, n_ctx, n_vocab, tokens, row: PackedRow::default(), bytes })
    }

    /// Tokens of a window.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// The text's tokens, window after window.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Rows of each window.
    pub fn n_rows(&self) -> usize {
        rows_of(self.n_ctx)
    }

    /// The next row.
    ///
    /// # Errors
    /// [`Error::Io`], also past the last row.
    pub fn next_row(&mut self) -> Result<&PackedRow> {
        let read = self.input.read_exact(&mut self.bytes);
        read.map_err(|source| Error::Io { path: self.path.clone(), source })?;
        self.row.read(&self.bytes, self.n_vocab);
        Ok(&self.row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_rows_are_near_and_end_16_below_the_largest() {
        let kernels = Kernels::available()[0];
        let logits: Vec<f32> = (0..1001).map(|i| ((i * 7919) % 1001) as f32 * 0.03 - 12.0).collect();
        let norm = log_sum_exp(kernels, &logits) as f32;
        let mut row = PackedRow::default();
        row.pack(kernels, &logits);
        let mut out = vec![0.0; logits.len()];
        row.unpack(&mut out);
        let max = logits.iter().copied().fold(f32::MIN, f32::max);
        for (o, l) in out.iter().zip(&logits) {
            assert!((o - (l.max(max - 16.0) - norm)).abs() < 16.0 / 65535.0, "{o} {l}");
        }
        row.pack(kernels, &[1.5; 8]);
        row.unpack(&mut out[..8]);
        assert!((out[0] + 8f32.ln()).abs() < 1e-6, "all equal: {}", out[0]);
    }

    #[test]
    fn what_was_written_is_read() {
        let kernels = Kernels::available()[0];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base");
        let tokens: Vec<u32> = (0..16).map(|i| i % 5).collect();
        let rows: Vec<Vec<f32>> = (0..6).map(|r| (0..5).map(|i| (r * i) as f32 * 0.5).collect()).collect();
        let mut bytes = Vec::new();
        let mut writer = BaseWriter::new(&mut bytes, kernels, 8, 5, &tokens).unwrap();
        rows.iter().for_each(|r| writer.add(r).unwrap());
        assert_eq!(bytes.len() as u64, BaseWriter::file_bytes(8, 5, 2));
        std::fs::write(&path, &bytes).unwrap();

        let mut reader = BaseReader::open(&path, 5).unwrap();
        assert_eq!((reader.n_ctx(), reader.tokens(), reader.n_rows()), (8, &tokens[..], 3));
        for logits in &rows {
            let mut out = [0.0; 5];
            reader.next_row().unwrap().unpack(&mut out);
            let norm = log_sum_exp(kernels, logits) as f32;
            assert!(out.iter().zip(logits).all(|(o, l)| (o - (l - norm)).abs() < 1e-3), "{out:?} {logits:?}");
        }
        assert!(reader.next_row().is_err());

        let refused = |bytes: &[u8], n_vocab: usize, named: &str| {
            std::fs::write(&path, bytes).unwrap();
            let message = BaseReader::open(&path, n_vocab).err().unwrap().to_string();
            assert!(message.contains(named) && message.contains("base"), "{message}");
        };
        refused(&bytes[..bytes.len() - 1], 5, "cut off");
        refused(&bytes, 6, "vocabulary of 5");
        refused(b"_logits", 5, "no file of log-probabilities");
        let mut huge = bytes.clone();
        huge[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
        refused(&huge, 5, "cut off");
    }
}
