//! Distillation: gradients against finite differences for every family, and against an independent implementation.

mod common;
#[path = "../src/distill/testing.rs"]
mod testing;

use ggml_ext::gguf::Gguf;
use ggml_ext::lisa::{Activation, Domain, Kind, LisaMeta, Part, Provenance, identify, write_sidecar};
use lisa_cpp::attention::CacheType;
use lisa_cpp::distill::dense::DenseModel;
use lisa_cpp::distill::frozen::Precision;
use lisa_cpp::distill::modules::{Module, Modules};
use lisa_cpp::distill::student::{Pair, Workspace};
use lisa_cpp::model::{Override, OverrideValue};
use lisa_cpp::{ActivationType, Model, ModelFile, ModelParams, Session, SessionParams};
use std::sync::Arc;
use testing::{check, noise};

fn family(name: &str) -> Model {
    let file = ModelFile::from_bytes(name, common::bytes(&format!("families/{name}.gguf.gz")));
    Model::load(&file, ModelParams::default()).unwrap()
}

/// Modules of random values for layers that take from the given sources.
fn modules(
    model: &DenseModel,
    layers: &[(usize, usize, Kind)],
    n_hidden: usize,
    act: Activation,
    domain: Domain,
) -> Modules {
    let list = layers.iter().map(|&(layer, source, kind)| {
        let s = model.layers[layer].shape;
        let lisa = kind == Kind::Lisa;
        let rank = if lisa { 4 } else { 0 };
        Module {
            layer,
            source,
            kind,
            n_head: s.n_head,
            n_head_kv: s.n_head_kv,
            n_embd: model.n_embd,
            rank,
            n_hidden: if lisa { n_hidden } else { 0 },
            comp: !lisa,
            freq: (0..s.n_head_kv * rank / 2).map(|i| 0.7 / (1 + i) as f32).collect(),
            start: 0,
        }
    });
    let mut all = Modules::new(list.collect(), act, domain, model.layers[0].shape.scale);
    all.values = noise(5, all.values.len(), 0.2);
    for (layer, ..) in layers {
        let n = model.layers[*layer].shape.n_head;
        all.part_mut(*layer, Part::AlignSkip).iter_mut().step_by(n + 1).for_each(|x| *x += 0.5);
    }
    all
}

fn ids(model: &DenseModel) -> Vec<u32> {
    (0..model.n_ctx as u32).map(|i| (i * i * 7 + 3 * i + 5) % model.n_vocab as u32).collect()
}

fn end_to_end_gradient(name: &str, layers: &[(usize, usize, Kind)], n_hidden: usize, act: Activation, domain: Domain) {
    gradient_of(&family(name), name, layers, n_hidden, act, domain);
}

fn gradient_of(
    model: &Model,
    name: &str,
    layers: &[(usize, usize, Kind)],
    n_hidden: usize,
    act: Activation,
    domain: Domain,
) {
    let model = DenseModel::new(model, 24, Precision::Exact).unwrap();
    let all = modules(&model, layers, n_hidden, act, domain);
    let (ids, mut w) = (ids(&model), Workspace::default());
    let mut loss = |all: &Modules, gradient| Pair { model: &model, modules: all }.end_to_end(&mut w, &ids, gradient);
    let out = loss(&all, true);
    assert!(out.loss / out.n as f64 > 1e-3, "{name}: a loss of {} tests little", out.loss);
    let w = std::cell::RefCell::new(Workspace::default());
    check(&all.values, &out.grads, |x| {
        let all = all.with_values(x);
        Pair { model: &model, modules: &all }.end_to_end(&mut w.borrow_mut(), &ids, false).loss
    });
}

const CHAIN: &[(usize, usize, Kind)] = &[(1, 0, Kind::Lisa), (2, 1, Kind::Lisa)];

/// Norms, biases, head norms, soft caps, windows, partial and stretched rotations, both activations: whatever a family has.
#[test]
fn end_to_end_gradients_of_every_family() {
    for name in [
        "llama",
        "llama_bias",
        "llama_mqa",
        "llama_yarn",
        "qwen2",
        "qwen3",
        "phi3",
        "phi3_partial_tied",
        "gemma3",
        "gemma3_softcap_untied",
        "smollm3_tied",
        "granite",
        "olmo2",
        "mistral3_plain",
        "gptneox",
        "gptneox_in_turn",
        "falcon_two_norms",
        "phi2",
        "nemotron",
        "stablelm",
        "command_r",
        "arcee",
        "glm4",
        "exaone4",
        "apertus",
        // Norms without weights, learned positions, linear biases.
        "olmo",
        // Layers of different sizes.
        "openelm",
        "gpt2",
        "bloom",
        "jais",
    ] {
        end_to_end_gradient(name, CHAIN, 0, Activation::Relu, Domain::Log);
    }
    // Its sliding windows are those of every second layer.
    end_to_end_gradient("gemma2", &[(2, 0, Kind::Lisa), (4, 2, Kind::Lisa)], 0, Activation::Relu, Domain::Log);
}

/// Through experts and the weights that the router gives them. A small step must not change who is chosen, hence all are; or all but the
/// least likely.
#[test]
fn end_to_end_gradients_of_experts() {
    for (name, arch, n_used) in [
        ("olmoe", "olmoe", 16),
        ("llama_experts", "llama", 8),
        ("qwen3moe", "qwen3moe", 6),
        ("phimoe", "phimoe", 5),
        // Beside a network that all tokens meet, weighed and not; chosen by sigmoids, with a bias, out of groups.
        ("qwen2moe", "qwen2moe", 7),
        ("deepseek", "deepseek", 8),
        ("bailingmoe2", "bailingmoe2", 16),
        ("dots1", "dots1", 8),
    ] {
        let mut file = ModelFile::from_bytes(name, common::bytes(&format!("families/{name}.gguf.gz")));
        let set = |key: &str, n| Override::new(format!("{arch}.{key}"), OverrideValue::Int(n));
        let all_groups = (name == "bailingmoe2").then(|| set("expert_group_used_count", 4));
        file.set_overrides([set("expert_used_count", n_used)].into_iter().chain(all_groups).collect()).unwrap();
        let model = Model::load(&file, ModelParams::default()).unwrap();
        gradient_of(&model, name, CHAIN, 0, Activation::Relu, Domain::Log);
    }
}

#[test]
fn end_to_end_gradients_of_every_module() {
    use Kind::{Lisa, Shared};
    end_to_end_gradient("llama", CHAIN, 5, Activation::Silu, Domain::Log);
    end_to_end_gradient("llama", CHAIN, 5, Activation::Gelu, Domain::Weight);
    end_to_end_gradient("llama", &[(1, 0, Shared), (2, 1, Shared)], 0, Activation::Relu, Domain::Log);
    end_to_end_gradient("llama", &[(1, 0, Lisa), (2, 1, Shared)], 0, Activation::Relu, Domain::Log);
    // A full layer between two substituted ones, which is a source too.
    end_to_end_gradient("gemma3", &[(1, 0, Lisa), (3, 2, Lisa), (4, 2, Shared)], 3, Activation::Silu, Domain::Log);
}

#[test]
fn attention_gradients() {
    for (name, n_hidden, act, domain, chained) in [
        ("llama", 0, Activation::Relu, Domain::Log, true),
        ("llama", 3, Activation::Silu, Domain::Log, false),
        ("qwen3", 5, Activation::Silu, Domain::Log, true),
        ("gemma3", 4, Activation::Gelu, Domain::Weight, true),
    ] {
        let model = family(name);
        let model = DenseModel::new(&model, 24, Precision::Exact).unwrap();
        let all = modules(&model, CHAIN, n_hidden, act, domain);
        let (ids, w) = (ids(&model), std::cell::RefCell::new(Workspace::default()));
        let loss = |all: &Modules, gradient| {
            Pair { model: &model, modules: all }.attention(&mut w.borrow_mut(), &ids, chained, gradient)
        };
        let out = loss(&all, true);
        check(&all.values, &out.grads, |x| loss(&all.with_values(x), false).loss);
    }
}

#[test]
fn what_cannot_be_trained_is_named() {
    for (name, what) in [
        ("plm", "multi-head latent attention"),
        ("deepseek2", "multi-head latent attention"),
        ("gemma4", "norms on values"),
        ("gemma3n", "several rows"),
        ("gpt_oss", "sinks"),
        ("granite_swa", "sinks"),
        ("mistral4", "multi-head latent attention"),
        ("cohere2moe", "factors on their results"),
        ("mimo2", "factors on their results"),
        ("step35", "gates on its attention's results"),
        ("step35_plain", "caps its hidden units"),
        ("laguna", "gates on its attention's results"),
        ("hunyuan_vl", "after their rotation"),
        ("hunyuan", "after their rotation"),
        ("lfm2", "convolution"),
        ("olmo_clipped", "clips queries"),
        ("stablelm_normed", "LayerNorm on them"),
        ("chameleon", "LayerNorm on them"),
        ("bitnet", "factors on their results"),
        ("bitnet_plain", "norms inside"),
        ("smallthinker", "chosen by the layer's input"),
        ("arctic", "given that input"),
        ("nanbeige", "pass more than once"),
        ("grok_beside", "factors on their results"),
        ("qwen35", "the gated delta rule"),
        ("kimi_linear", "the gated delta rule"),
        ("bailingmoe3", "the gated delta rule"),
        ("minimax_01", "lightning attention"),
        ("grovemoe", "in groups with networks"),
        ("maple", "caps its hidden units"),
        ("spark2_5", "gates on its attention's results"),
        ("talkie", "factors on their results"),
        ("granitehybrid", "a selective scan"),
        ("nemotron_h", "a selective scan"),
        ("jamba", "a selective scan"),
        ("plamo2", "norms of single heads"),
        ("rwkv7", "time mixing"),
        ("rwkv6qwen2", "time mixing"),
        ("muse_glimmer", "gates on its attention's results"),
        ("deci", "a linear map in the place of attention"),
    ] {
        let refused = DenseModel::new(&family(name), 24, Precision::Exact).err().expect(name).to_string();
        assert!(refused.contains(what), "{name}: {refused}");
    }
}

/// A layer apart is the layer as it would be if it were the only one substituted.
#[test]
fn layers_apart_do_not_know_of_each_other() {
    let model = family("llama");
    let model = DenseModel::new(&model, 24, Precision::Exact).unwrap();
    let (ids, mut w) = (ids(&model), Workspace::default());
    let mut loss =
        |all: &Modules, chained| Pair { model: &model, modules: all }.attention(&mut w, &ids, chained, false).loss;
    let both = modules(&model, CHAIN, 0, Activation::Relu, Domain::Log);
    let mut alone = 0.0;
    for m in both.iter() {
        let mut one = modules(&model, &[(m.layer, m.source, m.kind)], 0, Activation::Relu, Domain::Log);
        one.values.copy_from_slice(&both.values[m.start..m.start + m.len()]);
        alone += loss(&one, true) / 2.0;
    }
    let (apart, chained) = (loss(&both, false), loss(&both, true));
    assert!((apart - alone).abs() < 1e-5 * alone, "{apart} and {alone}");
    assert!((apart - chained).abs() > 1e-3 * alone, "the chain makes no difference: {apart}, {chained}");
}

/// The negative log-likelihood of every next token by the engine, in float arithmetic.
fn engine_nll(model: Model, ids: &[u32]) -> f64 {
    let params = SessionParams {
        n_ctx: ids.len(),
        activations: ActivationType::F32,
        cache_type_k: CacheType::F32,
        cache_type_v: CacheType::F32,
        ..Default::default()
    };
    let mut session = Session::new(Arc::new(model), params).unwrap();
    let mut nll = 0.0;
    let add =
        &mut |i: usize, logits: &[f32]| nll += common::log_sum_exp(logits) - f64::from(logits[ids[i + 1] as usize]);
    session.logits_each(&ids[..ids.len() - 1], add).unwrap();
    nll
}

/// A student without modules is its teacher, and both are the model that the engine runs; the engine runs modules as they were trained.
#[test]
fn trainer_and_engine_compute_the_same() {
    let same = |name: &str, a: f64, b: f64| assert!((a - b).abs() < 1e-4 * b, "{name}: {a} and {b}");
    for name in [
        "llama",
        "llama_yarn",
        "qwen2",
        "qwen3",
        "gemma3_softcap_untied",
        "phi3_longrope",
        "phi3_partial_tied",
        "gpt2",
        "bloom",
        "refact",
    ] {
        let model = family(name);
        let model = DenseModel::new(&model, 24, Precision::Exact).unwrap();
        let ids = ids(&model);
        let out = Pair { model: &model, modules: &Modules::none() }.end_to_end(&mut Workspace::default(), &ids, false);
        assert!(out.loss.abs() < 1e-4, "{name}: {out:?}");
        same(name, out.nll, engine_nll(family(name), &ids));
    }
    for name in ["llama_gqa", "linear", "weight_domain", "gelu", "comp", "phi3", "gemma3_capped", "chain", "sources"] {
        let bytes = common::bytes(&format!("sharing/{name}.lisa.gguf.gz"));
        let reference = common::json(&format!("sharing/{name}.json.gz"));
        let base = reference["base"].as_str().unwrap();
        let folder = if ["gemma3_capped", "llama_deep"].contains(&base) { "sharing" } else { "families" };
        let file = ModelFile::from_bytes(base, common::bytes(&format!("{folder}/{base}.gguf.gz")));
        let gguf = Gguf::parse(&bytes).unwrap();
        let model = Model::load(&file, ModelParams::default()).unwrap();
        let model = DenseModel::new(&model, 24, Precision::Exact).unwrap();
        let (geometry, _) = identify(&file.parse().unwrap()).unwrap();
        let all = Modules::read(&LisaMeta::read(&gguf).unwrap().unwrap(), &gguf, &geometry);
        let ids = ids(&model);
        let out = Pair { model: &model, modules: &all }.end_to_end(&mut Workspace::default(), &ids, false);
        let sidecar = ModelFile::from_bytes(name, bytes.clone());
        let with = Model::load(&file, ModelParams { lisa: Some(&sidecar), ..Default::default() }).unwrap();
        assert!(out.loss > 1e-3, "{name}: the modules change nothing");
        same(name, out.nll, engine_nll(with, &ids));
    }
}

/// Layers whose heads are fewer than those of others take weights from such of their own number.
#[test]
fn modules_of_layers_with_heads_of_their_own_number_run_as_trained() {
    let name = "openelm";
    let file = ModelFile::from_bytes(name, common::bytes(&format!("families/{name}.gguf.gz")));
    let parsed = file.parse().unwrap();
    let (_, fingerprint) = identify(&parsed).unwrap();
    let model = family(name);
    let model = DenseModel::new(&model, 24, Precision::Exact).unwrap();
    let heads: Vec<usize> = model.layers.iter().map(|l| l.shape.n_head).collect();
    assert!(heads[2] == heads[1] && heads[5] == heads[4] && heads[5] > heads[2], "{heads:?}");
    let ids = ids(&model);
    for domain in [Domain::Log, Domain::Weight] {
        let all = modules(&model, &[(2, 1, Kind::Lisa), (5, 4, Kind::Lisa)], 5, Activation::Silu, domain);
        let out = Pair { model: &model, modules: &all }.end_to_end(&mut Workspace::default(), &ids, false);
        assert!(out.loss > 1e-3, "the modules change nothing");
        let meta = all.meta(heads.len(), fingerprint.clone(), Provenance::default());
        let (tensors, mut bytes) = (all.tensors(), Vec::new());
        write_sidecar(name, &meta, tensors.iter().map(|(t, d)| (t, &d[..])), &mut bytes).unwrap();
        let sidecar = ModelFile::from_bytes("openelm.lisa", bytes);
        let with = Model::load(&file, ModelParams { lisa: Some(&sidecar), ..Default::default() }).unwrap();
        let found = engine_nll(with, &ids);
        assert!((out.nll - found).abs() < 1e-4 * found, "{domain:?}: {} and {found}", out.nll);
    }
}

/// Both losses and all their gradients against automatic differentiation of an implementation that shares no code with this one; see
/// `data/distill/make.py`.
#[test]
fn losses_and_gradients_match_the_reference() {
    let cases = common::json("distill/gradients.json.gz");
    for case in cases.as_array().unwrap() {
        let text = |key: &str| case[key].as_str().unwrap();
        let (base, sidecar) = (text("base"), text("sidecar"));
        let ids: Vec<u32> = case["ids"].as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as u32).collect();
        let file = ModelFile::from_bytes(base, common::bytes(&format!("{base}.gguf.gz")));
        let model = Model::load(&file, ModelParams::default()).unwrap();
        let model = DenseModel::new(&model, ids.len(), Precision::Exact).unwrap();
        let bytes = common::bytes(&format!("{sidecar}.lisa.gguf.gz"));
        let gguf = Gguf::parse(&bytes).unwrap();
        let (geometry, _) = identify(&file.parse().unwrap()).unwrap();
        let mut all = Modules::read(&LisaMeta::read(&gguf).unwrap().unwrap(), &gguf, &geometry);
        // The reference knows no other.
        all.scale = model.layers[0].shape.scale;
        let pair = Pair { model: &model, modules: &all };
        for stage in ["end-to-end", "attention"] {
            let out = match stage {
                "attention" => pair.attention(&mut Workspace::default(), &ids, true, true),
                _ => pair.end_to_end(&mut Workspace::default(), &ids, true),
            };
            let loss = case[stage]["loss"].as_f64().unwrap();
            assert!((out.mean_loss() - loss).abs() < 1e-4 * loss, "{sidecar}, {stage}: {} and {loss}", out.mean_loss());
            let mut n = 0;
            for (name, expected) in case[stage]["gradients"].as_object().unwrap() {
                let expected: Vec<f64> = expected.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
                let (layer, part) = name.strip_prefix("blk.").unwrap().split_once('.').unwrap();
                let m = all.get(layer.parse().unwrap()).unwrap();
                let (part, n_in) = match part {
                    "skip" => (Part::AlignSkip, m.n_head),
                    "up" => (Part::AlignUp, m.n_head),
                    "bias" => (Part::AlignUpBias, 1),
                    "down" => (Part::AlignDown, m.n_hidden),
                    "q" => (Part::Q, 0),
                    "k" => (Part::K, 0),
                    other => panic!("{other}"),
                };
                let found: Vec<f64> =
                    out.grads[m.range(part)].iter().map(|g| f64::from(*g) / ids.len() as f64).collect();
                assert_eq!(found.len(), expected.len(), "{name}");
                let n_out = found.len() / n_in.max(1);
                // The reference holds alignment matrices with a row per input.
                let at = |i: usize| if n_in > 0 { i % n_in * n_out + i / n_in } else { i };
                let norm = expected.iter().map(|x| x * x).sum::<f64>().sqrt();
                let error = (0..found.len()).map(|i| (found[i] - expected[at(i)]).powi(2)).sum::<f64>().sqrt();
                assert!(error < 1e-3 * norm, "{sidecar}, {stage}, {name}: off by {error} of {norm}");
                n += 1;
            }
            assert!(n >= 6, "{sidecar}: {n} tensors compared");
        }
    }
}
