//! Which layers to substitute: measured damage, by itself and jointly.

use ggml_ext::lisa::Kind;

use super::dense::DenseModel;
use super::modules::{Module, Modules};
use super::start::{Design, Rank, base_pairs, student};
use super::student::Teacher;
use super::team::Team;
use crate::{Error, Result};

/// Modules of single layers, to be put together in any combination.
pub struct SingleModules {
    layers: Vec<(Module, Vec<f32>)>,
    like: Modules,
}

/// The modules of the layers of `plan`, each taking from its source, as `design` makes them.
///
/// # Errors
/// As [`student`].
pub fn single(model: &DenseModel, design: &Design, plan: &[(usize, usize)], windows: &[&[u32]]) -> Result<Modules> {
    // Ranks that depend on the choice cannot be known before it.
    let rank = match (design.kind, design.rank) {
        (Kind::Lisa, Rank::Factor(f)) => {
            let dim = model.layers.first().map_or(2, |l| l.shape.head_dim_k);
            Rank::Each(2 * base_pairs(dim, f))
        }
        (_, rank) => rank,
    };
    student(model, &Design { plan: plan.to_vec(), rank, comp: false, ..design.clone() }, windows)
}

impl SingleModules {
    /// Those of `all`.
    pub fn new(all: &Modules) -> Self {
        let layers = all.iter().map(|m| (m.clone(), all.values[m.start..m.start + m.len()].to_vec())).collect();
        let like = Modules::new(Vec::new(), all.activation, all.domain, all.scale);
        Self { layers, like }
    }

    /// The student that has those of `layers`.
    pub fn student(&self, layers: &[usize]) -> Modules {
        let mut chosen: Vec<_> = self.layers.iter().filter(|(m, _)| layers.contains(&m.layer)).collect();
        chosen.sort_by_key(|(m, _)| m.layer);
        let list = chosen.iter().map(|(m, _)| m.clone()).collect();
        let mut all = Modules::new(list, self.like.activation, self.like.domain, self.like.scale);
        all.values = chosen.iter().flat_map(|(_, v)| v).copied().collect();
        all
    }
}

/// Layers after the `protect` first that can take from an earlier one, and the nearest of those. Where windows take turns, that is
/// not the layer before.
pub fn candidates(model: &DenseModel, protect: usize) -> Vec<(usize, usize)> {
    (protect..model.layers.len()).filter_map(|i| Some((i, predecessor(model, i)?))).collect()
}

/// The nearest earlier layer that `layer` can take from.
pub fn predecessor(model: &DenseModel, layer: usize) -> Option<usize> {
    (0..layer).rev().find(|&source| can_take(model, layer, source))
}

/// Refuses to choose more layers than there are.
///
/// # Errors
/// [`Error::Impossible`] with the number there is.
pub fn enough(candidates: &[(usize, usize)], n: usize) -> Result<()> {
    match candidates.len() {
        there if n <= there => Ok(()),
        there => Err(Error::Impossible(format!("--layers: auto:{n}, but only {there} layers can be substituted"))),
    }
}

/// True if the heads and window of `layer` are those of `source`.
pub fn can_take(model: &DenseModel, layer: usize, source: usize) -> bool {
    let (a, b) = (&model.layers[layer].shape, &model.layers[source].shape);
    (a.n_head, a.n_head_kv, a.window) == (b.n_head, b.n_head_kv, b.window)
}

/// Shallow layers left alone unless told otherwise: one in eight.
pub fn default_protect(n_layer: usize) -> usize {
    n_layer.div_ceil(8)
}

/// What of a search is known so far.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// Layers chosen before.
    pub n_chosen: usize,
    /// The layer measured together with them.
    pub layer: usize,
    /// KL to the unchanged model per token.
    pub kl: f64,
    /// Perplexity.
    pub perplexity: f64,
}

/// Chooses `n` of `candidates` greedily: each time the layer that, together with those chosen before, does least damage. A layer's damage
/// is measured again only while it may still be the least: what it did before with fewer layers is the estimate.
///
/// `observer` hears every measurement and returns false to stop.
///
/// # Errors
/// [`Error::Impossible`] where there are too few candidates, [`Error::Interrupted`] when stopped.
pub fn greedy(
    team: &mut Team,
    model: &DenseModel,
    parts: &SingleModules,
    taught: &[Teacher],
    candidates: &[(usize, usize)],
    n: usize,
    observer: &mut dyn FnMut(Measured) -> bool,
) -> Result<Vec<usize>> {
    enough(candidates, n)?;
    let mut chosen: Vec<usize> = Vec::new();
    // Layer, damage beyond that of the layers chosen when it was measured, how many those were.
    let mut queue: Vec<(usize, f64, usize)> = candidates.iter().map(|c| (c.0, f64::NEG_INFINITY, usize::MAX)).collect();
    let mut damage = 0.0;
    while chosen.len() < n {
        let best = (0..queue.len()).min_by(|&a, &b| queue[a].1.total_cmp(&queue[b].1)).expect("as many as are wanted");
        let (layer, more, at) = queue[best];
        if at == chosen.len() {
            chosen.push(layer);
            damage += more;
            queue.remove(best);
            continue;
        }
        let mut with = chosen.clone();
        with.push(layer);
        let out = team.compare(model, &parts.student(&with), taught);
        let kl = out.mean_loss();
        if !observer(Measured { n_chosen: chosen.len(), layer, kl, perplexity: out.perplexity() }) {
            return Err(Error::Interrupted);
        }
        queue[best] = (layer, kl - damage, chosen.len());
    }
    chosen.sort_unstable();
    Ok(chosen)
}
