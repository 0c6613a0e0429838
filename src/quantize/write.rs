//! Writing the model: its metadata, then every tensor quantised by all threads, piece by piece.

use std::io::Write;
use std::sync::Mutex;

use ggml_ext::GgmlType;
use ggml_ext::blocks;
use ggml_ext::gguf::{Gguf, GgufWriter, Value, WriteError, split};

use super::{Plan, Step};
use crate::compute::Pool;
use crate::imatrix::Importance;
use crate::model::Override;

/// Why a model could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// The tensor cannot be quantised.
    #[error("tensor {tensor} {what}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong with it.
        what: String,
    },
    /// The output refused.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// The version of the block formats, `general.quantization_version`.
const QUANTIZATION_VERSION: u32 = 2;

/// Which of several output files is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Its number, from 0.
    pub no: usize,
    /// How many there are.
    pub count: usize,
}

/// Writes the model of the files `parts` to `out` as `plan` says: all of it, or what of it belongs into one `shard`, which is
/// what the input file of this number holds. `settings` replace metadata or add to them.
///
/// At most some 16 MiB are held besides the mapped input.
///
/// # Errors
/// [`QuantizeError::Tensor`] for numbers that are not finite or out of the type's range and for importances of another length
/// than the rows; [`QuantizeError::Write`] for a failure of `out`.
pub fn write<W: Write>(
    parts: &[Gguf],
    plan: &Plan,
    importance: Option<&Importance>,
    settings: &[Override],
    shard: Option<Shard>,
    pool: &mut Pool,
    out: W,
) -> Result<W, QuantizeError> {
    let mut w = GgufWriter::new(out);
    let steps = || plan.steps.iter().filter(|s| shard.is_none_or(|shard| s.part == shard.no));
    if shard.is_none_or(|shard| shard.no == 0) {
        write_metadata(&parts[0], plan, settings, &mut w)?;
    }
    if let Some(shard) = shard {
        w.u16(split::NO_KEY, shard.no as u16)?;
        w.u16(split::COUNT_KEY, shard.count as u16)?;
        w.i32(split::TENSORS_KEY, plan.steps.len() as i32)?;
    }
    for s in steps() {
        w.tensor(&s.tensor.name, &s.tensor.shape, s.ty)?;
    }
    for s in steps() {
        let data = parts[s.part].tensor_data(&s.tensor);
        if s.is_copy() {
            w.data(&s.tensor.name, data)?;
            continue;
        }
        let columns = importance.and_then(|i| i.get(&s.tensor.name));
        quantize(s, data, columns, pool, &mut |bytes| w.part(&s.tensor.name, bytes))?;
    }
    Ok(w.finish()?)
}

fn write_metadata<W: Write>(
    head: &Gguf,
    plan: &Plan,
    settings: &[Override],
    w: &mut GgufWriter<W>,
) -> Result<(), WriteError> {
    let mut all: Vec<(&str, Value)> = Vec::new();
    all.push(("general.quantization_version", Value::U32(QUANTIZATION_VERSION)));
    all.extend(plan.recipe.map(|r| ("general.file_type", Value::U32(r.id()))));
    // Of a key given twice the later counts.
    for Override { key, value } in settings {
        all.retain(|(k, _)| k != key);
        all.push((key, value.as_metadata()));
    }
    for (key, value) in head.metadata().filter(|(key, _)| !key.starts_with("split.")) {
        match all.iter().position(|(k, _)| *k == key) {
            Some(i) => w.value(key, &all.remove(i).1)?,
            None => w.value(key, value)?,
        }
    }
    all.iter().try_for_each(|(key, value)| w.value(key, value))
}

/// Elements quantised between two writes: enough for every thread to have several chunks.
const SLAB: usize = 2 << 20;
/// Elements a thread takes at a time.
const CHUNK: usize = 32 << 10;

/// Quantises a tensor, `importance` one number per column (of every matrix of a stack), and hands its bytes over in order.
fn quantize(
    s: &Step,
    data: &[u8],
    importance: Option<&[f32]>,
    pool: &mut Pool,
    out: &mut dyn FnMut(&[u8]) -> Result<(), WriteError>,
) -> Result<(), QuantizeError> {
    let t = &s.tensor;
    let fault = |what: String| QuantizeError::Tensor { tensor: t.name.clone(), what };
    let n_cols = t.row_len() as usize;
    let matrix_rows = t.shape.get(1).map_or(1, |&n| n as usize);
    if let Some(importance) = importance {
        let expected = n_cols as u64 * t.n_rows() / matrix_rows as u64;
        if importance.len() as u64 != expected {
            let what = format!("has {} importances in the matrix, expected {expected}", importance.len());
            return Err(fault(what));
        }
    }
    let (from, to) = (t.ty.row_bytes(n_cols).unwrap_or(0), s.ty.row_bytes(n_cols).unwrap_or(0));
    let slab_rows = (SLAB / n_cols).max(1);
    let chunk_rows = (CHUNK / n_cols).max(1);
    let mut bytes = vec![0; slab_rows.min(t.n_rows() as usize) * to];
    let mut first = 0;
    for slab in data.chunks(slab_rows * from) {
        let bytes = &mut bytes[..slab.len() / from * to];
        let chunks = Mutex::new(slab.chunks(chunk_rows * from).zip(bytes.chunks_mut(chunk_rows * to)).enumerate());
        let bad = Mutex::new(None);
        pool.run(|_| {
            let mut x = vec![0.0; chunk_rows * n_cols];
            loop {
                let next = chunks.lock().unwrap_or_else(|e| e.into_inner()).next();
                let Some((i, (src, dst))) = next else { return };
                let x = &mut x[..src.len() / from * n_cols];
                blocks::dequantize_row(t.ty, src, x);
                if let Some(at) = x.iter().position(|v| out_of_range(s.ty, *v)) {
                    let row = first + i * chunk_rows + at / n_cols;
                    bad.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert((row, at % n_cols, x[at]));
                    return;
                }
                // A chunk may span two matrices of a stack, which have importances of their own.
                for (r, (x, dst)) in x.chunks_exact(n_cols).zip(dst.chunks_exact_mut(to)).enumerate() {
                    let matrix = (first + i * chunk_rows + r) / matrix_rows;
                    let importance = importance.map(|all| &all[matrix * n_cols..][..n_cols]);
                    blocks::quantize_rows(s.ty, x, importance, dst);
                }
            }
        });
        if let Some((row, column, v)) = bad.into_inner().unwrap_or_else(|e| e.into_inner()) {
            return Err(fault(format!("has the value {v} in row {row}, column {column}, which {} cannot hold", s.ty)));
        }
        out(bytes)?;
        first += slab.len() / from;
    }
    Ok(())
}

/// Numbers a type has no room for: F16 itself, and the scales of the blocks, which are half-precision numbers, or of eight bits in NVFP4.
fn out_of_range(ty: GgmlType, v: f32) -> bool {
    const LARGEST_HALF: f32 = 65504.0;
    /// The largest scale, 448, times the largest code.
    const LARGEST_NVFP4: f32 = 448.0 * 6.0;
    let largest = match ty {
        GgmlType::F32 | GgmlType::BF16 => f32::MAX,
        GgmlType::NVFP4 => LARGEST_NVFP4,
        _ => LARGEST_HALF,
    };
    v.is_nan() || v.abs() > largest
}
