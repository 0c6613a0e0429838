//! The rule of RWKV-6 (arXiv 2404.05892): a token fades each row of a head's matrix by a rate of its own and adds its value for its key. Of its own
//! value a query reads as much as the layer has it, whatever the token's key says. Where that is not so (QRWKV), keys are as strong as rates are
//! weak, and heads may share keys and values.

use ggml_ext::kernels::float::{FloatKernels, KeyedUpdate, RowsMut};

use super::time_mix::{GATE, Given, Head};
use crate::compute::Linear;

/// A layer's parameters besides those that all layers with time mixing have.
pub struct Fading {
    /// Makes gates on results.
    pub gate: Given<Linear>,
    /// Key/value heads; divides the number of heads.
    pub n_head_kv: usize,
    /// Factors on the elements of a token's own key when its query reads that, `[n_embd]`; where the family has them, gates are of SiLU and not
    /// of the logistic function.
    pub bonus: Option<Box<[f32]>>,
}

impl Fading {
    /// Takes tokens into the matrix of a head. What the last ones read goes to `out`.
    ///
    /// # Safety
    /// The head is this member's, and the products have been made.
    pub(super) unsafe fn run(&self, f: &FloatKernels, head: &Head, memory: &mut [f32], out: RowsMut<f32>) {
        let plain = self.bonus.is_none();
        for t in 0..head.n {
            // SAFETY: passed on to the caller; each is another buffer.
            let (query, key, rates, weak) =
                unsafe { (head.query(t), head.shared_key(t), head.rates(t), head.other_key(t)) };
            f.exp(rates);
            f.scale(rates, -1.0);
            f.exp(rates);
            if plain {
                weak.iter_mut().zip(key).zip(rates).for_each(|((weak, key), rate)| *weak = key - key * *rate);
                f.scale(query, 1.0 / (query.len() as f32).sqrt());
            }
        }
        // SAFETY: passed on to the caller, and nothing is written here any more.
        let [q, k, v, rates, weak, _] = unsafe { head.all() };
        let k = if plain { weak } else { k };
        f.keyed_scan(KeyedUpdate { state: memory, q, k, v, rates, moves: None, reads_before: !plain, out });
    }

    /// Adds to what was read for token `t` what it has of its own value, of head `h`.
    ///
    /// # Safety
    /// As [`Fading::run`].
    pub(super) unsafe fn add_own(&self, f: &FloatKernels, head: &Head, h: usize, t: usize, result: &mut [f32]) {
        let (Some(bonus), dim) = (&self.bonus, result.len()) else { return };
        // SAFETY: passed on to the caller; each is another buffer.
        let (query, key, value) = unsafe { (head.query(t), head.shared_key(t), head.shared_value(t)) };
        f.mul_assign(query, &bonus[h * dim..(h + 1) * dim]);
        f.axpy(f.dot(query, key), value, result);
    }

    /// Multiplies the `result` of token `t` with its gates.
    ///
    /// # Safety
    /// As [`Fading::run`].
    pub(super) unsafe fn finish(&self, f: &FloatKernels, head: &Head, t: usize, result: &mut [f32]) {
        // SAFETY: passed on to the caller.
        let gates = unsafe { head.made(GATE, t) };
        if self.bonus.is_some() {
            f.silu(gates);
            f.mul_assign(result, gates);
        } else {
            f.sigmoid_mul(gates, result);
        }
    }
}
