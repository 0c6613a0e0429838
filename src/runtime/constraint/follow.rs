//! A text on its way through the rules of a GBNF grammar.

use std::sync::Arc;

use hashbrown::HashMap;
use toktrie::{Recognizer, SimpleVob};

use super::automaton::{Automaton, DEAD};
use super::rules::{Element, Rules, TokenRef};
use super::tokens::Tokens;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// So many sets of allowed tokens are remembered.
const MAX_SETS: usize = 256;

pub(super) struct Follower {
    automaton: Automaton,
    /// Where the text can be. More than one state is possible only where a token can be read as characters and by its name.
    states: Vec<u32>,
    /// What may follow a state.
    sets: HashMap<u32, Arc<SimpleVob>>,
}

impl Follower {
    pub fn new(rules: &Rules, tokenizer: &Tokenizer) -> Result<Self> {
        let mut rules = rules.clone();
        for (token, place) in &mut rules.tokens {
            let id = find(token, tokenizer).map_err(|what| Error::Grammar(format!("{place}: {what}")))?;
            *token = TokenRef::Id(id);
        }
        let automaton = Automaton::new(rules);
        let states = vec![automaton.start()];
        Ok(Follower { automaton, states, sets: HashMap::new() })
    }

    pub fn reset(&mut self) {
        self.states = vec![self.automaton.start()];
    }

    pub fn is_complete(&self) -> bool {
        self.states.iter().any(|&s| self.automaton.is_complete(s))
    }

    pub fn is_finished(&self) -> bool {
        self.is_complete() && !self.states.iter().any(|&s| self.automaton.goes_on(s))
    }

    pub fn allows(&mut self, id: u32, bytes: &[u8]) -> bool {
        !self.after(id, bytes).is_empty()
    }

    /// The token must be allowed.
    pub fn accept(&mut self, id: u32, bytes: &[u8]) {
        self.states = self.after(id, bytes);
        if self.automaton.tidy(&mut self.states) {
            self.sets.clear();
        }
    }

    /// The states after one more token.
    fn after(&mut self, id: u32, bytes: &[u8]) -> Vec<u32> {
        let mut next = Vec::with_capacity(1);
        for &from in &self.states {
            if !bytes.is_empty() {
                next.push(bytes.iter().fold(from, |state, &byte| self.automaton.step(state, byte)));
            }
            if self.automaton.names_tokens() {
                next.push(self.automaton.step_token(from, id, !bytes.is_empty()));
            }
        }
        next.retain(|&state| state != DEAD);
        next.sort_unstable();
        next.dedup();
        next
    }

    pub fn allowed(&mut self, tokens: &Tokens) -> Arc<SimpleVob> {
        if let [state] = self.states[..] {
            if let Some(set) = self.sets.get(&state) {
                return set.clone();
            }
            if self.sets.len() == MAX_SETS {
                self.sets.clear();
            }
            let set = self.find_allowed(tokens);
            self.sets.insert(state, set.clone());
            return set;
        }
        self.find_allowed(tokens)
    }

    fn find_allowed(&mut self, tokens: &Tokens) -> Arc<SimpleVob> {
        let mut set = tokens.trie.alloc_token_set();
        for &state in &self.states {
            let mut walk = Walk { automaton: &mut self.automaton, path: vec![state] };
            tokens.trie.add_bias(&mut walk, &mut set, &[]);
            for element in self.automaton.token_elements(state) {
                match element {
                    Element::Token(name) => {
                        self.automaton.token_of(name).into_iter().for_each(|id| set.allow_token(id))
                    }
                    Element::NotToken(name) => {
                        let but = self.automaton.token_of(name);
                        let others = (0..tokens.end()).filter(|&id| Some(id) != but && !tokens.bytes(id).is_empty());
                        others.for_each(|id| set.allow_token(id));
                    }
                    _ => {}
                }
            }
        }
        Arc::new(tokens.with_ends(set, self.is_complete()))
    }
}

/// The number of the token that a grammar names.
fn find(token: &TokenRef, tokenizer: &Tokenizer) -> std::result::Result<u32, String> {
    let id = match token {
        TokenRef::Id(id) if (*id as usize) < tokenizer.n_vocab() => *id,
        TokenRef::Id(id) => return Err(format!("there is no token {id}: the vocabulary has {}", tokenizer.n_vocab())),
        TokenRef::Text(text) => match tokenizer.token_id(text) {
            Some(id) => id,
            None => match tokenizer.encode(text, false, true).map_err(|e| e.to_string())?[..] {
                [id] => id,
                _ => return Err(format!("`{text}` is not one token of this vocabulary")),
            },
        },
    };
    if tokenizer.is_eog(id) {
        let text = tokenizer.token_text(id);
        return Err(format!("token {id} (`{text}`) ends the text and cannot be a part of it: leave it out"));
    }
    Ok(id)
}

/// The way to a token of the vocabulary, byte by byte.
struct Walk<'a> {
    automaton: &'a mut Automaton,
    path: Vec<u32>,
}

impl Recognizer for Walk<'_> {
    fn pop_bytes(&mut self, n: usize) {
        self.path.truncate(self.path.len() - n);
    }

    fn collapse(&mut self) {
        self.path.drain(..self.path.len() - 1);
    }

    fn trie_finished(&mut self) {
        self.path.truncate(1);
    }

    fn try_push_byte(&mut self, byte: u8) -> bool {
        let Some(&state) = self.path.last() else { return false };
        let next = self.automaton.step(state, byte);
        if next != DEAD {
            self.path.push(next);
        }
        next != DEAD
    }
}
