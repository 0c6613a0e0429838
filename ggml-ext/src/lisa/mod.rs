//! The LISA extension of GGUF: which layers take their attention weights from an earlier one, and the tensors they
//! need for it. `SPEC.md` is the format's definition; this is its typed view.
//!
//! The same keys and tensors come in two containers: a *sidecar* beside an untouched base model, and a *merged* model.

mod check;
mod convert;
mod error;
mod fingerprint;
mod geometry;
mod merge;
mod recurrent;
mod sidecar;

pub use check::{check_plan, check_tensors, is_lisa_name};
pub use convert::{ConvertError, Map, convert};
pub use error::{LisaError, MakeError};
pub use fingerprint::fingerprint;
pub use geometry::{Geometry, Heads};
pub use merge::{Merged, Sum, check_unmerged, merge};
pub use recurrent::recurrent_layers;
pub use sidecar::{check_base, check_container, check_sidecar, extract, identify, write_sidecar};

use std::io::Write;

use crate::gguf::{Gguf, GgufWriter, Value, ValueType, WriteError};

/// The version of the extension that this crate reads and writes.
pub const VERSION: u32 = 1;
/// `general.type` of a sidecar.
pub const SIDECAR_TYPE: &str = "adapter";
/// `adapter.type` of a sidecar.
pub const ADAPTER_TYPE: &str = "lisa";
/// The key that tells a file with the extension from others.
pub const VERSION_KEY: &str = "lisa.version";
/// All keys of the extension start with this, also those of later versions.
pub const KEY_PREFIX: &str = "lisa.";
/// The keys that [`LisaMeta`] stands for.
const KEYS: [&str; 12] = [
    VERSION_KEY,
    "lisa.base.fingerprint",
    "lisa.layer.kind",
    "lisa.layer.source",
    "lisa.layer.rank",
    "lisa.align.activation",
    "lisa.align.domain",
    "lisa.scale",
    "lisa.trained.tokens",
    "lisa.trained.data",
    "lisa.trained.seed",
    "lisa.trained.base",
];
/// Names of all tensors of the extension start with this after `blk.N.`.
pub const TENSOR_PREFIX: &str = "lisa_";

macro_rules! named {
    ($(#[$doc:meta])* $ty:ident { $($(#[$vdoc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $ty { $($(#[$vdoc])* $variant,)* }

        impl $ty {
            /// Every value.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name in files.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The value of this name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|v| v.name() == name)
            }

            /// All names, for messages.
            pub fn names() -> String {
                Self::ALL.iter().map(|v| v.name()).collect::<Vec<_>>().join(", ")
            }
        }

        impl std::fmt::Display for $ty {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

named! {
    /// Where a layer's attention weights come from.
    Kind {
        /// Its own queries and keys.
        Full = "full",
        /// The source's weights as they are: Shared Attention (arXiv 2407.12866).
        Shared = "shared",
        /// The source's weights re-arranged among the heads, plus low-rank scores: LISA (arXiv 2408.01890).
        Lisa = "lisa",
        /// Its own queries, the source's keys and values: Cross-Layer Attention (arXiv 2405.12981).
        Kv = "kv",
    }
}

named! {
    /// The activation of the alignment network's hidden units.
    Activation {
        /// max(x, 0)
        Relu = "relu",
        /// x * sigmoid(x)
        Silu = "silu",
        /// The tanh approximation of x * Phi(x).
        Gelu = "gelu",
    }
}

named! {
    /// What the alignment network sees of the source's attention.
    Domain {
        /// Logarithms of the weights.
        Log = "log",
        /// The weights.
        Weight = "weight",
    }
}

named! {
    /// The tensors a layer can have; [`Part::tensor`] gives their full names.
    Part {
        /// `[n_head, n_head]`: row h holds the contribution of source head h to every head.
        AlignSkip = "lisa_align_skip.weight",
        /// `[n_hidden, n_head]`: row h holds the contribution of source head h to every hidden unit.
        AlignUp = "lisa_align_up.weight",
        /// `[n_hidden]`
        AlignUpBias = "lisa_align_up.bias",
        /// `[n_head, n_hidden]`: row m holds the contribution of hidden unit m to every head.
        AlignDown = "lisa_align_down.weight",
        /// `[n_embd, n_head * rank]`: low-rank queries.
        Q = "lisa_q.weight",
        /// `[n_embd, n_head_kv * rank]`: low-rank keys.
        K = "lisa_k.weight",
        /// `[rank / 2, n_head_kv]`: angular frequencies in radians per position.
        Freq = "lisa_freq.weight",
        /// `[n_embd, n_embd]`: linear compensation of a `shared` layer (UniAttn, arXiv 2502.00439).
        Comp = "lisa_comp.weight",
    }
}

impl Kind {
    /// The projections that a layer of this kind never uses: their `attn_*` weights and biases, and the norms behind them, are idle. After
    /// `q`, `k` and `v` come those of multi-head latent attention.
    pub const fn idle_projections(self) -> &'static [&'static str] {
        match self {
            Self::Full => &[],
            Self::Shared | Self::Lisa => &["q", "k", "q_a", "q_b", "k_b"],
            Self::Kv => &["k", "v", "kv_a_mqa", "kv_a"],
        }
    }
}

impl Part {
    /// The name of layer `layer`'s tensor.
    pub fn tensor(self, layer: usize) -> String {
        format!("blk.{layer}.{}", self.name())
    }

    /// The layer and part that a tensor's name tells, if it is one of the extension's.
    pub fn parse(tensor: &str) -> Option<(usize, Self)> {
        let (layer, part) = tensor.strip_prefix("blk.")?.split_once('.')?;
        let n = layer.parse().ok().filter(|n: &usize| n.to_string() == layer)?;
        Some((n, Self::from_name(part)?))
    }
}

/// What the metadata say of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerMeta {
    /// Where its attention weights come from.
    pub kind: Kind,
    /// The source layer, before this one; `None` for `full`.
    pub source: Option<usize>,
    /// Values per low-rank head: even, 0 without a low-rank part.
    pub rank: usize,
}

impl LayerMeta {
    /// A layer that shares nothing.
    pub const FULL: Self = Self { kind: Kind::Full, source: None, rank: 0 };
}

/// How the modules were made; all of it optional.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provenance {
    /// `lisa.trained.tokens`
    pub tokens: Option<u64>,
    /// `lisa.trained.data`
    pub data: Option<String>,
    /// `lisa.trained.seed`
    pub seed: Option<u64>,
    /// `lisa.trained.base`
    pub base: Option<String>,
}

/// The extension's metadata.
#[derive(Debug, Clone, PartialEq)]
pub struct LisaMeta {
    /// [`fingerprint`] of the base model.
    pub fingerprint: String,
    /// One per layer of the model.
    pub layers: Vec<LayerMeta>,
    /// Of the hidden units of all layers.
    pub activation: Activation,
    /// What the alignment networks of all layers see.
    pub domain: Domain,
    /// Factor on the low-rank dot products.
    pub scale: f32,
    /// How the modules were made.
    pub trained: Provenance,
}

/// True for a sidecar, false for a model.
pub fn is_sidecar(gguf: &Gguf) -> bool {
    gguf.get("general.type").and_then(Value::as_str) == Some(SIDECAR_TYPE)
        && gguf.get("adapter.type").and_then(Value::as_str) == Some(ADAPTER_TYPE)
}

impl LisaMeta {
    /// Reads and checks the metadata; `None` where the file has no `lisa.version`.
    ///
    /// # Errors
    /// Names the key, or the layer, that is missing, of another type or out of range.
    pub fn read(gguf: &Gguf) -> Result<Option<Self>, LisaError> {
        let Some(version) = gguf.u32(VERSION_KEY)? else { return Ok(None) };
        if version != VERSION {
            return Err(LisaError::Version { found: version });
        }
        let str = |key: &'static str| gguf.str(key)?.ok_or(LisaError::MissingKey { key });
        let fingerprint = str("lisa.base.fingerprint")?;
        if fingerprint.len() != 64 || !fingerprint.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(LisaError::value("lisa.base.fingerprint", fingerprint, "64 hexadecimal digits in lower case"));
        }
        let kinds = gguf.strings("lisa.layer.kind")?.ok_or(LisaError::MissingKey { key: "lisa.layer.kind" })?;
        let sources = gguf.i32s("lisa.layer.source")?.ok_or(LisaError::MissingKey { key: "lisa.layer.source" })?;
        let ranks = gguf.u32s("lisa.layer.rank")?.ok_or(LisaError::MissingKey { key: "lisa.layer.rank" })?;
        for (key, len) in [("lisa.layer.source", sources.len()), ("lisa.layer.rank", ranks.len())] {
            if len != kinds.len() {
                return Err(LisaError::Length { key, found: len, expected: kinds.len() });
            }
        }
        let mut layers = Vec::with_capacity(kinds.len());
        for (layer, ((kind, &source), &rank)) in kinds.iter().zip(&sources).zip(&ranks).enumerate() {
            let Some(kind) = Kind::from_name(kind) else {
                let what = format!("kind {kind:?} is unknown, expected one of {}", Kind::names());
                return Err(LisaError::Layer { layer, what });
            };
            let meta = layer_meta(layer, kind, source, rank).and_then(|meta| check_source(meta, &layers));
            layers.push(meta.map_err(|what| LisaError::Layer { layer, what })?);
        }
        let has_lisa = layers.iter().any(|l| l.kind == Kind::Lisa);
        // A plan without LISA layers needs no alignment keys.
        let named = |key: &'static str| match gguf.str(key)? {
            None if !has_lisa => Ok(None),
            None => Err(LisaError::MissingKey { key }),
            found => Ok(found),
        };
        let activation = match named("lisa.align.activation")? {
            None => Activation::Silu,
            Some(name) => Activation::from_name(name)
                .ok_or_else(|| LisaError::value("lisa.align.activation", name, Activation::names()))?,
        };
        let domain = match named("lisa.align.domain")? {
            None => Domain::Log,
            Some(name) => {
                Domain::from_name(name).ok_or_else(|| LisaError::value("lisa.align.domain", name, Domain::names()))?
            }
        };
        let scale = match gguf.f32("lisa.scale")? {
            None if layers.iter().all(|l| l.rank == 0) => 1.0,
            None => return Err(LisaError::MissingKey { key: "lisa.scale" }),
            Some(s) if !s.is_finite() || s <= 0.0 => {
                return Err(LisaError::value("lisa.scale", s, "a positive number"));
            }
            Some(s) => s,
        };
        let owned = |key: &str| -> Result<Option<String>, LisaError> { Ok(gguf.str(key)?.map(String::from)) };
        let trained = Provenance {
            tokens: gguf.u64("lisa.trained.tokens")?,
            data: owned("lisa.trained.data")?,
            seed: gguf.u64("lisa.trained.seed")?,
            base: owned("lisa.trained.base")?,
        };
        Ok(Some(Self { fingerprint: fingerprint.into(), layers, activation, domain, scale, trained }))
    }

    /// Adds the metadata to a file; the writer's user adds `general.*` and the tensors.
    ///
    /// # Errors
    /// As [`GgufWriter::value`].
    pub fn write<W: Write>(&self, w: &mut GgufWriter<W>) -> Result<(), WriteError> {
        w.u32(VERSION_KEY, VERSION)?;
        w.str("lisa.base.fingerprint", &self.fingerprint)?;
        let kinds: Vec<_> = self.layers.iter().map(|l| l.kind.name()).collect();
        w.strings("lisa.layer.kind", &kinds)?;
        let sources = self.layers.iter().map(|l| Value::I32(l.source.map_or(-1, |s| s as i32)));
        w.array("lisa.layer.source", ValueType::I32, sources)?;
        w.array("lisa.layer.rank", ValueType::U32, self.layers.iter().map(|l| Value::U32(l.rank as u32)))?;
        w.str("lisa.align.activation", self.activation.name())?;
        w.str("lisa.align.domain", self.domain.name())?;
        w.f32("lisa.scale", self.scale)?;
        let t = &self.trained;
        t.tokens.map_or(Ok(()), |n| w.u64("lisa.trained.tokens", n))?;
        t.data.as_ref().map_or(Ok(()), |s| w.str("lisa.trained.data", s))?;
        t.seed.map_or(Ok(()), |n| w.u64("lisa.trained.seed", n))?;
        t.base.as_ref().map_or(Ok(()), |s| w.str("lisa.trained.base", s))
    }
}

fn layer_meta(layer: usize, kind: Kind, source: i32, rank: u32) -> Result<LayerMeta, String> {
    let source = match (kind, source) {
        (Kind::Full, -1) => None,
        (Kind::Full, s) => return Err(format!("kind full has source {s}, expected -1")),
        (_, s) => match usize::try_from(s) {
            Ok(s) if s < layer => Some(s),
            _ => return Err(format!("source {s} is not an earlier layer, expected 0 to {}", layer as i64 - 1)),
        },
    };
    if !rank.is_multiple_of(2) {
        return Err(format!("rank {rank} is odd, expected an even number: its values rotate in pairs"));
    }
    if kind != Kind::Lisa && rank > 0 {
        return Err(format!("kind {kind} has rank {rank}, expected 0"));
    }
    Ok(LayerMeta { kind, source, rank: rank as usize })
}

/// Keys and values can only be taken from a layer that has both: its own, or again those of its source.
fn check_source(meta: LayerMeta, earlier: &[LayerMeta]) -> Result<LayerMeta, String> {
    match meta.source.and_then(|s| earlier.get(s)) {
        Some(source) if meta.kind == Kind::Kv && !matches!(source.kind, Kind::Full | Kind::Kv) => {
            Err(format!("kind kv needs the keys of a full or kv layer, its source is of kind {}", source.kind))
        }
        _ => Ok(meta),
    }
}

#[cfg(test)]
mod tests;
