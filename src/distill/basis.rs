//! The directions in which the optimiser works.
//!
//! Adam scales every coordinate by itself, which is only as good as the coordinates: normalised inputs of a decoder have a few
//! directions with most of the energy, none of them an axis, and the logarithms of different heads' weights are nearly the same
//! numbers. So the gradient of every matrix is turned into the eigenvectors of its operands' second moments on calibration text, and
//! Adam's step is turned back: the one-sided, fixed-basis form of SOAP (Vyas et al., arXiv 2409.11321).

use std::ops::Range;

use ggml_ext::kernels::float::{FloatKernels, Rows, RowsMut};
use ggml_ext::lisa::Part;
use nalgebra::{DMatrix, SymmetricEigen};

use super::dense::{DenseModel, transpose};
use super::modules::{Module, Modules};
use super::scores::Causal;
use super::start::calibrate;
use super::team::Team;

/// Coordinates that are turned among each other; longer operands are cut, as the price of eigenvectors grows with the cube.
const LONGEST: usize = 1024;

/// An orthogonal matrix for operands of a given length: one for every stretch of coordinates, rows are directions.
struct Basis {
    stretches: Vec<(Range<usize>, Vec<f32>)>,
    n: usize,
}

/// The bases for the operands of a layer's modules.
struct LayerBases {
    /// Of normalised inputs: low-rank queries and keys, compensation.
    input: Basis,
    /// Of the logarithms of the source's heads: the alignment.
    heads: Basis,
}

/// The bases of all modules, in their order.
pub struct Bases {
    list: Vec<LayerBases>,
}

/// Sums of products of coordinates for a layer's bases.
#[derive(Clone)]
struct Moments {
    /// By stretch.
    input: Vec<Vec<f32>>,
    heads: Vec<f64>,
}

impl Moments {
    fn add(&mut self, other: &Self) {
        let pairs = self.input.iter_mut().flatten().zip(other.input.iter().flatten());
        pairs.for_each(|(a, b)| *a += b);
        self.heads.iter_mut().zip(&other.heads).for_each(|(a, b)| *a += b);
    }
}

/// Operands of `n` coordinates cut evenly.
fn stretches(n: usize) -> impl Iterator<Item = Range<usize>> {
    let len = n.div_ceil(n.div_ceil(LONGEST));
    (0..n).step_by(len).map(move |at| at..(at + len).min(n))
}

impl Bases {
    /// From what `model` makes of `windows`, of which a few thousand tokens do.
    pub fn new(team: &mut Team, model: &DenseModel, modules: &Modules, windows: &[&[u32]]) -> Self {
        let all: Vec<&Module> = modules.iter().collect();
        let Some(last) = all.last().map(|m| m.layer) else { return Self { list: Vec::new() } };
        let d = model.n_embd;
        let zeros = |m: &&Module| Moments {
            input: stretches(d).map(|r| vec![0.0; r.len() * r.len()]).collect(),
            heads: vec![0.0; m.n_head * m.n_head],
        };
        let mut sums: Vec<Moments> = all.iter().map(zeros).collect();
        // As many windows at a time as there are threads, so that no more sums are in memory.
        for windows in windows.chunks(team.n_threads()) {
            let found = team.map(windows.len(), |w, _| {
                let mut sums: Vec<Moments> = all.iter().map(zeros).collect();
                calibrate(model, &windows[w..w + 1], last, &mut |_, layer, tape, log| {
                    for (m, sums) in all.iter().zip(&mut sums) {
                        if m.layer == layer {
                            add_input_moments(&model.kernels.float, &tape.n, d, &mut sums.input);
                        }
                        if m.source == layer {
                            let c = Causal { n: model.n_ctx, window: model.layers[layer].shape.window };
                            add_head_moments(c, m.n_head, log, &mut sums.heads);
                        }
                    }
                });
                sums
            });
            found.iter().for_each(|f| sums.iter_mut().zip(f).for_each(|(a, b)| a.add(b)));
        }
        let list = team.map(all.len(), |i, _| {
            let of = |r: Range<usize>, a: &[f32]| {
                let vectors = eigenvectors(a.iter().map(|&x| f64::from(x)).collect(), r.len());
                (r, vectors)
            };
            let input = Basis { stretches: stretches(d).zip(&sums[i].input).map(|(r, a)| of(r, a)).collect(), n: d };
            let n = all[i].n_head;
            let heads = Basis { stretches: vec![(0..n, eigenvectors(sums[i].heads.clone(), n))], n };
            LayerBases { input, heads }
        });
        Self { list }
    }

    /// Bytes that the bases of `modules` take.
    pub fn bytes(modules: &Modules) -> u64 {
        let of = |m: &Module| stretches(m.n_embd).map(|r| r.len() * r.len()).sum::<usize>() + m.n_head * m.n_head;
        modules.iter().map(|m| 4 * of(m) as u64).sum()
    }

    /// Turns gradients into the bases.
    pub fn turn(&self, model: &DenseModel, modules: &Modules, x: &mut [f32]) {
        self.each(modules, x, |rows, basis| basis.turn(&model.kernels.float, rows));
    }

    /// Turns steps back.
    pub fn turn_back(&self, model: &DenseModel, modules: &Modules, x: &mut [f32]) {
        self.each(modules, x, |rows, basis| basis.turn_back(&model.kernels.float, rows));
    }

    fn each(&self, modules: &Modules, x: &mut [f32], f: impl Fn(&mut [f32], &Basis)) {
        for (m, bases) in modules.iter().zip(&self.list) {
            for (part, _) in m.parts() {
                match part {
                    Part::Q | Part::K | Part::Comp => f(&mut x[m.range(part)], &bases.input),
                    Part::AlignSkip | Part::AlignUp => f(&mut x[m.range(part)], &bases.heads),
                    _ => {}
                }
            }
        }
    }
}

impl Basis {
    /// Rows of `n` coordinates become their products with the directions.
    fn turn(&self, f: &FloatKernels, x: &mut [f32]) {
        let (rows, old) = (x.len() / self.n, x.to_vec());
        for (r, basis) in &self.stretches {
            let len = r.len();
            let into = RowsMut::new(&mut x[r.start..], rows, len, self.n);
            f.sgemm_nt(1.0, Rows::new(&old[r.start..], rows, len, self.n), Rows::new(basis, len, len, len), into);
        }
    }

    /// The inverse.
    fn turn_back(&self, f: &FloatKernels, x: &mut [f32]) {
        let (rows, old) = (x.len() / self.n, x.to_vec());
        x.fill(0.0);
        for (r, basis) in &self.stretches {
            let len = r.len();
            let into = RowsMut::new(&mut x[r.start..], rows, len, self.n);
            f.sgemm_nn_acc(Rows::new(&old[r.start..], rows, len, self.n), Rows::new(basis, len, len, len), into);
        }
    }
}

/// Adds the second moments of the rows of `x`, of `d` coordinates each, stretch by stretch.
fn add_input_moments(f: &FloatKernels, x: &[f32], d: usize, sums: &mut [Vec<f32>]) {
    let n = x.len() / d;
    for (r, sums) in stretches(d).zip(sums) {
        let (part, len) = (&x[r.start..], r.len());
        let mut turned = vec![0.0; len * n];
        transpose(part, d, n, len, &mut turned);
        f.sgemm_nn_acc(Rows::new(&turned, len, n, n), Rows::new(part, n, len, d), RowsMut::new(sums, len, len, len));
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
    let vectors = SymmetricEigen::new(DMatrix::from_vec(n, n, a)).eigenvectors;
    // Column-major: every column, an eigenvector, lies in one piece.
    vectors.iter().map(|&x| x as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distill::data::{Windows, slices};
    use crate::distill::frozen::Precision;
    use crate::distill::start::{Design, student};
    use crate::distill::testing::noise;
    use crate::model::{Model, ModelParams};

    #[test]
    fn eigenvectors_are_the_rows() {
        // Of a matrix with values 3 and 1 along the diagonals.
        let v = eigenvectors(vec![2.0, 1.0, 1.0, 2.0], 2);
        for row in v.chunks(2) {
            assert!((row[0].abs() - row[1].abs()).abs() < 1e-6 && (row[0].abs() - 0.5f32.sqrt()).abs() < 1e-6, "{v:?}");
        }
        assert!((v[0] * v[2] + v[1] * v[3]).abs() < 1e-6);
    }

    #[test]
    fn long_operands_are_cut_evenly() {
        assert_eq!(stretches(576).collect::<Vec<_>>(), vec![0..576]);
        assert_eq!(stretches(2500).collect::<Vec<_>>(), [0..834, 834..1668, 1668..2500]);
        let f = &ggml_ext::kernels::Kernels::detect().float;
        let axis = |r: Range<usize>| (r, vec![0.6, 0.8, -0.8, 0.6]);
        let basis = Basis { stretches: vec![axis(0..2), axis(2..4)], n: 4 };
        let mut x = [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 2.0, 0.0];
        basis.turn(f, &mut x);
        let expected = [0.6, -0.8, 0.8, 0.6, 0.8, 0.6, 1.2, -1.6];
        assert!(x.iter().zip(expected).all(|(x, y)| (x - y).abs() < 1e-6), "{x:?}");
        basis.turn_back(f, &mut x);
        assert!(x.iter().zip([1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 2.0, 0.0]).all(|(x, y): (&f32, f32)| (x - y).abs() < 1e-6));
    }

    /// Turning is a rotation: lengths stay, and there and back nothing is lost; the energies of inputs along the directions differ.
    #[test]
    fn bases_turn_and_turn_back() {
        let model = Model::embedded(ModelParams::default()).unwrap();
        let text = "Once upon a time there was a little dog who liked to play with a red ball. ".repeat(40);
        let windows = Windows::new(model.tokenizer(), &[text], 32, 1, &mut |_| ()).unwrap();
        let dense = DenseModel::new(&model, 32, Precision::Int8).unwrap();
        let calibration = windows.first(4);
        let calibration = slices(&calibration);
        let all = student(&dense, &Design::of_two_layers(3), &calibration).unwrap();
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
