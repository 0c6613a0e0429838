//! `perplexity` and `eval` from the outside: what they print, and that their figures agree with each other.

#[path = "common/program.rs"]
mod program;

use program::{ok, run};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&ok(args)).unwrap()
}

/// Runs into an error of one line and the given exit code.
fn error(args: &[&str], code: i32) -> String {
    let program::Ran { code: found, err, .. } = run(args);
    assert_eq!(found, Some(code), "{args:?}: {err}");
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

/// Questions of every shape about the embedded model's own stories.
fn question_files(dir: &Path) {
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(
        "piqa/validation.jsonl",
        "{\"goal\": \"play\", \"sol1\": \"in the park\", \"sol2\": \"zq xv kj\", \"label\": 0}\n\
         {\"goal\": \"see\", \"sol1\": \"kx qj vv\", \"sol2\": \"a big dog\", \"label\": \"1\"}\n",
    );
    write(
        "lambada/test.jsonl",
        "{\"text\": \"Once upon a time\"}\n{\"context\": \"Once upon a\", \"target\": \"xylophone\"}\n",
    );
    write(
        "stories.jsonl",
        "{\"context\": \"Once upon a time, there was a\", \"choices\": [\"little girl\", \"xv\"], \"answer\": 0}\n\n\
         {\"contexts\": [\"Lily had a\", \"Qx zv\"], \"continuation\": \"big red ball\", \"answer\": 0}\n",
    );
}

#[test]
fn benchmarks_and_files_of_questions() {
    let dir = tempfile::tempdir().unwrap();
    question_files(dir.path());
    let data = dir.path().to_str().unwrap();
    let stories = dir.path().join("stories.jsonl");
    let tasks = format!("piqa,LAMBADA,{}", stories.display());
    let samples = dir.path().join("samples.jsonl");
    let args = ["eval", "--tasks", &tasks, "--data", data, "--json", "--log_samples", samples.to_str().unwrap()];
    let results = &json(&args)["results"];
    assert_eq!(results["piqa"]["n"], 2);
    assert_eq!(results["piqa"]["acc_norm"], 1.0, "{results}");
    assert_eq!(results["lambada_openai"]["acc"], 0.5, "{results}");
    assert!(results["lambada_openai"]["perplexity"].as_f64().unwrap() > 1.0);
    assert_eq!(results["stories"]["acc"], 1.0, "{results}");
    assert!(results["stories"]["acc_norm"].is_null(), "one of the questions has no choices of its own");

    // The scores are those of the predictions that `logits` prints.
    let lines = std::fs::read_to_string(&samples).unwrap();
    let lines: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 6);
    let sample = lines.iter().find(|l| l["task"] == "stories").unwrap();
    let context = "Once upon a time, there was a";
    let logits = json(&["logits", "-p", &format!("{context} little girl"), "--top", "1", "--json"]);
    let n: usize = serde_json::from_str::<Vec<u32>>(&ok(&["tokenize", "-p", context, "--ids"])).unwrap().len();
    let positions = logits["positions"].as_array().unwrap();
    let sum: f64 = positions[n - 1..positions.len() - 1].iter().map(|p| p["next_logprob"].as_f64().unwrap()).sum();
    let scored = sample["scores"][0]["log_prob"].as_f64().unwrap();
    assert!((sum - scored).abs() < 1e-3, "{sum} {scored}");
    assert_eq!(sample["predictions"][0], 0);

    // The table has the same figures, however many sessions share the work.
    let table = ok(&["eval", "--tasks", "piqa", "--data", data, "-np", "1", "-t", "2"]);
    assert!(table.contains("| piqa ") && table.contains("acc_norm   |   1.0000"), "{table}");
    let one = json(&["eval", "--tasks", "piqa", "--data", data, "--limit", "1", "--json"]);
    assert_eq!(one["results"]["piqa"]["n"], 1);
    assert!(one["results"]["piqa"]["acc_stderr"].is_null(), "one question tells nothing about the error: {one}");
    // An answer longer than the context loses its start, as any text.
    let short = json(&["eval", "--tasks", "piqa", "--data", data, "-c", "2", "--json"]);
    assert_eq!(short["results"]["piqa"]["n_truncated"], 4, "{short}");
}

#[test]
fn files_of_one_name_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    question_files(dir.path());
    let same_name = dir.path().join("more/stories.jsonl");
    std::fs::create_dir(same_name.parent().unwrap()).unwrap();
    std::fs::copy(dir.path().join("stories.jsonl"), &same_name).unwrap();
    let stories = dir.path().join("stories.jsonl");
    let names = [&stories, &same_name].map(|p| p.to_str().unwrap());
    let both = json(&["eval", "--tasks", &names.join(","), "--json"]);
    assert_eq!(both["results"].as_object().unwrap().keys().collect::<Vec<_>>(), names, "{both}");
}

#[test]
fn eval_mistakes_name_the_file_or_flag() {
    let dir = tempfile::tempdir().unwrap();
    question_files(dir.path());
    let data = dir.path().to_str().unwrap();
    let broken = dir.path().join("broken.jsonl");
    std::fs::write(&broken, "{\"context\": \"a\", \"choices\": [\"b\"], \"answer\": 0}\n{\"context\": \"a\"}\n")
        .unwrap();
    let broken = broken.to_str().unwrap();
    let mixed = dir.path().join("mixed.jsonl");
    let lines =
        ["\"choices\": [\"b\"], \"answer\": 0", "\"target\": \"b\""].map(|l| format!("{{\"context\": \"a\", {l}}}\n"));
    std::fs::write(&mixed, lines.concat()).unwrap();
    let mixed = mixed.to_str().unwrap();
    for (args, code, named) in [
        (&["--tasks", "nonsense"][..], 2, "hellaswag"),
        (&["--tasks", "piqa"], 2, "--data"),
        (&["--tasks", "boolq", "--data", data], 1, "boolq"),
        (&["--tasks", "piqa,boolq", "--data", broken], 2, "--data"),
        (&["--tasks", "piqa", "--data", data, "--limit", "0"], 2, "--limit"),
        (&["--tasks", "piqa", "--data", data, "-np", "0"], 2, "--parallel"),
        (&["--tasks", broken], 1, "broken.jsonl:2: "),
        (&["--tasks", "piqa,PIQA", "--data", data], 2, "'piqa' is given twice"),
        (&["--tasks", mixed], 1, "mixed.jsonl:2: a question with a target"),
    ] {
        let args: Vec<_> = std::iter::once("eval").chain(args.iter().copied()).collect();
        let message = error(&args, code);
        assert!(message.contains(named), "{args:?}: {message}");
    }
}

/// Whoever reads the figures may leave: files that were asked for are written all the same.
#[test]
fn files_do_not_wait_for_a_reader() {
    let dir = tempfile::tempdir().unwrap();
    question_files(dir.path());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (text, samples, base, matrix) = (story(6), path("samples"), path("base"), path("imatrix.gguf"));
    for (args, file) in [
        (&["eval", "--tasks", "piqa", "--data", &path(""), "--log-samples", &samples][..], &samples),
        (&["eval", "--tasks", "piqa", "--data", &path(""), "--json", "--log-samples", &samples], &samples),
        (&["perplexity", "-p", &text, "-c", "64", "--kl-divergence-base", &base], &base),
        (&["imatrix", "-p", &text, "-c", "64", "-o", &matrix], &matrix),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let status = program::command(args).stdout(writer).status().unwrap();
        assert!(status.success() && Path::new(file).exists(), "{args:?}: {status}");
        std::fs::remove_file(file).unwrap();
    }
}

/// Hours of scoring are not lost to what happens in the benchmark after.
#[cfg(unix)]
#[test]
fn samples_of_finished_benchmarks_outlive_the_next() {
    let dir = tempfile::tempdir().unwrap();
    question_files(dir.path());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let question = format!("{{\"context\": \"{}\", \"target\": \" dog\"}}\n", story(20));
    std::fs::write(path("endless.jsonl"), question.repeat(3_000)).unwrap();
    let (tasks, samples) = (format!("piqa,{}", path("endless.jsonl")), path("samples"));
    let args = ["eval", "--tasks", &tasks, "--data", &path(""), "--log-samples", &samples];
    let mut child = program::command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("piqa")));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{err}");
    assert!(err.contains("samples of piqa alone"), "{err}");
    let written = std::fs::read_to_string(&samples).unwrap();
    assert!(written.lines().count() == 2 && written.lines().all(|line| line.contains("piqa")), "{written}");
}

#[test]
fn more_questions_at_a_time_than_threads_are_told_of() {
    let dir = tempfile::tempdir().unwrap();
    question_files(dir.path());
    let args = ["eval", "--tasks", "piqa", "--data", dir.path().to_str().unwrap(), "-t", "1", "-np"];
    let err = |n: &str| run(&[&args[..], &[n]].concat()).err;
    assert!(err("3").contains("note: --parallel 3: 1 questions side by side"), "{}", err("3"));
    assert!(!err("1").contains("note: --parallel"), "{}", err("1"));
}
