//! The tokenizer as the sampler sees it.

use std::borrow::Cow;

use super::sampler::SamplerVocab;
use crate::Result;
use crate::tokenizer::Tokenizer;

impl SamplerVocab for Tokenizer {
    fn n_vocab(&self) -> usize {
        Tokenizer::n_vocab(self)
    }
    fn is_eog(&self, id: u32) -> bool {
        Tokenizer::is_eog(self, id)
    }
    fn suppressed(&self) -> &[u32] {
        Tokenizer::suppressed(self)
    }
    fn token_bytes(&self, id: u32) -> Cow<'_, [u8]> {
        Tokenizer::token_bytes(self, id, true)
    }
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Tokenizer::encode(self, text, false, false)
    }
}
