//! The token list: text, attributes and the lookup from text to id.

use std::hash::BuildHasher;

use ggml_ext::gguf::Gguf;
use hashbrown::{DefaultHashBuilder, HashTable};

use super::{failed, key};
use crate::Result;

/// Marks "no token" in the tables of this module's siblings.
pub(super) const NONE: u32 = u32::MAX;

/// What a token is, as a set of flags: the types of `tokenizer.ggml.token_type`, which the text of a token can widen
/// (`<|im_end|>` is a control token even where the file calls it normal), and whitespace stripping beside it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Attr(pub u8);

impl Attr {
    pub const NONE: Attr = Attr(0);
    pub const NORMAL: Attr = Attr(1);
    pub const UNKNOWN: Attr = Attr(2);
    pub const CONTROL: Attr = Attr(4);
    pub const USER_DEFINED: Attr = Attr(8);
    pub const BYTE: Attr = Attr(16);
    /// Whitespace before the token is dropped when its text is matched.
    pub const LSTRIP: Attr = Attr(32);
    /// Whitespace after the token is dropped when its text is matched.
    pub const RSTRIP: Attr = Attr(64);

    /// Whether any flag of `other` is set.
    pub fn has(self, other: Attr) -> bool {
        self.0 & other.0 != 0
    }

    pub fn with(self, other: Attr) -> Attr {
        Attr(self.0 | other.0)
    }

    pub fn without(self, other: Attr) -> Attr {
        Attr(self.0 & !other.0)
    }

    /// From the number in `tokenizer.ggml.token_type`. Undefined (0) and unused (5) tokens carry no flag: they can be
    /// the result of tokenising but print nothing.
    fn from_type(number: i32) -> Option<Attr> {
        Some(match number {
            0 | 5 => Attr::NONE,
            1 => Attr::NORMAL,
            2 => Attr::UNKNOWN,
            3 => Attr::CONTROL,
            4 => Attr::USER_DEFINED,
            6 => Attr::BYTE,
            _ => return None,
        })
    }
}

/// All tokens, their texts end to end in one allocation: a vocabulary of 262,144 tokens costs 6 MB instead of the
/// 30 MB of a string and a map entry each.
#[derive(Debug)]
pub(super) struct Vocab {
    texts: String,
    /// Where each token's text ends in `texts`.
    ends: Vec<u32>,
    attrs: Vec<Attr>,
    by_text: HashTable<u32>,
    hasher: DefaultHashBuilder,
    longest: usize,
}

impl Vocab {
    /// Reads `tokenizer.ggml.tokens` and `tokenizer.ggml.token_type`.
    pub fn from_gguf(g: &Gguf) -> Result<Vocab> {
        let tokens =
            g.strings(key::TOKENS).map_err(failed)?.ok_or_else(|| failed(format!("`{}` is missing", key::TOKENS)))?;
        if tokens.is_empty() || tokens.len() >= i32::MAX as usize {
            return Err(failed(format!("`{}` has {} entries", key::TOKENS, tokens.len())));
        }
        let types = g.i32s(key::TOKEN_TYPE).map_err(failed)?;
        if let Some(types) = &types {
            check_len(key::TOKEN_TYPE, types.len(), tokens.len())?;
        }

        let bytes: usize = tokens.iter().map(str::len).sum();
        if bytes > u32::MAX as usize / 2 {
            return Err(failed(format!("`{}` holds {bytes} bytes of text", key::TOKENS)));
        }
        let mut vocab = Vocab {
            texts: String::with_capacity(bytes),
            ends: Vec::with_capacity(tokens.len()),
            attrs: Vec::with_capacity(tokens.len()),
            by_text: HashTable::with_capacity(tokens.len()),
            hasher: DefaultHashBuilder::default(),
            longest: 0,
        };
        for (id, text) in tokens.iter().enumerate() {
            let attr = match types.as_ref().map(|types| types[id]) {
                None => Attr::NORMAL,
                Some(number) => Attr::from_type(number).ok_or_else(|| {
                    failed(format!("`{}`: entry {id} is {number}, and types go from 0 to 6", key::TOKEN_TYPE))
                })?,
            };
            if text.is_empty() {
                // Some conversions leave holes; they keep their id under a name no text produces.
                vocab.push(&format!("[EMPTY_{id}]"), attr)?;
            } else {
                vocab.push(text, attr)?;
            }
        }
        Ok(vocab)
    }

    fn push(&mut self, text: &str, attr: Attr) -> Result<()> {
        let id = self.ends.len() as u32;
        if let Some(other) = self.id(text) {
            return Err(failed(format!("tokens {other} and {id} are both `{text}`")));
        }
        self.texts.push_str(text);
        self.ends.push(self.texts.len() as u32);
        self.attrs.push(attr);
        self.longest = self.longest.max(text.len());
        let (texts, ends, hasher) = (&self.texts, &self.ends, &self.hasher);
        self.by_text.insert_unique(hasher.hash_one(text), id, |&other| hasher.hash_one(slice(texts, ends, other)));
        Ok(())
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Length of the longest text, in bytes.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// A token's text as the file spells it (byte-level encoded, or with U+2581 for spaces). The id must be in range.
    pub fn text(&self, id: u32) -> &str {
        slice(&self.texts, &self.ends, id)
    }

    /// The token with exactly this text.
    pub fn id(&self, text: &str) -> Option<u32> {
        self.by_text.find(self.hasher.hash_one(text), |&id| self.text(id) == text).copied()
    }

    /// The id of `<0xXX>`, the spelling of a raw byte in vocabularies that fall back to bytes.
    pub fn byte_fallback(&self, byte: u8) -> Option<u32> {
        self.id(&format!("<0x{byte:02X}>"))
    }

    pub fn attr(&self, id: u32) -> Attr {
        self.attrs[id as usize]
    }

    pub fn set_attr(&mut self, id: u32, attr: Attr) {
        self.attrs[id as usize] = attr;
    }
}

fn slice<'a>(texts: &'a str, ends: &[u32], id: u32) -> &'a str {
    let start = if id == 0 { 0 } else { ends[id as usize - 1] };
    &texts[start as usize..ends[id as usize] as usize]
}

/// Refuses an array that does not have one entry per token.
pub(super) fn check_len(key: &str, len: usize, n_tokens: usize) -> Result<()> {
    if len == n_tokens { Ok(()) } else { Err(failed(format!("`{key}` has {len} entries for {n_tokens} tokens"))) }
}

/// The byte that a token of the form `<0xXX>` stands for.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() != 2 || !hex.bytes().all(|c| c.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(hex, 16).ok()
}
