//! Lines typed by the user: with a line editor on a terminal, plainly otherwise.

use super::args::without_mark;
use super::error::CliError;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Behavior, Config, Editor};
use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

/// What came from the user.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A message or a command, of one or several lines.
    Text(String),
    /// Something that is no text, and what is wrong with it.
    Invalid(String),
    /// Ctrl-C at the prompt.
    Interrupted,
    /// Ctrl-D, or the end of a pipe.
    End,
}

/// Where lines come from.
pub enum Input {
    /// A terminal: editing and history.
    Terminal(Box<Editor<(), FileHistory>>, Option<PathBuf>),
    /// A pipe or a file.
    Plain(Box<dyn BufRead>),
}

impl Input {
    /// Standard input, with an editor when it is a terminal.
    pub fn open() -> Result<Self, CliError> {
        if !std::io::stdin().is_terminal() {
            return Ok(Input::Plain(Box::new(std::io::stdin().lock())));
        }
        // The terminal itself, so that standard output carries answers alone.
        let config = Config::builder().behavior(Behavior::PreferTerm).auto_add_history(true).build();
        let mut editor = Editor::with_config(config)
            .map_err(|e| CliError::run(format!("cannot edit lines on this terminal: {e}")))?;
        let history = history_file();
        if let Some(path) = &history {
            // A first run has no history, and a chat without one is still a chat.
            let _ = editor.load_history(path);
        }
        Ok(Input::Terminal(Box::new(editor), history))
    }

    /// The next message: lines that end in a backslash go on in the next line.
    pub fn read(&mut self) -> Result<Line, CliError> {
        let mut text = String::new();
        loop {
            let first = text.is_empty();
            match self.read_line(if first { "> " } else { "| " })? {
                Line::Text(mut line) => {
                    let goes_on = line.ends_with('\\');
                    if goes_on {
                        line.pop();
                    }
                    text.push_str(&line);
                    if !goes_on {
                        return Ok(Line::Text(text));
                    }
                    text.push('\n');
                }
                Line::End if !first => return Ok(Line::Text(text)),
                other => return Ok(other),
            }
        }
    }

    fn read_line(&mut self, prompt: &str) -> Result<Line, CliError> {
        match self {
            Input::Terminal(editor, _) => match editor.readline(prompt) {
                Ok(line) => Ok(Line::Text(line)),
                Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(e) => Err(CliError::run(format!("terminal: {e}"))),
            },
            Input::Plain(reader) => {
                let mut bytes = Vec::new();
                let n = reader.read_until(b'\n', &mut bytes);
                if n.map_err(|e| CliError::run(format!("standard input: {e}")))? == 0 {
                    return Ok(Line::End);
                }
                Ok(match String::from_utf8(bytes) {
                    Ok(mut line) => {
                        line.truncate(line.trim_end_matches('\n').trim_end_matches('\r').len());
                        // At the start of a file; within one it is no part of a message either.
                        Line::Text(without_mark(line))
                    }
                    Err(e) => {
                        let at = e.utf8_error().valid_up_to();
                        Line::Invalid(format!(
                            "standard input: a line that is not UTF-8 (from its byte {at} on) is left out"
                        ))
                    }
                })
            }
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        if let Input::Terminal(editor, Some(path)) = self {
            let _ = path.parent().map(std::fs::create_dir_all);
            let _ = editor.save_history(path);
        }
    }
}

/// `$XDG_STATE_HOME/lisa-cpp/history`, by default under `~/.local/state`.
fn history_file() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("lisa-cpp").join("history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &'static str) -> Vec<Line> {
        let mut input = Input::Plain(Box::new(text.as_bytes()));
        let mut all = Vec::new();
        loop {
            match input.read().unwrap() {
                Line::End => return all,
                line => all.push(line),
            }
        }
    }

    #[test]
    fn plain_lines() {
        let text = |s: &str| Line::Text(s.into());
        assert_eq!(lines("one\ntwo\r\n\nthree"), [text("one"), text("two"), text(""), text("three")]);
        assert_eq!(lines("a\\\nb\\\nc\nd\n"), [text("a\nb\nc"), text("d")]);
        assert_eq!(lines("a\\"), [text("a\n")]);
        assert_eq!(lines("\u{feff}one\n"), [text("one")]);
    }

    #[test]
    fn a_line_that_is_no_text_is_told_and_left_out() {
        let mut input = Input::Plain(Box::new(&b"a\xff\nb\n"[..]));
        assert!(matches!(input.read().unwrap(), Line::Invalid(why) if why.contains("from its byte 1 on")));
        assert_eq!(input.read().unwrap(), Line::Text("b".into()));
    }
}
