//! `perplexity` and `eval` from the outside: what they print, and that their figures agree with each other.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lisa-cpp")).args(args).output().unwrap()
}

fn ok(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&ok(args)).unwrap()
}

/// Runs into an error of one line and the given exit code.
fn error(args: &[&str], code: i32) -> String {
    let output = run(args);
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {err}");
    let message = err.lines().find(|l| l.starts_with("error: ")).unwrap_or_else(|| panic!("{args:?}: {err}"));
    message.to_owned()
}

fn embedded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/stories260K.gguf")
}

fn story(n: usize) -> String {
    "Once upon a time there was a little girl named Lily. She liked to play in the park with her dog. ".repeat(n)
}

fn value(v: &Value) -> f64 {
    v["value"].as_f64().unwrap()
}

#[test]
fn a_model_does_not_differ_from_itself() {
    let text = story(6);
    let base = embedded();
    let base = base.to_str().unwrap();
    let args = ["perplexity", "-p", &text, "-c", "64", "--json", "--kl-divergence", "--base", base];
    let d = json(&args);
    assert!(value(&d["kld"]).abs() < 1e-7 && value(&d["same_top_p"]) == 1.0, "{d}");
    assert_eq!(d["ppl"]["value"], d["ppl_base"]["value"]);
    let alone = json(&args[..6]);
    let difference = value(&d["ppl"]) - alone["perplexity"].as_f64().unwrap();
    assert!(difference.abs() < 1e-3 && d["n_scored"] == alone["n_scored"], "{d} {alone}");
}

/// The lock-step comparison and the one through a file are of the same numbers, but for the 16 bits of the file.
#[test]
fn a_base_file_says_what_lockstep_says() {
    let text = story(6);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("base.kld");
    let file = file.to_str().unwrap();
    let base = embedded();
    let written = ok(&["perplexity", "-p", &text, "-c", "64", "--kl-divergence-base", file]);
    assert!(written.contains("Final estimate: PPL = "), "{written}");
    let from_file = json(&["perplexity", "--share", "3", "--kl-divergence", "--kl-divergence-base", file, "--json"]);
    let base = base.to_str().unwrap();
    let lockstep =
        json(&["perplexity", "--share", "3", "-p", &text, "-c", "64", "--kl-divergence", "--base", base, "--json"]);
    assert!(value(&lockstep["kld"]) > 1e-3);
    assert_eq!(from_file["n_scored"], lockstep["n_scored"]);
    for key in ["ppl", "ppl_base", "kld", "same_top_p", "rms_delta_p", "ppl_ratio"] {
        let (a, b) = (value(&from_file[key]), value(&lockstep[key]));
        assert!((a - b).abs() < 2e-3 * b.abs(), "{key}: {a} {b}");
    }
    let text = ok(&["perplexity", "--share", "3", "--kl-divergence", "--kl-divergence-base", file]);
    for line in ["Mean PPL(Q)/PPL(base)         : ", "Maximum KLD: ", "RMS Δp    : ", "Same top p: "] {
        assert!(text.contains(line), "{line} is missing in {text}");
    }
}

/// The first of the windows, of 192 + 64 / 2 tokens rounded up to 256, against the predictions that `logits` prints.
#[test]
fn strided_windows_score_their_last_tokens() {
    let text = story(40);
    let d = json(&["perplexity", "-p", &text, "-c", "192", "--ppl-stride", "64", "--chunks", "2", "--json"]);
    assert_eq!(d["n_scored"], 2 * 64);
    let ids = ok(&["tokenize", "-p", &text, "--ids"]);
    let ids: Vec<u32> = serde_json::from_str(&ids).unwrap();
    let window = serde_json::to_string(&ids[..256]).unwrap();
    let logits = json(&["logits", "--ids", &window, "--top", "1", "--json"]);
    let scored = &logits["positions"].as_array().unwrap()[191..255];
    let nll: f64 = scored.iter().map(|p| -p["next_logprob"].as_f64().unwrap()).sum::<f64>() / 64.0;
    let first = d["running"][0].as_f64().unwrap();
    assert!((first - nll.exp()).abs() < 1e-3 * first, "{first} {}", nll.exp());
}

#[test]
fn perplexity_mistakes_name_the_flag() {
    let file = embedded();
    let file = file.to_str().unwrap();
    let text = story(6);
    for (args, code, named) in [
        (&["-p", &text, "--kl-divergence"][..], 2, "--base"),
        (&["--base", file, "-p", &text], 2, "--kl-divergence"),
        (&["--kl-divergence", "--base", file], 2, "-f or -p"),
        (&["--kl-divergence", "--kl-divergence-base", file], 1, "stories260K.gguf: is no file of log-probabilities"),
        (&["-p", &text, "-c", "64", "--ppl-stride", "65"], 2, "--ppl-stride 65"),
        (&["-p", &text, "--ppl-stride", "8", "--kl-divergence-base", "x"], 2, "--ppl-stride"),
    ] {
        let args: Vec<_> = std::iter::once("perplexity").chain(args.iter().copied()).collect();
        let message = error(&args, code);
        assert!(message.contains(named), "{args:?}: {message}");
    }
}
