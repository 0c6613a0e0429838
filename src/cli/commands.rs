//! What can be typed in a chat besides messages: lines that begin with `/`.

use std::path::PathBuf;

/// A line that is not a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// `/help`
    Help,
    /// `/clear`: forget the conversation, keep the system message.
    Clear,
    /// `/reset`: start over with the system message and the seed of the command line.
    Reset,
    /// `/regen`: another answer to the last message.
    Regen,
    /// `/system [TEXT]`: show or change the system message.
    System(Option<String>),
    /// `/save FILE`
    Save(PathBuf),
    /// `/load FILE`
    Load(PathBuf),
    /// `/tokens`: how full the context is.
    Tokens,
    /// `/timings`
    Timings,
    /// `/exit`
    Exit,
}

/// What `/help` prints.
pub const HELP: &str = "\
/help          this list
/clear         forget the conversation, keep the system message
/reset         start over as at launch: conversation, system message, seed
/regen         answer the last message again
/system TEXT   change the system message for the whole conversation; without TEXT, show it
/save FILE     write the conversation as JSON
/load FILE     replace the conversation by a saved one
/tokens        how full the context is
/timings       where the time went so far
/exit          leave (so does Ctrl-D)
A message can go on over lines that end in a backslash. `//` begins a message with a slash.
Ctrl-C stops an answer.";

/// Reads a line: `None` for a message, an error for a command that does not exist or lacks its argument.
pub fn parse(line: &str) -> Option<Result<Command, String>> {
    let rest = line.strip_prefix('/')?;
    if rest.starts_with('/') {
        return None;
    }
    let (name, argument) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let argument = argument.trim();
    let file = |make: fn(PathBuf) -> Command| match argument {
        "" => Err(format!("/{name} needs a file name")),
        path => Ok(make(PathBuf::from(path))),
    };
    let bare = |command: Command| match argument {
        "" => Ok(command),
        _ => Err(format!("/{name} takes no argument")),
    };
    Some(match name {
        "help" | "?" => bare(Command::Help),
        "clear" => bare(Command::Clear),
        "reset" => bare(Command::Reset),
        "regen" => bare(Command::Regen),
        "system" => Ok(Command::System((!argument.is_empty()).then(|| argument.to_owned()))),
        "save" => file(Command::Save),
        "load" => file(Command::Load),
        "tokens" => bare(Command::Tokens),
        "timings" => bare(Command::Timings),
        "exit" | "quit" => bare(Command::Exit),
        _ => Err(format!("/{name} is not a command (see /help; // begins a message with a slash)")),
    })
}

/// The message a line stands for: `//x` is `/x`.
pub fn message(line: &str) -> &str {
    if line.starts_with("//") { &line[1..] } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_messages() {
        assert_eq!(parse("hello /help"), None);
        assert_eq!(parse("//help"), None);
        assert_eq!(message("//help"), "/help");
        assert_eq!(message("hi"), "hi");
        assert_eq!(parse("/help"), Some(Ok(Command::Help)));
        assert_eq!(parse("/system  be kind "), Some(Ok(Command::System(Some("be kind".into())))));
        assert_eq!(parse("/system"), Some(Ok(Command::System(None))));
        assert_eq!(parse("/save a b.json"), Some(Ok(Command::Save("a b.json".into()))));
        assert!(matches!(parse("/save"), Some(Err(_))));
        assert!(matches!(parse("/clear all"), Some(Err(_))));
        assert!(matches!(parse("/nope"), Some(Err(_))));
    }

    #[test]
    fn every_command_of_the_help_exists() {
        for line in HELP.lines().filter(|l| l.starts_with('/')) {
            let name = line.split_whitespace().next().unwrap();
            assert!(parse(&format!("{name} x")).or(parse(name)).is_some(), "{name}");
            let with_argument = line.contains("FILE") || line.contains("TEXT");
            let typed = if with_argument { format!("{name} x") } else { name.to_owned() };
            assert!(matches!(parse(&typed), Some(Ok(_))), "{typed}");
        }
    }
}
