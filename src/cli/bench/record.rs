//! One result with everything that belongs to it.

use crate::cli::memory;
use chrono::{DateTime, SecondsFormat, Utc};
use lisa_cpp::eval::Roofline;
use lisa_cpp::eval::bench::{Measurement, mean_and_deviation};
use lisa_cpp::model::Model;
use lisa_cpp::runtime::SessionParams;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What `llama-bench` calls this kind of machine; scripts that read its tables look for it.
pub const BACKEND: &str = "CPU";

/// A measured test of a model.
pub struct Record<'a> {
    /// `None` for the embedded model.
    pub path: Option<&'a Path>,
    pub model: &'a Model,
    pub use_mmap: bool,
    pub params: &'a SessionParams,
    /// Bytes the cache holds of a context of so many tokens.
    pub kv_bytes: &'a dyn Fn(usize) -> usize,
    pub measurement: &'a Measurement,
    pub start: DateTime<Utc>,
    /// Bytes resident at most, where the system tells.
    pub peak_memory: Option<u64>,
    pub roofline: Option<Roofline>,
}

impl Record<'_> {
    /// `llama 134.52 M Q4_0`: architecture, parameters, the type that most weights have.
    pub fn model_type(&self) -> String {
        let arch = &self.model.config().arch;
        match self.model.main_type() {
            Some(ty) => format!("{arch} {} {ty}", millions(self.model.n_params())),
            None => format!("{arch} {}", millions(self.model.n_params())),
        }
    }

    /// Mean and standard deviation of the tokens per second.
    pub fn rate(&self) -> (f64, f64) {
        mean_and_deviation(&self.measurement.tokens_per_second())
    }

    /// Bytes the cache holds when the test is done.
    pub fn kv_bytes(&self) -> usize {
        let test = &self.measurement.test;
        (self.kv_bytes)(test.n_depth + test.n_tokens())
    }

    /// The part of the roofline that the mean reaches: of the read bandwidth if tokens are generated, of the peak of products for
    /// a prompt.
    pub fn limit(&self) -> Option<f64> {
        let roofline = self.roofline?;
        let (test, rate) = (&self.measurement.test, self.rate().0);
        match (test.n_prompt, test.n_gen) {
            (_, 0) => Some(rate * self.model.decoder().macs_per_token() as f64 / roofline.macs_per_second),
            (0, n) => {
                let cached = (self.kv_bytes)(test.n_depth + n / 2);
                let bytes = self.model.decoder().bytes_per_token() + cached;
                Some(rate * bytes as f64 / roofline.read_bytes_per_second)
            }
            _ => None,
        }
    }

    /// Every field, under `llama-bench`'s names where it has them, in the order of its output.
    pub fn fields(&self) -> Map<String, Value> {
        let (m, p, test) = (self.model, self.params, &self.measurement.test);
        let nanoseconds: Vec<f64> = self.measurement.samples.iter().map(|t| t.as_nanos() as f64).collect();
        let (avg_ns, stddev_ns) = mean_and_deviation(&nanoseconds);
        let (avg_ts, stddev_ts) = self.rate();
        let object = json!({
            "build_commit": concat!("lisa-cpp ", env!("CARGO_PKG_VERSION")),
            "build_number": 0,
            "cpu_info": memory::cpu_name(),
            "gpu_info": "",
            "backends": BACKEND,
            "kernels": m.kernels().tier.name(),
            "model_filename": self.path.map(|p| p.display().to_string()),
            "model_type": self.model_type(),
            "model_size": m.n_tensor_bytes(),
            "model_n_params": m.n_params(),
            "n_layers_sharing": m.plan().iter().count(),
            "n_batch": p.n_batch,
            "n_ubatch": p.n_ubatch,
            "n_threads": p.n_threads,
            "type_k": p.cache_type_k.to_string(),
            "type_v": p.cache_type_v.to_string(),
            "activations": p.activations.name(),
            "use_mmap": self.use_mmap,
            "weight_bytes": m.n_weight_bytes(),
            "kv_bytes": self.kv_bytes(),
            "peak_memory_bytes": self.peak_memory,
            "read_bytes_per_second": self.roofline.map(|r| r.read_bytes_per_second),
            "macs_per_second": self.roofline.map(|r| r.macs_per_second),
            "fraction_of_limit": self.limit(),
            "n_prompt": test.n_prompt,
            "n_gen": test.n_gen,
            "n_depth": test.n_depth,
            "test_time": self.start.to_rfc3339_opts(SecondsFormat::Secs, true),
            "avg_ns": avg_ns.round() as u64,
            "stddev_ns": stddev_ns.round() as u64,
            "avg_ts": avg_ts,
            "stddev_ts": stddev_ts,
        });
        match object {
            Value::Object(fields) => fields,
            _ => unreachable!("an object was written"),
        }
    }

    /// [`Record::fields`] and the single times.
    pub fn fields_and_samples(&self) -> Map<String, Value> {
        let mut fields = self.fields();
        let ns: Vec<u64> = self.measurement.samples.iter().map(|t| t.as_nanos() as u64).collect();
        fields.insert("samples_ns".into(), json!(ns));
        fields.insert("samples_ts".into(), json!(self.measurement.tokens_per_second()));
        fields
    }
}

/// `134.52 M`, `6.74 B`.
pub fn millions(n: u64) -> String {
    match n {
        1_000_000_000.. => format!("{:.2} B", n as f64 / 1e9),
        _ => format!("{:.2} M", n as f64 / 1e6),
    }
}
