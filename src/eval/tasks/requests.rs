//! From texts to tokens: where the continuation begins.

use super::Request;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// A request in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Context and continuation.
    pub ids: Vec<u32>,
    /// Tokens of the context, at least one.
    pub n_context: usize,
}

/// Tokenises context and continuation together, and takes for the continuation what comes after as many tokens as the
/// context has alone. Spaces at the context's end go to the continuation. An empty context is the start token.
///
/// # Errors
/// The tokenizer's; [`Error::Impossible`] for a continuation without tokens.
pub fn encode(tokenizer: &Tokenizer, request: &Request) -> Result<Encoded> {
    let context = request.context.trim_end();
    let continuation = format!("{}{}", &request.context[context.len()..], request.continuation);
    let start = tokenizer.bos().filter(|_| tokenizer.add_bos());
    let mut ids: Vec<u32> = start.into_iter().collect();
    let n_context = if context.is_empty() {
        if ids.is_empty() {
            let first = tokenizer.bos().or(tokenizer.eos());
            ids.push(first.ok_or_else(|| {
                Error::Impossible("a question without context needs a start token, and the model has none".into())
            })?);
        }
        ids.extend(tokenizer.encode(&continuation, false, false)?);
        1
    } else {
        let n_context = ids.len() + tokenizer.encode(context, false, false)?.len();
        ids.extend(tokenizer.encode(&format!("{context}{continuation}"), false, false)?);
        // Where the two merge so far that nothing would be left, the last token is the continuation.
        n_context.min(ids.len() - 1)
    };
    if n_context == 0 || n_context >= ids.len() {
        return Err(Error::Impossible(format!("'{continuation}' has no tokens to score")));
    }
    Ok(Encoded { ids, n_context })
}

impl Encoded {
    /// Drops tokens at the start so that what the model reads, all but the last token, fits into `n_ctx`. A continuation that is
    /// longer than that loses its own start, of which the last token left is the context. Whether any had to go.
    pub fn truncate(&mut self, n_ctx: usize) -> bool {
        let excess = (self.ids.len() - 1).saturating_sub(n_ctx.max(1));
        self.ids.drain(..excess);
        self.n_context = self.n_context.saturating_sub(excess).max(1);
        excess > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Model, ModelParams};

    fn tokenizer(run: impl Fn(&Tokenizer)) {
        run(Model::embedded(ModelParams::default()).unwrap().tokenizer());
    }

    fn request(context: &str, continuation: &str) -> Request {
        Request { context: context.into(), continuation: continuation.into() }
    }

    #[test]
    fn the_continuation_is_what_follows_the_context() {
        tokenizer(|t| {
            let e = encode(t, &request("Once upon a", " time there")).unwrap();
            assert_eq!(e.ids, t.encode("Once upon a time there", true, false).unwrap());
            assert_eq!(e.n_context, t.encode("Once upon a", true, false).unwrap().len());
            // Spaces at the end of the context belong to the continuation.
            assert_eq!(encode(t, &request("Once upon a ", "time there")).unwrap(), e);
            let e = encode(t, &request("", " A dog")).unwrap();
            assert_eq!((e.ids[0], e.n_context), (t.bos().unwrap(), 1));
            assert_eq!(e.ids[1..], t.encode(" A dog", false, false).unwrap());
        });
    }

    #[test]
    fn long_contexts_lose_their_start() {
        let mut e = Encoded { ids: (0..10).collect(), n_context: 7 };
        assert!(!e.clone().truncate(9));
        assert!(e.truncate(5));
        assert_eq!((e.ids[0], e.ids.len(), e.n_context), (4, 6, 3));
        // Of a continuation of three tokens the last two are scored.
        assert!(e.truncate(2));
        assert_eq!((&e.ids[..], e.n_context), (&[7, 8, 9][..], 1));
    }
}
