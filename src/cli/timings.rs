//! Where the time of a run went.

use super::memory;
use std::fmt;
use std::time::{Duration, Instant};

/// Durations and counts of one run, from the start of loading on.
pub struct Timings {
    start: Instant,
    /// Opening the model and making the session.
    pub load: Duration,
    /// Processing prompts.
    pub prompt: Duration,
    /// Prompt tokens processed.
    pub n_prompt: usize,
    /// Steps of one generated token each.
    pub eval: Duration,
    /// Number of those steps.
    pub n_eval: usize,
    /// Choosing tokens.
    pub sampling: Duration,
}

impl Timings {
    /// Starts the clock.
    pub fn start() -> Self {
        let zero = Duration::ZERO;
        Timings { start: Instant::now(), load: zero, prompt: zero, n_prompt: 0, eval: zero, n_eval: 0, sampling: zero }
    }

    /// Ends the loading phase.
    pub fn loaded(&mut self) {
        self.load = self.start.elapsed();
    }

    /// The figures for programs; times in milliseconds, memory in bytes, `null` where there is nothing to tell.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "load_ms": ms(self.load),
            "prompt_tokens": self.n_prompt,
            "prompt_ms": ms(self.prompt),
            "prompt_tokens_per_second": rate(self.n_prompt, self.prompt),
            "eval_tokens": self.n_eval,
            "eval_ms": ms(self.eval),
            "eval_tokens_per_second": rate(self.n_eval, self.eval),
            "sampling_ms": ms(self.sampling),
            "total_ms": ms(self.start.elapsed()),
            "peak_memory_bytes": memory::peak_resident(),
        })
    }
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

/// `n` per second; `None` when nothing was done.
fn rate(n: usize, d: Duration) -> Option<f64> {
    (n > 0 && !d.is_zero()).then(|| n as f64 / d.as_secs_f64())
}

impl fmt::Display for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, name: &str, d: Duration, n: usize, unit: &str| {
            write!(f, "{name:>16} = {:10.2} ms / {n:5} {unit}", ms(d))?;
            if let Some(rate) = rate(n, d) {
                write!(f, " ({:8.2} ms per token, {rate:8.2} tokens per second)", ms(d) / n as f64)?;
            }
            writeln!(f)
        };
        writeln!(f, "{:>16} = {:10.2} ms", "load time", ms(self.load))?;
        line(f, "prompt eval time", self.prompt, self.n_prompt, "tokens")?;
        line(f, "eval time", self.eval, self.n_eval, "runs  ")?;
        writeln!(f, "{:>16} = {:10.2} ms", "sampling time", ms(self.sampling))?;
        writeln!(
            f,
            "{:>16} = {:10.2} ms / {:5} tokens",
            "total time",
            ms(self.start.elapsed()),
            self.n_prompt + self.n_eval
        )?;
        match memory::peak_resident() {
            Some(bytes) => write!(f, "{:>16} = {:>13}", "peak memory", memory::human(bytes)),
            None => write!(f, "{:>16} = unknown", "peak memory"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_run() {
        let mut t = Timings::start();
        t.prompt = Duration::from_millis(500);
        t.n_prompt = 100;
        let text = t.to_string();
        assert!(
            text.contains("500.00 ms /   100 tokens (    5.00 ms per token,   200.00 tokens per second)"),
            "{text}"
        );
        assert!(text.contains("0.00 ms /     0 runs"), "{text}");
        let json = t.json();
        assert_eq!(json["prompt_tokens_per_second"], 200.0);
        assert!(json["eval_tokens_per_second"].is_null());
    }
}
