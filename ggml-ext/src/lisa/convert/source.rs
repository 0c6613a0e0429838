//! The safetensors file: matrices of floats by name.

use safetensors::{Dtype, SafeTensors};

use super::map::Order;
use super::{ConvertError, source};
use crate::blocks::{bf16_to_f32, f16_to_f32};

/// A parsed safetensors file, borrowing from its bytes.
pub(super) struct Source<'a> {
    file: SafeTensors<'a>,
}

impl<'a> Source<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ConvertError> {
        let error = |e| ConvertError::Source(format!("not a safetensors file: {e}"));
        SafeTensors::deserialize(bytes).map(|file| Self { file }).map_err(error)
    }

    pub fn names(&self) -> Vec<&str> {
        let mut names = self.file.names();
        // The file's own order is that of a hash table: messages should not change from run to run.
        names.sort_unstable();
        names
    }

    /// The lengths of a matrix's output and input.
    pub fn out_in(&self, name: &str, order: Order) -> Result<(usize, usize), ConvertError> {
        let view = self.file.tensor(name).map_err(|e| source(name, e))?;
        match (view.shape(), order) {
            (&[a, b], Order::OutIn) => Ok((a, b)),
            (&[a, b], Order::InOut) => Ok((b, a)),
            (shape, _) => Err(source(name, format!("shape {shape:?}, expected two dimensions"))),
        }
    }

    /// A matrix of `n_out` outputs and `n_in` inputs, outputs slow: element `[out * n_in + in]`.
    pub fn matrix(&self, name: &str, order: Order, n_out: usize, n_in: usize) -> Result<Vec<f32>, ConvertError> {
        match order {
            Order::OutIn => self.floats(name, &[&[n_out, n_in]], "[out, in]"),
            Order::InOut => Ok(transposed(&self.floats(name, &[&[n_in, n_out]], "[in, out]")?, n_in, n_out)),
        }
    }

    /// All elements of a tensor that must have one of these shapes, which `what` explains.
    pub fn floats(&self, name: &str, shapes: &[&[usize]], what: &str) -> Result<Vec<f32>, ConvertError> {
        let view = self.file.tensor(name).map_err(|e| source(name, e))?;
        if !shapes.contains(&view.shape()) {
            let expected = shapes.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(" or ");
            return Err(source(name, format!("shape {:?}, expected {expected} ({what})", view.shape())));
        }
        let bytes = view.data();
        let x: Vec<f32> = match view.dtype() {
            Dtype::F64 => bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32).collect(),
            Dtype::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Dtype::F16 => bytes.as_chunks().0.iter().map(|&b| f16_to_f32(u16::from_le_bytes(b))).collect(),
            Dtype::BF16 => bytes.as_chunks().0.iter().map(|&b| bf16_to_f32(u16::from_le_bytes(b))).collect(),
            other => return Err(source(name, format!("type {other:?}, expected F64, F32, F16 or BF16"))),
        };
        match x.iter().position(|x| !x.is_finite()) {
            Some(i) => Err(source(name, format!("element {i} is {} in F32, expected finite numbers", x[i]))),
            None => Ok(x),
        }
    }
}

/// Rows become columns: `x` has `n_rows` rows of `n_cols`.
pub(super) fn transposed(x: &[f32], n_rows: usize, n_cols: usize) -> Vec<f32> {
    (0..n_rows * n_cols).map(|i| x[i % n_rows * n_cols + i / n_rows]).collect()
}
