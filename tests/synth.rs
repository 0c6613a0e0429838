//! `lisa-cpp synth`: what it writes is a model the engine runs, for every preset, and what it cannot write it refuses.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use ggml_ext::lisa::{Kind, LayerMeta, LisaMeta};
use lisa_cpp::{Model, ModelFile, ModelParams, Session, SessionParams};

const PRESETS: [&str; 6] = ["llama2-7b", "llama2-13b", "llama3-8b", "tinyllama-1.1b", "smollm2-135m", "qwen2.5-0.5b"];
/// Small enough to run, with the proportions of the preset's own heads where they are not given.
const TINY: &str = "--layers 7 --n-embd 256 --n-head 4 --n-head-kv 2 --n-ff 512 --n-vocab 400 --ctx 128";

fn synth(args: &str, output: Option<&Path>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lisa-cpp"));
    command.arg("synth").args(args.split_whitespace());
    if let Some(path) = output {
        command.arg("-o").arg(path);
    }
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Writes a model and runs it: 20 tokens of prompt, 20 of its own.
fn generates(args: &str) -> Arc<Model> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let output = synth(args, Some(&path));
    assert!(output.status.success(), "{args}: {}", text(&output.stderr));
    assert!(output.stdout.is_empty(), "{args}");
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(left, ["model.gguf"], "{args}");

    let model = Model::open(&path, ModelParams::default()).unwrap_or_else(|e| panic!("{args}: {e}"));
    let model = Arc::new(model);
    let params = SessionParams { n_threads: 2, ..Default::default() };
    let mut session = Session::new(model.clone(), params).unwrap_or_else(|e| panic!("{args}: {e}"));
    let prompt = model.tokenizer().encode("once upon a time", true, false).unwrap();
    let mut row = session.prefill(&prompt, &mut |_| ()).unwrap();
    for _ in 0..20 {
        let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        let n = row.len() as f64;
        let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let deviation = (row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n).sqrt();
        assert!((0.3..3.0).contains(&deviation), "{args}: logits spread by {deviation}, expected about 1");
        row = session.decode(best as u32).unwrap();
    }
    model
}

/// A merged model's metadata; `None` for one that shares nothing.
fn meta(args: &str) -> Option<LisaMeta> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    assert!(synth(args, Some(&path)).status.success(), "{args}");
    let file = ModelFile::open(&path).unwrap();
    LisaMeta::read(&file.parse().unwrap()[0]).unwrap()
}

#[test]
fn every_preset_generates() {
    for preset in PRESETS {
        let model = generates(&format!("--like {preset} {TINY}"));
        let c = model.config();
        assert_eq!((c.n_layer, c.n_embd, c.n_head, c.n_head_kv, c.n_ff), (7, 256, 4, 2, 512));
        assert_eq!((model.n_ctx_train(), model.decoder().n_vocab()), (128, 400));
        assert_eq!(c.arch, if preset.starts_with("qwen2") { "qwen2" } else { "llama" });
    }
}

#[test]
fn every_type_generates() {
    for ty in "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4 NVFP4".split(' ') {
        generates(&format!("--like llama2-7b {TINY} --type {ty}"));
    }
    // Rows that no block of 256 fits.
    generates(&format!("--like llama2-7b {TINY} --n-ff 352 --type q4_k"));
}

#[test]
fn merged_models_generate() {
    for preset in PRESETS {
        for sub in ["--rank 16", "--rank 4 --hidden 5 --lisa-type Q8_0", "--rank 0", "--kind shared"] {
            generates(&format!("--like {preset} {TINY} --layers-substituted 4 {sub}"));
        }
    }
}

#[test]
fn merged_metadata() {
    let args = format!("--like llama3-8b {TINY} --layers-substituted 2");
    let found = meta(&args).expect("the extension's keys");
    // A sixth of the head of 64, even; layers 4 to 6 have two to give.
    let lisa = |source| LayerMeta { kind: Kind::Lisa, source: Some(source), rank: 10 };
    let full = LayerMeta::FULL;
    assert_eq!(found.layers, [full, full, full, full, lisa(3), full, lisa(5)]);
    assert_eq!(found.scale, 0.125);
    // Of a head of 8 a sixth would be nothing.
    let tiny = meta(&format!("{args} --n-embd 32")).unwrap();
    assert_eq!(tiny.layers[6], LayerMeta { rank: 2, ..lisa(5) });
    assert!(meta(&format!("--like llama3-8b {TINY}")).is_none());
    assert_ne!(meta(&format!("{args} --seed 2")).unwrap().fingerprint, found.fingerprint);
    assert_eq!(meta(&args).unwrap().fingerprint, found.fingerprint);
}

/// The listing's total is what the file holds beside its header, and the same seed gives the same bytes.
#[test]
fn dry_runs_tell_the_size() {
    let args = format!("--like llama2-7b {TINY} --layers-substituted 3 --seed 7");
    let dry = synth(&format!("{args} --dry-run"), None);
    assert!(dry.status.success());
    let total = text(&dry.stdout).lines().last().unwrap().split_whitespace().nth(3).unwrap();
    let total: u64 = total.parse().unwrap();

    let folder = tempfile::tempdir().unwrap();
    let paths = ["a", "b"].map(|name| folder.path().join(name));
    for path in &paths {
        assert!(synth(&args, Some(path)).status.success());
    }
    let [a, b] = paths.map(|path| std::fs::read(path).unwrap());
    assert!(a == b);
    let gguf = ggml_ext::gguf::Gguf::parse(&a).unwrap();
    assert_eq!(gguf.tensors().iter().map(|t| t.n_bytes).sum::<u64>(), total);
    for t in gguf.tensors() {
        let shape = t.shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
        let line = text(&dry.stdout).lines().find(|l| l.split_whitespace().next() == Some(&t.name));
        let line = line.unwrap_or_else(|| panic!("{} is not listed", t.name));
        assert!(line.contains(&shape) && line.ends_with(&format!(" {}", t.n_bytes)), "{line}");
    }
}

#[test]
fn refusals_name_the_flag() {
    for (args, parts) in [
        ("--like llama9", &["--like", "llama2-7b"][..]),
        ("--like llama2-7b --type Q9", &["--type", "Q9", "Q4_0"]),
        ("--like llama2-7b --type Q8_K", &["--type"]),
        ("--like llama2-7b --n-embd 100", &["--n-embd 100", "--n-head 32"]),
        ("--like llama2-7b --n-head-kv 5", &["--n-head-kv 5", "--n-head 32"]),
        ("--like llama2-7b --n-vocab 100", &["--n-vocab 100", "259"]),
        ("--like llama2-7b --layers 0", &["--layers"]),
        ("--like llama2-7b --layers-substituted 32", &["--layers-substituted 32", "31"]),
        ("--like llama2-7b --layers-substituted 2 --rank 7", &["--rank 7", "even"]),
        ("--like llama2-7b --layers-substituted 2 --rank 130", &["--rank 130", "128"]),
        ("--like llama2-7b --layers-substituted 2 --kind shared --rank 4", &["--rank", "--kind lisa"]),
        ("--like llama2-7b --layers-substituted 2 --kind shared --lisa-type q8_0", &["--lisa-type", "--kind lisa"]),
        ("--like llama2-7b --layers-substituted 2 --hidden 9999999999", &["--hidden", "9999999999"]),
        ("--like llama2-7b --rank 4", &["--layers-substituted"]),
        ("--like llama2-7b", &["--output"]),
    ] {
        let output = match parts {
            ["--output"] => synth(args, None),
            _ => synth(&format!("{args} --dry-run"), None),
        };
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args}: {message}");
        assert!(message.lines().count() == 1 && parts.iter().all(|p| message.contains(p)), "{args}: {message}");
    }
    let nowhere = synth(&format!("--like llama2-7b {TINY}"), Some(Path::new("/no such folder/x.gguf")));
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(text(&nowhere.stderr).contains("/no such folder/x.gguf"), "{}", text(&nowhere.stderr));
}
