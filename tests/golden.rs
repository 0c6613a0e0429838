//! A real model against programs we did not write.

mod common;

use std::sync::Arc;

use common::{argmax, bytes, json, log_sum_exp, smollm2, smollm2_path};
use lisa_cpp::attention::SharePlan;
use lisa_cpp::{ActivationType, Model, ModelFile, ModelParams, Session, SessionParams};
use serde_json::Value;

fn ids(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

/// Agreement with the independent F32 forward pass over all positions of all prompts.
struct Agreement {
    positions: usize,
    top1: usize,
    mean_kl: f64,
    /// Of prompts long enough for a CPU's matrix instructions, if it has any.
    mean_kl_long: f64,
    mean_nll: f64,
    golden_nll: f64,
}

/// KL divergence of our distribution from the golden one, over the listed ids with all others lumped into one.
fn kl(golden: &[(u32, f64)], logits: &[f32], lse: f64) -> f64 {
    let (mut sum, mut rest_p, mut rest_q) = (0.0, 1.0, 1.0);
    for &(id, lp) in golden {
        let lq = f64::from(logits[id as usize]) - lse;
        sum += lp.exp() * (lp - lq);
        rest_p -= lp.exp();
        rest_q -= lq.exp();
    }
    if rest_p > 1e-9 && rest_q > 1e-12 {
        sum += rest_p * (rest_p / rest_q).ln();
    }
    sum
}

/// Tokens of a long prompt.
const LONG: usize = 32;

fn agreement(model: &Arc<Model>, golden: &str, activations: ActivationType) -> Agreement {
    let prompts = json(golden);
    let mut a = Agreement { positions: 0, top1: 0, mean_kl: 0.0, mean_kl_long: 0.0, mean_nll: 0.0, golden_nll: 0.0 };
    let (mut n_nll, mut n_long) = (0.0, 0);
    for prompt in prompts["prompts"].as_array().unwrap() {
        let tokens = ids(&prompt["tokens"]);
        let params = SessionParams { n_ctx: 512, activations, ..Default::default() };
        let params = match activations {
            ActivationType::F32 => {
                SessionParams { cache_type_k: "f32".parse().unwrap(), cache_type_v: "f32".parse().unwrap(), ..params }
            }
            _ => params,
        };
        let mut session = Session::new(model.clone(), params).unwrap();
        let mut each = |i: usize, logits: &[f32]| {
            let top = ids(&prompt["top_ids"][i]);
            let lps = prompt["top_logprobs"][i].as_array().unwrap().iter().map(|x| x.as_f64().unwrap());
            let golden: Vec<_> = top.iter().copied().zip(lps).collect();
            let lse = log_sum_exp(logits);
            a.positions += 1;
            a.top1 += usize::from(argmax(logits) == top[0]);
            let kl = kl(&golden, logits, lse);
            a.mean_kl += kl;
            if tokens.len() >= LONG {
                a.mean_kl_long += kl;
                n_long += 1;
            }
            if let Some(&next) = tokens.get(i + 1) {
                a.mean_nll += lse - f64::from(logits[next as usize]);
                a.golden_nll += prompt["nll"][i].as_f64().unwrap();
                n_nll += 1.0;
            }
        };
        session.logits_each(&tokens, &mut each).unwrap();
    }
    a.mean_kl /= a.positions as f64;
    a.mean_kl_long /= n_long as f64;
    a.mean_nll /= n_nll;
    a.golden_nll /= n_nll;
    println!(
        "{golden}, activations {}: top-1 {}/{}, mean KL {:.3e} ({:.3e} in long prompts), nll {:.5} (golden {:.5})",
        activations.name(),
        a.top1,
        a.positions,
        a.mean_kl,
        a.mean_kl_long,
        a.mean_nll,
        a.golden_nll
    );
    a
}

const PLAIN: &str = "golden/logits.smollm2.json.gz";

#[test]
fn exact_logits_match_the_independent_forward_pass() {
    let Some(model) = smollm2() else { return };
    let a = agreement(&model, PLAIN, ActivationType::F32);
    assert!(a.mean_kl <= 1e-6, "mean KL {}", a.mean_kl);
    assert!(a.top1 * 1000 >= a.positions * 995, "top-1 {} of {}", a.top1, a.positions);
}

#[test]
fn default_logits_stay_close_to_the_independent_forward_pass() {
    let Some(model) = smollm2() else { return };
    let a = agreement(&model, PLAIN, ActivationType::Int8Fine);
    assert!(a.mean_kl <= 2e-3, "mean KL {}", a.mean_kl);
    assert!(a.top1 * 100 >= a.positions * 99, "top-1 {} of {}", a.top1, a.positions);
    assert!((a.mean_nll / a.golden_nll - 1.0).abs() <= 0.005, "nll {} against {}", a.mean_nll, a.golden_nll);
}

/// As far off as llama.cpp, which computes so: 2.8e-3 on text of this kind. Where one digit is one of bf16, in long prompts, nearer.
#[test]
fn fast_logits_are_near_the_independent_forward_pass() {
    let Some(model) = smollm2() else { return };
    let a = agreement(&model, PLAIN, ActivationType::Int8);
    let (expected, long) = match model.kernels().int.has_bf16() {
        true => (1e-4..=1e-3, 1e-4..=5e-4),
        false => (1e-3..=5e-3, 0.0..=5e-3),
    };
    assert!(expected.contains(&a.mean_kl), "mean KL {}", a.mean_kl);
    assert!(long.contains(&a.mean_kl_long), "mean KL of long prompts {}", a.mean_kl_long);
    assert!(a.top1 * 100 >= a.positions * 95, "top-1 {} of {}", a.top1, a.positions);
    assert!((a.mean_nll / a.golden_nll - 1.0).abs() <= 0.01, "nll {} against {}", a.mean_nll, a.golden_nll);
}

/// How near a model with a sharing plan must come, with floats throughout and by default.
fn matches_with_sharing(model: Model, golden: &str) {
    let model = Arc::new(model);
    let a = agreement(&model, golden, ActivationType::F32);
    assert!(a.mean_kl <= 1e-5, "mean KL {}", a.mean_kl);
    assert!((a.mean_nll / a.golden_nll - 1.0).abs() <= 0.005, "nll {} against {}", a.mean_nll, a.golden_nll);
    let a = agreement(&model, golden, ActivationType::Int8Fine);
    assert!(a.mean_kl <= 5e-3, "mean KL {}", a.mean_kl);
    assert!((a.mean_nll / a.golden_nll - 1.0).abs() <= 0.005, "nll {} against {}", a.mean_nll, a.golden_nll);
}

#[test]
fn shared_layers_match_the_independent_forward_pass() {
    let Some(path) = smollm2_path() else { return };
    for layers in ["5", "5-7", "4-9,24,25"] {
        let plan: SharePlan = layers.parse().unwrap();
        let model = Model::open(&path, ModelParams { share: Some(&plan), ..Default::default() }).unwrap();
        matches_with_sharing(model, &format!("golden/shared.{}.json.gz", layers.replace(',', "_")));
    }
}

#[test]
fn a_trained_sidecar_matches_the_independent_forward_pass() {
    let Some(path) = smollm2_path() else { return };
    let sidecar = ModelFile::from_bytes("smollm2-l16-r10", bytes("golden/smollm2-l16-r10.lisa.gguf.gz"));
    let model = Model::open(&path, ModelParams { lisa: Some(&sidecar), ..Default::default() }).unwrap();
    matches_with_sharing(model, "golden/smollm2-l16-r10.logits.json.gz");
}

/// The sidecars in `models` stay as close to the unchanged model as they were when they were trained; sharing the same layers
/// without training is far away.
#[test]
fn committed_sidecars_keep_their_promise() {
    let Some(path) = smollm2_path() else { return };
    for (name, n_layers, most) in [("16of30", 16, 0.16), ("16of30-3.2x", 16, 0.1), ("25of30", 25, 0.4)] {
        let file = format!("{}/models/SmolLM2-135M-Instruct.{name}.lisa.gguf", env!("CARGO_MANIFEST_DIR"));
        let sidecar = ModelFile::open(std::path::Path::new(&file)).unwrap();
        let params = ModelParams { lisa: Some(&sidecar), ..Default::default() };
        let model = Arc::new(Model::open(&path, params).unwrap());
        let plan = model.plan().clone();
        assert_eq!(plan.iter().count(), n_layers);
        let trained = agreement(&model, PLAIN, ActivationType::Int8Fine);
        let layers: Vec<_> = plan.iter().map(|(layer, _)| layer.to_string()).collect();
        let plan: SharePlan = layers.join(",").parse().unwrap();
        let params = ModelParams { share: Some(&plan), ..Default::default() };
        let untrained = agreement(&Arc::new(Model::open(&path, params).unwrap()), PLAIN, ActivationType::Int8Fine);
        println!("{name}: mean KL {:.3}, shared without training {:.3}", trained.mean_kl, untrained.mean_kl);
        assert!(trained.mean_kl < most, "{name}: mean KL {}", trained.mean_kl);
        assert!(untrained.mean_kl > 4.0 * trained.mean_kl, "{name}: untrained {}", untrained.mean_kl);
    }
}

/// Where our greedy text leaves llama.cpp's, the two candidates must be near ties in our own logits: both engines round
/// activations to int8, and ties fall either way.
#[test]
fn greedy_text_matches_llama_cpp() {
    let Some(model) = smollm2() else { return };
    let golden = json("golden/greedy.smollm2.json");
    let cases = golden["SmolLM2-135M-Instruct.Q4_1"].as_array().unwrap();
    let tokenizer = model.tokenizer();
    let mut agree = 0;
    for case in cases {
        let prompt = case["prompt"].as_str().unwrap();
        let prompt_ids = tokenizer.encode(prompt, true, true).unwrap();
        // Where the text stops, at 32 tokens or with the model's end mark and a newline or two from the program, it may
        // split into tokens in another way: the last one does not count.
        let text = case["text"].as_str().unwrap().trim_end();
        let text = text.strip_suffix("[end of text]").unwrap_or(text).trim_end();
        let mut golden_ids = tokenizer.encode(text, false, true).unwrap();
        golden_ids.pop();
        let mut session = Session::new(model.clone(), SessionParams { n_ctx: 256, ..Default::default() }).unwrap();
        let mut logits = session.prefill(&prompt_ids, &mut |_| ()).unwrap();
        let mut same = 0;
        for &expected in &golden_ids {
            let best = argmax(logits);
            if best != expected {
                let gap = logits[best as usize] - logits[expected as usize];
                println!("{prompt:?}: parts at {same} with a gap of {gap}");
                assert!(gap <= 0.5, "{prompt:?}: token {same}: {best} is {gap} above {expected}");
                break;
            }
            same += 1;
            logits = session.decode(best).unwrap();
        }
        agree += usize::from(same >= 8.min(golden_ids.len()));
    }
    println!("the first 8 tokens agree on {agree} of {}", cases.len());
    // Of these prompts, floats throughout agree with llama.cpp's int8 on 7; and so does what is nearer to floats than int8 is.
    let least = if model.kernels().int.has_bf16() { 7 } else { 8 };
    assert!(agree * 10 >= cases.len() * least);
}
