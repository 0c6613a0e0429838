//! Where a benchmark's questions are, and reading them.

use super::{Goal, Item, READY, TASKS, Task, plain};
use crate::eval::json_fault;
use crate::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Folders below the one that is given.
const MAX_DEPTH: usize = 3;

/// A benchmark, or a file of questions that are ready, and where they are.
pub struct Source {
    /// What results call it.
    pub name: String,
    /// How the questions are read.
    pub task: &'static Task,
    /// Where they are.
    pub files: Vec<PathBuf>,
}

impl Source {
    /// Those that `names` stand for: benchmarks, with their files in the folder `data` or in the file `data`, and files. Files
    /// whose names are alike but for their folders are called by the whole path.
    ///
    /// # Errors
    /// [`Error::Params`] for a name that is neither, for one given twice, and for a benchmark without a place; as [`find_files`].
    pub fn all<S: AsRef<str>>(names: &[S], data: Option<&Path>) -> Result<Vec<Self>> {
        let mut all = names.iter().map(|name| Self::find(name.as_ref(), data)).collect::<Result<Vec<_>>>()?;
        let short: Vec<String> = all.iter().map(|s| s.name.clone()).collect();
        for (source, given) in all.iter_mut().zip(names) {
            let is_file = Task::by_name(given.as_ref()).is_none();
            if is_file && short.iter().filter(|name| **name == source.name).count() > 1 {
                source.name = given.as_ref().into();
            }
        }
        match (1..all.len()).find(|&i| all[..i].iter().any(|s| s.name == all[i].name)) {
            Some(i) => Err(Error::Params(format!("--tasks: '{}' is given twice", all[i].name))),
            None => Ok(all),
        }
    }

    fn find(name: &str, data: Option<&Path>) -> Result<Self> {
        match (Task::by_name(name), data) {
            (Some(task), Some(data)) => Ok(Self { name: task.name.into(), task, files: find_files(data, task)? }),
            (Some(task), None) => {
                let what = format!("where are the questions of {}? A folder or a file", task.name);
                Err(Error::Params(format!("--data: {what}")))
            }
            (None, _) if Path::new(name).is_file() => {
                let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy().into_owned();
                Ok(Self { name: stem, task: &READY, files: vec![name.into()] })
            }
            (None, _) => {
                let names: Vec<_> = TASKS.iter().map(|t| t.name).collect();
                let what = format!("'{name}' is neither a file nor one of {}", names.join(", "));
                Err(Error::Params(format!("--tasks: {what}")))
            }
        }
    }

    /// The questions of all files, at most `limit`.
    ///
    /// # Errors
    /// As [`read_items`].
    pub fn read(&self, limit: usize) -> Result<Vec<Item>> {
        let mut items: Vec<Item> = Vec::new();
        for file in &self.files {
            if items.len() == limit {
                break;
            }
            let more = read_items(file, self.task, limit - items.len())?;
            if let (Some(first), Some(next)) = (items.first(), more.first()) {
                check_goal(first, next)?;
            }
            items.extend(more);
        }
        Ok(items)
    }
}

/// A word of a file's name.
struct Word {
    /// In lower case.
    text: String,
    /// It ends the name of a folder, or the file's own.
    is_last: bool,
}

/// The words of a path's names: letters and digits between other signs.
fn words(path: &Path) -> Vec<Word> {
    let mut all = Vec::new();
    for name in &path.with_extension("") {
        let name = name.to_string_lossy();
        let parts = name.split(|c: char| !c.is_ascii_alphanumeric()).map(plain).filter(|w| !w.is_empty());
        all.extend(parts.map(|text| Word { text, is_last: false }));
        if let Some(last) = all.last_mut() {
            last.is_last = true;
        }
    }
    all
}

/// How well a file's name fits a task, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// The task's name is that of the file or of a folder.
    Whole,
    /// A split's name follows it.
    WithSplit,
    /// Other words do: it may be that of something else.
    Longer,
}

/// The number of words at the beginning that together spell `key`.
fn n_spelling(words: &[Word], key: &str) -> Option<usize> {
    let mut rest = key;
    for (i, word) in words.iter().enumerate() {
        rest = rest.strip_prefix(word.text.as_str())?;
        if rest.is_empty() {
            return Some(i + 1);
        }
    }
    None
}

/// Where `words` name `task`: how well they do, the least the best, and the number of the word after it. A name at the beginning
/// is better than one after other words, but a longer name is the last resort.
fn named(words: &[Word], task: &Task) -> Option<((bool, bool, Fit), usize)> {
    let fit = |end: usize| {
        if words[end - 1].is_last {
            return Fit::Whole;
        }
        let n = words[end..].iter().position(|w| w.is_last).map_or(0, |i| i + 1);
        match words[end..end + n].iter().all(|w| task.splits.contains(&w.text.as_str())) {
            true => Fit::WithSplit,
            false => Fit::Longer,
        }
    };
    let places =
        task.keys().flat_map(|key| (0..words.len()).filter_map(move |i| Some((i, i + n_spelling(&words[i..], &key)?))));
    let rank = |(start, end): (usize, usize)| ((fit(end) == Fit::Longer, start > 0, fit(end)), end);
    places.map(rank).min_by_key(|(rank, _)| *rank)
}

/// The files of `task` in the folder `dir`, by their names: those that fit best, of them those of the first split there is, or all
/// where names tell no split. A `dir` that is a file is that file.
///
/// # Errors
/// [`Error::Io`] for a folder that cannot be read; [`Error::Impossible`] where no file is the task's.
pub fn find_files(dir: &Path, task: &Task) -> Result<Vec<PathBuf>> {
    if dir.is_file() {
        return Ok(vec![dir.into()]);
    }
    let mut all = Vec::new();
    collect(dir, MAX_DEPTH, &mut all)?;
    all.sort();
    let mut found = Vec::new();
    for path in all {
        let words = words(path.strip_prefix(dir).unwrap_or(&path));
        if let Some((rank, end)) = named(&words, task) {
            let rest: Vec<String> = words.into_iter().skip(end).map(|w| w.text).collect();
            found.push((rank, rest, path));
        }
    }
    let best = found.iter().map(|f| f.0).min();
    found.retain(|f| Some(f.0) == best);
    let has = |rest: &[String], split: &str| rest.iter().any(|word| word == split);
    if let Some(split) = task.splits.iter().find(|s| found.iter().any(|(_, rest, _)| has(rest, s))) {
        found.retain(|(_, rest, _)| has(rest, split));
    }
    if found.is_empty() {
        let what = format!("no .jsonl or .json file of the task {} in {}", task.name, dir.display());
        return Err(Error::Impossible(format!("--data: {what} (such as {0}.jsonl or {0}/test.jsonl)", task.name)));
    }
    Ok(found.into_iter().map(|(_, _, path)| path).collect())
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
    let bad = |place: String, what: String| Error::Data { place, what };
    let name = path.display().to_string();
    let item = |place: String, value: &Value| match task.item(value) {
        Ok(item) => Ok(Item { place, ..item }),
        Err(what) => Err(bad(place, what)),
    };
    let text = text.trim_start_matches('\u{feff}');
    let items = if text.trim_start().starts_with('[') {
        let all: Vec<Value> = serde_json::from_str(text).map_err(|e| bad(name.clone(), format!("not JSON: {e}")))?;
        let numbered = all.iter().take(limit).enumerate();
        numbered.map(|(i, value)| item(format!("{name}: question {}", i + 1), value)).collect::<Result<Vec<_>>>()?
    } else {
        let lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
        let read = |(i, line): (usize, &str)| {
            let place = format!("{name}:{}", i + 1);
            match serde_json::from_str(line) {
                Ok(value) => item(place, &value),
                Err(e) => Err(bad(place, format!("not JSON: {}", json_fault(&e)))),
            }
        };
        lines.take(limit).map(read).collect::<Result<Vec<_>>>()?
    };
    if items.is_empty() && limit > 0 {
        return Err(bad(name, "no questions: expected a JSON object a line".into()));
    }
    items.iter().skip(1).try_for_each(|item| check_goal(&items[0], item))?;
    Ok(items)
}

/// Questions with choices and words to be guessed are not measured alike: one accuracy of both would be of neither.
fn check_goal(first: &Item, item: &Item) -> Result<()> {
    let what = match (&first.goal, &item.goal) {
        (Goal::Choice { .. }, Goal::Word) => "a question with a target, but the first",
        (Goal::Word, Goal::Choice { .. }) => "a question with choices, but the first",
        _ => return Ok(()),
    };
    let kind = if first.goal == Goal::Word { "a target" } else { "choices" };
    let what = format!("{what}, {}, has {kind}: each kind needs a file of its own", first.place);
    Err(Error::Data { place: item.place.clone(), what })
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
    fn whole_words_and_whole_names() {
        let dir = tempfile::tempdir().unwrap();
        let found = |task: &str, names: &[&str]| -> Vec<String> {
            let dir = dir.path().join(names.join("+").replace('/', "-"));
            for name in names {
                let path = dir.join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, "").unwrap();
            }
            let files = find_files(&dir, Task::by_name(task).unwrap()).unwrap_or_default();
            files.iter().map(|p| p.strip_prefix(&dir).unwrap().to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(found("boolq", &["boolq.jsonl", "boolq_old.jsonl"]), ["boolq.jsonl"]);
        assert_eq!(found("boolq", &["boolq_old.jsonl", "glue/boolq/dev.jsonl"]), ["glue/boolq/dev.jsonl"]);
        assert_eq!(found("boolq", &["BoolQ-val.jsonl", "boolq_val_old.jsonl"]), ["BoolQ-val.jsonl"]);
        assert_eq!(found("mmlu", &["mmlu_law.jsonl", "mmlu_art.jsonl"]), ["mmlu_art.jsonl", "mmlu_law.jsonl"]);
        assert_eq!(found("copa", &["xcopa.jsonl", "copal.jsonl"]), [""; 0]);
        assert_eq!(found("sciq", &["sciq/latest.jsonl", "sciq/valid.jsonl"]), ["sciq/valid.jsonl"]);
        assert_eq!(found("truthfulqa", &["truthful_qa/mc/validation.json"]), ["truthful_qa/mc/validation.json"]);
    }

    #[test]
    fn names_of_sources_are_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::create_dir(path("sub")).unwrap();
        let names = [path("q.jsonl"), path("sub/q.jsonl"), path("r.jsonl")];
        names.iter().for_each(|n| std::fs::write(n, "").unwrap());
        let all = |names: &[String]| Source::all(names, Some(dir.path()));
        let found: Vec<_> = all(&names).unwrap().into_iter().map(|s| s.name).collect();
        assert_eq!(found, [&names[0], &names[1], "r"]);
        let twice = [names[0].clone(), names[0].clone()];
        assert!(all(&twice).err().unwrap().to_string().contains("given twice"));
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
        let choice = r#"{"context": "a", "choices": ["b", "c"], "answer": 0}"#;
        assert_eq!(read(&format!("{one}\n\n{one}\n"), 9).unwrap().len(), 2);
        assert_eq!(read(&format!("[{one},{one}]"), 1).unwrap().len(), 1);
        for (text, named) in [
            (format!("{one}\n{{\"context\": 1}}"), "q.jsonl:2: "),
            (format!("{one}\n\n{{"), "q.jsonl:3: not JSON"),
            (format!("{one}\n{{\"context\": 1,}}"), "q.jsonl:2: not JSON: trailing comma at column 15"),
            (format!("[{one}, {{}}]"), "q.jsonl: question 2: no field 'context'"),
            (format!("{one}\n{choice}"), "q.jsonl:2: a question with choices, but the first, "),
            (String::new(), "no questions"),
        ] {
            let e = read(&text, 9).unwrap_err().to_string();
            assert!(e.contains(named) && !e.contains('\n'), "{e}");
        }
    }
}
