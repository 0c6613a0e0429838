//! `--conversation`: messages in, answers out.

use super::args::{TextArgs, read_text, without_mark};
use super::commands::{self, Command};
use super::conversation::{Conversation, Format, messages_from_json};
use super::engine::{Answer, Engine, Stop};
use super::error::CliError;
use super::generate::{ChatArgs, Settings, explain, finish, write_json};
use super::input::{Input, Line};
use super::output::Output;
use lisa_cpp::runtime::chat::{ChatMessage, ChatTemplate};
use lisa_cpp::runtime::sampler::Sampler;
use std::io::Write;
use std::path::Path;

/// The flags of a chat, checked.
pub struct ChatSettings {
    /// Leave after one answer.
    pub single_turn: bool,
    system: Option<String>,
    /// In place of the model's own; known to compile.
    template: Option<String>,
    /// `--chat-template-kwargs`.
    variables: serde_json::Map<String, serde_json::Value>,
    /// `--in-prefix` or `--in-suffix` was given: no template.
    plain: bool,
}

/// The chat the flags ask for, if they do.
pub fn settings(wanted: bool, args: &ChatArgs, text: &TextArgs) -> Result<Option<ChatSettings>, CliError> {
    if !wanted {
        return Ok(None);
    }
    let from = |text: &Option<String>, file: &Option<std::path::PathBuf>| match (text, file) {
        (Some(text), _) => Ok(Some(text.clone())),
        (None, Some(path)) => read_text(path).map(Some),
        (None, None) => Ok(None),
    };
    let system = match &args.system_prompt_file {
        Some(path) => Some(read_text(path)?.trim_end_matches('\n').to_owned()),
        None => args.system_prompt.clone().map(|t| text.unescaped(t)).transpose()?,
    };
    let variables = match &args.chat_template_kwargs {
        None => Default::default(),
        Some(json) => serde_json::from_str(json)
            .map_err(|e| CliError::usage(format!("--chat-template-kwargs: not a JSON object: {e}")))?,
    };
    let template = from(&args.chat_template, &args.chat_template_file)?;
    // A large model need not be loaded to find out that there is no such template.
    if let Some(text) = &template {
        ChatTemplate::choose(Some(text), None, "", "")
            .map_err(|e| template_error(e, args.chat_template_file.as_deref()))?;
    }
    let plain = args.in_prefix.is_some() || args.in_suffix.is_some();
    if plain && (template.is_some() || args.chat_template_kwargs.is_some()) {
        return Err(CliError::usage(
            "--in-prefix and --in-suffix take the place of a chat template: give one or the other",
        ));
    }
    Ok(Some(ChatSettings { single_turn: args.single_turn, system, template, variables, plain }))
}

/// What is wrong with the template that was given, in a file or as a flag's value.
fn template_error(e: lisa_cpp::Error, file: Option<&Path>) -> CliError {
    let what = match e {
        lisa_cpp::Error::Template(what) => what,
        e => e.to_string(),
    };
    match file {
        Some(path) => file_error(path, &what),
        None => CliError::usage(format!("--chat-template: {what}")),
    }
}

/// Runs the chat until the user leaves.
pub fn run(engine: &mut Engine, settings: &Settings, chat: ChatSettings, seed: u32) -> Result<(), CliError> {
    let format = format(engine, settings, &chat)?;
    let conversation = Conversation::new(format, chat.system.as_deref());
    let mut session = ChatSession { engine, settings, chat: &chat, conversation, seed, n_samplers: 0 };
    let result = session.run();
    finish(session.engine, settings);
    result
}

fn format(engine: &Engine, settings: &Settings, chat: &ChatSettings) -> Result<Format, CliError> {
    if chat.plain {
        return Ok(Format::Affixes { prefix: settings.in_prefix.clone(), suffix: settings.in_suffix.clone() });
    }
    let tokenizer = engine.tokenizer();
    let text = |id: Option<u32>| id.map(|id| tokenizer.token_text(id)).unwrap_or_default();
    let (bos, eos) = (text(tokenizer.bos()), text(tokenizer.eos()));
    let (mut template, notice) =
        ChatTemplate::choose(chat.template.as_deref(), engine.model.chat_template(), bos, eos)?;
    if let Some(notice) = notice {
        settings.log.line(format_args!("note: {notice}"));
    }
    for (name, value) in &chat.variables {
        template.set_variable(name, value);
    }
    Ok(Format::Template(Box::new(template)))
}

struct ChatSession<'a> {
    engine: &'a mut Engine,
    settings: &'a Settings,
    chat: &'a ChatSettings,
    conversation: Conversation,
    seed: u32,
    /// Samplers made so far: each gets a seed of its own, so that an answer asked for again comes out differently.
    n_samplers: u32,
}

impl ChatSession<'_> {
    fn run(&mut self) -> Result<(), CliError> {
        let mut stopped = false;
        // An empty prompt is none, as in llama.cpp: the first message is typed.
        if let Some(message) = self.settings.prompt.clone().filter(|text| !text.is_empty()) {
            let answer = self.ask(&message);
            if self.chat.single_turn {
                return only_answer(answer);
            }
            stopped = self.is_stopped(answer)?;
        }
        let mut input = Input::open()?;
        if matches!(input, Input::Terminal(..)) {
            self.say("Type a message, or /help. Ctrl-C stops an answer, Ctrl-D leaves.");
        }
        loop {
            let line = match input.read()? {
                // The one answer that was asked for is owed; who sits at a terminal may think better of it.
                Line::End if self.chat.single_turn && matches!(input, Input::Plain(_)) => {
                    return Err(CliError::run("standard input ended without a message to answer (--prompt gives one)"));
                }
                Line::End => return Ok(()),
                Line::Interrupted if stopped => return Ok(()),
                Line::Interrupted => {
                    self.say("Ctrl-C again, Ctrl-D or /exit leaves.");
                    stopped = true;
                    continue;
                }
                Line::Invalid(why) => {
                    self.complain(&why);
                    continue;
                }
                Line::Text(text) => text,
            };
            stopped = false;
            match commands::parse(&line) {
                Some(Ok(Command::Exit)) => return Ok(()),
                Some(Ok(command)) => {
                    let result = self.command(command);
                    stopped = self.is_stopped(result)?;
                }
                Some(Err(message)) => self.complain(&message),
                None if line.trim().is_empty() => {}
                None => {
                    let answer = self.ask(commands::message(&line));
                    if self.chat.single_turn {
                        return only_answer(answer);
                    }
                    stopped = self.is_stopped(answer)?;
                }
            }
        }
    }

    /// What the chat survives: a full context, an interruption, a file that cannot be read. The rest ends it.
    fn is_stopped(&mut self, result: Result<Stop, CliError>) -> Result<bool, CliError> {
        match result {
            Ok(stop) => Ok(stop == Stop::Interrupted),
            Err(CliError::Interrupted) => Ok(true),
            Err(CliError::Run(message) | CliError::Usage(message)) => {
                self.complain(&message);
                Ok(false)
            }
            Err(e @ CliError::BrokenPipe) => Err(e),
        }
    }

    fn say(&self, text: &str) {
        self.settings.log.line(text);
    }

    /// Errors are shown whatever `--log-disable` says.
    fn complain(&self, message: &str) {
        let _ = writeln!(std::io::stderr(), "error: {message}");
    }

    /// Adds a user message and answers it; when that fails, the message is taken back.
    fn ask(&mut self, message: &str) -> Result<Stop, CliError> {
        self.conversation.messages.push(ChatMessage::user(message));
        let result = self.answer();
        if result.is_err() {
            self.conversation.messages.pop();
        }
        result
    }

    /// Answers the last message of the conversation.
    fn answer(&mut self) -> Result<Stop, CliError> {
        let step = self.conversation.step(self.engine)?;
        let n_total = step.keep + step.feed.len();
        if n_total > self.engine.n_ctx() && !self.engine.limits.context_shift {
            return Err(CliError::run(format!(
                "the conversation needs {n_total} tokens and the context holds {}: /clear begins a new one, -c makes the \
                 context larger, --context-shift forgets the oldest part",
                self.engine.n_ctx()
            )));
        }
        if step.keep < self.engine.held().len() {
            if let Err(e) = self.engine.truncate(step.keep) {
                self.conversation.forget_rendering();
                return Err(e);
            }
            self.new_sampler()?;
        }
        let stoppable = self.engine.stoppable();
        let next = match self.engine.feed(&step.feed) {
            Ok(next) => next,
            Err(e) => {
                self.conversation.forget_rendering();
                return Err(e);
            }
        };
        self.conversation.fed(step);
        let mut out = std::io::stdout().lock();
        let json = self.settings.json;
        let answer = self.engine.generate(next, &stoppable, &mut |piece| {
            if !json && !piece.is_empty() {
                out.write_all(piece.as_bytes())?;
                out.flush()?;
            }
            Ok(())
        });
        // A part of an answer may be in the session that is in no message.
        let answer = answer.inspect_err(|_| self.conversation.forget_rendering())?;
        drop(stoppable);
        self.show_end(&mut out, &answer)?;
        explain(self.engine, answer.stop);
        self.conversation.answered(&answer.message, answer.pending, self.engine.tokenizer());
        if answer.lost {
            self.conversation.forget_rendering();
        }
        Ok(answer.stop)
    }

    fn show_end(&self, out: &mut impl Write, answer: &Answer) -> Result<(), CliError> {
        if self.settings.json {
            let prompt = self.conversation.messages.last().map(|m| m.content.as_str()).unwrap_or_default();
            write_json(out, self.engine, prompt, answer, self.seed)
        } else {
            writeln!(out)?;
            Ok(out.flush()?)
        }
    }

    fn command(&mut self, command: Command) -> Result<Stop, CliError> {
        match command {
            Command::Help => self.say(commands::HELP),
            Command::Clear => {
                let system = self.conversation.system().map(ChatMessage::system);
                self.conversation.replace(system.into_iter().collect());
                self.say("The conversation is forgotten.");
            }
            Command::Reset => {
                let system = self.chat.system.as_deref().map(ChatMessage::system);
                self.conversation.replace(system.into_iter().collect());
                self.engine.clear();
                self.n_samplers = 0;
                self.engine.set_sampler(self.sampler(self.seed)?);
                self.say("Starting over.");
            }
            Command::Regen => return self.regenerate(),
            Command::System(Some(text)) => {
                self.conversation.set_system(&text);
                self.say("The system message is set.");
            }
            Command::System(None) => match self.conversation.system() {
                Some(text) => self.say(&format!("The system message is: {text}")),
                None => self.say("There is no system message but the template's own, if it has one."),
            },
            Command::Save(path) => {
                let text = format!("{:#}\n", self.conversation.to_json());
                Output::create(&path, &self.settings.inputs)?.whole(text.as_bytes())?;
                self.say(&format!("Saved {} messages to {}.", self.conversation.messages.len(), path.display()));
            }
            Command::Load(path) => {
                let text = std::fs::read_to_string(&path).map_err(|e| file_error(&path, &e))?;
                let messages = messages_from_json(&without_mark(text)).map_err(|e| file_error(&path, &e))?;
                self.say(&format!("Loaded {} messages from {}.", messages.len(), path.display()));
                self.conversation.replace(messages);
            }
            Command::Tokens => {
                let (held, n_ctx) = (self.engine.held().len(), self.engine.n_ctx());
                self.say(&format!("{held} of {n_ctx} tokens of the context are in use."));
            }
            Command::Timings => self.say(&self.engine.timings.to_string()),
            Command::Exit => {}
        }
        Ok(Stop::EndOfText)
    }

    /// Answers the last user message again.
    fn regenerate(&mut self) -> Result<Stop, CliError> {
        let before = self.conversation.messages.clone();
        while self.conversation.messages.last().is_some_and(|m| m.role == "assistant") {
            self.conversation.messages.pop();
        }
        let result = match self.conversation.messages.last() {
            Some(m) if m.role == "user" => {
                self.conversation.forget_rendering();
                self.answer()
            }
            _ => Err(CliError::run("/regen: there is no message to answer yet")),
        };
        if result.is_err() {
            self.conversation.replace(before);
        }
        result
    }

    fn new_sampler(&mut self) -> Result<(), CliError> {
        self.n_samplers += 1;
        let sampler = self.sampler(self.seed.wrapping_add(self.n_samplers))?;
        self.engine.set_sampler(sampler);
        Ok(())
    }

    fn sampler(&self, seed: u32) -> Result<Sampler, CliError> {
        let mut params = self.settings.sampling.clone();
        params.seed = seed;
        Ok(Sampler::new(&params, self.engine.tokenizer(), self.engine.n_ctx())?)
    }
}

/// How a run of a single turn ends.
fn only_answer(answer: Result<Stop, CliError>) -> Result<(), CliError> {
    match answer? {
        Stop::Interrupted => Err(CliError::Interrupted),
        _ => Ok(()),
    }
}

fn file_error(path: &Path, e: &dyn std::fmt::Display) -> CliError {
    CliError::run(format!("{}: {e}", path.display()))
}
