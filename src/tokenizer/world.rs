//! RWKV's vocabularies (`tokenizer.ggml.model = "rwkv"`: World): the text is cut from its beginning into the longest tokens that there are. Tokens
//! are bytes, of which some are parts of characters; files have them as Python writes bytes down.

use super::prefixes::Prefixes;
use super::vocab::Vocab;

#[derive(Debug)]
pub(super) struct World {
    /// The bytes of all tokens, one after another, and where each ends.
    bytes: Vec<u8>,
    ends: Vec<u32>,
    prefixes: Prefixes,
    /// What a byte that no token begins with becomes.
    unknown: Option<u32>,
}

impl World {
    /// Reads what tokens stand for.
    pub fn new(vocab: &Vocab, unknown: Option<u32>) -> Self {
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(vocab.len()));
        for id in 0..vocab.len() as u32 {
            unescape(vocab.text(id), &mut bytes);
            ends.push(bytes.len() as u32);
        }
        let of_some = (0..vocab.len() as u32).filter(|&id| !part(&bytes, &ends, id).is_empty());
        let prefixes = Prefixes::new(of_some, |id| part(&bytes, &ends, id));
        Self { bytes, ends, prefixes, unknown }
    }

    /// What a token stands for. The id must be in range.
    pub fn bytes(&self, id: u32) -> &[u8] {
        part(&self.bytes, &self.ends, id)
    }

    /// Appends the tokens of `text`.
    pub fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let mut longest = None;
            self.prefixes.of(rest, |id| self.bytes(id), |id, len| longest = Some((id, len)));
            ids.extend(longest.map(|(id, _)| id).or(self.unknown));
            rest = &rest[longest.map_or(1, |(_, len)| len)..];
        }
    }
}

fn part<'b>(bytes: &'b [u8], ends: &[u32], id: u32) -> &'b [u8] {
    let start = if id == 0 { 0 } else { ends[id as usize - 1] };
    &bytes[start as usize..ends[id as usize] as usize]
}

/// Appends what `text` stands for: after a backslash `t`, `n` and `r` are white space, `x` and two hexadecimal digits a byte, and anything else is
/// itself.
fn unescape(text: &str, out: &mut Vec<u8>) {
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let (byte, len) = match (first, after) {
            (b'\\', [b't', ..]) => (b'\t', 2),
            (b'\\', [b'n', ..]) => (b'\n', 2),
            (b'\\', [b'r', ..]) => (b'\r', 2),
            (b'\\', [b'x', high, low, ..]) => match [high, low].map(|c| char::from(*c).to_digit(16)) {
                [Some(high), Some(low)] => ((16 * high + low) as u8, 4),
                _ => (b'x', 2),
            },
            (b'\\', [other, ..]) => (*other, 2),
            _ => (first, 1),
        };
        out.push(byte);
        rest = &rest[len..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_bytes() {
        for (text, want) in [
            ("plain é", "plain é".as_bytes()),
            (r"a\tb\nc\rd", b"a\tb\nc\rd"),
            (r"\xff\x00\xe4\xb8", b"\xff\0\xe4\xb8"),
            (r"\\x41\'\\", br"\x41'\"),
            (r"\xg1\", br"xg1\"),
        ] {
            let mut bytes = Vec::new();
            unescape(text, &mut bytes);
            assert_eq!(bytes, want, "{text}");
        }
    }
}
