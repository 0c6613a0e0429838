//! SentencePiece vocabularies (`tokenizer.ggml.model = "llama"`): merges by score.
//!
//! The text, with U+2581 for spaces, starts as single characters; of all neighbours that together are a token, those with
//! the highest score merge first, the leftmost among equals, until none is left. What is still not a token falls back
//! to the tokens of its bytes. There are no rules for words: vocabularies have tokens that hold several spaces or words.
//! But where no token has a space after the character before it, nothing can merge across, and the text may be cut
//! ([`SpaceCuts`]); this makes a megabyte of text a matter of short, repeating words.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use ggml_ext::gguf::Gguf;
use hashbrown::{HashMap, HashSet};

use super::vocab::{NONE, Vocab, check_len};
use super::{SPACE, failed, key};
use crate::Result;

#[derive(Debug)]
pub(super) struct Spm {
    cuts: SpaceCuts,
    scores: Vec<f32>,
    /// The token that stands for each byte.
    bytes: Box<[u32; 256]>,
}

/// Where text spelled with U+2581 for spaces can be cut without changing its tokens.
#[derive(Debug)]
pub(super) struct SpaceCuts {
    /// The characters that some token or merge joins with a space after them.
    joined: HashSet<char>,
}

impl SpaceCuts {
    /// From all texts that merging can produce.
    pub fn new<'a>(texts: impl Iterator<Item = &'a str>) -> SpaceCuts {
        let mut joined = HashSet::new();
        for text in texts {
            for (at, _) in text.match_indices(SPACE) {
                joined.extend(text[..at].chars().next_back());
            }
        }
        SpaceCuts { joined }
    }

    /// The parts of `text`, in order.
    pub fn cut<'s, 't>(&'s self, text: &'t str) -> impl Iterator<Item = &'t str> + use<'s, 't> {
        let mut rest = text;
        std::iter::from_fn(move || {
            let end = rest
                .match_indices(SPACE)
                .map(|(at, _)| at)
                .find(|&at| rest[..at].chars().next_back().is_some_and(|before| !self.joined.contains(&before)));
            let (part, after) = rest.split_at(end.unwrap_or(rest.len()));
            rest = after;
            Some(part).filter(|part| !part.is_empty())
        })
    }
}

/// A piece of the text: `len` bytes at `start`, linked to its neighbours. `len` 0: merged into the one before.
struct Symbol {
    start: u32,
    len: u32,
    prev: u32,
    next: u32,
}

/// Two neighbours that are a token together. `len` tells whether either has changed since.
struct Candidate {
    score: f32,
    left: u32,
    right: u32,
    len: u32,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

impl Spm {
    /// Reads the scores; `unknown` stands for bytes that have no token of their own.
    pub fn from_gguf(g: &Gguf, vocab: &Vocab, unknown: Option<u32>) -> Result<Spm> {
        let mut scores = match g.get(key::SCORES) {
            None => return Err(failed(format!("`{}` is missing", key::SCORES))),
            Some(value) => match g.f32s(key::SCORES) {
                Ok(scores) => scores.unwrap_or_default(),
                // Some conversions number the tokens by rank instead.
                Err(error) => match value.as_array().map(|_| g.i32s(key::SCORES)) {
                    Some(Ok(Some(ranks))) => ranks.into_iter().map(|rank| rank as f32).collect(),
                    _ => return Err(failed(error)),
                },
            },
        };
        check_len(key::SCORES, scores.len(), vocab.len())?;
        for (id, score) in scores.iter_mut().enumerate() {
            if score.is_nan() {
                return Err(failed(format!("`{}`: entry {id} is not a number", key::SCORES)));
            }
            // Makes -0 equal to 0 in the total order.
            *score += 0.0;
        }
        let mut bytes = Box::new([NONE; 256]);
        for byte in 0..=255u8 {
            let single = || byte.is_ascii().then(|| vocab.id((byte as char).encode_utf8(&mut [0]))).flatten();
            bytes[byte as usize] = vocab
                .byte_fallback(byte)
                .or_else(single)
                .or(unknown)
                .ok_or_else(|| failed(format!("there is neither a token `<0x{byte:02X}>` nor an unknown token")))?;
        }
        let cuts = SpaceCuts::new((0..vocab.len() as u32).map(|id| vocab.text(id)));
        Ok(Spm { cuts, scores, bytes })
    }

    /// Appends the tokens of `text`, in which spaces are U+2581 already.
    pub fn encode(&self, vocab: &Vocab, text: &str, ids: &mut Vec<u32>) {
        let mut symbols = Vec::new();
        let mut queue = BinaryHeap::new();
        let mut seen: HashMap<&str, (usize, usize)> = HashMap::new();
        for word in self.cuts.cut(text) {
            if let Some(&(start, n)) = seen.get(word) {
                ids.extend_from_within(start..start + n);
                continue;
            }
            let start = ids.len();
            self.encode_word(vocab, word, &mut symbols, &mut queue, ids);
            if word.len() <= 32 {
                seen.insert(word, (start, ids.len() - start));
            }
        }
    }

    fn encode_word(
        &self,
        vocab: &Vocab,
        text: &str,
        symbols: &mut Vec<Symbol>,
        queue: &mut BinaryHeap<Candidate>,
        ids: &mut Vec<u32>,
    ) {
        symbols.clear();
        queue.clear();
        for (start, c) in text.char_indices() {
            let index = symbols.len() as u32;
            symbols.push(Symbol {
                start: start as u32,
                len: c.len_utf8() as u32,
                prev: index.wrapping_sub(1),
                next: index + 1,
            });
        }
        let Some(last) = symbols.last_mut() else { return };
        last.next = NONE;

        let consider = |symbols: &[Symbol], queue: &mut BinaryHeap<Candidate>, left: u32, right: u32| {
            if left == NONE || right == NONE {
                return;
            }
            let start = symbols[left as usize].start as usize;
            let len = symbols[left as usize].len + symbols[right as usize].len;
            if len as usize > vocab.longest() {
                return;
            }
            if let Some(id) = vocab.id(&text[start..start + len as usize]) {
                queue.push(Candidate { score: self.scores[id as usize], left, right, len });
            }
        };
        for right in 1..symbols.len() as u32 {
            consider(symbols, queue, right - 1, right);
        }
        while let Some(Candidate { left, right, len, .. }) = queue.pop() {
            let (left_len, right_len) = (symbols[left as usize].len, symbols[right as usize].len);
            if left_len == 0 || right_len == 0 || left_len + right_len != len {
                continue;
            }
            let next = symbols[right as usize].next;
            symbols[right as usize].len = 0;
            symbols[left as usize].len = len;
            symbols[left as usize].next = next;
            if next != NONE {
                symbols[next as usize].prev = left;
            }
            consider(symbols, queue, symbols[left as usize].prev, left);
            consider(symbols, queue, left, next);
        }

        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let piece = &text[symbol.start as usize..(symbol.start + symbol.len) as usize];
            match vocab.id(piece) {
                Some(id) => ids.push(id),
                None => ids.extend(piece.bytes().map(|byte| self.bytes[byte as usize])),
            }
        }
    }
}
