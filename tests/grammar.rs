//! Constrained generation: the program with the embedded model, and with SmolLM2 where it is there.

#[allow(dead_code)]
mod common;
#[path = "common/program.rs"]
mod program;

use program::{command, ok, refused, run};
use serde_json::Value;
use std::io::Write;
use std::process::Stdio;

/// The answer to a prompt, without the line break after it, and everything else that `--json` tells.
fn answer(args: &[&str]) -> (String, Value) {
    let out = ok(&[&["-p", "Once upon a time", "--json", "--log-disable"], args].concat());
    let object: Value = serde_json::from_str(&out).unwrap();
    (object["text"].as_str().unwrap().to_owned(), object)
}

const PERSON: &str = r#"{"type": "object", "properties": {"name": {"type": "string", "maxLength": 12},
    "age": {"type": "integer", "minimum": 0, "maximum": 150}, "happy": {"type": "boolean"}}, "required": ["name", "age"]}"#;

fn check_person(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    let object = value.as_object().unwrap();
    assert!(object["name"].as_str().unwrap().chars().count() <= 12, "{text}");
    assert!(object["age"].as_i64().is_some_and(|age| (0..=150).contains(&age)), "{text}");
    assert!(object.iter().all(|(key, value)| ["name", "age"].contains(&key.as_str()) || value.is_boolean()), "{text}");
}

#[test]
fn an_answer_is_one_of_the_texts() {
    let mut seen = Vec::new();
    for seed in 0..12 {
        let (hot, seed) = (["--temp", "9", "--top-k", "0", "--top-p", "1", "--min-p", "0"], seed.to_string());
        let args = ["--grammar", r#"root ::= "yes" | "no""#, "-s", &seed];
        let (text, object) = answer(&[&args[..], &hot].concat());
        assert!(["yes", "no"].contains(&&*text), "{text}");
        assert_eq!(object["stop"], "eog");
        seen.push(text);
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 2);
    let greedy = answer(&["--grammar", r#"root ::= "yes" | "no""#, "--temp", "0"]).0;
    assert_eq!(greedy, answer(&["--grammar", r#"root ::= "no" | "yes""#, "--temp", "0", "-s", "7"]).0);
}

#[test]
fn a_schema_gives_json() {
    for seed in ["1", "2", "3", "4"] {
        check_person(&answer(&["-j", PERSON, "-n", "200", "-s", seed]).0);
        check_person(&answer(&["--json-schema", PERSON, "-n", "200", "-s", seed, "--temp", "3", "--top-k", "0"]).0);
    }
    check_person(&answer(&["-j", PERSON, "--temp", "0", "-n", "200"]).0);
}

#[test]
fn characters_of_several_bytes() {
    for seed in 0..8 {
        let (text, _) =
            answer(&["--grammar", "root ::= [ぁ-ゟ]{2} [😀-🙏] [^ -~]{3}", "-s", &seed.to_string(), "--temp", "2"]);
        let chars: Vec<char> = text.chars().collect();
        assert!(chars.len() == 6 && !text.contains('\u{FFFD}'), "{text}");
        assert!(chars[..2].iter().all(|c| ('ぁ'..='ゟ').contains(c)) && ('😀'..='🙏').contains(&chars[2]), "{text}");
        assert!(chars[3..].iter().all(|c| !(' '..='~').contains(c)), "{text}");
    }
}

#[test]
fn a_grammar_that_forbids_nothing_changes_nothing() {
    for args in
        [&["-s", "3", "-n", "48"][..], &["--temp", "0", "-n", "48"], &["--mirostat", "2", "-s", "1", "-n", "48"]]
    {
        let (free, bound) = (answer(args), answer(&[args, &["--grammar", "root ::= .*"]].concat()));
        assert_eq!(free.1["tokens"], bound.1["tokens"]);
    }
}

#[test]
fn a_seed_repeats_an_answer() {
    let args = ["-j", PERSON, "-n", "200", "-s", "5", "--temp", "1.5"];
    assert_eq!(answer(&args).0, answer(&[&args[..], &["-t", "1"]].concat()).0);
    for more in [
        &["--mirostat", "2"][..],
        &["--samplers", "top_k;adaptive_p", "--adaptive-target", "0.3"],
        &["--xtc-probability", "1"],
    ] {
        check_person(&answer(&[&args[..], more].concat()).0);
    }
}

#[test]
fn where_an_answer_ends() {
    // `--ignore-eos` keeps it going only as long as the grammar does.
    let list = "root ::= \"a\"+";
    let (text, object) = answer(&["--grammar", list, "--ignore-eos", "-n", "20", "-s", "1"]);
    assert!(text.len() >= 20 && text.bytes().all(|b| b == b'a') && object["stop"] == "limit", "{text}");
    let (text, object) = answer(&["--grammar", "root ::= \"a\"{5}", "--ignore-eos", "-s", "1"]);
    assert_eq!((&*text, object["stop"].as_str()), ("aaaaa", Some("eog")));
    assert_eq!(answer(&["--grammar", "root ::= \"\"", "--ignore-eos"]).0, "");
    // Other limits hold.
    let (text, object) = answer(&["--grammar", list, "--ignore-eos", "-r", "aaa", "-s", "1"]);
    assert!((3..10).contains(&text.len()) && object["stop"] == "reverse-prompt", "{text}");
    let ran = run(&["-p", "x", "-j", PERSON, "-n", "3"]);
    assert!(
        ran.code == Some(0) && ran.err.contains("note: the answer ends before what the grammar asks for"),
        "{}",
        ran.err
    );
    // A context that forgets its older half does not make the grammar forget.
    let numbers = "root ::= ([0-9]{3} \"\\n\"){30}";
    let (text, _) = answer(&["--grammar", numbers, "-c", "48", "--context-shift", "-s", "1"]);
    assert_eq!(text.lines().count(), 30, "{text}");
    assert!(text.lines().all(|line| line.len() == 3 && line.bytes().all(|b| b.is_ascii_digit())), "{text}");
}

#[test]
fn biases_count_among_what_is_allowed() {
    let id = |text: &str| {
        let ids: Vec<u32> = serde_json::from_str(&ok(&["tokenize", "--ids", "--log-disable", "-p", text])).unwrap();
        ids[ids.len() - 1]
    };
    // A letter is a token, and so is the byte that it is: tokens 3 to 258 are the bytes.
    let forbidden = |letter: char| {
        let both = [id(&format!("x{letter}")), 3 + letter as u32];
        both.into_iter().flat_map(|id| ["-l".to_owned(), format!("{id}-inf")]).collect::<Vec<_>>()
    };
    let args = ["-p", "x", "--grammar", "root ::= [ab]", "--log-disable"].map(str::to_owned);
    assert_eq!(ok(&[&args[..], &forbidden('a')].concat()), "b\n");
    assert_eq!(ok(&[&args[..], &forbidden('b')].concat()), "a\n");
    let all = [&args[..], &forbidden('a'), &forbidden('b')].concat();
    refused(&all, 1, &["what the grammar allows here is forbidden by --logit-bias"]);
}

#[test]
fn every_answer_of_a_chat_begins_anew() {
    let chat =
        ["-cnv", "--chat-template", "chatml", "-s", "1", "--grammar", r#"root ::= "yes" | "no""#, "--log-disable"];
    let mut child = command(&chat).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"Is it?\n/regen\nAnd now?\n/reset\nAgain?\n").unwrap();
    let out = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(out.lines().filter(|line| ["yes", "no"].contains(line)).count(), 4, "{out}");
    assert_eq!(out.lines().count(), 4, "{out}");
}

#[test]
fn files() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name).to_str().unwrap().to_owned()
    };
    let grammar = path("g.gbnf", "# an answer\nroot ::= answer\nanswer ::= \"yes\"\n");
    assert_eq!(answer(&["--grammar-file", &grammar]).0, "yes");
    check_person(&answer(&["-jf", &path("s.json", PERSON), "-s", "1", "-n", "200"]).0);
    check_person(&answer(&["--json-schema-file", &path("s.json", PERSON), "-s", "2", "-n", "200"]).0);
    let bad = path("bad.gbnf", "root ::= \"a\"\nb ::= (\"x\"\n");
    refused(&["-p", "x", "--grammar-file", &bad], 1, &["bad.gbnf: line 2, column 7: this `(` is never closed"]);
    refused(&["-p", "x", "-jf", &bad], 1, &["bad.gbnf: line 1, column 1: not JSON"]);
    refused(&["-p", "x", "--grammar-file", "/no/such/file"], 1, &["/no/such/file: "]);
}

#[test]
fn errors() {
    refused(&["-p", "x", "--grammar", "root ::= a"], 1, &["--grammar: line 1, column 10: there is no rule `a`"]);
    refused(&["-p", "x", "--grammar", "root ::= <[512]>"], 1, &["--grammar: line 1, column 10: there is no token 512"]);
    refused(&["-p", "x", "-j", "{"], 1, &["--json-schema: line 1, column 1: not JSON: "]);
    refused(&["-p", "x", "-j", r#"{"type": "thing"}"#], 1, &["--json-schema: ", "thing"]);
    refused(&["-p", "x", "--grammar", "root ::= \"\\u4e2d\" <[0]>", "-m", "/no/such"], 1, &["/no/such"]);
    for (a, b) in [("--grammar", "-j"), ("--grammar", "--grammar-file"), ("-j", "-jf"), ("--grammar-file", "-jf")] {
        let ran = run(&["-p", "x", a, "{}", b, "{}"]);
        assert_eq!(ran.code, Some(2), "{a} {b}: {}", ran.err);
        assert!(ran.err.contains("cannot be used with"), "{}", ran.err);
    }
    assert_eq!(run(&["-p", "x", "--grammar"]).code, Some(2));
}

/// A vocabulary of 49 thousand tokens, at temperatures at which a model keeps to nothing by itself.
#[test]
fn a_real_model_keeps_to_the_language() {
    let Some(path) = common::smollm2_path() else { return };
    let model = path.to_str().unwrap();
    let list = "root ::= (\"- \" [A-Z] [a-zé中 ]{0,20} [.!] \"\\n\"){3}";
    for seed in ["1", "2", "3"] {
        let args =
            ["-m", model, "-s", seed, "--temp", "4", "--top-k", "0", "--top-p", "1", "--min-p", "0", "-n", "300"];
        check_person(&answer(&[&args[..], &["-j", PERSON]].concat()).0);
        let (text, _) = answer(&[&args[..], &["--grammar", list]].concat());
        assert_eq!(text.lines().count(), 3, "{text}");
        for line in text.lines() {
            let mut chars = line.strip_prefix("- ").unwrap().chars();
            assert!(
                chars.next().unwrap().is_ascii_uppercase() && ['.', '!'].contains(&chars.next_back().unwrap()),
                "{text}"
            );
            assert!(
                chars.clone().count() <= 20 && chars.all(|c| c.is_ascii_lowercase() || "é中 ".contains(c)),
                "{text}"
            );
        }
    }
}
