//! The rule of RWKV-7 (arXiv 2503.14456): a token fades each row of a head's matrix by a rate of its own, takes a part of what the matrix has for
//! one key, turned around, to another, and adds its value for its key. Values lean to those of the first layer.

use ggml_ext::kernels::float::{FloatKernels, KeyedUpdate, RowsMut};

use super::time_mix::{GATE, Given, Head, LEAN, RATE, TwoSteps};

/// A layer's parameters besides those that all layers with time mixing have.
pub struct Moving {
    /// Makes what decides how far each element of a key is renewed (the in-context learning rate).
    pub rate: Given<TwoSteps>,
    /// Makes what decides how far values lean to those of the first layer, in other layers than this.
    pub lean: Option<Given<TwoSteps>>,
    /// Makes gates on results, where the model has them.
    pub gate: Option<Given<TwoSteps>>,
    /// Factors on keys to make the key whose value moves, `[n_embd]`.
    pub removal: Box<[f32]>,
    /// How far keys follow their rates, `[n_embd]`.
    pub renewal: Box<[f32]>,
    /// How much of its own value a query reads besides, by element of its key, `[n_embd]`.
    pub bonus: Box<[f32]>,
}

/// The least logarithm of a rate, as in llama.cpp: about `e^-1/2` with a minus sign.
const LEAST_LOG_RATE: f32 = -0.606531;
/// Shorter keys than this are not stretched to the length 1.
const SHORTEST: f32 = 1e-12;

impl Moving {
    /// Takes tokens into the matrix of head `h`. What the last ones read goes to `out`.
    ///
    /// # Safety
    /// The head is this member's, and the products have been made.
    pub(super) unsafe fn run(&self, f: &FloatKernels, head: &Head, h: usize, memory: &mut [f32], out: RowsMut<f32>) {
        let dim = out.len();
        let part = h * dim..(h + 1) * dim;
        let (removal, renewal) = (&self.removal[part.clone()], &self.renewal[part]);
        for t in 0..head.n {
            // SAFETY: passed on to the caller; each is another buffer.
            let (key, value, rates, by, from) =
                unsafe { (head.key(t), head.value(t), head.rates(t), head.made(RATE, t), head.other_key(t)) };
            f.sigmoid(rates);
            f.scale(rates, LEAST_LOG_RATE);
            f.exp(rates);
            // SAFETY: as above.
            let first = unsafe { head.first_value(t) };
            if self.lean.is_some() {
                // SAFETY: as above.
                let lean = unsafe { head.made(LEAN, t) };
                f.sigmoid(lean);
                value
                    .iter_mut()
                    .zip(first)
                    .zip(lean)
                    .for_each(|((value, first), lean)| *value += (*first - *value) * *lean);
            } else {
                first.copy_from_slice(value);
            }
            f.sigmoid(by);
            from.copy_from_slice(key);
            f.mul_assign(from, removal);
            let length = f.dot(from, from).sqrt();
            f.scale(from, -1.0 / length.max(SHORTEST));
            for (((key, by), from), renewal) in key.iter_mut().zip(by).zip(from).zip(renewal) {
                let renewed = *key * renewal;
                *key += *by * renewed - renewed;
                *by *= -*from;
            }
        }
        // SAFETY: passed on to the caller, and nothing is written here any more.
        let [q, k, v, rates, from, to] = unsafe { head.all() };
        f.keyed_scan(KeyedUpdate { state: memory, q, k, v, rates, moves: Some([from, to]), reads_before: false, out });
    }

    /// Adds to the `result` of token `t` what it has of its own value, and multiplies it with its gates.
    ///
    /// # Safety
    /// As [`Moving::run`].
    pub(super) unsafe fn finish(&self, f: &FloatKernels, head: &Head, h: usize, t: usize, result: &mut [f32]) {
        let dim = result.len();
        // SAFETY: passed on to the caller; each is another buffer.
        let (query, key, value, room) = unsafe { (head.query(t), head.key(t), head.value(t), head.other_key(t)) };
        room.copy_from_slice(key);
        f.mul_assign(room, query);
        f.axpy(f.dot(room, &self.bonus[h * dim..(h + 1) * dim]), value, result);
        if self.gate.is_some() {
            // SAFETY: as above.
            f.mul_assign(result, unsafe { head.made(GATE, t) });
        }
    }
}
