//! `study` from the outside, on the embedded model: records, resuming, failures, shards, the report.

#[path = "common/program.rs"]
mod program;

use program::{Ran, command, run_command};
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

/// Runs `study` in a folder.
fn run(dir: &Path, args: &[&str]) -> Ran {
    run_command(command(&["study"]).args(args).current_dir(dir))
}

/// What a run that must succeed prints on standard output and standard error.
#[track_caller]
fn ok(dir: &Path, args: &[&str]) -> (String, String) {
    let ran = run(dir, args);
    assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.err);
    (ran.out, ran.err)
}

/// A study of two quantisations and two ways of sharing.
fn prepare(more: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/stories260K.gguf");
    std::fs::copy(model, dir.path().join("stories.gguf")).unwrap();
    let story = "Once upon a time there was a little girl named Lily. She liked to play in the park with her dog. ";
    std::fs::write(dir.path().join("text.txt"), story.repeat(8)).unwrap();
    std::fs::write(
        dir.path().join("q.jsonl"),
        "{\"context\": \"Once upon a time, there was a\", \"choices\": [\"little girl\", \"xv\"], \"answer\": 0}\n",
    )
    .unwrap();
    let study = format!(
        "title = \"A & B\"\nthreads = 1\n\
         [[model]]\nname = \"stories\"\nfile = \"stories.gguf\"\nquants = [\"as-is\", \"Q8_0\"]\n\
         [[sharing]]\nname = \"three\"\nshare = \"3\"\n{more}\
         [quality]\ntext = \"text.txt\"\nctx-size = 64\nchunks = 3\ntasks = [\"q.jsonl\"]\n\
         [speed]\nprompt = 16\ngenerate = 4\nrepetitions = 1\n"
    );
    std::fs::write(dir.path().join("s.toml"), study).unwrap();
    dir
}

fn records(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// What must be the same in every run.
fn metrics(records: &[Value]) -> Vec<(String, Value)> {
    let mut all: Vec<_> =
        records.iter().map(|r| (r["key"].as_str().unwrap().to_owned(), r["quality"].clone())).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[test]
fn records_report_and_table() {
    let dir = prepare("");
    let (table, _) = ok(dir.path(), &["s.toml"]);
    assert_eq!(table.lines().count(), 2 + 4, "{table}");
    let all = records(&dir.path().join("s/records.jsonl"));
    let cells: Vec<_> =
        all.iter().map(|r| (r["cell"]["quant"].as_str().unwrap(), r["cell"]["sharing"].as_str().unwrap())).collect();
    assert_eq!(cells, [("as is", "none"), ("as is", "three"), ("Q8_0", "none"), ("Q8_0", "three")]);
    for r in &all {
        assert_eq!(r["status"], "ok", "{r}");
        assert_eq!(r["quality"]["divergence"]["n_scored"], 3 * 31);
        assert!(r["memory"]["peak_rss_bytes"].as_u64().unwrap() > 1 << 20);
        assert!(r["speed"]["time_to_first_token_ms"].as_f64().unwrap() > 0.0);
        let p = &r["provenance"];
        assert_eq!((p["threads"].as_u64(), p["files"].as_object().unwrap().len()), (Some(1), 3), "{p}");
    }
    let kl = |i: usize| all[i]["quality"]["divergence"]["kld"]["value"].as_f64().unwrap();
    assert!(kl(0).abs() < 1e-7 && kl(1) > 1e-3 && kl(2) > 0.0 && kl(2) < kl(1), "{} {} {}", kl(0), kl(1), kl(2));
    let kv = |i: usize| all[i]["memory"]["kv_bytes_per_token"].as_u64().unwrap();
    assert!(kv(1) < kv(0), "a layer that shares caches no keys");

    // The figures are those of `perplexity` itself.
    let args = ["perplexity", "-m", "stories.gguf", "--share", "3", "-f", "text.txt", "-c", "64", "--chunks", "3"];
    let args = [&args[..], &["-t", "1", "--json", "--kl-divergence", "--base", "stories.gguf"]].concat();
    let alone = run_command(command(&args).current_dir(dir.path())).out;
    let alone: Value = serde_json::from_str(&alone).unwrap();
    assert_eq!(alone["kld"], all[1]["quality"]["divergence"]["kld"]);

    let page = std::fs::read_to_string(dir.path().join("s/report.html")).unwrap();
    assert!(page.contains("<h1>A &amp; B</h1>") && page.contains("Does the damage add up?"));
    let csv = std::fs::read_to_string(dir.path().join("s/report.csv")).unwrap();
    assert_eq!(csv.lines().count(), 5);
    assert!(csv.contains("q_acc") && csv.contains("tg4_tokens_per_second"), "{csv}");
}

/// A study killed at its second cell, its record cut off in the middle, goes on and ends with the same figures.
#[test]
fn a_killed_study_goes_on() {
    let whole = prepare("");
    ok(whole.path(), &["s.toml"]);
    let expected = records(&whole.path().join("s/records.jsonl"));

    let dir = prepare("");
    let file = dir.path().join("s/records.jsonl");
    let mut child = command(&["study", "s.toml"])
        .current_dir(dir.path())
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while std::fs::read_to_string(&file).map_or(0, |t| t.lines().count()) < 1 {
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(child.try_wait().unwrap().is_none() || file.exists());
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let first = text.lines().next().unwrap();
    std::fs::write(&file, format!("{first}\n{}", &first[..first.len() / 2])).unwrap();

    let (_, err) = ok(dir.path(), &["s.toml"]);
    assert_eq!(err.matches("measured already").count(), 1, "{err}");
    assert_eq!(metrics(&records(&file)), metrics(&expected));
    // Once more there is nothing to do.
    let (_, err) = ok(dir.path(), &["s.toml"]);
    assert_eq!(err.matches("measured already").count(), 4, "{err}");
    let (list, _) = ok(dir.path(), &["s.toml", "--dry-run", "--log-disable"]);
    assert_eq!((list.lines().count(), list.matches("measured already").count()), (4, 4), "{list}");
}

#[test]
fn two_studies_do_not_write_to_one_file() {
    let dir = prepare("");
    std::fs::create_dir(dir.path().join("s")).unwrap();
    let file = std::fs::File::create(dir.path().join("s/records.jsonl")).unwrap();
    file.lock().unwrap();
    let Ran { code, err, .. } = run(dir.path(), &["s.toml"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("records.jsonl: another study is writing to it"), "{err}");
    std::fs::write(dir.path().join("part.jsonl"), "").unwrap();
    let Ran { code, err, .. } = run(dir.path(), &["merge", "part.jsonl", "-o", "s"]);
    assert!(code == Some(1) && err.contains("another study is writing to it"), "{err}");
    file.unlock().unwrap();
    ok(dir.path(), &["s.toml"]);
}

/// Whoever reads the table may leave before it is printed.
#[test]
fn the_report_does_not_wait_for_a_reader() {
    let dir = prepare("");
    ok(dir.path(), &["s.toml"]);
    let page = dir.path().join("s/report.html");
    for args in [&["s.toml"][..], &["report", "s"]] {
        std::fs::remove_file(&page).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let status = command(&["study"]).args(args).current_dir(dir.path()).stdout(writer).status().unwrap();
        assert!(status.success() && page.exists(), "{args:?}");
    }
}

#[test]
fn a_cell_that_fails_does_not_stop_the_rest() {
    let dir = prepare(
        "[[sharing]]\nname = \"too | many\"\nshare = \"99\"\n[[sharing]]\nname = \"gone\"\nlisa = \"gone.gguf\"\n",
    );
    let Ran { code, err, out } = run(dir.path(), &["s.toml"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(out.contains("| too \\| many "), "{out}");
    assert!(err.contains("4 of 8 cells failed") && err.contains("layer 99") && err.contains("gone.gguf"), "{err}");
    let all = records(&dir.path().join("s/records.jsonl"));
    assert_eq!(all.iter().filter(|r| r["status"] == "ok").count(), 4);
    let page = std::fs::read_to_string(dir.path().join("s/report.html")).unwrap();
    assert!(page.contains("<h2>Failed</h2>") && page.contains("gone.gguf"));
}

#[test]
fn shards_are_joined() {
    let dir = prepare("");
    for shard in ["1/2", "2/2"] {
        ok(dir.path(), &["s.toml", "--shard", shard]);
    }
    let parts = ["s/records-1-of-2.jsonl", "s/records-2-of-2.jsonl"];
    for part in parts {
        assert_eq!(records(&dir.path().join(part)).len(), 2);
    }
    ok(dir.path(), &["merge", parts[1], parts[0], "-o", "all", "--title", "joined"]);
    let all = records(&dir.path().join("all/records.jsonl"));
    assert_eq!(all.iter().map(|r| r["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(std::fs::read_to_string(dir.path().join("all/report.html")).unwrap().contains("<h1>joined</h1>"));
    ok(dir.path(), &["report", "all"]);
    assert!(std::fs::read_to_string(dir.path().join("all/report.html")).unwrap().contains("<h1>all</h1>"));
}

#[test]
fn joining_loses_no_records_of_the_folder() {
    let dir = prepare("");
    for shard in ["1/2", "2/2"] {
        ok(dir.path(), &["s.toml", "--shard", shard]);
    }
    let [one, two] = ["s/records-1-of-2.jsonl", "s/records-2-of-2.jsonl"];
    ok(dir.path(), &["merge", one, two, "-o", "all"]);
    let all = dir.path().join("all/records.jsonl");
    let before = std::fs::read(&all).unwrap();
    let Ran { code, err, .. } = run(dir.path(), &["merge", one, "-o", "all"]);
    assert!(code == Some(1) && err.contains("all/records.jsonl: holds 2 records that are in none of the"), "{err}");
    assert_eq!(std::fs::read(&all).unwrap(), before);
    // The same once more, and more than before, lose nothing.
    ok(dir.path(), &["merge", two, one, "-o", "all"]);
    assert_eq!(std::fs::read(&all).unwrap(), before);
    std::fs::copy(&all, dir.path().join("copy.jsonl")).unwrap();
    ok(dir.path(), &["merge", one, "copy.jsonl", "-o", "all"]);
    assert_eq!(std::fs::read(&all).unwrap(), before);
}

#[test]
fn a_study_of_flags() {
    let dir = prepare("");
    let args = ["-m", "stories.gguf", "--share", "3", "--kv", "f16,q8_0", "-p", "8", "-n", "2", "-r", "1", "-t", "1"];
    // Heads of 8 values cannot be cached in q8_0: those cells fail, the others do not.
    assert_eq!(run(dir.path(), &args).code, Some(1));
    let all = records(&dir.path().join("study/records.jsonl"));
    let ok: Vec<_> = all.iter().filter(|r| r["status"] == "ok").map(|r| r["cell"]["kv"].as_str().unwrap()).collect();
    assert_eq!(ok, ["f16", "f16"]);
}

#[test]
fn mistakes_name_the_file_line_or_flag() {
    let dir = prepare("nonsense = 1\n");
    let good = "[[model]]\nname = \"a\"\nfile = \"gone.gguf\"\nquants = [\"as-is\", \"Q8_0\"]\n[[sharing]]\nname = \"b\"\n\
        share = \"3\"\n[quality]\ntext = \"mine/report.csv\"\n";
    std::fs::write(dir.path().join("good.toml"), good).unwrap();
    std::fs::write(dir.path().join("threads.toml"), format!("threads = 5000\n{good}")).unwrap();
    let analyze = good.replace("quants", "analyze = \"other.json\"\nquants");
    std::fs::write(dir.path().join("analyze.toml"), analyze).unwrap();
    std::fs::write(dir.path().join("other.json"), "{}").unwrap();
    std::fs::create_dir(dir.path().join("mine")).unwrap();
    std::fs::write(dir.path().join("mine/report.csv"), "my own").unwrap();
    for (args, code, named) in [
        (&["s.toml"][..], 1, "s.toml:10"),
        (&["gone.toml"], 1, "gone.toml"),
        (&[], 2, "TOML"),
        (&["s.toml", "--shard", "3/2"], 2, "--shard"),
        (&["merge", "gone.jsonl", "-o", "x"], 1, "gone.jsonl"),
        (&["merge", "x.jsonl"], 2, "-o"),
        (&["report", "gone"], 1, "gone/records.jsonl"),
        (&["--quants", "Q4_0"], 2, "--model"),
        (&["good.toml", "--quants", "Q4_0"], 2, "--quants"),
        (&["good.toml", "--kv", "f16"], 2, "--kv"),
        (&["good.toml", "-c", "512"], 2, "--ctx-size"),
        (&["good.toml", "--title", "x"], 2, "--title"),
        (&["report", "s", "--dry-run"], 2, "--dry-run"),
        (&["report", "s", "-o", "x"], 2, "--output"),
        (&["threads.toml", "--dry-run"], 1, "threads.toml: threads: 5000"),
        (&["analyze.toml", "--dry-run"], 1, "other.json: not the JSON of analyze"),
        (&["good.toml", "--dry-run"], 1, "4 of 4 cells cannot be measured"),
        (&["good.toml", "-o", "mine"], 2, "report.csv would replace the input"),
    ] {
        let Ran { code: found, err, .. } = run(dir.path(), args);
        assert_eq!(found, Some(code), "{args:?}: {err}");
        assert!(err.lines().any(|l| l.starts_with("error: ") && l.contains(named)), "{args:?}: {err}");
    }
}
