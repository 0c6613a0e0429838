//! Cutting text into words before byte-pair merges: `tokenizer.ggml.pre` names the rules.
//!
//! The rules are facts about vocabularies: a merge never crosses the cuts its vocabulary was trained with. They are given
//! as llama.cpp (b11434) applies them, so that both give the same ids, including where it departs from a model's
//! original `tokenizer.json` (upper and lower case are told apart in ASCII only, for one).

use std::ops::Range;

use fancy_regex::Regex;

use super::failed;
use crate::Result;

/// One step of cutting; each works on the pieces that the step before it left.
#[derive(Debug, Clone, Copy)]
enum Split {
    /// Every match is a piece, and so is the text between two matches.
    Isolate(&'static str),
    /// The same, and where nothing else matches, white space: all of a run at the end of the text, else all but its
    /// last character, which belongs to the word that follows. It stands for the alternatives `\s+(?!\S)|\s+` at the end of
    /// an expression, without the look-ahead that would keep the automaton from being used.
    Words(&'static str),
    /// Numbers in groups of three from their end, the first group together with the text before it.
    NumberTriples,
    /// A cut wherever the ASCII digits that follow are a multiple of three.
    DigitTriples,
}
use Split::{DigitTriples, Isolate, NumberTriples, Words};

/// How the words are spelled in the vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// A printable character per byte.
    ByteLevel,
    /// As they are, spaces as U+2581, unknown characters as `<0xXX>` tokens. `newline_tokens`: a run of newlines is one
    /// token where the vocabulary has it, whatever the merges say.
    Raw { newline_tokens: bool },
}

/// Everything that a name in `tokenizer.ggml.pre` stands for.
struct Rules {
    names: &'static [&'static str],
    splits: &'static [Split],
    /// A word that is a token as a whole is not merged.
    ignore_merges: bool,
    /// Whether text starts with the BOS token unless the file says otherwise.
    add_bos: bool,
    spelling: Spelling,
}

macro_rules! contractions {
    () => {
        r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
    };
}
macro_rules! word {
    () => {
        r"[^\r\n\p{L}\p{N}]?\p{L}+"
    };
}
macro_rules! symbols {
    () => {
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    };
}
macro_rules! symbols_and_slashes {
    () => {
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
    };
}
/// Words as runs of capitals and then of small letters. A letter outside ASCII is both.
macro_rules! cased_words {
    ($letter:literal, $after:expr) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[",
            $letter,
            r"&&[^a-z]]*[",
            $letter,
            r"&&[^A-Z]]+",
            $after,
            r"|[^\r\n\p{L}\p{N}]?[",
            $letter,
            r"&&[^a-z]]+[",
            $letter,
            r"&&[^A-Z]]*",
            $after
        )
    };
}

/// Cased words where llama.cpp's categories (any letter is both cases) leave no case to tell.
macro_rules! uncased_words {
    () => {
        concat!(r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+(?:", contractions!(), ")?")
    };
}

const GPT2: Split = Words(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+");
const LLAMA3: Split = Words(concat!(contractions!(), "|", word!(), r"|\p{N}{1,3}|", symbols!()));
const QWEN2: Split = Words(concat!(contractions!(), "|", word!(), r"|\p{N}|", symbols!()));
const GPT4O: Split = Words(concat!(
    cased_words!(r"\p{L}", concat!("(?:", contractions!(), ")?")),
    r"|\p{N}{1,3}|",
    symbols_and_slashes!()
));
const DIGIT: Split = Isolate(r"\p{N}");
const DIGITS_3: Split = Isolate(r"\p{N}{1,3}");
const LINES: Split = Isolate(r"[^\n]+|\n+");
const HAN_KANA: Split = Isolate(r"[\x{4E00}-\x{9FA5}\x{3040}-\x{30FF}]+");
/// Hangul, Han and what lies between, without the spaces among them.
const EAST_ASIAN: Split = Isolate(r"[[\x{800}-\x{9FA5}\x{AC00}-\x{D7FF}]&&\S]+");
const DEEPSEEK3: Split = Words(concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+"
));
const BLOOM: Split = Isolate(r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+");
/// Letters of the scripts that have case.
const CASED_SCRIPTS: Split = Isolate(concat!(
    r"\s?[",
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}",
    r"\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}",
    r"\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}",
    r"\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}",
    r"\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}",
    r"\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}",
    r"\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}",
    r"\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}",
    r"\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}",
    r"\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}",
    r"\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}",
    r"\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}",
    r"\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}",
    r"\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}",
    r"]+"
));
/// Han as Kimi K2 counts it: whole blocks, unassigned code points included.
macro_rules! han {
    () => {
        concat!(
            r"[\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{2A6DF}",
            r"\x{2A700}-\x{2EBEF}\x{2F800}-\x{2FA1F}]"
        )
    };
}

const fn rules(names: &'static [&'static str], splits: &'static [Split]) -> Rules {
    Rules { names, splits, ignore_merges: false, add_bos: false, spelling: Spelling::ByteLevel }
}

const fn whole_words(names: &'static [&'static str], splits: &'static [Split]) -> Rules {
    Rules { ignore_merges: true, ..rules(names, splits) }
}

const fn raw(names: &'static [&'static str], newline_tokens: bool) -> Rules {
    Rules { spelling: Spelling::Raw { newline_tokens }, ..rules(names, &[LINES]) }
}

/// One row per set of rules. To add a vocabulary that follows known rules, add its name to the row.
#[rustfmt::skip]
const TABLE: &[Rules] = &[
    rules(&["default"], &[Isolate(r"[\p{P}$+<=>^~|]+"), GPT2, Isolate(r"\p{N}+"), Isolate("[0-9][0-9][0-9]")]),
    rules(&["gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "jina-v1-en",
            "jina-v2-code", "roberta-bpe", "a.x-4.0", "mellum", "modern-bert", "mpt", "olmo", "jais", "trillion",
            "granite-docling", "exaone4"], &[GPT2]),
    rules(&["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
          &[DIGIT, GPT2]),
    rules(&["falcon"], &[Isolate(r"[\p{P}$+<=>^~|`]+"), GPT2, Isolate("[0-9][0-9][0-9]")]),
    Rules { add_bos: true, ..whole_words(&["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral",
            "midm-2.0", "lfm2", "jina-v5-nano"], &[LLAMA3]) },
    rules(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[LLAMA3]),
    whole_words(&["glm4", "glm5"], &[LLAMA3]),
    whole_words(&["minicpm5"], &[DIGITS_3, Words(concat!(contractions!(), "|", word!(), r"|\p{N}+|", symbols!()))]),
    rules(&["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "megrez", "hunyuan", "solar-open", "grok-2"],
          &[QWEN2]),
    rules(&["laguna"], &[LINES, QWEN2]),
    rules(&["ufakzeka"], &[Words(concat!(word!(), r"|\p{N}|", symbols!()))]),
    rules(&["qwen35"], &[Words(concat!(contractions!(),
          r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"))]),
    rules(&["seed-coder"], &[Words(concat!(contractions!(), "|", word!(),
          r"|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+"))]),
    rules(&["bailingmoe", "bailingmoe2", "llada-moe"], &[Words(concat!(contractions!(), "|", word!(),
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]"))]),
    rules(&["exaone-moe"], &[Words(concat!(contractions!(),
          r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]"))]),
    rules(&["jais-2"], &[Isolate(concat!(contractions!(), "|", word!(), r"|\p{N}{1,3}|", symbols!(),
          r"|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)",
          r"|\s{1,2}(?!\S)|\s"))]),
    rules(&["deepseek-llm"], &[Isolate(r"[\r\n]"), CASED_SCRIPTS,
          Isolate(r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3001}\x{3002}]+"),
          Isolate(r"\s+$"), EAST_ASIAN, Isolate(r"\p{N}+")]),
    rules(&["deepseek-coder"], &[Isolate(r"[\r\n]"), Isolate(r"\s?\p{L}+"), Isolate(r"\s?\p{P}+"), EAST_ASIAN, DIGIT]),
    rules(&["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"], &[DIGITS_3, HAN_KANA, DEEPSEEK3]),
    rules(&["spark2_5"], &[DIGITS_3, HAN_KANA, Words(concat!(r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
          r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]")), DIGIT]),
    rules(&["afmoe"], &[NumberTriples, Isolate(concat!(
          r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{8C48}-\x{FAFF}\x{3040}-\x{30FF}\x{FF65}-\x{FF9F}\x{2F00}-\x{2FDF}",
          r"\x{E40}-\x{EFF}\x{1780}-\x{17FF}\x{1000}-\x{109F}\x{AA60}-\x{AA7F}\x{A9E0}-\x{A9FF}\x{AC00}-\x{D7AF}",
          r"\x{1100}-\x{11FF}]+")), DEEPSEEK3]),
    whole_words(&["youtu"], &[Isolate(concat!(
          r"[\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+|[\x{FF01}\x{2026}\x{201C}\x{201D}\x{2018}\x{2019}\x{2014}\x{FF1A}",
          r"\x{FF1B}\x{FF0C}\x{3001}-\x{303F}\x{FE30}-\x{FE4F}]+|[\x{3105}-\x{312F}]+",
          r"|[\x{4E00}-\x{9FA5}\x{3040}-\x{30FF}]+")),
          Words(concat!(uncased_words!(), r"|\p{N}|", symbols_and_slashes!()))]),
    rules(&["poro-chat", "bloom", "gpt3-finnish"], &[BLOOM]),
    rules(&["viking"], &[BLOOM, DIGIT]),
    Rules { add_bos: true, ..whole_words(&["tekken"],
          &[Words(concat!(cased_words!(r"\p{L}", ""), r"|\p{N}|", symbols_and_slashes!()))]) },
    rules(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[GPT4O]),
    whole_words(&["granite-embed-multi-97m"], &[Words(concat!(
          cased_words!(r"[\p{L}\p{M}]", concat!("(?:", contractions!(), ")?")), r"|\p{N}{1,3}|",
          symbols_and_slashes!()))]),
    rules(&["tiny_aya", "cohere2moe"], &[NumberTriples,
          Words(concat!(uncased_words!(), r"|\p{N}{1,3}|", symbols_and_slashes!()))]),
    rules(&["superbpe"], &[Isolate(r"\p{N}+"), DigitTriples]),
    rules(&["kimi-k2"], &[Words(concat!(han!(), "+",
          r"|[^\r\n\p{L}\p{N}]?[\p{L}--", han!(), "]+(?:", contractions!(), r")?|\p{N}{1,3}|", symbols!()))]),
    Rules { add_bos: true, ..rules(&["chameleon"], &[Isolate("<sentinel:[0-9]+>"), Isolate("IMGIMG[A-I]{1,4}Z"),
          Isolate(r"[\t\n]|    |  "), DIGIT, Isolate(r"[\p{P}!-/:-@\[-`{-~]"), GPT2]) },
    Rules { add_bos: true, ..raw(&["gemma4", "granite-embed-multi-311m"], true) },
    raw(&["sarvam-moe"], false),
];

/// The rules of one name, ready to run.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    splits: Vec<Compiled>,
    ignore_merges: bool,
    add_bos: bool,
    spelling: Spelling,
}

#[derive(Debug)]
enum Compiled {
    Isolate(Regex),
    /// The expression matches white space too. `newlines`: a run that ends with a newline is a piece of its own.
    Words {
        regex: Regex,
        newlines: bool,
    },
    NumberTriples(Regex),
    DigitTriples,
}

impl PreTokenizer {
    /// The rules for a name in `tokenizer.ggml.pre`.
    pub fn new(name: &str) -> Result<PreTokenizer> {
        let rules = TABLE.iter().find(|rules| rules.names.contains(&name)).ok_or_else(|| {
            let mut known: Vec<&str> = TABLE.iter().flat_map(|rules| rules.names).copied().collect();
            known.sort_unstable();
            failed(format!("the pre-tokenizer `{name}` is unknown; known ones: {}", known.join(", ")))
        })?;
        Ok(PreTokenizer {
            splits: rules.splits.iter().map(|split| split.compile()).collect::<Result<_>>()?,
            ignore_merges: rules.ignore_merges,
            add_bos: rules.add_bos,
            spelling: rules.spelling,
        })
    }

    pub fn ignore_merges(&self) -> bool {
        self.ignore_merges
    }

    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    pub fn spelling(&self) -> Spelling {
        self.spelling
    }

    /// Calls `each` with the words of `text`, in order; together they are the text.
    pub fn split<'t>(&self, text: &'t str, mut each: impl FnMut(&'t str)) -> Result<()> {
        let whole = 0..text.len();
        let mut pieces = Vec::from([whole]);
        let mut next = Vec::new();
        for split in &self.splits {
            for piece in pieces.drain(..) {
                split.apply(text, piece, &mut next)?;
            }
            std::mem::swap(&mut pieces, &mut next);
        }
        pieces.into_iter().for_each(|piece| each(&text[piece]));
        Ok(())
    }
}

impl Split {
    fn compile(self) -> Result<Compiled> {
        Ok(match self {
            Isolate(pattern) => Compiled::Isolate(regex(pattern)?),
            Words(pattern) => {
                Compiled::Words { regex: regex(&format!(r"{pattern}|\s+"))?, newlines: pattern.contains(r"\s*[\r\n]") }
            }
            NumberTriples => Compiled::NumberTriples(regex(r"\p{N}+")?),
            DigitTriples => Compiled::DigitTriples,
        })
    }
}

/// Compiles a pattern with the categories as Unicode 15.1 had them, which is what llama.cpp's tables hold.
fn regex(pattern: &str) -> Result<Regex> {
    let mut dated = String::with_capacity(4 * pattern.len());
    let mut rest = pattern;
    while let Some(at) = rest.find(r"\p{") {
        let end = rest[at..].find('}').map_or(rest.len(), |n| at + n + 1);
        dated.push_str(&rest[..at]);
        dated.push_str(&format!(r"[{}&&\p{{age=15.1}}]", &rest[at..end]));
        rest = &rest[end..];
    }
    dated.push_str(rest);
    Regex::new(&dated).map_err(|error| failed(format!("pre-tokenizer rule `{pattern}`: {error}")))
}

impl Compiled {
    /// Cuts one piece of `text` and appends the parts, none of them empty.
    fn apply(&self, text: &str, piece: Range<usize>, parts: &mut Vec<Range<usize>>) -> Result<()> {
        let (text, base) = (&text[piece.clone()], piece.start);
        let mut done = 0;
        let mut cut = |end: usize| {
            if end > done {
                parts.push(base + done..base + end);
                done = end;
            }
        };
        match self {
            Compiled::Isolate(regex) => {
                let mut from = 0;
                while let Some(found) = find(regex, text, from)? {
                    cut(found.start);
                    cut(found.end);
                    from = found.end;
                }
            }
            Compiled::Words { regex, newlines } => {
                let mut from = 0;
                while let Some(mut found) = find(regex, text, from)? {
                    if found.end < text.len() {
                        found.end -= last_space(&text[found.clone()], *newlines);
                    }
                    cut(found.start);
                    cut(found.end);
                    from = found.end;
                }
            }
            Compiled::NumberTriples(regex) => {
                let mut from = 0;
                while let Some(found) = find(regex, text, from)? {
                    let digits = || text[found.clone()].char_indices();
                    let n = digits().count();
                    digits().map(|(at, _)| found.start + at).enumerate().skip(1).for_each(|(i, at)| {
                        if i % 3 == n % 3 {
                            cut(at);
                        }
                    });
                    cut(found.end);
                    from = found.end;
                }
            }
            Compiled::DigitTriples => {
                let bytes = text.as_bytes();
                let mut at = 0;
                while at < bytes.len() {
                    let n = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                    (at..at + n).filter(|i| (at + n - i) % 3 == 0).for_each(&mut cut);
                    at += n.max(1);
                }
            }
        }
        cut(text.len());
        Ok(())
    }
}

/// How many bytes the last character of a run of white space has that stays with the word after it: none if `piece` is
/// anything else than white space, is a single character, or is a piece of its own because it ends a line.
fn last_space(piece: &str, newlines: bool) -> usize {
    let Some(last) = piece.chars().next_back().filter(|c| c.is_whitespace()) else { return 0 };
    let kept = piece.len() == last.len_utf8()
        || (newlines && matches!(last, '\r' | '\n'))
        || !piece.chars().all(char::is_whitespace);
    if kept { 0 } else { last.len_utf8() }
}

/// The next match that is not empty.
fn find(regex: &Regex, text: &str, from: usize) -> Result<Option<Range<usize>>> {
    let found = regex.find_from_pos(text, from).map_err(failed)?;
    Ok(found.map(|found| found.range()).filter(|range| !range.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<'t>(name: &str, text: &'t str) -> Vec<&'t str> {
        let mut words = Vec::new();
        PreTokenizer::new(name).unwrap().split(text, |word| words.push(word)).unwrap();
        words
    }

    #[test]
    fn a_name_has_one_meaning() {
        let mut names: Vec<&str> = TABLE.iter().flat_map(|rules| rules.names).copied().collect();
        let n = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), n);
    }

    #[test]
    fn nothing_is_lost_and_no_word_is_empty() {
        let text = "  I'm\u{3000}12345 x\u{a0} '\r\n\n<sentinel:7>你好 e\u{301} \u{1c89}\u{e000}\u{10ffff}\0 \t";
        for rules in TABLE {
            let words = words(rules.names[0], text);
            assert_eq!(words.concat(), text, "{}", rules.names[0]);
            assert!(words.iter().all(|word| !word.is_empty()));
        }
    }

    #[test]
    fn white_space_leaves_its_last_character_to_the_next_word() {
        assert_eq!(words("gpt-2", "a   b \n\nc  "), ["a", "  ", " b", " \n", "\n", "c", "  "]);
        assert_eq!(words("llama3", "a   b \n\nc  \n d"), ["a", "  ", " b", " \n\n", "c", "  \n", " d"]);
        assert_eq!(words("llama3", "a\t\tb"), ["a", "\t", "\tb"]);
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(words("llama3", "1234567"), ["123", "456", "7"]);
        assert_eq!(words("smollm", "123"), ["1", "2", "3"]);
        assert_eq!(words("superbpe", "a1234567"), ["a", "1", "234", "567"]);
        assert_eq!(words("afmoe", "12345"), ["12", "345"]);
    }

    #[test]
    fn categories_are_those_of_unicode_15_1() {
        // U+1C89 became a letter in Unicode 16.
        assert_eq!(words("gpt-2", "a\u{1c89}b"), ["a", "\u{1c89}", "b"]);
        assert_eq!(words("gpt-2", "a\u{1c88}b"), ["a\u{1c88}b"]);
    }
}
