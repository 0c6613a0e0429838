//! The operations of a forward pass. Each is one phase: members share the work out, and all wait at the end until the
//! result is complete, so that a pass reads as a plain sequence of steps.

use std::ops::Range;

use ggml_ext::kernels::float::FloatKernels;
use ggml_ext::kernels::{Digits, Kernels, MatmulScratch, takes_bf16};
use ggml_ext::pack::{MatrixRef, ROWS};

use super::buffer::Rounded;
use super::chunks::Chunks;
use super::{Linear, Matrix, Norm, Operand, SharedBuf, Stack, Worker, mean, sigmoid};

/// One member's tools: its place in the team, the kernels, its scratch.
pub struct Ops<'a> {
    /// The member.
    pub worker: &'a Worker<'a>,
    /// The kernel table of this CPU.
    pub kernels: &'static Kernels,
    /// Work space of the matrix kernels.
    pub scratch: &'a mut MatmulScratch,
    /// Looks on, where somebody wants to know what the matrices are multiplied with.
    pub observer: Option<&'a dyn Observer>,
}

/// Sees the operands of matrix products, from several threads at once.
pub trait Observer: Send + Sync {
    /// `rows`, whole rows of as many values as the matrix has columns, are about to be multiplied with `linear`. Of the parts
    /// of one tensor that meet the same rows only one is told.
    fn operand(&self, linear: &Linear, rows: &[f32]);

    /// The same of one `matrix` of a stack: of an expert, or of a head.
    fn stack_operand(&self, stack: &Stack, matrix: usize, rows: &[f32]);
}

/// A matrix product: the matrix, and the buffer for its result.
pub type Job<'j> = (&'j Linear, &'j SharedBuf<f32>);

/// The gate's activation function in a gated feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Act {
    /// x * sigmoid(x): SwiGLU.
    Silu,
    /// The tanh approximation of x * Phi(x): GeGLU.
    Gelu,
    /// [`FloatKernels::clamped_swiglu`].
    ClampedSwiglu,
    /// SwiGLU whose gates are at most this after their activation, and what they gate within it and its negative.
    CappedSwiglu(f32),
    /// The same whose gates are at most this before their activation.
    ClippedSwiglu(f32),
    /// What is above 0: ReGLU (arXiv 2002.05202).
    Relu,
    /// The square of what is above 0 (arXiv 2109.08668).
    ReluSquared,
    /// A square above 0, an exponential below.
    Xielu(Xielu),
}

/// The numbers of xIELU (arXiv 2411.13010): `alpha_p x^2 + beta x` above 0, `alpha_n (e^min(x, eps) - 1 - x) + beta x` below.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Xielu {
    /// Of the exponential.
    pub alpha_n: f32,
    /// Of the square.
    pub alpha_p: f32,
    /// The slope at 0.
    pub beta: f32,
    /// Where the exponential ends, just below 0.
    pub eps: f32,
}

impl Act {
    /// `out = act(gate) * up`.
    pub fn gate(self, kernels: &FloatKernels, gate: &[f32], up: &[f32], out: &mut [f32]) {
        match self {
            Self::Silu => kernels.silu_mul(gate, up, out),
            Self::Gelu => kernels.gelu_mul(gate, up, out),
            Self::ClampedSwiglu => kernels.clamped_swiglu(gate, up, out),
            Self::CappedSwiglu(limit) => {
                Self::Silu.alone(kernels, gate, out);
                out.iter_mut().zip(up).for_each(|(out, up)| *out = out.min(limit) * up.clamp(-limit, limit));
            }
            Self::ClippedSwiglu(limit) => {
                out.iter_mut().zip(gate).for_each(|(out, gate)| *out = gate.min(limit));
                kernels.silu(out);
                out.iter_mut().zip(up).for_each(|(out, up)| *out *= up.clamp(-limit, limit));
            }
            Self::Relu | Self::ReluSquared | Self::Xielu(_) => {
                self.alone(kernels, gate, out);
                kernels.mul_assign(out, up);
            }
        }
    }

    /// `out = act(x)`, of networks without gates.
    ///
    /// # Panics
    /// For [`Act::ClampedSwiglu`], [`Act::CappedSwiglu`] and [`Act::ClippedSwiglu`], which are gates.
    pub fn alone(self, kernels: &FloatKernels, x: &[f32], out: &mut [f32]) {
        out.copy_from_slice(x);
        match self {
            Self::Silu => kernels.silu(out),
            Self::Gelu => kernels.gelu(out),
            Self::ClampedSwiglu | Self::CappedSwiglu(_) | Self::ClippedSwiglu(_) => panic!("a gate alone"),
            Self::Relu => kernels.relu(out),
            Self::ReluSquared => {
                kernels.relu(out);
                out.iter_mut().for_each(|x| *x *= *x);
            }
            Self::Xielu(Xielu { alpha_n, alpha_p, beta, eps }) => {
                out.iter_mut().for_each(|x| *x = x.min(eps));
                kernels.exp(out);
                for (out, &x) in out.iter_mut().zip(x) {
                    let curved = if x > 0.0 { alpha_p * x * x } else { alpha_n * (*out - 1.0 - x) };
                    *out = curved + beta * x;
                }
            }
        }
    }
}

impl Ops<'_> {
    /// `out[i] = scale * table[of(i)]` for the first `n` rows of `out`: embeddings of tokens, or of positions.
    pub fn embed(&mut self, table: &Matrix, n: usize, of: impl Fn(usize) -> usize, scale: f32, out: &SharedBuf<f32>) {
        let len = table.cols();
        for i in self.worker.share(n) {
            // SAFETY: rows are shared out disjointly.
            let row = unsafe { out.get_mut(i * len..(i + 1) * len) };
            table.row(of(i), row);
            if scale != 1.0 {
                self.kernels.float.scale(row, scale);
            }
        }
        self.worker.barrier();
    }

    /// `out = norm(x)`, row by row of `rows`, from the first on; without a norm `x` as it is.
    pub fn norm(&mut self, x: &SharedBuf<f32>, rows: Range<usize>, norm: Option<&Norm>, eps: f32, out: Operand) {
        let n = out.k();
        for i in self.worker.share(rows.len()) {
            let t = rows.start + i;
            // SAFETY: rows are shared out disjointly, and nobody writes `x` in this phase.
            unsafe {
                let x = x.get(t * n..(t + 1) * n);
                norm_or_copy(self.kernels, x, norm, eps, out.row_mut(i));
                out.finish_row(self.kernels, i);
            }
        }
        self.worker.barrier();
    }

    /// Adds a sub-layer's result to `rows` of the residual stream and normalises these for the next: `x = scale * (x + delta)`, with `delta`
    /// itself normalised first where the family has `post` norms, then `out = norm(x)`, or `x` without a norm. `delta` and `out` have
    /// these rows alone.
    #[allow(clippy::too_many_arguments)]
    pub fn residual_norm(
        &mut self,
        x: &SharedBuf<f32>,
        rows: Range<usize>,
        delta: &SharedBuf<f32>,
        post: Option<&Norm>,
        scale: f32,
        norm: Option<&Norm>,
        eps: f32,
        out: Operand,
    ) {
        let (k, n) = (&self.kernels.float, out.k());
        for i in self.worker.share(rows.len()) {
            let t = rows.start + i;
            // SAFETY: rows are shared out disjointly.
            unsafe {
                let (x, delta) = (x.get_mut(t * n..(t + 1) * n), delta.get_mut(i * n..(i + 1) * n));
                let row = out.row_mut(i);
                match post {
                    Some(post) => {
                        post.apply(k, delta, eps, row);
                        k.add_assign(x, row);
                    }
                    None => k.add_assign(x, delta),
                }
                if scale != 1.0 {
                    k.scale(x, scale);
                }
                norm_or_copy(self.kernels, x, norm, eps, row);
                out.finish_row(self.kernels, i);
            }
        }
        self.worker.barrier();
    }

    /// `x = norm(x)` for the first `n` rows, which no product has met yet.
    pub fn norm_operand(&mut self, x: Operand, n: usize, norm: &Norm, eps: f32) {
        for i in self.worker.share(n) {
            // SAFETY: rows are shared out disjointly.
            unsafe {
                norm.apply_in_place(&self.kernels.float, x.row_mut(i), eps);
                x.finish_row(self.kernels, i);
            }
        }
        self.worker.barrier();
    }

    /// `x = norm(x)` for the first `n` rows.
    pub fn norm_in_place(&mut self, x: &SharedBuf<f32>, n: usize, norm: &Norm, eps: f32) {
        let len = norm.weight.len();
        for i in self.worker.share(n) {
            // SAFETY: rows are shared out disjointly.
            norm.apply_in_place(&self.kernels.float, unsafe { x.get_mut(i * len..(i + 1) * len) }, eps);
        }
        self.worker.barrier();
    }

    /// The inner values of a gated feed-forward network, `out = act(W_gate x) * (W_up x)`, in one phase: what the two products give becomes
    /// the operand of `down` as it is made. False, with nothing done, where it does not: in other forms than bf16, with biases, or if
    /// somebody looks on.
    pub fn gated_products(
        &mut self,
        x: Operand,
        rows: Range<usize>,
        [gate, up, down]: [&Linear; 3],
        act: Act,
        out: Operand,
    ) -> bool {
        let [w, v, d] = [gate, up, down].map(|linear| linear.weight.view());
        let (Rounded::Bf16(x, digits), Rounded::Bf16(to, out_digits)) = (x.rounded(), out.rounded()) else {
            return false;
        };
        let plain = self.observer.is_none() && [gate, up].iter().all(|l| l.bias.is_none() && l.scale.is_none());
        if !plain || (w.ty, w.packed) != (v.ty, v.packed) || !takes_bf16(&w) || !takes_bf16(&d) {
            return false;
        }
        // Floats are multiplied in two digits however many are asked for.
        let out_digits = if d.packed { out_digits } else { Digits::Two };
        let chunks = Chunks::new(w.rows / ROWS, self.worker.n);
        let (worker, kernels) = (self.worker, self.kernels);
        worker.for_each_chunk(chunks.n_chunks(), |c| {
            let part = chunks.chunk(c);
            let (part, act) = (part.start * ROWS..part.end * ROWS, |g: &[f32], u: &[f32], o: &mut [f32]| {
                act.gate(&kernels.float, g, u, o)
            });
            // SAFETY: chunks are handed out once each, so these elements of all rows are this member's; nobody writes `x` in this phase.
            unsafe {
                let x = x.view(rows.clone());
                kernels.int.matmul_gated_bf16([&w, &v], part, x, digits, &act, self.scratch, (to, out_digits))
            }
        });
        worker.barrier();
        true
    }

    /// `x = max(x - mean - deviations * std, 0)` with the mean and the (sample) standard deviation of each of the first `n_rows` rows of `n`.
    pub fn cut(&self, x: &SharedBuf<f32>, n_rows: usize, n: usize, deviations: f32) {
        for i in self.worker.share(n_rows) {
            // SAFETY: rows are shared out disjointly.
            let row = unsafe { x.get_mut(i * n..(i + 1) * n) };
            let mean = mean(row);
            row.iter_mut().for_each(|x| *x -= mean);
            let variance = self.kernels.float.dot(row, row) / (n as f32 - 1.0).max(1.0);
            let cut = deviations * variance.sqrt();
            row.iter_mut().for_each(|x| *x = (*x - cut).max(0.0));
        }
        self.worker.barrier();
    }

    /// `out = act(gate) * up`, row by row.
    pub fn gated(&mut self, act: Act, gate: &SharedBuf<f32>, up: &SharedBuf<f32>, n_rows: usize, out: Operand) {
        let n = out.k();
        self.gated_by(act, gate, up, |i| i * n, n_rows, out);
    }

    /// The same where gates and what they gate are the halves of a row.
    pub fn gated_halves(&mut self, act: Act, x: &SharedBuf<f32>, n_rows: usize, out: Operand) {
        let n = out.k();
        for i in self.worker.share(n_rows) {
            // SAFETY: rows are shared out disjointly, and nobody writes the operand in this phase.
            unsafe {
                let (gate, up) = x.get(i * 2 * n..(i + 1) * 2 * n).split_at(n);
                act.gate(&self.kernels.float, gate, up, out.row_mut(i));
                out.finish_row(self.kernels, i);
            }
        }
        self.worker.barrier();
    }

    /// `out = act(x)`, row by row.
    pub fn activated(&mut self, act: Act, x: &SharedBuf<f32>, n_rows: usize, out: Operand) {
        let n = out.k();
        for i in self.worker.share(n_rows) {
            // SAFETY: rows are shared out disjointly, and nobody writes `x` in this phase.
            unsafe {
                act.alone(&self.kernels.float, x.get(i * n..(i + 1) * n), out.row_mut(i));
                out.finish_row(self.kernels, i);
            }
        }
        self.worker.barrier();
    }

    /// [`Ops::gated`] where row `i` of `up` begins at `at(i)`.
    pub fn gated_by(
        &mut self,
        act: Act,
        gate: &SharedBuf<f32>,
        up: &SharedBuf<f32>,
        at: impl Fn(usize) -> usize,
        n_rows: usize,
        out: Operand,
    ) {
        let n = out.k();
        for i in self.worker.share(n_rows) {
            // SAFETY: rows are shared out disjointly, and nobody writes the operands in this phase.
            unsafe {
                let (gate, up) = (gate.get(i * n..(i + 1) * n), up.get(at(i)..at(i) + n));
                act.gate(&self.kernels.float, gate, up, out.row_mut(i));
                out.finish_row(self.kernels, i);
            }
        }
        self.worker.barrier();
    }

    /// `y[..n] += x[..n]`.
    pub fn add(&mut self, y: &SharedBuf<f32>, x: &SharedBuf<f32>, n: usize) {
        let part = self.worker.share(n);
        // SAFETY: shared out disjointly, and nobody writes `x` in this phase.
        unsafe { self.kernels.float.add_assign(y.get_mut(part.clone()), x.get(part)) };
        self.worker.barrier();
    }

    /// `y[..n] = x[..n]`.
    pub fn copy(&mut self, y: &SharedBuf<f32>, x: &SharedBuf<f32>, n: usize) {
        let part = self.worker.share(n);
        // SAFETY: shared out disjointly, and nobody writes `x` in this phase.
        unsafe { y.get_mut(part.clone()).copy_from_slice(x.get(part)) };
        self.worker.barrier();
    }

    /// `y += factor * x`: to the rows of `y`, from the first on, `rows` of `x`, all of `len` values.
    pub fn add_rows(&mut self, y: &SharedBuf<f32>, x: &SharedBuf<f32>, rows: Range<usize>, factor: f32, len: usize) {
        for i in self.worker.share(rows.len()) {
            let t = rows.start + i;
            // SAFETY: rows are shared out disjointly, and nobody writes `x` in this phase.
            unsafe {
                self.kernels.float.axpy(factor, x.get(t * len..(t + 1) * len), y.get_mut(i * len..(i + 1) * len));
            }
        }
        self.worker.barrier();
    }

    /// `y = factor * x`: in `rows` of `y` the rows of an operand, from the first on.
    pub fn take_back(&mut self, y: &SharedBuf<f32>, rows: Range<usize>, x: Operand, factor: f32) {
        let len = x.k();
        for i in self.worker.share(rows.len()) {
            let t = rows.start + i;
            // SAFETY: rows are shared out disjointly, and nobody writes the operand in this phase.
            let (y, x) = unsafe { (y.get_mut(t * len..(t + 1) * len), x.f32(i..i + 1)) };
            y.copy_from_slice(x);
            self.kernels.float.scale(y, factor);
        }
        self.worker.barrier();
    }

    /// `y = norm(y) + norm(x)` with norms of their own, for the first `n` rows.
    pub fn add_normed(&mut self, y: &SharedBuf<f32>, x: &SharedBuf<f32>, n: usize, norms: [&[f32]; 2], eps: f32) {
        let (k, len) = (&self.kernels.float, norms[0].len());
        for i in self.worker.share(n) {
            let row = i * len..(i + 1) * len;
            // SAFETY: rows are shared out disjointly.
            let (y, x) = unsafe { (y.get_mut(row.clone()), x.get_mut(row)) };
            k.rms_norm_in_place(y, norms[0], eps);
            k.rms_norm_in_place(x, norms[1], eps);
            k.add_assign(y, x);
        }
        self.worker.barrier();
    }

    /// `y += sigmoid(gate . x) * z` for the first `n` rows, all as long as `gate`: a result that every token weighs by itself.
    pub fn add_gated(&mut self, y: &SharedBuf<f32>, z: &SharedBuf<f32>, n: usize, x: Operand, gate: &[f32]) {
        let (k, len) = (&self.kernels.float, gate.len());
        for i in self.worker.share(n) {
            // SAFETY: rows are shared out disjointly, and nobody writes the operands in this phase.
            unsafe {
                let weight = sigmoid(k.dot(gate, x.f32(i..i + 1)));
                k.axpy(weight, z.get(i * len..(i + 1) * len), y.get_mut(i * len..(i + 1) * len));
            }
        }
        self.worker.barrier();
    }

    /// `out_j = W_j x + b_j` for every row of `x` and every job `j`, in one phase: products that share an operand
    /// (Q, K, V; gate, up) leave no member idle between them.
    pub fn linear<const N: usize>(&mut self, x: Operand, rows: Range<usize>, jobs: &[Job; N]) {
        self.linear_some(x, rows, &jobs.map(Some));
    }

    /// [`Ops::linear`] for the jobs that are there.
    pub fn linear_some(&mut self, x: Operand, rows: Range<usize>, jobs: &[Option<Job>]) {
        let jobs = || jobs.iter().flatten();
        if let Some(observer) = self.observer {
            self.show(observer, x, rows.clone(), jobs().map(|(l, _)| *l));
        }
        self.all_products(rows, jobs().map(|&job| (x, job)));
    }

    /// [`Ops::linear`] for jobs with operands of their own, all of them with these rows.
    pub fn linear_apart(&mut self, rows: Range<usize>, jobs: &[(Operand, Job)]) {
        if let Some(observer) = self.observer {
            jobs.iter().for_each(|(x, (l, _))| self.show(observer, *x, rows.clone(), [*l].into_iter()));
        }
        self.all_products(rows, jobs.iter().copied());
    }

    /// All of `jobs` in one phase.
    fn all_products<'j>(&mut self, rows: Range<usize>, jobs: impl Iterator<Item = (Operand<'j>, Job<'j>)> + Clone) {
        let n_groups = |linear: &Linear| linear.weight.rows().div_ceil(ROWS);
        let chunks = Chunks::new(jobs.clone().map(|(_, (l, _))| n_groups(l)).sum(), self.worker.n);
        let worker = self.worker;
        worker.for_each_chunk(chunks.n_chunks(), |c| {
            let chunk = chunks.chunk(c);
            let mut first = 0;
            for (x, (linear, out)) in jobs.clone() {
                let end = first + n_groups(linear);
                let groups = chunk.start.max(first)..chunk.end.min(end);
                if !groups.is_empty() {
                    let part = (groups.start - first) * ROWS..((groups.end - first) * ROWS).min(linear.weight.rows());
                    self.product(x, rows.clone(), linear, part, out);
                }
                first = end;
            }
        });
        worker.barrier();
    }

    /// Shows the operand of the products with `linears`, which members take in turn, to an observer.
    fn show<'l>(
        &self,
        observer: &dyn Observer,
        x: Operand,
        rows: Range<usize>,
        linears: impl Iterator<Item = &'l Linear> + Clone,
    ) {
        // SAFETY: nobody writes `x` in this phase.
        let rows = unsafe { x.f32(rows) };
        for (i, linear) in linears.clone().enumerate().filter(|(i, _)| i % self.worker.n == self.worker.id) {
            if linears.clone().take(i).all(|earlier| earlier.name != linear.name) {
                observer.operand(linear, rows);
            }
        }
    }

    fn product(&mut self, x: Operand, rows: Range<usize>, linear: &Linear, part: Range<usize>, out: &SharedBuf<f32>) {
        let (w, n) = (linear.weight.view(), linear.weight.rows());
        assert!(rows.len() * n <= out.len() && w.cols == x.k());
        // SAFETY: chunks are handed out once each, so columns `part` of every output row are this member's; the
        // assertion keeps all of them inside `out`; nobody writes `x` in this phase.
        unsafe {
            self.multiply(x, rows.clone(), &w, part.clone(), out.as_ptr(), n);
            for i in 0..rows.len() {
                let row = i * n + part.start..i * n + part.end;
                if let Some(scale) = linear.scale {
                    self.kernels.float.scale(out.get_mut(row.clone()), scale);
                }
                if let Some(bias) = &linear.bias {
                    self.kernels.float.add_assign(out.get_mut(row), &bias[part.clone()]);
                }
            }
        }
    }

    /// Rows `part` of `w` with `rows` of `x`, in the form that both have; the first of `rows` gives the row at `y`, and each begins `stride`
    /// elements after the one before.
    ///
    /// # Safety
    /// Nobody writes `rows` of `x` before the next barrier, and columns `part` of as many rows at `y` are this member's.
    pub(super) unsafe fn multiply(
        &mut self,
        x: Operand,
        rows: Range<usize>,
        w: &MatrixRef,
        part: Range<usize>,
        y: *mut f32,
        stride: usize,
    ) {
        let (int, scratch) = (&self.kernels.int, &mut *self.scratch);
        // SAFETY: passed on to the caller.
        unsafe {
            match x.rounded() {
                Rounded::Int8(q8) if !w.ty.is_float() => int.matmul(w, part, q8.view(rows), scratch, y, stride),
                Rounded::Bf16(bf16, digits) if takes_bf16(w) => {
                    int.matmul_bf16(w, part, bf16.view(rows), digits, scratch, y, stride)
                }
                _ => int.matmul_f32(w, part, x.f32(rows), scratch, y, stride),
            }
        }
    }
}

/// `out = norm(x)`, or `x` without a norm.
fn norm_or_copy(kernels: &Kernels, x: &[f32], norm: Option<&Norm>, eps: f32, out: &mut [f32]) {
    match norm {
        Some(norm) => norm.apply(&kernels.float, x, eps, out),
        None => out.copy_from_slice(x),
    }
}
