//! Special tokens: which they are, which of them end a text, and how they are found in a text.

use std::ops::Range;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use ggml_ext::gguf::Gguf;

use super::vocab::{Attr, Vocab};
use super::{failed, key};
use crate::Result;

/// Ids with a role.
#[derive(Debug, Default)]
pub(super) struct Roles {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub eot: Option<u32>,
    pub eom: Option<u32>,
    pub unknown: Option<u32>,
    /// Tokens that end a text, ascending.
    pub eog: Vec<u32>,
}

/// A role, its keys (the later ones are older spellings), and the texts by which models without the key are known to
/// name it.
type Named = (&'static [&'static str], &'static [&'static str]);

const EOT: Named = (
    &[key::EOT],
    &[
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "<｜end▁of▁sentence｜>",
        "<end_of_utterance>",
    ],
);
const EOM: Named = (&[key::EOM], &["<|eom_id|>"]);
/// Fill-in-the-middle markers that never belong to an answer: they end it.
const FIM_END: [Named; 3] = [
    (&["tokenizer.ggml.fim_pad_token_id"], &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"]),
    (&["tokenizer.ggml.fim_rep_token_id"], &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"]),
    (&["tokenizer.ggml.fim_sep_token_id"], &["<|file_sep|>"]),
];
/// Fill-in-the-middle markers around the text: they count as control tokens.
const FIM: [Named; 3] = [
    (
        &["tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"],
        &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
    ),
    (
        &["tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id"],
        &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
    ),
    (
        &["tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id"],
        &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
    ),
];
/// Texts that end an answer in every vocabulary that has them.
const EOG: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];
/// Markers inside an answer (channels of gpt-oss) that are shown.
const SHOWN: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

impl Roles {
    /// Reads the ids, completes them by text as llama.cpp does, and corrects the attributes of tokens that files
    /// mislabel. `defaults`: SentencePiece's 1, 2 and 0 for BOS, EOS and unknown.
    pub fn from_gguf(g: &Gguf, vocab: &mut Vocab, defaults: bool) -> Result<Roles> {
        let default = |id: u32| (defaults && (id as usize) < vocab.len()).then_some(id);
        let (bos, eos, unknown) = (default(1), default(2), default(0));
        let mut roles = Roles {
            bos: id_of(g, vocab, key::BOS)?.or(bos),
            eos: id_of(g, vocab, key::EOS)?.or(eos),
            unknown: id_of(g, vocab, key::UNKNOWN)?.or(unknown),
            eot: named(g, vocab, EOT)?,
            eom: named(g, vocab, EOM)?,
            eog: Vec::new(),
        };
        for marker in FIM {
            named(g, vocab, marker)?;
        }
        for marker in FIM_END {
            roles.eog.extend(named(g, vocab, marker)?);
        }
        for id in EOG.iter().filter_map(|text| vocab.id(text)).collect::<Vec<_>>() {
            roles.eog.push(id);
            vocab.set_attr(id, vocab.attr(id).with(Attr::CONTROL));
        }
        for id in SHOWN.iter().filter_map(|text| vocab.id(text)).collect::<Vec<_>>() {
            vocab.set_attr(id, Attr::USER_DEFINED);
        }
        roles.eog.extend([roles.eos, roles.eot, roles.eom].into_iter().flatten());
        roles.eog.sort_unstable();
        roles.eog.dedup();

        // Where answers end with other markers, `<|end|>` ends a message of several, and `</s>` is a tag of HTML.
        let ends = |text: &str| vocab.id(text).filter(|id| roles.eog.contains(id));
        let calls = ends("<|call|>").or(ends("<|calls|>"));
        let end = ends("<|end|>").filter(|_| calls.is_some() && ends("<|return|>").or(ends("<|flush|>")).is_some());
        let strike = ends("</s>").filter(|_| ends("<|tool_response>").or(ends("<|plamo:eos|>")).is_some());
        for (id, attr) in [(end, Attr::USER_DEFINED), (strike, Attr::NORMAL)] {
            if let Some(id) = id {
                roles.eog.retain(|&other| other != id);
                vocab.set_attr(id, attr);
            }
        }
        Ok(roles)
    }

    pub fn is_eog(&self, id: u32) -> bool {
        self.eog.binary_search(&id).is_ok()
    }
}

/// The id under `key`, checked. Minus one means none.
fn id_of(g: &Gguf, vocab: &Vocab, key: &str) -> Result<Option<u32>> {
    let Some(value) = g.get(key) else { return Ok(None) };
    match value.as_int() {
        Some(-1 | 0xffff_ffff) => Ok(None),
        Some(id) if (0..vocab.len() as i128).contains(&id) => Ok(Some(id as u32)),
        Some(id) => Err(failed(format!("`{key}` is {id}, and the vocabulary has {} tokens", vocab.len()))),
        None => Err(failed(format!("`{key}` is of type {}, not an integer", value.type_name()))),
    }
}

/// The id under one of the keys, or else of the first of the texts, which becomes a control token by that.
fn named(g: &Gguf, vocab: &mut Vocab, (keys, texts): Named) -> Result<Option<u32>> {
    let mut id = None;
    for key in keys {
        id = id_of(g, vocab, key)?.or(id);
    }
    if id.is_none() {
        id = texts.iter().find_map(|text| vocab.id(text));
        if let Some(id) = id {
            vocab.set_attr(id, vocab.attr(id).with(Attr::CONTROL));
        }
    }
    Ok(id)
}

/// Finds the texts of special tokens.
#[derive(Debug)]
pub(super) struct Finder {
    /// Longest text first: the order in which they claim their part of the text.
    order: Vec<u32>,
    any: AhoCorasick,
}

/// A part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fragment {
    Text(Range<usize>),
    Token(u32),
}

impl Finder {
    /// Collects control, user-defined and unknown tokens, and marks those that swallow the white space beside them,
    /// which no key tells: llama.cpp knows these models by name.
    pub fn new(g: &Gguf, vocab: &mut Vocab) -> Result<Finder> {
        let kinds = Attr::CONTROL.with(Attr::USER_DEFINED).with(Attr::UNKNOWN);
        let mut order: Vec<u32> = (0..vocab.len() as u32).filter(|&id| vocab.attr(id).has(kinds)).collect();
        order.sort_by_key(|&id| std::cmp::Reverse(vocab.text(id).len()));

        let text_of = |key: &str| g.str(key).map(|text| text.unwrap_or_default().to_ascii_lowercase()).map_err(failed);
        let (name, pre) = (text_of("general.name")?, text_of(key::PRE)?);
        let mut set = |text: &str, attr: fn(Attr) -> Attr| {
            if let Some(id) = vocab.id(text) {
                vocab.set_attr(id, attr(vocab.attr(id)));
            }
        };
        if ["jina-v2-de", "jina-v2-es", "jina-v2-code"].iter().any(|model| pre.contains(model)) {
            set("<mask>", |attr| attr.with(Attr::LSTRIP));
        } else if name.contains("phi-3") || name.contains("phi3") {
            for &id in &order {
                vocab.set_attr(id, vocab.attr(id).with(Attr::RSTRIP));
            }
            for text in ["<unk>", "<s>", "<|endoftext|>"] {
                if let Some(id) = vocab.id(text) {
                    vocab.set_attr(id, vocab.attr(id).without(Attr::RSTRIP));
                }
            }
        } else if name.contains("modern-bert") {
            set("[MASK]", |attr| attr.with(Attr::LSTRIP));
        }

        let any = AhoCorasick::builder()
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .match_kind(MatchKind::Standard)
            .build(order.iter().map(|&id| vocab.text(id)))
            .map_err(failed)?;
        Ok(Finder { order, any })
    }

    /// Cuts `text` at special tokens: user-defined ones always, control and unknown ones if `parse_special`.
    ///
    /// Longer tokens claim their occurrences before shorter ones, wherever they are: with tokens `ab` and `bcd`, `abcd`
    /// is `a` and `bcd`. One pass over the text finds out which tokens occur at all; Gemma has 6,400 special tokens.
    pub fn cut(&self, vocab: &Vocab, text: &str, parse_special: bool) -> Vec<Fragment> {
        if text.is_empty() {
            return Vec::new();
        }
        let mut fragments = vec![Fragment::Text(0..text.len())];
        let mut occurs = vec![false; self.order.len()];
        for found in self.any.find_overlapping_iter(text) {
            occurs[found.pattern().as_usize()] = true;
        }
        let hidden = Attr::CONTROL.with(Attr::UNKNOWN);
        for (&id, _) in self.order.iter().zip(&occurs).filter(|&(_, &occurs)| occurs) {
            let attr = vocab.attr(id);
            if !parse_special && attr.has(hidden) {
                continue;
            }
            let token = vocab.text(id);
            let mut cut = Vec::with_capacity(fragments.len() + 2);
            for fragment in fragments {
                match fragment {
                    Fragment::Text(range) => cut_at(text, range, token, id, attr, &mut cut),
                    token => cut.push(token),
                }
            }
            fragments = cut;
        }
        fragments
    }
}

/// Cuts the part `range` of `text` at every occurrence of one token.
fn cut_at(text: &str, mut range: Range<usize>, token: &str, id: u32, attr: Attr, out: &mut Vec<Fragment>) {
    // What C's isspace accepts: white space beside a token is dropped byte by byte.
    let is_space = |c: char| matches!(c, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r');
    while let Some(at) = text[range.clone()].find(token) {
        let mut before = &text[range.start..range.start + at];
        if attr.has(Attr::LSTRIP) {
            before = before.trim_end_matches(is_space);
        }
        if !before.is_empty() {
            out.push(Fragment::Text(range.start..range.start + before.len()));
        }
        out.push(Fragment::Token(id));
        range.start += at + token.len();
        if attr.has(Attr::RSTRIP) {
            range.start = range.end - text[range.clone()].trim_start_matches(is_space).len();
        }
    }
    if !range.is_empty() {
        out.push(Fragment::Text(range));
    }
}
