//! Attention: rotary positions, the cache of keys and values, and softmax-weighted sums over it. Nothing here knows a
//! model family.

mod full;
mod kv_cache;
mod rope;

pub use full::{AttentionScratch, PartialSums, attend};
pub use kv_cache::{CacheType, KvCache, LayerCache};
pub use rope::{Rope, RopeScaling, RopeStyle, RopeTable};

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
