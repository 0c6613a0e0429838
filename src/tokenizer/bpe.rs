//! Byte-pair encoding (`tokenizer.ggml.model = "gpt2"`): merges by rank, inside the words that [`super::pre`] cuts.
//!
//! The `tokenizers` crate was measured and left out: building its `BPE` for Qwen2 (151,936 tokens, 151,387 merges) took
//! 0.24 s of processor time and 40 MB of resident memory, this module takes 0.1 s and 10 MB; and it refuses merges whose
//! result is no token, which llama.cpp accepts. The merge loop itself is sixty lines.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use ggml_ext::gguf::Gguf;
use hashbrown::HashMap;

use super::pre::{PreTokenizer, Spelling};
use super::spm::SpaceCuts;
use super::vocab::{NONE, Vocab};
use super::{failed, key};
use crate::Result;

#[derive(Debug)]
pub(super) struct Bpe {
    pre: PreTokenizer,
    /// Pair of symbols -> what it becomes. A symbol is a token id, or `vocab.len() + i` for entry i of `extra`.
    merges: HashMap<(u32, u32), Merge>,
    /// Texts that merges mention and the vocabulary lacks, usually none.
    extra: HashMap<String, u32>,
    /// The symbol of each byte: its byte-level character, or `<0xXX>` where words are spelled raw.
    bytes: Box<[u32; 256]>,
    /// Where words spelled raw can be cut further.
    cuts: Option<SpaceCuts>,
}

#[derive(Debug, Clone, Copy)]
struct Merge {
    rank: u32,
    symbol: u32,
}

/// A piece of the word: `len` bytes at `start`, linked to its neighbours. `len` 0: merged into the one before.
struct Symbol {
    id: u32,
    start: u32,
    len: u32,
    prev: u32,
    next: u32,
}

/// Two neighbours that merge: lower rank first, then further left. The ids tell whether either has changed since.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: u32,
    right: u32,
    left_id: u32,
    right_id: u32,
}

/// Working memory of one [`Bpe::encode`] call.
#[derive(Default)]
struct Scratch {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<Candidate>>,
    spelled: String,
}

impl Bpe {
    /// Reads the merges.
    pub fn from_gguf(g: &Gguf, vocab: &Vocab, pre: PreTokenizer) -> Result<Bpe> {
        let lines =
            g.strings(key::MERGES).map_err(failed)?.ok_or_else(|| failed(format!("`{}` is missing", key::MERGES)))?;
        if lines.len() + vocab.len() >= i32::MAX as usize {
            return Err(failed(format!("`{}` has {} entries", key::MERGES, lines.len())));
        }
        let mut merges = HashMap::with_capacity(lines.len());
        let mut extra: HashMap<String, u32> = HashMap::new();
        let mut symbol = |text: &str| {
            vocab.id(text).unwrap_or_else(|| {
                let next = (vocab.len() + extra.len()) as u32;
                *extra.entry_ref(text).or_insert(next)
            })
        };
        let mut both = String::new();
        for (rank, line) in lines.iter().enumerate() {
            // The first character belongs to the left part even if it is a space.
            let split = line.char_indices().skip(1).find(|&(_, c)| c == ' ').map(|(at, _)| at);
            let Some((left, right)) = split.map(|at| (&line[..at], &line[at + 1..])).filter(|(_, r)| !r.is_empty())
            else {
                return Err(failed(format!(
                    "`{}`: entry {rank} is `{line}`, and a merge is two parts with a space between",
                    key::MERGES
                )));
            };
            both.clear();
            both.push_str(left);
            both.push_str(right);
            let merge = Merge { rank: rank as u32, symbol: symbol(&both) };
            merges.entry((symbol(left), symbol(right))).or_insert(merge);
        }
        let mut bytes = Box::new([NONE; 256]);
        for byte in 0..=255u8 {
            let id = match pre.spelling() {
                Spelling::ByteLevel => {
                    let text = byte_to_char(byte).to_string();
                    vocab.id(&text).or_else(|| extra.get(text.as_str()).copied())
                }
                Spelling::Raw { .. } => vocab.byte_fallback(byte),
            };
            bytes[byte as usize] = id.unwrap_or(NONE);
        }
        let cuts = matches!(pre.spelling(), Spelling::Raw { .. }).then(|| {
            let texts = (0..vocab.len() as u32).map(|id| vocab.text(id));
            SpaceCuts::new(texts.chain(extra.keys().map(String::as_str)))
        });
        Ok(Bpe { pre, merges, extra, bytes, cuts })
    }

    pub fn pre(&self) -> &PreTokenizer {
        &self.pre
    }

    /// Appends the tokens of `text`.
    pub fn encode(&self, vocab: &Vocab, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        let mut scratch = Scratch::default();
        // Natural text repeats its words: where each was tokenised first, and into how many ids.
        let mut seen: HashMap<&str, (usize, usize)> = HashMap::new();
        let mut each = |word| {
            if let Some(&(start, n)) = seen.get(word) {
                ids.extend_from_within(start..start + n);
                return;
            }
            let start = ids.len();
            self.encode_word(vocab, word, &mut scratch, ids);
            if word.len() <= 32 {
                seen.insert(word, (start, ids.len() - start));
            }
        };
        self.pre.split(text, |word| match &self.cuts {
            Some(cuts) => cuts.cut(word).for_each(&mut each),
            None => each(word),
        })
    }

    fn encode_word(&self, vocab: &Vocab, word: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let whole = match self.pre.spelling() {
            Spelling::ByteLevel => self.pre.ignore_merges(),
            Spelling::Raw { newline_tokens } => newline_tokens && word.bytes().all(|byte| byte == b'\n'),
        };
        if whole {
            let spelled = &mut scratch.spelled;
            spelled.clear();
            match self.pre.spelling() {
                Spelling::ByteLevel => spelled.extend(word.bytes().map(byte_to_char)),
                Spelling::Raw { .. } => spelled.push_str(word),
            }
            if let Some(id) = vocab.id(spelled) {
                ids.push(id);
                return;
            }
        }

        let Scratch { symbols, queue, .. } = scratch;
        symbols.clear();
        queue.clear();
        let mut push = |id: u32, start: usize, len: usize| {
            let index = symbols.len() as u32;
            symbols.push(Symbol {
                id,
                start: start as u32,
                len: len as u32,
                prev: index.wrapping_sub(1),
                next: index + 1,
            });
        };
        match self.pre.spelling() {
            Spelling::ByteLevel => {
                word.bytes().enumerate().for_each(|(start, byte)| push(self.bytes[byte as usize], start, 1));
            }
            Spelling::Raw { .. } => {
                for (start, c) in word.char_indices() {
                    let text = &word[start..start + c.len_utf8()];
                    let id = vocab.id(text).or_else(|| self.extra.get(text).copied());
                    push(id.unwrap_or(NONE), start, text.len());
                }
            }
        }
        let Some(last) = symbols.last_mut() else { return };
        last.next = NONE;

        let consider = |symbols: &[Symbol], queue: &mut BinaryHeap<Reverse<Candidate>>, left: u32, right: u32| {
            if left == NONE || right == NONE {
                return;
            }
            let (left_id, right_id) = (symbols[left as usize].id, symbols[right as usize].id);
            if let Some(&Merge { rank, .. }) = self.merges.get(&(left_id, right_id)) {
                queue.push(Reverse(Candidate { rank, left, right, left_id, right_id }));
            }
        };
        for right in 1..symbols.len() as u32 {
            consider(symbols, queue, right - 1, right);
        }
        while let Some(Reverse(Candidate { left, right, left_id, right_id, .. })) = queue.pop() {
            let (l, r) = (&symbols[left as usize], &symbols[right as usize]);
            if l.len == 0 || r.len == 0 || (l.id, r.id) != (left_id, right_id) {
                continue;
            }
            let (len, next) = (l.len + r.len, r.next);
            symbols[right as usize].len = 0;
            let l = &mut symbols[left as usize];
            l.id = self.merges[&(left_id, right_id)].symbol;
            l.len = len;
            l.next = next;
            let prev = l.prev;
            if next != NONE {
                symbols[next as usize].prev = left;
            }
            consider(symbols, queue, prev, left);
            consider(symbols, queue, left, next);
        }

        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            if (symbol.id as usize) < vocab.len() {
                ids.push(symbol.id);
                continue;
            }
            // Not a token: the tokens of its bytes. Bytes that the vocabulary lacks are left out, as llama.cpp and
            // Hugging Face's tokenizers do: Falcon has no vertical tab, SmolLM2 no U+0004.
            let bytes = &word.as_bytes()[symbol.start as usize..(symbol.start + symbol.len) as usize];
            let known = bytes.iter().map(|&byte| self.bytes[byte as usize]).filter(|&id| (id as usize) < vocab.len());
            ids.extend(known);
        }
    }
}

/// GPT-2's spelling of a byte as a printable character: printable Latin-1 stands for itself, the other 68 bytes are
/// U+0100 and up, in order.
pub(super) fn byte_to_char(byte: u8) -> char {
    let code = match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => byte as u32,
        0..=0x20 => 0x100 + byte as u32,
        0x7f..=0xa0 => 0x100 + 0x21 + (byte as u32 - 0x7f),
        0xad => 0x143,
    };
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The inverse of [`byte_to_char`].
pub(super) fn char_to_byte(c: char) -> Option<u8> {
    match c as u32 {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_characters_are_one_to_one() {
        let mut chars: Vec<char> = (0..=255).map(byte_to_char).collect();
        for (byte, &c) in chars.iter().enumerate() {
            assert_eq!(char_to_byte(c), Some(byte as u8));
            assert!(!c.is_whitespace() && !c.is_control(), "byte {byte} is spelled {c:?}");
        }
        chars.sort();
        chars.dedup();
        assert_eq!(chars.len(), 256);
        assert_eq!(byte_to_char(b' '), 'Ġ');
        assert_eq!(byte_to_char(b'\n'), 'Ċ');
        assert_eq!(char_to_byte('語'), None);
    }
}
