//! `distill` and `analyze` as their users meet them, on the embedded model and on stories that it tells.

#[path = "common/program.rs"]
mod program;

use program::{command, ok, refused};
use serde_json::Value;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;

fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("distill");
        std::fs::create_dir_all(&folder).unwrap();
        let told = ["1", "2", "3", "4", "5", "6"].map(|seed| ok(&["-p", "Once upon a time", "-n", "450", "-s", seed]));
        std::fs::write(folder.join("stories.txt"), told.join("\n\n")).unwrap();
        let lines = told.iter().map(|t| serde_json::json!({ "text": t, "src": "story" }).to_string());
        let other = serde_json::json!({ "text": "zzz", "src": "other" }).to_string();
        std::fs::write(folder.join("stories.jsonl"), lines.chain([other]).collect::<Vec<_>>().join("\n")).unwrap();
        folder
    })
}

fn path(name: &str) -> String {
    folder().join(name).to_str().unwrap().to_owned()
}

/// A short run on small windows; later flags override.
fn distill<'a>(text: &'a str, output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let all = [
        "distill",
        "-f",
        text,
        "-o",
        output,
        "-c",
        "32",
        "--held-out",
        "4",
        "--steps-attention",
        "12",
        "--steps",
        "24",
    ];
    all.iter().chain(&["--eval-every", "6", "--json"]).chain(more).copied().collect()
}

fn events(out: &str) -> Vec<Value> {
    out.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn perplexity(n_ctx: &str, more: &[&str]) -> f64 {
    let text = path("stories.txt");
    let args: Vec<_> = ["perplexity", "-f", &text, "-c", n_ctx, "--json"].iter().chain(more).copied().collect();
    serde_json::from_str::<Value>(&ok(&args)).unwrap()["perplexity"].as_f64().unwrap()
}

#[test]
fn a_trained_sidecar_runs_and_is_better_than_sharing_alone() {
    let (text, sidecar) = (path("stories.txt"), path("trained.lisa.gguf"));
    let out = ok(&distill(&text, &sidecar, &["--layers", "auto:2", "--rank", "4", "--hidden", "4", "--steps", "60"]));
    let events = events(&out);
    let of = |name: &str| events.iter().filter(|e| e["event"] == name).cloned().collect::<Vec<_>>();
    let kl = |e: &Value| e["kl"].as_f64().unwrap();
    let (start, end) = (&of("start")[0], &of("end")[0]);
    assert!(kl(end) < 0.5 * kl(start), "{start} {end}");
    assert_eq!(of("step").len(), 12 + 60);
    assert_eq!(end["tokens"], (12 + 60) * 2 * 32);
    // The engine, in its own arithmetic, agrees with the trainer.
    let (plain, with) = (perplexity("32", &[]), perplexity("32", &["--lisa", &sidecar]));
    let ratio = end["perplexity"].as_f64().unwrap() / end["perplexity_unchanged"].as_f64().unwrap();
    assert!((with / plain / ratio - 1.0).abs() < 0.1, "{with} / {plain}, trainer {ratio}");
    let info = ok(&["inspect", &sidecar, "--json"]);
    for part in ["stories.txt", "lisa.trained.tokens", "4608"] {
        assert!(info.contains(part), "{part} is missing in {info}");
    }
    // Training goes on from a sidecar.
    let more = path("more.lisa.gguf");
    let out = ok(&distill(&text, &more, &["--from", &sidecar, "--steps", "2", "--steps-attention", "0"]));
    let again = kl(&self::events(&out)[0]);
    assert!((again - kl(end)).abs() < 0.02 * kl(end), "{again}, {end}");
    let info = ok(&["inspect", &more, "--json"]);
    assert!(info.contains("4736"), "the tokens of both runs: {info}");
}

#[test]
fn sources_are_the_nearest_full_layers_unless_named() {
    let text = path("stories.txt");
    for (name, layers, more, sources) in [
        ("full", "2-4", &[][..], "[-1, -1, 1, 1, 1]"),
        ("chain", "2-4", &["--source", "chain"], "[-1, -1, 1, 2, 3]"),
        ("named", "2,3,4:2", &[], "[-1, -1, 1, 1, 2]"),
    ] {
        let sidecar = path(&format!("{name}.lisa.gguf"));
        let flags = [&["--layers", layers, "--steps", "0", "--steps-attention", "0"], more].concat();
        let all = ["distill", "-f", &text, "-o", &sidecar, "-c", "32", "--held-out", "4", "--json"];
        ok(&[&all[..], &flags].concat());
        let info = ok(&["inspect", &sidecar]);
        assert!(info.contains(sources), "{name}: {info}");
    }
}

/// A run that is killed, resumed, stopped and resumed again ends with the same bytes, also on another number of threads.
#[test]
fn resumed_runs_end_as_uninterrupted_ones() {
    let text = path("stories.txt");
    let (whole, broken) = (path("whole.lisa.gguf"), path("broken.lisa.gguf"));
    let checkpoint = format!("{broken}.checkpoint");
    // What an earlier run of the tests left.
    for file in [&checkpoint, &broken] {
        let _ = std::fs::remove_file(file);
    }
    let flags = ["--layers", "2,3", "--rank", "4", "--save-every", "1"];
    ok(&distill(&text, &whole, &flags));
    for (after, event) in [(5, "attention"), (10, "end-to-end")] {
        let args = distill(&text, &broken, &flags);
        let mut child = command(&args).arg("--resume").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let killed = lines.map_while(Result::ok).filter(|l| l.contains("\"step\"") && l.contains(event)).nth(after);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(killed.is_some(), "the run was over before it was killed");
        assert!(Path::new(&checkpoint).exists() && !Path::new(&broken).exists());
    }
    // Stopped in order, at once after its first step.
    ok(&distill(&text, &broken, &[&flags[..], &["--resume", "--time-limit", "0"]].concat()));
    assert!(Path::new(&checkpoint).exists());
    refused(
        &distill(&text, &broken, &[&flags[..], &["--resume", "--lr", "0.1"]].concat()),
        1,
        &["checkpoint", "another run: --lr is 0.015 there and 0.1 here"],
    );
    refused(&distill(&text, &broken, &flags), 1, &["broken.lisa.gguf.checkpoint", "--resume", "delete"]);
    let out = ok(&distill(&text, &broken, &[&flags[..], &["--resume", "-t", "1"]].concat()));
    assert!(events(&out).iter().filter(|e| e["event"] == "step").count() < 24, "it did not go on from the checkpoint");
    assert!(std::fs::read(&whole).unwrap() == std::fs::read(&broken).unwrap(), "another result than without a break");
    assert!(!Path::new(&checkpoint).exists());
}

#[test]
fn compensation_helps_and_runs() {
    let text = path("stories.jsonl");
    let kl = |e: &Value| e["kl"].as_f64().unwrap();
    let run = |name: &str, more: &[&str]| {
        let output = path(name);
        let flags = ["--layers", "2,3", "--kind", "shared", "--exclude", "src=other"];
        let out = events(&ok(&distill(&text, &output, &[&flags[..], more].concat())));
        (kl(&out[0]), kl(out.last().unwrap()), output)
    };
    let (bare, same, _) = run("bare.lisa.gguf", &["--no-comp"]);
    let (start, end, sidecar) = run("comp.lisa.gguf", &[]);
    assert_eq!(bare, same, "there is nothing to train");
    assert!(start < bare && end < start, "{bare} {start} {end}");
    assert!(perplexity("64", &["--lisa", &sidecar]) < perplexity("64", &["--share", "2,3"]));
}

#[test]
fn analysis_of_the_embedded_model() {
    let (text, page) = (path("stories.txt"), path("page.html"));
    let args = ["analyze", "-f", &text, "-c", "64", "--chunks", "4", "--html", &page];
    let found: Value = serde_json::from_str(&ok(&[&args[..], &["--json"]].concat())).unwrap();
    let layers = found["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 4);
    let unchanged = found["perplexity_unchanged"].as_f64().unwrap();
    for l in layers {
        assert!(l["kl"].as_f64().unwrap() > 0.0, "{l}");
    }
    // Sharing layer 1 hurts a small model most; 3 is what models/plans shares.
    let kl = |i: usize| layers[i - 1]["kl"].as_f64().unwrap();
    assert!(kl(1) > kl(3), "{layers:?}");
    assert!(layers[0]["perplexity"].as_f64().unwrap() > unchanged);
    for measure in ["cosine", "cosine_matched", "divergence", "divergence_matched"] {
        let m = found["similarity"][measure].as_array().unwrap();
        assert_eq!((m.len(), m[4].as_array().unwrap().len()), (5, 5));
        assert!(found["rank_correlation"][measure].as_f64().unwrap().abs() <= 1.0);
    }
    let page = std::fs::read_to_string(&page).unwrap();
    assert_eq!(page.matches("<svg").count(), 4);
    assert!(!page.contains("http"), "the page refers to something else");
    let table = ok(&args);
    assert!(table.lines().count() >= 10 && table.contains("rank correlation"), "{table}");
}

/// One that is killed leaves nothing behind.
#[test]
fn an_analysis_makes_no_file_before_its_end() {
    let folder = folder().join("killed");
    // What an earlier run of the tests left.
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let (text, page) = (path("stories.txt"), folder.join("page.html"));
    let args = ["analyze", "-f", &text, "-c", "16", "--chunks", "1000", "--html", page.to_str().unwrap()];
    let mut child = command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|l| l.unwrap().starts_with("text: ")));
    child.kill().unwrap();
    child.wait().unwrap();
    // The page itself is there if the run was over before it was killed.
    let left = std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().file_name());
    assert_eq!(left.filter(|name| name != "page.html").count(), 0);
}

fn unpacked(family: &str) -> String {
    let packed = format!("tests/data/families/{family}.gguf.gz");
    let bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(packed)).unwrap();
    let mut unpacked = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut unpacked).unwrap();
    let file = path(&format!("{family}.gguf"));
    std::fs::write(&file, unpacked).unwrap();
    file
}

/// Where windows take turns, a layer shares with the one before the one before it.
#[test]
fn sources_have_the_same_window() {
    let (model, text, sidecar) = (unpacked("gemma2"), path("stories.txt"), path("turns.lisa.gguf"));
    let args = ["analyze", "-m", &model, "-f", &text, "-c", "32", "--chunks", "2"];
    let found: Value = serde_json::from_str(&ok(&[&args[..], &["--json"]].concat())).unwrap();
    let layers = found["layers"].as_array().unwrap();
    assert!(!layers.is_empty(), "{found}");
    for l in layers {
        assert_eq!(l["source"].as_u64().unwrap() + 2, l["layer"].as_u64().unwrap(), "{l}");
    }
    assert!(ok(&args).contains("source: the nearest earlier layer with the same heads and window"));
    for source in ["full", "chain"] {
        let flags = ["-m", &model, "--layers", "auto:1", "--source", source, "--steps-choice", "1"];
        ok(&distill(
            &text,
            &sidecar,
            &[&flags[..], &["--protect", "0", "--steps-attention", "1", "--steps", "1"]].concat(),
        ));
    }
}

/// The program carries a LISA model: its own model's sidecar, trained.
#[test]
fn the_embedded_sidecar() {
    let (plain, with) = (perplexity("64", &[]), perplexity("64", &["--lisa", "default"]));
    let untrained = perplexity("64", &["--share", "2,3,4"]);
    assert!(with < 1.15 * plain && with < 0.7 * untrained, "{plain} {with} {untrained}");
    assert!(ok(&["-p", "Once upon a time", "-n", "8", "--lisa", "default", "--temp", "0"]).starts_with(','));
    refused(&["-m", &unpacked("llama"), "--lisa", "default", "-p", "x"], 1, &["<embedded sidecar>"]);
}

#[test]
fn mistakes_are_named() {
    let (text, lines, out) = (path("stories.txt"), path("stories.jsonl"), path("never.lisa.gguf"));
    let layers = ["--layers", "2"];
    let with = |more: &[&'static str]| -> Vec<&'static str> { more.to_vec() };
    for (more, code, parts) in [
        (with(&["--layers", "7"]), 1, &["--layers", "layer 7", "5 layers"][..]),
        (with(&["--layers", "auto:9"]), 1, &["--layers", "auto:9"]),
        (with(&["--layers", "kv:2"]), 2, &["--layers", "layer 2"]),
        (with(&["--layers", "2", "--rank", "3"]), 2, &["--rank"]),
        (with(&["--layers", "2", "--rank", "100"]), 1, &["--rank", "100", "8"]),
        (with(&["--layers", "2", "--lr", "nan"]), 2, &["--lr"]),
        (with(&["--layers", "2", "--activation", "tanh"]), 2, &["--activation", "tanh", "silu"]),
        (with(&["--layers", "2", "-c", "100000"]), 1, &["tokens"]),
        (with(&["--layers", "2", "--exclude", "a=b"]), 2, &["--exclude"]),
        (with(&["--layers", "2", "--kind", "shared", "--rank", "4"]), 2, &["--rank", "--kind lisa"]),
        (with(&["--layers", "2", "--kind", "shared", "--hidden", "4"]), 2, &["--hidden", "--kind lisa"]),
        (with(&["--layers", "2", "--no-comp"]), 2, &["--no-comp", "--kind shared"]),
        (with(&["--layers", "2", "--protect", "1"]), 2, &["--protect", "auto:N"]),
        (with(&["--layers", "2", "--steps-choice", "1"]), 2, &["--steps-choice", "auto:N"]),
        (with(&["--from", "x.gguf", "--no-comp"]), 2, &["--no-comp", "--from"]),
        (with(&[]), 2, &["--layers"]),
    ] {
        refused(&distill(&text, &out, &more), code, parts);
    }
    refused(&distill(&text, &text, &layers), 2, &["would replace the input", "stories.txt"]);
    refused(&distill("/nonexistent", &out, &layers), 1, &["/nonexistent"]);
    std::fs::write(path("bad.jsonl"), "{\"txt\": 1}\n").unwrap();
    refused(&distill(&path("bad.jsonl"), &out, &layers), 1, &["bad.jsonl", "line 1", "text"]);
    std::fs::write(path("type.jsonl"), "{\"text\": \"a\"}\n{\"text\": 5}\n").unwrap();
    refused(
        &distill(&path("type.jsonl"), &out, &layers),
        1,
        &["type.jsonl", "line 2: field text is 5, expected a string"],
    );
    std::fs::write(path("type.jsonl"), "{\"text\": \"a\"}\n{\"text\":\n").unwrap();
    refused(&distill(&path("type.jsonl"), &out, &layers), 1, &["line 2: not JSON: ", " at column 8"]);
    refused(&["analyze", "-f", &lines, "--chunks", "0"], 2, &["--chunks"]);
    refused(&["analyze", "-f", &lines, "--kind", "shared", "--rank", "4"], 2, &["--rank"]);
    refused(&["analyze", "-f", &lines, "--rank", "4"], 2, &["--rank"]);
    assert!(!Path::new(&out).exists());
}
