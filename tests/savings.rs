//! What a sharing plan is said to save is what it saves: bytes of weights in memory and of cache per token, of a real model.

mod common;

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use common::smollm2_path;
use ggml_ext::lisa::{Geometry, merge};
use lisa_cpp::attention::{CacheType, SharePlan};
use lisa_cpp::eval::PlanCost;
use lisa_cpp::model::SharingSource;
use lisa_cpp::{Model, ModelFile, ModelParams, Session, SessionParams};

/// The golden sidecar: 16 `lisa` layers of rank 10.
fn sidecar() -> ModelFile {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden/smollm2-l16-r10.lisa.gguf.gz");
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(&std::fs::read(path).unwrap()[..]).read_to_end(&mut bytes).unwrap();
    ModelFile::from_bytes("smollm2-l16-r10.lisa.gguf", bytes)
}

fn cost(file: &ModelFile, lisa: Option<&ModelFile>, share: Option<&SharePlan>, ty: CacheType) -> PlanCost {
    let parts = file.parse().unwrap();
    let source = SharingSource::read(file, &parts, lisa, share).unwrap();
    let sidecar = lisa.map(|f| f.parse().unwrap());
    let geometry = Geometry::read(&parts[0]).unwrap();
    let sidecar = sidecar.as_ref().map(|s| &s[0]);
    PlanCost::new(&parts, sidecar, &source.plan, source.meta.as_ref(), &geometry, &[], (ty, ty)).unwrap()
}

fn cache_per_token(model: &Arc<Model>, ty: CacheType) -> u64 {
    let params = SessionParams { n_ctx: 64, cache_type_k: ty, cache_type_v: ty, ..Default::default() };
    Session::new(model.clone(), params).unwrap().cache().bytes_per_token() as u64
}

#[test]
fn predicted_bytes_are_the_bytes_in_memory() {
    let Some(path) = smollm2_path() else { return };
    let base = ModelFile::open(&path).unwrap();
    let sidecar = sidecar();
    let merged = {
        let (base, sidecar) = (base.parse().unwrap(), sidecar.parse().unwrap());
        let meta = ggml_ext::lisa::LisaMeta::read(&sidecar[0]).unwrap().unwrap();
        let mut bytes = Vec::new();
        merge(&base, &meta, Some(&sidecar[0]), &mut bytes).unwrap();
        ModelFile::from_bytes("merged.gguf", bytes)
    };
    let shared: SharePlan = "4-10,14,15,21,22,24,25,27-29".parse().unwrap();
    let load = |file: &ModelFile, lisa, share| {
        Arc::new(Model::load(file, ModelParams { lisa, share, ..Default::default() }).unwrap())
    };
    let full = load(&base, None, None);
    // Vectors and alignment networks are the bytes that are not matrices: the same with and without a plan, but for these.
    const ALIGNMENT: u64 = (9 * 9 + 2 * 9 * 18 + 18 + 3 * 5) * 4;
    for (name, file, lisa, share, alignment) in [
        ("sidecar", &base, Some(&sidecar), None, 16 * ALIGNMENT),
        ("merged", &merged, None, None, 16 * ALIGNMENT),
        ("shared", &base, None, Some(&shared), 0),
    ] {
        let model = load(file, lisa, share);
        for ty in [CacheType::F32, CacheType::F16, CacheType::Q8_0] {
            let cost = cost(file, lisa, share, ty);
            assert_eq!(cache_per_token(&full, ty), cost.cache_per_token.before, "{name} {ty:?}");
            assert_eq!(cache_per_token(&model, ty), cost.cache_per_token.after, "{name} {ty:?}");
            let saved = cost.weights.before + alignment - cost.weights.after;
            assert_eq!(full.n_weight_bytes() - model.n_weight_bytes(), saved as usize, "{name} {ty:?}");
        }
        let f16 = cost(file, lisa, share, CacheType::F16).cache_per_token;
        // 30 layers of 3 heads of 64 keys and values; 16 of them have 10 of the 64 values of a key, or none.
        let kept = if share.is_some() { 0 } else { 10 };
        assert_eq!(f16.before, 30 * 3 * (64 + 64) * 2);
        assert_eq!(f16.after, 14 * 3 * (64 + 64) * 2 + 16 * 3 * (kept + 64) * 2);
    }
}
