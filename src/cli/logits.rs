//! `lisa-cpp logits`: what the model expects after every token of a text.

use super::args::{ComputeArgs, ModelArgs, TextArgs};
use super::error::CliError;
use super::load;
use super::progress::Log;
use clap::Args;
use lisa_cpp::eval::{log_sum_exp, top};
use lisa_cpp::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::io::Write;

/// Flags of `logits`.
#[derive(Args, Debug)]
pub struct LogitsArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    text: TextArgs,
    /// The tokens, as a JSON array of ids, instead of a text
    #[arg(long, value_name = "JSON", conflicts_with_all = ["prompt", "file"])]
    ids: Option<String>,
    /// Likeliest next tokens to print per position
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    /// One JSON object: {"positions":[{"top_ids":[...],"top_logprobs":[...],"next_logprob":x},...]}, where next_logprob is
    /// that of the token that follows in the text, null at the end
    #[arg(long)]
    json: bool,
    /// Nothing on standard error but errors
    #[arg(long)]
    log_disable: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// Runs the command.
pub fn run(args: &LogitsArgs) -> Result<(), CliError> {
    let log = Log::new(!args.log_disable);
    let given = match &args.ids {
        Some(json) => Some(
            serde_json::from_str::<Vec<u32>>(json)
                .map_err(|e| CliError::usage(format!("--ids: not a JSON array of token ids: {e}")))?,
        ),
        None => None,
    };
    let text = args.text.prompt()?;
    if given.is_none() && text.is_none() {
        return Err(CliError::usage("nothing to process: give --ids, --prompt or --file"));
    }
    args.compute.session_params(0)?;
    let model = load::model(&args.model, &args.compute, log)?;
    let ids = match given {
        Some(ids) => ids,
        None => model.tokenizer().encode(&text.unwrap_or_default(), true, true)?,
    };
    let n_ctx = u32::try_from(ids.len()).map_err(|_| CliError::usage("--ids: too many tokens"))?;
    if n_ctx == 0 {
        let error = if args.ids.is_some() { CliError::Usage } else { CliError::Run };
        return Err(error("no tokens to process".into()));
    }
    let mut session = load::session(&model, &args.compute, Some(n_ctx), log)?;

    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut written = Ok(());
    session.logits_each(&ids, &mut |i, logits| {
        if written.is_err() {
            return;
        }
        let total = log_sum_exp(model.kernels(), logits);
        let log_probability = |logit: f32| f64::from(logit) - total;
        let top: Vec<(u32, f64)> = top(logits, args.top).into_iter().map(|(id, l)| (id, log_probability(l))).collect();
        let next = ids.get(i + 1).map(|&id| log_probability(logits[id as usize]));
        written = if args.json {
            let before = if i > 0 { "," } else { "{\"positions\":[" };
            write!(out, "{before}{}", position_json(&top, next))
        } else {
            position_lines(&mut out, model.tokenizer(), i, ids[i], &top, next)
        };
    })?;
    written?;
    if args.json {
        writeln!(out, "]}}")?;
    }
    Ok(out.flush()?)
}

fn position_json(top: &[(u32, f64)], next: Option<f64>) -> Value {
    json!({
        "top_ids": top.iter().map(|t| t.0).collect::<Vec<_>>(),
        "top_logprobs": top.iter().map(|t| t.1).collect::<Vec<_>>(),
        "next_logprob": next,
    })
}

fn position_lines(
    out: &mut impl Write,
    tokenizer: &Tokenizer,
    i: usize,
    id: u32,
    top: &[(u32, f64)],
    next: Option<f64>,
) -> std::io::Result<()> {
    let text = |id: u32| format!("{:?}", String::from_utf8_lossy(&tokenizer.token_bytes(id, true)));
    write!(out, "{i:5}  {id:6} {}", text(id))?;
    match next {
        Some(p) => writeln!(out, "  next token's log-probability {p:.4}")?,
        None => writeln!(out)?,
    }
    for (id, p) in top {
        writeln!(out, "{:>17} {:<20} {p:.4}", id, text(*id))?;
    }
    Ok(())
}
