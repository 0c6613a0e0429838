//! The sharing plan of a model: which layers take what from which, and what that saves.

use super::super::args::CacheTypeArg;
use super::super::error::CliError;
use super::super::load;
use super::super::memory::human;
use clap::ValueEnum;
use ggml_ext::gguf::Gguf;
use ggml_ext::lisa::{Geometry, LisaMeta, Part, is_sidecar};
use lisa_cpp::eval::{BeforeAfter, PlanCost};
use lisa_cpp::model::{ModelFile, SharingSource, rounds, windows};
use serde_json::json;
use std::fmt::Write as _;
use std::path::Path;

/// Depths for which the speed of generation is predicted.
const DEPTHS: [u64; 3] = [0, 2048, 8192];

/// What is shown of a plan.
pub struct Sharing {
    meta: Option<LisaMeta>,
    /// The model's own file has the plan.
    is_merged: bool,
    /// For each type of cache that the heads allow. Empty for a sidecar, which has no model with it.
    costs: Vec<(CacheTypeArg, PlanCost)>,
    /// Of a sidecar: hidden units by layer.
    n_hidden: Vec<usize>,
}

impl Sharing {
    /// The plan of the model `file`, of the sidecar `lisa` or the list `share` for it; `None` where no layer shares.
    pub fn of(
        file: &ModelFile,
        parts: &[Gguf],
        lisa: Option<&Path>,
        share: Option<&str>,
    ) -> Result<Option<Self>, CliError> {
        let error = |e: &dyn std::fmt::Display| CliError::run(format!("{}: {e}", file.name));
        if is_sidecar(&parts[0]) && lisa.is_none() && share.is_none() {
            let meta = LisaMeta::read(&parts[0]).map_err(|e| error(&e))?;
            let hidden = |m: &LisaMeta| {
                let units = (0..m.layers.len()).map(|i| parts[0].tensor(&Part::AlignUp.tensor(i)));
                units.map(|t| t.map_or(0, |t| t.shape[0] as usize)).collect()
            };
            return Ok(meta.map(|m| Self { n_hidden: hidden(&m), meta: Some(m), is_merged: false, costs: Vec::new() }));
        }
        let lisa = lisa.map(load::sidecar).transpose()?;
        let share = share.map(load::share_plan).transpose()?;
        let source = SharingSource::read(file, parts, lisa.as_ref(), share.as_ref())?;
        if source.plan.is_empty() && source.meta.is_none() {
            return Ok(None);
        }
        // Of a plan in the model's own file it is shown what is there, whether the model can be loaded or not.
        if lisa.is_some() || share.is_some() {
            source.check(file, parts)?;
        }
        let geometry = Geometry::read(&parts[0]).map_err(|e| error(&e))?;
        let windows = windows(&file.name, &parts[0])?;
        let n_rounds = rounds(&file.name, &parts[0])?;
        let sidecar = lisa.as_ref().map(ModelFile::parse).transpose()?;
        let sidecar = sidecar.as_ref().and_then(|s| s.first());
        let costs = CacheTypeArg::value_variants().iter().filter_map(|&kind| {
            let types = (kind.into(), kind.into());
            let meta = source.meta.as_ref();
            let cost = PlanCost::new(parts, sidecar, &source.plan, meta, &geometry, &windows, types)?;
            Some((kind, cost.in_rounds(n_rounds)))
        });
        let is_merged = source.meta.is_some() && lisa.is_none();
        let costs = costs.collect();
        Ok(Some(Self { costs, is_merged, meta: source.meta, n_hidden: Vec::new() }))
    }

    /// The cost with keys and values of type `kind`.
    pub fn cost(&self, kind: CacheTypeArg) -> Option<&PlanCost> {
        self.costs.iter().find(|(k, _)| *k == kind).map(|(_, c)| c)
    }

    /// Bytes of weights that are in the files but not needed under the plan, less those of a sidecar's modules.
    pub fn saved_weight_bytes(&self) -> i64 {
        let saved = |c: &PlanCost| c.weights.before as i64 - c.weights.after as i64;
        if self.is_merged { 0 } else { self.f16().map_or(0, saved) }
    }

    fn f16(&self) -> Option<&PlanCost> {
        self.cost(CacheTypeArg::F16)
    }

    /// The JSON form; bytes of the cache are those of F16.
    pub fn json(&self) -> serde_json::Value {
        let meta = self.meta.as_ref();
        let trained = meta.map(|m| &m.trained);
        let layers = match (self.f16(), meta) {
            (Some(cost), _) => json!(cost.layers),
            (None, Some(m)) => {
                let layer = |(l, &n_hidden): (&ggml_ext::lisa::LayerMeta, &usize)| json!({"kind": l.kind.name(), "source": l.source, "rank": l.rank, "n_hidden": n_hidden});
                m.layers.iter().zip(&self.n_hidden).map(layer).collect()
            }
            (None, None) => json!(null),
        };
        let decode = |c: &PlanCost| {
            let at = |depth| {
                let BeforeAfter { before, after } = c.read_per_token(depth);
                json!({"depth": depth, "bytes_before": before, "bytes_after": after, "predicted_speedup": c.speedup(depth)})
            };
            DEPTHS.map(at)
        };
        json!({
            "layers": layers,
            "fingerprint": meta.map(|m| &m.fingerprint),
            "activation": meta.map(|m| m.activation.name()),
            "domain": meta.map(|m| m.domain.name()),
            "scale": meta.map(|m| m.scale),
            "trained": trained.map(|t| json!({"tokens": t.tokens, "data": t.data, "seed": t.seed, "base": t.base})),
            "weights_read_bytes": self.f16().map(|c| c.weights),
            "cache_bytes_per_token": self.f16().map(|c| c.cache_per_token),
            "generation": self.f16().map(decode),
        })
    }

    /// The text form.
    pub fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "\nsharing")?;
        if let Some(m) = &self.meta {
            writeln!(out, "  made for     the model with fingerprint {}", m.fingerprint)?;
            let trained = &m.trained;
            if let Some(tokens) = trained.tokens {
                let data = trained.data.as_ref().map_or(String::new(), |d| format!(" of {d:?}"));
                writeln!(out, "  trained on   {tokens} tokens{data}")?;
            }
            writeln!(out, "  alignment    of {}s, hidden units {}", m.domain, m.activation)?;
        }
        let Some(cost) = self.f16() else {
            let layers = self.meta.iter().flat_map(|m| &m.layers).zip(&self.n_hidden).enumerate();
            writeln!(out, "  {:>5}  {:<6}  {:>6}  {:>4}  {:>6}", "layer", "kind", "source", "rank", "hidden")?;
            for (i, (l, n_hidden)) in layers {
                let source = l.source.map_or("-".into(), |s| s.to_string());
                writeln!(out, "  {i:>5}  {:<6}  {source:>6}  {:>4}  {n_hidden:>6}", l.kind.name(), l.rank)?;
            }
            return Ok(());
        };
        let n = cost.layers.len();
        let shared = cost.layers.iter().filter(|l| l.source.is_some()).count();
        writeln!(out, "  layers       {shared} of {n} take attention from another ({} %)", 100 * shared / n.max(1))?;
        writeln!(
            out,
            "  {:>5}  {:<6}  {:>6}  {:>4}  {:>6}  {:>25}  {:>19}",
            "layer", "kind", "source", "rank", "hidden", "weights", "cache per token"
        )?;
        let change = |c: BeforeAfter| match c.before == c.after {
            true => human(c.after),
            false => format!("{} -> {}", human(c.before), human(c.after)),
        };
        for (i, l) in cost.layers.iter().enumerate() {
            let source = l.source.map_or("-".into(), |s| s.to_string());
            writeln!(
                out,
                "  {i:>5}  {:<6}  {source:>6}  {:>4}  {:>6}  {:>25}  {:>19}",
                l.kind,
                l.rank,
                l.n_hidden,
                change(l.weights),
                change(l.cache_per_token)
            )?;
        }
        writeln!(out, "  weights read for a token    {}", change(cost.weights))?;
        writeln!(out, "  cache per token, in f16     {}", change(cost.cache_per_token))?;
        let faster = DEPTHS.map(|d| format!("{:+.1} % at depth {d}", 100.0 * (cost.speedup(d) - 1.0)));
        writeln!(out, "  generation, bound by reading: {}", faster.join(", "))
    }
}
