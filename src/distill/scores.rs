//! Attention over one window, forward and in reverse: scores, their softmax, weighted values. Scores and their logarithms
//! lie as `[n_head][n][n]`, of which a query's row uses the keys it sees; what lies beyond is never read.

use std::ops::Range;

use ggml_ext::kernels::float::{FloatKernels, Rows, RowsMut};

use super::dense::transpose;
use crate::attention::subtract_distances;

/// Queries that go through the products together.
const BLOCK: usize = 64;

/// The heads of a product between queries `[n][n_head * dim]` and keys or values `[n][n_head_kv * dim]`.
#[derive(Debug, Clone, Copy)]
pub struct HeadShape {
    /// Query heads.
    pub n_head: usize,
    /// Key/value heads.
    pub n_head_kv: usize,
    /// Length of a head.
    pub dim: usize,
}

/// Which keys queries see.
#[derive(Debug, Clone, Copy)]
pub struct Causal {
    /// Tokens of the window of text.
    pub n: usize,
    /// Positions a query sees, itself included; `None`: all before it.
    pub window: Option<usize>,
}

impl Causal {
    /// The keys that query `i` sees.
    pub fn span(&self, i: usize) -> Range<usize> {
        self.window.map_or(0, |w| (i + 1).saturating_sub(w))..i + 1
    }

    /// Blocks of queries, with the keys that any of them sees.
    fn blocks(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + use<> {
        let this = *self;
        (0..self.n).step_by(BLOCK).map(move |i| {
            let end = (i + BLOCK).min(this.n);
            (i..end, this.span(i).start..end)
        })
    }

    /// Where the row of `head` and query `i` lies: the keys it sees.
    pub fn row(&self, head: usize, i: usize) -> Range<usize> {
        let (at, span) = ((head * self.n + i) * self.n, self.span(i));
        at + span.start..at + span.end
    }
}

impl HeadShape {
    fn kv(&self, head: usize) -> usize {
        head / (self.n_head / self.n_head_kv)
    }

    fn q_at(&self, head: usize, i: usize) -> usize {
        (i * self.n_head + head) * self.dim
    }

    fn k_at(&self, head: usize, j: usize) -> usize {
        (j * self.n_head_kv + self.kv(head)) * self.dim
    }

    fn q<'a>(&self, q: &'a [f32], head: usize, i: &Range<usize>) -> Rows<'a, f32> {
        Rows::new(&q[self.q_at(head, i.start)..], i.len(), self.dim, self.n_head * self.dim)
    }

    fn q_mut<'a>(&self, q: &'a mut [f32], head: usize, i: &Range<usize>) -> RowsMut<'a, f32> {
        RowsMut::new(&mut q[self.q_at(head, i.start)..], i.len(), self.dim, self.n_head * self.dim)
    }

    fn k<'a>(&self, k: &'a [f32], head: usize, j: &Range<usize>) -> Rows<'a, f32> {
        Rows::new(&k[self.k_at(head, j.start)..], j.len(), self.dim, self.n_head_kv * self.dim)
    }

    fn k_mut<'a>(&self, k: &'a mut [f32], head: usize, j: &Range<usize>) -> RowsMut<'a, f32> {
        RowsMut::new(&mut k[self.k_at(head, j.start)..], j.len(), self.dim, self.n_head_kv * self.dim)
    }
}

/// `out[h][i][j] = scale * q[i][h] . k[j][kv(h)]`.
pub fn scores(f: &FloatKernels, s: HeadShape, c: Causal, scale: f32, q: &[f32], k: &[f32], out: &mut [f32]) {
    for head in 0..s.n_head {
        for (i, j) in c.blocks() {
            let into = RowsMut::new(&mut out[(head * c.n + i.start) * c.n + j.start..], i.len(), j.len(), c.n);
            f.sgemm_nt(scale, s.q(q, head, &i), s.k(k, head, &j), into);
        }
    }
}

/// Takes off every score what its head's slope makes of the distance between query and key.
pub fn linear_biases(c: Causal, slopes: &[f32], out: &mut [f32]) {
    for (head, &slope) in slopes.iter().enumerate() {
        for i in 0..c.n {
            subtract_distances(&mut out[c.row(head, i)], slope, c.span(i).start, i);
        }
    }
}

/// The gradients of [`scores`], added to `dq` and `dk`.
#[allow(clippy::too_many_arguments)]
pub fn scores_backward(
    f: &FloatKernels,
    s: HeadShape,
    c: Causal,
    scale: f32,
    q: &[f32],
    k: &[f32],
    d: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
) {
    let (mut part, mut turned) = (vec![0.0; BLOCK * c.n], vec![0.0; BLOCK * c.n]);
    for head in 0..s.n_head {
        for (i, j) in c.blocks() {
            let n = j.len();
            for (row, i) in part.chunks_exact_mut(n).zip(i.clone()) {
                let span = c.span(i);
                row.fill(0.0);
                let row = &mut row[span.start - j.start..span.end - j.start];
                row.copy_from_slice(&d[c.row(head, i)]);
                f.scale(row, scale);
            }
            f.sgemm_nn_acc(Rows::new(&part, i.len(), n, n), s.k(k, head, &j), s.q_mut(dq, head, &i));
            transpose(&part, n, i.len(), n, &mut turned);
            f.sgemm_nn_acc(Rows::new(&turned, n, i.len(), i.len()), s.q(q, head, &i), s.k_mut(dk, head, &j));
        }
    }
}

/// Scores to the logarithms of attention weights, after a soft cap where there is one. `lse` gets what was subtracted, `[n_head][n]`.
pub fn log_softmax(f: &FloatKernels, n_head: usize, c: Causal, cap: Option<f32>, s: &mut [f32], lse: &mut [f32]) {
    let mut copy = vec![0.0; c.n];
    for head in 0..n_head {
        for i in 0..c.n {
            let row = &mut s[c.row(head, i)];
            if let Some(cap) = cap {
                f.soft_cap(row, cap);
            }
            let max = f.max(row);
            let copy = &mut copy[..row.len()];
            copy.copy_from_slice(row);
            let log = max + f.exp_sub_sum(copy, max).ln();
            row.iter_mut().for_each(|x| *x -= log);
            lse[head * c.n + i] = log;
        }
    }
}

/// The weights of a block of queries: zero where a query does not see a key.
fn weights(f: &FloatKernels, c: Causal, head: usize, i: &Range<usize>, j: &Range<usize>, log: &[f32], out: &mut [f32]) {
    for (row, i) in out.chunks_exact_mut(j.len()).zip(i.clone()) {
        let span = c.span(i);
        row.fill(0.0);
        let row = &mut row[span.start - j.start..span.end - j.start];
        row.copy_from_slice(&log[c.row(head, i)]);
        f.exp(row);
    }
}

/// `out[i][h] = sum_j exp(log[h][i][j]) v[j][kv(h)]`.
pub fn weighted_values(f: &FloatKernels, s: HeadShape, c: Causal, log: &[f32], v: &[f32], out: &mut [f32]) {
    let mut part = vec![0.0; BLOCK * c.n];
    out.fill(0.0);
    for head in 0..s.n_head {
        for (i, j) in c.blocks() {
            weights(f, c, head, &i, &j, log, &mut part);
            let part = Rows::new(&part, i.len(), j.len(), j.len());
            f.sgemm_nn_acc(part, s.k(v, head, &j), s.q_mut(out, head, &i));
        }
    }
}

/// The gradients of [`weighted_values`] and the softmax before it: `dv` grows by those of the values (where it is wanted),
/// `ds` gets those of the scores. `dlog`, where there is one, is what other layers ask of the logarithms.
#[allow(clippy::too_many_arguments)]
pub fn weighted_values_backward(
    f: &FloatKernels,
    s: HeadShape,
    c: Causal,
    log: &[f32],
    v: &[f32],
    dout: &[f32],
    dlog: Option<&[f32]>,
    mut dv: Option<&mut [f32]>,
    ds: &mut [f32],
) {
    let (mut part, mut turned) = (vec![0.0; BLOCK * c.n], vec![0.0; BLOCK * c.n]);
    for head in 0..s.n_head {
        for (i, j) in c.blocks() {
            let n = j.len();
            weights(f, c, head, &i, &j, log, &mut part);
            if let Some(dv) = dv.as_deref_mut() {
                transpose(&part, n, i.len(), n, &mut turned);
                f.sgemm_nn_acc(Rows::new(&turned, n, i.len(), i.len()), s.q(dout, head, &i), s.k_mut(dv, head, &j));
            }
            let into = RowsMut::new(&mut ds[(head * c.n + i.start) * c.n + j.start..], i.len(), n, c.n);
            f.sgemm_nt(1.0, s.q(dout, head, &i), s.k(v, head, &j), into);
            for (a, i) in part.chunks_exact(n).zip(i.clone()) {
                let (span, at) = (c.span(i), c.row(head, i));
                let (a, d) = (&a[span.start - j.start..span.end - j.start], &mut ds[at.clone()]);
                let mean = f.dot(a, d);
                let asked = dlog.map(|g| &g[at]);
                // A score moves its own weight, and through the sum all others of the row.
                let pull = mean + asked.map_or(0.0, |g| g.iter().sum());
                match asked {
                    None => d.iter_mut().zip(a).for_each(|(d, a)| *d = a * (*d - pull)),
                    Some(g) => d.iter_mut().zip(a).zip(g).for_each(|((d, a), g)| *d = a * (*d - pull) + g),
                }
            }
        }
    }
}

/// The gradient before a soft cap from that after it; the capped scores are `log + lse`.
pub fn soft_cap_backward(n_head: usize, c: Causal, cap: f32, log: &[f32], lse: &[f32], ds: &mut [f32]) {
    for head in 0..n_head {
        for i in 0..c.n {
            let (at, lse) = (c.row(head, i), lse[head * c.n + i]);
            for (d, log) in ds[at.clone()].iter_mut().zip(&log[at]) {
                let t = (log + lse) / cap;
                *d *= 1.0 - t * t;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distill::testing::{check, noise};
    use ggml_ext::kernels::Kernels;

    const N: usize = 70;

    fn run(window: Option<usize>, cap: Option<f32>) {
        let f = &Kernels::detect().float;
        let (s, c) = (HeadShape { n_head: 4, n_head_kv: 2, dim: 6 }, Causal { n: N, window });
        let (nq, nk, ns) = (N * 4 * 6, N * 2 * 6, 4 * N * N);
        let x = noise(1, nq + 2 * nk, 1.0);
        let target = noise(2, nq + ns, 1.0);
        // A function of queries, keys and values: of the output, and of the logarithms themselves as a later layer sees them.
        let forward = |x: &[f32]| {
            let (mut log, mut lse, mut out) = (vec![0.0; ns], vec![0.0; 4 * N], vec![0.0; nq]);
            scores(f, s, c, 0.5, &x[..nq], &x[nq..nq + nk], &mut log);
            log_softmax(f, 4, c, cap, &mut log, &mut lse);
            weighted_values(f, s, c, &log, &x[nq + nk..], &mut out);
            let seen = (0..4).flat_map(|h| (0..N).flat_map(move |i| c.row(h, i)));
            let extra: f64 = seen.map(|at| f64::from(log[at]) * f64::from(target[nq + at]) * 0.1).sum();
            (extra + out.iter().zip(&target).map(|(a, b)| f64::from(a * b)).sum::<f64>(), log, lse)
        };
        let (_, log, lse) = forward(&x);
        let asked: Vec<f32> = target[nq..].iter().map(|t| 0.1 * t).collect();
        let (mut ds, mut grad) = (vec![0.0; ns], vec![0.0; x.len()]);
        let (dqk, dv) = grad.split_at_mut(nq + nk);
        weighted_values_backward(f, s, c, &log, &x[nq + nk..], &target[..nq], Some(&asked), Some(dv), &mut ds);
        if let Some(cap) = cap {
            soft_cap_backward(4, c, cap, &log, &lse, &mut ds);
        }
        let (dq, dk) = dqk.split_at_mut(nq);
        scores_backward(f, s, c, 0.5, &x[..nq], &x[nq..nq + nk], &ds, dq, dk);
        check(&x, &grad, |x| forward(x).0);
    }

    #[test]
    fn gradients_match_finite_differences() {
        run(None, None);
        run(Some(9), None);
        run(None, Some(2.0));
    }
}
