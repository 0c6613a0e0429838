//! Where a student's modules begin: low-rank queries and keys from those rotation pairs of the original heads that carry the most
//! energy on calibration text (`frequency-pruned start`), the source's heads passed on at half weight, no hidden units at work.

use ggml_ext::lisa::{Activation, Domain, Kind, Part};

use super::dense::{DenseModel, HeadProjection};
use super::layer::{LayerPass, Scratch, Tape};
use super::modules::{Module, Modules};
use super::solve::ridge;
use crate::attention::{RopeStyle, SharePlan};
use crate::{Error, Result};

/// What a head's queries or keys look like on calibration text, by rotation pair.
struct HeadEnergy {
    /// Mean of the squared length of every pair.
    power: Vec<f64>,
    /// Its variance over positions.
    variance: Vec<f64>,
    /// Mean of what the head norm divides by, inverted; 1 without a norm.
    gain: f64,
}

/// What layers look like on calibration text: energies of queries and keys, and what stands for a constant.
struct LayerStats {
    q: Vec<HeadEnergy>,
    k: Vec<HeadEnergy>,
    /// A direction along which the normalised input is 1, as nearly as can be: where projections have a bias, it stands in for it.
    one: Option<Vec<f32>>,
}

/// Pairs that turn by less than this per position act by their variance only: what is constant in them cancels in the softmax.
const SLOW: f64 = 1e-2;

/// Weight of the source's own heads at the start.
const SKIP: f32 = 0.5;

/// Spread of the hidden units' weights at the start.
const UP: f32 = 0.2;

/// The dimensions of pair `p` of a head; pairs beyond the rotated part of a head take what is left in order, and stand still.
fn pair_dims(style: RopeStyle, n_rot: usize, p: usize) -> [usize; 2] {
    match style {
        RopeStyle::Neox if p < n_rot / 2 => [p, p + n_rot / 2],
        _ => [2 * p, 2 * p + 1],
    }
}

/// How a student is made.
#[derive(Debug, Clone)]
pub struct Design {
    /// Which layers take from which: kinds `lisa` or `shared`.
    pub plan: Vec<(usize, usize)>,
    /// Of all substituted layers.
    pub kind: Kind,
    /// Rank of every head.
    pub rank: Rank,
    /// Hidden units.
    pub n_hidden: usize,
    /// Their activation.
    pub activation: Activation,
    /// What the alignment sees.
    pub domain: Domain,
    /// Linear compensation for `shared` layers.
    pub comp: bool,
    /// For the hidden units.
    pub seed: u64,
}

#[cfg(test)]
impl Design {
    /// Two of the embedded model's layers with low-rank scores and `n_hidden` hidden units.
    pub fn of_two_layers(n_hidden: usize) -> Self {
        Self {
            plan: vec![(2, 1), (3, 2)],
            kind: Kind::Lisa,
            rank: Rank::Each(4),
            n_hidden,
            activation: Activation::Silu,
            domain: Domain::Log,
            comp: false,
            seed: 0,
        }
    }
}

/// How many values a low-rank head has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rank {
    /// The same in every layer.
    Each(usize),
    /// Original head length over this on the average; the layers that would lose most get what uniform ranks leave over.
    Factor(f64),
}

impl std::str::FromStr for Rank {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        let error = || format!("'{s}': expected an even number of values per head such as 10, or a factor such as 6x");
        match s.strip_suffix('x') {
            Some(f) => f.parse().ok().filter(|f: &f64| f.is_finite() && *f >= 1.0).map(Self::Factor).ok_or_else(error),
            None => s.parse().ok().filter(|r: &usize| r.is_multiple_of(2)).map(Self::Each).ok_or_else(error),
        }
    }
}

/// Sees what one layer made of one window: numbers of window and layer, queries, keys and normalised inputs, logarithms of weights.
pub type Visit<'a> = dyn FnMut(usize, usize, &Tape, &[f32]) + 'a;

/// Runs the unchanged model over `windows` up to layer `last` and shows every layer to `visit`.
pub fn calibrate(model: &DenseModel, windows: &[&[u32]], last: usize, visit: &mut Visit) {
    let none = Modules::none();
    let (mut tape, mut log, mut scratch) = (Tape::default(), Vec::new(), Scratch::default());
    let mut x = vec![0.0; model.n_ctx * model.n_embd];
    for (w, ids) in windows.iter().enumerate() {
        model.embed(ids, &mut x);
        for i in 0..=last {
            let pass = LayerPass::new(model, &none, i);
            pass.begin(&x, &mut tape);
            pass.logs(&mut tape, None, &mut log);
            pass.finish(&mut tape, &log, &mut x, &mut scratch);
            visit(w, i, &tape, &log);
        }
    }
}

/// Energies by rotation pair. Rotation keeps a pair's length, so that turned heads tell them; its variance needs unturned ones.
fn energies(model: &DenseModel, layer: usize, p: &HeadProjection, n_head: usize, n: &[f32]) -> Vec<HeadEnergy> {
    let l = &model.layers[layer];
    let (dim, f) = (l.shape.head_dim_k, &model.kernels.float);
    let rope = &model.turns[l.rope].rope;
    let mut x = vec![0.0; n.len() / model.n_embd * p.dense.n_out];
    p.dense.forward(f, n, &mut x);
    let rows = x.len() / p.dense.n_out;
    let mut heads = Vec::new();
    for h in 0..n_head {
        let head = |i: usize| &x[i * p.dense.n_out + h * dim..][..dim];
        let mut e = HeadEnergy { power: vec![0.0; dim / 2], variance: vec![0.0; dim / 2], gain: 1.0 };
        // What is normalised together: the head, or all of them.
        let inverse = |i: usize| match &p.norm {
            Some(w) => {
                let part = &x[i * p.dense.n_out + h * dim / w.len() * w.len()..][..w.len()];
                1.0 / (f.dot(part, part) / w.len() as f32 + model.eps).sqrt()
            }
            None => 1.0,
        };
        if p.norm.is_some() {
            e.gain = (0..rows).map(|i| f64::from(inverse(i))).sum::<f64>() / rows as f64;
        }
        for pair in 0..dim / 2 {
            for d in pair_dims(rope.style(), 2 * rope.n_pairs(), pair) {
                let weight = p.norm.as_ref().map_or(1.0, |w| w[(h * dim + d) % w.len()]);
                let at = |i: usize| f64::from(head(i)[d] * inverse(i) * weight);
                let mean = (0..rows).map(at).sum::<f64>() / rows as f64;
                let square = (0..rows).map(|i| at(i) * at(i)).sum::<f64>() / rows as f64;
                e.power[pair] += square;
                e.variance[pair] += square - mean * mean;
            }
        }
        heads.push(e);
    }
    heads
}

/// The energy of every pair of every key/value head, with the queries of its group.
fn pair_energies(model: &DenseModel, layer: usize, stats: &LayerStats) -> Vec<Vec<f64>> {
    let l = &model.layers[layer];
    let rope = &model.turns[l.rope].rope;
    let group = l.shape.group();
    let of = |c: usize, pair: usize| {
        let q: f64 = (0..group).map(|g| stats.q[c * group + g].power[pair]).sum();
        let turns = rope.frequencies().get(pair).copied().unwrap_or(0.0) > SLOW;
        q * if turns { stats.k[c].power[pair] } else { stats.k[c].variance[pair] }
    };
    (0..l.shape.n_head_kv).map(|c| (0..l.shape.head_dim_k / 2).map(|p| of(c, p)).collect()).collect()
}

/// The pairs of largest energy first.
fn by_energy(energy: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..energy.len()).collect();
    order.sort_by(|&a, &b| energy[b].total_cmp(&energy[a]).then(a.cmp(&b)));
    order
}

/// Pairs of a head of `dim` values that is made `factor` times smaller; what rounding leaves over is not handed out.
pub fn base_pairs(dim: usize, factor: f64) -> usize {
    ((dim as f64 / factor / 2.0).floor() as usize).max(1)
}

/// Ranks by layer: what a factor leaves over beyond equal ranks goes, two values at a time, where most energy is left out.
fn ranks(rank: Rank, dim: usize, energies: &[Vec<Vec<f64>>]) -> Vec<usize> {
    let factor = match rank {
        Rank::Each(r) => return vec![r; energies.len()],
        Rank::Factor(f) => f,
    };
    let base = base_pairs(dim, factor);
    let budget = ((energies.len() * dim) as f64 / factor / 2.0).floor() as usize;
    let mut left_out: Vec<(f64, usize)> = energies
        .iter()
        .map(|heads| {
            let share = |e: &Vec<f64>| {
                let (order, all) = (by_energy(e), e.iter().sum::<f64>());
                order.iter().skip(base).map(|&p| e[p]).sum::<f64>() / all.max(f64::MIN_POSITIVE)
            };
            heads.iter().map(share).sum::<f64>() / heads.len() as f64
        })
        .zip(0..)
        .collect();
    left_out.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut out = vec![2 * base; energies.len()];
    for &(_, i) in left_out.iter().take(budget.saturating_sub(base * energies.len())) {
        out[i] += 2;
    }
    out
}

/// Rows of a low-rank matrix: those of the chosen pairs of a head, as the engine would use them.
fn pruned_rows(
    p: &HeadProjection,
    head: usize,
    dims: &[usize],
    gain: f32,
    dim: usize,
    one: Option<&[f32]>,
    out: &mut Vec<f32>,
) {
    let mut values = vec![0.0; p.dense.n_in];
    for &d in dims {
        let row = head * dim + d;
        let gain = gain * p.norm.as_ref().map_or(1.0, |w| w[row % w.len()]);
        let bias = p.dense.bias().map_or(0.0, |b| b[row]);
        let one = |i: usize| one.map_or(0.0, |o| o[i]);
        p.dense.row(row, &mut values);
        out.extend(values.iter().enumerate().map(|(i, w)| gain * (w + bias * one(i))));
    }
}

/// Checks a plan's layers: sources with the same heads and windows, and layers that exist.
///
/// # Errors
/// Names the layer.
pub fn check_plan(model: &DenseModel, plan: &[(usize, usize)]) -> Result<()> {
    let text: Vec<String> = plan.iter().map(|(l, s)| format!("{l}:{s}")).collect();
    let plan: SharePlan = text.join(",").parse().map_err(|e| Error::Params(format!("--layers: {e}")))?;
    plan.check_layers(model.layers.len()).map_err(|e| Error::Impossible(format!("--layers: {e}")))?;
    let shape = |i: usize| Some((model.layers[i].shape, model.layers[i].rope));
    plan.check_sources(shape).map_err(|e| Error::Impossible(format!("--layers: {e}")))
}

/// The student that `design` describes, its values as they are before training. `windows`: text for calibration.
///
/// # Errors
/// Names the layer, or the rank, that the model cannot have.
pub fn student(model: &DenseModel, design: &Design, windows: &[&[u32]]) -> Result<Modules> {
    check_plan(model, &design.plan)?;
    let Some(last) = design.plan.iter().map(|p| p.0).max() else {
        return Err(Error::Params("--layers: no layers given".into()));
    };
    let is_lisa = design.kind == Kind::Lisa;
    let mut stats: Vec<Option<LayerStats>> = (0..=last).map(|_| None).collect();
    if is_lisa && design.rank != Rank::Each(0) {
        let inputs = inputs(model, windows, &design.plan);
        for (&(layer, _), n) in design.plan.iter().zip(&inputs) {
            let l = &model.layers[layer];
            let biased = l.q.dense.bias().is_some() || l.k.dense.bias().is_some();
            stats[layer] = Some(LayerStats {
                q: energies(model, layer, &l.q, l.shape.n_head, n),
                k: energies(model, layer, &l.k, l.shape.n_head_kv, n),
                one: biased.then(|| ridge(n, &vec![1.0; n.len() / model.n_embd], model.n_embd)),
            });
        }
    }
    let energies: Vec<_> = design
        .plan
        .iter()
        .map(|&(layer, _)| stats[layer].as_ref().map_or(Vec::new(), |s| pair_energies(model, layer, s)))
        .collect();
    let dim = model.layers[last].shape.head_dim_k;
    let ranks = match is_lisa {
        true => ranks(design.rank, dim, &energies),
        false => vec![0; design.plan.len()],
    };
    if let Some(r) = ranks.iter().find(|&&r| r > dim) {
        return Err(Error::Impossible(format!("--rank: {r} is more than the {dim} values of a head")));
    }
    let mut list = Vec::new();
    for ((&(layer, source), &rank), energy) in design.plan.iter().zip(&ranks).zip(&energies) {
        let s = model.layers[layer].shape;
        let rope = &model.turns[model.layers[layer].rope].rope;
        let freq = |p: usize| rope.frequencies().get(p).map_or(0.0, |&f| f as f32);
        list.push(Module {
            layer,
            source,
            kind: design.kind,
            n_head: s.n_head,
            n_head_kv: s.n_head_kv,
            n_embd: model.n_embd,
            rank,
            n_hidden: if is_lisa { design.n_hidden } else { 0 },
            comp: !is_lisa && design.comp,
            freq: energy
                .iter()
                .filter(|_| rank > 0)
                .flat_map(|e| by_energy(e).into_iter().take(rank / 2))
                .map(freq)
                .collect(),
            start: 0,
        });
    }
    let scale = model.layers[last].shape.scale;
    let mut all = Modules::new(list, design.activation, design.domain, scale);
    let mut rng = fastrand::Rng::with_seed(design.seed);
    for ((&(layer, _), &rank), energy) in design.plan.iter().zip(&ranks).zip(&energies) {
        let (l, n_head) = (&model.layers[layer], model.layers[layer].shape.n_head);
        all.part_mut(layer, Part::AlignSkip).iter_mut().step_by(n_head + 1).for_each(|x| *x = SKIP);
        // Triangular noise of standard deviation `UP`.
        let spread = UP * 6f32.sqrt();
        all.part_mut(layer, Part::AlignUp).iter_mut().for_each(|x| *x = (rng.f32() - rng.f32()) * spread);
        let Some(stats) = stats[layer].as_ref().filter(|_| rank > 0) else { continue };
        let rope = &model.turns[l.rope].rope;
        // Stretched rotations also lengthen what they turn; low-rank ones only turn.
        let magnitude = rope.magnitude() as f32;
        let (mut q, mut k) = (Vec::new(), Vec::new());
        for (c, energy) in energy.iter().enumerate() {
            let pairs = by_energy(energy).into_iter().take(rank / 2);
            let dims: Vec<usize> = pairs.flat_map(|p| pair_dims(rope.style(), 2 * rope.n_pairs(), p)).collect();
            let factor = |e: &HeadEnergy| e.gain as f32 * magnitude;
            pruned_rows(&l.k, c, &dims, factor(&stats.k[c]), dim, stats.one.as_deref(), &mut k);
            for g in 0..l.shape.group() {
                let head = c * l.shape.group() + g;
                pruned_rows(&l.q, head, &dims, factor(&stats.q[head]), dim, stats.one.as_deref(), &mut q);
            }
        }
        all.part_mut(layer, Part::Q).copy_from_slice(&q);
        all.part_mut(layer, Part::K).copy_from_slice(&k);
    }
    Ok(all)
}

/// The normalised inputs of the plan's layers over all `windows`, in the plan's order.
fn inputs(model: &DenseModel, windows: &[&[u32]], plan: &[(usize, usize)]) -> Vec<Vec<f32>> {
    let mut out = vec![Vec::new(); plan.len()];
    let last = plan.iter().map(|p| p.0).max().unwrap_or(0);
    calibrate(model, windows, last, &mut |_, i, tape, _| {
        plan.iter().zip(&mut out).filter(|((l, _), _)| *l == i).for_each(|(_, n)| n.extend_from_slice(&tape.n));
    });
    out
}
