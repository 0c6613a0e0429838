//! Every model family against an independent implementation: tiny random-weight models and the logits llama.cpp gives
//! for them (see `data/families/README.md`).

#[path = "common/reference.rs"]
mod reference;

use std::sync::atomic::Ordering;

use ggml_ext::GgmlType;
use ggml_ext::gguf::Gguf;
use ggml_ext::lisa::{Activation, Domain, Kind, LayerMeta, LisaMeta, Provenance, identify, merge};
use lisa_cpp::attention::{CacheType, SharePlan};
use lisa_cpp::model::{Override, OverrideValue};
use lisa_cpp::{ActivationType, Model, ModelFile, ModelParams, Session, SessionParams};
use reference::{Subject, folder, gunzip, names};

fn load(name: &'static str) -> Subject {
    let folder = folder("families");
    let file = ModelFile::from_bytes(name, gunzip(&folder.join(format!("{name}.gguf.gz"))));
    let model = Model::load(&file, ModelParams::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let reference = gunzip(&folder.join(format!("{name}.json.gz")));
    Subject::new(name, model, serde_json::from_slice(&reference).expect("reference logits"))
}

/// A model whose layers share as `plan` says, or why they cannot.
fn planned(name: &str, plan: &str) -> lisa_cpp::Result<Model> {
    let file = ModelFile::from_bytes(name, gunzip(&folder("families").join(format!("{name}.gguf.gz"))));
    Model::load(&file, ModelParams { share: Some(&plan.parse().unwrap()), ..Default::default() })
}

macro_rules! families {
    ($($name:ident)*) => { $(
        mod $name {
            use crate::reference;
            const NAME: &str = stringify!($name);
            #[test]
            fn matches_the_reference() { reference::matches_the_reference(&super::load(NAME)) }
            #[test]
            fn default_mode_keeps_float_weights_exact() { reference::default_mode_keeps_float_weights_exact(&super::load(NAME)) }
            #[test]
            fn compressed_caches_stay_close() { reference::compressed_caches_stay_close(&super::load(NAME)) }
            #[test]
            fn any_batching_is_the_same() { reference::any_batching_is_the_same(&super::load(NAME)) }
            #[test]
            fn any_thread_count_is_identical() { reference::any_thread_count_is_identical(&super::load(NAME)) }
            #[test]
            fn truncation_forgets() { reference::truncation_forgets(&super::load(NAME)) }
        }
    )*

        /// A model added to the folder is tested, or this says so.
        #[test]
        fn every_model_of_the_folder_is_listed() {
            let mut listed = vec![$(stringify!($name)),*];
            listed.sort_unstable();
            assert_eq!(names(&folder("families"), ".gguf.gz"), listed);
        }
    };
}

families! {
    llama llama_mha_tied llama_mqa llama_linear llama_linear_old_key llama_rope_freqs llama_yarn llama_head_dim
    llama_bias llama_window_key llama_experts qwen3moe qwen3moe_nvfp4 olmoe granitemoe
    deepseek2 deepseek2_lite deepseek2_dense deepseek2_old deepseek2_old_dense mistral4 minicpm3
    gpt_oss gpt_oss_pattern granitemoe_shared qwen2moe deepseek bailingmoe bailingmoe2 dots1 glm4moe glm4moe_normed ernie4_5_moe hunyuan_moe hy_v3 hy_v3_unsaid minimax_m2 mellum mellum_pattern mellum_global afmoe mimo2 mimo2_split step35 step35_plain laguna laguna_values dbrx arctic grok grok_beside grok_capped grovemoe grovemoe_unsaid maple maple_plain smallthinker smallthinker_windows llama4
    internlm2 ernie4_5 paddleocr exaone exaone4 exaone4_windows exaone_moe exaone_moe_pattern seed_oss glm4 chatglm chatglm_tied hunyuan hunyuan_alpha maincoder plamo plamo3 plamo3_pattern hunyuan_vl hunyuan_vl_plain smollm3 smollm3_tied spark2_5 spark2_5_tied talkie talkie_wide
    openelm plm olmo olmo_clipped olmo2 olmo2_windows mistral3 mistral3_plain
    granite granite_unturned granite_swa granite_swa_experts minicpm minicpm_longrope
    qwen qwen2 qwen2_tied_yarn qwen3 qwen3_tied
    gemma gemma2 gemma2_pattern
    qwen2vl qwen3vl qwen3vlmoe glm4_sections nanbeige nanbeige_unnormed nanbeige_once xverse deci deci_attention_first pangu baichuan baichuan_slopes refact bitnet bitnet_plain
    lfm2 lfm2_attention_last lfm2moe
    qwen35 qwen35_guessing qwen35moe qwen35moe_nvfp4 qwen3next qwen3next_fused kimi_linear kimi_linear_fused bailingmoe3 bailingmoe3_sections minimax_01 minimax_01_interval
    granitehybrid granitehybrid_experts falcon_h1 falcon_h1_normed nemotron_h nemotron_h_moe nemotron_h_moe_latents nemotron_h_moe_varying mamba2 mamba2_tied
    mamba mamba_normed jamba jamba_dense plamo2 plamo2_tied rwkv7 arwkv7 arwkv7_plain rwkv6 rwkv6_apart rwkv6qwen2
    gemma4 gemma4_plain gemma4_experts gemma3n muse_glimmer muse_glimmer_flags
    gptneox gptneox_in_turn falcon falcon_two_norms phi2 starcoder2 codeshell jais2 nemotron stablelm stablelm_parallel stablelm_normed orion command_r command_r_normed cohere2 cohere2moe cohere2moe_rms arcee
    gpt2 starcoder bloom mpt mpt_learned jais
    gemma3 gemma3_pattern gemma3_linear gemma3_softcap_untied
    phi3 phi3_longrope phi3_partial_tied phi3_window_key phimoe apertus chameleon chameleon_after
}

/// Experts and heads of quantised weights, which meet some of a step's rows each, give what they give in floats but for rounding; and so do
/// matrices whose operands are normalised and whose results have factors, those between convolutions and scan, and those in the place of
/// attention.
#[test]
fn quantised_experts_and_heads_stay_close() {
    let program = env!("CARGO_BIN_EXE_lisa-cpp");
    let folder = tempfile::tempdir().unwrap();
    let [base, out] = ["base.gguf", "q8_0.gguf"].map(|name| folder.path().join(name));
    for name in [
        "llama_experts",
        "olmoe",
        "qwen2moe",
        "arctic",
        "grok_beside",
        "grovemoe",
        "deepseek",
        "deepseek2_dense",
        "deepseek2_old_dense",
        "bitnet",
        "nemotron_h_moe",
        "nemotron_h_moe_latents",
        "nemotron_h_moe_varying",
        "mamba_normed",
        "jamba_dense",
        "plamo2",
        "rwkv7",
        "arwkv7",
        "rwkv6",
        "rwkv6qwen2",
        "deci",
        "openelm",
        "plm",
    ] {
        std::fs::write(&base, gunzip(&self::folder("families").join(format!("{name}.gguf.gz")))).unwrap();
        let run = std::process::Command::new(program).arg("quantize").args([&base, &out]).arg("Q8_0").output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let model = Model::load(&ModelFile::open(&out).unwrap(), ModelParams::default()).unwrap();
        let reference = gunzip(&self::folder("families").join(format!("{name}.json.gz")));
        let subject = Subject::new("q8_0", model, serde_json::from_slice(&reference).unwrap());
        for run in subject.reference.runs.iter().filter(|r| r.shift.is_none()) {
            let together = subject.logits(run, CacheType::F32, 512, 2);
            // In places rounding makes another choice of experts: differences are small in the mean alone.
            let kept: Vec<_> = run.positions.iter().map(|&p| together[p].clone()).collect();
            let (mean, _) = differences(&kept, &run.logits, run.spread());
            assert!(mean < 0.06, "{name}: {mean} of the spread from weights in F32");
            let params = SessionParams { n_ctx: run.n_ctx, n_threads: 2, ..Default::default() };
            let mut session = Session::new(subject.model.clone(), params).unwrap();
            let (mean, _) = differences(&together, &reference::collect(&mut session, &run.ids), run.spread());
            assert!(0.0 < mean && mean < 0.03, "{name}: {mean} of the spread from activations in F32");
            let (_, most) = differences(&together, &subject.logits(run, CacheType::F32, 1, 1), run.spread());
            assert!(most < reference::TOLERANCE, "{name}: one by one {most} of the spread away");
        }
    }
}

/// Matrices of values that NVFP4 has, some in stacks, those of layers with factors beside them, are the same in NVFP4: only activations
/// are rounded, where they are.
#[test]
fn nvfp4_matrices_give_what_their_values_give() {
    let folder = tempfile::tempdir().unwrap();
    let [base, out] = ["base.gguf", "nvfp4.gguf"].map(|name| folder.path().join(name));
    let matrices = r"(^token_embd|^output|attn_(q|k|v|qkv|gate|output)|ssm_(alpha|beta|out)|ffn_(gate|up|down)_(exps|shexp))\.weight=nvfp4";
    for name in ["qwen3moe_nvfp4", "qwen35moe_nvfp4"] {
        std::fs::write(&base, gunzip(&self::folder("families").join(format!("{name}.gguf.gz")))).unwrap();
        let mut quantize = std::process::Command::new(env!("CARGO_BIN_EXE_lisa-cpp"));
        let run =
            quantize.args(["quantize", "--tensor-type", matrices]).args([&base, &out]).arg("F32").output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let bytes = std::fs::read(&out).unwrap();
        let file = Gguf::parse(&bytes).unwrap();
        let factors: Vec<_> = file.tensors().iter().filter_map(|t| t.name.strip_suffix(".scale")).collect();
        assert!(factors.len() > 20, "{factors:?}");
        for name in factors.into_iter().chain(["token_embd", "output"]) {
            assert_eq!(file.tensor(&format!("{name}.weight")).unwrap().ty, GgmlType::NVFP4, "{name}");
        }

        let model = Model::load(&ModelFile::open(&out).unwrap(), ModelParams::default()).unwrap();
        let reference = gunzip(&self::folder("families").join(format!("{name}.json.gz")));
        let subject = Subject::new(name, model, serde_json::from_slice(&reference).unwrap());
        reference::matches_the_reference(&subject);
        for run in &subject.reference.runs {
            let params = SessionParams { n_ctx: run.n_ctx, n_threads: 2, ..Default::default() };
            let mut session = Session::new(subject.model.clone(), params).unwrap();
            let rounded = reference::collect(&mut session, &run.ids);
            let kept: Vec<_> = run.positions.iter().map(|&p| rounded[p].clone()).collect();
            let (mean, _) = differences(&kept, &run.logits, run.spread());
            assert!(0.0 < mean && mean < 0.03, "{name}: {mean} of the spread from activations in F32");
        }
    }
}

/// The mean and the largest difference, in units of `spread`.
fn differences(a: &[Vec<f32>], b: &[Vec<f32>], spread: f64) -> (f64, f64) {
    let all = a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| f64::from((a - b).abs()) / spread);
    let (n, sum, most) = all.fold((0, 0.0, 0.0), |(n, sum, most), d| (n + 1, sum + d, f64::max(most, d)));
    (sum / f64::from(n), most)
}

#[test]
fn windows_are_all_that_is_seen() {
    for name in [
        "olmo2_windows",
        "exaone4_windows",
        "afmoe",
        "mellum",
        "mellum_pattern",
        "plamo3",
        "plamo3_pattern",
        "exaone_moe",
        "exaone_moe_pattern",
        "gpt_oss",
        "gpt_oss_pattern",
        "mimo2",
        "mimo2_split",
        "step35",
        "step35_plain",
        "laguna",
        "granite_swa",
        "granite_swa_experts",
        "gemma2",
        "gemma2_pattern",
        "gemma3",
        "gemma3_pattern",
        "gemma4",
        "gemma4_plain",
        "gemma4_experts",
        "gemma3n",
        "muse_glimmer",
        "muse_glimmer_flags",
        "cohere2",
        "cohere2moe",
        "cohere2moe_rms",
        "maple",
        "maple_plain",
        "spark2_5",
        "spark2_5_tied",
        "lfm2_attention_last",
    ] {
        reference::windows_are_all_that_is_seen(&load(name));
    }
}

/// A layer whose heads have sinks has no use for another's weights, which count those of others; keys and values it can share.
#[test]
fn heads_with_sinks_share_keys_and_values_alone() {
    let load = |plan: &str| planned("gpt_oss_pattern", plan);
    let refused = load("1").err().expect("layer 1 takes the weights of layer 0").to_string();
    assert!(refused.contains("layer 1 (shared)") && refused.contains("sinks"), "{refused}");
    assert!(load("kv:1").is_ok());
}

/// Layers that the model has take another's keys and values cannot share otherwise, nor can the layer that has these.
#[test]
fn built_in_sharing_of_keys_and_values_stays() {
    let load = |plan: &str| planned("gemma4", plan);
    for (plan, what) in [("7:3", "layer 7 (shared): the model has it take"), ("3", "layer 5 needs its keys")] {
        let refused = load(plan).err().expect(plan).to_string();
        assert!(refused.contains(what), "{refused}");
    }
    let model = load("2:0").unwrap_or_else(|e| panic!("{e}"));
    let cached: Vec<_> = model.decoder().caches().map(|c| (c.key_dim, c.value_dim)).collect();
    assert_eq!(cached[2], (None, Some(16)), "weights from another layer, values of its own");
    assert_eq!(cached[5..], [(None, None); 3]);
}

/// With `plan`, `model` is more than `least` of the spread away from what `name` gives without, and gives the same however its steps are cut.
fn computes_something_else(model: Model, name: &str, plan: &str, least: f64) {
    let reference = gunzip(&folder("families").join(format!("{name}.json.gz")));
    let shared = Subject::new("shared", model, serde_json::from_slice(&reference).unwrap());
    let run = &shared.reference.runs[0];
    let logits = shared.logits(run, CacheType::F32, 512, 2);
    assert!(run.error(&logits) > least, "{plan} changes something");
    let (_, most) = differences(&logits, &shared.logits(run, CacheType::F32, 3, 1), run.spread());
    assert!(most <= reference::TOLERANCE, "{plan}: ubatches of 3 are {most} of the spread away");
}

/// The same where the layers are as many as in Gemma 3n, and their residual stream has several rows: layers before those can share.
#[test]
fn layers_of_several_streams_share() {
    for (plan, what) in [("21:3", "layer 21 (shared): the model has it take"), ("19", "layer 21 needs its keys")] {
        let refused = planned("gemma3n", plan).err().expect(plan).to_string();
        assert!(refused.contains(what), "{refused}");
    }
    let alone = load("gemma3n");
    let run = &alone.reference.runs[0];
    assert!(run.error(&alone.logits(run, CacheType::F32, 512, 2)) < 1e-4);
    for (plan, cached) in [("2:0", (None, Some(16))), ("kv:3:1", (None, None))] {
        let model = planned("gemma3n", plan).unwrap_or_else(|e| panic!("{plan}: {e}"));
        let caches: Vec<_> = model.decoder().caches().map(|c| (c.key_dim, c.value_dim)).collect();
        assert_eq!(caches.iter().filter(|&&c| c == cached).count(), if cached.1.is_some() { 1 } else { 3 }, "{plan}");
        assert_eq!(caches[20..], [(None, None); 2]);
        computes_something_else(model, "gemma3n", plan, 0.1);
    }
}

/// Files without a key that says what a layer computes, or with one that says what none here does, are refused by the key's name.
#[test]
fn keys_of_several_streams_are_asked_for() {
    let bytes = gunzip(&folder("families").join("gemma3n.gguf.gz"));
    let load = |overrides: Vec<Override>, bytes: &[u8]| {
        let mut file = ModelFile::from_bytes("gemma3n", bytes.to_vec());
        file.set_overrides(overrides).unwrap();
        Model::load(&file, ModelParams::default()).err().expect("refused").to_string()
    };
    for (key, value, what) in [
        ("altup.active_idx", 1, "altup.active_idx: 1, expected 0"),
        ("altup.num_inputs", 1, "altup.num_inputs: 1 is out of range, expected 2 to 16"),
        ("altup.num_inputs", 3, "tensor altup_proj.weight has shape [64, 64, 3], expected [64, 64, 2]"),
    ] {
        let refused = load(vec![Override::new(format!("gemma3n.{key}"), OverrideValue::Int(value))], &bytes);
        assert!(refused.contains(what), "{refused}");
    }
    // Keys under other names of the same length are missing.
    for key in ["activation_sparsity_scale", "attention.shared_kv_layers", "altup.num_inputs"] {
        let name = format!("gemma3n.{key}");
        let at = bytes.windows(name.len()).position(|w| w == name.as_bytes()).unwrap();
        let mut bytes = bytes.clone();
        bytes[at + name.len() - 1] = b'_';
        let refused = load(vec![], &bytes);
        assert!(refused.contains(&format!("{name}: is missing")), "{refused}");
    }
}

/// A convolution is no attention: it has no weights to take, and none to give.
#[test]
fn convolutions_do_not_share() {
    let load = |plan: &str| planned("lfm2_attention_last", plan);
    for (plan, what) in [("2:1", "layer 2 (shared): it is a convolution"), ("3:2", "layer 3 (shared)")] {
        let refused = load(plan).err().expect(plan).to_string();
        assert!(refused.contains(what), "{refused}");
    }
    assert!(load("3:1").is_ok());
}

/// A layer that knows the sequence as a whole has no weights to take, and none to give; nor has one without attention, or with heads in
/// another number.
#[test]
fn states_do_not_share() {
    for (name, plan, what) in [
        ("qwen3next", "2:1", "layer 2 (shared): it has no attention"),
        ("qwen3next", "3:2", "layer 3 (shared): layer 2 has no attention"),
        ("kimi_linear", "1:0", "layer 1 (shared): it has no attention"),
        ("kimi_linear", "4:3", "layer 4 (shared): layer 3 has no attention"),
        ("bailingmoe3", "1:0", "layer 1 (shared): it has no attention"),
        ("minimax_01", "3:2", "layer 3 (shared): it has no attention"),
        ("minimax_01", "kv:4:3", "layer 4 (kv): layer 3 has no attention"),
        ("spark2_5", "3:1", "layer 3 (shared): it has 6 query and 2 key/value heads, its source 1 has 6 query and 3"),
        ("granitehybrid", "1:0", "layer 1 (shared): it has no attention"),
        ("granitehybrid", "2:1", "layer 2 (shared): layer 1 has no attention"),
        ("nemotron_h", "5:3", "layer 5 (shared): it has no attention"),
        ("mamba2", "1", "layer 1 (shared): it has no attention"),
        ("mamba", "2:0", "layer 2 (shared): it has no attention"),
        ("rwkv7", "1", "layer 1 (shared): it has no attention"),
        ("arwkv7", "kv:2:0", "layer 2 (kv): it has no attention"),
        ("rwkv6", "2:1", "layer 2 (shared): it has no attention"),
        ("rwkv6qwen2", "1", "layer 1 (shared): it has no attention"),
        ("jamba", "4:1", "layer 4 (shared): it has no attention"),
        ("jamba", "3:2", "layer 3 (shared): layer 2 has no attention"),
        ("plamo2", "1:0", "layer 1 (shared): it has no attention"),
        ("plamo2", "2:1", "layer 2 (shared): layer 1 has no attention"),
        ("deci", "1", "layer 1 (shared): it has no attention"),
        ("deci", "3:0", "layer 3 (shared): it has no attention"),
        ("deci", "4:2", "layer 4 (shared): layer 2 has no attention"),
        ("openelm", "3", "layer 3 (shared): it has 6 query and 2 key/value heads, its source 2 has 4 query and 1"),
        ("nemotron_h_moe_latents", "2:0", "layer 2 (shared): layer 0 has no attention"),
        ("deci", "kv:4:0", "layer 4 (kv): it has 4 query and 1 key/value heads, its source 0 has 4 query and 2"),
    ] {
        let refused = planned(name, plan).err().expect(plan).to_string();
        assert!(refused.contains(what), "{refused}");
    }
}

/// Where a layer has both, its attention can be shared while its state stays its own.
#[test]
fn attention_beside_states_shares() {
    let alone = load("falcon_h1");
    let run = &alone.reference.runs[0];
    assert!(run.error(&alone.logits(run, CacheType::F32, 512, 2)) < 1e-4);
    for plan in ["1", "kv:2"] {
        let model = planned("falcon_h1", plan).unwrap_or_else(|e| panic!("{plan}: {e}"));
        let states: Vec<_> = model.decoder().caches().map(|c| (c.key_dim.is_some(), c.n_state > 0)).collect();
        assert_eq!(states.iter().filter(|s| s.0).count(), 2, "{plan}");
        assert!(states.iter().all(|s| s.1), "{plan}");
        computes_something_else(model, "falcon_h1", plan, 0.5);
    }
}

/// The layers of a hybrid that have attention share it across those that have none, and those that have as many heads; in every round, where
/// tokens pass through all layers more than once.
#[test]
fn attention_between_states_shares() {
    for (name, plan, [owner, sharer]) in [
        ("nanbeige", "1:0", [0, 1]),
        ("nanbeige", "kv:1", [0, 1]),
        ("nanbeige", "1:0", [4, 5]),
        ("jamba", "3:1", [1, 3]),
        ("jamba", "kv:3:1", [1, 3]),
        ("plamo2", "2:0", [0, 2]),
        ("plamo2", "kv:2:0", [0, 2]),
        ("kimi_linear", "4:2", [2, 4]),
        ("kimi_linear", "kv:4:2", [2, 4]),
        ("bailingmoe3", "4:2", [2, 4]),
        ("bailingmoe3", "kv:4:2", [2, 4]),
        ("minimax_01", "4:2", [2, 4]),
        ("minimax_01", "kv:4:2", [2, 4]),
        ("grovemoe", "2:1", [1, 2]),
        ("grovemoe", "kv:1:0", [0, 1]),
        ("maple", "4:2", [2, 4]),
        ("maple", "kv:1:0", [0, 1]),
        ("spark2_5", "4:2", [2, 4]),
        ("spark2_5", "kv:4:2", [2, 4]),
        ("talkie", "3:1", [1, 3]),
        ("talkie", "kv:2:1", [1, 2]),
        ("deci", "6:0", [0, 6]),
        ("deci", "kv:6:0", [0, 6]),
        ("openelm", "2:1", [1, 2]),
        ("openelm", "kv:5:4", [4, 5]),
    ] {
        let model = planned(name, plan).unwrap_or_else(|e| panic!("{name} {plan}: {e}"));
        let caches: Vec<_> = model.decoder().caches().collect();
        assert_eq!([owner, sharer].map(|i| caches[i].key_dim.is_some()), [true, false], "{name} {plan}");
        computes_something_else(model, name, plan, 0.5);
    }
}

/// Gates on attention's results stay where queries are dead, in memory and in a merged file, although they are in one tensor with these.
#[test]
fn layers_that_share_keep_their_gates() {
    let beside = planned("qwen3next", "3:1").unwrap_or_else(|e| panic!("{e}"));
    let base = ModelFile::from_bytes("base", gunzip(&folder("families").join("qwen3next.gguf.gz")));
    let parts = base.parse().unwrap();
    let mut layers = vec![LayerMeta::FULL; 4];
    layers[3] = LayerMeta { kind: Kind::Shared, source: Some(1), rank: 0 };
    let meta = LisaMeta {
        fingerprint: identify(&parts).unwrap().1,
        layers,
        activation: Activation::Silu,
        domain: Domain::Log,
        scale: 1.0,
        trained: Provenance::default(),
    };
    let mut bytes = Vec::new();
    merge(&parts, &meta, None, &mut bytes).unwrap();
    let file = Gguf::parse(&bytes).unwrap();
    let has = |name: &str| file.tensor(&format!("blk.3.{name}.weight")).is_some();
    assert_eq!(["attn_q", "attn_q_norm", "attn_k", "attn_v"].map(has), [true, false, false, true]);
    let merged = Model::load(&ModelFile::from_bytes("merged", bytes), ModelParams::default()).unwrap();
    let logits = |model: Model| {
        let mut session = Session::new(model.into(), SessionParams { n_threads: 2, ..Default::default() }).unwrap();
        reference::collect(&mut session, &(1..40).collect::<Vec<_>>())
    };
    let unshared = logits(Model::load(&base, ModelParams::default()).unwrap());
    let beside = logits(beside);
    assert!(beside == logits(merged) && beside != unshared);
}

/// Layers that know a sequence as a whole can go back to where texts began and ended: nothing is read again.
#[test]
fn states_are_kept_of_where_texts_began_and_ended() {
    [
        "qwen35",
        "kimi_linear",
        "bailingmoe3",
        "minimax_01",
        "falcon_h1",
        "nemotron_h",
        "mamba2",
        "mamba",
        "plamo2",
        "rwkv7",
        "arwkv7",
        "rwkv6",
    ]
    .into_iter()
    .for_each(goes_back);
}

fn goes_back(name: &'static str) {
    let model = load(name).model;
    let params = SessionParams { n_threads: 2, ..Default::default() };
    let mut session = Session::new(model.clone(), params.clone()).unwrap();
    let ids: Vec<u32> = (1..60).collect();
    let fresh = |ids: &[u32]| {
        let mut session = Session::new(model.clone(), params.clone()).unwrap();
        session.prefill(ids, &mut |_| ()).unwrap().to_vec()
    };
    session.prefill(&ids[..20], &mut |_| ()).unwrap();
    session.prefill(&ids[20..30], &mut |_| ()).unwrap();
    ids[30..33].iter().for_each(|&id| drop(session.decode(id).unwrap().to_vec()));
    let abort = session.abort_flag();
    for place in [30, 20] {
        abort.store(true, Ordering::Relaxed);
        session.truncate(place).unwrap_or_else(|e| panic!("nothing is read to go back to {place}: {e}"));
        abort.store(false, Ordering::Relaxed);
        let again = session.prefill(&ids[40..50], &mut |_| ()).unwrap().to_vec();
        assert!(again == fresh(&[&ids[..place], &ids[40..50]].concat()), "from {place}");
    }
    // Elsewhere it reads what came before.
    session.truncate(25).unwrap();
    let there = session.decode(ids[50]).unwrap().to_vec();
    assert!(there == fresh(&[&ids[..20], &ids[40..45], &ids[50..51]].concat()));
    abort.store(true, Ordering::Relaxed);
    assert!(matches!(session.truncate(22), Err(lisa_cpp::Error::Interrupted)));
}

/// Layers of latent attention take another's weights for latents of their own, or its latents for queries of their own; in the merged file
/// too, which has lost what they do not need.
#[test]
fn latents_share() {
    let file = ModelFile::from_bytes("deepseek2", gunzip(&folder("families").join("deepseek2.gguf.gz")));
    let parts = file.parse().unwrap();
    let reference = || serde_json::from_slice(&gunzip(&folder("families").join("deepseek2.json.gz"))).unwrap();
    let cached = |model: &Model| model.decoder().caches().map(|c| (c.key_dim, c.value_dim)).collect::<Vec<_>>();
    for (plan, last, gone) in [("1, 2", (None, Some(32)), "attn_q_b"), ("1, kv:2:0", (None, None), "attn_kv_a_mqa")] {
        let model = planned("deepseek2", plan).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(cached(&model), [(Some(48), Some(32)), (None, Some(32)), last]);
        let (shared, plan) = (Subject::new("shared", model, reference()), plan.parse::<SharePlan>().unwrap());
        let (geometry, fingerprint) = identify(&parts).unwrap();
        let mut bytes = Vec::new();
        merge(&parts, &plan.to_meta(geometry.layers.len(), fingerprint), None, &mut bytes).unwrap();
        let merged = ModelFile::from_bytes("merged", bytes);
        assert!(merged.parse().unwrap()[0].tensor(&format!("blk.2.{gone}.weight")).is_none());
        let merged = Subject::new("merged", Model::load(&merged, ModelParams::default()).unwrap(), reference());
        for run in &shared.reference.runs {
            let logits = shared.logits(run, CacheType::F32, 512, 2);
            assert!(run.error(&logits) > 0.5, "{plan:?} changes something");
            assert!(merged.logits(run, CacheType::F32, 512, 2) == logits, "{plan:?}");
            let (_, most) = differences(&logits, &shared.logits(run, CacheType::F32, 3, 1), run.spread());
            assert!(most <= reference::TOLERANCE, "{plan:?}: ubatches of 3 are {most} of the spread away");
        }
    }
    for name in ["deepseek2_old", "plm"] {
        let refused = planned(name, "1").err().expect("an older file").to_string();
        assert!(refused.contains("layer 1 (shared)") && refused.contains("attn_kv_b"), "{refused}");
    }
}

/// Where all keys weigh the same, layers differ in their values alone, and sharing weights changes nothing.
#[test]
fn layers_that_share_have_latents_of_their_own() {
    let mut bytes = gunzip(&folder("families").join("deepseek2.gguf.gz"));
    let original = ModelFile::from_bytes("original", bytes.clone());
    let parts = original.parse().unwrap();
    for layer in 0..3 {
        let t = parts[0].tensor(&format!("blk.{layer}.attn_q_b.weight")).unwrap();
        bytes[t.offset as usize..(t.offset + t.n_bytes) as usize].fill(0);
    }
    let file = ModelFile::from_bytes("even", bytes);
    let [alone, shared] = [None, Some("1, 2".parse().unwrap())].map(|share: Option<SharePlan>| {
        let model = Model::load(&file, ModelParams { share: share.as_ref(), ..Default::default() }).unwrap();
        let reference = gunzip(&folder("families").join("deepseek2.json.gz"));
        let subject = Subject::new("even", model, serde_json::from_slice(&reference).unwrap());
        subject.logits(&subject.reference.runs[0], CacheType::F32, 512, 2)
    });
    let (_, most) = differences(&alone, &shared, 3.0);
    assert!(most <= reference::TOLERANCE, "{most}");
}

/// Linear biases are part of the weights that layers share. Where queries are 0 they are all of them, the same in all layers: taking another
/// layer's weights, or its keys, then changes nothing.
#[test]
fn linear_biases_are_shared_with_the_weights() {
    let [mut bytes, reference] = ["gguf", "json"].map(|e| gunzip(&folder("families").join(format!("bloom.{e}.gz"))));
    let original = ModelFile::from_bytes("original", bytes.clone());
    let parts = original.parse().unwrap();
    for (layer, part) in (0..3).flat_map(|layer| ["weight", "bias"].map(|part| (layer, part))) {
        let t = parts[0].tensor(&format!("blk.{layer}.attn_qkv.{part}")).unwrap();
        // The first third of the rows.
        bytes[t.offset as usize..(t.offset + t.n_bytes / 3) as usize].fill(0);
    }
    let file = ModelFile::from_bytes("even", bytes);
    let subject = |name, file: &ModelFile, plan: Option<&str>| {
        let share = plan.map(|plan| plan.parse::<SharePlan>().unwrap());
        let model = Model::load(file, ModelParams { share: share.as_ref(), ..Default::default() }).unwrap();
        Subject::new(name, model, serde_json::from_slice(&reference).unwrap())
    };
    let alone = subject("alone", &file, None);
    for plan in ["1, 2", "1, kv:2:0"] {
        let (shared, original) = (subject("shared", &file, Some(plan)), subject("original", &original, Some(plan)));
        for run in alone.reference.runs.iter().filter(|run| run.shift.is_none()) {
            let logits = alone.logits(run, CacheType::F32, 512, 2);
            let (_, most) = differences(&logits, &shared.logits(run, CacheType::F32, 512, 2), run.spread());
            assert!(plan.contains("kv") || most <= reference::TOLERANCE, "{plan:?}: {most} of the spread away");
            assert!(
                run.error(&original.logits(run, CacheType::F32, 512, 2)) > 0.5,
                "{plan:?} changes something where queries are not 0"
            );
            for n_ubatch in [1, 7] {
                let logits = shared.logits(run, CacheType::F32, 512, 2);
                let (_, most) = differences(&logits, &shared.logits(run, CacheType::F32, n_ubatch, 1), run.spread());
                assert!(most <= reference::TOLERANCE, "{plan:?}: ubatches of {n_ubatch} are {most} of the spread away");
            }
        }
    }
}

/// A query sees nothing of the chunks before its own, however it gets there.
#[test]
fn chunks_begin_anew() {
    let subject = load("llama4");
    let long = gunzip(&folder("families").join("llama4_long.json.gz"));
    let subject = Subject { reference: serde_json::from_slice(&long).unwrap(), ..subject };
    reference::matches_the_reference(&subject);
    let run = &subject.reference.runs[0];
    let (chunk, (n_ctx, n_threads)) = (8192, (run.n_ctx, 2));
    assert!(run.ids.len() > chunk + 100);
    let params = SessionParams { n_ctx, n_threads, activations: ActivationType::F32, ..Default::default() };
    let mut session = Session::new(subject.model.clone(), params).unwrap();
    session.prefill(&run.ids[..chunk - 2], &mut |_| ()).unwrap();
    let (next, rest) = run.ids[chunk - 2..].split_at(5);
    next.iter().for_each(|&id| drop(session.decode(id).unwrap().to_vec()));
    let last = session.prefill(rest, &mut |_| ()).unwrap().to_vec();
    let together = subject.logits(run, CacheType::F16, 512, 2).pop();
    let (_, most) = differences(&[last], &[together.unwrap()], run.spread());
    assert!(most < 1e-3, "one by one over the end of a chunk: {most} of the spread away");
}

/// What would be a guess, and what no model has, is an error that names the key.
#[test]
fn what_files_leave_unsaid_is_not_guessed() {
    for (name, key, value, what) in [
        ("baichuan", "block_count", OverrideValue::Int(31), "31, expected 32 or 40"),
        ("deci", "attention.head_count_kv", OverrideValue::Int(0), "no layer has any"),
        ("arctic", "expert_used_count", OverrideValue::Int(9), "9 is out of range, expected 1 to 8"),
        ("deci", "attention.head_count_kv", OverrideValue::Int(3), "3 in layer 0 does not divide the 4 query heads"),
        ("llama4", "attention.sliding_window", OverrideValue::Int(0), "without chunks"),
        ("mpt", "attention.clamp_kqv", OverrideValue::Float(-1.0), "-1 is negative"),
        ("grovemoe", "experts_per_group", OverrideValue::Int(2), "2, expected to divide 9 experts"),
        ("bailingmoe3", "kda.safe_gate", OverrideValue::Bool(false), "rates without a lower bound"),
        ("bailingmoe3", "kda.gate_lower_bound", OverrideValue::Float(0.5), "0.5 is not negative"),
        ("jais", "attention.max_alibi_bias", OverrideValue::Float(-1.0), "-1 is negative"),
        ("rwkv7", "wkv.head_size", OverrideValue::Int(24), "heads of 24 values do not divide 64"),
        ("rwkv7", "token_shift_count", OverrideValue::Int(1), "1, expected 2"),
        ("arwkv7", "attention.decay_lora_rank", OverrideValue::Int(0), "0 is out of range"),
        ("rwkv6qwen2", "attention.head_count_kv", OverrideValue::Int(3), "3 does not divide the 2 heads"),
    ] {
        let mut file = ModelFile::from_bytes(name, gunzip(&folder("families").join(format!("{name}.gguf.gz"))));
        file.set_overrides(vec![Override::new(format!("{name}.{key}"), value)]).unwrap();
        let refused = Model::load(&file, ModelParams::default()).err().expect(name).to_string();
        assert!(refused.contains(key) && refused.contains(what), "{refused}");
    }
}

/// There are no positions after the last one that was learned.
#[test]
fn contexts_end_with_learned_positions() {
    let model = load("gpt2").model;
    let session = |n_ctx| Session::new(model.clone(), SessionParams { n_ctx, n_threads: 1, ..Default::default() });
    assert_eq!(session(0).unwrap().n_ctx(), 128);
    let refused = session(129).err().expect("one position too many").to_string();
    assert!(refused.contains("learned positions for 128 tokens"), "{refused}");
}
