//! The GGUF format of importance matrices.

use ggml_ext::GgmlType;
use ggml_ext::gguf::{Gguf, GgufWriter, TensorInfo, WriteError};

use super::{CHUNK_SIZE, Entry, Imatrix};

const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT_KEY: &str = "imatrix.chunk_count";
const CHUNK_SIZE_KEY: &str = "imatrix.chunk_size";
const SQUARES: &str = ".in_sum2";
const COUNTS: &str = ".counts";

pub(super) fn parse(bytes: &[u8]) -> Result<Imatrix, String> {
    let g = Gguf::parse(bytes).map_err(|e| e.to_string())?;
    let mut matrix = Imatrix::default();
    if let Some(datasets) = g.strings(DATASETS).map_err(|e| e.to_string())? {
        matrix.datasets = datasets.iter().map(str::to_owned).collect();
    }
    matrix.chunk_size = g.u32(CHUNK_SIZE_KEY).map_err(|e| e.to_string())?.filter(|&n| n > 0).unwrap_or(CHUNK_SIZE);
    for t in g.tensors() {
        let Some(name) = t.name.strip_suffix(SQUARES) else { continue };
        let of = format!("{name}{COUNTS}");
        let counts = g.tensor(&of).ok_or_else(|| format!("tensor {of} is missing beside {}", t.name))?;
        let squares = numbers(&g, t)?;
        let counts = numbers(&g, counts)?;
        if !squares.len().is_multiple_of(counts.len()) {
            return Err(format!("tensor {of}: {} counts for {} sums, expected a divisor", counts.len(), squares.len()));
        }
        if let Some(v) = counts.iter().find(|v| !(0.0..=1e18).contains(*v)) {
            return Err(format!("tensor {of}: {v} is no count"));
        }
        let entry = Entry {
            squares: squares.into_iter().map(f64::from).collect(),
            counts: counts.into_iter().map(|v| v.round() as u64).collect(),
        };
        matrix.entries.insert(name.into(), entry);
    }
    Ok(matrix)
}

fn numbers(g: &Gguf, t: &TensorInfo) -> Result<Vec<f32>, String> {
    if t.ty != GgmlType::F32 {
        return Err(format!("tensor {} has type {}, expected F32", t.name, t.ty));
    }
    Ok(g.tensor_data(t).as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
}

pub(super) fn write(matrix: &Imatrix) -> Result<Vec<u8>, WriteError> {
    let mut w = GgufWriter::new(Vec::new());
    w.str("general.type", "imatrix")?;
    w.strings(DATASETS, &matrix.datasets)?;
    w.u32(CHUNK_COUNT_KEY, u32::try_from(matrix.n_chunks()).unwrap_or(u32::MAX))?;
    w.u32(CHUNK_SIZE_KEY, matrix.chunk_size)?;
    for (name, e) in &matrix.entries {
        let n = e.counts.len() as u64;
        w.tensor(&format!("{name}{SQUARES}"), &[e.n_cols() as u64, n], GgmlType::F32)?;
        w.tensor(&format!("{name}{COUNTS}"), &[1, n], GgmlType::F32)?;
    }
    let bytes = |values: &mut dyn Iterator<Item = f32>| values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
    for (name, e) in &matrix.entries {
        w.data(&format!("{name}{SQUARES}"), &bytes(&mut e.squares.iter().map(|&v| v as f32)))?;
        w.data(&format!("{name}{COUNTS}"), &bytes(&mut e.counts.iter().map(|&v| v as f32)))?;
    }
    w.finish()
}
