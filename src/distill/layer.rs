//! One decoder layer over one window, forward and in reverse. It mirrors the engine's forward pass (`model/forward.rs`), in F32
//! and with everything kept that the reverse pass needs.

use ggml_ext::kernels::float::FloatKernels;
use ggml_ext::lisa::{Kind, Part};

use super::align::Align;
use super::dense::{
    DenseLayer, DenseModel, HeadProjection, Turns, matmul_nn, matmul_nt, matmul_tn, normalise, normalise_backward,
    rms_norm_backward,
};
use super::modules::{Module, Modules};
use super::network::FeedForwardTape;
use super::scores::{
    Causal, HeadShape, linear_biases, log_softmax, scores, scores_backward, soft_cap_backward, weighted_values,
    weighted_values_backward,
};
use crate::attention::RopeTable;
use crate::compute::Norm;

/// What a layer computed on its way forward.
#[derive(Default)]
pub struct Tape {
    /// The residual stream the layer was given.
    pub x: Vec<f32>,
    /// Its normalised form.
    pub n: Vec<f32>,
    /// Queries before their norm, where there is one; else unused.
    q_raw: Vec<f32>,
    k_raw: Vec<f32>,
    /// Turned queries, full or low-rank ones.
    pub q: Vec<f32>,
    /// Turned keys.
    pub k: Vec<f32>,
    v: Vec<f32>,
    lse: Vec<f32>,
    heads: Vec<f32>,
    /// The attention's result before a norm on it.
    out: Vec<f32>,
    x1: Vec<f32>,
    n2: Vec<f32>,
    ffn: FeedForwardTape,
    /// The network's result before a norm on it.
    down: Vec<f32>,
}

impl Tape {
    /// The attention's result, before a norm on it.
    pub fn attention(&self) -> &[f32] {
        &self.out
    }
}

/// Work space of one member for the passes over layers.
#[derive(Default)]
pub struct Scratch {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    d: Vec<f32>,
    dn: Vec<f32>,
    ds: Vec<f32>,
}

/// Makes `v` of `n` zeros.
pub fn zeroed(v: &mut Vec<f32>, n: usize) -> &mut [f32] {
    v.clear();
    v.resize(n, 0.0);
    v
}

/// Makes `v` of length `n`, with values to be overwritten.
pub fn sized(v: &mut Vec<f32>, n: usize) -> &mut [f32] {
    v.resize(n, 0.0);
    v
}

/// Turns every head of every row by its position.
fn turn(model: &DenseModel, table: &RopeTable, dim: usize, n_head: usize, x: &mut [f32]) {
    for (i, row) in x.chunks_exact_mut(n_head * dim).enumerate() {
        row.chunks_exact_mut(dim).for_each(|head| table.rotate(model.kernels, i, head));
    }
}

/// Turns low-rank heads, of which `per_kv` share a key/value head's frequencies; `sign` -1 turns back.
fn turn_low_rank(f: &FloatKernels, m: &Module, per_kv: usize, sign: f64, x: &mut [f32]) {
    let (r, half) = (m.rank, m.rank / 2);
    let (mut cos, mut sin) = (vec![0.0; half], vec![0.0; half]);
    for (i, row) in x.chunks_exact_mut(m.n_head_kv * per_kv * r).enumerate() {
        for (heads, freq) in row.chunks_exact_mut(per_kv * r).zip(m.freq.chunks_exact(half)) {
            for ((c, s), &w) in cos.iter_mut().zip(&mut sin).zip(freq) {
                let (sine, cosine) = (sign * i as f64 * f64::from(w)).sin_cos();
                (*c, *s) = (cosine as f32, sine as f32);
            }
            heads.chunks_exact_mut(r).for_each(|head| f.rope_norm(head, &cos, &sin));
        }
    }
}

/// A layer of a student (or of the teacher, where the layer is not substituted).
pub struct LayerPass<'a> {
    model: &'a DenseModel<'a>,
    layer: &'a DenseLayer<'a>,
    all: &'a Modules,
    module: Option<&'a Module>,
    c: Causal,
    f: &'a FloatKernels,
}

/// Gradients that a layer's reverse pass reads and writes besides the residual stream's.
pub struct Asked<'a> {
    /// What later layers ask of this layer's logarithms of weights.
    pub log: Option<&'a [f32]>,
    /// What this layer asks of its source's, where somebody wants to know.
    pub source: Option<&'a mut [f32]>,
    /// Of all modules' values.
    pub modules: &'a mut [f32],
    /// Whether the gradient of the layer's input is wanted.
    pub input: bool,
}

impl<'a> LayerPass<'a> {
    /// Layer `i` of `model` with the module that `all` has for it.
    pub fn new(model: &'a DenseModel<'a>, all: &'a Modules, i: usize) -> Self {
        let layer = &model.layers[i];
        let c = Causal { n: model.n_ctx, window: layer.shape.window };
        Self { model, layer, all, module: all.get(i), c, f: &model.kernels.float }
    }

    fn values(&self) -> HeadShape {
        let s = &self.layer.shape;
        HeadShape { n_head: s.n_head, n_head_kv: s.n_head_kv, dim: s.head_dim_v }
    }

    fn keys(&self) -> HeadShape {
        let s = &self.layer.shape;
        HeadShape { n_head: s.n_head, n_head_kv: s.n_head_kv, dim: self.module.map_or(s.head_dim_k, |m| m.rank) }
    }

    fn turns(&self) -> &Turns {
        &self.model.turns[self.layer.rope]
    }

    /// The logarithms of the layer's attention weights, from the normalised input in `tape`: into `log`, and for `shared` layers
    /// nowhere, as they have their source's. `source`: those of the source.
    pub fn logs(&self, tape: &mut Tape, source: Option<&[f32]>, log: &mut Vec<f32>) {
        let (f, s, n) = (self.f, self.keys(), self.c.n);
        sized(log, s.n_head * n * n);
        sized(&mut tape.lse, s.n_head * n);
        match self.module {
            None => {
                self.project(&self.layer.q, s.n_head, &tape.n, &mut tape.q_raw, &mut tape.q);
                self.project(&self.layer.k, s.n_head_kv, &tape.n, &mut tape.k_raw, &mut tape.k);
                scores(f, s, self.c, self.layer.shape.scale, &tape.q, &tape.k, log);
                // No family has soft caps beside them, which would come first.
                if let Some(slopes) = self.layer.slopes {
                    linear_biases(self.c, slopes, log);
                }
                log_softmax(f, s.n_head, self.c, self.layer.shape.softcap, log, &mut tape.lse);
            }
            Some(m) if m.kind == Kind::Lisa => {
                if m.rank > 0 {
                    let parts = [(Part::Q, s.n_head, &mut tape.q), (Part::K, s.n_head_kv, &mut tape.k)];
                    for (part, n_head, out) in parts {
                        sized(out, n * n_head * m.rank);
                        matmul_nt(f, &tape.n, self.all.part(m, part), out, m.n_embd);
                        turn_low_rank(f, m, n_head / s.n_head_kv, 1.0, out);
                    }
                    scores(f, s, self.c, self.all.scale, &tape.q, &tape.k, log);
                } else {
                    log.fill(0.0);
                }
                Align::new(f, self.all, m, self.c).forward(source.expect("the source's weights"), log);
                log_softmax(f, s.n_head, self.c, None, log, &mut tape.lse);
            }
            Some(_) => {}
        }
    }

    fn project(&self, p: &HeadProjection, n_head: usize, x: &[f32], raw: &mut Vec<f32>, out: &mut Vec<f32>) {
        let dim = self.layer.shape.head_dim_k;
        sized(out, self.c.n * p.dense.n_out);
        p.dense.forward(self.f, x, out);
        if let Some(norm) = &p.norm {
            raw.clone_from(out);
            out.chunks_exact_mut(norm.len()).for_each(|part| self.f.rms_norm_in_place(part, norm, self.model.eps));
        }
        turn(self.model, &self.turns().forward, dim, n_head, out);
    }

    /// Normalises the input, and keeps both.
    pub fn begin(&self, x: &[f32], tape: &mut Tape) {
        tape.x.clear();
        tape.x.extend_from_slice(x);
        normalise(self.f, x, self.layer.attn_norm.as_ref(), self.model.eps, sized(&mut tape.n, x.len()));
    }

    /// The rest of the layer, from the logarithms of its weights: `x` becomes what the next layer is given.
    pub fn finish(&self, tape: &mut Tape, log: &[f32], x: &mut [f32], scratch: &mut Scratch) {
        let (f, l, n, eps) = (self.f, self.layer, self.c.n, self.model.eps);
        l.v.forward(f, &tape.n, sized(&mut tape.v, n * l.v.n_out));
        weighted_values(f, self.values(), self.c, log, &tape.v, sized(&mut tape.heads, n * l.out.n_in));
        l.out.forward(f, &tape.heads, sized(&mut tape.out, x.len()));
        if let Some(m) = self.module.filter(|m| m.comp) {
            matmul_nt(f, &tape.n, self.all.part(m, Part::Comp), sized(&mut scratch.a, x.len()), m.n_embd);
            f.add_assign(&mut tape.out, &scratch.a);
        }
        if !l.parallel {
            self.add(l.post_attn_norm.as_ref(), &tape.out, x, scratch);
        }
        tape.x1.clear();
        tape.x1.extend_from_slice(x);
        match &l.ffn_norm {
            None if l.parallel => tape.n2.clone_from(&tape.n),
            norm => normalise(f, x, norm.as_ref(), eps, sized(&mut tape.n2, x.len())),
        }
        l.ffn.forward(f, &tape.n2, &mut tape.ffn, &mut scratch.b, sized(&mut tape.down, x.len()));
        if l.parallel {
            f.add_assign(x, &tape.out);
        }
        self.add(l.post_ffn_norm.as_ref(), &tape.down, x, scratch);
    }

    fn add(&self, norm: Option<&Norm>, delta: &[f32], x: &mut [f32], scratch: &mut Scratch) {
        let Some(norm) = norm else { return self.f.add_assign(x, delta) };
        normalise(self.f, delta, Some(norm), self.model.eps, sized(&mut scratch.a, x.len()));
        self.f.add_assign(x, &scratch.a);
    }

    /// The gradient of a half's result from that of the residual stream after it.
    fn delta<'d>(&self, norm: Option<&Norm>, result: &[f32], dx: &'d [f32], out: &'d mut Vec<f32>) -> &'d [f32] {
        let Some(norm) = norm else { return dx };
        normalise_backward(self.f, result, Some(norm), self.model.eps, dx, zeroed(out, dx.len()));
        out
    }

    /// The reverse pass: `dx` is the gradient of what the layer gave and becomes that of what it was given, where it is wanted.
    pub fn backward(
        &self,
        tape: &Tape,
        log: &[f32],
        source: Option<&[f32]>,
        dx: &mut [f32],
        asked: Asked,
        s: &mut Scratch,
    ) {
        let (f, l, n, eps) = (self.f, self.layer, self.c.n, self.model.eps);
        // Feed-forward half.
        let d = self.delta(l.post_ffn_norm.as_ref(), &tape.down, dx, &mut s.a);
        let dn = zeroed(&mut s.dn, d.len());
        l.ffn.backward(f, &tape.ffn, d, dn, [&mut s.b, &mut s.c, &mut s.d]);
        // Of parallel halves the gradients of their common input come together at the end: of its norm, or of itself.
        let (mut of_normed, mut of_input) = (Vec::new(), Vec::new());
        match &l.ffn_norm {
            None if l.parallel => of_normed.extend_from_slice(dn),
            norm if l.parallel => {
                normalise_backward(f, &tape.x1, norm.as_ref(), eps, dn, zeroed(&mut of_input, dx.len()))
            }
            norm => normalise_backward(f, &tape.x1, norm.as_ref(), eps, dn, dx),
        }
        // Attention half.
        let d = self.delta(l.post_attn_norm.as_ref(), &tape.out, dx, &mut s.a);
        l.out.backward(f, d, zeroed(&mut s.b, n * l.out.n_in));
        let dn = zeroed(&mut s.c, dx.len());
        if !of_normed.is_empty() {
            f.add_assign(dn, &of_normed);
        }
        if let Some(m) = self.module.filter(|m| m.comp) {
            matmul_tn(f, d, &tape.n, &mut asked.modules[m.range(Part::Comp)], m.n_embd);
            matmul_nn(f, d, self.all.part(m, Part::Comp), dn, m.n_embd);
        }
        let dv = asked.input.then(|| zeroed(&mut s.d, n * l.v.n_out));
        let ds = sized(&mut s.ds, log.len());
        weighted_values_backward(f, self.values(), self.c, log, &tape.v, &s.b, asked.log, dv, ds);
        if asked.input {
            l.v.backward(f, &s.d, dn);
        }
        let wanted = asked.input.then_some(&mut s.c);
        self.logs_backward(tape, log, source, &mut s.ds, wanted, asked.modules, asked.source);
        if asked.input {
            normalise_backward(f, &tape.x, l.attn_norm.as_ref(), eps, &s.c, dx);
            if !of_input.is_empty() {
                f.add_assign(dx, &of_input);
            }
        }
    }

    /// From the gradient `ds` of the scores: adds that of the normalised input to `dn`, of the modules' values to `grads`, of
    /// the source's logarithms to `dsource`.
    #[allow(clippy::too_many_arguments)]
    pub fn logs_backward(
        &self,
        tape: &Tape,
        log: &[f32],
        source: Option<&[f32]>,
        ds: &mut [f32],
        dn: Option<&mut Vec<f32>>,
        grads: &mut [f32],
        dsource: Option<&mut [f32]>,
    ) {
        let (f, s, n, l) = (self.f, self.keys(), self.c.n, self.layer);
        let (mut dq, mut dk) = (Vec::new(), Vec::new());
        match self.module {
            None => {
                let Some(dn) = dn else { return };
                if let Some(cap) = l.shape.softcap {
                    soft_cap_backward(s.n_head, self.c, cap, log, &tape.lse, ds);
                }
                zeroed(&mut dq, tape.q.len());
                zeroed(&mut dk, tape.k.len());
                scores_backward(f, s, self.c, l.shape.scale, &tape.q, &tape.k, ds, &mut dq, &mut dk);
                self.project_backward(&l.q, s.n_head, &tape.q_raw, dq, dn);
                self.project_backward(&l.k, s.n_head_kv, &tape.k_raw, dk, dn);
            }
            Some(m) if m.kind == Kind::Lisa => {
                Align::new(f, self.all, m, self.c).backward(source.expect("the source's weights"), ds, grads, dsource);
                if m.rank == 0 {
                    return;
                }
                zeroed(&mut dq, n * s.n_head * m.rank);
                zeroed(&mut dk, n * s.n_head_kv * m.rank);
                scores_backward(f, s, self.c, self.all.scale, &tape.q, &tape.k, ds, &mut dq, &mut dk);
                let mut dn = dn;
                for (part, n_head, d) in [(Part::Q, s.n_head, &mut dq), (Part::K, s.n_head_kv, &mut dk)] {
                    turn_low_rank(f, m, n_head / s.n_head_kv, -1.0, d);
                    matmul_tn(f, d, &tape.n, &mut grads[m.range(part)], n_head * m.rank);
                    if let Some(dn) = dn.as_deref_mut() {
                        matmul_nn(f, d, self.all.part(m, part), dn, n_head * m.rank);
                    }
                }
            }
            Some(_) => {
                if let Some(dsource) = dsource {
                    let rows = (0..s.n_head).flat_map(|h| (0..n).map(move |i| self.c.row(h, i)));
                    rows.for_each(|at| f.add_assign(&mut dsource[at.clone()], &ds[at]));
                }
            }
        }
    }

    fn project_backward(&self, p: &HeadProjection, n_head: usize, raw: &[f32], mut d: Vec<f32>, dn: &mut [f32]) {
        let dim = self.layer.shape.head_dim_k;
        turn(self.model, &self.turns().backward, dim, n_head, &mut d);
        if let Some(norm) = &p.norm {
            let mut before = vec![0.0; d.len()];
            rms_norm_backward(self.f, raw, norm, self.model.eps, &d, &mut before);
            d = before;
        }
        p.dense.backward(self.f, &d, dn);
    }
}
