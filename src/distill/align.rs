//! The alignment network of a `lisa` layer over one window, forward and in reverse. Formulas: `ggml-ext/SPEC.md`, section 2.

use ggml_ext::kernels::float::{FloatKernels, Rows, RowsMut};
use ggml_ext::lisa::{Activation, Domain, Part};

use super::modules::{Module, Modules};
use super::scores::Causal;

/// `act'(z)`, from `z` in place.
pub fn activation_slope(f: &FloatKernels, act: Activation, z: &mut [f32], scratch: &mut Vec<f32>) {
    /// `sqrt(2 / pi)` and the cubic coefficient of GELU's tanh approximation.
    const C: [f32; 2] = [0.797_884_6, 0.044_715];
    if act == Activation::Relu {
        return z.iter_mut().for_each(|z| *z = if *z > 0.0 { 1.0 } else { 0.0 });
    }
    scratch.clear();
    scratch.extend(z.iter().map(|&z| match act {
        Activation::Gelu => -2.0 * C[0] * (z + C[1] * z * z * z),
        _ => -z,
    }));
    f.exp(scratch);
    for (z, e) in z.iter_mut().zip(scratch) {
        // The sigmoid of z, or of twice tanh's argument.
        let (s, x) = (1.0 / (1.0 + *e), *z);
        *z = match act {
            Activation::Gelu => s + x * 2.0 * s * (1.0 - s) * C[0] * (1.0 + 3.0 * C[1] * x * x),
            _ => s * (1.0 + x * (1.0 - s)),
        };
    }
}

/// `act(z)`, in place.
fn activate(f: &FloatKernels, act: Activation, z: &mut [f32]) {
    match act {
        Activation::Relu => f.relu(z),
        Activation::Silu => f.silu(z),
        Activation::Gelu => f.gelu(z),
    }
}

/// A layer's alignment network.
pub struct Align<'a> {
    f: &'a FloatKernels,
    m: &'a Module,
    all: &'a Modules,
    c: Causal,
}

impl<'a> Align<'a> {
    /// The network of module `m` of `all`.
    pub fn new(f: &'a FloatKernels, all: &'a Modules, m: &'a Module, c: Causal) -> Self {
        Self { f, m, all, c }
    }

    fn part(&self, part: Part) -> &'a [f32] {
        self.all.part(self.m, part)
    }

    /// The network's input for query `i`: rows of source heads, logarithms or weights.
    fn input(&self, source: &[f32], i: usize, out: &mut Vec<f32>) -> usize {
        let n = self.c.span(i).len();
        out.clear();
        (0..self.m.n_head).for_each(|h| out.extend_from_slice(&source[self.c.row(h, i)]));
        if self.all.domain == Domain::Weight {
            self.f.exp(out);
        }
        n
    }

    /// The hidden units before their activation.
    fn units(&self, x: &[f32], n: usize, out: &mut Vec<f32>) {
        let (h, m) = (self.m.n_head, self.m.n_hidden);
        out.clear();
        self.part(Part::AlignUpBias).iter().for_each(|&b| out.resize(out.len() + n, b));
        let up = Rows::new(self.part(Part::AlignUp), m, h, h);
        self.f.sgemm_nn_acc(up, Rows::new(x, h, n, n), RowsMut::new(out, m, n, n));
    }

    /// Adds the re-arranged heads of `source`, logarithms of weights, to `scores`.
    pub fn forward(&self, source: &[f32], scores: &mut [f32]) {
        let (h, m, t) = (self.m.n_head, self.m.n_hidden, self.c.n);
        let (mut x, mut units) = (Vec::new(), Vec::new());
        for i in 0..t {
            let n = self.input(source, i, &mut x);
            let into = self.c.row(0, i).start;
            let skip = Rows::new(self.part(Part::AlignSkip), h, h, h);
            self.f.sgemm_nn_acc(skip, Rows::new(&x, h, n, n), RowsMut::new(&mut scores[into..], h, n, t * t));
            if m > 0 {
                self.units(&x, n, &mut units);
                activate(self.f, self.all.activation, &mut units);
                let down = Rows::new(self.part(Part::AlignDown), h, m, m);
                self.f.sgemm_nn_acc(down, Rows::new(&units, m, n, n), RowsMut::new(&mut scores[into..], h, n, t * t));
            }
        }
    }

    /// From the gradient `d` of the scores: adds those of the network's values to `grads` (of all modules), and where it is
    /// wanted that of the source's logarithms to `dsource`.
    pub fn backward(&self, source: &[f32], d: &[f32], grads: &mut [f32], mut dsource: Option<&mut [f32]>) {
        let (f, h, m, t) = (self.f, self.m.n_head, self.m.n_hidden, self.c.n);
        let (mut x, mut dy, mut units, mut active, mut scratch) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut dunits, mut dx) = (Vec::new(), Vec::new());
        let turned = |part: Part, cols: usize| -> Vec<f32> {
            let x = self.part(part);
            (0..x.len()).map(|i| x[i % (x.len() / cols.max(1)) * cols + i / (x.len() / cols.max(1))]).collect()
        };
        let (skip, up, down) = (turned(Part::AlignSkip, h), turned(Part::AlignUp, h), turned(Part::AlignDown, m));
        let mut product = Vec::new();
        let mut add = |part: Part, a: &[f32], b: &[f32], n: usize| {
            let (rows, cols) = (a.len() / n, b.len() / n);
            product.clear();
            product.resize(rows * cols, 0.0);
            f.sgemm_nt(
                1.0,
                Rows::new(a, rows, n, n),
                Rows::new(b, cols, n, n),
                RowsMut::new(&mut product, rows, cols, cols),
            );
            f.add_assign(&mut grads[self.m.range(part)], &product);
        };
        for i in 0..t {
            let n = self.input(source, i, &mut x);
            dy.clear();
            (0..h).for_each(|g| dy.extend_from_slice(&d[self.c.row(g, i)]));
            add(Part::AlignSkip, &dy, &x, n);
            dx.clear();
            dx.resize(h * n, 0.0);
            if m > 0 {
                self.units(&x, n, &mut units);
                active.clone_from(&units);
                activate(f, self.all.activation, &mut active);
                add(Part::AlignDown, &dy, &active, n);
                dunits.clear();
                dunits.resize(m * n, 0.0);
                f.sgemm_nn_acc(Rows::new(&down, m, h, h), Rows::new(&dy, h, n, n), RowsMut::new(&mut dunits, m, n, n));
                activation_slope(f, self.all.activation, &mut units, &mut scratch);
                f.mul_assign(&mut dunits, &units);
                add(Part::AlignUp, &dunits, &x, n);
                let sums: Vec<f32> = dunits.chunks_exact(n).map(|d| d.iter().sum()).collect();
                // Products with a row of ones: the bias is a unit's weight on a constant.
                add(Part::AlignUpBias, &sums, &[1.0], 1);
                if dsource.is_some() {
                    let up = Rows::new(&up, h, m, m);
                    f.sgemm_nn_acc(up, Rows::new(&dunits, m, n, n), RowsMut::new(&mut dx, h, n, n));
                }
            }
            if let Some(dsource) = dsource.as_deref_mut() {
                let skip = Rows::new(&skip, h, h, h);
                f.sgemm_nn_acc(skip, Rows::new(&dy, h, n, n), RowsMut::new(&mut dx, h, n, n));
                if self.all.domain == Domain::Weight {
                    f.mul_assign(&mut dx, &x);
                }
                for (g, dx) in dx.chunks_exact(n).enumerate() {
                    f.add_assign(&mut dsource[self.c.row(g, i)], dx);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distill::testing::{check, noise};
    use ggml_ext::kernels::Kernels;
    use ggml_ext::lisa::Kind;

    fn modules(n_hidden: usize, act: Activation, domain: Domain) -> Modules {
        let m = Module {
            layer: 1,
            source: 0,
            kind: Kind::Lisa,
            n_head: 3,
            n_head_kv: 1,
            n_embd: 4,
            rank: 0,
            n_hidden,
            comp: false,
            freq: Vec::new(),
            start: 0,
        };
        let mut all = Modules::new(vec![m], act, domain, 1.0);
        all.values = noise(7, all.values.len(), 0.5);
        all
    }

    #[test]
    fn gradients_match_finite_differences() {
        let f = &Kernels::detect().float;
        let c = Causal { n: 11, window: Some(8) };
        let ns = 3 * c.n * c.n;
        for (n_hidden, act, domain) in [
            (0, Activation::Relu, Domain::Log),
            (5, Activation::Silu, Domain::Log),
            (5, Activation::Gelu, Domain::Weight),
        ] {
            let all = modules(n_hidden, act, domain);
            let n = all.values.len();
            let mut x = all.values.clone();
            x.extend(noise(8, ns, 1.0).iter().map(|x| x - 2.0));
            let target = noise(9, ns, 1.0);
            let forward = |x: &[f32]| {
                let all = all.with_values(&x[..n]);
                let mut s = vec![0.0; ns];
                Align::new(f, &all, all.get(1).unwrap(), c).forward(&x[n..], &mut s);
                s.iter().zip(&target).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            let mut grad = vec![0.0; x.len()];
            let (values, source) = grad.split_at_mut(n);
            Align::new(f, &all, all.get(1).unwrap(), c).backward(&x[n..], &target, values, Some(source));
            check(&x, &grad, forward);
        }
    }

    #[test]
    fn slopes_of_the_activations() {
        let f = &Kernels::detect().float;
        for act in [Activation::Silu, Activation::Gelu] {
            let x: Vec<f32> = (-40..40).map(|i| i as f32 * 0.1 + 0.05).collect();
            let mut slope = x.clone();
            activation_slope(f, act, &mut slope, &mut Vec::new());
            for (x, slope) in x.iter().zip(slope) {
                let at = |x: f32| {
                    let mut y = [x];
                    activate(f, act, &mut y);
                    y[0]
                };
                let expected = (at(x + 1e-2) - at(x - 1e-2)) / 2e-2;
                assert!((slope - expected).abs() < 2e-4, "{act} at {x}: {slope} and {expected}");
            }
        }
    }
}
