//! Measuring one cell.

use super::config::{Quality, Speed};
use crate::attention::{CacheType, SharePlan};
use crate::eval::bench::{Bench, Test, mean_and_deviation};
use crate::eval::tasks::{Source, evaluate};
use crate::eval::{Divergence, Perplexity};
use crate::model::{Model, ModelFile, ModelParams};
use crate::runtime::{Session, SessionParams};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is to be measured of a cell, with everything looked up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// The model's file.
    pub model: PathBuf,
    /// The baseline's.
    pub baseline: PathBuf,
    /// A plan in the form of `--share`, not a file.
    pub share: Option<String>,
    /// A sidecar.
    pub lisa: Option<PathBuf>,
    /// Type of the cache.
    pub kv: String,
    /// Threads.
    pub threads: usize,
    /// What to measure.
    pub quality: Quality,
    /// What to measure.
    pub speed: Speed,
}

impl Job {
    fn model(&self) -> Result<Arc<Model>> {
        let file = ModelFile::open(&self.model)?;
        let sidecar = self.lisa.as_deref().map(ModelFile::open).transpose()?;
        let plan = self.share.as_deref().map(str::parse::<SharePlan>).transpose();
        let plan = plan.map_err(|e| Error::Params(format!("share: {e}")))?;
        let params = ModelParams {
            n_threads: self.threads,
            lisa: sidecar.as_ref(),
            share: plan.as_ref(),
            ..ModelParams::default()
        };
        Ok(Arc::new(Model::load(&file, params)?))
    }

    fn session(&self, n_ctx: usize) -> Result<SessionParams> {
        let kv: CacheType = self.kv.parse().map_err(Error::Params)?;
        let (cache_type_k, cache_type_v) = (kv, kv);
        Ok(SessionParams { n_ctx, n_threads: self.threads, cache_type_k, cache_type_v, ..SessionParams::default() })
    }
}

/// Tokens of context whose cache is shown.
const SHOWN_CONTEXT: usize = 4096;

/// Perplexity, divergence from the baseline (which has an f16 cache and shares nothing), and benchmarks.
///
/// # Errors
/// As opening the models, reading the files and running.
pub fn quality(job: &Job) -> Result<Value> {
    let q = &job.quality;
    let mut out = json!({});
    let model = job.model()?;
    if let Some(path) = &q.text {
        out["divergence"] = divergence(job, &model, path)?;
    }
    for source in Source::all(&q.tasks, q.data.as_deref())? {
        out["tasks"][&source.name] = task(job, &model, &source)?;
    }
    Ok(out)
}

fn divergence(job: &Job, model: &Arc<Model>, text: &Path) -> Result<Value> {
    let q = &job.quality;
    let mut text = std::fs::read_to_string(text).map_err(|source| Error::Io { path: text.into(), source })?;
    // As everywhere, a byte order mark and one trailing newline are dropped.
    if text.starts_with('\u{feff}') {
        text.remove(0);
    }
    if text.ends_with('\n') {
        text.pop();
    }
    let (tokenizer, n_ctx) = (model.tokenizer(), q.n_ctx());
    let baseline = Job { model: job.baseline.clone(), share: None, lisa: None, kv: "f16".into(), ..job.clone() };
    let base_model = baseline.model()?;
    let ids = tokenizer.encode(&text, true, false)?;
    if base_model.tokenizer().n_vocab() != tokenizer.n_vocab()
        || base_model.tokenizer().encode(&text, true, false)? != ids
    {
        let what = "the baseline has another vocabulary".into();
        return Err(Error::Model { file: job.baseline.display().to_string(), what });
    }
    let n_all = Perplexity::windows(ids.len(), n_ctx)?;
    let n_windows = if q.chunks == 0 { n_all } else { q.chunks.min(n_all) };
    let mut session = Session::new(model.clone(), job.session(n_ctx)?)?;
    let mut base = Session::new(base_model, baseline.session(n_ctx)?)?;
    let mut divergence = Divergence::new(model.kernels(), tokenizer.n_vocab());
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    for window in ids.chunks_exact(n_ctx).take(n_windows) {
        divergence.add_window(&mut session, &mut base, window, bos)?;
    }
    let mut out = divergence.stats().json();
    out["n_ctx"] = json!(n_ctx);
    out["n_windows"] = json!(n_windows);
    Ok(out)
}

fn task(job: &Job, model: &Arc<Model>, source: &Source) -> Result<Value> {
    let limit = if job.quality.limit == 0 { usize::MAX } else { job.quality.limit };
    let items = source.read(limit)?;
    let params = job.session(0)?;
    let e = evaluate(model, &items, &params, params.n_threads, &mut |_| true)?;
    let mut result = json!({ "n": items.len() });
    for m in &e.metrics {
        result[m.name] = json!({ "value": m.value, "error": m.stderr });
    }
    Ok(result)
}

/// Speed and bytes: `(speed, memory)`.
///
/// # Errors
/// As opening the model and running it.
pub fn speed(job: &Job) -> Result<(Value, Value)> {
    let s = &job.speed;
    let start = std::time::Instant::now();
    let model = job.model()?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let at = |n_prompt, n_gen| s.depths.iter().map(move |&n_depth| Test { n_prompt, n_gen, n_depth });
    let tests: Vec<Test> = at(s.prompt, 0).chain(at(0, s.generate)).filter(|t| t.n_tokens() > 0).collect();
    let mut bench = Bench::new(&model, &job.session(0)?, &tests)?;
    let mut speed = json!({ "load_ms": load_ms, "kernels": model.kernels().tier.name(), "tests": [] });
    let mut rows = Vec::new();
    for test in tests {
        let m = bench.run(test, s.repetitions, true)?;
        let (mean, deviation) = mean_and_deviation(&m.tokens_per_second());
        rows.push(json!({ "test": test.to_string(), "mean": mean, "deviation": deviation, "best": m.best() }));
        if test.n_depth == 0 && test.n_gen == 0 {
            // The time of a prompt ends with the logits of the token that follows it.
            speed["time_to_first_token_ms"] = json!(1e3 * s.prompt as f64 / mean);
        }
    }
    speed["tests"] = json!(rows);
    let memory = json!({
        "file_bytes": model.n_file_bytes(),
        "weight_bytes": model.n_weight_bytes(),
        "kv_bytes_per_token": bench.session().cache().bytes_per_token(),
        "kv_bytes_of_context": Session::cache_bytes(&model, &job.session(SHOWN_CONTEXT)?),
    });
    Ok((speed, memory))
}
