//! A vocabulary as grammars see it: the bytes that each token adds to a text, sorted for walking through all of them.

use toktrie::{SimpleVob, TokRxInfo, TokTrie};

use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Longer tokens (runs of blanks, rules of dashes) are left out: shorter ones spell the same.
const MAX_TOKEN: usize = 256;

/// The trie counts its nodes, at most one a byte, in 22 bits, and tokens in 24.
const MAX_BYTES: usize = 1 << 22;
const MAX_TOKENS: usize = (1 << 24) - 2;

/// The tokens that texts are made of, and those that end them.
pub(super) struct Tokens {
    /// Tokens that print nothing, control tokens and those that end a text have no bytes here. One token more than
    /// the vocabulary has, see [`Tokens::end`], stands for the end of a text.
    pub trie: TokTrie,
    ends: Vec<u32>,
}

impl Tokens {
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let n = tokenizer.n_vocab();
        let bytes_of = |id: u32| {
            let bytes = if tokenizer.is_eog(id) { Default::default() } else { tokenizer.token_bytes(id, false) };
            // 0xFF, which is never a part of a text, marks what is none for the trie.
            if bytes.len() > MAX_TOKEN || bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) {
                return Vec::new();
            }
            bytes.into_owned()
        };
        let words = (0..n.min(MAX_TOKENS) as u32).map(bytes_of).collect();
        Self::from_words(words, tokenizer.eog().to_vec(), n)
    }

    fn from_words(mut words: Vec<Vec<u8>>, ends: Vec<u32>, n: usize) -> Result<Self> {
        if n > MAX_TOKENS || words.iter().map(Vec::len).sum::<usize>() >= MAX_BYTES {
            return Err(Error::Grammar(format!("the vocabulary of {n} tokens is too large for grammars")));
        }
        words.push(vec![TokTrie::SPECIAL_TOKEN_MARKER, b'e', b'n', b'd']);
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, n as u32), &words);
        Ok(Tokens { trie, ends })
    }

    /// The number that stands for all tokens that end a text.
    pub fn end(&self) -> u32 {
        self.trie.vocab_size() as u32 - 1
    }

    /// Whether the token ends a text.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.binary_search(&id).is_ok()
    }

    /// What the token adds to a text: nothing for tokens that no text has, and for numbers that no token has.
    pub fn bytes(&self, id: u32) -> &[u8] {
        if id < self.end() { self.trie.token(id) } else { &[] }
    }

    /// `allowed` with the tokens that end a text in place of what stands for them.
    pub fn with_ends(&self, mut allowed: SimpleVob, complete: bool) -> SimpleVob {
        allowed.disallow_token(self.end());
        for &id in self.ends.iter().filter(|_| complete) {
            allowed.allow_token(id);
        }
        allowed
    }
}
