//! The program as its users meet it: every test runs the binary, nearly all with the embedded model.

#[path = "common/program.rs"]
mod program;

use program::command;
use serde_json::Value;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

fn lisa(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn spawn(args: &[&str]) -> Child {
    command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs with `input` on standard input.
fn lisa_with(args: &[&str], input: impl AsRef<[u8]>) -> Output {
    let mut child = spawn(args);
    child.stdin.take().unwrap().write_all(input.as_ref()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Standard output and standard error of a run that must succeed.
fn success(output: &Output) -> (String, String) {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{:?}\n{err}", output.status);
    (out, err)
}

fn ok(args: &[&str]) -> (String, String) {
    success(&lisa(args))
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&ok(args).0).unwrap()
}

/// The one line on standard error of a run that must end with `code` and print nothing.
fn error(args: &[&str], code: i32) -> String {
    let output = lisa(args);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {err}");
    assert!(output.stdout.is_empty(), "{args:?}");
    let line = err.lines().last().unwrap_or_default();
    assert!(line.starts_with("error: "), "{args:?}: {err}");
    assert_eq!(err.matches("error:").count(), 1, "{args:?}: {err}");
    line.to_owned()
}

fn embedded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/stories260K.gguf")
}

const STORY: &[&str] = &["-p", "Once upon a time", "-n", "32", "-s", "1"];

fn story(more: &[&str]) -> Vec<&'static str> {
    // Leaking a few strings keeps the call sites readable.
    STORY.iter().copied().chain(more.iter().map(|s| &*s.to_string().leak())).collect()
}

#[test]
fn standard_output_carries_the_answer_alone() {
    let (out, err) = ok(STORY);
    let object = json(&story(&["--json"]));
    assert_eq!(out, format!("{}\n", object["text"].as_str().unwrap()));
    assert!(out.split_whitespace().count() > 10, "{out}");
    assert!(!out.contains("Once upon a time"));
    for part in ["Once upon a time", "sampler: seed 1", "prompt eval time", "tokens per second", "peak memory"] {
        assert!(err.contains(part), "{part} is missing in: {err}");
    }
}

#[test]
fn standard_error_can_be_silenced() {
    let (out, err) = ok(&story(&["--log-disable"]));
    assert_eq!((out, err.as_str()), (ok(STORY).0, ""));
    let (_, err) = ok(&story(&["--no-perf", "--no-display-prompt"]));
    assert!(!err.contains("Once") && !err.contains("total time"), "{err}");
}

#[test]
fn a_seed_gives_the_same_text_at_any_thread_count() {
    let one = ok(&story(&["-t", "1"])).0;
    assert_eq!(ok(&story(&["-t", "2"])).0, one);
    assert_eq!(ok(&story(&["-t", "3", "-tb", "2", "-ub", "2"])).0, one);
    assert_ne!(ok(&story(&["-s", "2"])).0, one);
}

#[test]
fn temperature_zero_needs_no_seed() {
    let greedy = |seed: &str| ok(&story(&["--temp", "0", "-s", seed])).0;
    assert_eq!(greedy("1"), greedy("2"));
    assert_eq!(greedy("1"), ok(&story(&["--top-k", "1", "-s", "3"])).0);
}

#[test]
fn the_file_on_disk_is_the_embedded_model() {
    let path = embedded();
    let path = path.to_str().unwrap();
    let out = ok(STORY).0;
    assert_eq!(ok(&story(&["-m", path])).0, out);
    assert_eq!(ok(&story(&["-m", path, "--no-mmap"])).0, out);
}

#[test]
fn json_tells_all() {
    let object = json(&story(&["--json"]));
    assert_eq!(object["prompt"], "Once upon a time");
    assert_eq!(object["seed"], 1);
    assert_eq!(object["stop"], "limit");
    assert_eq!(object["tokens"].as_array().unwrap().len(), 32);
    let timings = &object["timings"];
    assert_eq!(timings["eval_tokens"], 31);
    assert!(timings["prompt_tokens"].as_u64().unwrap() >= 4);
    assert!(timings["total_ms"].as_f64().unwrap() >= timings["load_ms"].as_f64().unwrap());
    // A seed chosen at random is told, and repeats the run.
    let free = json(&["-p", "One day", "-n", "8", "--json"]);
    let again = json(&["-p", "One day", "-n", "8", "--json", "-s", &free["seed"].to_string()]);
    assert_eq!(free["text"], again["text"]);
}

#[test]
fn no_tokens_no_text() {
    let (out, err) = ok(&["-p", "Once", "-n", "0"]);
    assert_eq!(out, "");
    assert!(err.contains("prompt eval time"));
    assert_eq!(json(&["-p", "Once", "-n", "0", "--json"])["tokens"].as_array().unwrap().len(), 0);
}

#[test]
fn without_a_prompt_the_start_token_begins() {
    assert!(ok(&["-n", "8", "-s", "1"]).0.len() > 8);
}

#[test]
fn generation_stops_at_the_end_of_the_context() {
    let object = json(&["-p", "Once upon a time", "-c", "24", "--ignore-eos", "-s", "1", "--json"]);
    assert_eq!(object["stop"], "context-full");
    let n_prompt = object["timings"]["prompt_tokens"].as_u64().unwrap() as usize;
    assert_eq!(object["tokens"].as_array().unwrap().len() + n_prompt, 25);
    let (_, err) = ok(&["-p", "Once upon a time", "-c", "24", "--ignore-eos", "-s", "1"]);
    assert!(err.contains("context of 24 tokens is full"), "{err}");
}

#[test]
fn context_shift_goes_on() {
    let args =
        ["-p", "Once upon a time", "-c", "24", "--ignore-eos", "-n", "100", "--context-shift", "-s", "1", "--json"];
    let object = json(&args);
    assert_eq!((object["stop"].as_str(), object["tokens"].as_array().unwrap().len()), (Some("limit"), 100));
    assert_eq!(object["text"], json(&[&args[..], &["-t", "2"]].concat())["text"]);
}

#[test]
fn a_prompt_that_is_too_long_is_never_cut() {
    let prompt = "One day a cat sat on a mat and saw a dog. ".repeat(8);
    let n = serde_json::from_str::<Vec<u32>>(&ok(&["tokenize", "-p", &prompt, "--ids"]).0).unwrap().len();
    let message = error(&["-p", &prompt, "-c", "32", "-n", "4"], 1);
    for part in [n.to_string(), "32".into(), (n - 32).to_string(), "--context-shift".into()] {
        assert!(message.contains(&part), "{part} is missing in: {message}");
    }
    let (out, err) = ok(&["-p", &prompt, "-c", "32", "-n", "4", "--context-shift", "-s", "1"]);
    assert!(!out.is_empty() && err.contains("forgot"), "{err}");
    // The whole prompt is read, piece by piece.
    let timings = &json(&["-p", &prompt, "-c", "32", "-n", "4", "--context-shift", "--json"])["timings"];
    assert_eq!(timings["prompt_tokens"], n);
}

#[test]
fn keep_must_leave_something_to_forget() {
    let prompt = "One day a cat sat on a mat and saw a dog. ".repeat(8);
    let message = error(&["-p", &prompt, "-c", "32", "-n", "4", "--context-shift", "--keep", "-1"], 1);
    assert!(message.contains("--keep"), "{message}");
}

#[test]
fn ignoring_the_end_of_the_text() {
    // Forbidding every other token makes the end certain.
    let eog = json(&["inspect", "--json"])["metadata"]["tokenizer.ggml.eos_token_id"].as_u64().unwrap();
    let force = format!("{eog}+inf");
    let object = json(&["-p", "Once", "-n", "9", "--json", "--logit-bias", &force]);
    assert_eq!((object["stop"].as_str(), object["text"].as_str()), (Some("eog"), Some("")));
    assert_eq!(object["tokens"], serde_json::json!([eog]));
    let object = json(&["-p", "Once", "-n", "600", "--context-shift", "--json", "--ignore-eos", "-s", "3"]);
    assert_eq!((object["stop"].as_str(), object["tokens"].as_array().unwrap().len()), (Some("limit"), 600));
}

#[test]
fn biases_forbid_and_force() {
    let ids: Vec<u32> = serde_json::from_str(&ok(&["tokenize", "-p", " cat", "--ids", "--no-bos"]).0).unwrap();
    let object = json(&["-p", "A", "-n", "3", "--json", "-l", &format!("{}+1000", ids[0])]);
    assert_eq!(object["tokens"], serde_json::json!([ids[0], ids[0], ids[0]]));
}

#[test]
fn reverse_prompts_end_the_answer() {
    let whole = ok(&story(&["--temp", "0"])).0;
    let word = whole.split_whitespace().nth(6).unwrap();
    let object = json(&story(&["--temp", "0", "-r", word, "--json"]));
    assert_eq!(object["stop"], "reverse-prompt");
    let part = object["text"].as_str().unwrap();
    assert!(part.contains(word) && whole.starts_with(part) && part.len() < whole.len() - 1, "{part}");
}

#[test]
fn prompts_from_files_and_pipes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prompt.txt");
    std::fs::write(&path, "Once upon a time\n").unwrap();
    let path = path.to_str().unwrap();
    let out = ok(STORY).0;
    assert_eq!(ok(&["-f", path, "-n", "32", "-s", "1"]).0, out);
    // With the mark that some editors put before a text.
    std::fs::write(path, "\u{feff}Once upon a time\n").unwrap();
    assert_eq!(ok(&["-f", path, "-n", "32", "-s", "1"]).0, out);
    let piped = lisa_with(&["-f", "-", "-n", "32", "-s", "1"], "Once upon a time");
    assert_eq!(success(&piped).0, out);
}

#[test]
fn escapes_and_affixes() {
    let prompt = |args: &[&str]| json(&[args, &["-n", "0", "--json"]].concat())["prompt"].as_str().unwrap().to_owned();
    assert_eq!(prompt(&["-p", r"a\nb\\"]), "a\nb\\");
    assert_eq!(prompt(&["-p", r"a\nb", "--no-escape"]), r"a\nb");
    assert_eq!(prompt(&["-p", "x", "--in-prefix", r"Q:\t", "--in-suffix", r"\nA:"]), "Q:\tx\nA:");
    assert!(error(&["-p", r"\xff", "-n", "0"], 2).contains("--no-escape"));
}

#[test]
fn metadata_can_be_overridden() {
    let logits = |more: &[&str]| ok(&[&["logits", "--ids", "[1, 403, 407, 261, 378]", "--top", "2"], more].concat()).0;
    let plain = logits(&[]);
    let base = logits(&["--rope-freq-base", "300"]);
    assert_ne!(base, plain);
    assert_eq!(base, logits(&["--override-kv", "llama.rope.freq_base=float:300"]));
    // The last word has --override-kv.
    assert_eq!(base, logits(&["--rope-freq-base", "9", "--override-kv", "llama.rope.freq_base=float:300"]));
    assert_eq!(plain, logits(&["--override-kv", "llama.rope.freq_base=float:10000,general.name=str:x"]));

    let stretched = logits(&["--rope-scale", "4"]);
    assert_ne!(stretched, plain);
    assert_eq!(stretched, logits(&["--rope-freq-scale", "0.25"]));
    assert_eq!(plain, logits(&["--rope-scale", "4", "--rope-scaling", "none"]));
    let yarn = ["--rope-scale", "4", "--rope-scaling", "yarn", "--yarn-orig-ctx", "64"];
    let yarned = logits(&yarn);
    assert_ne!(yarned, stretched);
    for (flag, value) in [("--yarn-ext-factor", "0.5"), ("--yarn-beta-slow", "4"), ("--yarn-beta-fast", "0.5")] {
        assert_ne!(yarned, logits(&[&yarn[..], &[flag, value]].concat()), "{flag}");
    }
    assert_ne!(stretched, logits(&["--rope-scale", "4", "--yarn-attn-factor", "1.5"]));

    let wrong = error(&["-p", "x", "--override-kv", "llama.block_count=str:five"], 1);
    assert!(wrong.contains("llama.block_count") && wrong.contains("string"), "{wrong}");
    for (flag, value) in [("--override-kv", "a=u8:1"), ("--rope-freq-base", "0"), ("--rope-scaling", "cubic")] {
        assert!(error(&["-p", "x", flag, value], 2).contains(value), "{flag}");
    }
}

#[test]
fn mistakes_on_the_command_line_exit_with_2() {
    for (args, named) in [
        (&["--tempp", "1"][..], "--temp"),
        (&["nonsense"], "nonsense"),
        (&["-n", "x"], "--predict"),
        (&["-n", "-3"], "--predict"),
        (&["--top-p", "2"], "--top-p"),
        (&["--temp", "nan"], "--temp"),
        (&["-s", "-2"], "--seed"),
        (&["--samplers", "top_z"], "--samplers"),
        (&["-l", "5"], "--logit-bias"),
        (&["-b", "0"], "--batch-size"),
        (&["-ub", "0"], "--ubatch-size"),
        (&["-t", "100000"], "--threads"),
        (&["-ctk", "q4"], "--cache-type-k"),
        (&["-r", ""], "--reverse-prompt"),
        (&["--keep", "-2"], "--keep"),
        (&["-sys", "x"], "--conversation"),
        (&["--exact", "--fast"], "--fast"),
        (&["-cnv", "--json"], "--json"),
        (
            &["-cnv", "--chat-template", "nosuch", "-m", "gone.gguf"],
            "--chat-template: no built-in template is called `nosuch`",
        ),
        (&["-cnv", "--chat-template", "{{ 1", "-m", "gone.gguf"], "--chat-template: line 1: syntax error"),
        (&["-cnv", "--chat-template-kwargs", "[]"], "--chat-template-kwargs"),
        (&["logits", "--ids", "[1,"], "--ids"),
        (&["logits", "--ids", "[]"], "no tokens"),
        (&["logits"], "--ids"),
        (&["perplexity", "-p", "x", "--chunks", "0"], "--chunks"),
    ] {
        let message = error(args, 2);
        assert!(message.contains(named), "{args:?}: {message}");
    }
}

/// Whether these can be is up to the model, or to what is in a file.
#[test]
fn what_cannot_be_had_exits_with_1() {
    for (args, named) in [
        (&["perplexity", "-p", "too short"][..], "1024"),
        (&["-p", "x", "--share", "9"], "layer 9"),
        (&["-p", "x", "-l", "999999+1"], "--logit-bias: token 999999: the vocabulary has 512 tokens"),
        (
            &["-p", "x", "--override-kv", "general.sampling.top_p=float:7"],
            "`general.sampling.top_p` is `7`: --top-p 7: must be",
        ),
    ] {
        let message = error(args, 1);
        assert!(message.contains(named), "{args:?}: {message}");
    }
}

#[test]
fn files_that_cannot_be_used_exit_with_1() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let bytes = std::fs::read(embedded()).unwrap();
    let missing = dir.path().join("missing.gguf").to_str().unwrap().to_owned();
    let directory = dir.path().to_str().unwrap().to_owned();
    for path in [
        missing,
        directory,
        write("empty.gguf", b""),
        write("text.gguf", b"this is a text and no model at all, however long it may become"),
        write("short.gguf", &bytes[..bytes.len() / 2]),
        write("header.gguf", &bytes[..100]),
    ] {
        for args in [&["-p", "x", "-m", &path][..], &["inspect", &path], &["tokenize", "-p", "x", "-m", &path]] {
            let message = error(args, 1);
            assert!(message.contains(&path), "{args:?}: {message}");
        }
    }
    assert!(error(&["-f", &write("latin1.txt", b"caf\xe9")], 1).contains("byte 3"));
    assert!(error(&["-f", "/nonexistent/prompt"], 1).contains("/nonexistent/prompt"));
    let template = write("broken.jinja", b"a\n{% if %}");
    let message = error(&["-cnv", "--chat-template-file", &template], 1);
    assert!(message.contains("broken.jinja: line 2: syntax error"), "{message}");
    assert!(error(&["model.gguf", "-p", "x"], 2).contains("-m model.gguf"));
}

#[test]
fn an_unknown_kernel_set_is_refused() {
    let output = command(STORY).env("LISA_CPU", "mmx").output().unwrap();
    let err = text(&output.stderr);
    assert!(output.status.code() == Some(1) && err.contains("LISA_CPU") && err.contains("portable"), "{err}");
    assert!(command(STORY).env("LISA_CPU", "portable").output().unwrap().status.success());
}

#[test]
fn help_and_version() {
    let (out, _) = ok(&["--version"]);
    assert_eq!(out, format!("lisa-cpp {}\n", env!("CARGO_PKG_VERSION")));
    let (out, _) = ok(&["--help"]);
    for part in ["--ctx-size", "--repeat-penalty", "perplexity", "LISA_CPU", "-cnv"] {
        assert!(out.contains(part), "{part} is missing in: {out}");
    }
    for sub in ["inspect", "tokenize", "logits", "bench", "perplexity"] {
        assert!(ok(&[sub, "--help"]).0.contains("Usage: lisa-cpp"), "{sub}");
    }
    let all = "inspect tokenize logits perplexity eval study bench merge extract convert-lisa quantize imatrix analyze distill synth";
    all.split(' ').for_each(|sub| assert!(!ok(&[sub, "--log-disable", "--help"]).0.is_empty(), "{sub}"));
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut child = spawn(&["-p", "Once", "-n", "100000", "--ignore-eos", "--context-shift"]);
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 16]).unwrap();
    drop(out);
    let output = child.wait_with_output().unwrap();
    let err = text(&output.stderr);
    assert!(output.status.success(), "{err}");
    assert!(!err.contains("panicked") && !err.contains("error"), "{err}");
}

#[cfg(unix)]
fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_a_completion_with_its_timings() {
    let mut child = spawn(&["-p", "Once", "-n", "100000", "--ignore-eos", "--context-shift"]);
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 16]).unwrap();
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{err}");
    assert!(err.contains("eval time") && !err.contains("error"), "{err}");
}

/// Every file that a command reads is safe from the one that it writes.
#[test]
fn outputs_do_not_replace_inputs() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let [model, text, plan, questions, types, matrix, sidecar] =
        ["m.gguf", "t.txt", "s.plan", "q.jsonl", "types.txt", "im.gguf", "x.lisa.gguf"].map(path);
    std::fs::copy(embedded(), &model).unwrap();
    std::fs::write(&text, "Once upon a time there was a little girl. ".repeat(60)).unwrap();
    std::fs::write(&plan, "3").unwrap();
    std::fs::write(&questions, "{\"context\": \"a\", \"choices\": [\"b\"], \"answer\": 0}\n").unwrap();
    std::fs::write(&types, "ffn_down=q8_0").unwrap();
    ok(&["imatrix", "-m", &model, "-f", &text, "-c", "64", "-o", &matrix]);
    let distill = ["distill", "-m", &model, "-f", &text, "-c", "16", "--held-out", "1", "--steps", "0"];
    let distill = [&distill[..], &["--steps-attention", "0"]].concat();
    ok(&[&distill[..], &["--layers", &plan, "-o", &sidecar]].concat());
    let bytes = || {
        let mut all: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
        all.sort();
        all.into_iter().map(|p| (std::fs::read(&p).unwrap(), p)).collect::<Vec<_>>()
    };
    let before = bytes();
    let eval = ["eval", "-m", &model, "--tasks", &questions, "--log-samples"];
    let base = ["perplexity", "-m", &model, "-f", &text, "-c", "64", "--kl-divergence-base"];
    let imatrix = ["imatrix", "-m", &model, "-f", &text, "-c", "64", "-o"];
    let analyze = ["analyze", "-m", &model, "-f", &text, "-c", "16", "--html"];
    let quantize = ["quantize", "--tensor-type-file", &types, "--imatrix", &matrix, &model];
    for (command, more, outputs) in [
        (&eval[..], &["--lisa", &sidecar][..], &[&model, &questions, &sidecar][..]),
        (&eval, &["--share", &plan], &[&plan]),
        (&base, &["--lisa", &sidecar], &[&model, &text, &sidecar]),
        (&base, &["--share", &plan], &[&plan]),
        (&imatrix, &["--share", &plan], &[&model, &text, &plan]),
        (&analyze, &[], &[&model, &text]),
        (&["merge", "-m", &model, "--share", &plan, "-o"], &[], &[&model, &plan]),
        (&quantize, &["q4_0"], &[&model, &types, &matrix]),
        (&[&distill[..], &["--layers", &plan, "-o"]].concat(), &[], &[&model, &text, &plan]),
        (&[&distill[..], &["--from", &sidecar, "-o"]].concat(), &[], &[&sidecar]),
    ] {
        for output in outputs {
            let args = [command, &[output.as_str()], more].concat();
            let message = error(&args, 2);
            assert!(message.contains(&format!("{output} would replace the input")), "{args:?}: {message}");
        }
    }
    assert!(bytes() == before, "a file has changed");
}

const CHAT: &[&str] = &["-cnv", "--chat-template", "chatml", "-s", "1", "-n", "12", "--ignore-eos"];

#[cfg(unix)]
#[test]
fn ctrl_c_stops_an_answer_and_not_the_chat() {
    let args = ["-cnv", "--chat-template", "chatml", "-n", "100000", "--ignore-eos", "--context-shift"];
    let mut child = spawn(&args);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"hello\n").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 16]).unwrap();
    interrupt(&child);
    stdin.write_all(b"/tokens\n").unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let err = text(&output.stderr);
    assert!(output.status.success(), "{err}");
    assert!(err.contains("tokens of the context are in use"), "{err}");
}

#[test]
fn a_single_turn_answers_once() {
    let args = [CHAT, &["-st", "-p", "Tell me a story"]].concat();
    let (out, _) = ok(&args);
    assert!(out.len() > 8 && !out.contains("Tell me"));
    // The message can come from the pipe, and --json wraps the answer.
    let piped = lisa_with(&[CHAT, &["-st"]].concat(), "Tell me a story\nand this is not read\n");
    assert_eq!(success(&piped).0, out);
    let object = json(&[&args[..], &["--json"]].concat());
    assert_eq!(format!("{}\n", object["text"].as_str().unwrap()), out);
    assert_eq!(object["prompt"], "Tell me a story");
    // An empty prompt is no message; and without any there is no answer, and no success.
    let empty = [CHAT, &["-st", "-p", ""]].concat();
    assert_eq!(success(&lisa_with(&empty, "Tell me a story\n")).0, out);
    let none = lisa_with(&empty, "\n\n");
    assert!(none.status.code() == Some(1) && text(&none.stderr).contains("without a message to answer"), "{none:?}");
}

#[test]
fn the_file_may_recommend_how_tokens_are_chosen() {
    let file = [
        "-p",
        "Once",
        "-n",
        "2",
        "--override-kv",
        "general.sampling.temp=float:0.5",
        "--override-kv",
        "general.sampling.top_k=int:7",
        "--override-kv",
        "general.sampling.sequence=str:top_k;temperature",
    ];
    let (_, err) = ok(&file);
    assert!(err.contains("recommends: temp 0.5, top_k 7, sequence top_k;temperature"), "{err}");
    assert!(err.contains("logits -> top_k 7 -> temperature 0.5 -> draw"), "{err}");
    let (_, err) = ok(&[&file[..], &["--temp", "0", "--samplers", "temperature", "--top-k", "40"]].concat());
    assert!(!err.contains("recommends") && err.contains("logits -> temperature 0 -> draw"), "{err}");
}

#[test]
fn a_chat_with_commands() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("chat.json");
    let file = file.to_str().unwrap();
    let input = format!(
        "/help\nhello\n/regen\n/tokens\n/system Be kind.\n/system\nmore\\\nlines\n/save {file}\n/clear\n/load {file}\n/regen\n\
         /nope\n/load /nonexistent\n/timings\n//slash\n/reset\n/regen\n/exit\nnot read\n"
    );
    let output = lisa_with(CHAT, &input);
    let (out, err) = success(&output);
    for part in [
        "/save FILE",
        "of 512 tokens of the context are in use",
        "Be kind.",
        "Saved 5 messages",
        "Loaded 5 messages",
        "/nope is not a command",
        "/nonexistent",
        "prompt eval time",
        "there is no message to answer",
    ] {
        assert!(err.contains(part), "{part} is missing in: {err}");
    }
    // Five answers: hello, its second one, two lines, again after /load, //slash.
    let saved: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let field = |i: usize, name: &str| saved[i][name].as_str().unwrap();
    assert_eq!((field(0, "role"), field(0, "content")), ("system", "Be kind."));
    assert_eq!((field(1, "content"), field(3, "content")), ("hello", "more\nlines"));
    assert!(out.contains(field(2, "content")) && out.contains(field(4, "content")));
    assert!(!out.contains("not read") && !out.contains("Saved"));
}

/// `/save` writes over what was saved before, not over the model.
#[test]
fn a_chat_does_not_replace_its_model() {
    let dir = tempfile::tempdir().unwrap();
    let [model, file] = ["m.gguf", "chat.json"].map(|name| dir.path().join(name).to_str().unwrap().to_owned());
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/models/stories260K.gguf"), &model).unwrap();
    let chat = [CHAT, &["-m", &model]].concat();
    let (_, err) = success(&lisa_with(&chat, format!("hello\n/save {model}\n/save {file}\n/save {file}\n")));
    assert!(err.contains("would replace the input") && err.matches("Saved 2 messages").count() == 2, "{err}");
    assert!(std::fs::read(&model).unwrap().starts_with(b"GGUF"));
}

/// A line that is no text is left out, and the chat goes on.
#[test]
fn a_line_of_other_bytes_does_not_end_a_chat() {
    let output = lisa_with(CHAT, b"one \xff two\nhello\n");
    let (out, err) = success(&output);
    assert!(err.contains("not UTF-8 (from its byte 4 on)") && !out.trim().is_empty(), "{out} {err}");
}

/// Control tokens that are shown are no part of what was said.
#[test]
fn messages_have_no_control_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("chat.json");
    let chat = ["-cnv", "--chat-template", "chatml", "-n", "4", "--special", "--logit-bias", "2+100"];
    let (out, _) = success(&lisa_with(&chat, format!("hello\n/save {}\n", file.to_str().unwrap())));
    assert!(out.contains("</s>"), "{out}");
    let saved: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!((&saved[1]["role"], &saved[1]["content"]), (&"assistant".into(), &"".into()));
}

#[test]
fn another_answer_to_the_same_message() {
    let answer = |input: &str| success(&lisa_with(CHAT, input)).0;
    let once = answer("hello\n");
    let twice = answer("hello\n/regen\n");
    assert!(twice.starts_with(&once) && twice[once.len()..] != once, "{twice}");
    // From the start, with the same seed, the same answer.
    assert_eq!(answer("hello\n/reset\nhello\n"), once.repeat(2));
}

#[test]
fn a_chat_that_fills_the_context_goes_on() {
    let args = ["-cnv", "--in-prefix", "Q: ", "--in-suffix", " A:", "-s", "1", "-n", "12", "--ignore-eos", "-c", "64"];
    let output = lisa_with(&args, "hello\nhow are you\nwhat is that\nand this\nshort\n/clear\nhi\n");
    let (_, err) = success(&output);
    assert!(err.contains("/clear begins a new one"), "{err}");
    let shifted = [&args[..], &["--context-shift"]].concat();
    let output = lisa_with(&shifted, "hello\nhow are you\nwhat is that\nand this\nshort\n");
    assert!(!success(&output).1.contains("error"));
}

#[test]
fn tokenize_prints_ids_and_lines() {
    let ids: Vec<u32> = serde_json::from_str(&ok(&["tokenize", "-p", "Once upon a time", "--ids"]).0).unwrap();
    let bare: Vec<u32> =
        serde_json::from_str(&ok(&["tokenize", "-p", "Once upon a time", "--ids", "--no-bos"]).0).unwrap();
    assert_eq!(ids[1..], bare);
    let (out, _) = ok(&["tokenize", "-p", "Once upon a time", "--no-bos"]);
    let parsed: Vec<u32> = out.lines().map(|l| l.split("->").next().unwrap().trim().parse().unwrap()).collect();
    assert_eq!(parsed, bare);
    assert!(out.lines().all(|l| l.ends_with('\'')), "{out}");
    let piped = lisa_with(&["tokenize", "--ids"], "Once upon a time");
    assert_eq!(serde_json::from_str::<Vec<u32>>(&success(&piped).0).unwrap(), ids);
    let (out, _) = ok(&["tokenize", "-p", "a", "--show-count"]);
    assert!(out.ends_with(&format!("Total number of tokens: {}\n", out.lines().count() - 1)), "{out}");
}

#[test]
fn tokenize_reads_files_to_the_last_byte_and_special_text_on_demand() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text");
    std::fs::write(&path, "a\n").unwrap();
    let ids =
        |args: &[&str]| serde_json::from_str::<Vec<u32>>(&ok(&[&["tokenize", "--ids"], args].concat()).0).unwrap();
    assert_eq!(ids(&["-f", path.to_str().unwrap()]), ids(&["-p", "a\n"]));
    assert_eq!(ids(&["-p", r"a\n"]), ids(&["-p", "a\n"]));
    assert_ne!(ids(&["-p", r"a\n", "--no-escape"]), ids(&["-p", "a\n"]));
    assert!(ids(&["-p", "</s>"]).len() < ids(&["-p", "</s>", "--no-parse-special"]).len());
}

#[test]
fn logits_are_log_probabilities() {
    let ids: Vec<u32> = serde_json::from_str(&ok(&["tokenize", "-p", "Once upon a time", "--ids"]).0).unwrap();
    let given = serde_json::to_string(&ids).unwrap();
    let all = json(&["logits", "--ids", &given, "--top", "1000000", "--json"]);
    let positions = all["positions"].as_array().unwrap();
    assert_eq!(positions.len(), ids.len());
    for (i, position) in positions.iter().enumerate() {
        let list = |name: &str| position[name].as_array().unwrap().clone();
        let (top_ids, probs) = (list("top_ids"), list("top_logprobs"));
        let probs: Vec<f64> = probs.iter().map(|p| p.as_f64().unwrap()).collect();
        assert_eq!(top_ids.len(), probs.len());
        assert!(probs.is_sorted_by(|a, b| a >= b));
        assert!((probs.iter().map(|p| p.exp()).sum::<f64>() - 1.0).abs() < 1e-4);
        match ids.get(i + 1) {
            Some(&next) => {
                let at = top_ids.iter().position(|id| *id == next).unwrap();
                assert_eq!(position["next_logprob"].as_f64().unwrap(), probs[at]);
            }
            None => assert!(position["next_logprob"].is_null()),
        }
    }
    let few = json(&["logits", "-p", "Once upon a time", "--top", "2", "--json"]);
    assert_eq!(
        few["positions"][1]["top_ids"].as_array().unwrap()[..],
        positions[1]["top_ids"].as_array().unwrap()[..2]
    );
    let exact = json(&["logits", "--ids", &given, "--top", "1", "--json", "--exact"]);
    let near = |v: &Value| v["positions"][2]["top_logprobs"][0].as_f64().unwrap();
    assert!((near(&exact) - near(&all)).abs() < 0.1);
    assert_eq!(ok(&["logits", "-p", "Once", "--top", "3"]).0.lines().filter(|l| l.contains('"')).count() % 4, 0);
}

#[test]
fn logits_refuses_ids_outside_the_vocabulary() {
    assert!(error(&["logits", "--ids", "[1,100000]", "--json"], 1).contains("100000"));
}

#[test]
fn inspect_shows_the_file() {
    let object = json(&["inspect", "--json"]);
    assert_eq!(object["metadata"]["general.architecture"], "llama");
    assert_eq!(object["parts"], 1);
    assert_eq!(object["bytes"], std::fs::metadata(embedded()).unwrap().len());
    let tensors = object["tensors"].as_array().unwrap();
    let sum = |list: &[Value], name: &str| list.iter().map(|t| t[name].as_u64().unwrap()).sum::<u64>();
    let elements = |t: &Value| t["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).product::<u64>();
    assert_eq!(tensors.iter().map(elements).sum::<u64>(), object["parameters"].as_u64().unwrap());
    let types = object["types"].as_array().unwrap();
    assert_eq!(sum(types, "bytes"), sum(tensors, "bytes"));
    assert_eq!(sum(types, "tensors"), tensors.len() as u64);
    let tokens = &object["metadata"]["tokenizer.ggml.tokens"];
    assert_eq!((tokens["length"].as_u64(), tokens["first"].as_array().unwrap().len()), (Some(512), 6));
    let all = json(&["inspect", "--json", "--all", embedded().to_str().unwrap()]);
    assert_eq!(all["metadata"]["tokenizer.ggml.tokens"].as_array().unwrap().len(), 512);
    assert_eq!(all, json(&["inspect", "--json", "--all", "-m", embedded().to_str().unwrap()]));
}

#[test]
fn inspect_computes_the_memory_of_a_context() {
    let memory = |n: &str| json(&["inspect", "--json", "-c", n])["memory"].clone();
    let (small, large) = (memory("100"), memory("200"));
    assert_eq!(large["n_ctx"], 200);
    for kind in ["f32", "f16"] {
        let bytes = |m: &Value| m["cache_bytes"][kind].as_u64().unwrap();
        assert_eq!(bytes(&large), 2 * bytes(&small));
    }
    // The heads are too short for blocks of 32.
    assert!(small["cache_bytes"]["q8_0"].is_null());
    // 5 layers, 4 key/value heads of 8, keys and values, 2 bytes.
    assert_eq!(small["cache_bytes"]["f16"], 100 * 5 * 4 * 8 * 2 * 2);
    let (out, _) = ok(&["inspect", "-c", "100"]);
    for part in ["general.architecture", "token_embd.weight", "memory for a context of 100 tokens", "together"] {
        assert!(out.contains(part), "{part} is missing in: {out}");
    }
}

/// Packed, types of very few bits take more than in the file.
#[test]
fn inspect_knows_how_large_weights_become() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let path = path.to_str().unwrap();
    let shape = "--like llama3-8b --layers 4 --n-embd 512 --n-head 8 --n-head-kv 4 --n-ff 1024 --n-vocab 400 --ctx 64";
    for ty in ["F16", "Q4_K", "IQ1_S"] {
        ok(&[&["synth"], &shape.split(' ').collect::<Vec<_>>()[..], &["--type", ty, "-o", path]].concat());
        let predicted = json(&["inspect", "--json", path])["memory"]["weights_bytes"].as_f64().unwrap();
        let bench = json(&["bench", "-m", path, "-p", "4", "-n", "0", "-r", "1", "-o", "json"]);
        let measured = bench[0]["weight_bytes"].as_f64().unwrap();
        assert!((predicted / measured - 1.0).abs() < 0.02, "{ty}: {predicted} predicted, {measured} held");
    }
}

#[test]
fn bench_reports_every_test() {
    let args = ["bench", "-p", "16", "-n", "4", "-d", "8", "-r", "2"];
    let (out, _) = ok(&args);
    let has = |test: &str| out.lines().any(|l| l.starts_with("| llama 0.26 M F32") && l.contains(test));
    assert!(has("pp16 @ d8 |"), "{out}");
    assert!(has("tg4 @ d8 |"), "{out}");
    let records = json(&[&args[..], &["-pg", "8,2", "-o", "json"]].concat());
    let tests = records.as_array().unwrap();
    assert_eq!(tests.len(), 3);
    for test in tests {
        let rates = test["samples_ts"].as_array().unwrap();
        assert!(rates.len() == 2 && rates.iter().all(|r| r.as_f64().unwrap() > 0.0), "{test}");
        assert!(test["n_depth"] == 8 && test["model_n_params"].as_u64().unwrap() > 200_000, "{test}");
        assert!(test["fraction_of_limit"].is_null() && test["weight_bytes"].as_u64().unwrap() > 0, "{test}");
    }
    assert!((tests[2]["n_prompt"].as_u64(), tests[2]["n_gen"].as_u64()) == (Some(8), Some(2)), "{}", tests[2]);
    assert!(error(&["bench", "-r", "0"], 2).contains("--repetitions"));
    assert!(error(&["bench", "-p", "1-x"], 2).contains("--n-prompt 1-x"));
    assert!(error(&["bench", "-p", "0", "-n", "0"], 2).contains("--n-prompt"));
}

/// A small model does not inherit the memory of a large one before it.
#[cfg(target_os = "linux")]
#[test]
fn bench_counts_the_memory_of_each_model() {
    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("large.gguf");
    let shape =
        "synth --like llama3-8b --layers 4 --n-embd 1024 --n-head 8 --n-head-kv 8 --n-ff 2048 --n-vocab 400 --ctx 64";
    let shape: Vec<&str> = shape.split(' ').collect();
    ok(&[&shape[..], &["--type", "F16", "-o", large.to_str().unwrap()]].concat());
    let models = format!("{},{}", large.display(), embedded().display());
    let records = json(&["bench", "-m", &models, "-p", "8", "-n", "0", "-r", "1", "-o", "json"]);
    let peak = |i: usize| records[i]["peak_memory_bytes"].as_u64();
    assert!(peak(1).is_none_or(|small| small < peak(0).unwrap() / 2), "{records}");
}

#[test]
fn bench_formats_hold_the_same_results() {
    let args = ["bench", "-p", "8", "-n", "0", "-r", "1", "-ub", "4,8", "-ctk", "f16,f32", "-o"];
    let run = |format: &str| ok(&[&args[..], &[format]].concat()).0;
    let csv = run("csv");
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 5, "{csv}");
    let n_columns = lines[0].split(',').count();
    assert!(lines[1..].iter().all(|l| l.split("\",\"").count() == n_columns), "{csv}");
    let mapped = lines[0].split(',').position(|name| name == "use_mmap").unwrap();
    assert_eq!(lines[1].split("\",\"").nth(mapped), Some("1"), "{csv}");
    let jsonl = run("jsonl");
    let objects: Vec<serde_json::Value> = jsonl.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let settings: Vec<_> = objects.iter().map(|o| (o["n_ubatch"].as_u64().unwrap(), o["type_k"].clone())).collect();
    assert_eq!(settings, [(4, "f16".into()), (4, "f32".into()), (8, "f16".into()), (8, "f32".into())]);
    let md = run("md");
    assert!(md.starts_with("| model ") && md.contains("|     params |    backend |"), "{md}");
    assert_eq!(md.matches("|        CPU |").count(), 4, "{md}");
    let sql = run("sql");
    assert!(sql.starts_with("CREATE TABLE IF NOT EXISTS llama_bench"), "{sql}");
    assert_eq!(sql.matches("INSERT INTO llama_bench").count(), 4);
}

/// The header and the metadata of a file are no part of a model's size.
#[test]
fn bench_counts_the_bytes_of_tensors() {
    let records = json(&["bench", "-p", "4", "-n", "0", "-r", "1", "-o", "json"]);
    // All of the embedded model is F32.
    assert_eq!(records[0]["model_size"].as_u64().unwrap(), 4 * records[0]["model_n_params"].as_u64().unwrap());
}

#[test]
fn bench_ends_what_it_printed_before_a_failure() {
    let models = format!("{},no-such.gguf", embedded().display());
    let args = ["bench", "-m", &models, "-p", "4", "-n", "0", "-r", "1", "-o", "json"];
    let output = lisa(&args);
    let err = text(&output.stderr);
    assert!(output.status.code() == Some(1) && err.contains("no-such.gguf"), "{err}");
    let records: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(records.as_array().unwrap().len(), 1);
    error(&["bench", "-m", "no-such.gguf", "-o", "json"], 1);
}

/// Who reads standard error may leave.
#[cfg(target_os = "linux")]
#[test]
fn standard_error_that_cannot_be_written_to_stops_nothing() {
    for args in [
        &["bench", "-p", "4", "-n", "0", "-r", "1", "--progress", "--roofline", "--profile", "-t", "1"][..],
        &["-p", "Once", "-n", "2", "--profile", "-t", "1"],
    ] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = command(args).stderr(full).output().unwrap();
        assert!(output.status.success() && !output.stdout.is_empty(), "{args:?}: {}", output.status);
    }
}

#[test]
fn bench_shows_limits_and_where_time_went() {
    let args = ["bench", "-p", "8", "-n", "4", "-r", "1", "-t", "1", "--roofline", "--profile", "-o", "jsonl"];
    let (out, err) = ok(&args);
    for line in out.lines() {
        let object: serde_json::Value = serde_json::from_str(line).unwrap();
        let fraction = object["fraction_of_limit"].as_f64().unwrap();
        assert!(fraction > 0.0 && fraction.is_finite(), "{object}");
    }
    assert!(err.contains("roofline of 1 threads") && err.contains("gate, up products"), "{err}");
    let (_, err) = ok(&["-p", "Once", "-n", "4", "--profile"]);
    assert!(err.contains("output head"), "{err}");
}

#[test]
fn perplexity_of_windows() {
    let sentence = "Once upon a time there was a little girl named Lily. She liked to play in the park with her dog. ";
    let text = sentence.repeat(8);
    let args = ["perplexity", "-p", &text, "-c", "64", "--json"];
    let object = json(&args);
    let running = object["running"].as_array().unwrap();
    let n_windows = running.len() as u64;
    assert!(n_windows >= 3);
    assert_eq!(object["n_scored"], n_windows * 31);
    assert_eq!(object["perplexity"], running[running.len() - 1]);
    let nll = object["nll"].as_f64().unwrap();
    assert!((nll.exp() - object["perplexity"].as_f64().unwrap()).abs() < 1e-6);
    // A story teller knows its stories: far better than a uniform guess over 512 tokens.
    assert!(nll < 4.0, "{nll}");
    let one = json(&[&args[..], &["--chunks", "1"]].concat());
    assert_eq!(one["running"].as_array().unwrap()[..], running[..1]);
    let (out, _) = ok(&["perplexity", "-p", &text, "-c", "64", "--chunks", "2"]);
    assert!(out.starts_with("[1]") && out.contains(",[2]") && out.contains("\nFinal estimate: PPL = "), "{out}");
}

#[test]
fn cache_types_agree_roughly() {
    let nll = |kind: &str| {
        let text = "Once upon a time there was a little girl named Lily. She liked to play. ".repeat(4);
        json(&["perplexity", "-p", &text, "-c", "32", "--json", "-ctk", kind, "-ctv", kind])["nll"].as_f64().unwrap()
    };
    let (f32, f16) = (nll("f32"), nll("f16"));
    assert!(f32 != f16 && (f16 - f32).abs() < 0.01, "{f32} {f16}");
    assert!(error(&["-p", "x", "-ctk", "q8_0"], 1).contains("multiple of 32"));
}

/// Shared attention on the embedded model: another story than without, the same from the list, the file and a merged model.
#[test]
fn layers_share_attention() {
    let story = ["-p", "Once upon a time", "-n", "24", "--temp", "0", "--log-disable"];
    let with = |extra: &[&str]| ok(&[&story[..], extra].concat()).0;
    let plain = with(&[]);
    let shared = with(&["--share", "3"]);
    assert_ne!(plain, shared);
    assert_eq!(shared, with(&["--share", "3:2"]));
    let plans = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/plans");
    assert_eq!(shared, with(&["--share", plans.join("stories260K.plan").to_str().unwrap()]));
    let dir = tempfile::tempdir().unwrap();
    let merged = dir.path().join("merged.gguf");
    let merged = merged.to_str().unwrap();
    ok(&["merge", "--share", "3", "-o", merged]);
    assert_eq!(shared, with(&["-m", merged]));
    assert_ne!(shared, with(&["--share", "kv:3"]));
    assert!(error(&["-m", merged, "-p", "x", "--share", "3"], 1).contains("plan of its own"));
}

#[test]
fn plans_that_cannot_be_are_refused() {
    let refused = |share: &str, code: i32, parts: &[&str]| {
        let message = error(&["-p", "x", "-n", "1", "--share", share], code);
        assert!(parts.iter().all(|p| message.contains(p)), "{share}: {message}");
    };
    refused("5", 1, &["--share", "layer 5", "5 layers"]);
    refused("3:3", 2, &["layer 3", "not an earlier layer"]);
    refused("1:2,2:1", 2, &["layer 1", "source 2"]);
    refused("0", 2, &["layer 0"]);
    refused("2,2", 2, &["layer 2", "twice"]);
    refused("1,kv:2", 1, &["layer 2 (kv)", "source 1", "keeps no keys"]);
    refused("no-such.plan", 2, &["no-such.plan"]);
    assert!(error(&["-p", "x", "--share", "3", "--lisa", "y"], 2).contains("--share"));
    assert!(error(&["-p", "x", "--lisa", embedded().to_str().unwrap()], 1).contains("not a"));
}

#[test]
fn inspect_shows_the_plan() {
    let sharing = json(&["inspect", "--json", "--share", "2,kv:4:1"])["sharing"].clone();
    let layers = sharing["layers"].as_array().unwrap();
    let kinds: Vec<_> = layers.iter().map(|l| l["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["full", "full", "shared", "full", "kv"]);
    assert_eq!((&layers[2]["source"], &layers[4]["source"]), (&1.into(), &1.into()));
    // Width 64, F32: queries of 64, keys and values of 32; the cache in F16.
    let saved = |l: &Value, what: &str| l[what]["before"].as_u64().unwrap() - l[what]["after"].as_u64().unwrap();
    assert_eq!([0, 2, 4].map(|i| saved(&layers[i], "weights")), [0, (64 + 32) * 64 * 4, (32 + 32) * 64 * 4]);
    assert_eq!([0, 2, 4].map(|i| saved(&layers[i], "cache_per_token")), [0, 32 * 2, (32 + 32) * 2]);
    let deep = &sharing["generation"][2];
    let bytes = |name: &str| deep[name].as_f64().unwrap();
    assert_eq!(deep["depth"], 8192);
    assert_eq!(bytes("predicted_speedup"), bytes("bytes_before") / bytes("bytes_after"));
    assert!(json(&["inspect", "--json"])["sharing"].is_null());
    let (out, _) = ok(&["inspect", "--share", "2"]);
    assert!(out.contains("1 of 5 take attention from another (20 %)"), "{out}");
}
