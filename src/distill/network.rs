//! The frozen feed-forward half of a layer, forward and in reverse: one gated network, or a mixture of experts (`compute/experts.rs`).

use ggml_ext::kernels::Kernels;
use ggml_ext::kernels::float::FloatKernels;
use ggml_ext::lisa::Activation;

use super::align::activation_slope;
use super::frozen::{Frozen, Precision};
use super::layer::{sized, zeroed};
use crate::compute::{Act, Choice, Gating, Linear, Stack, Units, Xielu, sigmoid};
use crate::model::{self, Experts, Ffn};

/// The feed-forward half of a layer.
pub enum FeedForward<'m> {
    /// One network.
    One(Box<Network<'m>>),
    /// Many, of which some are chosen for a token.
    Mixture(Box<Mixture<'m>>),
}

/// A network: `down(act(gate x) * up x)`, or without gates `down(act(gate x))`.
pub struct Network<'m> {
    gate: Frozen<'m>,
    up: Option<Frozen<'m>>,
    down: Frozen<'m>,
    act: Act,
}

/// Networks and what chooses among them. The choice is as good as constant: gradients pass through the weights of those chosen.
pub struct Mixture<'m> {
    router: Frozen<'m>,
    choice: Choice,
    selection_bias: Option<&'m [f32]>,
    experts: Vec<Network<'m>>,
    shared: Option<Shared<'m>>,
    kernels: &'static Kernels,
}

/// A network that all tokens meet; `y += sigmoid(gate . x) * network(x)`, or without the factor.
struct Shared<'m> {
    network: Network<'m>,
    gate: Option<&'m [f32]>,
}

/// What the half computed on its way forward.
#[derive(Default)]
pub struct FeedForwardTape {
    /// Of every network, in the order of the rows that it was given.
    networks: Vec<NetworkTape>,
    /// Of all experts, `[n, n_expert]`.
    probabilities: Vec<f32>,
    /// The experts chosen for each token, `[n, n_used]`, and their weights.
    chosen: Vec<u32>,
    weights: Vec<f32>,
    /// For each of `chosen` the row among those that the expert was given.
    rows: Vec<usize>,
    /// What each expert made of its rows.
    outputs: Vec<Vec<f32>>,
    shared: SharedTape,
}

#[derive(Default)]
struct SharedTape {
    network: NetworkTape,
    output: Vec<f32>,
    /// By token, where there is a gate.
    factors: Vec<f32>,
}

#[derive(Default)]
struct NetworkTape {
    gate: Vec<f32>,
    up: Vec<f32>,
}

/// Work space: the hidden units, and the gradients of gates and of up-projections.
pub type Hidden<'s> = [&'s mut Vec<f32>; 3];

impl<'m> FeedForward<'m> {
    /// The frozen `ffn`.
    pub fn new(ffn: &'m Ffn, kernels: &'static Kernels, precision: Precision) -> Self {
        match ffn {
            Ffn::One(n) => Self::One(Box::new(Network::new(n, kernels, precision))),
            Ffn::Experts(e) => Self::Mixture(Box::new(Mixture::new(e, kernels, precision))),
        }
    }

    /// Hidden units that a token meets.
    pub fn n_hidden(&self) -> usize {
        match self {
            Self::One(n) => n.gate.n_out,
            Self::Mixture(m) => {
                let of_experts = m.choice.n_used * m.experts.first().map_or(0, |n| n.gate.n_out);
                of_experts + m.shared.as_ref().map_or(0, |s| s.network.gate.n_out)
            }
        }
    }

    /// What it makes of the rows `x`, into `y`.
    pub fn forward(
        &self,
        f: &FloatKernels,
        x: &[f32],
        tape: &mut FeedForwardTape,
        hidden: &mut Vec<f32>,
        y: &mut [f32],
    ) {
        match self {
            Self::One(n) => {
                tape.networks.resize_with(1, Default::default);
                n.forward(f, x, &mut tape.networks[0], hidden, y);
            }
            Self::Mixture(m) => m.forward(f, x, tape, hidden, y),
        }
    }

    /// Adds the gradient of the rows that it was given to `dx`, from that of what it made of them.
    pub fn backward(&self, f: &FloatKernels, tape: &FeedForwardTape, dy: &[f32], dx: &mut [f32], s: Hidden) {
        match self {
            Self::One(n) => n.backward(f, &tape.networks[0], dy, dx, s),
            Self::Mixture(m) => m.backward(f, tape, dy, dx, s),
        }
    }
}

impl<'m> Network<'m> {
    fn new(n: &'m model::FeedForward, kernels: &'static Kernels, precision: Precision) -> Self {
        let frozen = |linear: &'m Linear| Frozen::new(linear, kernels, precision);
        Self { gate: frozen(&n.gate), up: n.up.as_ref().map(frozen), down: frozen(&n.down), act: n.act }
    }

    fn forward(&self, f: &FloatKernels, x: &[f32], tape: &mut NetworkTape, hidden: &mut Vec<f32>, y: &mut [f32]) {
        let n = x.len() / self.gate.n_in * self.gate.n_out;
        self.gate.forward(f, x, sized(&mut tape.gate, n));
        match &self.up {
            Some(up) => {
                up.forward(f, x, sized(&mut tape.up, n));
                self.act.gate(f, &tape.gate, &tape.up, sized(hidden, n));
            }
            None => self.act.alone(f, &tape.gate, sized(hidden, n)),
        }
        self.down.forward(f, hidden, y);
    }

    fn backward(&self, f: &FloatKernels, tape: &NetworkTape, dy: &[f32], dx: &mut [f32], [hidden, gate, up]: Hidden) {
        self.down.backward(f, dy, zeroed(hidden, tape.gate.len()));
        gate.clone_from(&tape.gate);
        match self.act {
            Act::Silu => activation_slope(f, Activation::Silu, gate, up),
            Act::Gelu => activation_slope(f, Activation::Gelu, gate, up),
            Act::Relu => gate.iter_mut().for_each(|x| *x = f32::from(u8::from(*x > 0.0))),
            Act::ReluSquared => gate.iter_mut().for_each(|x| *x = 2.0 * x.max(0.0)),
            Act::Xielu(Xielu { alpha_n, alpha_p, beta, eps }) => gate.iter_mut().for_each(|x| {
                let bent = if *x < eps { x.exp() - 1.0 } else { -1.0 };
                *x = beta + if *x > 0.0 { 2.0 * alpha_p * *x } else { alpha_n * bent };
            }),
            Act::ClampedSwiglu | Act::CappedSwiglu(_) | Act::ClippedSwiglu(_) => {
                unreachable!("no model with it is trained")
            }
        }
        f.mul_assign(gate, hidden);
        if let Some(of_up) = &self.up {
            f.mul_assign(gate, &tape.up);
            self.act.gate(f, &tape.gate, hidden, sized(up, tape.gate.len()));
            of_up.backward(f, up, dx);
        }
        self.gate.backward(f, gate, dx);
    }
}

impl<'m> Mixture<'m> {
    fn new(e: &'m Experts, kernels: &'static Kernels, precision: Precision) -> Self {
        let all = &e.networks;
        let n_expert = all.choice.n_expert;
        let part = |stack: &'m Stack, i: usize| {
            let n = stack.weight.rows() / n_expert;
            let rows = i * n..(i + 1) * n;
            let bias = stack.bias.as_ref().map(|b| &b[rows.clone()]);
            Frozen::of_rows(&stack.weight, rows, bias, kernels, precision)
        };
        let (gate, up) = match &all.units {
            Units::Gated { gate, up } => (gate, Some(up)),
            Units::Ungated(up) => (up, None),
            Units::Fused(_) => unreachable!("refused when the model was looked at"),
        };
        let network =
            |i| Network { gate: part(gate, i), up: up.map(|up| part(up, i)), down: part(&all.down, i), act: all.act };
        let shared = e
            .shared
            .as_ref()
            .map(|s| Shared { network: Network::new(&s.network, kernels, precision), gate: s.gate.as_deref() });
        Self {
            router: Frozen::new(&e.router, kernels, precision),
            choice: all.choice,
            selection_bias: all.selection_bias.as_deref(),
            experts: (0..n_expert).map(network).collect(),
            shared,
            kernels,
        }
    }

    /// The rows of `x`, one for each token, that go to expert `e`, one after the other.
    fn gather(&self, tape: &FeedForwardTape, e: usize, x: &[f32], scaled: bool, f: &FloatKernels) -> Vec<f32> {
        let d = self.router.n_in;
        let mut rows = Vec::new();
        for (i, _) in tape.chosen.iter().enumerate().filter(|(_, c)| **c as usize == e) {
            let start = rows.len();
            rows.extend_from_slice(&x[i / self.choice.n_used * d..][..d]);
            if scaled {
                f.scale(&mut rows[start..], tape.weights[i]);
            }
        }
        rows
    }

    fn forward(&self, f: &FloatKernels, x: &[f32], tape: &mut FeedForwardTape, hidden: &mut Vec<f32>, y: &mut [f32]) {
        let (d, Choice { n_expert, n_used, .. }) = (self.router.n_in, self.choice);
        let n = x.len() / d;
        self.router.forward(f, x, sized(&mut tape.probabilities, n * n_expert));
        tape.chosen.resize(n * n_used, 0);
        sized(&mut tape.weights, n * n_used);
        let places = tape.chosen.chunks_exact_mut(n_used).zip(tape.weights.chunks_exact_mut(n_used));
        for (scores, (chosen, weights)) in tape.probabilities.chunks_exact_mut(n_expert).zip(places) {
            self.choice.choose(self.kernels, &mut scores.to_vec(), self.selection_bias, chosen, weights);
            self.choice.probabilities(self.kernels, scores);
        }
        let mut given = vec![0; n_expert];
        let next = |&e: &u32| {
            given[e as usize] += 1;
            given[e as usize] - 1
        };
        tape.rows = tape.chosen.iter().map(next).collect();
        tape.networks.resize_with(n_expert, Default::default);
        tape.outputs.resize_with(n_expert, Vec::new);
        for (e, expert) in self.experts.iter().enumerate() {
            let rows = self.gather(tape, e, x, false, f);
            let out = sized(&mut tape.outputs[e], rows.len());
            expert.forward(f, &rows, &mut tape.networks[e], hidden, out);
        }
        y.fill(0.0);
        for (i, ((&e, &w), &row)) in tape.chosen.iter().zip(&tape.weights).zip(&tape.rows).enumerate() {
            f.axpy(w, &tape.outputs[e as usize][row * d..(row + 1) * d], &mut y[i / n_used * d..][..d]);
        }
        if let Some(shared) = &self.shared {
            shared.forward(f, x, &mut tape.shared, hidden, y);
        }
    }

    fn backward(&self, f: &FloatKernels, tape: &FeedForwardTape, dy: &[f32], dx: &mut [f32], [a, b, c]: Hidden) {
        let (d, Choice { n_expert, n_used, gating, normalised, scale, .. }) = (self.router.n_in, self.choice);
        let mut back = vec![Vec::new(); n_expert];
        for (e, expert) in self.experts.iter().enumerate() {
            let rows = self.gather(tape, e, dy, true, f);
            expert.backward(f, &tape.networks[e], &rows, zeroed(&mut back[e], rows.len()), [&mut *a, &mut *b, &mut *c]);
        }
        let mut dscores = vec![0.0; tape.probabilities.len()];
        let tokens = tape.probabilities.chunks_exact(n_expert).zip(dscores.chunks_exact_mut(n_expert));
        for (t, (p, ds)) in tokens.enumerate() {
            let (dy, dx) = (&dy[t * d..(t + 1) * d], &mut dx[t * d..(t + 1) * d]);
            let of_token =
                || (t * n_used..(t + 1) * n_used).map(|i| (tape.chosen[i] as usize, tape.rows[i], tape.weights[i]));
            // First of the weights, then of the probabilities, then of the scores.
            for (e, row, _) in of_token() {
                let at = row * d..(row + 1) * d;
                f.add_assign(dx, &back[e][at.clone()]);
                ds[e] = f.dot(dy, &tape.outputs[e][at]);
            }
            if normalised {
                let along: f32 = of_token().map(|(e, _, w)| ds[e] * w).sum();
                let sum: f32 = of_token().map(|(e, ..)| p[e]).sum();
                of_token().for_each(|(e, ..)| ds[e] = (scale * ds[e] - along) / sum);
            } else {
                f.scale(ds, scale);
            }
            match gating {
                Gating::Softmax => {
                    let along = f.dot(p, ds);
                    ds.iter_mut().zip(p).for_each(|(ds, p)| *ds = p * (*ds - along));
                }
                Gating::Sigmoid => ds.iter_mut().zip(p).for_each(|(ds, p)| *ds *= p * (1.0 - p)),
            }
        }
        self.router.backward(f, &dscores, dx);
        if let Some(shared) = &self.shared {
            shared.backward(f, &tape.shared, dy, dx, [a, b, c]);
        }
    }
}

impl Shared<'_> {
    /// Adds what it makes of the rows `x` to `y`.
    fn forward(&self, f: &FloatKernels, x: &[f32], tape: &mut SharedTape, hidden: &mut Vec<f32>, y: &mut [f32]) {
        self.network.forward(f, x, &mut tape.network, hidden, sized(&mut tape.output, y.len()));
        let Some(gate) = self.gate else { return f.add_assign(y, &tape.output) };
        let d = gate.len();
        tape.factors = x.chunks_exact(d).map(|x| sigmoid(f.dot(gate, x))).collect();
        let rows = y.chunks_exact_mut(d).zip(tape.output.chunks_exact(d)).zip(&tape.factors);
        rows.for_each(|((y, out), &factor)| f.axpy(factor, out, y));
    }

    fn backward(&self, f: &FloatKernels, tape: &SharedTape, dy: &[f32], dx: &mut [f32], s: Hidden) {
        let Some(gate) = self.gate else { return self.network.backward(f, &tape.network, dy, dx, s) };
        let d = gate.len();
        let mut scaled = dy.to_vec();
        scaled.chunks_exact_mut(d).zip(&tape.factors).for_each(|(dy, &factor)| f.scale(dy, factor));
        self.network.backward(f, &tape.network, &scaled, dx, s);
        let rows = dy.chunks_exact(d).zip(tape.output.chunks_exact(d)).zip(dx.chunks_exact_mut(d));
        for (((dy, out), dx), &factor) in rows.zip(&tape.factors) {
            f.axpy(f.dot(dy, out) * factor * (1.0 - factor), gate, dx);
        }
    }
}
