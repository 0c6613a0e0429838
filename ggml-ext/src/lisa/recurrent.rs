//! Which layers of a hybrid have a state in the place of attention.

use super::LisaError;
use crate::gguf::{Gguf, Value};

/// Architectures that are hybrids whether their files say so or not: one layer of so many has attention, the last of these.
const HYBRIDS: [(&str, usize); 4] = [("qwen3next", 4), ("qwen35", 4), ("qwen35moe", 4), ("minimax-01", 8)];

/// For each of the first `n_layer` layers whether it has a state, and so no heads that could be shared: as
/// `<architecture>.attention.recurrent_layers` flags them, or all but every `<architecture>.full_attention_interval`-th, or what the
/// architecture has where its files have neither key.
///
/// # Errors
/// Names the key that is of another type or out of range.
pub fn recurrent_layers(gguf: &Gguf, n_layer: usize) -> Result<Vec<bool>, LisaError> {
    let arch = gguf.str("general.architecture")?.unwrap_or_default();
    let wrong = |key: &str, what: String| LisaError::BaseKey { key: key.into(), what };
    let flags = format!("{arch}.attention.recurrent_layers");
    if let Some(Value::Array(_)) = gguf.get(&flags) {
        let all = gguf.bools(&flags)?.unwrap_or_default();
        let n = all.len();
        let all = all.get(..n_layer).map(<[bool]>::to_vec);
        return all.ok_or_else(|| wrong(&flags, format!("has {n} values, expected one per layer: {n_layer}")));
    }
    let interval = format!("{arch}.full_attention_interval");
    let interval = match gguf.u32(&interval)? {
        Some(0) => return Err(wrong(&interval, "0 is out of range, expected 1 or more".into())),
        Some(n) => Some(n as usize),
        None => HYBRIDS.iter().find(|(name, _)| *name == arch).map(|&(_, n)| n),
    };
    Ok((1..=n_layer).map(|i| interval.is_some_and(|n| !i.is_multiple_of(n))).collect())
}

#[cfg(test)]
mod tests {
    use super::super::Geometry;
    use super::*;
    use crate::gguf::GgufWriter;

    /// A model of `arch` with six layers, and with the keys that `more` adds.
    fn model(arch: &str, more: impl FnOnce(&mut GgufWriter<Vec<u8>>)) -> Vec<u8> {
        let mut w = GgufWriter::new(Vec::new());
        w.str("general.architecture", arch).unwrap();
        for (key, n) in [("block_count", 6), ("embedding_length", 64), ("attention.head_count", 4)] {
            w.u32(&format!("{arch}.{key}"), n).unwrap();
        }
        more(&mut w);
        w.finish().unwrap()
    }

    /// One letter for each layer: a state, or attention.
    fn layers(bytes: &[u8]) -> Result<String, String> {
        let gguf = Gguf::parse(bytes).unwrap();
        let all = recurrent_layers(&gguf, 6).map_err(|e| e.to_string())?;
        let heads: Vec<_> = Geometry::read(&gguf).unwrap().layers.iter().map(|h| h.n_head == 0).collect();
        assert_eq!(heads, all, "layers with a state have no heads");
        Ok(all.into_iter().map(|recurrent| if recurrent { 's' } else { 'a' }).collect())
    }

    #[test]
    fn what_files_say_and_what_they_leave_unsaid() {
        let ok = |bytes: &[u8], expected: &str| assert_eq!(layers(bytes).as_deref(), Ok(expected));
        ok(&model("llama", |_| ()), "aaaaaa");
        for (arch, interval) in HYBRIDS {
            ok(&model(arch, |_| ()), if interval == 4 { "sssass" } else { "ssssss" });
        }
        ok(&model("qwen35", |w| w.u32("qwen35.full_attention_interval", 3).unwrap()), "ssassa");
        // Of an architecture that nobody here knows, the keys count.
        ok(&model("other", |w| w.u32("other.full_attention_interval", 2).unwrap()), "sasasa");
        let flagged = |w: &mut GgufWriter<Vec<u8>>, n: usize| {
            w.u32("qwen35.full_attention_interval", 3).unwrap();
            let flags = [true, false, false, true, true, true, false];
            let flags = flags[..n].iter().map(|&f| Value::Bool(f));
            w.array("qwen35.attention.recurrent_layers", crate::gguf::ValueType::Bool, flags).unwrap();
        };
        ok(&model("qwen35", |w| flagged(w, 7)), "saasss");
        let refused = layers(&model("qwen35", |w| flagged(w, 5))).unwrap_err();
        assert!(refused.contains("recurrent_layers: has 5 values") && refused.contains("6"), "{refused}");
        let refused = layers(&model("qwen35", |w| w.u32("qwen35.full_attention_interval", 0).unwrap())).unwrap_err();
        assert!(refused.contains("full_attention_interval: 0 is out of range"), "{refused}");
    }
}
