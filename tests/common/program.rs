//! The program as its users meet it: run with arguments, judged by its exit code and by what it prints.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

/// How a run ended.
pub struct Ran {
    /// Its exit code.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// The program with nothing on standard input, on the best kernels of this CPU.
pub fn command<S: AsRef<OsStr>>(args: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lisa-cpp"));
    command.args(args).stdin(Stdio::null()).env_remove("LISA_CPU");
    command
}

/// Runs it to its end.
pub fn run_command(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    Ran { code: output.status.code(), out, err }
}

/// Runs the program.
pub fn run<S: AsRef<OsStr>>(args: &[S]) -> Ran {
    run_command(&mut command(args))
}

/// What a run that must succeed prints.
#[allow(dead_code)]
#[track_caller]
pub fn ok<S: AsRef<OsStr>>(args: &[S]) -> String {
    let ran = run(args);
    assert_eq!(ran.code, Some(0), "{}: {}", shown(args), ran.err);
    ran.out
}

/// Checks that a run ends with `code`, nothing on standard output and an error that names all of `parts`.
#[allow(dead_code)]
#[track_caller]
pub fn refused<S: AsRef<OsStr>>(args: &[S], code: i32, parts: &[&str]) {
    let ran = run(args);
    assert_eq!((ran.code, ran.out.as_str()), (Some(code), ""), "{}: {}", shown(args), ran.err);
    let last = ran.err.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: ") && parts.iter().all(|p| last.contains(p)), "{}: {}", shown(args), ran.err);
}

fn shown<S: AsRef<OsStr>>(args: &[S]) -> String {
    args.iter().map(|a| a.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ")
}
