//! The forward pass: one for all families, read from top to bottom.

use std::cell::UnsafeCell;
use std::ops::Range;

use ggml_ext::kernels::{Kernels, MatmulScratch};

use super::decoder::{Attention, Decoder};
use crate::attention::{AttentionScratch, KvCache, LayerCache, PartialSums, RopeTable, attend};
use crate::compute::{Activations, Ops, SharedBuf, Worker};

/// Everything a pass writes besides the cache, allocated once per session.
pub struct Buffers {
    /// The residual stream, `[n_ubatch, n_embd]`.
    x: SharedBuf<f32>,
    /// Its normalised form, the operand of the next products.
    n: Activations,
    q: SharedBuf<f32>,
    k: SharedBuf<f32>,
    v: SharedBuf<f32>,
    /// The heads' weighted values, `[n_ubatch, n_head * head_dim_v]`.
    heads: Activations,
    /// What a sub-layer adds to the residual stream.
    delta: SharedBuf<f32>,
    gate: SharedBuf<f32>,
    up: SharedBuf<f32>,
    hidden: Activations,
    /// `[n_logit_rows, n_vocab]`.
    logits: SharedBuf<f32>,
    ropes: Vec<RopeTable>,
    partial: PartialSums,
    members: Vec<Member>,
    n_ctx: usize,
    n_logit_rows: usize,
}

/// One member's own work space.
struct Member(UnsafeCell<(AttentionScratch, MatmulScratch)>);

// SAFETY: only the member with the same number touches it, see `forward` and `head`.
unsafe impl Sync for Member {}

/// Most bytes of logits made at a time.
const LOGIT_BYTES: usize = 16 << 20;

impl Buffers {
    /// Buffers for passes of up to `n_ubatch` tokens by up to `n_threads` members in a context of `n_ctx`.
    pub fn new(model: &Decoder, n_ubatch: usize, n_ctx: usize, n_threads: usize, exact: bool) -> Self {
        let int8 = !exact && model.matrices().any(|l| l.weight.wants_int8());
        let n_embd = model.embed.weight.cols();
        let widest = |f: &dyn Fn(&super::Layer) -> usize| n_ubatch * model.layers.iter().map(f).max().unwrap_or(0);
        let heads = model.shapes().map(|s| s.n_head * s.head_dim_v).max().unwrap_or(0);
        let n_ff = model.layers.iter().map(|l| l.ffn.down.weight.cols()).max().unwrap_or(0);
        let n_logit_rows = (LOGIT_BYTES / 4 / model.n_vocab().max(1)).clamp(1, n_ubatch);
        let member = || Member(UnsafeCell::new((AttentionScratch::new(model.shapes()), MatmulScratch::default())));
        Self {
            x: SharedBuf::new(n_ubatch * n_embd),
            n: Activations::new(n_ubatch, n_embd, int8),
            q: SharedBuf::new(widest(&|l| l.attn.q.weight.rows())),
            k: SharedBuf::new(widest(&|l| l.attn.k.weight.rows())),
            v: SharedBuf::new(widest(&|l| l.attn.v.weight.rows())),
            heads: Activations::new(n_ubatch, heads, int8),
            delta: SharedBuf::new(n_ubatch * n_embd),
            gate: SharedBuf::new(n_ubatch * n_ff),
            up: SharedBuf::new(n_ubatch * n_ff),
            hidden: Activations::new(n_ubatch, n_ff, int8),
            logits: SharedBuf::new(n_logit_rows * model.n_vocab()),
            ropes: model.ropes.iter().map(|r| RopeTable::new(r.for_context(n_ctx), n_ubatch)).collect(),
            partial: PartialSums::new(model.shapes(), n_ctx),
            members: (0..n_threads).map(|_| member()).collect(),
            n_ctx,
            n_logit_rows,
        }
    }

    /// Rows of logits that one call of [`head`] can make.
    pub fn n_logit_rows(&self) -> usize {
        self.n_logit_rows
    }

    /// The logits of the last call of [`head`].
    pub fn logits(&mut self) -> &[f32] {
        self.logits.as_slice()
    }
}

/// How a pass computes.
pub struct Mode {
    /// The kernel table.
    pub kernels: &'static Kernels,
    /// Float operands even for quantised weights.
    pub exact: bool,
}

/// Runs `ids`, whose first stands at position `pos`, through all layers: fills the cache and leaves the normalised
/// last hidden states for [`head`].
pub fn forward(model: &Decoder, w: &Worker, o: &Mode, buf: &Buffers, cache: &KvCache, ids: &[u32], pos: usize) {
    // SAFETY: member `w.id` alone uses its work space while the team runs.
    let (attn_scratch, scratch) = unsafe { &mut *buf.members[w.id].0.get() };
    let mut ops = Ops { worker: w, kernels: o.kernels, exact: o.exact, scratch };
    let (n, eps) = (ids.len(), model.norm_eps);

    for (rope, table) in model.ropes.iter().zip(&buf.ropes) {
        w.share(n).for_each(|i| table.fill(rope.for_context(buf.n_ctx), i, (pos + i) as f64));
    }
    ops.embed(&model.embed.weight, ids, model.embed_scale, &buf.x);
    let first_norm = model.layers.first().map_or(&model.output_norm, |l| &l.attn_norm);
    ops.rms_norm(&buf.x, n, first_norm, eps, &buf.n);

    for (i, layer) in model.layers.iter().enumerate() {
        let attn = &layer.attn;
        ops.linear(&buf.n, 0..n, &[(&attn.q, &buf.q), (&attn.k, &buf.k), (&attn.v, &buf.v)]);
        place(&ops, attn, buf, cache.layer(i), pos, n, eps);
        let (shape, layer_cache) = (&attn.shape, cache.layer(i));
        attend(w, o.kernels, shape, layer_cache, &buf.q, pos, n, attn_scratch, &buf.partial, &buf.heads);
        ops.linear(&buf.heads, 0..n, &[(&attn.out, &buf.delta)]);
        ops.residual_norm(&buf.x, &buf.delta, n, layer.post_attn_norm.as_deref(), &layer.ffn_norm, eps, &buf.n);

        let ffn = &layer.ffn;
        ops.linear(&buf.n, 0..n, &[(&ffn.gate, &buf.gate), (&ffn.up, &buf.up)]);
        ops.gated(ffn.act, &buf.gate, &buf.up, n, &buf.hidden);
        ops.linear(&buf.hidden, 0..n, &[(&ffn.down, &buf.delta)]);
        let next_norm = model.layers.get(i + 1).map_or(&model.output_norm, |l| &l.attn_norm);
        ops.residual_norm(&buf.x, &buf.delta, n, layer.post_ffn_norm.as_deref(), next_norm, eps, &buf.n);
    }
}

/// Logits of rows `rows` of the last [`forward`], at most [`Buffers::n_logit_rows`] of them.
pub fn head(model: &Decoder, w: &Worker, o: &Mode, buf: &Buffers, rows: Range<usize>) {
    // SAFETY: member `w.id` alone uses its work space while the team runs.
    let (_, scratch) = unsafe { &mut *buf.members[w.id].0.get() };
    let mut ops = Ops { worker: w, kernels: o.kernels, exact: o.exact, scratch };
    let n = rows.len() * model.n_vocab();
    ops.linear(&buf.n, rows, &[(model.head(), &buf.logits)]);
    if let Some(cap) = model.logit_softcap {
        // SAFETY: shared out disjointly.
        o.kernels.float.soft_cap(unsafe { buf.logits.get_mut(w.share(n)) }, cap);
        w.barrier();
    }
}

/// Gives queries and keys their head norms and positions, and puts keys and values into the cache. One phase, shared out
/// by token and head.
fn place(ops: &Ops, attn: &Attention, buf: &Buffers, cache: &LayerCache, pos: usize, n: usize, eps: f32) {
    let (s, kernels) = (&attn.shape, ops.kernels);
    let rope = &buf.ropes[attn.rope];
    let norm_and_turn = |head: &mut [f32], norm: Option<&[f32]>, t: usize| {
        if let Some(weight) = norm {
            kernels.float.rms_norm_in_place(head, weight, eps);
        }
        rope.rotate(kernels, t, head);
    };
    let per_token = s.n_head + 2 * s.n_head_kv;
    for i in ops.worker.share(n * per_token) {
        let (t, h) = (i / per_token, i % per_token);
        let (dk, dv) = (s.head_dim_k, s.head_dim_v);
        // SAFETY: each (token, head) of each buffer, and each cache row, is this member's alone.
        unsafe {
            if h < s.n_head {
                let start = (t * s.n_head + h) * dk;
                let q = buf.q.get_mut(start..start + dk);
                norm_and_turn(q, attn.q_norm.as_deref(), t);
            } else if h < s.n_head + s.n_head_kv {
                let g = h - s.n_head;
                let start = (t * s.n_head_kv + g) * dk;
                let k = buf.k.get_mut(start..start + dk);
                norm_and_turn(k, attn.k_norm.as_deref(), t);
                cache.store_k(kernels, g, pos + t, k);
            } else {
                let g = h - s.n_head - s.n_head_kv;
                let start = (t * s.n_head_kv + g) * dv;
                cache.store_v(kernels, g, pos + t, buf.v.get(start..start + dv));
            }
        }
    }
    ops.worker.barrier();
}
