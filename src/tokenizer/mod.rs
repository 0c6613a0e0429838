//! Text to token ids and back, from the metadata of a GGUF file.
//!
//! Four kinds of vocabulary are known: SentencePiece (`llama`: Llama 2, Mistral, Gemma), byte-pair encoding (`gpt2`, and
//! `gemma4`, which spells its words as SentencePiece does), PLaMo's (`plamo2`) and RWKV's (`rwkv`). The ids are those of llama.cpp b11434 for every text; the
//! tests compare with its results.

mod bpe;
mod plamo;
mod pre;
mod prefixes;
mod special;
mod spm;
mod stream;
mod vocab;
mod world;

use std::borrow::Cow;
use std::fmt::Display;

use ggml_ext::gguf::Gguf;

pub use stream::StreamDecoder;

use crate::{Error, Result};
use bpe::Bpe;
use plamo::Plamo;
use pre::{PreTokenizer, Spelling};
use special::{Finder, Fragment, Roles};
use spm::Spm;
use vocab::{Attr, Vocab, byte_of};
use world::World;

/// Metadata keys.
mod key {
    pub const MODEL: &str = "tokenizer.ggml.model";
    pub const PRE: &str = "tokenizer.ggml.pre";
    pub const TOKENS: &str = "tokenizer.ggml.tokens";
    pub const SCORES: &str = "tokenizer.ggml.scores";
    pub const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
    pub const MERGES: &str = "tokenizer.ggml.merges";
    pub const BOS: &str = "tokenizer.ggml.bos_token_id";
    pub const EOS: &str = "tokenizer.ggml.eos_token_id";
    pub const EOT: &str = "tokenizer.ggml.eot_token_id";
    pub const EOM: &str = "tokenizer.ggml.eom_token_id";
    pub const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
    pub const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
    pub const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
    pub const SUPPRESS: &str = "tokenizer.ggml.suppress_tokens";
    pub const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
}

/// What stands for a space in SentencePiece vocabularies.
const SPACE: &str = "\u{2581}";

/// The longest text that is tokenised in one call, in bytes.
const MAX_TEXT: usize = 1 << 30;

/// A model's vocabulary and the rules to apply it. It owns its data: the file may be closed.
#[derive(Debug)]
pub struct Tokenizer {
    vocab: Vocab,
    model: Model,
    roles: Roles,
    finder: Finder,
    add_bos: bool,
    add_eos: bool,
    add_space_prefix: bool,
    suppressed: Vec<u32>,
}

#[derive(Debug)]
enum Model {
    Spm(Spm),
    Bpe(Bpe),
    Plamo(Plamo),
    World(World),
}

fn failed(what: impl Display) -> Error {
    Error::Tokenizer(what.to_string())
}

impl Tokenizer {
    /// Builds the tokenizer that the `tokenizer.ggml.*` keys describe.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] naming the key: a vocabulary or pre-tokenizer of another kind than those known here, arrays that
    /// do not agree in length, duplicate tokens, malformed merges, ids out of range.
    pub fn from_gguf(g: &Gguf) -> Result<Tokenizer> {
        let model = g.str(key::MODEL).map_err(failed)?.ok_or_else(|| failed(format!("`{}` is missing", key::MODEL)))?;
        let pre = match model {
            "llama" | "plamo2" | "rwkv" => None,
            "gpt2" => Some(g.str(key::PRE).map_err(failed)?.filter(|name| !name.is_empty()).unwrap_or("default")),
            "gemma4" => Some("gemma4"),
            _ => {
                return Err(failed(format!(
                    "`{}` is `{model}`; known kinds: llama (SentencePiece), gpt2 and gemma4 (byte-pair encoding), \
                     plamo2, rwkv",
                    key::MODEL
                )));
            }
        };
        let pre = pre.map(PreTokenizer::new).transpose()?;
        let [is_spm, is_plamo, is_world] = ["llama", "plamo2", "rwkv"].map(|kind| model == kind);

        let mut vocab = Vocab::from_gguf(g)?;
        for id in 0..vocab.len() as u32 {
            if !is_world && vocab.attr(id).has(Attr::BYTE) && byte_of(vocab.text(id)).is_none() {
                return Err(failed(format!("token {id} is a byte and reads `{}`, not `<0xXX>`", vocab.text(id))));
            }
        }
        let roles = Roles::from_gguf(g, &mut vocab, is_spm || is_plamo)?;
        let finder = Finder::new(g, &mut vocab)?;

        let flag = |key: &str, default: bool| Ok(g.bool(key).map_err(failed)?.unwrap_or(default));
        let add_space_prefix = flag(key::ADD_SPACE_PREFIX, is_spm)?;
        let mut add_bos = flag(key::ADD_BOS, pre.as_ref().map_or(is_spm, PreTokenizer::add_bos))?;
        if pre.as_ref().is_some_and(|pre| pre.spelling() == Spelling::Raw { newline_tokens: true }) {
            // Files of Gemma 4 are known to say false by mistake.
            add_bos = true;
        }
        let mut add_eos = flag(key::ADD_EOS, false)?;
        if is_world {
            // Whatever the file says.
            (add_bos, add_eos) = (false, false);
        }
        // Files number padding here that the vocabulary does not have.
        let suppressed = g.i32s(key::SUPPRESS).map_err(failed)?.unwrap_or_default();
        let suppressed = suppressed.into_iter().filter_map(|id| u32::try_from(id).ok());
        let suppressed = suppressed.filter(|&id| (id as usize) < vocab.len()).collect();
        for (wanted, id, key) in [(add_bos, roles.bos, key::BOS), (add_eos, roles.eos, key::EOS)] {
            if wanted && id.is_none() {
                return Err(failed(format!("the model wants the token of `{key}` added, and the key is missing")));
            }
        }
        let model = match pre {
            Some(pre) => Model::Bpe(Bpe::from_gguf(g, &vocab, pre)?),
            None if is_world => Model::World(World::new(&vocab, roles.unknown)),
            None if is_plamo => Model::Plamo(Plamo::from_gguf(g, &vocab)?),
            None => Model::Spm(Spm::from_gguf(g, &vocab, roles.unknown)?),
        };
        Ok(Tokenizer { vocab, model, roles, finder, add_bos, add_eos, add_space_prefix, suppressed })
    }

    /// Tokenises `text`.
    ///
    /// `add_special` puts the BOS token before and the EOS token after it where the model asks for them. With
    /// `parse_special` the texts of control tokens in `text` (`<|im_start|>`) become those tokens; without, they are text like
    /// any other. User-defined tokens are always recognised.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the text is longer than 1 GiB.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>> {
        if text.len() > MAX_TEXT {
            return Err(failed(format!("the text has {} bytes and may have {MAX_TEXT}", text.len())));
        }
        let mut ids = Vec::new();
        if add_special && self.add_bos {
            ids.extend(self.roles.bos);
        }
        let mut after_special = true;
        for fragment in self.finder.cut(&self.vocab, text, parse_special) {
            let range = match fragment {
                Fragment::Token(id) => {
                    ids.push(id);
                    after_special = true;
                    continue;
                }
                Fragment::Text(range) => range,
            };
            match &self.model {
                Model::Spm(spm) => {
                    let prefix = if self.add_space_prefix && after_special { SPACE } else { "" };
                    spm.encode(&self.vocab, &[prefix, &text[range].replace(' ', SPACE)].concat(), &mut ids);
                }
                Model::Plamo(plamo) => plamo.encode(&self.vocab, &text[range], &mut ids),
                Model::World(world) => world.encode(&text[range], &mut ids),
                Model::Bpe(bpe) => match bpe.pre().spelling() {
                    Spelling::ByteLevel => bpe.encode(&self.vocab, &text[range], &mut ids)?,
                    Spelling::Raw { .. } => bpe.encode(&self.vocab, &text[range].replace(' ', SPACE), &mut ids)?,
                },
            }
            after_special = false;
        }
        if add_special && self.add_eos {
            ids.extend(self.roles.eos);
        }
        Ok(ids)
    }

    /// The bytes a token prints. Control and unknown tokens print nothing unless `special`, and then their text. The bytes
    /// of one token need not be whole characters: see [`StreamDecoder`]. Ids out of range print nothing.
    pub fn token_bytes(&self, id: u32, special: bool) -> Cow<'_, [u8]> {
        const EMPTY: Cow<[u8]> = Cow::Borrowed(&[]);
        if id as usize >= self.vocab.len() {
            return EMPTY;
        }
        let (text, attr) = (self.vocab.text(id), self.vocab.attr(id));
        let hidden = Attr::CONTROL.with(Attr::UNKNOWN);
        if let Model::World(world) = &self.model {
            return if special || !attr.has(hidden) { Cow::Borrowed(world.bytes(id)) } else { EMPTY };
        }
        if attr.has(hidden.with(Attr::USER_DEFINED)) {
            return if special || !attr.has(hidden) { Cow::Borrowed(text.as_bytes()) } else { EMPTY };
        }
        if attr.has(Attr::BYTE) {
            return byte_of(text).map_or(EMPTY, |byte| Cow::Owned(vec![byte]));
        }
        if let Model::Plamo(_) = self.model {
            return Cow::Borrowed(text.as_bytes());
        }
        if !attr.has(Attr::NORMAL) {
            return EMPTY;
        }
        match &self.model {
            Model::Bpe(bpe) if bpe.pre().spelling() == Spelling::ByteLevel => {
                let mut bytes = Vec::with_capacity(text.len());
                for c in text.chars() {
                    match bpe::char_to_byte(c) {
                        Some(byte) => bytes.push(byte),
                        // Not spelled in bytes: the text itself.
                        None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                    }
                }
                Cow::Owned(bytes)
            }
            _ if text.contains(SPACE) => Cow::Owned(text.replace(SPACE, " ").into_bytes()),
            _ => Cow::Borrowed(text.as_bytes()),
        }
    }

    /// The text of a sequence: the inverse of [`encode`](Self::encode). The space that `encode` puts before the first word
    /// is taken off again; bytes that are not UTF-8 become U+FFFD. Nothing else is tidied up.
    pub fn decode(&self, ids: &[u32], special: bool) -> String {
        let mut bytes = Vec::new();
        let mut strip = self.add_space_prefix;
        for &id in ids {
            let piece = self.token_bytes(id, special);
            let is_first_word = strip && !self.is_control(id);
            let from = usize::from(is_first_word && piece.first() == Some(&b' '));
            strip &= !is_first_word;
            bytes.extend_from_slice(&piece[from..]);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// How many tokens the vocabulary has.
    pub fn n_vocab(&self) -> usize {
        self.vocab.len()
    }

    /// The token that starts a text.
    pub fn bos(&self) -> Option<u32> {
        self.roles.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.roles.eos
    }

    /// The token that ends a turn of a chat.
    pub fn eot(&self) -> Option<u32> {
        self.roles.eot
    }

    /// The token that ends a message of several in a turn.
    pub fn eom(&self) -> Option<u32> {
        self.roles.eom
    }

    /// The token for what the vocabulary cannot express.
    pub fn unknown(&self) -> Option<u32> {
        self.roles.unknown
    }

    /// Whether generation ends with this token.
    pub fn is_eog(&self, id: u32) -> bool {
        self.roles.is_eog(id)
    }

    /// All tokens that end generation, ascending.
    pub fn eog(&self) -> &[u32] {
        &self.roles.eog
    }

    /// Tokens that are part of texts and that the model must not generate: placeholders of images and sounds, for one.
    pub fn suppressed(&self) -> &[u32] {
        &self.suppressed
    }

    /// Whether the token is a control or unknown token, which prints nothing.
    pub fn is_control(&self, id: u32) -> bool {
        (id as usize) < self.vocab.len() && self.vocab.attr(id).has(Attr::CONTROL.with(Attr::UNKNOWN))
    }

    /// Whether the model wants its text to start with [`bos`](Self::bos).
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// Whether the model wants its text to end with [`eos`](Self::eos).
    pub fn add_eos(&self) -> bool {
        self.add_eos
    }

    /// A token's text as the vocabulary spells it; empty for ids out of range.
    pub fn token_text(&self, id: u32) -> &str {
        if (id as usize) < self.vocab.len() { self.vocab.text(id) } else { "" }
    }

    /// The token with exactly this spelling in the vocabulary.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.vocab.id(text)
    }
}
