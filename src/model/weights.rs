//! From tensors in a file to weights in memory: every tensor a family asks for is checked for its shape and type, packed
//! for this CPU, and its mapped pages are released, so that one copy stays resident.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use ggml_ext::blocks;
use ggml_ext::gguf::{Gguf, TensorInfo};
use ggml_ext::pack::ROWS;

use super::config::model_error;
use crate::Result;
use crate::compute::{FileBytes, Hold, Linear, Matrix, Pool, Slabs, Stack};

/// One file (a model, a part of a split, or a sidecar) with its tensors.
#[derive(Clone)]
pub struct TensorFile {
    /// What messages call it.
    pub name: String,
    /// The file's bytes.
    pub bytes: Arc<FileBytes>,
    /// Its tensors, as the reader checked them.
    pub tensors: Vec<TensorInfo>,
}

struct Entry {
    file: Arc<str>,
    bytes: Arc<FileBytes>,
    info: TensorInfo,
    used: bool,
}

impl TensorFile {
    /// The file called `name`, its `bytes` parsed as `gguf`.
    pub fn new(name: &str, bytes: &Arc<FileBytes>, gguf: &Gguf) -> Self {
        Self { name: name.into(), bytes: bytes.clone(), tensors: gguf.tensors().to_vec() }
    }
}

/// Hands out a model's tensors.
pub struct Loader<'p> {
    file: String,
    tensors: HashMap<String, Entry>,
    hold: Hold,
    pool: Pool,
    slabs: Slabs,
    progress: Option<&'p mut dyn FnMut(f32)>,
    bytes_total: u64,
    bytes_done: u64,
}

impl<'p> Loader<'p> {
    /// A loader over the parts of a model called `file` in messages.
    ///
    /// # Errors
    /// A tensor that two of them have, such as a module of a sidecar in a base model.
    pub fn new(
        file: &str,
        parts: Vec<TensorFile>,
        hold: Hold,
        pool: Pool,
        progress: Option<&'p mut dyn FnMut(f32)>,
    ) -> Result<Self> {
        let mut tensors = HashMap::<String, Entry>::new();
        for part in parts {
            let file: Arc<str> = part.name.into();
            for info in part.tensors {
                let entry = Entry { file: file.clone(), bytes: part.bytes.clone(), info, used: false };
                if let Some(other) = tensors.get(&entry.info.name) {
                    let what = format!("tensor {} is in {} too", entry.info.name, other.file);
                    return Err(model_error(&entry.file, what));
                }
                tensors.insert(entry.info.name.clone(), entry);
            }
        }
        let bytes_total = tensors.values().map(|e| e.info.n_bytes).sum();
        let slabs = Slabs::for_bytes(bytes_total);
        Ok(Self { file: file.into(), tensors, hold, pool, slabs, progress, bytes_total, bytes_done: 0 })
    }

    /// True when the file has this tensor.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The first dimension of a tensor, where the file has it.
    pub fn first_dim(&self, name: &str) -> Option<usize> {
        self.tensors.get(name).map(|e| e.info.shape[0] as usize)
    }

    /// A tensor's dimensions, fastest first, where the file has it.
    pub fn dims(&self, name: &str) -> Option<&[u64]> {
        self.tensors.get(name).map(|e| &*e.info.shape)
    }

    /// An error about the model's file.
    pub fn error(&self, what: impl std::fmt::Display) -> crate::Error {
        model_error(&self.file, what)
    }

    /// Leaves a tensor that this run has no use for in the file, if it is there.
    pub fn skip(&mut self, name: &str) {
        if let Some(entry) = self.tensors.get_mut(name).filter(|e| !e.used) {
            entry.used = true;
            self.bytes_total -= entry.info.n_bytes;
        }
    }

    /// Leaves the tensors of layers from `n_layer` on in the file: no token passes through these.
    pub fn skip_layers_from(&mut self, n_layer: usize) {
        let layer = |name: &str| name.strip_prefix("blk.")?.split_once('.')?.0.parse::<usize>().ok();
        let beyond = self.tensors.keys().filter(|name| layer(name).is_some_and(|i| i >= n_layer));
        beyond.cloned().collect::<Vec<_>>().iter().for_each(|name| self.skip(name));
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<(Arc<FileBytes>, TensorInfo)> {
        let Some(entry) = self.tensors.get_mut(name) else {
            return Err(model_error(&self.file, format!("tensor {name} is missing")));
        };
        // Trailing dimensions of 1 mean nothing.
        let dims: Vec<u64> = entry.info.shape.iter().rev().skip_while(|&&d| d == 1).copied().collect();
        let wanted: Vec<u64> = shape.iter().rev().map(|&d| d as u64).skip_while(|&d| d == 1).collect();
        if dims != wanted {
            let what = format!("tensor {name} has shape {:?}, expected {shape:?}", entry.info.shape);
            return Err(model_error(&entry.file, what));
        }
        entry.used = true;
        Ok((entry.bytes.clone(), entry.info.clone()))
    }

    /// Rows `part` of the matrix `name` of `rows` x `cols`: some families store several matrices as one.
    fn matrix_rows(&mut self, name: &str, rows: usize, cols: usize, part: Range<usize>) -> Result<Matrix> {
        let (file, info) = self.take(name, &[cols, rows])?;
        let row_bytes = info.n_bytes as usize / rows;
        let start = info.offset as usize;
        let range = start + part.start * row_bytes..start + part.end * row_bytes;
        Ok(self.load(&file, &info, [part.len(), cols], range))
    }

    /// The matrix of this `shape` at `range` of the file.
    fn load(&mut self, file: &Arc<FileBytes>, info: &TensorInfo, shape: [usize; 2], range: Range<usize>) -> Matrix {
        self.bytes_done += range.len() as u64;
        let matrix = Matrix::load(info.ty, shape, file, range, self.hold, &mut self.pool, &mut self.slabs);
        if let Some(progress) = &mut self.progress {
            progress(self.bytes_done as f32 / self.bytes_total.max(1) as f32);
        }
        matrix
    }

    /// The embeddings of tokens, which may be the output head too.
    pub fn embeddings(&mut self, name: &str, rows: usize, cols: usize) -> Result<Linear> {
        // A factor on products alone would make two things of one tensor.
        let scale = format!("{name}.scale");
        match self.has(&scale) {
            true => Err(self.error(format_args!("tensor {scale}: embeddings have no factor"))),
            false => self.linear(name, rows, cols),
        }
    }

    /// A matrix of which single rows are read, and never all: it stays in the file's mapping.
    pub fn table(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix> {
        let (file, info) = self.take(name, &[cols, rows])?;
        let start = info.offset as usize;
        self.bytes_done += info.n_bytes;
        Ok(Matrix::of_file(info.ty, [rows, cols], &file, start..start + info.n_bytes as usize))
    }

    /// The vector `name` of `n` values.
    pub fn vector(&mut self, name: &str, n: usize) -> Result<Box<[f32]>> {
        self.values(name, &[n])
    }

    /// The values of the small tensor `name`, as stored; `shape` fastest dimension first.
    pub fn values(&mut self, name: &str, shape: &[usize]) -> Result<Box<[f32]>> {
        let (file, info) = self.take(name, shape)?;
        let mut out = vec![0.0; shape.iter().product()].into_boxed_slice();
        let start = info.offset as usize;
        blocks::dequantize_row(info.ty, &file[start..start + info.n_bytes as usize], &mut out);
        Ok(out)
    }

    /// The small matrix `name` with a row for each of its `inputs`, as one with a row for each of its `outputs`.
    pub fn transposed(&mut self, name: &str, inputs: usize, outputs: usize) -> Result<Box<[f32]>> {
        let stored = self.values(name, &[outputs, inputs])?;
        Ok((0..inputs * outputs).map(|j| stored[j % inputs * outputs + j / inputs]).collect())
    }

    /// The vector `name`, where the file has it.
    pub fn optional_vector(&mut self, name: &str, n: usize) -> Result<Option<Box<[f32]>>> {
        self.has(name).then(|| self.vector(name, n)).transpose()
    }

    /// `<name>.weight` with `<name>.scale`, one factor on its results, and `<name>.bias` where the file has them.
    pub fn linear(&mut self, name: &str, rows: usize, cols: usize) -> Result<Linear> {
        self.linear_rows(name, rows, cols, 0..rows)
    }

    /// Rows `part` of [`Loader::linear`].
    pub fn linear_rows(&mut self, name: &str, rows: usize, cols: usize, part: Range<usize>) -> Result<Linear> {
        let tensor = format!("{name}.weight");
        let weight = self.matrix_rows(&tensor, rows, cols, part.clone())?;
        let scale = self.factor(name)?;
        let bias = self.optional_vector(&format!("{name}.bias"), rows)?.map(|b| b[part].into());
        Ok(Linear { name: tensor.into(), weight, scale, bias })
    }

    /// `<name>.scale`, the factor on all results of a matrix, where the file has it.
    fn factor(&mut self, name: &str) -> Result<Option<f32>> {
        self.skip_input_scale(name);
        let scale = format!("{name}.scale");
        match self.first_dim(&scale) {
            Some(1) => Ok(Some(self.vector(&scale, 1)?[0])),
            // Several factors would be something else.
            _ => Ok(None),
        }
    }

    /// Leaves `<name>.input_scale` in the file: by it a matrix's operand would be divided to become NVFP4 itself. Operands here, as those of
    /// llama.cpp on CPUs, have scales of their own.
    fn skip_input_scale(&mut self, name: &str) {
        self.skip(&format!("{name}.input_scale"));
    }

    /// Those rows of [`Loader::linear`] that lie in `parts`, one after another: of families that store the rows of several matrices by turns.
    pub fn linear_parts(&mut self, name: &str, rows: usize, cols: usize, parts: &[Range<usize>]) -> Result<Linear> {
        let tensor = format!("{name}.weight");
        let (file, info) = self.take(&tensor, &[cols, rows])?;
        let row_bytes = info.n_bytes as usize / rows;
        let shape = [parts.iter().map(Range::len).sum(), cols];
        let n_bytes = shape[0] * row_bytes;
        let start = info.offset as usize;
        let weight = if self.hold == Hold::Unread {
            // Rows that nobody reads: any will do.
            self.load(&file, &info, shape, start..start + n_bytes)
        } else {
            let stored = &file[start..][..info.n_bytes as usize];
            let of_part = |r: &Range<usize>| r.start * row_bytes..r.end * row_bytes;
            let gathered = parts.iter().flat_map(|r| &stored[of_part(r)]).copied().collect();
            self.load(&Arc::new(FileBytes::Owned(gathered)), &info, shape, 0..n_bytes)
        };
        let scale = self.factor(name)?;
        let bias = self.optional_vector(&format!("{name}.bias"), rows)?;
        let bias = bias.map(|b| parts.iter().flat_map(|r| &b[r.clone()]).copied().collect());
        Ok(Linear { name: tensor.into(), weight, scale, bias })
    }

    /// The matrix `which`, 0 or 1, of two whose rows the tensor has by turns: `len` of one, `len` of the other, and so on, `n` times.
    pub fn linear_by_turns(&mut self, name: &str, n: usize, len: usize, cols: usize, which: usize) -> Result<Linear> {
        let rows: Vec<_> = (0..n).map(|i| (2 * i + which) * len..(2 * i + which + 1) * len).collect();
        self.linear_parts(name, 2 * n * len, cols, &rows)
    }

    /// `n` matrices of `rows` x `cols`, each by itself, which the file has as one tensor of three dimensions, `<name>.weight`.
    pub fn linears(&mut self, name: &str, n: usize, rows: usize, cols: usize) -> Result<Box<[Linear]>> {
        let tensor = format!("{name}.weight");
        let (file, info) = self.take(&tensor, &[cols, rows, n])?;
        let (start, len) = (info.offset as usize, info.n_bytes as usize / n);
        let matrix = |i: usize| {
            let weight = self.load(&file, &info, [rows, cols], start + i * len..start + (i + 1) * len);
            Linear { name: tensor.as_str().into(), weight, scale: None, bias: None }
        };
        Ok((0..n).map(matrix).collect())
    }

    /// `n` matrices of `rows` x `cols`, those of all experts or of all heads, which the file has as one tensor of three dimensions:
    /// `<name>.weight` with `<name>.scale`, one factor for each, and `<name>.bias` where the file has them.
    pub fn stack(&mut self, name: &str, n: usize, rows: usize, cols: usize) -> Result<Stack> {
        let tensor = format!("{name}.weight");
        if !rows.is_multiple_of(ROWS) {
            return Err(
                self.error(format_args!("tensor {tensor}: matrices of {rows} rows, expected a multiple of {ROWS}"))
            );
        }
        let (file, info) = self.take(&tensor, &[cols, rows, n])?;
        let start = info.offset as usize;
        let range = start..start + info.n_bytes as usize;
        let weight = self.load(&file, &info, [n * rows, cols], range);
        self.skip_input_scale(name);
        let scales = self.optional_vector(&format!("{name}.scale"), n)?;
        let name_of_bias = format!("{name}.bias");
        let bias = self.has(&name_of_bias).then(|| self.values(&name_of_bias, &[rows, n])).transpose()?;
        Ok(Stack { name: tensor.into(), weight, scales, bias })
    }

    /// Refuses a file with tensors that the family did not ask for: running without them would be a silent guess.
    pub fn finish(self) -> Result<()> {
        let mut left: Vec<&Entry> = self.tensors.values().filter(|e| !e.used).collect();
        // Old converters stored the rotary frequencies, which follow from the metadata.
        left.retain(|e| !e.info.name.ends_with(".attn_rot_embd") && !e.info.name.ends_with(".rot_embd"));
        left.sort_unstable_by_key(|e| &e.info.name);
        match left.as_slice() {
            [] => Ok(()),
            [first, ..] => {
                let (name, n) = (&first.info.name, left.len());
                let what = format!("tensor {name} is not part of this architecture ({n} such tensors)");
                Err(model_error(&first.file, what))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelFile;

    #[test]
    fn one_name_is_one_tensor() {
        let file = ModelFile::embedded();
        let parsed = file.parse().unwrap();
        let part = |name: &str| TensorFile::new(name, &file.parts[0], &parsed[0]);
        let loader = |parts| Loader::new("m", parts, Hold::Packed, Pool::new(1).unwrap(), None);
        assert!(loader(vec![part("one")]).is_ok());
        let refused = loader(vec![part("one"), part("other")]).err().unwrap().to_string();
        assert!(refused.starts_with("other: tensor ") && refused.ends_with(" is in one too"), "{refused}");
    }
}
