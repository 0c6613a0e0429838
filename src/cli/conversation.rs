//! The messages of a chat and how they become the tokens a session holds.

use super::engine::Engine;
use super::error::CliError;
use lisa_cpp::runtime::chat::{ChatMessage, ChatTemplate};
use lisa_cpp::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// How messages are put into text.
pub enum Format {
    /// The model's chat template, or one chosen in its place.
    Template(Box<ChatTemplate>),
    /// Plain text around every user message.
    Affixes {
        /// Before the message.
        prefix: String,
        /// After it.
        suffix: String,
    },
}

impl Format {
    fn render(&self, messages: &[ChatMessage]) -> Result<String, CliError> {
        match self {
            Format::Template(template) => Ok(template.render(messages, true)?),
            Format::Affixes { prefix, suffix } => Ok(messages
                .iter()
                .map(|m| match m.role.as_str() {
                    "user" => format!("{prefix}{}{suffix}", m.content),
                    _ => m.content.clone(),
                })
                .collect()),
        }
    }
}

/// What has to happen before the model can answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// Tokens of the session that stay.
    pub keep: usize,
    /// Tokens to feed after them.
    pub feed: Vec<u32>,
    /// The text that the session then stands for.
    rendered: String,
}

/// A conversation in progress.
pub struct Conversation {
    /// How messages are put into text.
    pub format: Format,
    /// What was said, a system message first if there is one.
    pub messages: Vec<ChatMessage>,
    /// The text the session's tokens and `pending` stand for; empty when that is not known.
    rendered: String,
    /// The last token of an answer, when the session has not seen it.
    pending: Option<u32>,
}

impl Conversation {
    /// A conversation that has not begun.
    pub fn new(format: Format, system: Option<&str>) -> Self {
        let messages = system.map(ChatMessage::system).into_iter().collect();
        Conversation { format, messages, rendered: String::new(), pending: None }
    }

    /// The system message.
    pub fn system(&self) -> Option<&str> {
        self.messages.first().filter(|m| m.role == "system").map(|m| m.content.as_str())
    }

    /// Sets the system message; the session is brought in line at the next answer.
    pub fn set_system(&mut self, text: &str) {
        if self.system().is_some() {
            self.messages.remove(0);
        }
        self.messages.insert(0, ChatMessage::system(text));
    }

    /// Replaces all messages.
    pub fn replace(&mut self, messages: Vec<ChatMessage>) {
        self.messages = messages;
        self.forget_rendering();
    }

    /// The session no longer holds what was rendered: the next step compares token by token.
    pub fn forget_rendering(&mut self) {
        self.rendered.clear();
        self.pending = None;
    }

    /// What brings the session to the point where the model answers the last message.
    ///
    /// As long as the template only appends, so do the tokens: what the model generated stays as it was generated. A
    /// template that rewrites earlier turns is followed, and the part of the session that still agrees is kept.
    pub fn step(&self, engine: &Engine) -> Result<Step, CliError> {
        let text = self.format.render(&self.messages)?;
        self.step_to(text, engine.tokenizer(), engine.held())
    }

    fn step_to(&self, rendered: String, tokenizer: &Tokenizer, held: &[u32]) -> Result<Step, CliError> {
        if let Some(new) = rendered.strip_prefix(self.rendered.as_str()).filter(|_| !self.rendered.is_empty()) {
            let mut feed: Vec<u32> = self.pending.into_iter().collect();
            feed.extend(tokenizer.encode(new, false, true)?);
            if !feed.is_empty() {
                return Ok(Step { keep: held.len(), feed, rendered });
            }
        }
        let all = encode_whole(tokenizer, &rendered)?;
        let same = all.iter().zip(held).take_while(|(a, b)| a == b).count();
        // The last token is always fed: its logits choose the first of the answer.
        let keep = same.min(all.len().saturating_sub(1));
        Ok(Step { keep, feed: all[keep..].to_vec(), rendered })
    }

    /// Records that `step` was fed.
    pub fn fed(&mut self, step: Step) {
        self.rendered = step.rendered;
        self.pending = None;
    }

    /// Records the model's answer.
    pub fn answered(&mut self, text: &str, pending: Option<u32>, tokenizer: &Tokenizer) {
        self.rendered.push_str(text);
        self.pending = pending;
        self.messages.push(ChatMessage::answered(text, tokenizer));
    }

    /// The messages as JSON: a list of objects with `role` and `content`.
    pub fn to_json(&self) -> Value {
        self.messages.iter().map(|m| json!({"role": m.role, "content": m.content})).collect()
    }
}

/// Tokens of a conversation from its beginning, with one start token where the model wants it.
fn encode_whole(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, CliError> {
    let mut ids = tokenizer.encode(text, true, true)?;
    // Most templates write the start token themselves.
    if let (Some(bos), [first, second, ..]) = (tokenizer.bos(), ids.as_slice())
        && tokenizer.add_bos()
        && *first == bos
        && *second == bos
    {
        ids.remove(0);
    }
    Ok(ids)
}

/// The messages of a file that `/save` wrote.
pub fn messages_from_json(text: &str) -> Result<Vec<ChatMessage>, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let list = value.as_array().ok_or("expected a list of messages")?;
    let message = |(i, m): (usize, &Value)| {
        let field = |name: &str| {
            m.get(name).and_then(Value::as_str).ok_or_else(|| format!("message {i}: \"{name}\" is missing or no text"))
        };
        let role = field("role")?;
        match role {
            "system" if i > 0 => Err(format!("message {i}: a system message must be the first")),
            "system" | "user" | "assistant" => Ok(ChatMessage::new(role, field("content")?)),
            _ => Err(format!("message {i}: unknown role \"{role}\" (system, user, assistant)")),
        }
    };
    list.iter().enumerate().map(message).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(system: Option<&str>) -> Conversation {
        let format = Format::Affixes { prefix: "U: ".into(), suffix: "\nA:".into() };
        Conversation::new(format, system)
    }

    #[test]
    fn affixes_surround_user_messages() {
        let mut c = chat(Some("Be brief.\n"));
        c.messages.push(ChatMessage::user("hi"));
        c.messages.push(ChatMessage::assistant(" hello\n"));
        c.messages.push(ChatMessage::user("bye"));
        assert_eq!(c.format.render(&c.messages).unwrap(), "Be brief.\nU: hi\nA: hello\nU: bye\nA:");
    }

    #[test]
    fn the_system_message_comes_first() {
        let mut c = chat(None);
        c.messages.push(ChatMessage::user("hi"));
        assert_eq!(c.system(), None);
        c.set_system("a");
        c.set_system("b");
        assert_eq!((c.system(), c.messages.len()), (Some("b"), 2));
    }

    #[test]
    fn saved_messages_come_back() {
        let mut c = chat(Some("s"));
        c.messages.push(ChatMessage::user("hi \"you\"\n"));
        assert_eq!(messages_from_json(&c.to_json().to_string()).unwrap(), c.messages);
    }

    #[test]
    fn broken_files_are_refused() {
        for text in [
            "",
            "{}",
            "[1]",
            r#"[{"role":"user"}]"#,
            r#"[{"role":"tool","content":"x"}]"#,
            r#"[{"role":"user","content":"x"},{"role":"system","content":"x"}]"#,
        ] {
            assert!(messages_from_json(text).is_err(), "{text}");
        }
    }

    mod with_a_vocabulary {
        use super::*;
        use lisa_cpp::model::Model;

        fn tokens(text: &str, model: &Model) -> Vec<u32> {
            encode_whole(model.tokenizer(), text).unwrap()
        }

        #[test]
        fn appending_feeds_only_what_is_new() {
            let model = Model::embedded(Default::default()).unwrap();
            let mut c = chat(None);
            let first = c.step_to("U: hi\nA:".into(), model.tokenizer(), &[]).unwrap();
            assert_eq!((first.keep, &first.feed), (0, &tokens("U: hi\nA:", &model)));
            let held = first.feed.clone();
            c.fed(first);
            c.answered(" yes", Some(42), model.tokenizer());
            let second = c.step_to("U: hi\nA: yes\nU: so\nA:".into(), model.tokenizer(), &held).unwrap();
            assert_eq!((second.keep, second.feed[0]), (held.len(), 42));
            assert_eq!(second.feed[1..], model.tokenizer().encode("\nU: so\nA:", false, true).unwrap());
        }

        #[test]
        fn a_rewritten_history_keeps_what_agrees() {
            let model = Model::embedded(Default::default()).unwrap();
            let mut c = chat(None);
            let held = tokens("Once upon a time there was a cat", &model);
            c.answered("x", None, model.tokenizer());
            let step = c.step_to("Once upon a time there was a dog".into(), model.tokenizer(), &held).unwrap();
            let all = tokens("Once upon a time there was a dog", &model);
            assert!(step.keep > 3 && step.keep < all.len());
            assert_eq!(held[..step.keep], all[..step.keep]);
            assert_eq!(step.feed, all[step.keep..]);
        }

        #[test]
        fn the_last_token_is_always_fed() {
            let model = Model::embedded(Default::default()).unwrap();
            let held = tokens("Once upon", &model);
            let step = chat(None).step_to("Once upon".into(), model.tokenizer(), &held).unwrap();
            assert_eq!((step.keep, step.feed), (held.len() - 1, held[held.len() - 1..].to_vec()));
        }
    }
}
