//! The default command: continue a prompt.

use super::args::{ComputeArgs, ModelArgs, TextArgs};
use super::engine::{Answer, Engine, Limits, Stop};
use super::error::CliError;
use super::grammar::GrammarArgs;
use super::output::Inputs;
use super::progress::Log;
use super::sampling::SamplingArgs;
use super::timings::Timings;
use super::{chat, load, signals};
use clap::Args;
use lisa_cpp::runtime::sampler::{Sampler, SamplerParams};
use lisa_cpp::tokenizer::Tokenizer;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

/// Flags of text generation and chat.
#[derive(Args, Debug)]
pub struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    context: ContextArgs,
    #[command(flatten)]
    chat: ChatArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    grammar: GrammarArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// How much is generated and how it is shown.
#[derive(Args, Debug)]
#[command(next_help_heading = "Output")]
struct OutputArgs {
    /// Most tokens to generate; -1: until the model ends the text or the context is full; -2: the same, without context shift
    #[arg(short = 'n', long = "predict", alias = "n-predict", value_name = "N", default_value_t = -1)]
    predict: i32,
    /// End the answer where TEXT appears; can be repeated
    #[arg(short, long, value_name = "TEXT")]
    reverse_prompt: Vec<String>,
    /// Show control tokens in the text [-sp]
    #[arg(long)]
    special: bool,
    /// One JSON object on standard output instead of the text as it comes: prompt, text, tokens, stop, seed, timings
    #[arg(long)]
    json: bool,
    /// Repeat the prompt on standard error before the answer (the default)
    #[arg(long, overrides_with = "no_display_prompt", hide_short_help = true)]
    display_prompt: bool,
    /// Do not repeat the prompt
    #[arg(long, overrides_with = "display_prompt")]
    no_display_prompt: bool,
    /// List the tokens of the prompt on standard error
    #[arg(long)]
    verbose_prompt: bool,
    /// Print the timings at the end (the default)
    #[arg(long, overrides_with = "no_perf", hide_short_help = true)]
    perf: bool,
    /// Do not print timings
    #[arg(long, overrides_with = "perf")]
    no_perf: bool,
    /// Print where the time of the forward passes went, by kind of operation, on standard error at the end
    #[arg(long)]
    profile: bool,
    /// Nothing on standard error but errors
    #[arg(long)]
    log_disable: bool,
}

/// The context and what happens when it is full.
#[derive(Args, Debug)]
#[command(next_help_heading = "Context")]
struct ContextArgs {
    /// Tokens the context holds; 0: as many as the model was trained for
    /// [default: the same, or fewer where memory is short]
    #[arg(short, long, value_name = "N")]
    ctx_size: Option<u32>,
    /// When the context is full, forget the older half of it and go on
    #[arg(long, overrides_with = "no_context_shift")]
    context_shift: bool,
    /// When the context is full, stop (the default)
    #[arg(long, overrides_with = "context_shift", hide_short_help = true)]
    no_context_shift: bool,
    /// Tokens of the prompt that --context-shift never forgets, besides the start token; -1: all
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep: i32,
}

/// Conversation.
#[derive(Args, Debug)]
#[command(next_help_heading = "Chat")]
pub struct ChatArgs {
    /// Chat: each line is a message, formatted with the model's own chat template [-cnv]
    #[arg(long, overrides_with = "no_conversation")]
    pub conversation: bool,
    /// Continue the prompt as it is (the default) [-no-cnv]
    #[arg(long, overrides_with = "conversation")]
    pub no_conversation: bool,
    /// The system message [-sys]
    #[arg(long, value_name = "TEXT", requires = "conversation")]
    pub system_prompt: Option<String>,
    /// Read the system message from a file [-sysf]
    #[arg(long, value_name = "FILE", requires = "conversation", conflicts_with = "system_prompt")]
    pub system_prompt_file: Option<PathBuf>,
    /// Answer once and leave; the message is --prompt or the first line of input [-st]
    #[arg(long, requires = "conversation")]
    pub single_turn: bool,
    /// Jinja template to use instead of the model's, or a built-in one: chatml, llama3, gemma, ... (any other name lists them)
    #[arg(long, value_name = "TEMPLATE", requires = "conversation")]
    pub chat_template: Option<String>,
    /// The same, from a file
    #[arg(long, value_name = "FILE", requires = "conversation", conflicts_with = "chat_template")]
    pub chat_template_file: Option<PathBuf>,
    /// Further variables of the template, as a JSON object: '{"enable_thinking": false}'
    #[arg(long, value_name = "JSON", requires = "conversation")]
    pub chat_template_kwargs: Option<String>,
    /// Put before the prompt; in a chat before every message, and no template is used
    #[arg(long, value_name = "TEXT")]
    pub in_prefix: Option<String>,
    /// Put after the prompt; in a chat after every message, and no template is used
    #[arg(long, value_name = "TEXT")]
    pub in_suffix: Option<String>,
}

/// What the flags come to, before a model is opened.
pub struct Settings {
    /// The prompt or first message.
    pub prompt: Option<String>,
    /// Text before the prompt or every message.
    pub in_prefix: String,
    /// Text after the prompt or every message.
    pub in_suffix: String,
    /// How tokens are chosen.
    pub sampling: SamplerParams,
    /// Standard error.
    pub log: Log,
    /// Print timings at the end.
    pub perf: bool,
    /// One JSON object instead of streamed text.
    pub json: bool,
    /// What is read, and must not be written over.
    pub inputs: Inputs,
}

/// Runs the command.
pub fn run(args: &GenerateArgs) -> Result<(), CliError> {
    let mut settings = settings(args)?;
    let limits = limits(args)?;
    let chat = chat::settings(args.chat.conversation, &args.chat, &args.text)?;
    if settings.json && chat.as_ref().is_some_and(|c| !c.single_turn) {
        return Err(CliError::usage("--json: a conversation is not one object (use --single-turn)"));
    }
    args.compute.session_params(0)?;
    let grammar = args.grammar.given()?;

    let mut timings = Timings::start();
    let model = load::model(&args.model, &args.compute, settings.log)?;
    let mut session = load::session(&model, &args.compute, args.context.ctx_size, settings.log)?;
    if args.output.profile {
        session.start_profile();
    }
    let recommended = args.sampling.take_recommended(&mut settings.sampling, model.recommended_sampling())?;
    if let Some(taken) = recommended {
        settings.log.line(format_args!("note: as the model's file recommends: {taken} (flags come before it)"));
    }
    let sampler = Sampler::new(&settings.sampling, model.tokenizer(), session.n_ctx())?;
    let constraint = grammar.map(|g| g.constraint(model.tokenizer())).transpose()?;
    timings.loaded();
    settings.log.line(format_args!("sampler: seed {}, {}", sampler.seed(), sampler.describe_chain()));
    let seed = sampler.seed();
    let mut engine = Engine::new(model, session, sampler, constraint, timings, settings.log, limits);
    signals::install().map_err(|e| CliError::run(format!("cannot handle Ctrl-C: {e}")))?;
    match chat {
        Some(chat) => chat::run(&mut engine, &settings, chat, seed),
        None => complete(&mut engine, &settings, args, seed),
    }
}

fn settings(args: &GenerateArgs) -> Result<Settings, CliError> {
    let affix = |text: &Option<String>| args.text.unescaped(text.clone().unwrap_or_default());
    Ok(Settings {
        prompt: args.text.prompt()?,
        in_prefix: affix(&args.chat.in_prefix)?,
        in_suffix: affix(&args.chat.in_suffix)?,
        sampling: args.sampling.params(!args.text.no_escape)?,
        log: Log::new(!args.output.log_disable),
        perf: !args.output.no_perf,
        json: args.output.json,
        inputs: Inputs::of_model(&args.model)
            .with(&args.text.file)
            .with(&args.grammar.grammar_file)
            .with(&args.grammar.json_schema_file),
    })
}

fn limits(args: &GenerateArgs) -> Result<Limits, CliError> {
    let predict = args.output.predict;
    if predict < -2 {
        return Err(CliError::usage(format!("--predict {predict}: must be >= 0, -1 or -2")));
    }
    if args.context.keep < -1 {
        return Err(CliError::usage(format!("--keep {}: must be >= 0, or -1 for the whole prompt", args.context.keep)));
    }
    let reverse_prompts = args.output.reverse_prompt.iter().map(|t| args.text.unescaped(t.clone()));
    let reverse_prompts = reverse_prompts.collect::<Result<Vec<_>, _>>()?;
    if reverse_prompts.iter().any(String::is_empty) {
        return Err(CliError::usage("--reverse-prompt: the text is empty"));
    }
    Ok(Limits {
        n_predict: usize::try_from(predict).ok(),
        context_shift: args.context.context_shift && predict != -2,
        n_keep: usize::try_from(args.context.keep).unwrap_or(usize::MAX),
        reverse_prompts,
        special: args.output.special,
    })
}

/// Continues the prompt once.
fn complete(engine: &mut Engine, settings: &Settings, args: &GenerateArgs, seed: u32) -> Result<(), CliError> {
    let prompt =
        format!("{}{}{}", settings.in_prefix, settings.prompt.as_deref().unwrap_or_default(), settings.in_suffix);
    let mut ids = engine.tokenizer().encode(&prompt, true, true)?;
    if ids.is_empty() {
        ids.extend(engine.tokenizer().bos());
    }
    if args.output.verbose_prompt {
        settings.log.line(format_args!("prompt: {} tokens", ids.len()));
        settings.log.line(token_list(engine.tokenizer(), &ids));
    }
    let stoppable = engine.stoppable();
    let next = engine.feed(&ids);
    if let Err(CliError::Interrupted) = next {
        finish(engine, settings);
    }
    let next = next?;
    if !args.output.no_display_prompt && !settings.json {
        settings.log.text(&prompt);
    }
    let mut out = std::io::stdout().lock();
    let answer = engine.generate(next, &stoppable, &mut |piece| {
        if !settings.json && !piece.is_empty() {
            out.write_all(piece.as_bytes())?;
            out.flush()?;
        }
        Ok(())
    })?;
    if settings.json {
        write_json(&mut out, engine, &prompt, &answer, seed)?;
    } else if !answer.text.is_empty() {
        writeln!(out)?;
        out.flush()?;
    }
    explain(engine, answer.stop);
    finish(engine, settings);
    match answer.stop {
        Stop::Interrupted => Err(CliError::Interrupted),
        _ => Ok(()),
    }
}

/// Says on standard error why an answer ended, where the user might wonder.
pub fn explain(engine: &Engine, stop: Stop) {
    if stop == Stop::ContextFull {
        engine.log.line(format_args!(
            "note: stopped because the context of {} tokens is full (-c makes it larger, --context-shift goes on)",
            engine.n_ctx()
        ));
    }
    if engine.is_cut_short() {
        engine.log.line("note: the answer ends before what the grammar asks for is complete");
    }
}

/// The timings, unless they were not wanted.
pub fn finish(engine: &Engine, settings: &Settings) {
    if settings.perf {
        engine.log.line(format_args!("\n{}", engine.timings));
    }
    if let Some(profile) = engine.profile() {
        Log::new(true).line(format_args!("\n{profile}"));
    }
}

/// The object `--json` prints.
pub fn write_json(
    out: &mut impl Write,
    engine: &Engine,
    prompt: &str,
    answer: &Answer,
    seed: u32,
) -> Result<(), CliError> {
    let object = json!({
        "prompt": prompt,
        "text": answer.text,
        "tokens": answer.tokens,
        "stop": answer.stop.name(),
        "seed": seed,
        "timings": engine.timings.json(),
    });
    writeln!(out, "{object}")?;
    Ok(out.flush()?)
}

/// A line `id -> 'text'` per token.
pub fn token_list(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let line = |&id: &u32| format!("{id:6} -> '{}'", String::from_utf8_lossy(&tokenizer.token_bytes(id, true)));
    ids.iter().map(line).collect::<Vec<_>>().join("\n")
}
