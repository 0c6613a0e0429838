//! Where a step keeps attention weights between the layer that makes them and the layers that read them: slots, assigned
//! before the first step like registers.

use ggml_ext::lisa::{Domain, Kind};

use super::plan::{Share, SharePlan};

/// What the rows of a slot hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// Scores, their log-sum-exp beside them: a weight is `exp(score - lse)`.
    Scores,
    /// Weights: the first reader that needed nothing else left them so, to spare those after it the exponentials.
    Weights,
}

/// What a layer does with the slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Route {
    /// The slot with its source's attention, for `shared` and `lisa` layers.
    pub reads: Option<(usize, Holds)>,
    /// A `shared` layer leaves weights in the slot it reads.
    pub leaves_weights: bool,
    /// The slot for its own scores, where another layer reads them.
    pub writes: Option<usize>,
}

impl Route {
    /// The same where no layer of the step leaves weights: exponentials cost less than writing them down, for steps of many tokens whose
    /// products are made in bf16.
    pub fn keeping_scores(self) -> Self {
        Self { reads: self.reads.map(|(slot, _)| (slot, Holds::Scores)), leaves_weights: false, ..self }
    }
}

/// The routes of all layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routes {
    layers: Vec<Route>,
    n_slots: usize,
}

impl Routes {
    /// Assigns slots to the `n_layer` layers of a model under `plan`; `domain` is what `lisa` layers read.
    pub fn new(plan: &SharePlan, n_layer: usize, domain: Domain) -> Self {
        // A `shared` layer has its source's attention: whoever reads it reads the source.
        let mut maker: Vec<usize> = (0..n_layer).collect();
        let mut readers: Vec<Vec<(usize, Kind)>> = vec![Vec::new(); n_layer];
        for (layer, Share { kind, source }) in plan.iter() {
            if kind == Kind::Kv {
                continue;
            }
            let source = maker[source];
            readers[source].push((layer, kind));
            if kind == Kind::Shared {
                maker[layer] = source;
            }
        }
        let mut layers = vec![Route::default(); n_layer];
        let mut slot = vec![None; n_layer];
        let (mut free, mut n_slots) = (Vec::new(), 0);
        for layer in 0..n_layer {
            if let Some(Share { kind, source }) = plan.get(layer).filter(|s| s.kind != Kind::Kv) {
                // `maker[layer]` is the layer itself for `lisa`.
                let source = maker[source];
                let all = &readers[source];
                let scores_after =
                    |l: usize| all.iter().any(|&(r, k)| r > l && k == Kind::Lisa && domain == Domain::Log);
                let first_shared = all.iter().find(|&&(r, k)| k == Kind::Shared && !scores_after(r)).map(|r| r.0);
                let holds = match first_shared {
                    Some(first) if first < layer => Holds::Weights,
                    _ => Holds::Scores,
                };
                let is_last = all.last().is_some_and(|r| r.0 == layer);
                layers[layer].reads = slot[source].map(|s| (s, holds));
                layers[layer].leaves_weights = kind == Kind::Shared && first_shared == Some(layer) && !is_last;
                if is_last {
                    free.extend(slot[source]);
                }
            }
            if !readers[layer].is_empty() {
                // May be the slot whose last reader this layer is: it is read and written block by block.
                let s = free.pop().unwrap_or_else(|| {
                    n_slots += 1;
                    n_slots - 1
                });
                slot[layer] = Some(s);
                layers[layer].writes = Some(s);
            }
        }
        Self { layers, n_slots }
    }

    /// The route of `layer`.
    pub fn layer(&self, layer: usize) -> Route {
        self.layers[layer]
    }

    /// Slots needed: 0 where no layer reads another's attention.
    pub fn n_slots(&self) -> usize {
        self.n_slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ggml_ext::lisa::{Activation, LayerMeta, LisaMeta, Provenance};

    fn plan(layers: &[(usize, Kind, usize)], n: usize) -> SharePlan {
        let mut all = vec![LayerMeta::FULL; n];
        for &(layer, kind, source) in layers {
            all[layer] = LayerMeta { kind, source: Some(source), rank: 0 };
        }
        SharePlan::from_meta(&LisaMeta {
            fingerprint: String::new(),
            layers: all,
            activation: Activation::Silu,
            domain: Domain::Log,
            scale: 1.0,
            trained: Provenance::default(),
        })
    }

    #[test]
    fn no_plan_needs_no_slot() {
        let routes = Routes::new(&SharePlan::default(), 4, Domain::Log);
        assert_eq!(routes.n_slots(), 0);
        assert!((0..4).all(|l| routes.layer(l) == Route::default()));
        assert_eq!(Routes::new(&plan(&[(1, Kind::Kv, 0)], 3), 3, Domain::Log).n_slots(), 0);
    }

    #[test]
    fn a_chain_of_shared_layers_reads_one_slot_and_exponentiates_once() {
        let p = plan(&[(1, Kind::Shared, 0), (2, Kind::Shared, 1), (3, Kind::Shared, 2)], 4);
        let r = Routes::new(&p, 4, Domain::Log);
        assert_eq!(r.n_slots(), 1);
        assert_eq!(r.layer(0), Route { writes: Some(0), ..Route::default() });
        assert_eq!(r.layer(1), Route { reads: Some((0, Holds::Scores)), leaves_weights: true, writes: None });
        assert_eq!(r.layer(2), Route { reads: Some((0, Holds::Weights)), ..Route::default() });
        assert_eq!(r.layer(3), Route { reads: Some((0, Holds::Weights)), ..Route::default() });
    }

    #[test]
    fn a_chain_of_lisa_layers_works_in_place() {
        let r = Routes::new(&plan(&[(1, Kind::Lisa, 0), (2, Kind::Lisa, 1)], 4), 4, Domain::Log);
        assert_eq!(r.n_slots(), 1);
        assert_eq!(r.layer(1), Route { reads: Some((0, Holds::Scores)), leaves_weights: false, writes: Some(0) });
        assert_eq!(r.layer(2), Route { reads: Some((0, Holds::Scores)), ..Route::default() });
    }

    #[test]
    fn scores_stay_while_a_later_layer_needs_them() {
        let layers = [(1, Kind::Shared, 0), (2, Kind::Lisa, 1), (3, Kind::Shared, 0), (4, Kind::Shared, 0)];
        let r = Routes::new(&plan(&layers, 5), 5, Domain::Log);
        assert_eq!(r.layer(1), Route { reads: Some((0, Holds::Scores)), ..Route::default() });
        assert_eq!(r.layer(2).reads, Some((0, Holds::Scores)));
        assert_eq!(r.layer(3), Route { reads: Some((0, Holds::Scores)), leaves_weights: true, writes: None });
        assert_eq!(r.layer(4).reads, Some((0, Holds::Weights)));
        let r = Routes::new(&plan(&layers, 5), 5, Domain::Weight);
        assert!(r.layer(1).leaves_weights);
        assert_eq!(r.layer(2).reads, Some((0, Holds::Weights)));
    }

    #[test]
    fn two_readers_of_one_source_keep_it_alive() {
        let layers = [(1, Kind::Lisa, 0), (2, Kind::Lisa, 0), (3, Kind::Lisa, 1)];
        let r = Routes::new(&plan(&layers, 4), 4, Domain::Log);
        assert_eq!(r.n_slots(), 2);
        assert_eq!((r.layer(1).reads, r.layer(1).writes), (Some((0, Holds::Scores)), Some(1)));
        assert_eq!((r.layer(2).reads, r.layer(2).writes), (Some((0, Holds::Scores)), None));
        assert_eq!(r.layer(3).reads, Some((1, Holds::Scores)));
    }
}
