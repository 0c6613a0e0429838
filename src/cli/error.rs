//! How a command ends when it does not succeed.

use std::fmt;

/// Why a command stopped; `main` prints it as one line and picks the exit code.
#[derive(Debug)]
pub enum CliError {
    /// The command line is wrong, whatever the files hold: exit code 2.
    Usage(String),
    /// The run failed, or what is asked for cannot be had of these files or this machine: exit code 1.
    Run(String),
    /// Whoever read our standard output has left: a quiet success.
    BrokenPipe,
    /// Ctrl-C ended the run: exit code 130, nothing more to say.
    Interrupted,
}

impl CliError {
    /// An error in the command line; the message names the flag.
    pub fn usage(message: impl Into<String>) -> Self {
        CliError::Usage(message.into())
    }
    /// A failed run.
    pub fn run(message: impl Into<String>) -> Self {
        CliError::Run(message.into())
    }

    /// The same about what a file holds, where it was thought to be about a flag's value.
    pub fn of_file(self) -> Self {
        match self {
            CliError::Usage(message) => CliError::Run(message),
            e => e,
        }
    }
}

impl From<lisa_cpp::Error> for CliError {
    fn from(e: lisa_cpp::Error) -> Self {
        match e {
            lisa_cpp::Error::Params(message) => CliError::Usage(message),
            lisa_cpp::Error::Interrupted => CliError::Interrupted,
            e => CliError::Run(e.to_string()),
        }
    }
}

/// For writes to standard output.
impl From<std::io::Error> for CliError {
    fn from(e: std::io::Error) -> Self {
        match e.kind() {
            std::io::ErrorKind::BrokenPipe => CliError::BrokenPipe,
            _ => CliError::Run(format!("standard output: {e}")),
        }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CliError::Usage(m) | CliError::Run(m) => f.write_str(m),
            CliError::BrokenPipe => f.write_str("standard output was closed"),
            CliError::Interrupted => f.write_str("interrupted"),
        }
    }
}
