//! `lisa-cpp imatrix`: what it measures is what the matrices are multiplied with, whatever family or sharing plan.

mod common;
#[path = "common/program.rs"]
mod program;

use ggml_ext::blocks;
use ggml_ext::gguf::Gguf;
use lisa_cpp::imatrix::{Entry, Imatrix};
use lisa_cpp::{Model, ModelParams};
use program::refused;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

const STORIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/stories260K.gguf");
const TEXT: &str = "Once upon a time there was a little girl named Lily. She loved to play outside in the sun with her dog. One \
    day, she saw a big tree and wanted to climb it. Her mom said it was too high, so she sat down and ate an apple instead. \
    The dog ran around the tree and barked at a bird. They were very happy and went home to sleep.";

/// What `imatrix` prints, which must succeed.
#[track_caller]
fn ok(args: &[&str]) -> String {
    program::ok(&[&["imatrix"], args].concat())
}

/// What `imatrix` measures with these arguments, in windows of 32 tokens.
#[track_caller]
fn measured(args: &[&str]) -> Imatrix {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("m.gguf");
    ok(&[&["-p", TEXT, "-c", "32", "-t", "2", "-o", out.to_str().unwrap()], args].concat());
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    Imatrix::read(&out).unwrap()
}

/// The largest difference of two measurements of one tensor, relative to the largest value.
fn difference(a: &Entry, b: &Entry) -> f64 {
    assert_eq!(a.counts, b.counts);
    let largest = a.squares.iter().fold(0.0, |m: f64, v| m.max(*v));
    a.squares.iter().zip(&b.squares).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs())) / largest
}

#[test]
fn the_first_layer_meets_the_normalised_embeddings() {
    let m = measured(&["--exact", "--no-ppl"]);
    let model = Model::open(Path::new(STORIES), ModelParams::default()).unwrap();
    let ids = model.tokenizer().encode(TEXT, true, false).unwrap();
    let n_chunks = ids.len() / 32;

    let bytes = std::fs::read(STORIES).unwrap();
    let g = Gguf::parse(&bytes).unwrap();
    let values = |name: &str| {
        let t = g.tensor(name).unwrap();
        let mut x = vec![0.0; t.n_elements() as usize];
        blocks::dequantize_row(t.ty, g.tensor_data(t), &mut x);
        x
    };
    let (embeddings, weight) = (values("token_embd.weight"), values("blk.0.attn_norm.weight"));
    let eps = f64::from(g.f32("llama.attention.layer_norm_rms_epsilon").unwrap().unwrap());
    let n = weight.len();
    let mut expected = Entry { squares: vec![0.0; n], counts: vec![32 * n_chunks as u64] };
    for chunk in ids.chunks_exact(32) {
        for (i, &id) in chunk.iter().enumerate() {
            // Every window begins with the start token.
            let id = if i == 0 { model.tokenizer().bos().unwrap() } else { id } as usize;
            let x = embeddings[id * n..][..n].iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
            let norm = (x.iter().map(|v| v * v).sum::<f64>() / n as f64 + eps).sqrt();
            for j in 0..n {
                expected.squares[j] += (x[j] / norm * f64::from(weight[j])).powi(2);
            }
        }
    }
    for name in ["attn_q", "attn_k", "attn_v"] {
        let off = difference(&expected, &m.entries[&format!("blk.0.{name}.weight")]);
        assert!(off < 1e-5, "{name}: {off}");
    }
    // Every matrix of every layer, each under its own name, and nothing else.
    assert_eq!(m.entries.len(), 5 * 7);
    assert_eq!(m.entries["blk.3.ffn_gate.weight"], m.entries["blk.3.ffn_up.weight"]);
    assert_ne!(m.entries["blk.3.ffn_gate.weight"], m.entries["blk.2.ffn_gate.weight"]);
    assert_eq!((m.n_chunks(), m.chunk_size), (n_chunks as u64, 32));
    // Eight-bit activations measure nearly the same.
    let default = measured(&["--no-ppl"]);
    assert!(m.entries.iter().all(|(name, e)| difference(e, &default.entries[name]) < 0.05));
}

#[test]
fn the_output_head_is_measured_on_request_and_the_perplexity_is_that_of_perplexity() {
    let m = measured(&["--process-output"]);
    let all = &m.entries["blk.0.attn_q.weight"].counts;
    // The embeddings are this model's output head.
    assert_eq!(m.entries.keys().filter(|n| !n.starts_with("blk.")).collect::<Vec<_>>(), ["token_embd.weight"]);
    assert_eq!(&m.entries["token_embd.weight"].counts, all);

    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("m.gguf");
    let said = ok(&["-p", TEXT, "-c", "32", "-o", out.to_str().unwrap(), "--log-disable"]);
    let expected = program::ok(&["perplexity", "-p", TEXT, "-c", "32", "--log-disable"]);
    let last = |text: &str| text.lines().last().unwrap().split("PPL = ").nth(1).unwrap()[..6].to_owned();
    assert_eq!(last(&said), last(&expected));
    assert_eq!(Imatrix::read(&out).unwrap().entries.len(), 35);
}

#[test]
fn chunks_can_be_chosen_and_measurements_joined() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let [first, rest, joined, dat] = ["first.gguf", "rest.gguf", "joined.gguf", "joined.dat"].map(path);
    let base = ["-p", TEXT, "-c", "32", "--no-ppl"];
    ok(&[&base[..], &["--chunks", "1", "-o", &first]].concat());
    ok(&[&base[..], &["--from-chunk", "1", "-o", &rest]].concat());
    ok(&["--in-file", &first, "--in-file", &rest, "-o", &joined]);
    let whole = measured(&["--no-ppl"]);
    let read = |path: &str| Imatrix::read(Path::new(path)).unwrap();
    assert!(read(&joined).entries.iter().all(|(name, e)| difference(e, &whole.entries[name]) < 1e-6));
    assert_eq!((read(&first).n_chunks(), read(&joined).n_chunks()), (1, whole.n_chunks()));
    // What was measured before counts on.
    ok(&[&base[..], &["--from-chunk", "1", "--in-file", &first, "-o", &dat, "--output-format", "dat"]].concat());
    assert!(!std::fs::read(&dat).unwrap().starts_with(b"GGUF"));
    let name = "blk.1.ffn_down.weight";
    let [a, b] = [&read(&dat).entries[name], &whole.entries[name]]
        .map(|e| Entry { squares: e.squares.iter().map(|v| v / e.counts[0] as f64).collect(), counts: vec![1] });
    assert!(difference(&a, &b) < 1e-6);
    ok(&[&base[..], &["--save-frequency", "2", "-o", &path("kept.gguf")]].concat());
    assert_eq!(read(&path("kept.gguf.at_2")).n_chunks(), 2);
}

#[test]
fn sharing_layers_are_measured_as_they_compute() {
    // A layer that takes weights from another has nothing that meets its Q and K.
    let m = measured(&["--share", "3", "--no-ppl"]);
    assert!(!m.entries.contains_key("blk.3.attn_q.weight") && m.entries.contains_key("blk.3.attn_v.weight"));
    assert_eq!(m.entries.len(), 33);

    // In a merged model, and with a sidecar, low-rank factors meet what the value projection meets.
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let lisa = |args: &[&str]| {
        program::ok(args);
    };
    let shape = "synth --like llama3-8b --layers 6 --n-embd 64 --n-head 4 --n-head-kv 2 --n-ff 64 --n-vocab 400 --ctx 64 --type F16";
    let shape: Vec<&str> = shape.split(' ').collect();
    let [base, merged, sidecar] = ["base", "merged", "sidecar"].map(path);
    lisa(&[&shape[..], &["-o", &base]].concat());
    lisa(&[&shape[..], &["--layers-substituted", "1", "--rank", "4", "-o", &merged]].concat());
    lisa(&["extract", "-m", &merged, "-o", &sidecar]);
    let one = measured(&["-m", &merged, "--no-ppl"]);
    let factors: Vec<_> = one.entries.keys().filter(|n| n.contains("lisa_")).cloned().collect();
    assert_eq!(factors.len(), 2, "{factors:?}");
    let value = factors[0].replace("lisa_k", "attn_v");
    assert!(factors.iter().all(|f| one.entries[f] == one.entries[&value]));
    let other = measured(&["-m", &base, "--lisa", &sidecar, "--no-ppl"]);
    assert_eq!(other.entries.len(), one.entries.len());
    assert!(one.entries.iter().all(|(name, e)| difference(e, &other.entries[name]) < 1e-3));
}

#[test]
fn fused_projections_are_counted_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("phi3.gguf");
    std::fs::write(&path, common::bytes("families/phi3.gguf.gz")).unwrap();
    let m = measured(&["-m", path.to_str().unwrap(), "--no-ppl"]);
    let counts = &m.entries["blk.0.attn_output.weight"].counts;
    for fused in ["attn_qkv", "ffn_up"] {
        assert_eq!(&m.entries[&format!("blk.0.{fused}.weight")].counts, counts, "{fused}");
    }
}

/// Every row goes to as many experts as are chosen for a token, and an expert's columns are those of the rows it met.
#[test]
fn experts_are_measured_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("olmoe.gguf");
    std::fs::write(&path, common::bytes("families/olmoe.gguf.gz")).unwrap();
    let m = measured(&["-m", path.to_str().unwrap(), "--no-ppl"]);
    let router = &m.entries["blk.1.ffn_gate_inp.weight"];
    for stack in ["gate", "up", "down"] {
        let e = &m.entries[&format!("blk.1.ffn_{stack}_exps.weight")];
        assert_eq!((e.counts.len(), e.n_cols()), (16, if stack == "down" { 32 } else { 64 }));
        assert_eq!(e.counts.iter().sum::<u64>(), 4 * router.counts[0], "{stack}");
        for (squares, &n) in e.squares.chunks(e.n_cols()).zip(&e.counts) {
            assert_eq!(squares.iter().any(|&x| x > 0.0), n > 0);
        }
    }
    // A row that four experts met is in the sums of four.
    let gates = &m.entries["blk.1.ffn_gate_exps.weight"];
    for (c, &of_router) in router.squares.iter().enumerate() {
        let of_experts: f64 = gates.squares.iter().skip(c).step_by(router.squares.len()).sum();
        assert!((of_experts - 4.0 * of_router).abs() < 1e-6 * of_experts, "column {c}: {of_experts} and {of_router}");
    }
}

/// Whenever Ctrl-C comes, the chunks that are done are in the file.
#[cfg(unix)]
#[test]
fn ctrl_c_writes_what_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    let (text, out) = (folder.path().join("text.txt"), folder.path().join("m.gguf"));
    std::fs::write(&text, TEXT.repeat(2000)).unwrap();
    let args = ["imatrix", "-f", text.to_str().unwrap(), "-o", out.to_str().unwrap(), "--output-frequency", "100000"];
    let mut child = program::command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 16]).unwrap();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let ended = child.wait_with_output().unwrap();
    let err = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(130), "{err}");
    assert!(err.contains("interrupted: ") && err.contains(" chunks"), "{err}");
    let n = Imatrix::read(&out).unwrap().n_chunks();
    assert!(n > 0 && err.contains(&format!("of {n} of ")), "{n}: {err}");
}

#[test]
fn mistakes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("m.gguf");
    let out = out.to_str().unwrap();
    for (args, code, part) in [
        (&["-o", out][..], 2, "--file"),
        (&["-p", "Too short", "-o", out], 1, "tokens"),
        (&["-p", TEXT, "-c", "0", "-o", out], 2, "--ctx-size"),
        (&["-p", TEXT, "-c", "32", "--chunks", "0", "-o", out], 2, "--chunks"),
        (&["-p", TEXT, "-c", "32", "--from-chunk", "99", "-o", out], 1, "tokens"),
        (&["--in-file", STORIES, "-o", out], 1, "stories260K.gguf: holds no importances"),
        (&["-p", TEXT, "-c", "32", "-o", "/nowhere/m.gguf"], 1, "/nowhere/m.gguf"),
    ] {
        refused(&[&["imatrix"], args].concat(), code, &[part]);
    }
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
}
