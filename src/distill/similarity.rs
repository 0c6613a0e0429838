//! How alike the attention weights of layers are: cosine and Jensen-Shannon divergence, head by head as they are, and after
//! the matching of heads that makes them most alike.

use ggml_ext::kernels::float::{Rows, RowsMut};

use super::dense::DenseModel;
use super::layer::{LayerPass, Scratch, Tape};
use super::modules::Modules;
use super::scores::Causal;
use super::student::Workspace;
use super::team::Team;

/// Of the queries of a window, one in so many is looked at: neighbours tell much the same.
const QUERY_STEP: usize = 8;

/// All pairs of heads of all layers, one layer's after the other's, summed over windows.
struct Sums {
    /// Products of weights, the number of all heads squared.
    dot: Vec<f64>,
    /// Jensen-Shannon divergences in nats, summed over queries.
    divergence: Vec<f64>,
    n_queries: usize,
}

/// Similarities of all pairs of layers, `[n_layer][n_layer]`, means over heads; NaN for layers that have not as many heads.
#[derive(Debug, Clone, PartialEq)]
pub struct Similarity {
    /// Layers.
    pub n_layer: usize,
    /// Cosine of the weights.
    pub cosine: Vec<f64>,
    /// Jensen-Shannon divergence of the weights in nats, at most ln 2.
    pub divergence: Vec<f64>,
    /// Cosine after the best matching of heads.
    pub cosine_matched: Vec<f64>,
    /// Divergence after the best matching of heads.
    pub divergence_matched: Vec<f64>,
}

/// The weights of the queries that are looked at, a row per layer and head, with zeros where a query does not see a key.
fn weights(model: &DenseModel, ids: &[u32]) -> (Vec<f32>, Vec<usize>) {
    let none = Modules::none();
    let f = &model.kernels.float;
    let (mut tape, mut log, mut scratch) = (Tape::default(), Vec::new(), Scratch::default());
    let mut x = vec![0.0; model.n_ctx * model.n_embd];
    model.embed(ids, &mut x);
    let queries: Vec<usize> = (QUERY_STEP - 1..ids.len()).step_by(QUERY_STEP).collect();
    let lengths: Vec<usize> = queries.iter().map(|i| i + 1).collect();
    let mut out = Vec::new();
    for (i, layer) in model.layers.iter().enumerate() {
        let pass = LayerPass::new(model, &none, i);
        pass.begin(&x, &mut tape);
        pass.logs(&mut tape, None, &mut log);
        pass.finish(&mut tape, &log, &mut x, &mut scratch);
        let c = Causal { n: ids.len(), window: layer.shape.window };
        for head in 0..layer.shape.n_head {
            for &q in &queries {
                out.resize(out.len() + c.span(q).start, 0.0);
                let at = out.len();
                out.extend_from_slice(&log[c.row(head, q)]);
                f.exp(&mut out[at..]);
            }
        }
    }
    (out, lengths)
}

/// Terms `p ln p` of a row, summed.
fn neg_entropy(p: impl Iterator<Item = f32>) -> f64 {
    p.filter(|&p| p > 0.0).map(|p| f64::from(p * p.ln())).sum()
}

/// The sums of one window, whose weights are `x` with a row per layer and head.
fn sums(model: &DenseModel, x: &[f32], lengths: &[usize]) -> Sums {
    let len: usize = lengths.iter().sum();
    let n = x.len() / len;
    let mut product = vec![0.0; n * n];
    let rows = Rows::new(x, n, len, len);
    model.kernels.float.sgemm_nt(1.0, rows, rows, RowsMut::new(&mut product, n, n, n));
    let mut divergence = vec![0.0; n * n];
    let mut at = 0;
    for &l in lengths {
        let row = |i: usize| &x[i * len + at..i * len + at + l];
        let own: Vec<f64> = (0..n).map(|i| neg_entropy(row(i).iter().copied())).collect();
        for i in 0..n {
            for j in i + 1..n {
                let middle = neg_entropy(row(i).iter().zip(row(j)).map(|(a, b)| 0.5 * (a + b)));
                let d = (0.5 * (own[i] + own[j]) - middle).max(0.0);
                divergence[i * n + j] += d;
                divergence[j * n + i] += d;
            }
        }
        at += l;
    }
    Sums { dot: product.into_iter().map(f64::from).collect(), divergence, n_queries: lengths.len() }
}

/// The similarities over `windows`. `observer` hears how many are done, and returns false to stop; `None` where not even one was.
pub fn measure(
    team: &mut Team,
    model: &DenseModel,
    windows: &[&[u32]],
    observer: &mut dyn FnMut(usize) -> bool,
) -> Option<Similarity> {
    let mut all: Option<Sums> = None;
    for (done, chunk) in windows.chunks(team.n_threads()).enumerate() {
        let found = team.map(chunk.len(), |i, _: &mut Workspace| {
            let (x, lengths) = weights(model, chunk[i]);
            sums(model, &x, &lengths)
        });
        for s in found {
            match &mut all {
                None => all = Some(s),
                Some(all) => {
                    all.dot.iter_mut().zip(s.dot).for_each(|(a, b)| *a += b);
                    all.divergence.iter_mut().zip(s.divergence).for_each(|(a, b)| *a += b);
                    all.n_queries += s.n_queries;
                }
            }
        }
        if !observer((done + 1) * team.n_threads()) {
            break;
        }
    }
    let n_heads: Vec<usize> = model.layers.iter().map(|l| l.shape.n_head).collect();
    all.map(|s| similarity(&n_heads, &s))
}

/// Of layers with so many heads.
fn similarity(n_heads: &[usize], s: &Sums) -> Similarity {
    let (n_layer, n) = (n_heads.len(), n_heads.iter().sum::<usize>());
    let first_of = |layer: usize| n_heads[..layer].iter().sum::<usize>();
    let cosine = |i: usize, j: usize| s.dot[i * n + j] / (s.dot[i * n + i] * s.dot[j * n + j]).sqrt();
    let divergence = |i: usize, j: usize| s.divergence[i * n + j] / s.n_queries as f64;
    let of_pair = |a: usize, b: usize| -> [f64; 4] {
        let n_head = n_heads[a];
        if n_heads[b] != n_head {
            return [f64::NAN; 4];
        }
        let (first_a, first_b) = (first_of(a), first_of(b));
        let table = |f: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
            let heads = (0..n_head).flat_map(|g| (0..n_head).map(move |h| (first_a + g, first_b + h)));
            heads.map(|(i, j)| f(i, j)).collect()
        };
        let mean = |t: &[f64], matching: &[usize]| {
            matching.iter().enumerate().map(|(g, h)| t[g * n_head + h]).sum::<f64>() / n_head as f64
        };
        let same: Vec<usize> = (0..n_head).collect();
        let (c, d) = (table(&cosine), table(&divergence));
        let costs: Vec<f64> = c.iter().map(|c| -c).collect();
        let matched = [mean(&c, &assignment(&costs, n_head)), mean(&d, &assignment(&d, n_head))];
        [mean(&c, &same), mean(&d, &same), matched[0], matched[1]]
    };
    let pairs: Vec<[f64; 4]> =
        (0..n_layer).flat_map(|a| (0..n_layer).map(move |b| (a, b))).map(|(a, b)| of_pair(a, b)).collect();
    let all = |which: usize| pairs.iter().map(|p| p[which]).collect();
    Similarity { n_layer, cosine: all(0), divergence: all(1), cosine_matched: all(2), divergence_matched: all(3) }
}

/// The column for every row of the `n` x `n` matrix `cost`, each taken once, so that the sum is least: the Hungarian method with
/// potentials (Kuhn 1955; Munkres 1957).
pub fn assignment(cost: &[f64], n: usize) -> Vec<usize> {
    // Rows and columns count from 1 here; column 0 holds the row that looks for a column.
    let (mut u, mut v) = (vec![0.0; n + 1], vec![0.0; n + 1]);
    let (mut row_of, mut way) = (vec![0; n + 1], vec![0; n + 1]);
    for row in 1..=n {
        row_of[0] = row;
        let (mut column, mut least, mut used) = (0, vec![f64::INFINITY; n + 1], vec![false; n + 1]);
        loop {
            used[column] = true;
            let (i, mut delta, mut next) = (row_of[column], f64::INFINITY, 0);
            for j in (1..=n).filter(|&j| !used[j]) {
                let reduced = cost[(i - 1) * n + j - 1] - u[i] - v[j];
                if reduced < least[j] {
                    (least[j], way[j]) = (reduced, column);
                }
                if least[j] < delta {
                    (delta, next) = (least[j], j);
                }
            }
            for j in 0..=n {
                if used[j] {
                    u[row_of[j]] += delta;
                    v[j] -= delta;
                } else {
                    least[j] -= delta;
                }
            }
            column = next;
            if row_of[column] == 0 {
                break;
            }
        }
        while column != 0 {
            row_of[column] = row_of[way[column]];
            column = way[column];
        }
    }
    let mut out = vec![0; n];
    (1..=n).for_each(|j| out[row_of[j] - 1] = j - 1);
    out
}

/// Spearman's rank correlation; equal values share their mean rank. NaN for fewer than two values, or where all are equal.
pub fn rank_correlation(a: &[f64], b: &[f64]) -> f64 {
    let ranks = |x: &[f64]| -> Vec<f64> {
        let below = |v: f64| x.iter().filter(|w| **w < v).count() as f64;
        let equal = |v: f64| x.iter().filter(|w| **w == v).count() as f64;
        x.iter().map(|&v| below(v) + (equal(v) - 1.0) / 2.0).collect()
    };
    let (a, b) = (ranks(a), ranks(b));
    let mean = (a.len() as f64 - 1.0) / 2.0;
    let sum = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>();
    sum(&a, &b) / (sum(&a, &a) * sum(&b, &b)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Model, ModelParams};

    #[test]
    fn the_cheapest_assignment() {
        let cost = [4.0, 1.0, 3.0, 2.0, 0.0, 5.0, 3.0, 2.0, 2.0];
        assert_eq!(assignment(&cost, 3), [1, 0, 2]);
        // Against all permutations of random costs.
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..50 {
            let cost: Vec<f64> = (0..16).map(|_| rng.f64() - 0.5).collect();
            let of = |p: &[usize]| p.iter().enumerate().map(|(i, j)| cost[i * 4 + j]).sum::<f64>();
            let mut best = f64::INFINITY;
            for code in 0..256 {
                let p = [code % 4, code / 4 % 4, code / 16 % 4, code / 64];
                if (0..4).all(|j| p.contains(&j)) {
                    best = best.min(of(&p));
                }
            }
            assert!((of(&assignment(&cost, 4)) - best).abs() < 1e-12);
        }
    }

    #[test]
    fn correlations_of_ranks() {
        assert_eq!(rank_correlation(&[1.0, 2.0, 30.0], &[0.1, 0.2, 0.3]), 1.0);
        assert_eq!(rank_correlation(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), -1.0);
        // Ranks 0 1.5 1.5 3 and 0 1 2 3.
        let expected = 4.5 / (4.5f64 * 5.0).sqrt();
        assert!((rank_correlation(&[1.0, 2.0, 2.0, 3.0], &[1.0, 2.0, 3.0, 4.0]) - expected).abs() < 1e-12);
        assert!(rank_correlation(&[1.0], &[1.0]).is_nan());
    }

    #[test]
    fn layers_with_as_many_heads_are_compared() {
        // Layers of 1, 2 and 1 heads; the last is the first.
        let alike = |i: usize, j: usize| if i == j || i + j == 3 && i * j == 0 { 1.0 } else { 0.25 };
        let dot: Vec<f64> = (0..16).map(|at| alike(at / 4, at % 4)).collect();
        let s = similarity(&[1, 2, 1], &Sums { dot, divergence: vec![0.5; 16], n_queries: 2 });
        assert_eq!((s.n_layer, s.cosine[2], s.cosine[4], s.divergence[2]), (3, 1.0, 1.0, 0.25));
        for of_pairs in [s.cosine, s.divergence, s.cosine_matched, s.divergence_matched] {
            assert!((0..9).all(|i| of_pairs[i].is_nan() == [1, 3, 5, 7].contains(&i)), "{of_pairs:?}");
        }
    }

    #[test]
    fn a_layer_is_like_itself_and_matching_never_hurts() {
        let model = Model::embedded(ModelParams::default()).unwrap();
        let dense = DenseModel::new(&model, 32, crate::distill::frozen::Precision::Exact).unwrap();
        let ids: Vec<u32> = (0..32).map(|i| (i * 13 + 4) % 512).collect();
        let s = measure(&mut Team::new(2).unwrap(), &dense, &[&ids, &ids[..]], &mut |_| true).unwrap();
        let n = s.n_layer;
        for a in 0..n {
            assert!((s.cosine[a * n + a] - 1.0).abs() < 1e-5 && s.divergence[a * n + a].abs() < 1e-6);
            for i in (0..n).map(|b| a * n + b) {
                assert!(s.cosine_matched[i] >= s.cosine[i] - 1e-9, "{a}");
                assert!(s.divergence_matched[i] <= s.divergence[i] + 1e-9 && s.divergence[i] < std::f64::consts::LN_2);
            }
        }
        assert!(s.cosine[1] < 0.999, "two layers that are the same");
    }
}
