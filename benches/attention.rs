//! Generation and prompts by depth of the context, with every layer's own attention and with every other layer taking over
//! that of the layer before. With `models/SmolLM2-135M-Instruct.Q4_1.gguf` where `models/get.sh` has put it, else with the
//! embedded model, whose heads of eight are far from typical.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lisa_cpp::attention::SharePlan;
use lisa_cpp::eval::bench::{Bench, Test};
use lisa_cpp::runtime::SessionParams;
use lisa_cpp::{Model, ModelFile, ModelParams};

fn file() -> ModelFile {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    if path.exists() { ModelFile::open(&path).unwrap() } else { ModelFile::embedded() }
}

/// Every other layer from the third on.
fn alternate(n_layer: usize) -> SharePlan {
    let layers: Vec<String> = (2..n_layer).step_by(2).map(|l| l.to_string()).collect();
    layers.join(",").parse().unwrap()
}

fn depths(c: &mut Criterion) {
    let file = file();
    let n_layer = Model::load(&file, ModelParams::default()).unwrap().config().n_layer;
    let shared = alternate(n_layer);
    for (name, share) in [("own", None), ("shared", Some(&shared))] {
        let model = Arc::new(Model::load(&file, ModelParams { share, ..ModelParams::default() }).unwrap());
        let n_ctx = model.n_ctx_train().min(8192);
        for (what, n_prompt, n_gen) in [("generation", 0, 8), ("prompt", n_ctx / 16, 0)] {
            let mut group = c.benchmark_group(format!("{what}/{name}"));
            group.sample_size(10).throughput(Throughput::Elements((n_prompt + n_gen) as u64));
            for n_depth in [0, n_ctx / 4, n_ctx / 2] {
                let test = Test { n_prompt, n_gen, n_depth };
                let mut bench = Bench::new(&model, &SessionParams::default(), &[test]).unwrap();
                group.bench_function(BenchmarkId::from_parameter(n_depth), |b| {
                    b.iter_custom(|n| bench.run(test, n as usize, false).unwrap().samples.iter().sum::<Duration>());
                });
            }
            group.finish();
        }
    }
}

criterion_group!(benches, depths);
criterion_main!(benches);
