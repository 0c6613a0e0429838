//! A cell's measurements run in processes of their own: one that crashes does not take the study with it, and the memory
//! it took at most is its own.

use crate::cli::error::CliError;
use crate::cli::memory;
use lisa_cpp::eval::study::{Job, quality, speed};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::{BufRead, Read, Write};
use std::process::{Command, Stdio};

/// What a child is asked for.
#[derive(Serialize, Deserialize)]
pub enum Request {
    /// Perplexity, divergence, benchmarks.
    Quality(Job),
    /// Tokens per second and bytes.
    Speed(Job),
}

/// The child: reads a request from standard input and prints the result.
pub fn serve() -> Result<(), CliError> {
    let mut line = String::new();
    let mut input = std::io::stdin().lock();
    input.read_line(&mut line).map_err(|e| CliError::run(format!("standard input: {e}")))?;
    drop(input);
    let request: Request =
        serde_json::from_str(&line).map_err(|e| CliError::usage(format!("--child: not a request: {e}")))?;
    // Whoever asked holds the other end until the answer is there. When it closes, nobody waits any more.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(1);
    });
    let answer = match request {
        Request::Quality(job) => quality(&job)?,
        Request::Speed(job) => {
            let (speed, mut memory) = speed(&job)?;
            memory["peak_rss_bytes"] = json!(memory::peak_resident());
            json!({ "speed": speed, "memory": memory })
        }
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{answer}")?;
    Ok(out.flush()?)
}

/// Has a child measure; the error is its own one line, or how it ended.
pub fn measure(request: &Request) -> Result<Value, String> {
    let request = serde_json::to_string(request).map_err(|e| e.to_string())?;
    let output = run(&["study", "--child"], Some(&request))?;
    serde_json::from_slice(&output).map_err(|e| format!("the measurement printed no JSON: {e}"))
}

/// Has a child quantise.
pub fn quantise(arguments: &[&str]) -> Result<(), String> {
    run(&[&["quantize", "--allow-requantize", "--log-disable"], arguments].concat(), None).map(drop)
}

fn run(arguments: &[&str], request: Option<&str>) -> Result<Vec<u8>, String> {
    let program = std::env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(if request.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cannot start a process: {e}"))?;
    let mut input = child.stdin.take();
    if let (Some(input), Some(request)) = (&mut input, request) {
        // A child that died at once says why on its standard error.
        let _ = writeln!(input, "{request}").and_then(|()| input.flush());
    }
    let output = child.wait_with_output().map_err(|e| format!("waiting for the measurement: {e}"))?;
    drop(input);
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let message = text.lines().rev().find_map(|l| l.strip_prefix("error: ")).map(String::from);
    Err(message.unwrap_or_else(|| match text.lines().rev().find(|l| !l.trim().is_empty()) {
        Some(last) => format!("{}: {last}", output.status),
        None => output.status.to_string(),
    }))
}
