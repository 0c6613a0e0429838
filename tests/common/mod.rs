//! What several test programs need.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lisa_cpp::{Model, ModelParams};

/// SmolLM2-135M-Instruct.Q4_1, which `models/get.sh` fetches; `None` (with a note) where it was not fetched, unless
/// `LISA_REQUIRE_MODELS` is set.
pub fn smollm2_path() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("LISA_REQUIRE_MODELS").is_none(), "{} is missing: run models/get.sh", path.display());
    eprintln!("skipped: {} is missing, run models/get.sh", path.display());
    None
}

/// SmolLM2, loaded.
#[allow(dead_code)]
pub fn smollm2() -> Option<Arc<Model>> {
    smollm2_path().map(|p| Arc::new(Model::open(&p, ModelParams::default()).unwrap()))
}

/// A file under `tests/data`, unpacked where it is gzipped.
#[allow(dead_code)]
pub fn bytes(name: &str) -> Vec<u8> {
    let bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)).unwrap();
    if !name.ends_with(".gz") {
        return bytes;
    }
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut unpacked).unwrap();
    unpacked
}

/// A JSON file under `tests/data`, gzipped or not.
#[allow(dead_code)]
pub fn json(name: &str) -> serde_json::Value {
    serde_json::from_slice(&bytes(name)).unwrap()
}

/// The logarithm of the sum of the exponentials, in f64.
#[allow(dead_code)]
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|&l| (f64::from(l) - max).exp()).sum::<f64>().ln()
}

/// The index of the greatest logit, the first among equals.
#[allow(dead_code)]
pub fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
}
