//! What a run tells: a bar for who watches, lines for who reads later, JSON lines for programs.

use std::io::Write;
use std::time::Duration;

use lisa_cpp::distill::team::Stage;
use lisa_cpp::distill::trainer::{Event, HeldOut};
use serde_json::json;

use crate::cli::error::CliError;
use crate::cli::progress::{Log, Progress};

/// Tells what happens.
pub struct Report {
    log: Log,
    json: bool,
    bar: Option<(Stage, Progress)>,
    last: String,
    failure: Option<std::io::Error>,
}

impl Report {
    /// `json`: lines on standard output too.
    pub fn new(log: Log, json: bool) -> Self {
        Self { log, json, bar: None, last: String::new(), failure: None }
    }

    fn line(&mut self, value: serde_json::Value) {
        if self.json && self.failure.is_none() {
            let mut out = std::io::stdout().lock();
            self.failure = writeln!(out, "{value}").and_then(|()| out.flush()).err();
        }
    }

    /// Before the first step.
    pub fn start(&mut self, found: HeldOut) -> Result<(), CliError> {
        self.log.line(format_args!(
            "before training: KL {:.4}, perplexity {:.2} (unchanged {:.2}) on the text held out",
            found.kl, found.perplexity, found.perplexity_teacher
        ));
        self.line(json!({ "event": "start", "kl": found.kl, "perplexity": found.perplexity,
            "perplexity_unchanged": found.perplexity_teacher }));
        self.finish()
    }

    /// A step, or a held-out loss.
    pub fn event(&mut self, event: &Event) {
        match *event {
            Event::Step { stage, step, steps, loss, norm, lr, tokens_per_second } => {
                if self.bar.as_ref().is_none_or(|(s, _)| *s != stage) {
                    self.bar = Some((stage, Progress::new(self.log, stage.name(), steps as u64)));
                }
                if let Some((_, bar)) = &mut self.bar {
                    bar.message(format_args!("{}: loss {loss:.4}, {tokens_per_second:.0} tokens/s", stage.name()));
                    bar.set(step as u64);
                }
                let left = (steps - step) as f64;
                self.last =
                    format!("step {step} of {steps}, loss {loss:.4}, {tokens_per_second:.0} tokens/s, {left} to go");
                self.line(json!({ "event": "step", "stage": stage.name(), "step": step, "steps": steps, "loss": loss,
                    "norm": norm, "lr": lr, "tokens_per_second": tokens_per_second }));
            }
            Event::HeldOut { stage, step, found } => {
                self.log.line(format_args!(
                    "{}: {}; held out: loss {:.4}, KL {:.4}, perplexity {:.2} (unchanged {:.2})",
                    stage.name(),
                    self.last,
                    found.loss,
                    found.kl,
                    found.perplexity,
                    found.perplexity_teacher
                ));
                self.line(json!({ "event": "held_out", "stage": stage.name(), "step": step, "loss": found.loss,
                    "kl": found.kl, "perplexity": found.perplexity, "perplexity_unchanged": found.perplexity_teacher }));
            }
        }
    }

    /// After the last step.
    pub fn end(&mut self, found: HeldOut, tokens: u64, time: Duration) -> Result<(), CliError> {
        self.log.line(format_args!(
            "trained on {tokens} tokens ({:.1} minutes in this run): KL {:.4}, perplexity {:.2} (unchanged {:.2}, x {:.3})",
            time.as_secs_f64() / 60.0,
            found.kl,
            found.perplexity,
            found.perplexity_teacher,
            found.perplexity / found.perplexity_teacher
        ));
        self.line(json!({ "event": "end", "tokens": tokens, "seconds": time.as_secs_f64(), "kl": found.kl,
            "perplexity": found.perplexity, "perplexity_unchanged": found.perplexity_teacher }));
        self.finish()
    }

    /// Takes the bar away; an error where standard output could not be written.
    pub fn finish(&mut self) -> Result<(), CliError> {
        self.bar = None;
        self.failure.take().map_or(Ok(()), |e| Err(e.into()))
    }
}
