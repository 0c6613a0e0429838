//! Frozen matrices, forward and in reverse.
//!
//! Quantised weights are multiplied as the engine does at run time, in int8 with the file's own codes (or in bf16): twice as fast as F32 and
//! a third of its memory, and the student is trained on what it will run on. The reverse product needs the transpose, which is made
//! when it is first asked for, in Q8_0: what that rounds off is far below the noise of a batch of text. Everything else, and all of it
//! under [`Precision::Exact`], is in F32.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::OnceLock;

use ggml_ext::GgmlType;
use ggml_ext::blocks::quantize_rows;
use ggml_ext::kernels::float::{FloatKernels, Rows, RowsMut};
use ggml_ext::kernels::{Bf16Rows, Digits, FINE_STEP, Kernels, MatmulScratch, Q8Rows};
use ggml_ext::pack::{self, MatrixRef};

use super::dense::{matmul_nt, transpose};
use crate::compute::{Linear, Matrix};

/// How frozen matrices are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Quantised weights in int8, or in bf16 where the CPU is faster at that, as the engine does.
    Int8,
    /// Everything in F32.
    Exact,
}

impl Precision {
    /// Whether `weight` is multiplied in F32.
    fn is_float_for(self, weight: &Matrix) -> bool {
        self == Self::Exact || !weight.is_quantized()
    }
}

/// A frozen matrix, a row of `n_in` per output, with its bias.
pub struct Frozen<'m> {
    weight: &'m Matrix,
    /// The rows of `weight` that the matrix has.
    part: Range<usize>,
    bias: Option<&'m [f32]>,
    kernels: &'static Kernels,
    /// The weights, where they are multiplied in F32.
    floats: Option<Vec<f32>>,
    transposed: OnceLock<Transposed>,
    /// Length of the result.
    pub n_out: usize,
    /// Length of the operand.
    pub n_in: usize,
}

/// The transpose of a matrix in packed Q8_0; columns are filled up with zeros to whole blocks.
struct Transposed {
    data: Vec<u8>,
    n_cols: usize,
}

/// Elements of a block of Q8_0 and of int8 operands.
const BLOCK: usize = 32;

/// Rows of the weight matrix that one reverse product in F32 takes at a time: the kernel walks down its columns, which must stay in
/// cache.
const BACK_ROWS: usize = 1024;

/// Values that are turned at a time.
const TRANSPOSED: usize = 16 << 20;

/// Values of the operand of a product in int8 that are quantised at a time.
const OPERAND: usize = 1 << 18;

/// From which step on blocks of gradients get second digits. They are summed over a batch, and none decides about a token.
const FINE_STEP_BACK: f32 = 0.1;

/// Rows rounded for products.
enum Operand {
    Int8(Q8Rows),
    Bf16(Bf16Rows),
}

impl Operand {
    fn new(kernels: &Kernels, n_rows: usize, k: usize) -> Self {
        match kernels.int.has_bf16() {
            true => Self::Bf16(Bf16Rows::new(n_rows, k)),
            false => Self::Int8(Q8Rows::new(n_rows, k)),
        }
    }

    fn k(&self) -> usize {
        match self {
            Self::Int8(rows) => rows.k(),
            Self::Bf16(rows) => rows.k(),
        }
    }

    fn n_rows(&self) -> usize {
        match self {
            Self::Int8(rows) => rows.n_rows(),
            Self::Bf16(rows) => rows.n_rows(),
        }
    }

    fn set(&mut self, kernels: &Kernels, row: usize, x: &[f32], fine_step: f32) {
        // SAFETY: `&mut self` excludes views and other writers.
        unsafe {
            match self {
                Self::Int8(rows) => rows.quantize_row(kernels, row, x, fine_step),
                Self::Bf16(rows) => rows.round_row(kernels, row, x),
            }
        }
    }

    /// The product of the first rows with `w`, as many as `y` has.
    fn product(&self, kernels: &Kernels, w: &MatrixRef, scratch: &mut MatmulScratch, y: &mut [f32]) {
        let (rows, all) = (0..y.len() / w.rows, 0..w.rows);
        // SAFETY: `&self` excludes writers, and `y` has `w.rows` values for each of the rows.
        unsafe {
            match self {
                Self::Int8(x) => kernels.int.matmul(w, all, x.view(rows), scratch, y.as_mut_ptr(), w.rows),
                Self::Bf16(x) => {
                    kernels.int.matmul_bf16(w, all, x.view(rows), Digits::One, scratch, y.as_mut_ptr(), w.rows)
                }
            }
        }
    }
}

/// A thread's work space for products of rounded rows.
#[derive(Default)]
struct Space {
    matmul: MatmulScratch,
    operands: Vec<Operand>,
    row: Vec<f32>,
}

thread_local! {
    static SPACE: RefCell<Space> = RefCell::default();
}

impl Space {
    /// Room for rows of `k` elements, some at a time, and the rest of the space.
    fn rows(&mut self, kernels: &Kernels, k: usize) -> (&mut Operand, &mut MatmulScratch, &mut Vec<f32>) {
        let at = self.operands.iter().position(|rows| rows.k() == k).unwrap_or_else(|| {
            self.operands.push(Operand::new(kernels, (OPERAND / k.max(1)).clamp(16, 512), k));
            self.operands.len() - 1
        });
        (&mut self.operands[at], &mut self.matmul, &mut self.row)
    }
}

/// `y = x w^T` for rows `x` of `n_in` values, which are filled up with zeros to the columns of `w`.
fn product(kernels: &Kernels, w: &MatrixRef, x: &[f32], n_in: usize, fine_step: f32, y: &mut [f32]) {
    assert_eq!(x.len() / n_in * w.rows, y.len(), "rows of operand and result");
    SPACE.with_borrow_mut(|space| {
        let (rows, scratch, padded) = space.rows(kernels, w.cols);
        padded.clear();
        padded.resize(w.cols, 0.0);
        let n = rows.n_rows();
        for (x, y) in x.chunks(n * n_in).zip(y.chunks_mut(n * w.rows)) {
            for (i, x) in x.chunks_exact(n_in).enumerate() {
                if n_in == w.cols {
                    rows.set(kernels, i, x, fine_step);
                } else {
                    padded[..n_in].copy_from_slice(x);
                    rows.set(kernels, i, padded, fine_step);
                }
            }
            rows.product(kernels, w, scratch, y);
        }
    });
}

impl<'m> Frozen<'m> {
    /// The matrix of `linear`.
    pub fn new(linear: &'m Linear, kernels: &'static Kernels, precision: Precision) -> Self {
        let all = 0..linear.weight.rows();
        Self::of_rows(&linear.weight, all, linear.bias.as_deref(), kernels, precision)
    }

    /// The rows `part` of `weight`, with their `bias`.
    pub fn of_rows(
        weight: &'m Matrix,
        part: Range<usize>,
        bias: Option<&'m [f32]>,
        kernels: &'static Kernels,
        precision: Precision,
    ) -> Self {
        let (n_out, n_in) = (part.len(), weight.cols());
        let floats = precision.is_float_for(weight).then(|| {
            let mut w = vec![0.0; n_out * n_in];
            w.chunks_exact_mut(n_in).zip(part.clone()).for_each(|(row, i)| weight.row(i, row));
            w
        });
        Self { weight, part, bias, kernels, floats, transposed: OnceLock::new(), n_out, n_in }
    }

    /// Bytes beside the engine's `weight` that the matrix takes: with `reverse`, when it has been asked for reverse products.
    pub fn bytes(weight: &Matrix, precision: Precision, reverse: bool) -> u64 {
        let (n_out, n_in) = (weight.rows(), weight.cols());
        match precision.is_float_for(weight) {
            true => 4 * (n_out * n_in) as u64,
            false if reverse => {
                pack::packed_bytes(GgmlType::Q8_0, n_in, n_out.next_multiple_of(BLOCK)).unwrap_or(0) as u64
            }
            false => 0,
        }
    }

    fn view(&self) -> MatrixRef<'m> {
        if self.n_out == self.weight.rows() { self.weight.view() } else { self.weight.rows_view(self.part.clone()) }
    }

    /// Added to every result.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias
    }

    /// Row `i`.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        self.weight.row(self.part.start + i, out);
    }

    /// `y = x W^T + b` for every row of `x`.
    pub fn forward(&self, k: &FloatKernels, x: &[f32], y: &mut [f32]) {
        match &self.floats {
            Some(w) => matmul_nt(k, x, w, y, self.n_in),
            None => product(self.kernels, &self.view(), x, self.n_in, FINE_STEP, y),
        }
        if let Some(bias) = self.bias() {
            y.chunks_exact_mut(self.n_out).for_each(|row| k.add_assign(row, bias));
        }
    }

    /// `dx += dy W` for every row of `dy`.
    pub fn backward(&self, k: &FloatKernels, dy: &[f32], dx: &mut [f32]) {
        let m = dy.len() / self.n_out;
        let Some(w) = &self.floats else {
            let t = self.transposed.get_or_init(|| self.transpose());
            let (rows, cols) = (self.n_in, t.n_cols);
            let w = MatrixRef { ty: GgmlType::Q8_0, rows, cols, data: &t.data, packed: true };
            let mut out = vec![0.0; dx.len()];
            product(self.kernels, &w, dy, self.n_out, FINE_STEP_BACK, &mut out);
            return k.add_assign(dx, &out);
        };
        for (i, w) in w.chunks(BACK_ROWS * self.n_in).enumerate() {
            let n = w.len() / self.n_in;
            let dy = Rows::new(&dy[i * BACK_ROWS..], m, n, self.n_out);
            k.sgemm_nn_acc(dy, Rows::new(w, n, self.n_in, self.n_in), RowsMut::new(dx, m, self.n_in, self.n_in));
        }
    }

    fn transpose(&self) -> Transposed {
        let n_cols = self.n_out.next_multiple_of(BLOCK);
        let packed = |rows| pack::packed_bytes(GgmlType::Q8_0, rows, n_cols).expect("the size of weights in memory");
        let mut data = vec![0; packed(self.n_in)];
        let row_bytes = GgmlType::Q8_0.row_bytes(n_cols).expect("whole blocks");
        // Some columns at a time, so that a large matrix is never there in F32.
        let step = (TRANSPOSED / n_cols).max(1).next_multiple_of(pack::ROWS).min(self.n_in);
        let (mut row, mut columns) = (vec![0.0; self.n_in], vec![0.0; n_cols * step]);
        let (mut turned, mut blocks) = (columns.clone(), vec![0; row_bytes * step]);
        for (start, data) in (0..self.n_in).step_by(step).zip(data.chunks_mut(packed(step))) {
            let n = step.min(self.n_in - start);
            for i in 0..self.n_out {
                self.row(i, &mut row);
                columns[i * n..(i + 1) * n].copy_from_slice(&row[start..start + n]);
            }
            columns[self.n_out * n..].fill(0.0);
            transpose(&columns, n, n_cols, n, &mut turned);
            let (turned, blocks) = (&turned[..n * n_cols], &mut blocks[..n * row_bytes]);
            quantize_rows(GgmlType::Q8_0, turned, None, blocks);
            pack::pack_rows(GgmlType::Q8_0, n_cols, 0..n, blocks, data);
        }
        Transposed { data, n_cols }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::{FileBytes, Hold, Pool, Slabs};
    use crate::distill::testing::noise;
    use std::sync::Arc;

    fn linear(ty: GgmlType, n_out: usize, n_in: usize) -> Linear {
        let mut bytes = vec![0; ty.row_bytes(n_in).unwrap() * n_out];
        quantize_rows(ty, &noise(4, n_out * n_in, 0.3), None, &mut bytes);
        let (range, file) = (0..bytes.len(), Arc::new(FileBytes::Owned(bytes)));
        let (mut pool, mut slabs) = (Pool::new(1).unwrap(), Slabs::for_bytes(1 << 20));
        let weight = Matrix::load(ty, [n_out, n_in], &file, range, Hold::Packed, &mut pool, &mut slabs);
        Linear { name: "w".into(), weight, scale: None, bias: Some(noise(5, n_out, 1.0).into()) }
    }

    /// Products in int8 are those in F32 but for rounding, for transposes whose rows are not whole blocks, too.
    #[test]
    fn int8_and_f32_agree() {
        let kernels = Kernels::detect();
        for (ty, n_out, n_in) in [(GgmlType::Q4_1, 50, 96), (GgmlType::Q8_0, 128, 64), (GgmlType::Q6_K, 33, 256)] {
            let linear = linear(ty, n_out, n_in);
            let [int8, exact] = [Precision::Int8, Precision::Exact].map(|p| Frozen::new(&linear, kernels, p));
            assert!(int8.floats.is_none() && Frozen::bytes(&linear.weight, Precision::Int8, false) == 0);
            let (n, f) = (600, &kernels.float);
            let close = |a: &[f32], b: &[f32]| {
                let error: f32 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
                assert!(error < 1e-4 * f.dot(b, b), "{ty}: {error} of {}", f.dot(b, b));
            };
            let x = noise(1, n * n_in, 1.0);
            let [a, b] = [&int8, &exact].map(|m| {
                let mut y = vec![0.0; n * n_out];
                m.forward(f, &x, &mut y);
                y
            });
            close(&a, &b);
            let dy = noise(2, n * n_out, 1.0);
            let [a, b] = [&int8, &exact].map(|m| {
                let mut dx = noise(3, n * n_in, 1.0);
                m.backward(f, &dy, &mut dx);
                dx
            });
            close(&a, &b);
            let transposed = int8.transposed.get().map(|t| t.data.len() as u64);
            assert_eq!(transposed, Some(Frozen::bytes(&linear.weight, Precision::Int8, true)));
        }
    }
}
