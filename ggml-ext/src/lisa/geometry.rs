//! The sizes of a model's attention, as far as the extension's tensors and the merging depend on them.

use super::{LisaError, recurrent_layers};
use crate::gguf::{Gguf, MAX_ENTRIES, Value};

/// Heads of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub n_head: usize,
    /// Key/value heads.
    pub n_head_kv: usize,
    /// Length of a query or key head.
    pub key_length: usize,
    /// Length of a value head.
    pub value_length: usize,
}

/// The sizes of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// Width of the residual stream.
    pub n_embd: usize,
    /// One per layer.
    pub layers: Vec<Heads>,
    /// How many of them, the first ones, have keys and values of their own.
    pub n_caching: usize,
}

impl Geometry {
    /// A model of `n_layer` layers that are all alike.
    pub fn uniform(n_layer: usize, n_embd: usize, heads: Heads) -> Self {
        Self { n_embd, layers: vec![heads; n_layer], n_caching: n_layer }
    }

    /// Reads `<architecture>.block_count`, `.embedding_length`, `.attention.head_count`, `.attention.head_count_kv`,
    /// `.attention.key_length` and `.attention.value_length`, of which the last four may be one number or one per layer, and the last two
    /// others (`_swa`) for layers with a sliding window.
    ///
    /// # Errors
    /// Names the key that is missing, of another type or out of range.
    pub fn read(gguf: &Gguf) -> Result<Self, LisaError> {
        let arch = gguf.str("general.architecture")?;
        let arch = arch.ok_or(LisaError::MissingKey { key: "general.architecture" })?;
        let key = |name: &str| format!("{arch}.{name}");
        let wrong = |name: &str, what: String| LisaError::BaseKey { key: key(name), what };
        let missing = |name: &str| wrong(name, "is missing".into());
        // Every layer has tensors, so a file cannot hold more layers than tensors.
        let number = |name: &str, max: u64| match gguf.u64(&key(name))? {
            None => Err(missing(name)),
            Some(n) if n == 0 || n > max => Err(wrong(name, format!("{n} is out of range, expected 1 to {max}"))),
            Some(n) => Ok(n as usize),
        };
        // Layers that guess further tokens are counted, but no token passes through them.
        let n_guessing = gguf.u64(&key("nextn_predict_layers"))?.unwrap_or(0);
        let n_layer = number("block_count", MAX_ENTRIES)?;
        let n_layer = usize::try_from(n_guessing).ok().and_then(|n| n_layer.checked_sub(n)).filter(|&n| n > 0);
        let n_layer = n_layer
            .ok_or_else(|| wrong("nextn_predict_layers", format!("{n_guessing}, expected fewer than all layers")))?;
        let n_embd = number("embedding_length", MAX_WIDTH)?;
        let per_layer = |name: &str| -> Result<Option<Vec<usize>>, LisaError> {
            let all = match gguf.get(&key(name)) {
                None => return Ok(None),
                Some(Value::Array(_)) => gguf.u32s(&key(name))?.unwrap_or_default(),
                Some(_) => gguf.u32(&key(name))?.map(|n| vec![n; n_layer]).unwrap_or_default(),
            };
            if all.len() < n_layer {
                return Err(wrong(name, format!("{} values, expected one per layer: {n_layer}", all.len())));
            }
            match all.iter().find(|&&n| u64::from(n) > MAX_WIDTH) {
                Some(n) => Err(wrong(name, format!("{n} is out of range, expected at most {MAX_WIDTH}"))),
                None => Ok(Some(all.into_iter().map(|n| n as usize).collect())),
            }
        };
        let n_head = per_layer("attention.head_count")?.ok_or_else(|| missing("attention.head_count"))?;
        let n_head_kv = per_layer("attention.head_count_kv")?;
        let (key_length, value_length) = (per_layer("attention.key_length")?, per_layer("attention.value_length")?);
        let length = |given: &Option<Vec<usize>>, i: usize, name: &str| match given {
            Some(all) => Ok(all[i]),
            // Layers without attention have no heads.
            None if n_head[i] == 0 => Ok(0),
            None if n_embd.is_multiple_of(n_head[i]) => Ok(n_embd / n_head[i]),
            None => Err(wrong(name, format!("is missing, and {} heads do not divide {n_embd}", n_head[i]))),
        };
        // Layers with a sliding window may have heads of another length.
        let (key_swa, value_swa) = (per_layer("attention.key_length_swa")?, per_layer("attention.value_length_swa")?);
        const PATTERN: &str = "attention.sliding_window_pattern";
        let is_local = match (&key_swa, &value_swa) {
            (None, None) => vec![false; n_layer],
            _ => gguf.bools(&key(PATTERN))?.filter(|all| all.len() >= n_layer).ok_or_else(|| {
                wrong(PATTERN, format!("expected a flag for each of {n_layer} layers, whose heads differ in length"))
            })?,
        };
        let is_recurrent = recurrent_layers(gguf, n_layer)?;
        let layers = (0..n_layer).map(|i| {
            if is_recurrent[i] {
                return Ok(Heads { n_head: 0, n_head_kv: 0, key_length: 0, value_length: 0 });
            }
            let local = |of_local: &Option<Vec<usize>>| of_local.as_ref().filter(|_| is_local[i]).map(|all| all[i]);
            let pick = |of_local, given, name| local(of_local).map_or_else(|| length(given, i, name), Ok);
            Ok(Heads {
                n_head: n_head[i],
                n_head_kv: n_head_kv.as_ref().map_or(n_head[i], |all| all[i]),
                key_length: pick(&key_swa, &key_length, "attention.key_length")?,
                value_length: pick(&value_swa, &value_length, "attention.value_length")?,
            })
        });
        let n_without = gguf.u32(&key("attention.shared_kv_layers"))?.unwrap_or(0) as usize;
        let n_caching = n_layer.saturating_sub(n_without);
        Ok(Self { n_embd, layers: layers.collect::<Result<_, LisaError>>()?, n_caching })
    }
}

/// Far above any model's width or number of heads, and far below where products of two overflow 64 bits.
const MAX_WIDTH: u64 = 1 << 24;
