//! Reading GBNF, llama.cpp's notation for grammars.
//!
//! A grammar is a list of rules `name ::= alternatives`, of which `root` is where a text begins. An alternative is a sequence
//! of literals `"..."`, classes `[a-z]` and `[^a-z]`, `.`, names of rules, groups in parentheses and tokens `<name>`, `<[12]>`
//! and `!<name>`, each of which can be repeated: `*`, `+`, `?`, `{m}`, `{m,}`, `{m,n}`. A rule ends with its line, except
//! within parentheses and after `::=` and `|`. `#` begins a comment.

use std::iter::Peekable;
use std::str::Chars;

use hashbrown::HashMap;

use super::rules::{CharSet, Element, Rules, TokenRef};
use crate::{Error, Result};

/// The most elements that a grammar may come to once its repetitions are written out.
const MAX_ELEMENTS: usize = 1 << 20;

/// The deepest nesting of parentheses.
const MAX_DEPTH: usize = 200;

/// Where something stands in the text, counted from 1.
#[derive(Clone, Copy)]
struct Place {
    line: usize,
    column: usize,
}

impl Place {
    fn error(self, what: impl std::fmt::Display) -> Error {
        Error::Grammar(format!("line {}, column {}: {what}", self.line, self.column))
    }
}

/// What may be repeated: one literal, class, token, name or group.
type Item = Vec<Element>;

/// Reads `text`.
///
/// # Errors
/// [`Error::Grammar`] with the line and the column, and what was expected there.
pub(super) fn parse(text: &str) -> Result<Rules> {
    let mut parser = Parser {
        chars: text.chars().peekable(),
        at: Place { line: 1, column: 1 },
        rules: Rules::default(),
        names: HashMap::new(),
        n_elements: 0,
    };
    parser.skip(true);
    while parser.peek().is_some() {
        parser.rule()?;
    }
    parser.finish()
}

/// A rule of the text: its number, where it was first named, and where it is defined.
struct Named {
    rule: u32,
    used: Place,
    defined: Option<Place>,
}

struct Parser<'a> {
    chars: Peekable<Chars<'a>>,
    at: Place,
    rules: Rules,
    names: HashMap<String, Named>,
    n_elements: usize,
}

impl Parser<'_> {
    fn peek(&mut self) -> Option<char> {
        self.chars.peek().copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.chars.next()?;
        if c == '\n' {
            self.at = Place { line: self.at.line + 1, column: 1 };
        } else {
            self.at.column += 1;
        }
        Some(c)
    }

    fn take(&mut self, c: char) -> bool {
        let is_next = self.peek() == Some(c);
        if is_next {
            self.next();
        }
        is_next
    }

    /// Passes blanks and comments, and the ends of lines if the rule goes on after them.
    fn skip(&mut self, lines: bool) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => {}
                '\r' | '\n' if lines => {}
                '#' => {
                    while self.peek().is_some_and(|c| c != '\n' && c != '\r') {
                        self.next();
                    }
                    continue;
                }
                _ => return,
            }
            self.next();
        }
    }

    fn expected<T>(&mut self, what: &str) -> Result<T> {
        let found = match self.peek() {
            None => "the end of the grammar".to_owned(),
            Some('\n' | '\r') => "the end of the line".to_owned(),
            Some(c) => format!("`{c}`"),
        };
        Err(self.at.error(format_args!("expected {what}, found {found}")))
    }

    fn rule(&mut self) -> Result<()> {
        let place = self.at;
        if !self.peek().is_some_and(is_word) {
            return self.expected("the name of a rule (letters, digits and `-`)");
        }
        let name = self.word();
        self.skip(false);
        if !(self.take(':') && self.take(':') && self.take('=')) {
            return self.expected(&format!("`::=` after the name `{name}`"));
        }
        let known = self.named(&name, place);
        if let Some(first) = known.defined.replace(place) {
            return Err(place.error(format_args!("the rule `{name}` is defined in line {} already", first.line)));
        }
        let rule = known.rule;
        self.skip(true);
        let alternatives = self.alternatives(&name, 0)?;
        self.rules.define(rule, alternatives);
        match self.peek() {
            None | Some('\n' | '\r') => self.skip(true),
            Some(')') => return Err(self.at.error("this `)` closes nothing")),
            Some(_) => {
                return self.expected("a literal, a class, a name, a group, a token, `|` or the end of the line");
            }
        }
        Ok(())
    }

    fn word(&mut self) -> String {
        let mut word = String::new();
        while let Some(c) = self.peek().filter(|&c| is_word(c)) {
            word.push(c);
            self.next();
        }
        word
    }

    fn named(&mut self, name: &str, place: Place) -> &mut Named {
        let rules = &mut self.rules;
        self.names.entry_ref(name).or_insert_with(|| Named { rule: rules.reserve(name), used: place, defined: None })
    }

    fn alternatives(&mut self, name: &str, depth: usize) -> Result<Vec<Vec<Element>>> {
        let mut all = vec![self.sequence(name, depth)?];
        while self.take('|') {
            self.skip(true);
            all.push(self.sequence(name, depth)?);
        }
        Ok(all)
    }

    fn sequence(&mut self, name: &str, depth: usize) -> Result<Vec<Element>> {
        let mut sequence = Vec::new();
        // The last item waits for what repeats it.
        let mut item: Option<Item> = None;
        while let Some(c) = self.peek() {
            let place = self.at;
            let new = match c {
                '"' => self.literal()?,
                '[' => vec![self.class()?],
                '.' => {
                    self.next();
                    vec![self.rules.set(CharSet::any())]
                }
                '<' => vec![self.token(false)?],
                '!' => {
                    self.next();
                    if self.peek() != Some('<') {
                        return self.expected("a token in `<` and `>` after `!`");
                    }
                    vec![self.token(true)?]
                }
                '(' => self.group(name, depth)?,
                c if is_word(c) => {
                    let word = self.word();
                    vec![Element::Rule(self.named(&word, place).rule)]
                }
                '*' | '+' | '?' | '{' => {
                    let (least, most) = self.repetition(depth > 0)?;
                    let Some(repeated) = item.take() else {
                        return Err(place.error(format_args!("there is nothing before `{c}` that it could repeat")));
                    };
                    item = Some(self.repeat(repeated, least, most, name, place)?);
                    self.skip(depth > 0);
                    continue;
                }
                _ => break,
            };
            self.count(new.len(), place)?;
            sequence.extend(item.replace(new).into_iter().flatten());
            self.skip(depth > 0);
        }
        sequence.extend(item.into_iter().flatten());
        Ok(sequence)
    }

    /// Keeps the grammar within bounds.
    fn count(&mut self, more: usize, place: Place) -> Result<()> {
        self.n_elements = self.n_elements.saturating_add(more);
        if self.n_elements > MAX_ELEMENTS {
            return Err(
                place.error(format_args!("with its repetitions the grammar has more than {MAX_ELEMENTS} elements"))
            );
        }
        Ok(())
    }

    fn literal(&mut self) -> Result<Item> {
        let start = self.at;
        self.next();
        let mut item = Vec::new();
        while !self.take('"') {
            if self.peek().is_none() {
                return Err(start.error("this literal has no closing `\"`"));
            }
            let c = self.character()?;
            item.push(self.rules.set(CharSet::new(vec![(c, c)])));
        }
        Ok(item)
    }

    fn class(&mut self) -> Result<Element> {
        let start = self.at;
        self.next();
        let negated = self.take('^');
        let mut ranges = Vec::new();
        while !self.take(']') {
            if self.peek().is_none() {
                return Err(start.error("this class has no closing `]`"));
            }
            let place = self.at;
            let first = self.character()?;
            let mut last = first;
            // A `-` before the closing bracket stands for itself.
            if self.peek() == Some('-') && self.chars.clone().nth(1) != Some(']') {
                self.next();
                if self.peek().is_none() {
                    return Err(start.error("this class has no closing `]`"));
                }
                last = self.character()?;
            }
            if first > last {
                return Err(place.error("the first character of this range comes after the last"));
            }
            ranges.push((first, last));
        }
        if ranges.is_empty() {
            return Err(start.error("this class is empty"));
        }
        let set = CharSet::new(ranges);
        Ok(self.rules.set(if negated { set.negated() } else { set }))
    }

    /// A character of a literal or a class, or the escape of one.
    fn character(&mut self) -> Result<u32> {
        let place = self.at;
        let c = self.next().unwrap_or_default();
        if c != '\\' {
            return Ok(c.into());
        }
        let Some(escape) = self.next() else { return self.expected("a character after `\\`") };
        let digits = match escape {
            'n' => return Ok('\n'.into()),
            'r' => return Ok('\r'.into()),
            't' => return Ok('\t'.into()),
            '\\' | '"' | '[' | ']' | '-' => return Ok(escape.into()),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => {
                let known = r#"known ones: \n \r \t \\ \" \[ \] \- \xHH \uHHHH \UHHHHHHHH"#;
                return Err(place.error(format_args!("unknown escape `\\{escape}`; {known}")));
            }
        };
        let mut value = 0u32;
        for _ in 0..digits {
            let Some(digit) = self.peek().and_then(|c| c.to_digit(16)) else {
                return self.expected(&format!("{digits} hexadecimal digits after `\\{escape}`"));
            };
            self.next();
            value = value << 4 | digit;
        }
        match char::from_u32(value) {
            Some(_) => Ok(value),
            None => Err(place.error(format_args!("U+{value:04X} is not a character"))),
        }
    }

    fn token(&mut self, negated: bool) -> Result<Element> {
        let place = self.at;
        self.next();
        let name = if self.take('[') {
            let id = self.number("the number of a token after `<[`")?;
            if !(self.take(']') && self.take('>')) {
                return self.expected("`]>` after the number of a token");
            }
            TokenRef::Id(id)
        } else {
            let mut text = String::from("<");
            loop {
                match self.peek() {
                    None | Some('\n' | '\r') => return self.expected("a `>` that closes the token"),
                    Some(c) => text.push(c),
                }
                if self.next() == Some('>') {
                    break TokenRef::Text(text);
                }
            }
        };
        Ok(self.rules.token(name, negated, format!("line {}, column {}", place.line, place.column)))
    }

    fn number(&mut self, what: &str) -> Result<u32> {
        let place = self.at;
        let mut digits = String::new();
        while let Some(c) = self.peek().filter(char::is_ascii_digit) {
            digits.push(c);
            self.next();
        }
        if digits.is_empty() {
            return self.expected(what);
        }
        digits.parse().map_err(|_| place.error(format_args!("{digits} is too large")))
    }

    fn group(&mut self, name: &str, depth: usize) -> Result<Item> {
        let start = self.at;
        if depth == MAX_DEPTH {
            return Err(start.error(format_args!("more than {MAX_DEPTH} parentheses in one another")));
        }
        self.next();
        self.skip(true);
        let mut alternatives = self.alternatives(name, depth + 1)?;
        match self.peek() {
            Some(')') => self.next(),
            None => return Err(start.error("this `(` is never closed")),
            Some(_) => return self.expected("a literal, a class, a name, a group, a token, `|` or `)`"),
        };
        if alternatives.len() == 1 {
            return Ok(alternatives.swap_remove(0));
        }
        Ok(vec![Element::Rule(self.rules.add(name, alternatives))])
    }

    /// How often: at least, and at most if there is a limit.
    fn repetition(&mut self, lines: bool) -> Result<(u32, Option<u32>)> {
        let place = self.at;
        match self.next() {
            Some('*') => return Ok((0, None)),
            Some('+') => return Ok((1, None)),
            Some('?') => return Ok((0, Some(1))),
            _ => {}
        }
        self.skip(lines);
        let least = self.number("a number after `{`")?;
        self.skip(lines);
        let mut most = Some(least);
        if self.take(',') {
            self.skip(lines);
            most = match self.peek() {
                Some(c) if c.is_ascii_digit() => Some(self.number("a number")?),
                _ => None,
            };
            self.skip(lines);
        }
        if !self.take('}') {
            return self.expected("`}` or `,` in a number of repetitions");
        }
        if most.is_some_and(|most| most < least) {
            return Err(place.error("at most is less than at least"));
        }
        Ok((least, most))
    }

    /// The item `least` times, then up to the rest of `most` times or without end.
    ///
    /// An optional rest is nested, each time in the one before, so that a text can only be read in one way however many
    /// times of the possible ones it takes.
    fn repeat(&mut self, item: Item, least: u32, most: Option<u32>, name: &str, place: Place) -> Result<Item> {
        let copies = most.map_or(least as usize + 1, |most| most as usize);
        self.count(copies.saturating_mul(2), place)?;
        // Long items are written once.
        let unit =
            if item.len() > 1 && copies > 1 { vec![Element::Rule(self.rules.add(name, vec![item]))] } else { item };
        let mut all = Vec::new();
        for _ in 0..least {
            all.extend_from_slice(&unit);
        }
        match most {
            None => {
                let rest = self.rules.reserve(name);
                let again = unit.iter().copied().chain([Element::Rule(rest)]).collect();
                self.rules.define(rest, vec![again, Vec::new()]);
                all.push(Element::Rule(rest));
            }
            Some(most) => {
                let mut rest = None;
                for _ in least..most {
                    let once = unit.iter().copied().chain(rest.map(Element::Rule)).collect();
                    rest = Some(self.rules.add(name, vec![once, Vec::new()]));
                }
                all.extend(rest.map(Element::Rule));
            }
        }
        Ok(all)
    }

    /// Checks what only the whole grammar tells.
    fn finish(mut self) -> Result<Rules> {
        let undefined = self.names.iter().filter(|(_, n)| n.defined.is_none());
        if let Some((name, n)) = undefined.min_by_key(|(_, n)| (n.used.line, n.used.column)) {
            return Err(n.used.error(format_args!("there is no rule `{name}`")));
        }
        let Some(root) = self.names.get("root") else {
            return Err(Error::Grammar("there is no rule `root`, where a text begins".into()));
        };
        let root = root.rule;
        self.rules.finish(root).map_err(|name| {
            let place = self.names.get(&*name).and_then(|n| n.defined).unwrap_or(self.at);
            place.error(format_args!(
                "the rule `{name}` can begin with itself (left recursion): put what it begins with first, and what repeats \
                 after it in a `*`"
            ))
        })?;
        Ok(self.rules)
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(text).err().unwrap_or_else(|| panic!("{text} is accepted")).to_string()
    }

    #[test]
    fn errors_say_where_and_what() {
        for (text, says) in [
            ("", "there is no rule `root`, where a text begins"),
            ("a ::= \"x\"", "there is no rule `root`, where a text begins"),
            ("root ::= \"yes", "line 1, column 10: this literal has no closing `\"`"),
            ("root ::= x", "line 1, column 10: there is no rule `x`"),
            (
                "root ::= \"a\"\n  | \"b\"",
                "line 2, column 3: expected the name of a rule (letters, digits and `-`), found `|`",
            ),
            ("root = x", "line 1, column 6: expected `::=` after the name `root`, found `=`"),
            ("root ::= (\"a\" |\n\"b\"", "line 1, column 10: this `(` is never closed"),
            (
                "root ::= (\"a\" }",
                "line 1, column 15: expected a literal, a class, a name, a group, a token, `|` or `)`, found `}`",
            ),
            ("root ::= \"a\")", "line 1, column 13: this `)` closes nothing"),
            ("root ::= [a-z", "line 1, column 10: this class has no closing `]`"),
            ("root ::= [z-a]", "line 1, column 11: the first character of this range comes after the last"),
            ("root ::= []", "line 1, column 10: this class is empty"),
            ("root ::= [^]", "line 1, column 10: this class is empty"),
            ("root ::= * \"a\"", "line 1, column 10: there is nothing before `*` that it could repeat"),
            ("root ::= \"a\"{x}", "line 1, column 14: expected a number after `{`, found `x`"),
            (
                "root ::= \"a\"{2",
                "line 1, column 15: expected `}` or `,` in a number of repetitions, found the end of the grammar",
            ),
            ("root ::= \"a\"{3,2}", "line 1, column 13: at most is less than at least"),
            ("root ::= \"a\"{99999999999}", "line 1, column 14: 99999999999 is too large"),
            ("root ::= \"a\"{4000000000}", "line 1, column 13: with its repetitions the grammar has more than"),
            ("root ::= \"\\q\"", "line 1, column 11: unknown escape `\\q`; known ones: "),
            ("root ::= \"\\x4\"", "line 1, column 14: expected 2 hexadecimal digits after `\\x`, found `\"`"),
            ("root ::= \"\\uD800\"", "line 1, column 11: U+D800 is not a character"),
            ("root ::= \"a\"\nb ::= \"x\"\nb ::= \"y\"", "line 3, column 1: the rule `b` is defined in line 2 already"),
            ("root ::= <[x]>", "line 1, column 12: expected the number of a token after `<[`, found `x`"),
            (
                "root ::= <think",
                "line 1, column 16: expected a `>` that closes the token, found the end of the grammar",
            ),
            ("root ::= !\"a\"", "line 1, column 11: expected a token in `<` and `>` after `!`, found `\"`"),
            (
                "root ::= \"a\"\na ::= a \"x\" | \"y\"",
                "line 2, column 1: the rule `a` can begin with itself (left recursion)",
            ),
            ("root ::= (root \"x\")? \"y\"", "line 1, column 1: the rule `root` can begin with itself"),
            ("root ::= x \"!\"\nx ::= y\ny ::= \"a\"? x \"b\"", "can begin with itself"),
        ] {
            let message = error(text);
            let what = message.strip_prefix("grammar: ").unwrap();
            assert!(what.starts_with(says) || what.ends_with(says) || what.contains(says), "{text:?}: {message}");
        }
    }

    #[test]
    fn parentheses_and_repetitions_within_bounds() {
        assert!(error(&format!("root ::= {}\"a\"", "(".repeat(100_000))).contains("parentheses in one another"));
        assert!(error("root ::= (((\"a\"{1000}){1000}){1000}){3000000}").contains("more than"));
        // Each level is written once, so that the sizes add up and do not multiply.
        assert!(parse("root ::= ((([ab]{1000}){1000}){1000}){1000}").is_ok());
    }

    #[test]
    fn what_is_allowed_where() {
        for text in [
            "# comment\n\nroot ::= a # more\n\n\na ::=\n  \"x\" |\n # here too\n \"y\"\r\n",
            "root ::= (\n \"a\" # first\n\n | \"b\"\n)+ c-1 \"d\"\nc-1 ::= [-a] | [a-] | [\\]\\[\\-]",
            "root ::= \"\" | [^\\n] . \"\\x41\\u00e9\\U0001F600\\t\\\"\\\\\"",
            "root ::= <[12]> !<[13]>* <|im_start|> | \"a\" { 1 , 3 } \"b\"{2,}",
            "root ::= a\na ::= a2?\na2 ::= (\"x\"?)* | b\nb ::= a | \"z\"",
        ] {
            assert!(parse(text).is_ok(), "{text}: {}", error(text));
        }
    }
}
