//! Learned augmented residuals (LAuReL, arXiv 2411.07501), of low rank: what attention is given, and two narrow matrices' product with it, are
//! added to the residual stream beside what attention makes.

use std::ops::Range;

use super::buffers::Buffers;
use super::decoder::Decoder;
use super::forward::fine_step;
use crate::compute::{Activations, Form, Linear, Norm, Operand, Ops, SharedBuf, Widths};

/// Factor on the sum of the residual stream, attention's result and this.
pub const SCALE: f32 = std::f32::consts::FRAC_1_SQRT_2;

/// A layer's two matrices.
pub struct Laurel {
    /// `[rank, n_embd]`, meets the layer's normalised input.
    pub down: Linear,
    /// `[n_embd, rank]`, meets what that makes.
    pub up: Linear,
    /// RMSNorm on the result.
    pub norm: Norm,
}

impl Laurel {
    /// Both.
    pub fn matrices(&self) -> [&Linear; 2] {
        [&self.down, &self.up]
    }
}

/// Work space for these.
pub(super) struct LaurelBuffers {
    /// What the first matrix makes, `[n_ubatch, rank]`.
    pub low: SharedBuf<f32>,
    /// The same, what the second meets.
    rows: Widths,
}

impl LaurelBuffers {
    /// Work space for passes of up to `n_ubatch` tokens, if the model has any.
    pub fn new(model: &Decoder, n_ubatch: usize, activations: impl Fn(usize) -> Activations) -> Option<Self> {
        let ranks = || model.layers.iter().filter_map(|l| Some(l.laurel.as_ref()?.up.weight.cols()));
        let low = SharedBuf::new(n_ubatch * ranks().max()?);
        Some(Self { low, rows: Widths::new(ranks(), activations) })
    }
}

/// Adds to the rows `asked` of the residual stream, which still is the layer's input, `input_norm` of it and what the matrices make of that;
/// the first of them has. Uses `buf.beside`. `form`: of the pass; `room`: for these rows.
pub(super) fn add(
    ops: &mut Ops,
    laurel: &Laurel,
    input_norm: Option<&Norm>,
    buf: &Buffers,
    asked: &Range<usize>,
    (form, room): (Form, Operand),
    eps: f32,
) {
    let Some(b) = &buf.laurel else { return };
    let (n, len) = (asked.len(), room.k());
    let low = b.rows.of(laurel.up.weight.cols()).with(form, fine_step::ATTENTION);
    ops.norm(&b.low, 0..n, None, eps, low);
    ops.linear(low, 0..n, &[(&laurel.up, &buf.beside)]);
    let k = &ops.kernels.float;
    for i in ops.worker.share(n) {
        let t = asked.start + i;
        // SAFETY: rows are shared out disjointly.
        unsafe {
            let (x, made, input) =
                (buf.x.get_mut(t * len..(t + 1) * len), buf.beside.get_mut(i * len..(i + 1) * len), room.row_mut(i));
            match input_norm {
                Some(norm) => norm.apply(k, x, eps, input),
                None => input.copy_from_slice(x),
            }
            laurel.norm.apply_in_place(k, made, eps);
            k.add_assign(x, input);
            k.add_assign(x, made);
        }
    }
    ops.worker.barrier();
}
