//! DRY, "don't repeat yourself" (p-e-w, 2024): a token that would extend a sequence already seen is penalised by
//! `multiplier * base ^ (length of the repetition - allowed length)`. A sequence breaker ends every repetition.

use std::collections::HashMap;

use super::SamplerVocab;
use super::candidates::Candidates;
use super::params::SamplerParams;
use crate::{Error, Result};

/// Breakers are cut to this many bytes, and their tails to [`MAX_TAIL`] tokens, which bounds the search.
const MAX_BREAKER_BYTES: usize = 40;
const MAX_TAIL: usize = 20;

pub(super) struct Dry {
    window: usize,
    /// What was accepted, oldest first; at most twice the window.
    history: Vec<u32>,
    /// First token of a breaker -> the tokens that must follow it (none when the token contains the whole breaker).
    breakers: HashMap<u32, Vec<Vec<u32>>>,
    reversed: Vec<u32>,
    z: Vec<usize>,
    /// (token, length of the repetition it would extend).
    found: Vec<(u32, usize)>,
}

impl Dry {
    /// `None` when the parameters switch DRY off.
    ///
    /// # Errors
    /// [`Error::Params`] for an empty breaker, and the tokenizer's error for one it refuses.
    pub fn new(p: &SamplerParams, vocab: &(impl SamplerVocab + ?Sized), n_ctx: usize) -> Result<Option<Self>> {
        let window = usize::try_from(p.dry_penalty_last_n).unwrap_or(n_ctx);
        if p.dry_multiplier == 0.0 || window == 0 {
            return Ok(None);
        }
        let mut breakers = HashMap::new();
        for breaker in &p.dry_sequence_breakers {
            if breaker.is_empty() {
                return Err(Error::Params("--dry-sequence-breaker: empty (use `none` for no breakers)".into()));
            }
            let mut end = breaker.len().min(MAX_BREAKER_BYTES);
            while !breaker.is_char_boundary(end) {
                end -= 1;
            }
            add_breaker(&mut breakers, &breaker[..end], vocab)?;
        }
        Ok(Some(Dry { window, history: Vec::new(), breakers, reversed: Vec::new(), z: Vec::new(), found: Vec::new() }))
    }

    pub fn accept(&mut self, id: u32) {
        if self.history.len() >= 2 * self.window {
            let keep = self.history.len() - self.window;
            self.history.drain(..keep);
        }
        self.history.push(id);
    }

    pub fn reset(&mut self) {
        self.history.clear();
    }

    pub fn apply(&mut self, c: &mut Candidates, p: &SamplerParams) {
        let allowed = p.dry_allowed_length.max(0) as usize;
        let n = self.history.len().min(self.window);
        if n <= allowed {
            return;
        }
        self.reversed.clear();
        self.reversed.extend(self.history[self.history.len() - n..].iter().rev());
        let limit = self.longest_unbroken();
        if limit < allowed {
            return;
        }
        z_function(&self.reversed, &mut self.z);
        self.found.clear();
        for k in 1..n {
            // The last `length` tokens also stand k tokens earlier, and there the token reversed[k - 1] followed.
            let length = self.z[k].min(limit);
            if length >= allowed {
                self.found.push((self.reversed[k - 1], length));
            }
        }
        // By token, longest repetition first, so that the first of each token counts.
        self.found.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        self.found.dedup_by_key(|f| f.0);
        // base ^ exponent must stay finite.
        let max_exponent = if p.dry_base > 1.000_001 { (f32::MAX.ln() / p.dry_base.ln()) as usize } else { usize::MAX };
        for &(token, length) in &self.found {
            let is_breaker = self.breakers.get(&token).is_some_and(|tails| tails.iter().any(Vec::is_empty));
            if !is_breaker {
                let exponent = (length - allowed).min(max_exponent).min(i32::MAX as usize);
                c.edit(token, |l| l - p.dry_multiplier * p.dry_base.powi(exponent as i32));
            }
        }
    }

    /// How many of the last tokens lie after the most recent breaker.
    fn longest_unbroken(&self) -> usize {
        let r = &self.reversed;
        for (i, head) in r.iter().enumerate() {
            let Some(tails) = self.breakers.get(head) else { continue };
            let follows = |tail: &&Vec<u32>| tail.len() <= i && tail.iter().eq(r[i - tail.len()..i].iter().rev());
            if let Some(longest) = tails.iter().filter(follows).map(Vec::len).max() {
                return i - longest;
            }
        }
        r.len()
    }
}

/// z[k] = length of the longest common prefix of `s` and `s[k..]` (the Z algorithm: linear time).
fn z_function(s: &[u32], z: &mut Vec<usize>) {
    z.clear();
    z.resize(s.len(), 0);
    let (mut left, mut right) = (0, 0);
    for k in 1..s.len() {
        let mut n = if k < right { z[k - left].min(right - k) } else { 0 };
        while k + n < s.len() && s[n] == s[k + n] {
            n += 1;
        }
        if k + n > right {
            (left, right) = (k, k + n);
        }
        z[k] = n;
    }
}

/// Registers every way `breaker` can begin in a token: a token that contains it breaks alone; a token that ends with its
/// beginning breaks when the tokens of the rest follow.
fn add_breaker(
    breakers: &mut HashMap<u32, Vec<Vec<u32>>>,
    breaker: &str,
    vocab: &(impl SamplerVocab + ?Sized),
) -> Result<()> {
    let bytes = breaker.as_bytes();
    let mut rests: HashMap<usize, Vec<u32>> = HashMap::new();
    for id in 0..vocab.n_vocab() as u32 {
        let token = vocab.token_bytes(id);
        if token.windows(bytes.len()).any(|w| w == bytes) {
            let tails = breakers.entry(id).or_default();
            if !tails.iter().any(Vec::is_empty) {
                tails.push(Vec::new());
            }
            continue;
        }
        for n in 1..bytes.len().min(token.len() + 1) {
            // A breaker split inside a character has no rest that could be tokenised.
            if !token.ends_with(&bytes[..n]) || !breaker.is_char_boundary(n) {
                continue;
            }
            let tail = match rests.get(&n) {
                Some(tail) => tail.clone(),
                None => {
                    let mut tail = vocab.encode(&breaker[n..])?;
                    tail.truncate(MAX_TAIL);
                    rests.insert(n, tail.clone());
                    tail
                }
            };
            let tails = breakers.entry(id).or_default();
            if !tails.contains(&tail) {
                tails.push(tail);
            }
        }
    }
    Ok(())
}
