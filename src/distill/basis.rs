//! The directions in which the optimiser works.
//!
//! Adam scales every coordinate by itself, which is only as good as the coordinates: normalised inputs of a decoder have a few
//! directions with most of the energy, none of them an axis, and the logarithms of different heads' weights are nearly the same
//! numbers. So the gradient of every matrix is turned into the eigenvectors of its operands' second moments on calibration text, and
//! Adam's step is turned back: the one-sided, fixed-basis form of SOAP (Vyas et al., arXiv 2409.11321).

use ggml_ext::lisa::Part;
use nalgebra::{DMatrix, SymmetricEigen};

use super::dense::{DenseModel, matmul_nn, matmul_nt};
use super::modules::{Module, Modules};
use super::scores::Causal;
use super::start::calibrate;
use super::team::Team;

/// Longest operand whose eigenvectors are worth their price (it grows with the cube); longer ones keep their axes.
const LONGEST: usize = 2048;

/// Orthogonal matrices, a row per direction, for the operands of a layer's modules; empty where the axes are kept.
struct Basis {
    /// Of normalised inputs: low-rank queries and keys, compensation.
    input: Vec<f32>,
    /// Of the logarithms of the source's heads: the alignment.
    heads: Vec<f32>,
}

/// The bases of all modules, in their order.
pub struct Bases {
    list: Vec<Basis>,
}

impl Bases {
    /// From what `model` makes of `windows`, of which a few thousand tokens do.
    pub fn new(team: &mut Team, model: &DenseModel, modules: &Modules, windows: &[&[u32]]) -> Self {
        let all: Vec<&Module> = modules.iter().collect();
        let Some(last) = all.last().map(|m| m.layer) else { return Self { list: Vec::new() } };
        let d = model.n_embd;
        let of_inputs = d <= LONGEST;
        let moments = team.map(windows.len(), |w, _| {
            let mut sums: Vec<(Vec<f32>, Vec<f64>)> = all
                .iter()
                .map(|m| (vec![0.0; if of_inputs { d * d } else { 0 }], vec![0.0; m.n_head * m.n_head]))
                .collect();
            calibrate(model, &windows[w..w + 1], last, &mut |_, layer, tape, log| {
                for (m, (input, heads)) in all.iter().zip(&mut sums) {
                    if m.layer == layer && of_inputs {
                        super::dense::matmul_tn(&model.kernels.float, &tape.n, &tape.n, input, d);
                    }
                    if m.source == layer {
                        let c = Causal { n: model.n_ctx, window: model.layers[layer].shape.window };
                        add_head_moments(c, m.n_head, log, heads);
                    }
                }
            });
            sums
        });
        let list = team.map(all.len(), |i, _| {
            let (mut input, mut heads) = (vec![0.0f64; moments[0][i].0.len()], vec![0.0f64; moments[0][i].1.len()]);
            for window in &moments {
                input.iter_mut().zip(&window[i].0).for_each(|(a, &b)| *a += f64::from(b));
                heads.iter_mut().zip(&window[i].1).for_each(|(a, b)| *a += b);
            }
            Basis { input: eigenvectors(input, d), heads: eigenvectors(heads, all[i].n_head) }
        });
        Self { list }
    }

    /// Turns gradients into the bases.
    pub fn turn(&self, model: &DenseModel, modules: &Modules, x: &mut [f32]) {
        self.each(modules, x, |rows, basis, n| {
            let mut out = vec![0.0; rows.len()];
            matmul_nt(&model.kernels.float, rows, basis, &mut out, n);
            rows.copy_from_slice(&out);
        });
    }

    /// Turns steps back.
    pub fn turn_back(&self, model: &DenseModel, modules: &Modules, x: &mut [f32]) {
        self.each(modules, x, |rows, basis, n| {
            let mut out = vec![0.0; rows.len()];
            matmul_nn(&model.kernels.float, rows, basis, &mut out, n);
            rows.copy_from_slice(&out);
        });
    }

    fn each(&self, modules: &Modules, x: &mut [f32], f: impl Fn(&mut [f32], &[f32], usize)) {
        for (m, basis) in modules.iter().zip(&self.list) {
            for (part, len) in m.parts() {
                let (basis, n) = match part {
                    Part::Q | Part::K | Part::Comp => (&basis.input, m.n_embd),
                    Part::AlignSkip | Part::AlignUp => (&basis.heads, m.n_head),
                    _ => continue,
                };
                if !basis.is_empty() && len > 0 {
                    f(&mut x[m.range(part)], basis, n);
                }
            }
        }
    }
}

/// Adds the second moments of the logarithms of weights between heads, keys weighted by the mean head's weights and every query's
/// mean taken off: what a score moves by beyond what cancels in the softmax.
fn add_head_moments(c: Causal, n_head: usize, log: &[f32], sums: &mut [f64]) {
    let mut row = vec![0.0f64; n_head];
    for i in 0..c.n {
        let rows: Vec<&[f32]> = (0..n_head).map(|h| &log[c.row(h, i)]).collect();
        let weight = |j: usize| rows.iter().map(|r| f64::from(r[j]).exp()).sum::<f64>() / n_head as f64;
        let weights: Vec<f64> = (0..rows[0].len()).map(weight).collect();
        let means: Vec<f64> =
            rows.iter().map(|r| r.iter().zip(&weights).map(|(&l, w)| f64::from(l) * w).sum()).collect();
        for (j, w) in weights.iter().enumerate() {
            for h in 0..n_head {
                row[h] = f64::from(rows[h][j]) - means[h];
            }
            for h in 0..n_head {
                for g in 0..n_head {
                    sums[h * n_head + g] += w * row[h] * row[g];
                }
            }
        }
    }
}

/// The eigenvectors of a symmetric matrix, a row each.
fn eigenvectors(a: Vec<f64>, n: usize) -> Vec<f32> {
    if a.is_empty() {
        return Vec::new();
    }
    let vectors = SymmetricEigen::new(DMatrix::from_vec(n, n, a)).eigenvectors;
    // Column-major: every column, an eigenvector, lies in one piece.
    vectors.iter().map(|&x| x as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distill::data::Windows;
    use crate::distill::frozen::Precision;
    use crate::distill::start::{Design, Rank, student};
    use crate::distill::testing::noise;
    use crate::model::{Model, ModelParams};
    use ggml_ext::lisa::{Activation, Domain, Kind};

    #[test]
    fn eigenvectors_are_the_rows() {
        // Of a matrix with values 3 and 1 along the diagonals.
        let v = eigenvectors(vec![2.0, 1.0, 1.0, 2.0], 2);
        for row in v.chunks(2) {
            assert!((row[0].abs() - row[1].abs()).abs() < 1e-6 && (row[0].abs() - 0.5f32.sqrt()).abs() < 1e-6, "{v:?}");
        }
        assert!((v[0] * v[2] + v[1] * v[3]).abs() < 1e-6);
    }

    /// Turning is a rotation: lengths stay, and there and back nothing is lost; the energies of inputs along the directions differ.
    #[test]
    fn bases_turn_and_turn_back() {
        let model = Model::embedded(ModelParams::default()).unwrap();
        let text = "Once upon a time there was a little dog who liked to play with a red ball. ".repeat(40);
        let windows = Windows::new(model.tokenizer(), &[text], 32, 1, &mut |_| ()).unwrap();
        let dense = DenseModel::new(&model, 32, Precision::Int8).unwrap();
        let design = Design {
            plan: vec![(2, 1), (3, 2)],
            kind: Kind::Lisa,
            rank: Rank::Each(4),
            n_hidden: 3,
            activation: Activation::Silu,
            domain: Domain::Log,
            comp: false,
            seed: 0,
        };
        let calibration = windows.first(4);
        let all = student(&dense, &design, &calibration).unwrap();
        let bases = Bases::new(&mut Team::new(2).unwrap(), &dense, &all, &calibration);
        let x = noise(1, all.values.len(), 1.0);
        let mut y = x.clone();
        bases.turn(&dense, &all, &mut y);
        let norm = |x: &[f32]| x.iter().map(|x| f64::from(x * x)).sum::<f64>();
        assert!((norm(&x) - norm(&y)).abs() < 1e-3 * norm(&x));
        let moved = x.iter().zip(&y).filter(|(x, y)| (*x - *y).abs() > 1e-3).count();
        assert!(moved > x.len() / 2, "{moved} of {} values moved", x.len());
        bases.turn_back(&dense, &all, &mut y);
        assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() < 1e-4));
    }
}
