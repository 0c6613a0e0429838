//! llama.cpp's spelling of flags, turned into what clap reads.
//!
//! llama.cpp has short flags of several letters (`-ub`, `-cnv`), treats `_` in long flags as `-`, and takes the argument
//! after a flag as its value whatever it looks like (`-n -1`, `-p "- milk"`). [`normalise`] rewrites such a command line
//! into `--long=value` form before clap sees it. clap would read an unknown flag of several letters as one of a single letter
//! and its value (`-ngl` as `-n gl`), and a stray word as a subcommand; both are refused here, under their own names.

use super::error::CliError;
use super::foreign;
use std::ffi::{OsStr, OsString};
use std::path::Path;

/// Short flags of more than one letter, and the long flags they stand for.
const MULTI_LETTER: &[(&str, &str)] = &[
    ("-tb", "threads-batch"),
    ("-ub", "ubatch-size"),
    ("-sys", "system-prompt"),
    ("-sysf", "system-prompt-file"),
    ("-cnv", "conversation"),
    ("-no-cnv", "no-conversation"),
    ("-st", "single-turn"),
    ("-sp", "special"),
    ("-jf", "json-schema-file"),
    ("-ofreq", "output-frequency"),
    ("-ctk", "cache-type-k"),
    ("-ctv", "cache-type-v"),
    ("-np", "parallel"),
    ("-pg", "prompt-gen"),
    ("-oe", "output-err"),
];

/// Rewrites `argv` (the program's name first) for `command`: flags of several letters become long ones, a flag that takes
/// a value is joined with the argument after it. Other arguments stay as they are, for clap to judge.
///
/// # Errors
/// If an argument is none of the command's, and clap would take it for something else.
pub fn normalise(command: &clap::Command, argv: impl IntoIterator<Item = OsString>) -> Result<Vec<OsString>, CliError> {
    let mut argv = argv.into_iter().peekable();
    let mut out: Vec<OsString> = argv.next().into_iter().collect();
    let mut command = command;
    if let Some(sub) = argv.peek().and_then(|a| command.find_subcommand(a)) {
        command = sub;
        out.extend(argv.next());
    }
    let n_first = out.len();
    let mut after_unknown = false;
    while let Some(arg) = argv.next() {
        if arg == "--" {
            out.push(arg);
            break;
        }
        match find(command, &arg) {
            Some(flag) if flag.get_action().takes_values() && argv.peek().is_some() => {
                let mut joined = OsString::from("--");
                joined.push(flag.get_long().unwrap_or_default());
                joined.push("=");
                joined.push(argv.next().unwrap_or_default());
                out.push(joined);
            }
            Some(flag) => out.push(format!("--{}", flag.get_long().unwrap_or_default()).into()),
            None => {
                // A word may be a command where that is expected, and the value of a flag that clap will refuse.
                let word_is_fine = out.len() == n_first || after_unknown;
                let text = arg.to_string_lossy();
                if !after_unknown && let Some(message) = model_without_flag(command, &text) {
                    return Err(CliError::usage(message));
                }
                if let Some(message) = refusal(command, &text, word_is_fine) {
                    return Err(CliError::usage(message));
                }
                after_unknown |= text.starts_with("--") && !text.contains('=');
                out.push(arg);
            }
        }
    }
    out.extend(argv);
    Ok(out)
}

/// What to say of a word that is a model's file, where `command` wants that after a flag.
fn model_without_flag(command: &clap::Command, arg: &str) -> Option<String> {
    let takes_model = command.get_arguments().any(|a| a.get_long() == Some("model"));
    let is_word = !arg.starts_with('-') && command.get_positionals().next().is_none();
    if !takes_model || !is_word || command.find_subcommand(arg).is_some() {
        return None;
    }
    (arg.ends_with(".gguf") || Path::new(arg).is_file())
        .then(|| format!("unexpected argument '{arg}' found (a model is given with -m {arg})"))
}

/// What is wrong with `arg`, which names no flag of `command` exactly, if clap would not say so.
fn refusal(command: &clap::Command, arg: &str, word_is_fine: bool) -> Option<String> {
    if !arg.starts_with('-') {
        return if word_is_fine || command.get_positionals().next().is_some() {
            None
        } else if command.find_subcommand(arg).is_some() {
            Some(format!("the command '{arg}' must come first"))
        } else {
            Some(format!("unexpected argument '{arg}' found (a value of several words needs quotes)"))
        };
    }
    let name = arg.split('=').next().unwrap_or_default().replace('_', "-");
    if let Some(why) = foreign::why(&name) {
        return Some(format!("llama.cpp's {name} does not exist here: {why}"));
    }
    // The value of a flag of one letter may follow at once if it is a number: -n5, -l15+1.
    let joined = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit() || "+-.=".contains(c));
    let mut letters = arg.strip_prefix('-')?.chars();
    match letters.next()? {
        '-' => None,
        _ if letters.as_str().is_empty() || joined(letters.as_str()) => None,
        _ => {
            let long = name.trim_start_matches('-');
            let tip = match command.get_arguments().any(|a| a.get_long() == Some(long)) {
                true => format!("a similar argument exists: '--{long}'"),
                false => "see --help".into(),
            };
            Some(format!("unexpected argument '{name}' found ({tip})"))
        }
    }
}

/// The flag of `command` that `arg` names exactly; `None` for values, unknown flags and joined forms (`--n=1`, `-n1`).
fn find<'a>(command: &'a clap::Command, arg: &OsStr) -> Option<&'a clap::Arg> {
    let arg = arg.to_str()?;
    let long = match arg.strip_prefix("--") {
        Some(long) => long.replace('_', "-"),
        None => match MULTI_LETTER.iter().find(|(short, _)| *short == arg) {
            Some((_, long)) => (*long).to_owned(),
            None => {
                let mut letters = arg.strip_prefix('-')?.chars();
                let short = letters.next()?;
                if letters.next().is_some() {
                    return None;
                }
                return command
                    .get_arguments()
                    .find(|a| a.get_short_and_visible_aliases().is_some_and(|all| all.contains(&short)));
            }
        },
    };
    command.get_arguments().find(|a| {
        a.get_long() == Some(long.as_str())
            || a.get_all_aliases().is_some_and(|aliases| aliases.contains(&long.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Arg, ArgAction, Command};

    fn command() -> Command {
        let flag = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
        let value = |name: &'static str, short| Arg::new(name).long(name).short(short);
        Command::new("lisa-cpp")
            .args([
                value("model", 'm'),
                value("prompt", 'p'),
                value("predict", 'n').alias("n-predict"),
                value("seed", 's'),
            ])
            .args([flag("conversation"), flag("special"), flag("no-conversation"), flag("single-turn")])
            .arg(Arg::new("ubatch-size").long("ubatch-size"))
            .subcommand(Command::new("tokenize").arg(value("prompt", 'p')).arg(flag("ids")))
    }

    fn run(args: &[&str]) -> Vec<String> {
        let argv = std::iter::once("lisa-cpp").chain(args.iter().copied()).map(OsString::from);
        let out = normalise(&command(), argv).unwrap();
        out.into_iter().skip(1).map(|a| a.into_string().unwrap()).collect()
    }

    #[test]
    fn multi_letter_flags_become_long() {
        assert_eq!(
            run(&["-cnv", "-sp", "-no-cnv", "-st"]),
            ["--conversation", "--special", "--no-conversation", "--single-turn"]
        );
        assert_eq!(run(&["-ub", "64"]), ["--ubatch-size=64"]);
    }

    #[test]
    fn values_are_taken_whatever_they_look_like() {
        assert_eq!(
            run(&["-n", "-1", "-p", "-cnv", "--n-predict", "-2"]),
            ["--predict=-1", "--prompt=-cnv", "--predict=-2"]
        );
        assert_eq!(run(&["-p", "a=b", "-p", "", "-p", "--"]), ["--prompt=a=b", "--prompt=", "--prompt=--"]);
    }

    #[test]
    fn underscores_and_joined_forms() {
        assert_eq!(run(&["--ubatch_size", "8", "--prompt=x_y", "-n5"]), ["--ubatch-size=8", "--prompt=x_y", "-n5"]);
    }

    #[test]
    fn the_rest_is_left_for_clap_to_judge() {
        assert_eq!(run(&["word", "--nope", "-z", "-p"]), ["word", "--nope", "-z", "--prompt"]);
        assert_eq!(run(&["--", "-cnv"]), ["--", "-cnv"]);
    }

    #[test]
    fn what_clap_would_misread_is_refused_by_name() {
        for (args, says) in [
            (&["-ngl", "99"][..], "llama.cpp's -ngl does not exist here: everything runs on the CPU"),
            (&["-p", "x", "-fa", "on"], "llama.cpp's -fa does"),
            (&["--n_gpu_layers=9"], "llama.cpp's --n-gpu-layers does"),
            (&["-seed", "1"], "unexpected argument '-seed' found (a similar argument exists: '--seed')"),
            (&["-pword"], "unexpected argument '-pword' found (see --help)"),
            (&["-p", "two", "words"], "unexpected argument 'words' found (a value of several words needs quotes)"),
            (&["x.gguf", "-p", "x"], "unexpected argument 'x.gguf' found (a model is given with -m x.gguf)"),
            (&["-p", "x", "x.gguf"], "unexpected argument 'x.gguf' found (a model is given with -m x.gguf)"),
            (&["-p", "x", "--mmproj", "y"], "llama.cpp's --mmproj does not exist here: images"),
            (&["-p", "x", "tokenize"], "the command 'tokenize' must come first"),
            (&["tokenize", "--ids", "-cnv"], "unexpected argument '-cnv' found"),
        ] {
            let argv = std::iter::once("lisa-cpp").chain(args.iter().copied()).map(OsString::from);
            let message = normalise(&command(), argv).unwrap_err().to_string();
            assert!(message.starts_with(says), "{args:?}: {message}");
        }
    }

    #[test]
    fn a_subcommand_has_its_own_flags() {
        assert_eq!(run(&["tokenize", "-p", "-n", "--ids"]), ["tokenize", "--prompt=-n", "--ids"]);
        assert_eq!(run(&["-p", "tokenize"]), ["--prompt=tokenize"]);
    }

    #[cfg(unix)]
    #[test]
    fn bytes_that_are_not_utf8_survive() {
        use std::os::unix::ffi::OsStringExt;
        let path = OsString::from_vec(vec![b'a', 0xff]);
        let out = normalise(&command(), [OsString::from("lisa-cpp"), OsString::from("-p"), path]).unwrap();
        assert_eq!(out[1].clone().into_vec(), b"--prompt=a\xff");
    }
}
