//! The JSON file that tells the converter where a safetensors file keeps which part, and in which order.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::ConvertError;
use crate::lisa::Part;

/// Where the modules are and what plan they are for; `SPEC.md` describes the JSON.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Map {
    pub(super) tensors: Patterns,
    /// The substituted layers. Without it: every layer with tensors, of kind `lisa`, from the layer before.
    pub(super) layers: Option<BTreeMap<usize, Layer>>,
    pub(super) activation: Option<String>,
    pub(super) domain: Option<String>,
    pub(super) scale: Option<f32>,
    pub(super) rope_pairs: Option<RopePairs>,
    pub(super) freq_pairs: Option<FreqPairs>,
    pub(super) freq_base: Option<f64>,
    #[serde(rename = "type")]
    pub(super) ty: Option<String>,
    #[serde(default)]
    pub(super) trained: Trained,
}

impl Map {
    /// Reads the JSON.
    ///
    /// # Errors
    /// [`ConvertError::Map`] names the key or the place.
    pub fn parse(json: &str) -> Result<Self, ConvertError> {
        let map: Self = serde_json::from_str(json).map_err(|e| ConvertError::Map(e.to_string()))?;
        for (part, entry) in Part::ALL.iter().filter_map(|&p| Some((p, map.tensors.get(p)?))) {
            let name = entry.name();
            if name.matches(LAYER).count() != 1 {
                let what = format!("tensors.{}: {name:?}, expected {LAYER} once in it", key(part));
                return Err(ConvertError::Map(what));
            }
            if matches!(part, Part::AlignUpBias | Part::Freq) && matches!(entry, Entry::Ordered(_)) {
                let what = format!("tensors.{}: has no input and output, expected a name without order", key(part));
                return Err(ConvertError::Map(what));
            }
        }
        Ok(map)
    }
}

/// What stands for the layer's number in a pattern.
pub(super) const LAYER: &str = "{layer}";

/// The pattern of each part's name.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Patterns {
    skip: Option<Entry>,
    up: Option<Entry>,
    up_bias: Option<Entry>,
    down: Option<Entry>,
    q: Option<Entry>,
    k: Option<Entry>,
    freq: Option<Entry>,
    comp: Option<Entry>,
}

impl Patterns {
    pub fn get(&self, part: Part) -> Option<&Entry> {
        match part {
            Part::AlignSkip => &self.skip,
            Part::AlignUp => &self.up,
            Part::AlignUpBias => &self.up_bias,
            Part::AlignDown => &self.down,
            Part::Q => &self.q,
            Part::K => &self.k,
            Part::Freq => &self.freq,
            Part::Comp => &self.comp,
        }
        .as_ref()
    }
}

/// A part's key in the JSON.
pub(super) fn key(part: Part) -> &'static str {
    match part {
        Part::AlignSkip => "skip",
        Part::AlignUp => "up",
        Part::AlignUpBias => "up_bias",
        Part::AlignDown => "down",
        Part::Q => "q",
        Part::K => "k",
        Part::Freq => "freq",
        Part::Comp => "comp",
    }
}

/// A pattern, and how the matrix is stored.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "expected a tensor's name, or an object with \"name\" and \"order\"")]
pub(super) enum Entry {
    Plain(String),
    Ordered(Ordered),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ordered {
    name: String,
    order: Order,
}

impl Entry {
    pub fn name(&self) -> &str {
        match self {
            Self::Plain(name) => name,
            Self::Ordered(o) => &o.name,
        }
    }

    /// As `torch.nn.Linear` stores its weight, unless the map says otherwise.
    pub fn order(&self) -> Order {
        match self {
            Self::Plain(_) => Order::OutIn,
            Self::Ordered(o) => o.order,
        }
    }

    /// The layer in the name of a tensor that fits the pattern.
    pub fn layer(&self, tensor: &str) -> Option<usize> {
        let (before, after) = self.name().split_once(LAYER)?;
        let digits = tensor.strip_prefix(before)?.strip_suffix(after)?;
        digits.parse().ok().filter(|n: &usize| n.to_string() == digits)
    }

    /// The name that layer `layer`'s tensor has.
    pub fn tensor(&self, layer: usize) -> String {
        self.name().replace(LAYER, &layer.to_string())
    }
}

/// Which index of a matrix comes first (is the slow one).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum Order {
    #[serde(rename = "[out, in]")]
    OutIn,
    #[serde(rename = "[in, out]")]
    InOut,
}

/// How the values of a low-rank head pair up to rotate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RopePairs {
    /// (2p, 2p + 1), as in the GGUF tensors.
    Interleaved,
    /// (p, p + rank / 2), as Transformers' `rotate_half` has it.
    Half,
}

/// A substituted layer.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Layer {
    pub kind: Option<String>,
    pub source: Option<usize>,
    pub rank: Option<usize>,
}

/// The rotation pairs of the base's heads whose frequencies the low-rank pairs take.
#[derive(Debug, Clone, Deserialize)]
#[serde(
    untagged,
    expecting = "freq_pairs: expected a list of pair numbers, a list of such lists (one per KV head), or \
                               an object from layer to one of the two"
)]
pub(super) enum FreqPairs {
    Same(HeadPairs),
    Layers(BTreeMap<String, HeadPairs>),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum HeadPairs {
    All(Vec<usize>),
    Each(Vec<Vec<usize>>),
}

impl FreqPairs {
    /// The pairs of layer `layer`'s `n_head_kv` heads.
    pub fn of(&self, layer: usize, n_head_kv: usize) -> Option<Vec<&[usize]>> {
        let pairs = match self {
            Self::Same(pairs) => pairs,
            Self::Layers(layers) => layers.get(&layer.to_string())?,
        };
        Some(match pairs {
            HeadPairs::All(one) => vec![one; n_head_kv],
            HeadPairs::Each(all) => all.iter().map(Vec::as_slice).collect(),
        })
    }
}

/// Becomes `lisa.trained.*`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Trained {
    pub tokens: Option<u64>,
    pub data: Option<String>,
    pub seed: Option<u64>,
    pub base: Option<String>,
}
