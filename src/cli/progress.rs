//! What a person at the terminal sees besides the answer: log lines and progress bars, all on standard error.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Standard error, or silence under `--log-disable`. Errors of writing are ignored: there is nowhere to report them.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    enabled: bool,
}

impl Log {
    /// `enabled` is false under `--log-disable`.
    pub fn new(enabled: bool) -> Self {
        Log { enabled }
    }

    /// Writes a line.
    pub fn line(&self, text: impl Display) {
        if self.enabled {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    /// Writes text without ending the line.
    pub fn text(&self, text: impl Display) {
        if self.enabled {
            let mut err = std::io::stderr();
            let _ = write!(err, "{text}");
            let _ = err.flush();
        }
    }

    /// Whether someone is watching: logging is on and standard error is a terminal.
    pub fn is_watched(&self) -> bool {
        self.enabled && std::io::stderr().is_terminal()
    }
}

/// Work shorter than this shows no bar.
const PATIENCE: Duration = Duration::from_millis(400);

/// A progress bar that appears when the work turns out to be long, only on a terminal.
pub struct Progress {
    bar: ProgressBar,
    start: Instant,
    shown: bool,
    watched: bool,
}

impl Progress {
    /// A bar for `total` units of the work called `name`.
    pub fn new(log: Log, name: &'static str, total: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:32}] {percent:>3}% {eta}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(name);
        Progress { bar, start: Instant::now(), shown: false, watched: log.is_watched() }
    }

    /// What stands before the bar.
    pub fn message(&mut self, text: impl Display) {
        self.bar.set_message(text.to_string());
    }

    /// Moves the bar to `done` units.
    pub fn set(&mut self, done: u64) {
        if self.watched && !self.shown && self.start.elapsed() > PATIENCE {
            self.shown = true;
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
