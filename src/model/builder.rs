//! The parts that families have in common, so that a family's own file shows only what sets it apart.

use super::config::{Config, Keys};
use super::decoder::{Attention, ContextRope, Decoder, FeedForward, Layer};
use super::weights::Loader;
use crate::Result;
use crate::attention::{AttentionShape, Rope, RopeStyle};
use crate::compute::Act;

/// What a family builds its decoder from.
pub struct Builder<'b, 'g, 'a, 'p> {
    /// The file's metadata.
    pub keys: &'b Keys<'g, 'a>,
    /// Hyper-parameters common to all families.
    pub config: &'b Config,
    /// Tokens in the vocabulary.
    pub n_vocab: usize,
    /// The file's tensors.
    pub loader: &'b mut Loader<'p>,
    /// Things the user should know that do not stop the loading.
    pub warnings: Vec<String>,
}

impl Builder<'_, '_, '_, '_> {
    /// Exact attention over the whole context with the usual scale.
    pub fn shape(&self) -> AttentionShape {
        let c = self.config;
        AttentionShape {
            n_head: c.n_head,
            n_head_kv: c.n_head_kv,
            head_dim_k: c.head_dim_k,
            head_dim_v: c.head_dim_v,
            scale: 1.0 / (c.head_dim_k as f32).sqrt(),
            softcap: None,
            window: None,
        }
    }

    /// For families whose files may name a sliding window that llama.cpp, whose answers we give, does not apply.
    pub fn ignore_window(&mut self) -> Result<()> {
        let window = self.keys.count("attention.sliding_window")?;
        if let Some(n) = window.filter(|&n| n > 0 && n < self.config.n_ctx_train) {
            self.warnings.push(format!(
                "{}.attention.sliding_window = {n} is not applied, as in llama.cpp: beyond {n} tokens of context \
                 results may differ from the original model's",
                self.config.arch
            ));
        }
        Ok(())
    }

    /// The rotary embedding the metadata describes, its frequencies divided by `divisors`.
    pub fn rope(&self, style: RopeStyle, divisors: Option<&[f32]>) -> Rope {
        let c = self.config;
        Rope::new(style, c.n_rot, c.rope_base, &c.rope_scaling, divisors, c.rope_magnitude)
    }

    /// The attention half of layer `i` with separate projections, and head norms where the file has them and the
    /// family `has_head_norms`.
    pub fn attention(
        &mut self,
        i: usize,
        shape: AttentionShape,
        rope: usize,
        has_head_norms: bool,
    ) -> Result<Attention> {
        let (n_embd, l) = (self.config.n_embd, &mut *self.loader);
        let (n_q, n_k, n_v) = widths(&shape);
        let (q_norm, k_norm) = match has_head_norms {
            true => (
                Some(l.vector(&format!("blk.{i}.attn_q_norm.weight"), shape.head_dim_k)?),
                Some(l.vector(&format!("blk.{i}.attn_k_norm.weight"), shape.head_dim_k)?),
            ),
            false => (None, None),
        };
        Ok(Attention {
            q: l.linear(&format!("blk.{i}.attn_q"), n_q, n_embd)?,
            k: l.linear(&format!("blk.{i}.attn_k"), n_k, n_embd)?,
            v: l.linear(&format!("blk.{i}.attn_v"), n_v, n_embd)?,
            out: l.linear(&format!("blk.{i}.attn_output"), n_embd, shape.n_head * shape.head_dim_v)?,
            shape,
            q_norm,
            k_norm,
            rope,
        })
    }

    /// The feed-forward half of layer `i` with separate projections.
    pub fn feed_forward(&mut self, i: usize, act: Act) -> Result<FeedForward> {
        let (n_embd, n_ff) = (self.config.n_embd, self.config.n_ff);
        Ok(FeedForward {
            gate: self.loader.linear(&format!("blk.{i}.ffn_gate"), n_ff, n_embd)?,
            up: self.loader.linear(&format!("blk.{i}.ffn_up"), n_ff, n_embd)?,
            down: self.loader.linear(&format!("blk.{i}.ffn_down"), n_embd, n_ff)?,
            act,
        })
    }

    /// A pre-norm layer from its halves.
    pub fn layer(&mut self, i: usize, attn: Attention, ffn: FeedForward) -> Result<Layer> {
        let n_embd = self.config.n_embd;
        Ok(Layer {
            attn_norm: self.loader.vector(&format!("blk.{i}.attn_norm.weight"), n_embd)?,
            attn,
            post_attn_norm: None,
            ffn_norm: self.loader.vector(&format!("blk.{i}.ffn_norm.weight"), n_embd)?,
            ffn,
            post_ffn_norm: None,
        })
    }

    /// The whole model around its layers.
    pub fn decoder(&mut self, layers: Vec<Layer>, ropes: Vec<ContextRope>) -> Result<Decoder> {
        let (n_embd, n_vocab, l) = (self.config.n_embd, self.n_vocab, &mut *self.loader);
        Ok(Decoder {
            embed: l.linear("token_embd", n_vocab, n_embd)?,
            embed_scale: 1.0,
            layers,
            ropes,
            output_norm: l.vector("output_norm.weight", n_embd)?,
            output: l.has("output.weight").then(|| l.linear("output", n_vocab, n_embd)).transpose()?,
            logit_softcap: None,
            norm_eps: self.config.norm_eps,
        })
    }
}

/// Rows of the query, key and value projections.
pub fn widths(s: &AttentionShape) -> (usize, usize, usize) {
    (s.n_head * s.head_dim_k, s.n_head_kv * s.head_dim_k, s.n_head_kv * s.head_dim_v)
}
