//! What every family builds: a stack of decoder layers with its embedding and output head. A family differs from
//! another only in which parts are there and how they are shaped; the forward pass is one for all.

use crate::attention::{AttentionShape, Rope};
use crate::compute::{Act, Linear};

/// The attention half of a layer.
pub struct Attention {
    /// Heads, scale, window.
    pub shape: AttentionShape,
    /// Query, key and value projections.
    pub q: Linear,
    /// See `q`.
    pub k: Linear,
    /// See `q`.
    pub v: Linear,
    /// RMSNorm weights on every query head, where the family has them.
    pub q_norm: Option<Box<[f32]>>,
    /// RMSNorm weights on every key head, where the family has them.
    pub k_norm: Option<Box<[f32]>>,
    /// Output projection.
    pub out: Linear,
    /// Which of the decoder's rotary embeddings turns queries and keys.
    pub rope: usize,
}

/// The gated feed-forward half of a layer: `down(act(gate x) * up x)`.
pub struct FeedForward {
    /// Gate projection.
    pub gate: Linear,
    /// Up projection.
    pub up: Linear,
    /// Down projection.
    pub down: Linear,
    /// The gate's activation.
    pub act: Act,
}

/// A decoder layer.
pub struct Layer {
    /// RMSNorm before attention.
    pub attn_norm: Box<[f32]>,
    /// Attention.
    pub attn: Attention,
    /// RMSNorm on the attention's result, where the family sandwiches it.
    pub post_attn_norm: Option<Box<[f32]>>,
    /// RMSNorm before the feed-forward network.
    pub ffn_norm: Box<[f32]>,
    /// Feed-forward network.
    pub ffn: FeedForward,
    /// RMSNorm on the network's result, where the family sandwiches it.
    pub post_ffn_norm: Option<Box<[f32]>>,
}

/// A rotary embedding that may depend on the session's context size.
pub struct ContextRope {
    /// Used up to `n_ctx_short` positions of context.
    pub short: Rope,
    /// Used beyond (LongRoPE), with the limit.
    pub long: Option<(usize, Rope)>,
}

impl ContextRope {
    /// One embedding whatever the context.
    pub fn always(rope: Rope) -> Self {
        Self { short: rope, long: None }
    }

    /// The embedding for a context of `n_ctx`.
    pub fn for_context(&self, n_ctx: usize) -> &Rope {
        match &self.long {
            Some((limit, long)) if n_ctx > *limit => long,
            _ => &self.short,
        }
    }
}

/// A whole model.
pub struct Decoder {
    /// Token embeddings; the output head too where there is none of its own.
    pub embed: Linear,
    /// Factor on the embeddings.
    pub embed_scale: f32,
    /// Layers, first to last.
    pub layers: Vec<Layer>,
    /// Rotary embeddings the layers refer to.
    pub ropes: Vec<ContextRope>,
    /// RMSNorm before the output head.
    pub output_norm: Box<[f32]>,
    /// The output head, unless tied to the embeddings.
    pub output: Option<Linear>,
    /// `cap * tanh(logit / cap)`, where the family has it.
    pub logit_softcap: Option<f32>,
    /// RMSNorm's epsilon.
    pub norm_eps: f32,
}

impl Decoder {
    /// The output head: `[n_vocab, n_embd]`.
    pub fn head(&self) -> &Linear {
        self.output.as_ref().unwrap_or(&self.embed)
    }

    /// Tokens in the vocabulary.
    pub fn n_vocab(&self) -> usize {
        self.embed.weight.rows()
    }

    /// Every matrix, for sizes.
    pub fn matrices(&self) -> impl Iterator<Item = &Linear> {
        self.layers
            .iter()
            .flat_map(|l| [&l.attn.q, &l.attn.k, &l.attn.v, &l.attn.out, &l.ffn.gate, &l.ffn.up, &l.ffn.down])
            .chain([&self.embed])
            .chain(&self.output)
    }

    /// The shape of every layer's attention.
    pub fn shapes(&self) -> impl Iterator<Item = AttentionShape> + Clone {
        self.layers.iter().map(|l| l.attn.shape)
    }
}
