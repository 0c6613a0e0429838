//! `merge`, `extract` and `convert-lisa` as their users meet them, on the embedded model and on fetched and tiny ones.

#[path = "common/program.rs"]
mod program;

use ggml_ext::gguf::{Gguf, GgufWriter};
use ggml_ext::lisa::{Activation, Domain, Geometry, Kind, LayerMeta, LisaMeta, Provenance, identify};
use program::{refused, run};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The last line on standard error of a run that must succeed and print nothing.
#[track_caller]
fn ok(args: &[&Path]) -> String {
    let ran = run(args);
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""), "{}", ran.err);
    ran.err.lines().last().unwrap_or_default().to_owned()
}

fn p(s: &str) -> &Path {
    Path::new(s)
}

fn root(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn unpacked(name: &str, folder: &Path) -> PathBuf {
    let packed = std::fs::read(root(&format!("tests/data/{name}.gguf.gz"))).unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut bytes).unwrap();
    let path = folder.join(name.replace('/', "-") + ".gguf");
    std::fs::write(&path, bytes).unwrap();
    path
}

/// A sidecar for `base` that shares the last layer's attention, which needs no tensors.
fn shared(base: &Path, out: &Path) {
    let bytes = std::fs::read(base).unwrap();
    let base = [Gguf::parse(&bytes).unwrap()];
    let (Geometry { layers, .. }, fingerprint) = identify(&base).unwrap();
    let mut plan = vec![LayerMeta::FULL; layers.len()];
    let last = plan.len() - 1;
    plan[last] = LayerMeta { kind: Kind::Shared, source: Some(last - 1), rank: 0 };
    let meta = LisaMeta {
        fingerprint,
        layers: plan,
        activation: Activation::Silu,
        domain: Domain::Log,
        scale: 1.0,
        trained: Provenance::default(),
    };
    let mut w = GgufWriter::new(Vec::new());
    w.str("general.architecture", base[0].str("general.architecture").unwrap().unwrap()).unwrap();
    w.str("general.type", "adapter").unwrap();
    w.str("adapter.type", "lisa").unwrap();
    meta.write(&mut w).unwrap();
    std::fs::write(out, w.finish().unwrap()).unwrap();
}

/// Sidecars made by a program that is not this one merge into the models they are for, and come back.
#[test]
fn there_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let (merged, back, again) = (folder.path().join("m"), folder.path().join("x"), folder.path().join("m2"));
    for (base, sidecar, dropped) in [
        ("families/phi3", "sharing/phi3.lisa", "off "),
        ("families/qwen3", "sharing/qwen3.lisa", "dropped "),
        ("families/gemma3", "sharing/gemma3.lisa", "dropped "),
        ("families/llama", "sharing/llama_gqa.lisa", "dropped "),
    ] {
        let (base, sidecar) = (unpacked(base, folder.path()), unpacked(sidecar, folder.path()));
        let line = ok(&[p("merge"), p("-m"), &base, p("--lisa"), &sidecar, p("-o"), &merged]);
        assert!(line.starts_with(merged.to_str().unwrap()) && line.contains(dropped), "{line}");
        assert!(line.contains("added ") && !line.contains("added 0 tensors"), "{line}");
        ok(&[p("extract"), p("-m"), &merged, p("-o"), &back]);
        ok(&[p("merge"), p("-m"), &base, p("--lisa"), &back, p("-o"), &again]);
        assert!(std::fs::read(&merged).unwrap() == std::fs::read(&again).unwrap());
        assert!(std::fs::metadata(&merged).unwrap().len() > 0);
    }
    let mut names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.retain(|n| !n.to_str().unwrap().ends_with(".gguf"));
    assert_eq!(names.len(), 3, "only what was asked for: {names:?}");
}

#[test]
fn the_embedded_model_is_the_default_base() {
    let folder = tempfile::tempdir().unwrap();
    let (sidecar, out) = (folder.path().join("x"), folder.path().join("m"));
    shared(&root("models/stories260K.gguf"), &sidecar);
    let line = ok(&[p("merge"), p("--lisa"), &sidecar, p("-o"), &out]);
    assert!(line.contains("dropped 2 tensors") && line.contains("added 0 tensors"), "{line}");
    let bytes = std::fs::read(&out).unwrap();
    let merged = Gguf::parse(&bytes).unwrap();
    assert!(merged.tensor("blk.4.attn_q.weight").is_none() && merged.tensor("blk.4.attn_v.weight").is_some());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&out), mode(&sidecar), "as any new file");
    }
}

/// A failed run leaves what was there, no input is ever replaced, and the message names the file at fault.
#[test]
fn refusals() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base.gguf");
    std::fs::copy(root("models/stories260K.gguf"), &base).unwrap();
    let (sidecar, out) = (folder.path().join("x"), folder.path().join("m"));
    shared(&base, &sidecar);
    let other = unpacked("families/llama", folder.path());
    std::fs::write(&out, "what was there").unwrap();

    let merge = |model: &Path, lisa: &Path, out: &Path, code: i32, parts: &[&str]| {
        refused(&[p("merge"), p("-m"), model, p("--lisa"), lisa, p("-o"), out], code, parts);
    };
    merge(&other, &sidecar, &out, 1, &[sidecar.to_str().unwrap(), "5 layers", "has 3"]);
    merge(&sidecar, &sidecar, &out, 1, &["is a sidecar, expected a model"]);
    merge(&base, &other, &out, 1, &[other.to_str().unwrap(), "not a LISA sidecar"]);
    merge(&base, p("/no/such/file"), &out, 1, &["/no/such/file"]);
    assert_eq!(std::fs::read(&out).unwrap(), b"what was there");

    let before = std::fs::read(&base).unwrap();
    merge(&base, &sidecar, &base, 2, &["the output", "would replace the input"]);
    merge(&base, &sidecar, &folder.path().join("./base.gguf"), 2, &["would replace the input"]);
    merge(&base, &sidecar, &sidecar, 2, &["would replace the input"]);
    merge(&base, &sidecar, folder.path(), 1, &["is not a file"]);
    merge(&base, &sidecar, &folder.path().join("no/m"), 1, &["no/m", "cannot write", "there is no folder"]);
    #[cfg(unix)]
    {
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&base, &link).unwrap();
        merge(&base, &sidecar, &link, 2, &["would replace the input"]);
        std::fs::remove_file(link).unwrap();
    }
    assert!(std::fs::read(&base).unwrap() == before);

    ok(&[p("merge"), p("-m"), &base, p("--lisa"), &sidecar, p("-o"), &out]);
    let again = folder.path().join("again");
    merge(&out, &sidecar, &again, 1, &[out.to_str().unwrap(), "merged already"]);
    refused(&[p("extract"), p("-m"), &base, p("-o"), &again], 1, &["base.gguf", "not a merged model"]);
    refused(&[p("extract"), p("-m"), &out, p("-o"), &out], 2, &["would replace the input"]);
    refused(&[p("extract"), p("-o"), &out], 2, &["--model"]);
    assert!(!again.exists());
    assert!(std::fs::read_dir(&folder).unwrap().all(|e| !e.unwrap().file_name().to_str().unwrap().ends_with(".part")));
}

/// A plan that the family refuses when it is loaded is refused by `inspect` and `merge` too, in the same words.
#[test]
fn plans_that_cannot_be_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let (out, sidecar) = (folder.path().join("m"), folder.path().join("x"));
    let refused_alike = |model: &Path, plan: [&Path; 2], named: &str| {
        let error = |args: &[&Path]| {
            let ran = run(&[args, &plan].concat());
            assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{args:?} {plan:?}: {}", ran.err);
            ran.err.lines().last().unwrap_or_default().to_owned()
        };
        let loading = error(&[p("logits"), p("-m"), model, p("--ids"), p("[1]")]);
        assert!(loading.starts_with("error: ") && loading.contains(named), "{loading}");
        assert_eq!(error(&[p("inspect"), model]), loading);
        assert_eq!(error(&[p("merge"), p("-m"), model, p("-o"), &out]), loading);
        assert!(!out.exists());
    };
    for (model, plan, named) in [
        ("gpt_oss_pattern", "1", "layer 1 (shared): heads with attention sinks"),
        ("deepseek2_old", "1", "layer 1 (shared): the older form of these files"),
        ("gemma3", "5", "layer 5 (shared) attends to"),
        ("gemma4", "7:3", "layer 7 (shared): the model has it take"),
        ("gemma4", "3", "layer 3 (shared): layer 5 needs its keys"),
        ("llama_deep", "1,kv:2", "layer 2 (kv): its source 1"),
        ("lfm2_attention_last", "2:1", "layer 2 (shared): it is a convolution"),
        ("lfm2_attention_last", "3:2", "layer 3 (shared)"),
        ("qwen3next", "2:1", "layer 2 (shared): it has no attention"),
        ("qwen3next_fused", "3:2", "layer 3 (shared)"),
        ("granitehybrid", "2:1", "layer 2 (shared)"),
        ("nemotron_h", "4:3", "layer 4 (shared): it has no attention"),
        ("nemotron_h", "3:1", "layer 3 (shared)"),
        ("mamba2", "1", "layer 1 (shared): it has no attention"),
        ("mamba", "2:0", "layer 2 (shared): it has no attention"),
        ("rwkv7", "1", "layer 1 (shared): it has no attention"),
        ("rwkv6qwen2", "2:1", "layer 2 (shared): it has no attention"),
        ("jamba", "2:1", "layer 2 (shared): it has no attention"),
        ("plamo2", "3:2", "layer 3 (shared): it has no attention"),
        ("deci", "2:0", "layer 2 (shared): it has no attention"),
        ("llama", "7", "layer 7: the model has 3 layers"),
    ] {
        let kind = if model == "llama_deep" { "sharing" } else { "families" };
        let model = unpacked(&format!("{kind}/{model}"), folder.path());
        refused_alike(&model, [p("--share"), p(plan)], named);
    }
    for (model, named) in [("gpt_oss_pattern", "attention sinks"), ("deepseek2_old", "attn_kv_b")] {
        let model = unpacked(&format!("families/{model}"), folder.path());
        shared(&model, &sidecar);
        refused_alike(&model, [p("--lisa"), &sidecar], named);
    }
    // Where the engine does not know the architecture it counts heads; what is right, of any family, is written.
    let (model, foreign) = (unpacked("families/qwen3next", folder.path()), folder.path().join("foreign"));
    ok(&[p("merge"), p("-m"), &model, p("--share"), p("3:1"), p("-o"), &out]);
    std::fs::write(&foreign, renamed(&std::fs::read(&model).unwrap())).unwrap();
    for args in [&[p("inspect"), &foreign][..], &[p("merge"), p("-m"), &foreign, p("-o"), &out]] {
        let args = [args, &[p("--share"), p("2:1")]].concat();
        refused(&args, 1, &["layer 2: kind shared needs attention heads"]);
    }
}

/// A model with the letters of its architecture turned round, so that nobody knows it.
fn renamed(bytes: &[u8]) -> Vec<u8> {
    let (from, to) = (b"qwen3next", b"txen3newq");
    let mut bytes = bytes.to_vec();
    for i in 0..bytes.len() - from.len() {
        if bytes[i..].starts_with(from) {
            bytes[i..i + to.len()].copy_from_slice(to);
        }
    }
    bytes
}

#[test]
fn converting() {
    let folder = tempfile::tempdir().unwrap();
    let base = unpacked("families/llama", folder.path());
    let at = |name: &str| folder.path().join(name);
    // One tensor of 4 x 4: the header's length, the header, the data; rows are outputs.
    let weights: Vec<u8> = (0..16).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let header = br#"{"l.1.skip":{"dtype":"F32","shape":[4,4],"data_offsets":[0,64]}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header, &weights].concat();
    std::fs::write(at("x.safetensors"), file).unwrap();
    std::fs::write(at("map.json"), r#"{"tensors": {"skip": "l.{layer}.skip"}}"#).unwrap();
    let convert = |modules: &str, map: &str| {
        let (modules, map) = (at(modules), at(map));
        let flags = [p("--safetensors"), &modules, p("--map"), &map, p("-o")].map(PathBuf::from);
        let mut args: Vec<PathBuf> = ["convert-lisa", "-m"].map(PathBuf::from).into();
        args.push(base.clone());
        args.extend(flags);
        args.push(at("x.lisa.gguf"));
        args
    };
    let args = convert("x.safetensors", "map.json");
    let line = ok(&args.iter().map(PathBuf::as_path).collect::<Vec<_>>());
    assert!(line.contains("1 of 3 layers substituted, 1 tensors"), "{line}");
    let bytes = std::fs::read(at("x.lisa.gguf")).unwrap();
    let sidecar = Gguf::parse(&bytes).unwrap();
    let skip = sidecar.tensor_data(sidecar.tensor("blk.1.lisa_align_skip.weight").unwrap());
    // Input head 0 gives its first column: 0, 4, 8, 12.
    let first: Vec<f32> = skip.as_chunks().0[..4].iter().map(|&b| f32::from_le_bytes(b)).collect();
    assert_eq!(first, [0.0, 4.0, 8.0, 12.0]);
    ok(&[p("merge"), p("-m"), &base, p("--lisa"), &at("x.lisa.gguf"), p("-o"), &at("merged")]);

    std::fs::write(at("bad.json"), r#"{"tensors": {"skip": "l.skip"}}"#).unwrap();
    for (modules, map, named) in [
        ("x.safetensors", "bad.json", &["bad.json", "{layer}"][..]),
        ("map.json", "map.json", &["map.json", "not a safetensors file"]),
        ("x.safetensors", "none.json", &["none.json"]),
        ("none.safetensors", "map.json", &["none.safetensors"]),
    ] {
        let args = convert(modules, map);
        refused(&args.iter().map(PathBuf::as_path).collect::<Vec<_>>(), 1, named);
    }
}
