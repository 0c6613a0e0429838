//! Attention sharing against an independent implementation: tiny models with random modules, and the logits that a
//! float64 forward pass written from the definitions gives for them (see `data/sharing/README.md`).

#[path = "common/reference.rs"]
mod reference;

use std::sync::Arc;

use ggml_ext::gguf::{Gguf, GgufWriter};
use ggml_ext::lisa::{Activation, Domain, LayerMeta, LisaMeta, Provenance, identify, merge};
use lisa_cpp::attention::{CacheType, SharePlan};
use lisa_cpp::{Model, ModelFile, ModelParams, Session, SessionParams};
use reference::{Reference, Subject, collect, folder, gunzip, names};

/// The tiny model `name` of either folder.
fn base(name: &str) -> ModelFile {
    let here = folder("sharing").join(format!("{name}.gguf.gz"));
    let path = if here.exists() { here } else { folder("families").join(format!("{name}.gguf.gz")) };
    ModelFile::from_bytes(name, gunzip(&path))
}

fn sidecar(name: &str) -> ModelFile {
    ModelFile::from_bytes(&format!("{name}.lisa"), gunzip(&folder("sharing").join(format!("{name}.lisa.gguf.gz"))))
}

fn reference(name: &str) -> Reference {
    serde_json::from_slice(&gunzip(&folder("sharing").join(format!("{name}.json.gz")))).expect("reference logits")
}

fn load(name: &'static str) -> Subject {
    let reference = reference(name);
    let base = base(reference.base.as_deref().expect("the base model's name"));
    let params = ModelParams { lisa: Some(&sidecar(name)), ..Default::default() };
    let model = Model::load(&base, params).unwrap_or_else(|e| panic!("{name}: {e}"));
    Subject::new(name, model, reference)
}

/// One file with base and modules is the same model.
fn merged_is_identical(name: &'static str) {
    let beside = load(name);
    let (base, sidecar) = (base(beside.reference.base.as_deref().unwrap()), sidecar(name));
    let (parts, modules) = (base.parse().unwrap(), sidecar.parse().unwrap());
    let meta = LisaMeta::read(&modules[0]).unwrap().unwrap();
    let mut bytes = Vec::new();
    merge(&parts, &meta, Some(&modules[0]), &mut bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
    let merged = ModelFile::from_bytes("merged", bytes);
    let model = Model::load(&merged, ModelParams::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let merged = Subject::new(name, model, reference(name));
    for run in &beside.reference.runs {
        assert!(merged.logits(run, CacheType::F32, 512, 2) == beside.logits(run, CacheType::F32, 512, 2), "{name}");
    }
}

macro_rules! cases {
    ($($name:ident)*) => { $(
        mod $name {
            use crate::reference;
            const NAME: &str = stringify!($name);
            #[test]
            fn matches_the_reference() {
                reference::matches_the_reference(&super::load(NAME))
            }
            #[test]
            fn default_mode_keeps_float_weights_exact() {
                reference::default_mode_keeps_float_weights_exact(&super::load(NAME))
            }
            #[test]
            fn compressed_caches_stay_close() {
                reference::compressed_caches_stay_close(&super::load(NAME))
            }
            #[test]
            fn any_batching_is_the_same() {
                reference::any_batching_is_the_same(&super::load(NAME))
            }
            #[test]
            fn any_thread_count_is_identical() {
                reference::any_thread_count_is_identical(&super::load(NAME))
            }
            #[test]
            fn truncation_forgets() {
                reference::truncation_forgets(&super::load(NAME))
            }
            #[test]
            fn merged_is_identical() {
                super::merged_is_identical(NAME)
            }
        }
    )*

        /// A case added to the folder is tested, or this says so.
        #[test]
        fn every_case_of_the_folder_is_listed() {
            let mut listed = vec![$(stringify!($name)),*];
            listed.sort_unstable();
            assert_eq!(names(&folder("sharing"), ".lisa.gguf.gz"), listed);
        }
    };
}

cases! {
    llama_gqa llama_mha llama_mqa llama_head_dim
    weight_domain relu gelu linear rank0
    chain sources shared comp kv kv_shared
    random_1 random_2 random_3 random_4
    qwen2 qwen3 gemma3 gemma3_capped gemma3_wide phi3 phi3_partial
}

#[test]
fn windows_are_all_that_is_seen() {
    for name in ["gemma3", "gemma3_capped"] {
        reference::windows_are_all_that_is_seen(&load(name));
    }
}

/// A plan of the command line is the same as the sidecar that says the same.
#[test]
fn command_line_plans_are_sidecars_without_modules() {
    for (name, plan) in [("shared", "1, 2:0"), ("kv_shared", "kv:1, 2")] {
        let beside = load(name);
        let plan: SharePlan = plan.parse().unwrap();
        let params = ModelParams { share: Some(&plan), ..Default::default() };
        let model = Model::load(&base(beside.reference.base.as_deref().unwrap()), params).unwrap();
        let planned = Subject::new(name, model, reference(name));
        let run = &beside.reference.runs[0];
        assert!(planned.logits(run, CacheType::F32, 512, 2) == beside.logits(run, CacheType::F32, 512, 2), "{name}");
    }
}

/// A prompt puts of its last layers only what is cached through all of its tokens: whatever these layers are, what it says and what
/// it leaves in the cache is as if every token's logits had been asked for.
#[test]
fn a_prompt_says_what_its_last_token_says() {
    let names = ["linear", "shared", "comp", "kv", "kv_shared", "chain"];
    let mut models: Vec<_> = names.iter().map(|name| (name.to_string(), load(name).model.clone())).collect();
    for name in ["kv:1-2", "kv:2", "2", "1-2", "2:0"] {
        let plan: SharePlan = name.parse().unwrap();
        let params = ModelParams { share: Some(&plan), ..Default::default() };
        let base = base(load("shared").reference.base.as_deref().unwrap());
        models.push((name.to_string(), Model::load(&base, params).unwrap().into()));
    }
    let caching: std::collections::BTreeSet<_> = models.iter().map(|(_, m)| m.decoder().last_caching()).collect();
    assert!(caching.len() > 1, "some plans end in layers that cache nothing: {caching:?}");
    let ids: Vec<u32> = (0..40).map(|i| 3 + i * 7 % 50).collect();
    for (name, model) in models {
        for n_ubatch in [5, 16, 64] {
            let params = SessionParams { n_ctx: 64, n_ubatch, n_threads: 2, ..Default::default() };
            let session = || Session::new(model.clone(), params.clone()).unwrap();
            let (mut asked, mut all) = (session(), session());
            let last = asked.prefill(&ids, &mut |_| ()).unwrap().to_vec();
            assert!(last == *collect(&mut all, &ids).last().unwrap(), "{name}, ubatches of {n_ubatch}");
            assert!(asked.decode(7).unwrap() == all.decode(7).unwrap(), "{name}, ubatches of {n_ubatch}: the cache");
        }
    }
}

/// A sidecar for `base` whose layers are all full; it tells of `extra` more than there are.
fn full_sidecar(base: &ModelFile, extra: usize) -> ModelFile {
    let parts = base.parse().unwrap();
    let gguf: &Gguf = &parts[0];
    let arch = gguf.str("general.architecture").unwrap().unwrap();
    let (geometry, fingerprint) = identify(&parts).unwrap();
    let meta = LisaMeta {
        fingerprint,
        layers: vec![LayerMeta::FULL; geometry.layers.len() + extra],
        activation: Activation::Silu,
        domain: Domain::Log,
        scale: 1.0,
        trained: Provenance::default(),
    };
    let mut w = GgufWriter::new(Vec::new());
    for (key, value) in [("general.architecture", arch), ("general.type", "adapter"), ("adapter.type", "lisa")] {
        w.str(key, value).unwrap();
    }
    meta.write(&mut w).unwrap();
    ModelFile::from_bytes("full", w.finish().unwrap())
}

/// Layers that share nothing run as if there were no plan: not a bit differs, whatever the cache and the batches.
#[test]
fn full_layers_are_untouched() {
    for name in names(&folder("families"), ".gguf.gz") {
        let file = base(&name);
        let sidecar = full_sidecar(&file, 0);
        let with = |lisa| Arc::new(Model::load(&file, ModelParams { lisa, ..Default::default() }).unwrap());
        let (plain, planned) = (with(None), with(Some(&sidecar)));
        let n_vocab = plain.decoder().n_vocab() as u32;
        let ids: Vec<u32> = (0..40).map(|i| (i * i * 7 + 3) % n_vocab).collect();
        for cache in [CacheType::F32, CacheType::F16, CacheType::Q8_0] {
            let params = SessionParams {
                n_ctx: 64,
                n_ubatch: 16,
                n_threads: 2,
                cache_type_k: cache,
                cache_type_v: cache,
                ..Default::default()
            };
            let [a, b] = [&plain, &planned].map(|model| {
                let mut session = Session::new(model.clone(), params.clone()).ok()?;
                let mut rows = collect(&mut session, &ids[..30]);
                session.shift(2, 9).unwrap();
                rows.extend(ids[30..].iter().map(|&id| session.decode(id).unwrap().to_vec()));
                Some(rows)
            });
            let fits =
                cache != CacheType::Q8_0 || plain.decoder().attentions().all(|s| s.head_dim_k.is_multiple_of(32));
            assert_eq!(a.is_some(), fits, "{name}, {cache:?}");
            assert!(a == b, "{name}, {cache:?}");
        }
    }
}

/// A plan for another model, or one that the layers cannot follow, is refused by name.
#[test]
fn what_does_not_fit_is_refused() {
    let refused = |base_name: &str, lisa: Option<&ModelFile>, plan: Option<&str>, parts: &[&str]| {
        let share: Option<SharePlan> = plan.map(|p| p.parse().unwrap());
        let params = ModelParams { lisa, share: share.as_ref(), ..Default::default() };
        let message = match Model::load(&base(base_name), params) {
            Ok(_) => panic!("{base_name}: accepted, expected {parts:?}"),
            Err(e) => e.to_string(),
        };
        assert!(!message.contains('\n') && parts.iter().all(|p| message.contains(p)), "{message}");
    };
    refused("llama_bias", Some(&sidecar("llama_gqa")), None, &["llama_gqa.lisa", "fingerprint"]);
    refused("qwen2", Some(&sidecar("llama_gqa")), None, &["llama_gqa.lisa", "llama", "qwen2"]);
    let deeper = full_sidecar(&base("llama"), 1);
    refused("llama", Some(&deeper), None, &["full", "lisa.layer.kind", "4", "3"]);
    let plain = ModelFile::from_bytes("plain", gunzip(&folder("families").join("llama.gguf.gz")));
    refused("llama", Some(&plain), None, &["plain", "not a LISA sidecar"]);
    refused("llama", Some(&sidecar("llama_gqa")), Some("1"), &["--lisa", "--share"]);
    refused("llama", None, Some("3"), &["layer 3", "3 layers"]);
    // Layer 5 is the first that sees the whole context.
    refused("gemma3", None, Some("5"), &["layer 5", "source 4", "8 positions"]);
    refused("llama_deep", None, Some("1, kv:2"), &["layer 2", "source 1", "keeps no keys"]);
}
