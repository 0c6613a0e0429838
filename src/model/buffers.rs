//! What a forward pass works in: buffers made once per session, and how many tokens pass through the layers together.

use std::cell::UnsafeCell;

use ggml_ext::kernels::{Digits, Kernels, MatmulScratch, takes_bf16};

use super::decoder::{Attention, Decoder, Experts};
use super::latent::LatentBuffers;
use super::laurel::LaurelBuffers;
use super::streams::Streams;
use crate::attention::{
    AttentionScratch, AttentionShape, AttnWeights, PartialSums, RecurrentBuffers, RopeTable, TimeMixBuffers,
    attention_scratch,
};
use crate::compute::{ActivationType, Activations, ExpertBuffers, Linear, Matrix, SharedBuf, Widths, Worker};

/// Everything a pass writes besides the cache, allocated once per session.
pub struct Buffers {
    /// The residual stream, `[n_ubatch, n_embd]`.
    pub(super) x: SharedBuf<f32>,
    /// Its normalised form, the operand of the next products.
    pub(super) n: Activations,
    pub(super) q: SharedBuf<f32>,
    pub(super) k: SharedBuf<f32>,
    pub(super) v: SharedBuf<f32>,
    /// What heads' results are multiplied with.
    pub(super) gates: SharedBuf<f32>,
    /// What layers with states work in.
    pub(super) recurrent: Option<RecurrentBuffers>,
    /// What layers with time mixing do.
    pub(super) time_mix: Option<TimeMixBuffers>,
    /// What they read of these, what output projections meet.
    pub(super) read: Widths,
    /// The heads' results, what output projections meet.
    pub(super) heads: Widths,
    /// What a sub-layer adds to the residual stream.
    pub(super) delta: SharedBuf<f32>,
    /// The same of the feed-forward half of a layer whose halves are parallel, of a state or experts beside the rest, and of a product of low
    /// rank.
    pub(super) beside: SharedBuf<f32>,
    pub(super) gate: SharedBuf<f32>,
    pub(super) up: SharedBuf<f32>,
    pub(super) hidden: Widths,
    pub(super) experts: Option<ExpertBuffers>,
    /// Latents that experts are given and make: results of products, and operands.
    pub(super) latents: SharedBuf<f32>,
    pub(super) latent_rows: Widths,
    /// The layers' inputs beside the residual stream, `[n_ubatch, n_layer * width]`, and the projection that is a part of them.
    pub(super) side: Option<[SharedBuf<f32>; 2]>,
    /// The rows of the residual stream, where there are several; `x` is then the one that a layer computes. For each `[n_ubatch, n_embd]`.
    pub(super) streams: Option<Box<[SharedBuf<f32>]>>,
    /// For layers that add something beside attention.
    pub(super) laurel: Option<LaurelBuffers>,
    /// The embeddings, for layers that add them again.
    pub(super) embedded: Option<SharedBuf<f32>>,
    /// `[n_logit_rows, n_vocab]`.
    pub(super) logits: SharedBuf<f32>,
    /// What `shared` layers' linear compensation adds.
    pub(super) comp: SharedBuf<f32>,
    /// For layers whose heads share a latent.
    pub(super) latent: Option<LatentBuffers>,
    pub(super) ropes: Vec<RopeTable>,
    pub(super) partial: PartialSums,
    pub(super) weights: AttnWeights,
    members: Vec<Member>,
    /// Whether passes in bf16 have their attention in it too.
    pub(super) bf16_attention: bool,
    pub(super) n_ctx: usize,
    pub(super) n_logit_rows: usize,
}

/// One member's own work space.
struct Member(UnsafeCell<(AttentionScratch, MatmulScratch)>);

// SAFETY: only the member with the same number touches it, see `Buffers::member`.
unsafe impl Sync for Member {}

/// Bytes of the feed-forward network's gates and up-projections that each member should have in its cache: they are written
/// by one phase and read by the next. On SmolLM2 and Gemma-3-270M (two threads, Zen 4) prompts in passes of 128 tokens are 4
/// to 6 % faster than in passes of 512, and 15 % where layers share attention weights; for wide models passes of 64 to 512
/// tokens are equally fast.
const HIDDEN_BYTES: usize = 1 << 20;
/// Fewest tokens a pass is cut down to: as many as keep reading weights from memory far behind arithmetic.
const MIN_PASS: usize = 128;
/// The same for products in bf16, whose weights are unpacked once in a pass: on an Emerald Rapids prompts of 512 tokens are 5 to 20 %
/// faster than in passes of 256.
const MIN_BF16_PASS: usize = 512;

/// How many tokens of a long text to put through the layers together, where rows of up to `n_ff` hidden units are shared out
/// among `n_threads` members.
pub fn pass_tokens(kernels: &Kernels, n_ff: usize, n_threads: usize) -> usize {
    let bytes = n_ff.max(1).saturating_mul(2 * 4);
    let fewest = if kernels.int.has_bf16() { MIN_BF16_PASS } else { MIN_PASS };
    (HIDDEN_BYTES.saturating_mul(n_threads) / bytes / MIN_PASS * MIN_PASS).max(fewest)
}

/// The output projections of all attention.
fn outputs(model: &Decoder) -> impl Iterator<Item = &Matrix> {
    model.layers.iter().filter_map(|l| Some(&l.attn.as_ref()?.out.weight))
}

/// Digits of attention's products in bf16, of queries and keys and of weights and values, if there are any: where its results meet weights
/// that are multiplied so.
fn attention_digits(model: &Decoder, kernels: &Kernels, n_ubatch: usize, ty: ActivationType) -> Option<[Digits; 2]> {
    let scores = ty.bf16_digits(kernels, n_ubatch)?;
    let takes = outputs(model).all(|w| takes_bf16(&w.view())) && model.attentions().all(|s| s.takes_bf16());
    // Weights of 16 bits are multiplied in two digits.
    let values = if outputs(model).all(|w| w.is_quantized()) { Digits::One } else { scores };
    takes.then_some([scores, values])
}

/// Most bytes of logits made at a time.
const LOGIT_BYTES: usize = 16 << 20;
/// The same for products in bf16, whose weights are unpacked anew each time.
const BF16_LOGIT_BYTES: usize = 64 << 20;

impl Buffers {
    /// Buffers for passes of up to `n_ubatch` tokens by up to `n_threads` members in a context of `n_ctx`.
    pub fn new(
        model: &Decoder,
        kernels: &Kernels,
        n_ubatch: usize,
        n_ctx: usize,
        n_threads: usize,
        ty: ActivationType,
    ) -> Self {
        let quantized = model.matrices().any(|l| l.weight.is_quantized());
        let n_embd = model.embed.weight.cols();
        let widest = |f: &dyn Fn(&Attention) -> Option<&Linear>| {
            let rows = model.layers.iter().filter_map(|l| Some(f(l.attn.as_ref()?)?.weight.rows()));
            n_ubatch * rows.max().unwrap_or(0)
        };
        // Rows that are made in several steps.
        let made = |len: fn(AttentionShape) -> usize| {
            let layers = model.layers.iter().filter_map(|l| l.attn.as_ref().filter(|a| a.latent.is_some()));
            n_ubatch * layers.map(|a| len(a.shape)).max().unwrap_or(0)
        };
        let n_head = model.attentions().map(|s| s.n_head).max().unwrap_or(0);
        let n_hidden = model.layers.iter().filter_map(|l| Some(l.attn.as_ref()?.n_hidden())).max().unwrap_or(0);
        let rank = model.caches().filter_map(|c| c.rank).max().unwrap_or(0);
        let n_ff = model.n_ff();
        let logit_bytes = if kernels.int.has_bf16() { BF16_LOGIT_BYTES } else { LOGIT_BYTES };
        let n_logit_rows = (logit_bytes / 4 / model.n_vocab().max(1)).clamp(1, n_ubatch);
        let activations = |k| Activations::new(kernels, n_ubatch, k, quantized, ty);
        let bf16 = attention_digits(model, kernels, n_ubatch, ty);
        let n_channels = model.convolutions().map(|s| s.head_dim_v).max().unwrap_or(0);
        let scratch = || attention_scratch(model.attentions(), n_hidden, rank, n_channels, bf16);
        let latents = || model.layers.iter().filter_map(|l| Some(l.experts()?.latent.as_ref()?.up.weight.cols()));
        let mixtures = model.layers.iter().filter_map(|l| l.experts());
        let n_ffs_of_experts = mixtures.flat_map(Experts::all_networks).map(|n| n.sizes().n_ff);
        let member = || Member(UnsafeCell::new((scratch(), MatmulScratch::default())));
        Self {
            x: SharedBuf::new(n_ubatch * n_embd),
            n: activations(n_embd),
            q: SharedBuf::new(widest(&|a| a.scores.q()).max(made(|s| s.n_head * s.head_dim_k))),
            k: SharedBuf::new(widest(&|a| a.scores.k()).max(made(|s| s.n_head_kv * s.head_dim_k))),
            v: SharedBuf::new(widest(&|a| a.v.as_ref()).max(made(|s| s.n_head_kv * s.head_dim_v))),
            gates: SharedBuf::new(widest(&|a| a.gate.as_ref().map(|g| &g.linear))),
            recurrent: RecurrentBuffers::new(model.recurrences(), n_ubatch, activations),
            time_mix: TimeMixBuffers::new(model.time_mixes(), n_ubatch, activations),
            read: Widths::new(
                model.recurrences().map(|r| r.shape.n_values()).chain(model.time_mixes().map(|m| m.shape.n_embd())),
                activations,
            ),
            heads: Widths::new(outputs(model).map(|w| w.cols()), activations),
            delta: SharedBuf::new(n_ubatch * n_embd),
            beside: SharedBuf::new(n_ubatch * n_embd),
            gate: SharedBuf::new(n_ubatch * n_ff),
            up: SharedBuf::new(n_ubatch * n_ff),
            hidden: Widths::new(model.n_ffs(), activations),
            latents: SharedBuf::new(n_ubatch * latents().max().unwrap_or(0)),
            latent_rows: Widths::new(latents(), activations),
            experts: model
                .experts()
                .map(|sizes| ExpertBuffers::new(kernels, n_ubatch, n_embd, sizes, n_ffs_of_experts, ty)),
            side: model.side.as_ref().map(|s| [(); 2].map(|()| SharedBuf::new(n_ubatch * s.embed.cols()))),
            streams: Streams::buffers(model, n_ubatch),
            laurel: LaurelBuffers::new(model, n_ubatch, activations),
            embedded: model.adds_embeddings().then(|| SharedBuf::new(n_ubatch * n_embd)),
            comp: SharedBuf::new(widest(&|a| a.comp.as_ref())),
            logits: SharedBuf::new(n_logit_rows * model.n_vocab()),
            latent: LatentBuffers::new(model, kernels, n_ubatch, ty),
            ropes: model.ropes.iter().map(|r| RopeTable::new(r.for_context(n_ctx), n_ubatch)).collect(),
            partial: PartialSums::new(model.attentions(), n_ctx),
            weights: AttnWeights::new(model.routes.n_slots(), n_head, n_ubatch, n_ctx, kernels.int.has_bf16()),
            members: (0..n_threads).map(|_| member()).collect(),
            bf16_attention: bf16.is_some(),
            n_ctx,
            n_logit_rows,
        }
    }

    /// The work space of member `w`.
    ///
    /// # Safety
    /// The member holds no other reference to it.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn member(&self, w: &Worker) -> &mut (AttentionScratch, MatmulScratch) {
        // SAFETY: no two members have the same number; the rest is passed on to the caller.
        unsafe { &mut *self.members[w.id].0.get() }
    }

    /// Rows of logits that one call of [`head`](super::head) can make.
    pub fn n_logit_rows(&self) -> usize {
        self.n_logit_rows
    }

    /// Most tokens that a pass from position `pos` on can have: where layers share attention weights, their buffer must stay
    /// small enough to be served by the CPU's caches.
    pub fn max_tokens(&self, pos: usize) -> usize {
        self.weights.max_tokens(pos)
    }

    /// The logits of the last call of [`head`](super::head).
    pub fn logits(&mut self) -> &[f32] {
        self.logits.as_slice()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_grow_with_threads_and_take_any_width() {
        let portable = Kernels::by_name("portable").unwrap();
        assert_eq!(pass_tokens(portable, 1536, 2), MIN_PASS);
        assert_eq!(pass_tokens(portable, 1536, 8), 5 * MIN_PASS);
        // What a damaged file may claim.
        for n_ff in [0, 1 << 61, usize::MAX] {
            assert!(pass_tokens(Kernels::detect(), n_ff, 2) >= MIN_PASS);
        }
    }
}
