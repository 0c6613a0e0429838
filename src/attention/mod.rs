//! Attention: rotary positions, the cache of keys and values, softmax-weighted sums over it, and the ways layers share them.
//! Nothing here knows a model family.

mod alibi;
mod attend;
mod cache_memory;
mod channel_mix;
mod channels;
mod conv;
mod delta;
mod gates;
mod kda;
mod keys;
mod kv_cache;
mod lightning;
mod lisa;
mod plan;
mod recurrence;
mod ring;
mod rope;
mod route;
mod scan;
mod states;
mod stream;
mod time_mix;
mod token_shift;
mod weights;
mod wkv6;
mod wkv7;

pub use kv_cache::{CacheParams, CacheType, KvCache, state_bytes};
pub use plan::{Share, SharePlan};

// What members of a team do together.
pub(crate) use alibi::{USUAL_MAX_BIAS, slopes, subtract_distances};
pub(crate) use attend::{Attend, PartialSums, Queries, ScoreSource, attention_scratch};
pub(crate) use channel_mix::ChannelMix;
pub(crate) use channels::{ChannelDecay, ChannelScan};
pub(crate) use conv::Convolution;
pub(crate) use delta::DeltaRule;
pub(crate) use gates::{GateCurve, Gates};
pub(crate) use kda::{KeyedDecay, KeyedDelta};
pub(crate) use kv_cache::{LayerCache, Turn};
pub(crate) use lightning::Lightning;
pub(crate) use lisa::{Hidden, LisaAttention, LowRank};
pub(crate) use recurrence::{Recurrence, RecurrentBuffers, RecurrentShape, RecurrentStep, Rule};
pub(crate) use rope::{Rope, RopeScaling, RopeStyle, RopeTable, Temperature};
pub(crate) use route::{Holds, Routes};
pub(crate) use scan::{GroupNorm, SelectiveScan};
pub(crate) use stream::AttentionScratch;
pub(crate) use time_mix::{Curve, Given, OwnLeaning, TimeMix, TimeMixBuffers, TimeRule, TimeShape, TwoSteps};
pub(crate) use token_shift::TokenShift;
pub(crate) use weights::AttnWeights;
pub(crate) use wkv6::Fading;
pub(crate) use wkv7::Moving;

/// The shape of a layer's attention. Query head `h` reads key/value head `h / (n_head / n_head_kv)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub n_head: usize,
    /// Key/value heads; divides `n_head`.
    pub n_head_kv: usize,
    /// Length of a query or key head.
    pub head_dim_k: usize,
    /// Length of a value head.
    pub head_dim_v: usize,
    /// Factor on the scores, usually `1 / sqrt(head_dim_k)`.
    pub scale: f32,
    /// `cap * tanh(score / cap)` on the scaled scores, where the family has it.
    pub softcap: Option<f32>,
    /// A query sees itself and the `window - 1` positions before it; `None`: all before it.
    pub window: Option<usize>,
}

impl AttentionShape {
    /// Query heads per key/value head.
    pub fn group(&self) -> usize {
        self.n_head / self.n_head_kv
    }
}

/// What a layer keeps in the cache, by its kind of attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerCacheSpec {
    /// Key/value heads.
    pub n_head_kv: usize,
    /// Length of a key head; `None` where the layer has no keys.
    pub key_dim: Option<usize>,
    /// Length of a low-rank key head (`lisa`).
    pub rank: Option<usize>,
    /// Length of a value head; `None` where the layer has no values.
    pub value_dim: Option<usize>,
    /// Positions it attends to, see [`AttentionShape::window`].
    pub window: Option<usize>,
    /// Floats of what it knows of the sequence as a whole, 0 where it knows positions.
    pub n_state: usize,
}

impl LayerCacheSpec {
    /// Nothing.
    pub(crate) const NONE: Self =
        Self { n_head_kv: 0, key_dim: None, rank: None, value_dim: None, window: None, n_state: 0 };

    /// Bytes per position in a cache of these types; `None` where heads do not divide into the type's blocks.
    pub fn bytes_per_token(&self, ty_k: CacheType, ty_v: CacheType) -> Option<usize> {
        let rows = |ty: CacheType, dim: Option<usize>| match dim {
            Some(dim) => Some(self.n_head_kv.saturating_mul(ty.ggml().row_bytes(dim)?)),
            None => Some(0),
        };
        let all = [rows(ty_k, self.key_dim)?, rows(ty_k.of_low_rank(), self.rank)?, rows(ty_v, self.value_dim)?];
        Some(all.into_iter().fold(0, usize::saturating_add))
    }
}
