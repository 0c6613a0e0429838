//! A grammar in the form that texts are matched with: rules of flat elements, and what can be known of them beforehand.

use hashbrown::HashMap;

/// What a rule is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    /// A character of a set.
    Set(u32),
    /// Whatever that rule matches.
    Rule(u32),
    /// That token, by its number in [`Rules::tokens`].
    Token(u32),
    /// Any other token.
    NotToken(u32),
    /// The end of an alternative.
    End,
}

/// How a grammar names a token.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum TokenRef {
    Id(u32),
    Text(String),
}

/// Characters, as ranges in ascending order with gaps between them. Surrogates are no characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct CharSet(Vec<(u32, u32)>);

const SURROGATES: (u32, u32) = (0xD800, 0xDFFF);
pub(super) const LAST_CHAR: u32 = 0x10_FFFF;

impl CharSet {
    /// From ranges in any order.
    pub fn new(mut ranges: Vec<(u32, u32)>) -> Self {
        ranges.sort_unstable();
        let mut all: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match all.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => all.push((first, last)),
            }
        }
        CharSet(without(&all, SURROGATES))
    }

    pub fn any() -> Self {
        Self::new(vec![(0, LAST_CHAR)])
    }

    pub fn negated(&self) -> Self {
        let mut rest = Self::any().0;
        for &range in &self.0 {
            rest = without(&rest, range);
        }
        CharSet(rest)
    }

    /// Where characters of the set begin, and where others do.
    pub fn bounds(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().flat_map(|&(first, last)| [first, last + 1])
    }

    pub fn contains(&self, c: u32) -> bool {
        let after = self.0.partition_point(|&(first, _)| first <= c);
        after > 0 && c <= self.0[after - 1].1
    }
}

fn without(ranges: &[(u32, u32)], (first, last): (u32, u32)) -> Vec<(u32, u32)> {
    let mut rest = Vec::with_capacity(ranges.len() + 1);
    for &(a, b) in ranges {
        if b < first || last < a {
            rest.push((a, b));
            continue;
        }
        if a < first {
            rest.push((a, first - 1));
        }
        if last < b {
            rest.push((last + 1, b));
        }
    }
    rest
}

/// A whole grammar.
#[derive(Debug, Default, Clone)]
pub(super) struct Rules {
    /// All alternatives of all rules, each closed by [`Element::End`].
    pub elements: Vec<Element>,
    /// Where the alternatives of each rule begin.
    pub alternatives: Vec<Vec<u32>>,
    /// The sets that elements refer to, each once.
    pub sets: Vec<CharSet>,
    /// The tokens that elements refer to, and the place of the first mention.
    pub tokens: Vec<(TokenRef, String)>,
    /// Where a text begins.
    pub root: u32,
    /// Whether a rule can match nothing at all.
    pub nullable: Vec<bool>,
    /// A number for each rule. If a rule can begin with another, that one has a higher number, or the same if it can begin
    /// with the first in turn.
    pub order: Vec<u32>,
    /// The name of each rule; parts of a rule have the name of the whole.
    names: Vec<Box<str>>,
    set_ids: HashMap<CharSet, u32>,
    token_ids: HashMap<TokenRef, u32>,
}

impl Rules {
    /// A rule that will be defined later.
    pub fn reserve(&mut self, name: &str) -> u32 {
        self.names.push(name.into());
        self.alternatives.push(Vec::new());
        self.names.len() as u32 - 1
    }

    pub fn define(&mut self, rule: u32, alternatives: Vec<Vec<Element>>) {
        for sequence in alternatives {
            self.alternatives[rule as usize].push(self.elements.len() as u32);
            self.elements.extend(sequence);
            self.elements.push(Element::End);
        }
    }

    pub fn add(&mut self, name: &str, alternatives: Vec<Vec<Element>>) -> u32 {
        let rule = self.reserve(name);
        self.define(rule, alternatives);
        rule
    }

    pub fn set(&mut self, set: CharSet) -> Element {
        let sets = &mut self.sets;
        Element::Set(*self.set_ids.entry(set).or_insert_with_key(|set| {
            sets.push(set.clone());
            sets.len() as u32 - 1
        }))
    }

    pub fn token(&mut self, token: TokenRef, negated: bool, place: String) -> Element {
        let tokens = &mut self.tokens;
        let id = *self.token_ids.entry(token).or_insert_with_key(|token| {
            tokens.push((token.clone(), place));
            tokens.len() as u32 - 1
        });
        if negated { Element::NotToken(id) } else { Element::Token(id) }
    }

    /// Fills in what follows from the rules, all of which are defined by now.
    ///
    /// # Errors
    /// The name of a rule that can begin with itself and then goes on: what would be expected after it has no end.
    pub fn finish(&mut self, root: u32) -> Result<(), Box<str>> {
        self.root = root;
        self.find_nullable();
        self.find_order()
    }

    fn find_nullable(&mut self) {
        self.nullable = vec![false; self.names.len()];
        // Who has to be looked at again when a rule turns out to match nothing.
        let mut users = vec![Vec::new(); self.names.len()];
        for (rule, starts) in self.alternatives.iter().enumerate() {
            for &start in starts {
                for element in self.sequence(start) {
                    if let Element::Rule(part) = element {
                        users[*part as usize].push(rule as u32);
                    }
                }
            }
        }
        let mut work: Vec<u32> = (0..self.names.len() as u32).collect();
        while let Some(rule) = work.pop() {
            let vanishes = |e: &Element| matches!(e, Element::Rule(part) if self.nullable[*part as usize]);
            let starts = &self.alternatives[rule as usize];
            if !self.nullable[rule as usize] && starts.iter().any(|&s| self.sequence(s).iter().all(vanishes)) {
                self.nullable[rule as usize] = true;
                work.append(&mut users[rule as usize]);
            }
        }
    }

    /// The elements of an alternative before its end.
    fn sequence(&self, start: u32) -> &[Element] {
        let rest = &self.elements[start as usize..];
        &rest[..rest.iter().position(|e| *e == Element::End).unwrap_or(rest.len())]
    }

    /// The rules that `rule` can begin with, and whether more elements follow them.
    fn beginnings(&self, rule: u32) -> Vec<(u32, bool)> {
        let mut all = Vec::new();
        for &start in &self.alternatives[rule as usize] {
            let sequence = self.sequence(start);
            for (i, element) in sequence.iter().enumerate() {
                let Element::Rule(part) = *element else { break };
                all.push((part, i + 1 < sequence.len()));
                if !self.nullable[part as usize] {
                    break;
                }
            }
        }
        all
    }

    /// Tarjan's algorithm, without recursion: grammars can be chains of many thousand rules.
    fn find_order(&mut self) -> Result<(), Box<str>> {
        const NEW: u32 = u32::MAX;
        let n = self.names.len();
        let (mut index, mut low) = (vec![NEW; n], vec![0u32; n]);
        let (mut stack, mut on_stack) = (Vec::new(), vec![false; n]);
        let (mut component, mut n_components, mut n_seen) = (vec![0u32; n], 0u32, 0u32);
        for first in 0..n as u32 {
            if index[first as usize] != NEW {
                continue;
            }
            let mut path = vec![(first, self.beginnings(first), 0usize)];
            while let Some((rule, parts, at)) = path.last_mut() {
                let r = *rule as usize;
                if *at == 0 && index[r] == NEW {
                    (index[r], low[r]) = (n_seen, n_seen);
                    n_seen += 1;
                    stack.push(*rule);
                    on_stack[r] = true;
                }
                if let Some(&(part, _)) = parts.get(*at) {
                    let p = part as usize;
                    if index[p] == NEW {
                        // Comes back to the same place when the part is done.
                        let below = self.beginnings(part);
                        path.push((part, below, 0));
                        continue;
                    }
                    if on_stack[p] {
                        low[r] = low[r].min(low[p]);
                    }
                    *at += 1;
                    continue;
                }
                if low[r] == index[r] {
                    while let Some(member) = stack.pop() {
                        on_stack[member as usize] = false;
                        component[member as usize] = n_components;
                        if member as usize == r {
                            break;
                        }
                    }
                    n_components += 1;
                }
                path.pop();
            }
        }
        for rule in 0..n as u32 {
            let own = component[rule as usize];
            if self.beginnings(rule).iter().any(|&(part, more)| more && component[part as usize] == own) {
                return Err(self.names[rule as usize].clone());
            }
        }
        // Components are found from the innermost on.
        self.order = component.into_iter().map(|c| n_components - 1 - c).collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets() {
        let set = CharSet::new(vec![(0x63, 0x66), (0x61, 0x62), (0xD7FE, 0xE001)]);
        assert_eq!(set.0, [(0x61, 0x66), (0xD7FE, 0xD7FF), (0xE000, 0xE001)]);
        assert!(set.contains(0x61) && set.contains(0x66) && !set.contains(0x67) && !set.contains(0x60));
        let rest = set.negated();
        assert!(!rest.contains(0x63) && rest.contains(0) && rest.contains(LAST_CHAR) && !rest.contains(0xD900));
        assert_eq!(rest.negated(), set);
        assert_eq!(CharSet::any().negated().0, []);
    }
}
