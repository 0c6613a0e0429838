//! From tensors in a file to weights in memory: every tensor a family asks for is checked for its shape and type, packed
//! for this CPU, and its mapped pages are released, so that one copy stays resident.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use ggml_ext::blocks;
use ggml_ext::gguf::TensorInfo;

use super::config::model_error;
use crate::Result;
use crate::compute::{FileBytes, Hold, Linear, Matrix, Pool};

/// One file (or part of a split) with its tensors.
pub struct Part {
    /// The file's bytes.
    pub bytes: Arc<FileBytes>,
    /// Its tensors, as the reader checked them.
    pub tensors: Vec<TensorInfo>,
}

/// Hands out a model's tensors.
pub struct Loader<'p> {
    file: String,
    tensors: HashMap<String, (Arc<FileBytes>, TensorInfo, bool)>,
    hold: Hold,
    pool: Pool,
    progress: Option<&'p mut dyn FnMut(f32)>,
    bytes_total: u64,
    bytes_done: u64,
}

impl<'p> Loader<'p> {
    /// A loader over the parts of a model called `file` in messages.
    pub fn new(file: &str, parts: Vec<Part>, hold: Hold, pool: Pool, progress: Option<&'p mut dyn FnMut(f32)>) -> Self {
        let mut tensors = HashMap::new();
        for part in parts {
            for t in part.tensors {
                tensors.insert(t.name.clone(), (part.bytes.clone(), t, false));
            }
        }
        let bytes_total = tensors.values().map(|(_, t, _)| t.n_bytes).sum();
        Self { file: file.into(), tensors, hold, pool, progress, bytes_total, bytes_done: 0 }
    }

    /// True when the file has this tensor.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<(Arc<FileBytes>, TensorInfo)> {
        let Some((bytes, info, used)) = self.tensors.get_mut(name) else {
            return Err(model_error(&self.file, format!("tensor {name} is missing")));
        };
        // Trailing dimensions of 1 mean nothing.
        let dims: Vec<u64> = info.shape.iter().rev().skip_while(|&&d| d == 1).copied().collect();
        let wanted: Vec<u64> = shape.iter().rev().map(|&d| d as u64).skip_while(|&d| d == 1).collect();
        if dims != wanted {
            let what = format!("tensor {name} has shape {:?}, expected {shape:?}", info.shape);
            return Err(model_error(&self.file, what));
        }
        *used = true;
        Ok((bytes.clone(), info.clone()))
    }

    /// Rows `part` of the matrix `name` of `rows` x `cols`: some families store several matrices as one.
    fn matrix_rows(&mut self, name: &str, rows: usize, cols: usize, part: Range<usize>) -> Result<Matrix> {
        let (file, info) = self.take(name, &[cols, rows])?;
        let row_bytes = info.n_bytes as usize / rows;
        let start = info.offset as usize;
        let range = start + part.start * row_bytes..start + part.end * row_bytes;
        self.bytes_done += range.len() as u64;
        let matrix = Matrix::load(info.ty, part.len(), cols, &file, range, self.hold, &mut self.pool);
        if let Some(progress) = &mut self.progress {
            progress(self.bytes_done as f32 / self.bytes_total.max(1) as f32);
        }
        Ok(matrix)
    }

    /// The vector `name` of `n` values.
    pub fn vector(&mut self, name: &str, n: usize) -> Result<Box<[f32]>> {
        let (file, info) = self.take(name, &[n])?;
        let mut out = vec![0.0; n].into_boxed_slice();
        let start = info.offset as usize;
        blocks::dequantize_row(info.ty, &file[start..start + info.n_bytes as usize], &mut out);
        Ok(out)
    }

    /// The vector `name`, where the file has it.
    pub fn optional_vector(&mut self, name: &str, n: usize) -> Result<Option<Box<[f32]>>> {
        self.has(name).then(|| self.vector(name, n)).transpose()
    }

    /// `<name>.weight` with `<name>.bias` where the file has it.
    pub fn linear(&mut self, name: &str, rows: usize, cols: usize) -> Result<Linear> {
        self.linear_rows(name, rows, cols, 0..rows)
    }

    /// Rows `part` of [`Loader::linear`].
    pub fn linear_rows(&mut self, name: &str, rows: usize, cols: usize, part: Range<usize>) -> Result<Linear> {
        let weight = self.matrix_rows(&format!("{name}.weight"), rows, cols, part.clone())?;
        let bias = self.optional_vector(&format!("{name}.bias"), rows)?.map(|b| b[part].into());
        Ok(Linear { weight, bias })
    }

    /// Refuses a file with tensors that the family did not ask for: running without them would be a silent guess.
    pub fn finish(self) -> Result<()> {
        let mut left: Vec<&str> =
            self.tensors.values().filter(|(_, _, used)| !used).map(|(_, t, _)| t.name.as_str()).collect();
        // Old converters stored the rotary frequencies, which follow from the metadata.
        left.retain(|n| !n.ends_with(".attn_rot_embd") && !n.ends_with(".rot_embd"));
        left.sort_unstable();
        match left.as_slice() {
            [] => Ok(()),
            [first, ..] => {
                let what = format!("tensor {first} is not part of this architecture ({} such tensors)", left.len());
                Err(model_error(&self.file, what))
            }
        }
    }
}
