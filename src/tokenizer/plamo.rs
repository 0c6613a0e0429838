//! PLaMo's vocabularies (`tokenizer.ggml.model = "plamo2"`: PLaMo 2 and 3): of all ways to spell a text in tokens, the one whose scores add up to
//! most. A character that no token begins with is spelled in bytes, at a price above that of any token.
//!
//! The best spelling of what follows each character is found from the end of the text to its beginning. Scores are whole numbers, of 1/10000, so
//! that their sums are exact. Of equally good tokens the longer one counts.

use ggml_ext::gguf::Gguf;

use super::prefixes::Prefixes;
use super::vocab::{Attr, NONE, Vocab, check_len};
use super::{failed, key};
use crate::Result;

/// Units of a score.
const UNITS: f64 = 1e4;
/// Tokens with scores up to this are never used.
const UNUSABLE: i64 = -20_000_000;
/// The score of a character that is spelled in bytes.
const IN_BYTES: i64 = -10_000_000;
/// What a text may begin with, which is no part of it.
const BYTE_ORDER_MARK: char = '\u{feff}';

#[derive(Debug)]
pub(super) struct Plamo {
    /// The tokens that texts are spelled in.
    prefixes: Prefixes,
    /// The score of every token.
    scores: Vec<i64>,
    /// The token that stands for each byte.
    bytes: Box<[u32; 256]>,
}

/// The best spelling of what follows a place in a text.
#[derive(Clone, Copy)]
struct Best {
    /// The sum of its scores.
    score: i64,
    /// Bytes of its first token, and which it is: [`NONE`] where it is a character in bytes.
    len: u32,
    id: u32,
}

impl Plamo {
    /// Reads the scores.
    pub fn from_gguf(g: &Gguf, vocab: &Vocab) -> Result<Plamo> {
        let scores = g.f32s(key::SCORES).map_err(failed)?;
        let scores = scores.ok_or_else(|| failed(format!("`{}` is missing", key::SCORES)))?;
        check_len(key::SCORES, scores.len(), vocab.len())?;
        let units = |score: &f32| if score.is_finite() { (f64::from(*score) * UNITS).round() as i64 } else { UNUSABLE };
        let scores: Vec<i64> = scores.iter().map(units).collect();
        let usable = |&id: &u32| !vocab.attr(id).has(Attr::BYTE) && scores[id as usize] > UNUSABLE;
        let prefixes = Prefixes::new((0..vocab.len() as u32).filter(usable), |id| vocab.text(id).as_bytes());
        let mut bytes = Box::new([NONE; 256]);
        for byte in 0..=255u8 {
            bytes[byte as usize] =
                vocab.byte_fallback(byte).ok_or_else(|| failed(format!("there is no token `<0x{byte:02X}>`")))?;
        }
        Ok(Plamo { prefixes, scores, bytes })
    }

    /// Appends the tokens of `text`.
    pub fn encode(&self, vocab: &Vocab, text: &str, ids: &mut Vec<u32>) {
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
        let mut best = vec![Best { score: 0, len: 0, id: NONE }; text.len() + 1];
        for (start, c) in text.char_indices().rev() {
            let len = c.len_utf8();
            let mut here = Best { score: best[start + len].score + IN_BYTES, len: len as u32, id: NONE };
            let of_token = |id| vocab.text(id).as_bytes();
            self.prefixes.of(&text.as_bytes()[start..], of_token, |id, len| {
                let score = best[start + len].score + self.scores[id as usize];
                if score >= here.score {
                    here = Best { score, len: len as u32, id };
                }
            });
            best[start] = here;
        }
        let mut start = 0;
        while start < text.len() {
            let Best { len, id, .. } = best[start];
            let end = start + len as usize;
            match id {
                NONE => ids.extend(text.as_bytes()[start..end].iter().map(|&byte| self.bytes[byte as usize])),
                id => ids.push(id),
            }
            start = end;
        }
    }
}
