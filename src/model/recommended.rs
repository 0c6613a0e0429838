//! What a model's file recommends for choosing tokens: the `general.sampling.*` keys that converters make of a
//! `generation_config.json`. A model that thinks at length does badly at another temperature than its makers meant.
//!
//! They are kept as text and read when tokens are to be chosen: what nobody asks for need not be well-formed.

use ggml_ext::gguf::{Gguf, Value};

/// What the names of these keys begin with.
pub const RECOMMENDED_PREFIX: &str = "general.sampling.";

/// The names of the keys, without [`RECOMMENDED_PREFIX`], and their values.
pub(super) fn read(g: &Gguf) -> Vec<(String, String)> {
    let named = g.metadata().filter_map(|(key, value)| Some((key.strip_prefix(RECOMMENDED_PREFIX)?, value)));
    named.map(|(name, value)| (name.to_owned(), text(value))).collect()
}

fn text(value: &Value) -> String {
    match (value.as_int(), value.as_f32(), value.as_str()) {
        (Some(n), ..) => n.to_string(),
        (_, Some(x), _) => x.to_string(),
        (.., Some(s)) => s.to_owned(),
        _ => value.type_name(),
    }
}
