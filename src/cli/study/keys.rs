//! What a cell's measurement depends on: looked up, hashed, and written down as its provenance.

use crate::cli::error::CliError;
use crate::cli::load::share_plan;
use crate::cli::memory::cpu_name;
use crate::cli::output::parts;
use ggml_ext::kernels::Kernels;
use lisa_cpp::compute::default_threads;
use lisa_cpp::eval::study::{Cell, Config, Hashes, Job, Quant, Speed};
use lisa_cpp::eval::tasks::Source;
use serde_json::{Map, Value, json};
use std::path::Path;

/// A cell that is ready to be measured.
pub struct Ready {
    /// What to measure; the model is the file, or the one that a type is made from.
    pub job: Job,
    /// Hash of `inputs` and of the program's version.
    pub key: String,
    /// Hash of what the weights are made of, for the name of the file that holds them.
    pub weights: String,
    /// Files and settings.
    pub provenance: Value,
}

/// Looks up and hashes the files of `cell`.
pub fn ready(config: &Config, cell: &Cell, hashes: &mut Hashes) -> Result<Ready, CliError> {
    let mut files = Map::new();
    // Of a split model all parts.
    let mut hash = |path: &Path| -> Result<String, CliError> {
        let mut all = Vec::new();
        for part in parts(path) {
            let hash = hashes.file(&part)?;
            files.insert(part.display().to_string(), json!(hash));
            all.push(hash);
        }
        Ok(all.join(" "))
    };
    let (model, weights) = match &cell.weights {
        Quant::File(path) => (path, json!({ "file": hash(path)? })),
        Quant::Make { from, ty, imatrix } => {
            let imatrix = imatrix.as_deref().map(&mut hash).transpose()?;
            let made =
                json!({ "from": hash(from)?, "type": ty.to_uppercase(), "imatrix": imatrix, "version": VERSION });
            (from, made)
        }
    };
    let plan = cell.share.as_deref().map(share_plan).transpose()?;
    // A plan in one form, wherever it came from.
    let plan = plan.map(|plan| {
        let item = |(layer, s): (usize, lisa_cpp::attention::Share)| {
            format!("{}{layer}:{}", if s.kind.name() == "kv" { "kv:" } else { "" }, s.source)
        };
        plan.iter().map(item).collect::<Vec<_>>().join(",")
    });
    let mut quality = config.quality.clone();
    let mut task_files = Map::new();
    for source in Source::all(&quality.tasks, quality.data.as_deref())? {
        let all = source.files.iter().map(|f| hash(f)).collect::<Result<Vec<_>, _>>()?;
        task_files.insert(source.name, json!(all));
    }
    let inputs = json!({
        "weights": weights,
        "baseline": hash(&cell.baseline)?,
        "sidecar": cell.lisa.as_deref().map(&mut hash).transpose()?,
        "plan": plan,
        "kv": cell.kv,
        "text": quality.text.as_deref().map(&mut hash).transpose()?,
        "tasks": task_files,
        "ctx": quality.n_ctx(),
        "chunks": quality.chunks,
        "limit": quality.limit,
        "speed": config.speed,
        "threads": config.threads,
        "machine": machine(&config.speed)?,
        "version": VERSION,
    });
    if quality.ctx_size == 0 {
        quality.ctx_size = quality.n_ctx();
    }
    let job = Job {
        model: model.clone(),
        baseline: cell.baseline.clone(),
        share: plan,
        lisa: cell.lisa.clone(),
        kv: cell.kv.clone(),
        threads: config.threads,
        quality,
        speed: config.speed.clone(),
    };
    let name = |p: &Path| p.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let provenance = json!({
        "version": VERSION,
        "threads": config.threads,
        "cpus": default_threads(),
        "cpu": cpu(),
        "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        "text": job.quality.text.as_deref().map(name),
        "baseline": name(&cell.baseline),
        "quality": job.quality,
        "speed": job.speed,
        "inputs": inputs,
        "files": files,
    });
    Ok(Ready { job, key: short_hash(&inputs.to_string()), weights: short_hash(&weights.to_string()), provenance })
}

/// The program's version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

fn short_hash(text: &str) -> String {
    let mut hash = lisa_cpp::eval::study::hash_text(text);
    hash.truncate(16);
    hash
}

/// What speed depends on besides the study: the processor and the kernels. Without a measurement of speed any machine will do.
fn machine(speed: &Speed) -> Result<Value, CliError> {
    if speed.prompt + speed.generate == 0 {
        return Ok(Value::Null);
    }
    let kernels = Kernels::from_env().map_err(CliError::run)?;
    Ok(json!({ "cpu": cpu(), "kernels": kernels.tier.name() }))
}

/// The processor's name, or its kind where the system does not tell that.
fn cpu() -> String {
    let name = cpu_name();
    if name.is_empty() { std::env::consts::ARCH.into() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lisa_cpp::eval::study::grid;

    #[test]
    fn every_part_of_a_split_model_counts() {
        let dir = tempfile::tempdir().unwrap();
        let part = |i: usize| dir.path().join(format!("m-0000{i}-of-00002.gguf"));
        let text = format!("[[model]]\nname = \"m\"\nfile = {:?}\n", part(1));
        let config = Config::parse(&text).unwrap();
        let cell = grid(&config).remove(0);
        let key = || ready(&config, &cell, &mut Hashes::default()).map(|r| r.key);
        std::fs::write(part(1), "1").unwrap();
        assert!(key().unwrap_err().to_string().contains("m-00002-of-00002.gguf"));
        std::fs::write(part(2), "2").unwrap();
        let before = key().unwrap();
        assert_eq!(key().unwrap(), before);
        std::fs::write(part(2), "3").unwrap();
        assert_ne!(key().unwrap(), before);
    }
}
