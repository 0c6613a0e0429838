//! Turning a stream of token bytes into text.

/// Collects the bytes of tokens as they are generated and hands out text that never ends inside a character: one
/// character (an emoji, a CJK ideograph) is often several tokens. Bytes that cannot become UTF-8 turn into U+FFFD.
///
/// ```
/// let mut stream = lisa_cpp::tokenizer::StreamDecoder::default();
/// let bytes = "né".as_bytes();
/// assert_eq!(stream.push(&bytes[..2]), "n");
/// assert_eq!(stream.push(&bytes[2..]), "é");
/// assert_eq!(stream.finish(), "");
/// ```
#[derive(Debug, Default, Clone)]
pub struct StreamDecoder {
    /// The start of a character whose other bytes have not come yet: at most three bytes.
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// Adds the bytes of the next token and returns the text completed by them, which may be empty.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.pending.len());
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    if let Some(n) = error.error_len() {
                        text.push(char::REPLACEMENT_CHARACTER);
                        rest = &rest[n..];
                        continue;
                    }
                }
            }
            break;
        }
        let kept = rest.len();
        self.pending.drain(..self.pending.len() - kept);
        text
    }

    /// Ends the stream: an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_of_any_bytes_gives_the_text_of_the_whole() {
        let cases: [&[u8]; 6] = [
            "plain, né, 中文, 👩‍👩‍👧 done".as_bytes(),
            b"\xff\xfe bad \xc3( \xe2\x82 \xf0\x9f\x98 end\xf0\x9f",
            b"\xe2\x82",
            b"\xed\xa0\x80surrogate",
            b"\xf5\x80\x80\x80 \xc0\xaf",
            b"",
        ];
        for bytes in cases {
            let whole = String::from_utf8_lossy(bytes);
            for step in 1..=bytes.len().max(1) {
                let mut stream = StreamDecoder::default();
                let mut text = String::new();
                for chunk in bytes.chunks(step) {
                    text += &stream.push(chunk);
                    assert!(stream.pending.len() <= 3);
                }
                text += &stream.finish();
                assert_eq!(text, whole, "in steps of {step}");
                assert_eq!(stream.finish(), "", "finish empties the decoder");
            }
        }
    }

    #[test]
    fn a_character_is_held_back_until_its_last_byte() {
        let mut stream = StreamDecoder::default();
        for byte in &"😀".as_bytes()[..3] {
            assert_eq!(stream.push(&[*byte]), "");
        }
        assert_eq!(stream.push(&"😀".as_bytes()[3..]), "😀");
    }
}
