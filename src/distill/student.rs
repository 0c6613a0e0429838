//! Teacher and student over one window of text: the two losses and their gradients.

use ggml_ext::lisa::Kind;

use super::dense::{DenseModel, normalise, normalise_backward};
use super::layer::{Asked, LayerPass, Scratch, Tape, zeroed};
use super::modules::Modules;
use super::scores::Causal;

/// What a pass over one window found: sums over its positions.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Of the loss that the pass trains: KL(teacher || student) of the predictions over positions, or the mean over substituted layers
    /// and heads of KL(teacher's weights || student's) over queries.
    pub loss: f64,
    /// Of the student's negative log-likelihood of the next token; 0 in a pass over attention alone.
    pub nll: f64,
    /// Of the teacher's.
    pub nll_teacher: f64,
    /// Positions in `loss`.
    pub n: usize,
    /// Positions in `nll`: the last has no next token.
    pub n_next: usize,
    /// Gradient of `loss` with respect to the modules' values; empty unless wanted.
    pub grads: Vec<f32>,
}

impl Outcome {
    /// Adds another window's sums.
    pub fn add(&mut self, other: &Self) {
        self.loss += other.loss;
        self.nll += other.nll;
        self.nll_teacher += other.nll_teacher;
        self.n += other.n;
        self.n_next += other.n_next;
        match self.grads.is_empty() {
            true => self.grads.clone_from(&other.grads),
            false => self.grads.iter_mut().zip(&other.grads).for_each(|(a, b)| *a += b),
        }
    }

    /// The loss per position.
    pub fn mean_loss(&self) -> f64 {
        self.loss / self.n.max(1) as f64
    }

    /// The student's perplexity.
    pub fn perplexity(&self) -> f64 {
        (self.nll / self.n_next.max(1) as f64).exp()
    }

    /// The teacher's perplexity.
    pub fn perplexity_teacher(&self) -> f64 {
        (self.nll_teacher / self.n_next.max(1) as f64).exp()
    }
}

/// One member's work space, allocated by the first pass and kept.
#[derive(Default)]
pub struct Workspace {
    x: Vec<f32>,
    student: Vec<f32>,
    tape: Tape,
    log: Vec<f32>,
    tapes: Vec<Tape>,
    logs: Vec<Vec<f32>>,
    /// The teacher's logarithms in the place of a student's, where layers are taken by themselves.
    taught: Vec<Vec<f32>>,
    asked: Vec<Vec<f32>>,
    /// A buffer of `asked` that is free.
    spare: Vec<f32>,
    scratch: Scratch,
}

/// Most bytes of one of the two buffers of logits.
const LOGIT_BYTES: usize = 64 << 20;

/// Rows of logits made at a time for windows of `n_ctx`.
fn logit_rows(n_vocab: usize, n_ctx: usize) -> usize {
    (LOGIT_BYTES / 4 / n_vocab.max(1)).clamp(1, n_ctx)
}

/// Calls `f` for the layer `i` with the buffer of its logarithms taken out and those of its source's.
fn with_log(logs: &mut [Vec<f32>], all: &Modules, i: usize, f: impl FnOnce(&mut Vec<f32>, Option<&[f32]>)) {
    let mut log = std::mem::take(&mut logs[i]);
    f(&mut log, all.get(i).map(|m| &logs[all.owner(m.source)][..]));
    logs[i] = log;
}

/// What the teacher made of one window.
pub struct Teacher {
    ids: Vec<u32>,
    /// The residual stream before every layer, and after the last.
    streams: Vec<Vec<f32>>,
}

/// A student and its teacher.
pub struct Pair<'a> {
    /// The unchanged model.
    pub model: &'a DenseModel<'a>,
    /// What the student has in its place.
    pub modules: &'a Modules,
}

impl Pair<'_> {
    fn prepare(&self, w: &mut Workspace, ids: &[u32]) {
        assert_eq!(ids.len(), self.model.n_ctx);
        let n = self.model.layers.len();
        w.logs.resize_with(n, Vec::new);
        w.asked.resize_with(n, Vec::new);
        w.asked.iter_mut().for_each(Vec::clear);
        w.x.resize(ids.len() * self.model.n_embd, 0.0);
        self.model.embed(ids, &mut w.x);
    }

    fn is_source(&self, layer: usize) -> bool {
        self.modules.iter().any(|m| self.modules.owner(m.source) == layer)
    }

    /// Runs layer `i` of the teacher on `w.x`, leaving its weights in `w.logs[i]` where they are a source's, else in `w.log`.
    fn teach(&self, w: &mut Workspace, i: usize, keep: bool, finish: bool) {
        let none = Modules::none();
        let pass = LayerPass::new(self.model, &none, i);
        let Workspace { x, tape, log, logs, scratch, .. } = w;
        let log = if keep { &mut logs[i] } else { log };
        pass.begin(x, tape);
        pass.logs(tape, None, log);
        if finish {
            pass.finish(tape, log, x, scratch);
        }
    }

    /// KL(teacher's predictions || student's) of the window `ids`, through all layers, with its gradient where it is wanted.
    pub fn end_to_end(&self, w: &mut Workspace, ids: &[u32], gradient: bool) -> Outcome {
        let n_layer = self.model.layers.len();
        let first = self.modules.first().unwrap_or(n_layer);
        self.prepare(w, ids);
        // Up to the first substituted layer teacher and student are the same.
        for i in 0..first {
            self.teach(w, i, self.is_source(i), true);
        }
        w.student.clone_from(&w.x);
        for i in first..n_layer {
            self.teach(w, i, false, true);
        }
        self.student(w, first, gradient);
        let mut dx = vec![0.0; if gradient { w.x.len() } else { 0 }];
        let mut out = self.predictions(w, ids, &mut dx);
        if gradient {
            out.grads = vec![0.0; self.modules.values.len()];
            self.backward(w, first, &mut dx, &mut out.grads);
        }
        out
    }

    /// What the teacher makes of `ids`.
    pub fn teacher(&self, w: &mut Workspace, ids: &[u32]) -> Teacher {
        self.prepare(w, ids);
        let mut streams = vec![w.x.clone()];
        for i in 0..self.model.layers.len() {
            self.teach(w, i, false, true);
            streams.push(w.x.clone());
        }
        Teacher { ids: ids.to_vec(), streams }
    }

    /// [`Pair::end_to_end`] on a window that the teacher has seen, without a gradient.
    pub fn compare(&self, w: &mut Workspace, taught: &Teacher) -> Outcome {
        let n_layer = self.model.layers.len();
        let first = self.modules.first().unwrap_or(n_layer);
        self.prepare(w, &taught.ids);
        for i in (0..first).filter(|&i| self.is_source(i)) {
            w.x.clone_from(&taught.streams[i]);
            self.teach(w, i, true, false);
        }
        w.student.clone_from(&taught.streams[first]);
        self.student(w, first, false);
        w.x.clone_from(&taught.streams[n_layer]);
        self.predictions(w, &taught.ids, &mut [])
    }

    /// Runs the student's layers from `first` on over `w.student`; keeps what the reverse pass needs where there will be one.
    fn student(&self, w: &mut Workspace, first: usize, gradient: bool) {
        let n_layer = self.model.layers.len();
        w.tapes.resize_with(if gradient { n_layer - first } else { 1 }, Tape::default);
        for i in first..n_layer {
            let Workspace { student, tapes, logs, scratch, .. } = &mut *w;
            let tape = &mut tapes[if gradient { i - first } else { 0 }];
            let pass = LayerPass::new(self.model, self.modules, i);
            pass.begin(student, tape);
            with_log(logs, self.modules, i, |log, source| pass.logs(tape, source, log));
            pass.finish(tape, &logs[self.modules.owner(i)], student, scratch);
        }
    }

    /// The two heads on `w.x` (teacher) and `w.student`; `dx` gets the gradient of the student's last hidden states.
    fn predictions(&self, w: &mut Workspace, ids: &[u32], dx: &mut [f32]) -> Outcome {
        let (m, f) = (self.model, &self.model.kernels.float);
        let (d, v) = (m.n_embd, m.n_vocab);
        let mut out = Outcome { n: ids.len(), n_next: ids.len() - 1, ..Outcome::default() };
        let rows = logit_rows(v, ids.len());
        let [mut hidden, mut teacher, mut student, mut p] =
            [d, v, v, 0].map(|n| vec![0.0; rows * n + if n == 0 { v } else { 0 }]);
        for start in (0..ids.len()).step_by(rows) {
            let n = rows.min(ids.len() - start);
            let part = start * d..(start + n) * d;
            let hidden = &mut hidden[..n * d];
            for (x, logits) in [(&w.x, &mut teacher), (&w.student, &mut student)] {
                normalise(f, &x[part.clone()], Some(&m.output_norm), m.eps, hidden);
                m.head().forward(f, hidden, &mut logits[..n * v]);
                if let Some(cap) = m.logit_softcap {
                    f.soft_cap(&mut logits[..n * v], cap);
                }
            }
            for (i, (t, s)) in teacher.chunks_exact_mut(v).zip(student.chunks_exact_mut(v)).take(n).enumerate() {
                let capped = m.logit_softcap.map(|_| s.to_vec());
                let (max_t, max_s) = (f.max(t), f.max(s));
                p.copy_from_slice(t);
                let sum_t = f.exp_sub_sum(&mut p, max_t);
                f.scale(&mut p, 1.0 / sum_t);
                let log_t = f64::from(max_t) + f64::from(sum_t).ln();
                let next = ids.get(start + i + 1).map(|&id| id as usize);
                let (next_t, next_s) = (next.map(|id| t[id]), next.map(|id| s[id]));
                f.axpy(-1.0, s, t);
                let between = f64::from(f.dot(&p, t));
                let sum_s = f.exp_sub_sum(s, max_s);
                let log_s = f64::from(max_s) + f64::from(sum_s).ln();
                out.loss += between - log_t + log_s;
                out.nll_teacher += next_t.map_or(0.0, |z| log_t - f64::from(z));
                out.nll += next_s.map_or(0.0, |z| log_s - f64::from(z));
                if dx.is_empty() {
                    continue;
                }
                f.scale(s, 1.0 / sum_s);
                f.axpy(-1.0, &p, s);
                if let (Some(cap), Some(z)) = (m.logit_softcap, capped) {
                    s.iter_mut().zip(z).for_each(|(d, z)| *d *= 1.0 - (z / cap) * (z / cap));
                }
            }
            if !dx.is_empty() {
                hidden.fill(0.0);
                m.head().backward(f, &student[..n * v], hidden);
                normalise_backward(f, &w.student[part.clone()], Some(&m.output_norm), m.eps, hidden, &mut dx[part]);
            }
        }
        out
    }

    fn backward(&self, w: &mut Workspace, first: usize, dx: &mut [f32], grads: &mut [f32]) {
        for i in (first..self.model.layers.len()).rev() {
            let Workspace { tapes, logs, asked, spare, scratch, .. } = &mut *w;
            let pass = LayerPass::new(self.model, self.modules, i);
            let owner = self.modules.owner(i);
            let source = self.modules.get(i).map(|m| self.modules.owner(m.source));
            let own = std::mem::take(&mut asked[i]);
            let wanted = source.filter(|&s| s >= first);
            let ask = Asked {
                log: (!own.is_empty()).then_some(&own[..]),
                source: wanted.map(|s| asked_buffer(asked, spare, s, &logs[owner])),
                modules: grads,
                input: i > first,
            };
            pass.backward(&tapes[i - first], &logs[owner], source.map(|s| &logs[s][..]), dx, ask, scratch);
            if !own.is_empty() {
                *spare = own;
            }
        }
    }

    /// Mean over substituted `lisa` layers and heads of KL(teacher's weights || student's), summed over queries, every layer on the
    /// teacher's own inputs; with its gradient where it is wanted. Sources are `chained`, or every layer is given the teacher's
    /// weights, as if it were the only one substituted. No reverse pass through the body.
    pub fn attention(&self, w: &mut Workspace, ids: &[u32], chained: bool, gradient: bool) -> Outcome {
        self.prepare(w, ids);
        w.taught.resize_with(self.model.layers.len(), Vec::new);
        let (f, all) = (&self.model.kernels.float, self.modules);
        let lisa = all.iter().filter(|m| m.kind == Kind::Lisa);
        let (n, count) = (ids.len(), lisa.clone().count());
        let mut out = Outcome { n, ..Outcome::default() };
        let Some(last) = lisa.clone().next_back().map(|m| m.layer) else { return out };
        let first = all.first().unwrap_or(0);
        w.tapes.resize_with(last + 1 - first, Tape::default);
        let mut weights = Vec::new();
        for i in 0..=last {
            let module = all.get(i).filter(|m| m.kind == Kind::Lisa);
            self.teach(w, i, module.is_none() && self.is_source(i), i < last);
            let Some(m) = module else { continue };
            let share = 1.0 / (count * m.n_head) as f32;
            let Workspace { tape, log: teacher, tapes, logs, taught, asked, .. } = &mut *w;
            let own = &mut tapes[i - first];
            own.n.clone_from(&tape.n);
            let pass = LayerPass::new(self.model, all, i);
            if !chained && self.is_source(i) {
                taught[i].clone_from(teacher);
            }
            match all.owner(m.source) {
                s if !chained && all.get(s).is_some() => pass.logs(own, Some(&taught[s]), &mut logs[i]),
                _ => with_log(logs, all, i, |log, source| pass.logs(own, source, log)),
            }
            let c = Causal { n, window: self.model.layers[i].shape.window };
            let dlog = gradient.then(|| zeroed(&mut asked[i], logs[i].len()));
            let mut dlog = dlog;
            for at in (0..m.n_head).flat_map(|h| (0..n).map(move |q| c.row(h, q))) {
                let (t, s) = (&teacher[at.clone()], &logs[i][at.clone()]);
                weights.clear();
                weights.extend_from_slice(t);
                f.exp(&mut weights);
                out.loss += f64::from((f.dot(&weights, t) - f.dot(&weights, s)) * share);
                if let Some(dlog) = dlog.as_deref_mut() {
                    f.axpy(-share, &weights, &mut dlog[at]);
                }
            }
        }
        if gradient {
            out.grads = vec![0.0; all.values.len()];
            self.attention_backward(w, first, chained, &mut out.grads);
        }
        out
    }

    fn attention_backward(&self, w: &mut Workspace, first: usize, chained: bool, grads: &mut [f32]) {
        let (f, all) = (&self.model.kernels.float, self.modules);
        let mut weights = Vec::new();
        for m in all.iter().rev().filter(|m| m.kind == Kind::Lisa) {
            let i = m.layer;
            let Workspace { tapes, logs, taught, asked, spare, .. } = &mut *w;
            let c = Causal { n: self.model.n_ctx, window: self.model.layers[i].shape.window };
            let mut ds = std::mem::take(&mut asked[i]);
            for at in (0..m.n_head).flat_map(|h| (0..c.n).map(move |q| c.row(h, q))) {
                let d = &mut ds[at.clone()];
                weights.clear();
                weights.extend_from_slice(&logs[i][at]);
                f.exp(&mut weights);
                let sum: f32 = d.iter().sum();
                f.axpy(-sum, &weights, d);
            }
            let source = all.owner(m.source);
            let is_student = all.get(source).is_some();
            let wanted = (chained && is_student).then(|| asked_buffer(asked, spare, source, &logs[i]));
            let pass = LayerPass::new(self.model, all, i);
            let given = if is_student && !chained { &taught[source] } else { &logs[source] };
            pass.logs_backward(&tapes[i - first], &logs[i], Some(given), &mut ds, None, grads, wanted);
            asked[i] = ds;
            asked[i].clear();
        }
    }

    /// Bytes that one member's work space takes, with everything the reverse pass of the whole body needs (`end_to_end`) or that
    /// of the attention alone.
    pub fn workspace_bytes(&self, end_to_end: bool) -> u64 {
        let (d, modules) = (self.model, self.modules);
        let n_ctx = d.n_ctx;
        let first = modules.first().unwrap_or(0);
        let of_layer = |i: usize, whole: bool| {
            let (l, s) = (&d.layers[i], d.layers[i].shape);
            let dim = modules.get(i).map_or(s.head_dim_k, |m| m.rank);
            let low = (s.n_head + s.n_head_kv) * dim + d.n_embd;
            let logs = s.n_head * n_ctx;
            let body = 5 * d.n_embd + 2 * l.ffn.n_hidden() + s.n_head_kv * s.head_dim_v + s.n_head * s.head_dim_v;
            4 * n_ctx as u64 * (low + logs + if whole { body } else { 0 }) as u64
        };
        let n_layer = d.layers.len();
        let pair = (0..n_layer).map(|i| 2 * of_layer(i, true)).max().unwrap_or(0);
        let rows = logit_rows(d.n_vocab, n_ctx);
        let layers: u64 = match end_to_end {
            true => (first..n_layer).map(|i| of_layer(i, true)).sum::<u64>() + 4 * (2 * rows * d.n_vocab) as u64,
            // Each with its gradient.
            false => modules.iter().map(|m| 2 * of_layer(m.layer, false)).sum(),
        };
        pair + layers + 2 * 4 * modules.values.len() as u64
    }
}

/// The buffer of what is asked of layer `i`, of the length of `like`.
fn asked_buffer<'b>(asked: &'b mut [Vec<f32>], spare: &mut Vec<f32>, i: usize, like: &[f32]) -> &'b mut [f32] {
    if asked[i].is_empty() {
        std::mem::swap(&mut asked[i], spare);
        asked[i].clear();
        asked[i].resize(like.len(), 0.0);
    }
    &mut asked[i]
}
