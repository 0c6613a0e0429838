//! What a sharing plan saves: bytes of weights and of cache, layer by layer, from the files alone. Generation reads every weight
//! and every cached key and value once per token, so that bytes predict its speed.

use std::collections::HashMap;

use ggml_ext::gguf::{Gguf, TensorInfo};
use ggml_ext::lisa::{Geometry, Heads, Kind, LisaMeta, Part, is_lisa_name};
use serde::Serialize;

use crate::attention::{CacheType, LayerCacheSpec, SharePlan};

/// Bytes without and with the plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct BeforeAfter {
    /// Without the plan: the layer computes its own attention.
    pub before: u64,
    /// With the plan.
    pub after: u64,
}

impl BeforeAfter {
    fn add(&mut self, other: Self) {
        self.before = self.before.saturating_add(other.before);
        self.after = self.after.saturating_add(other.after);
    }

    fn times(self, n: u64) -> Self {
        Self { before: self.before.saturating_mul(n), after: self.after.saturating_mul(n) }
    }
}

/// One layer's cost.
#[derive(Debug, Clone, Serialize)]
pub struct LayerCost {
    /// Where its attention weights come from.
    pub kind: &'static str,
    /// The layer they come from.
    pub source: Option<usize>,
    /// Values per low-rank head.
    pub rank: usize,
    /// Hidden units of the alignment network.
    pub n_hidden: usize,
    /// Bytes of all its tensors.
    pub weights: BeforeAfter,
    /// Bytes it caches per position.
    pub cache_per_token: BeforeAfter,
    /// Positions it attends to; `None`: all.
    pub window: Option<usize>,
}

/// A model's cost under a plan.
#[derive(Debug, Clone, Serialize)]
pub struct PlanCost {
    /// Layer by layer.
    pub layers: Vec<LayerCost>,
    /// Bytes of weights that a token's generation reads: all tensors but embedding tables that are not the output head too.
    pub weights: BeforeAfter,
    /// Bytes cached per position.
    pub cache_per_token: BeforeAfter,
}

impl PlanCost {
    /// The cost of the model `parts` under `plan`, with a cache of these types. `sidecar` holds the modules unless the model is merged; `meta` are
    /// the metadata that the plan comes from, if not from the command line; `windows` are those of the layers, none where there are fewer. In a merged model the tensors that are not there any more are
    /// counted with as many bits as `attn_v` has.
    ///
    /// `None` where the cache's blocks do not divide the heads.
    pub fn new(
        parts: &[Gguf],
        sidecar: Option<&Gguf>,
        plan: &SharePlan,
        meta: Option<&LisaMeta>,
        geometry: &Geometry,
        windows: &[Option<usize>],
        (ty_k, ty_v): (CacheType, CacheType),
    ) -> Option<Self> {
        let files = parts.iter().chain(sidecar);
        let tensors: HashMap<&str, &TensorInfo> =
            files.flat_map(|g| g.tensors()).map(|t| (t.name.as_str(), t)).collect();
        let mut cost =
            Self { layers: Vec::new(), weights: BeforeAfter::default(), cache_per_token: BeforeAfter::default() };
        for (i, heads) in geometry.layers.iter().enumerate() {
            let share = plan.get(i);
            let unshared = if i < geometry.n_caching { Kind::Full } else { Kind::Kv };
            let kind = share.map_or(unshared, |s| s.kind);
            let rank = meta.map_or(0, |m| m.layers[i].rank);
            let cache = |spec: LayerCacheSpec| spec.bytes_per_token(ty_k, ty_v).map(|b| b as u64);
            let cache_per_token =
                BeforeAfter { before: cache(cached(unshared, 0, heads))?, after: cache(cached(kind, rank, heads))? };
            let from_plan = share.map_or(Kind::Full, |s| s.kind);
            let chosen = parts.first().map_or([1, 1], |head| chosen_experts(head, i));
            let weights = layer_weights(&tensors, i, from_plan, geometry.n_embd, heads, chosen);
            cost.cache_per_token.add(cache_per_token);
            cost.weights.add(weights);
            cost.layers.push(LayerCost {
                kind: kind.name(),
                source: share.map(|s| s.source),
                rank,
                n_hidden: tensors.get(Part::AlignUp.tensor(i).as_str()).map_or(0, |t| t.shape[0] as usize),
                weights,
                cache_per_token,
                window: windows.get(i).copied().flatten(),
            });
        }
        let untied = tensors.contains_key("output.weight");
        let others = tensors.values().filter(|t| layer_of(&t.name).is_none());
        // Of tables a token reads its row alone.
        let is_table = |name: &str| {
            ["per_layer_token_embd.weight", "position_embd.weight"].contains(&name)
                || untied && name == "token_embd.weight"
        };
        let others = others.filter(|t| !is_table(&t.name)).map(|t| t.n_bytes).sum();
        cost.weights.add(BeforeAfter { before: others, after: others });
        Some(cost)
    }

    /// The same where tokens pass through all layers `n` times, each time with a cache of its own.
    pub fn in_rounds(mut self, n: usize) -> Self {
        let n = n as u64;
        for l in &mut self.layers {
            self.weights.add(l.weights.times(n - 1));
            self.cache_per_token.add(l.cache_per_token.times(n - 1));
            (l.weights, l.cache_per_token) = (l.weights.times(n), l.cache_per_token.times(n));
        }
        self
    }

    /// Bytes that the generation of one token reads when `depth` positions are cached.
    pub fn read_per_token(&self, depth: u64) -> BeforeAfter {
        let mut read = self.cached(|window| window.map_or(depth, |w| depth.min(w as u64)));
        read.add(self.weights);
        read
    }

    /// Bytes of the cache when a layer with such a window holds `n_positions(window)`.
    pub fn cached(&self, n_positions: impl Fn(Option<usize>) -> u64) -> BeforeAfter {
        let mut all = BeforeAfter::default();
        for l in &self.layers {
            all.add(l.cache_per_token.times(n_positions(l.window)));
        }
        all
    }

    /// How many times faster generation is predicted to be at `depth`, as far as it is bound by reading memory.
    pub fn speedup(&self, depth: u64) -> f64 {
        let read = self.read_per_token(depth);
        read.before as f64 / read.after.max(1) as f64
    }
}

/// What a layer of this kind caches.
fn cached(kind: Kind, rank: usize, heads: &Heads) -> LayerCacheSpec {
    LayerCacheSpec {
        n_head_kv: heads.n_head_kv,
        key_dim: (kind == Kind::Full).then_some(heads.key_length),
        rank: (rank > 0).then_some(rank),
        value_dim: (kind != Kind::Kv).then_some(heads.value_length),
        window: None,
        n_state: 0,
    }
}

fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// How many of the experts of layer `i` a token meets, and of how many; the same of one network.
fn chosen_experts(gguf: &Gguf, i: usize) -> [u64; 2] {
    let arch = gguf.str("general.architecture").ok().flatten().unwrap_or_default();
    let count = |key: &str| {
        let key = format!("{arch}.{key}");
        let of_layer = gguf.u32s(&key).ok().flatten().and_then(|all| all.get(i).copied().map(u64::from));
        of_layer.or_else(|| gguf.u64(&key).ok().flatten()).filter(|&n| n > 0)
    };
    match [count("expert_used_count"), count("expert_count")] {
        [Some(used), Some(all)] => [used.min(all), all],
        _ => [1, 1],
    }
}

/// Bytes of a layer's tensors that the generation of a token reads.
fn layer_weights(
    tensors: &HashMap<&str, &TensorInfo>,
    layer: usize,
    kind: Kind,
    n_embd: usize,
    heads: &Heads,
    chosen: [u64; 2],
) -> BeforeAfter {
    let bytes = |name: &str| tensors.get(format!("blk.{layer}.{name}").as_str()).map(|t| t.n_bytes);
    let (q, k, v) =
        (heads.n_head * heads.key_length, heads.n_head_kv * heads.key_length, heads.n_head_kv * heads.value_length);
    let rows = |p: &str| match p {
        "q" => q as u64,
        "k" => k as u64,
        _ => v as u64,
    };
    let in_layer = || tensors.values().filter(|t| layer_of(&t.name) == Some(layer));
    let is_lisa = |t: &&&TensorInfo| is_lisa_name(&t.name);
    let modules: u64 = in_layer().filter(is_lisa).map(|t| t.n_bytes).sum();
    // A damaged file can claim any sizes.
    let share = |bytes: u64, part: u64, of: u64| {
        u64::try_from(u128::from(bytes) * u128::from(part) / u128::from(of.max(1))).unwrap_or(u64::MAX)
    };
    let read = |t: &TensorInfo| {
        let [used, all] = if t.name.ends_with("_exps.weight") { chosen } else { [1, 1] };
        share(t.n_bytes, used, all)
    };
    let mut before: u64 = in_layer().filter(|t| !is_lisa(t)).map(|t| read(t)).sum();
    let mut dropped = 0u64;
    // Multi-head latent attention has others, of which those count that are there.
    let is_latent = bytes("attn_v_b.weight").is_some();
    for p in kind.idle_projections().iter().filter(|p| is_latent || ["q", "k", "v"].contains(p)) {
        let tensor = |s| tensors.get(format!("blk.{layer}.attn_{p}.{s}").as_str());
        // Queries may share their tensor with gates, which stay.
        let used = |t: &&TensorInfo| share(t.n_bytes, rows(p), t.n_rows().max(rows(p)));
        let own: u64 = tensor("weight").map(used).into_iter().chain(tensor("bias").map(|t| t.n_bytes)).sum();
        let norm = bytes(&format!("attn_{p}_norm.weight")).unwrap_or(0);
        if own > 0 || is_latent {
            dropped += own + norm;
        } else if let Some(fused) = bytes("attn_qkv.weight") {
            dropped += share(fused, rows(p), (q + k + v) as u64);
        } else {
            // Merged: the tensor is gone. As many bits as those of the layer's values, or of its output projection.
            let like = ["attn_v.weight", "attn_output.weight"].iter();
            let like = like.filter_map(|n| tensors.get(format!("blk.{layer}.{n}").as_str())).next();
            let gone = like.map_or(0, |t| share(t.n_bytes, rows(p).saturating_mul(n_embd as u64), t.n_elements()));
            before = before.saturating_add(gone);
            dropped = dropped.saturating_add(gone);
        }
    }
    BeforeAfter { before, after: before.saturating_sub(dropped).saturating_add(modules) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ggml_ext::GgmlType;
    use ggml_ext::gguf::GgufWriter;

    fn file(tensors: &[(&str, [u64; 2], GgmlType)]) -> Vec<u8> {
        let mut w = GgufWriter::new(Vec::new());
        for (name, shape, ty) in tensors {
            w.tensor(name, shape, *ty).unwrap();
        }
        for (name, shape, ty) in tensors {
            let bytes = ty.row_bytes(shape[0] as usize).unwrap() * shape[1] as usize;
            w.data(name, &vec![0; bytes]).unwrap();
        }
        w.finish().unwrap()
    }

    /// Two layers of 64, two heads of 32 with one for keys and values; the second shares.
    #[test]
    fn shared_layers_read_no_queries_and_keys() {
        let q8 = GgmlType::Q8_0;
        let layer = |i: usize| ["q", "k", "v", "output"].map(|n| format!("blk.{i}.attn_{n}.weight"));
        let (a, b) = (layer(0), layer(1));
        let mut all = vec![("token_embd.weight", [64, 10], q8)];
        for l in [&a, &b] {
            let shapes = [[64, 64], [64, 32], [64, 32], [64, 64]];
            all.extend(l.iter().zip(shapes).map(|(n, s)| (n.as_str(), s, q8)));
        }
        let heads = Heads { n_head: 2, n_head_kv: 1, key_length: 32, value_length: 32 };
        let geometry = Geometry::uniform(2, 64, heads);
        let plan: SharePlan = "1".parse().unwrap();
        let types = (CacheType::F16, CacheType::F16);
        let row = 68; // 64 elements of Q8_0

        let bytes = file(&all);
        let base = [Gguf::parse(&bytes).unwrap()];
        let cost = PlanCost::new(&base, None, &plan, None, &geometry, &[], types).unwrap();
        assert_eq!(cost.weights, BeforeAfter { before: (10 + 2 * 192) * row, after: (10 + 192 + 96) * row });
        assert_eq!(cost.cache_per_token, BeforeAfter { before: 256, after: 192 });
        assert_eq!(cost.read_per_token(100).after, 298 * row + 19_200);
        assert!((cost.speedup(0) - 394.0 / 298.0).abs() < 1e-9);

        let windows = [None, Some(30)];
        let windowed = PlanCost::new(&base, None, &plan, None, &geometry, &windows, types).unwrap();
        assert_eq!(windowed.read_per_token(100).after, 298 * row + 128 * 100 + 64 * 30);

        // Merged, the same figures come from what is left.
        let merged: Vec<_> = all.iter().filter(|t| t.0 != b[0] && t.0 != b[1]).copied().collect();
        let bytes = file(&merged);
        let merged = [Gguf::parse(&bytes).unwrap()];
        let again = PlanCost::new(&merged, None, &plan, None, &geometry, &[], types).unwrap();
        assert_eq!((again.weights, again.cache_per_token), (cost.weights, cost.cache_per_token));
    }
}
