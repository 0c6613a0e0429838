//! Which bytes may follow, by a grammar's rules.
//!
//! What can come next is a set of stacks: on top the element that takes the next character, below it where to go on when
//! that rule is done, and so forth. Stacks that share their lower part share it in memory, rules that are begun at the
//! same place are begun once for all that wait for them, and equal sets are one *node*, so that a text of whatever length
//! costs what its nesting does. A *state* is such a node together with the bytes of a character that is not complete.
//! The steps from state to state are remembered: going through a vocabulary is mostly looking up where a byte leads.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use super::rules::{Element, LAST_CHAR, Rules, TokenRef};

/// The state that nothing leads out of and nothing ends in: the text is not of the language.
pub(super) const DEAD: u32 = 0;

/// A step that was not taken yet.
const UNKNOWN: u32 = u32::MAX;

/// So many states and nodes are remembered between tokens.
const MAX_STATES: usize = 1 << 16;

/// A set of stacks. Elements are given by their place in [`Rules::elements`], what is below them by a node.
#[derive(Debug, Default, Clone, PartialEq, Eq, Hash)]
struct Node {
    /// The empty stack is one of them: the text may end.
    complete: bool,
    /// In ascending order, each once.
    tops: Vec<(u32, u32)>,
}

/// The beginning of a character: how many bytes of it are missing, and the bits of those that came.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
struct Partial {
    missing: u8,
    bits: u32,
    /// The first and the last character that can come of it.
    range: (u32, u32),
}

/// The rules with everything that was found out about them so far.
pub(super) struct Automaton {
    rules: Rules,
    nodes: Vec<Arc<Node>>,
    node_ids: HashMap<Arc<Node>, u32>,
    /// Characters that no set tells apart are one class, which begins here.
    classes: Vec<u32>,
    /// The class of an ASCII character, numbered among those of ASCII.
    ascii: [u8; 128],
    n_ascii: usize,
    /// Where a class leads from a node.
    by_class: HashMap<(u32, u32), u32>,
    states: Vec<(u32, Partial)>,
    state_ids: HashMap<(u32, Partial), u32>,
    /// Where ASCII leads: `n_ascii` for each state.
    by_ascii: Vec<u32>,
    /// Where other bytes lead.
    by_byte: HashMap<(u32, u8), u32>,
    start: u32,
}

impl Automaton {
    pub fn new(rules: Rules) -> Self {
        let mut classes: Vec<u32> = vec![0];
        classes.extend(rules.sets.iter().flat_map(|set| set.bounds()));
        classes.retain(|&c| c <= LAST_CHAR);
        classes.sort_unstable();
        classes.dedup();
        let mut ascii = [0; 128];
        for (c, class) in ascii.iter_mut().enumerate() {
            *class = (classes.partition_point(|&first| first <= c as u32) - 1) as u8;
        }
        let n_ascii = usize::from(ascii[127]) + 1;
        let mut automaton = Automaton {
            rules,
            nodes: Vec::new(),
            node_ids: HashMap::new(),
            classes,
            ascii,
            n_ascii,
            by_class: HashMap::new(),
            states: Vec::new(),
            state_ids: HashMap::new(),
            by_ascii: Vec::new(),
            by_byte: HashMap::new(),
            start: DEAD,
        };
        automaton.restart();
        automaton
    }

    /// The state before a text.
    pub fn start(&self) -> u32 {
        self.start
    }

    /// Whether a text may end in this state.
    pub fn is_complete(&self, state: u32) -> bool {
        let (node, partial) = self.states[state as usize];
        partial.missing == 0 && self.nodes[node as usize].complete
    }

    /// Whether anything can follow.
    pub fn goes_on(&self, state: u32) -> bool {
        let (node, partial) = self.states[state as usize];
        partial.missing > 0 || !self.nodes[node as usize].tops.is_empty()
    }

    /// Where a byte leads.
    #[inline]
    pub fn step(&mut self, state: u32, byte: u8) -> u32 {
        if byte < 0x80 {
            let slot = state as usize * self.n_ascii + usize::from(self.ascii[usize::from(byte)]);
            match self.by_ascii[slot] {
                UNKNOWN => {
                    let to = self.find_step(state, byte);
                    self.by_ascii[slot] = to;
                    to
                }
                to => to,
            }
        } else if let Some(&to) = self.by_byte.get(&(state, byte)) {
            to
        } else {
            let to = self.find_step(state, byte);
            self.by_byte.insert((state, byte), to);
            to
        }
    }

    /// Whether the grammar names tokens at all.
    pub fn names_tokens(&self) -> bool {
        !self.rules.tokens.is_empty()
    }

    /// Where a token's number leads, by the elements that name tokens. `is_text`: the token is one that `!` stands for.
    pub fn step_token(&mut self, state: u32, token: u32, is_text: bool) -> u32 {
        let (node, partial) = self.states[state as usize];
        if partial.missing > 0 {
            return DEAD;
        }
        let tops = self.nodes[node as usize].clone();
        let named = |name: u32| matches!(self.rules.tokens[name as usize].0, TokenRef::Id(id) if id == token);
        let takes = |&&(at, _): &&(u32, u32)| match self.rules.elements[at as usize] {
            Element::Token(name) => named(name),
            Element::NotToken(name) => is_text && !named(name),
            _ => false,
        };
        let next: Vec<_> = tops.tops.iter().filter(takes).map(|&(at, below)| (at + 1, below)).collect();
        let node = self.close(next);
        self.state(node, Partial::default())
    }

    /// The elements naming tokens that could take the next one.
    pub fn token_elements(&self, state: u32) -> impl Iterator<Item = Element> + '_ {
        let (node, partial) = self.states[state as usize];
        let tops: &[_] = if partial.missing > 0 { &[] } else { &self.nodes[node as usize].tops };
        let elements = tops.iter().map(|&(at, _)| self.rules.elements[at as usize]);
        elements.filter(|e| matches!(e, Element::Token(_) | Element::NotToken(_)))
    }

    /// The number of the token that an element names.
    pub fn token_of(&self, name: u32) -> Option<u32> {
        match self.rules.tokens[name as usize].0 {
            TokenRef::Id(id) => Some(id),
            TokenRef::Text(_) => None,
        }
    }

    /// Forgets what can be found out again, if that has become much. `states` are still needed, and get new numbers.
    /// Tells whether it did.
    pub fn tidy(&mut self, states: &mut [u32]) -> bool {
        if self.states.len().max(self.nodes.len()) < MAX_STATES {
            return false;
        }
        let kept: Vec<_> = states.iter().map(|&s| self.states[s as usize]).collect();
        let old = std::mem::take(&mut self.nodes);
        self.restart();
        // What a node refers to was there before it.
        let mut needed = vec![false; old.len()];
        for &(node, _) in &kept {
            needed[node as usize] = true;
        }
        for (i, node) in old.iter().enumerate().rev().filter(|(i, _)| *i > 0) {
            if needed[i] {
                node.tops.iter().for_each(|&(_, below)| needed[below as usize] = true);
            }
        }
        let mut new_ids = vec![DEAD; old.len()];
        for (i, node) in old.iter().enumerate().filter(|(i, _)| needed[*i]) {
            let tops = node.tops.iter().map(|&(at, below)| (at, new_ids[below as usize])).collect();
            new_ids[i] = self.node(node.complete, tops);
        }
        for (state, (node, partial)) in states.iter_mut().zip(kept) {
            *state = self.state(new_ids[node as usize], partial);
        }
        true
    }

    fn restart(&mut self) {
        self.nodes.clear();
        self.node_ids.clear();
        self.by_class.clear();
        self.states.clear();
        self.state_ids.clear();
        self.by_ascii.clear();
        self.by_byte.clear();
        let nothing = self.node(false, Vec::new());
        let dead = self.state(nothing, Partial::default());
        debug_assert_eq!((nothing, dead), (DEAD, DEAD));
        let bottom = self.node(true, Vec::new());
        let begin = self.rules.alternatives[self.rules.root as usize].iter().map(|&at| (at, bottom)).collect();
        // A root that calls itself comes through `close` with the same rules.
        let node = self.close(begin);
        self.start = self.state(node, Partial::default());
    }

    fn node(&mut self, complete: bool, mut tops: Vec<(u32, u32)>) -> u32 {
        tops.sort_unstable();
        tops.dedup();
        let node = Node { complete, tops };
        if let Some(&id) = self.node_ids.get(&node) {
            return id;
        }
        let (node, id) = (Arc::new(node), self.nodes.len() as u32);
        self.nodes.push(node.clone());
        self.node_ids.insert(node, id);
        id
    }

    fn state(&mut self, node: u32, partial: Partial) -> u32 {
        let n_ascii = self.n_ascii;
        *self.state_ids.entry((node, partial)).or_insert_with(|| {
            self.states.push((node, partial));
            self.by_ascii.resize(self.states.len() * n_ascii, UNKNOWN);
            self.states.len() as u32 - 1
        })
    }

    fn find_step(&mut self, state: u32, byte: u8) -> u32 {
        let (node, partial) = self.states[state as usize];
        let Some(next) = partial.push(byte) else { return DEAD };
        if next.missing == 0 {
            let class = self.class(next.bits);
            let node = self.step_class(node, class);
            return self.state(node, Partial::default());
        }
        // Some character that begins so must be possible.
        let (first, last) = (self.class(next.range.0), self.class(next.range.1));
        if (first..=last).any(|class| self.step_class(node, class) != DEAD) { self.state(node, next) } else { DEAD }
    }

    fn class(&self, c: u32) -> u32 {
        self.classes.partition_point(|&first| first <= c) as u32 - 1
    }

    fn step_class(&mut self, node: u32, class: u32) -> u32 {
        if let Some(&to) = self.by_class.get(&(node, class)) {
            return to;
        }
        let c = self.classes[class as usize];
        let from = self.nodes[node as usize].clone();
        let takes = |&&(at, _): &&(u32, u32)| match self.rules.elements[at as usize] {
            Element::Set(set) => self.rules.sets[set as usize].contains(c),
            _ => false,
        };
        let next = from.tops.iter().filter(takes).map(|&(at, below)| (at + 1, below)).collect();
        let to = self.close(next);
        self.by_class.insert((node, class), to);
        to
    }

    /// The node of these stacks, whose tops can be any elements, with characters or tokens on top of all.
    ///
    /// A rule that can match nothing is passed at once, so that the way down from a rule never depends on what it comes to.
    /// Rules are then begun in the order in which they can begin with one another: when it is a rule's turn, all
    /// that wait for it are known, and become the one node below it.
    fn close(&mut self, mut work: Vec<(u32, u32)>) -> u32 {
        #[derive(Default)]
        struct Begun {
            rules: Vec<u32>,
            complete: bool,
            waiting: Vec<(u32, u32)>,
        }
        let mut begun: BTreeMap<u32, Begun> = BTreeMap::new();
        let mut seen = HashSet::new();
        let (mut complete, mut tops) = (false, Vec::new());
        loop {
            while let Some((at, below)) = work.pop() {
                if !seen.insert((at, below)) {
                    continue;
                }
                match self.rules.elements[at as usize] {
                    Element::End => {
                        let below = &self.nodes[below as usize];
                        complete |= below.complete;
                        work.extend_from_slice(&below.tops);
                    }
                    Element::Rule(rule) => {
                        if self.rules.nullable[rule as usize] {
                            work.push((at + 1, below));
                        }
                        let begun = begun.entry(self.rules.order[rule as usize]).or_default();
                        begun.rules.push(rule);
                        if self.rules.elements[at as usize + 1] == Element::End {
                            // Nothing follows in this rule: what waits for it waits for the other.
                            begun.complete |= self.nodes[below as usize].complete;
                            begun.waiting.extend_from_slice(&self.nodes[below as usize].tops);
                        } else {
                            begun.waiting.push((at + 1, below));
                        }
                    }
                    _ => tops.push((at, below)),
                }
            }
            let Some((_, mut next)) = begun.pop_first() else { break };
            let below = self.node(next.complete, next.waiting);
            next.rules.sort_unstable();
            next.rules.dedup();
            for rule in next.rules {
                work.extend(self.rules.alternatives[rule as usize].iter().map(|&at| (at, below)));
            }
        }
        self.node(complete, tops)
    }
}

impl Partial {
    /// With one byte more; `None` if that is not UTF-8. Complete when nothing is missing: `bits` is the character.
    fn push(self, byte: u8) -> Option<Partial> {
        if self.missing == 0 {
            return match byte {
                0x00..=0x7F => Some(Partial { missing: 0, bits: byte.into(), range: (0, 0) }),
                0xC2..=0xDF => Partial::of(1, byte & 0x1F, 0x80),
                0xE0..=0xEF => Partial::of(2, byte & 0x0F, 0x800),
                0xF0..=0xF4 => Partial::of(3, byte & 0x07, 0x1_0000),
                _ => None,
            };
        }
        if byte & 0xC0 != 0x80 {
            return None;
        }
        let next =
            Partial { missing: self.missing - 1, bits: self.bits << 6 | u32::from(byte & 0x3F), range: self.range };
        next.narrowed()
    }

    fn of(missing: u8, bits: u8, least: u32) -> Option<Partial> {
        Partial { missing, bits: bits.into(), range: (least, LAST_CHAR) }.narrowed()
    }

    /// The range cut down to what the bits allow. A surrogate cannot come of any grammar's sets.
    fn narrowed(self) -> Option<Partial> {
        let shift = 6 * u32::from(self.missing);
        let (first, last) = (self.bits << shift, ((self.bits + 1) << shift) - 1);
        let range = (self.range.0.max(first), self.range.1.min(last));
        (range.0 <= range.1).then_some(Partial { range, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::super::gbnf;
    use super::*;

    struct Reader(Automaton, u32);

    impl Reader {
        fn new(grammar: &str) -> Self {
            let automaton = Automaton::new(gbnf::parse(grammar).unwrap());
            let start = automaton.start();
            Reader(automaton, start)
        }

        /// The state after a text.
        fn after(&mut self, text: &[u8]) -> u32 {
            text.iter().fold(self.1, |state, &byte| self.0.step(state, byte))
        }

        fn accepts(&mut self, text: &str) -> bool {
            let state = self.after(text.as_bytes());
            self.0.is_complete(state)
        }
    }

    fn check(grammar: &str, yes: &[&str], no: &[&str]) {
        let mut reader = Reader::new(grammar);
        for text in yes {
            assert!(reader.accepts(text), "{grammar}: {text:?} is refused");
        }
        for text in no {
            assert!(!reader.accepts(text), "{grammar}: {text:?} is accepted");
        }
    }

    #[test]
    fn languages() {
        check(r#"root ::= "yes" | "no""#, &["yes", "no"], &["", "y", "yesno", "Yes"]);
        check(r#"root ::= "ab"{2,3} "c"?"#, &["abab", "ababab", "ababc"], &["ab", "abababab", "ababcc"]);
        check(r#"root ::= "a"{2} [b-d]{1,} .{0,1}"#, &["aab", "aabcd!", "aabé"], &["aa", "ab", "aab!!"]);
        check(r#"root ::= ([^"] | "\"\"")*"#, &["", "x\"\"y", "中"], &["\"", "x\"\"\"y"]);
        check(r#"root ::= "(" root ")" | """#, &["", "()", "((()))"], &["(", "())", ")("]);
        check(
            "root ::= (\"a\"? \"b\"?)* x\nx ::= y | \"!\"\ny ::= x | \"?\"",
            &["!", "abba?", "b!"],
            &["", "ab", "!!"],
        );
        check("root ::= s\ns ::= \"a\" s \"b\" | \"a\" s \"c\" | \"a\"", &["a", "aab", "aaabc"], &["ab", "aa", "aabc"]);
        // A longest match of `a`s would leave nothing for the second.
        check(r#"root ::= [a]+ "ab""#, &["aab", "aaaab"], &["ab", "aaa"]);
        check(
            "root ::= \"a\" | \"ab\" \"c\" | \"abcd\" x\nx ::= \"\" | \"e\"",
            &["a", "abc", "abcd", "abcde"],
            &["ab"],
        );
        check("root ::= root2\nroot2 ::= ws \"x\" ws\nws ::= [ ]*", &["x", "  x "], &["", "xx"]);
        check("root ::= a | a a\na ::= a | \"x\"", &["x", "xx"], &["", "xxx"]);
        check("root ::= a\na ::= a", &[], &["", "a"]);
        check(r#"root ::= """#, &[""], &["a"]);
    }

    #[test]
    fn characters_of_several_bytes() {
        check("root ::= [ぁ-ゟ]+", &["ひらがな"], &["カ", "a", ""]);
        check("root ::= [^é]", &["è", "a", "\u{10FFFF}"], &["é", "aa"]);
        let mut reader = Reader::new("root ::= [ぁ-ゟ]");
        for (bytes, alive) in [
            (&b"\xe3"[..], true),
            (b"\xe3\x81", true),
            (b"\xe3\x82", true),
            (b"\xe3\x83", false),
            (b"\xe4", false),
            (b"\xc3", false),
            (b"\xe3\x81a", false),
        ] {
            assert_eq!(reader.after(bytes) != DEAD, alive, "{bytes:?}");
        }
        let half = reader.after(b"\xe3\x81");
        assert!(!reader.0.is_complete(half) && reader.0.goes_on(half));
        let mut any = Reader::new("root ::= .");
        for bytes in
            [&b"\x80"[..], b"\xc0", b"\xc1", b"\xe0\x80", b"\xed\xa0\x80", b"\xf0\x8f", b"\xf4\x90", b"\xf5", b"\xff"]
        {
            assert_eq!(any.after(bytes), DEAD, "{bytes:?}");
        }
        for c in [
            '\0',
            '\u{7f}',
            '\u{80}',
            '\u{7ff}',
            '\u{800}',
            '\u{d7ff}',
            '\u{e000}',
            '\u{ffff}',
            '\u{10000}',
            '\u{10ffff}',
        ] {
            assert!(any.accepts(&c.to_string()), "{c:?}");
        }
    }

    #[test]
    fn long_texts_need_few_states() {
        let mut reader = Reader::new(
            "root ::= (\"[\" x* \"]\")+ .{0,9}\nx ::= [a-z] | \" \" x | y\ny ::= \"(\" x ( \",\" x )* \")\"",
        );
        let text = "[ab  c(d, e,f)g]".repeat(1000);
        assert!(reader.accepts(&text));
        assert!(reader.0.states.len() < 200 && reader.0.nodes.len() < 200, "{}", reader.0.states.len());
        // Every `a` doubles the ways to have read what came before.
        let mut reader = Reader::new("root ::= \"a\" root \"b\" | \"a\" root \"c\" | \"a\"");
        assert!(reader.accepts(&("a".repeat(1000) + &"bc".repeat(499) + "b")));
        assert!(!reader.accepts(&("a".repeat(1000) + &"bc".repeat(500))));
        assert!(reader.0.nodes.len() < 10_000, "{}", reader.0.nodes.len());
        let mut reader =
            Reader::new("root ::= \"x\"? \"x\"? \"x\"? \"x\"? \"x\"? \"x\"? \"x\"? \"x\"? \"x\"? \"x\"? \"x\"? \"x\"?");
        assert!(reader.accepts("xxxxxxxxxxxx") && !reader.accepts("xxxxxxxxxxxxx"));
        let mut reader = Reader::new("root ::= [ab]{0,100000} \"!\"");
        assert!(reader.accepts(&("ab".repeat(50_000) + "!")) && !reader.accepts(&("ab".repeat(50_000) + "a!")));
    }

    #[test]
    fn tidying_changes_nothing() {
        let mut reader = Reader::new("root ::= \"a\" root \"b\" | \"a\" root \"c\" | \"é\"");
        let text = "a".repeat(MAX_STATES + 10);
        let mut state = [reader.after(text.as_bytes())];
        state[0] = reader.0.step(state[0], 0xC3);
        assert!(reader.0.tidy(&mut state));
        reader.1 = state[0];
        let end = "\u{e9}".as_bytes()[1..].iter().copied().chain(b"bc".repeat(text.len() / 2)).collect::<Vec<_>>();
        let last = reader.after(&end);
        assert!(reader.0.is_complete(last) && !reader.0.goes_on(last));
        reader.1 = reader.0.start();
        assert!(reader.accepts("aaébc"));
    }

    /// Texts drawn at random are judged as a slow reading of the rules judges them.
    #[test]
    fn random_grammars_against_a_plain_reading() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut n_tried = 0;
        while n_tried < 400 {
            let names = ["root", "a", "b"];
            let mut grammar = String::new();
            for name in names {
                let mut alternatives = Vec::new();
                for _ in 0..rng.usize(1..4) {
                    let mut items = Vec::new();
                    for _ in 0..rng.usize(0..4) {
                        let item =
                            ["\"x\"", "\"y\"", "[xy]", "a", "b", "root", "\"xy\"", "(a \"y\" | b)"][rng.usize(0..8)];
                        items.push(format!("{item}{}", ["", "", "", "?", "*", "+", "{2}", "{1,2}"][rng.usize(0..8)]));
                    }
                    alternatives.push(items.join(" "));
                }
                grammar += &format!("{name} ::= {}\n", alternatives.join(" | "));
            }
            let Ok(rules) = gbnf::parse(&grammar) else { continue };
            n_tried += 1;
            let mut reader = Reader::new(&grammar);
            for bits in 1..64u32 {
                let n = bits.ilog2();
                let text: Vec<u8> = (0..n).map(|i| if bits >> i & 1 == 0 { b'x' } else { b'y' }).collect();
                let state = reader.after(&text);
                let want = derives(&rules, &text);
                assert_eq!(reader.0.is_complete(state), want, "{grammar}{:?}", String::from_utf8_lossy(&text));
            }
        }
    }

    /// Whether the rules derive the text, by growing a table of which rule matches which part until nothing is added.
    fn derives(rules: &Rules, text: &[u8]) -> bool {
        let (n, n_rules) = (text.len(), rules.alternatives.len());
        let mut known = HashSet::new();
        loop {
            let before = known.len();
            for rule in 0..n_rules as u32 {
                for from in 0..=n {
                    for &start in &rules.alternatives[rule as usize] {
                        let (mut at, mut ends) = (start as usize, vec![from]);
                        while rules.elements[at] != Element::End {
                            let mut next = Vec::new();
                            for end in ends {
                                match rules.elements[at] {
                                    Element::Set(set) => {
                                        let takes = |&b: &u8| rules.sets[set as usize].contains(b.into());
                                        next.extend(text.get(end).filter(|b| takes(b)).map(|_| end + 1));
                                    }
                                    Element::Rule(part) => {
                                        next.extend((end..=n).filter(|&to| known.contains(&(part, end, to))));
                                    }
                                    _ => {}
                                }
                            }
                            next.sort_unstable();
                            next.dedup();
                            ends = next;
                            at += 1;
                        }
                        known.extend(ends.into_iter().map(|end| (rule, from, end)));
                    }
                }
            }
            if known.len() == before {
                return known.contains(&(rules.root, 0, n));
            }
        }
    }
}
