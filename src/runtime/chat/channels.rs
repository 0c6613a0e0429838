//! Answers in channels, as gpt-oss writes them: `<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...`.
//!
//! Only the last part is what the model says to the user. Its chat template takes nothing else as the content of a message, and
//! refuses one with the markers in it; so a conversation that is to go on has to keep that part alone.

/// What stands before a channel's name.
pub(super) const CHANNEL: &str = "<|channel|>";
/// What stands between a channel's header and its text.
pub(super) const MESSAGE: &str = "<|message|>";
/// What a channel's text can end with.
const ENDS: [&str; 5] = ["<|end|>", "<|return|>", "<|call|>", "<|start|>", CHANNEL];

/// What is said in the channel `final`; without one, in `commentary` unless that addresses a tool. `None` for an answer that is
/// not in channels; empty where there was only thought.
pub(super) fn said(answer: &str) -> Option<String> {
    let mut parts = answer.split(CHANNEL).skip(1).filter_map(|part| part.split_once(MESSAGE)).peekable();
    parts.peek()?;
    let (mut said, mut beside) = (String::new(), String::new());
    for (header, text) in parts {
        let end = ENDS.iter().filter_map(|end| text.find(end)).min().unwrap_or(text.len());
        let mut words = header.split_whitespace();
        match words.next() {
            Some("final") => said.push_str(&text[..end]),
            Some("commentary") if words.all(|word| !word.starts_with("to=")) => beside.push_str(&text[..end]),
            _ => {}
        }
    }
    Some(if said.is_empty() { beside } else { said })
}

#[cfg(test)]
mod tests {
    use super::said;

    #[test]
    fn the_final_channel_is_what_is_said() {
        let two = "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>Four <|x|>.";
        assert_eq!(said(two).as_deref(), Some("Four <|x|>."));
        assert_eq!(said("<|channel|>final<|message|>a<|return|>").as_deref(), Some("a"));
        assert_eq!(said("<|channel|>final <|constrain|>json<|message|>{}").as_deref(), Some("{}"));
        let beside = "<|channel|>commentary<|message|>First I look.<|end|>";
        assert_eq!(said(beside).as_deref(), Some("First I look."));
        assert_eq!(said(&format!("{beside}<|start|>assistant<|channel|>final<|message|>b")).as_deref(), Some("b"));
        assert_eq!(said("<|channel|>commentary to=functions.x <|constrain|>json<|message|>{}").as_deref(), Some(""));
    }

    #[test]
    fn an_answer_cut_off_in_thought_says_nothing() {
        assert_eq!(said("<|channel|>analysis<|message|>Let me").as_deref(), Some(""));
        assert_eq!(said("<|channel|>ana"), None);
    }

    #[test]
    fn other_answers_are_as_they_are() {
        assert_eq!(said("Hello <|message|>"), None);
        assert_eq!(said(""), None);
    }
}
