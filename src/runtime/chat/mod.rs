//! Chat templates: the Jinja text a GGUF file carries in `tokenizer.chat_template`, rendered as Hugging Face's
//! `apply_chat_template` does.

mod builtin;
mod channels;
mod python;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use minijinja::{Environment, ErrorKind, Value};

use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

pub use builtin::BUILTIN_NAMES;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`; templates may know others.
    pub role: String,
    /// The text.
    pub content: String,
}

impl ChatMessage {
    /// A message of any role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        ChatMessage { role: role.into(), content: content.into() }
    }
    /// A system message.
    pub fn system(content: impl Into<String>) -> Self {
        ChatMessage::new("system", content)
    }
    /// What the user said.
    pub fn user(content: impl Into<String>) -> Self {
        ChatMessage::new("user", content)
    }
    /// What the model answered.
    pub fn assistant(content: impl Into<String>) -> Self {
        ChatMessage::new("assistant", content)
    }
    /// The message that a generated `answer` is. Models whose vocabulary has markers of channels (gpt-oss) think in one and answer
    /// in another: the message is what they say in the latter.
    pub fn answered(answer: &str, tokenizer: &Tokenizer) -> Self {
        let marked = [channels::CHANNEL, channels::MESSAGE].iter().all(|text| tokenizer.token_id(text).is_some());
        let said = marked.then(|| channels::said(answer)).flatten();
        ChatMessage::assistant(said.unwrap_or_else(|| answer.into()))
    }
}

/// What the next message adds to a conversation that the model has already read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Continuation {
    /// Text to append to what was rendered before.
    Append(String),
    /// The template renders the earlier turns differently now (some drop the reasoning of past answers): the whole
    /// conversation, of which whatever prefix agrees can be kept.
    Rewrite(String),
}

/// A chat template, compiled.
///
/// A template that refuses or ignores the `system` role (Gemma's, early Mistral's) gets the system text in front of the
/// first user message, separated by an empty line.
pub struct ChatTemplate {
    env: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
    variables: BTreeMap<String, Value>,
    takes_system: OnceLock<bool>,
}

/// The template's only name in its environment.
const NAME: &str = "chat";
/// Instructions a rendering may spend, each worth 64 bytes of text: far beyond any real template and conversation, and an end
/// to a hostile one within a second and 256 MB.
const FUEL: u64 = 4_000_000;

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are the texts of the model's special tokens, empty when it has none.
    ///
    /// # Errors
    /// [`Error::Template`] with the line at fault.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self> {
        let mut env = Environment::new();
        env.set_debug(true); // for errors that name the undefined value, also in release builds
        let syntax = env.syntax().to_builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|e| template_error(&e))?);
        env.set_fuel(Some(FUEL));
        python::install(&mut env);
        env.add_template_owned(NAME, python::adapt_syntax(source)).map_err(|e| template_error(&e))?;
        Ok(ChatTemplate {
            env,
            source: source.to_string(),
            bos: bos.to_string(),
            eos: eos.to_string(),
            variables: BTreeMap::new(),
            takes_system: OnceLock::new(),
        })
    }

    /// One of the built-in templates, by llama.cpp's names ([`BUILTIN_NAMES`]).
    ///
    /// # Errors
    /// [`Error::Template`] listing the names when this is none of them.
    pub fn builtin(name: &str, bos: &str, eos: &str) -> Result<Self> {
        match builtin::source(name) {
            Some(source) => ChatTemplate::new(source, bos, eos),
            None => Err(Error::Template(format!(
                "no built-in template is called `{name}` (there are {}); a Jinja template contains `{{{{` or `{{%`",
                BUILTIN_NAMES.join(", ")
            ))),
        }
    }

    /// The template to use: `given` (`--chat-template`: a built-in name or Jinja text) before the model's own (which may be such a name too), before
    /// chatml. The second value is a notice for the user when chatml was assumed.
    ///
    /// # Errors
    /// [`Error::Template`] when the chosen template does not compile or the name is unknown.
    pub fn choose(given: Option<&str>, model: Option<&str>, bos: &str, eos: &str) -> Result<(Self, Option<String>)> {
        match (given, model) {
            (Some(text), _) if text.contains("{{") || text.contains("{%") => {
                Ok((ChatTemplate::new(text, bos, eos)?, None))
            }
            (Some(name), _) => Ok((ChatTemplate::builtin(name, bos, eos)?, None)),
            (None, Some(name)) if builtin::source(name).is_some() => Ok((ChatTemplate::builtin(name, bos, eos)?, None)),
            (None, Some(text)) if !text.trim().is_empty() => Ok((ChatTemplate::new(text, bos, eos)?, None)),
            _ => {
                let notice = "the model has no chat template: using chatml (choose another with --chat-template)";
                Ok((ChatTemplate::builtin("chatml", bos, eos)?, Some(notice.to_string())))
            }
        }
    }

    /// The Jinja text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Defines a further template variable, such as `enable_thinking` (`--chat-template-kwargs`).
    pub fn set_variable(&mut self, name: &str, value: &serde_json::Value) {
        self.variables.insert(name.to_string(), python::from_json(value));
        self.takes_system = OnceLock::new();
    }

    /// Renders a conversation; with `add_generation_prompt`, up to where the assistant's answer begins. Special tokens
    /// appear as text, to be tokenised with special parsing. Some templates write BOS, others leave it to the tokenizer:
    /// where the tokenizer adds it, take it off with [`ChatTemplate::strip_bos`] first.
    ///
    /// # Errors
    /// [`Error::Template`] with the template's own complaint or the line at fault.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        if messages.iter().any(|m| m.role == "system") && !self.takes_system() {
            self.render_as_is(&fold_system(messages), add_generation_prompt)
        } else {
            self.render_as_is(messages, add_generation_prompt)
        }
    }

    /// `text` without the BOS it may begin with, for tokenizers that add one themselves.
    pub fn strip_bos<'t>(&self, text: &'t str) -> &'t str {
        text.strip_prefix(self.bos.as_str()).unwrap_or(text)
    }

    /// What to feed the model for `new`, given that it has read `past` rendered by this template and its own last
    /// answer, the end-of-turn token included.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_next(&self, past: &[ChatMessage], new: &ChatMessage) -> Result<Continuation> {
        let mut all = past.to_vec();
        all.push(new.clone());
        let text = self.render(&all, true)?;
        if past.is_empty() {
            return Ok(Continuation::Append(text));
        }
        let before = self.render(past, false)?;
        Ok(match text.strip_prefix(&before) {
            // The answer ended at the end-of-turn token: a line break that the template puts after it is yet to be read.
            Some(rest) if before.ends_with('\n') => Continuation::Append(format!("\n{rest}")),
            Some(rest) => Continuation::Append(rest.to_string()),
            None => Continuation::Rewrite(text),
        })
    }

    /// False when the template refuses or drops a system message, which [`ChatTemplate::render`] then puts into the first
    /// user message.
    pub fn takes_system(&self) -> bool {
        *self.takes_system.get_or_init(|| {
            let probe = "a-text-no-template-has";
            let with = [ChatMessage::system(probe), ChatMessage::user("u")];
            match self.render_as_is(&with, true) {
                Ok(text) => text.contains(probe),
                // A template that cannot even do without a system message fails for another reason, which is to be seen.
                Err(_) => self.render_as_is(&with[1..], true).is_err(),
            }
        })
    }

    fn render_as_is(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        let mut variables = self.variables.clone();
        let message = |m: &ChatMessage| Value::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())]);
        variables.insert("messages".into(), messages.iter().map(message).collect());
        variables.insert("add_generation_prompt".into(), add_generation_prompt.into());
        variables.insert("bos_token".into(), self.bos.as_str().into());
        variables.insert("eos_token".into(), self.eos.as_str().into());
        for absent in ["tools", "documents"] {
            variables.entry(absent.into()).or_insert(Value::from(()));
        }
        let template = self.env.get_template(NAME).map_err(|e| template_error(&e))?;
        template.render(variables).map_err(|e| template_error(&e))
    }
}

/// Moves system texts into the user message that follows them.
fn fold_system(messages: &[ChatMessage]) -> Vec<ChatMessage> {
    let mut out = Vec::with_capacity(messages.len());
    let mut system = String::new();
    for m in messages {
        if m.role == "system" {
            system.push_str(m.content.trim());
            system.push_str("\n\n");
        } else if m.role == "user" && !system.is_empty() {
            out.push(ChatMessage::user(std::mem::take(&mut system) + &m.content));
        } else {
            out.push(m.clone());
        }
    }
    if !system.is_empty() {
        out.push(ChatMessage::user(system.trim_end()));
    }
    out
}

/// One line: where, and what went wrong.
fn template_error(e: &minijinja::Error) -> Error {
    let what = match (e.kind(), e.detail()) {
        (ErrorKind::OutOfFuel, _) => "it takes too much work or makes too much text".to_string(),
        (python::RAISED, Some(detail)) if detail.starts_with(python::RAISED_PREFIX) => {
            return Error::Template(format!("the template refuses: {}", &detail[python::RAISED_PREFIX.len()..]));
        }
        (kind, Some(detail)) => format!("{kind}, {detail}"),
        (kind, None) => kind.to_string(),
    };
    let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
    Error::Template(match e.line() {
        Some(line) => format!("line {line}: {what}"),
        None => what,
    })
}
