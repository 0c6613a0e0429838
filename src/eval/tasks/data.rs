//! Where a benchmark's questions are, and reading them.

use super::{Item, Task, plain};
use crate::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Folders below the one that is given.
const MAX_DEPTH: usize = 3;

/// The files of `task` in the folder `dir`, by their names: those of the first split there is, or all where names tell no
/// split. A `dir` that is a file is that file.
///
/// # Errors
/// [`Error::Io`] for a folder that cannot be read; [`Error::Params`] where no file is the task's.
pub fn find_files(dir: &Path, task: &Task) -> Result<Vec<PathBuf>> {
    if dir.is_file() {
        return Ok(vec![dir.into()]);
    }
    let mut all = Vec::new();
    collect(dir, MAX_DEPTH, &mut all)?;
    all.sort();
    let names: Vec<(String, PathBuf)> = all
        .into_iter()
        .map(|p| (plain(&p.strip_prefix(dir).unwrap_or(&p).with_extension("").to_string_lossy()), p))
        .collect();
    let matching = |is_named: &dyn Fn(&str, &str) -> Option<usize>| -> Vec<(String, PathBuf)> {
        let rest = |name: &str| task.keys().find_map(|k| is_named(name, &k).map(|at| name[at + k.len()..].to_owned()));
        names.iter().filter_map(|(name, path)| Some((rest(name)?, path.clone()))).collect()
    };
    let mut found = matching(&|name, key| name.starts_with(key).then_some(0));
    if found.is_empty() {
        found = matching(&|name, key| name.find(key));
    }
    let split = task.splits.iter().find(|s| found.iter().any(|(rest, _)| rest.contains(**s)));
    if let Some(split) = split {
        found.retain(|(rest, _)| rest.contains(split));
    }
    if found.is_empty() {
        let what = format!("no .jsonl or .json file of the task {} in {}", task.name, dir.display());
        return Err(Error::Params(format!("--data: {what} (such as {0}.jsonl or {0}/test.jsonl)", task.name)));
    }
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

fn collect(dir: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    let io = |source| Error::Io { path: dir.into(), source };
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.is_dir() {
            if depth > 1 {
                collect(&path, depth - 1, files)?;
            }
        } else if path.extension().is_some_and(|e| e == "jsonl" || e == "json") {
            files.push(path);
        }
    }
    Ok(())
}

/// Reads the questions of `path`, at most `limit`: an object a line, or one list of objects.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] naming file, line and field.
pub fn read_items(path: &Path, task: &Task, limit: usize) -> Result<Vec<Item>> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.into(), source })?;
    let bad = |place: &str, what: String| Error::Data { place: format!("{}{place}", path.display()), what };
    let text = text.trim_start_matches('\u{feff}');
    if text.trim_start().starts_with('[') {
        let all: Vec<Value> = serde_json::from_str(text).map_err(|e| bad("", e.to_string()))?;
        let item = |(i, v): (usize, &Value)| task.item(v).map_err(|e| bad("", format!("question {}: {e}", i + 1)));
        return all.iter().take(limit).enumerate().map(item).collect();
    }
    let lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
    let item = |(i, line): (usize, &str)| {
        let at = format!(":{}", i + 1);
        let value: Value = serde_json::from_str(line).map_err(|e| bad(&at, format!("not JSON: {e}")))?;
        task.item(&value).map_err(|e| bad(&at, e))
    };
    let items: Vec<Item> = lines.take(limit).map(item).collect::<Result<_>>()?;
    if items.is_empty() && limit > 0 {
        return Err(bad("", "no questions: expected a JSON object a line".into()));
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_by_name_and_split() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "hellaswag/validation.jsonl",
            "hellaswag/train.jsonl",
            "arc/challenge_test.jsonl",
            "arc/challenge_validation.jsonl",
            "arc/easy_test.jsonl",
            "super_glue/copa/val.jsonl",
            "mmlu/test/anatomy.jsonl",
            "mmlu/test/law.jsonl",
            "mmlu/dev/law.jsonl",
            "blimp/one.jsonl",
            "blimp/two.jsonl",
            "piqa.json",
            "notes.txt",
        ] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let found = |task: &str| -> Vec<String> {
            let files = find_files(dir.path(), Task::by_name(task).unwrap()).unwrap();
            files.iter().map(|p| p.strip_prefix(dir.path()).unwrap().to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(found("hellaswag"), ["hellaswag/validation.jsonl"]);
        assert_eq!(found("arc_challenge"), ["arc/challenge_test.jsonl"]);
        assert_eq!(found("arc_easy"), ["arc/easy_test.jsonl"]);
        assert_eq!(found("copa"), ["super_glue/copa/val.jsonl"]);
        assert_eq!(found("mmlu"), ["mmlu/test/anatomy.jsonl", "mmlu/test/law.jsonl"]);
        assert_eq!(found("blimp"), ["blimp/one.jsonl", "blimp/two.jsonl"]);
        assert_eq!(found("piqa"), ["piqa.json"]);
        let e = find_files(dir.path(), Task::by_name("boolq").unwrap()).unwrap_err().to_string();
        assert!(e.contains("--data") && e.contains("boolq"), "{e}");
    }

    #[test]
    fn lines_lists_and_mistakes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q.jsonl");
        let read = |text: &str, limit: usize| {
            std::fs::write(&path, text).unwrap();
            read_items(&path, &super::super::READY, limit)
        };
        let one = r#"{"context": "a", "target": "b"}"#;
        assert_eq!(read(&format!("{one}\n\n{one}\n"), 9).unwrap().len(), 2);
        assert_eq!(read(&format!("[{one},{one}]"), 1).unwrap().len(), 1);
        for (text, named) in [
            (format!("{one}\n{{\"context\": 1}}"), "q.jsonl:2: "),
            (format!("{one}\n\n{{"), "q.jsonl:3: not JSON"),
            (format!("[{one}, {{}}]"), "question 2: no field 'context'"),
            (String::new(), "no questions"),
        ] {
            let e = read(&text, 9).unwrap_err().to_string();
            assert!(e.contains(named) && !e.contains('\n'), "{e}");
        }
    }
}
