//! Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values of all heads are made of one short vector per token, its
//! latent, and of a few values beside it that rotate.
//!
//! Where a file has the matrices of each head by themselves, they are absorbed: a query is multiplied with what would make keys of latents
//! and then meets these, as if one key served all heads; and what would make values of latents is multiplied with their weighted sums. The
//! cache has one head then, whose latents lie in it twice, among the keys and among the values, which are laid out differently. Older
//! files have one matrix that makes keys and values of all heads; with these, as in llama.cpp, it is their results that are cached.

use ggml_ext::kernels::Kernels;

use super::buffers::Buffers;
use super::decoder::{Attention, Decoder};
use super::forward::fine_step;
use crate::compute::{ActivationType, Activations, Form, Heads, Linear, Norm, Operand, Ops, SharedBuf, Stack, Widths};

/// What a layer's attention has besides, where it is of this kind.
pub struct Latent {
    /// Values of a latent.
    pub rank: usize,
    /// Values beside it, which rotate.
    pub n_rot: usize,
    /// The second step of queries, where they are made in two: a norm, and a projection to those of all heads.
    pub q: Option<(Norm, Linear)>,
    /// RMSNorm on the latent, where keys are made of it: of a layer with scores of its own.
    pub norm: Option<Box<[f32]>>,
    /// What heads have of their own.
    pub heads: LatentHeads,
}

/// What makes keys and values of latents.
pub enum LatentHeads {
    /// Matrices that are absorbed.
    Absorbed {
        /// Multiplies queries, `[n_head * rank, n_plain]` with the values of a head that do not rotate; of a layer that has queries.
        k: Option<Stack>,
        /// Multiplies sums, `[n_head * head_dim_v, rank]`.
        v: Stack,
    },
    /// Makes for every head a key, but what rotates of it, and a value: `[n_head * (n_plain + head_dim_v), rank]`.
    Made(Linear),
}

impl Latent {
    /// Every matrix but those of heads.
    pub fn matrices(&self) -> impl Iterator<Item = &Linear> {
        let made = match &self.heads {
            LatentHeads::Absorbed { .. } => None,
            LatentHeads::Made(linear) => Some(linear),
        };
        self.q.iter().map(|(_, linear)| linear).chain(made)
    }

    /// The matrices of heads.
    pub fn stacks(&self) -> impl Iterator<Item = &Stack> {
        let (k, v) = match &self.heads {
            LatentHeads::Absorbed { k, v } => (k.as_ref(), Some(v)),
            LatentHeads::Made(_) => (None, None),
        };
        k.into_iter().chain(v)
    }

    /// Widths of what its own matrices are multiplied with: all of a row, and head by head.
    fn widths(&self) -> [Vec<usize>; 2] {
        let stacks = self.stacks().map(|s| s.weight.cols());
        [self.matrices().map(|l| l.weight.cols()).collect(), stacks.collect()]
    }
}

/// Work space for these layers, rows for every token of a pass.
pub(super) struct LatentBuffers {
    /// What the layer's first projections make of its input: queries, or what these are made of; and `[rank + n_rot]`, a latent and what
    /// rotates.
    q: SharedBuf<f32>,
    k: SharedBuf<f32>,
    rows: Widths,
    /// A row for every head.
    head_rows: Widths,
    /// Weighted sums of latents, `[n_head * rank]`. No product meets them as they lie there.
    sums: Activations,
    /// What matrices make of latents, `[n_head * (n_plain + head_dim_v)]`, or of their sums, `[n_head * head_dim_v]`.
    made: SharedBuf<f32>,
}

impl LatentBuffers {
    /// Work space for passes of up to `n` tokens, if the model has such layers.
    pub fn new(model: &Decoder, kernels: &Kernels, n: usize, ty: ActivationType) -> Option<Self> {
        let layers = || model.layers.iter().filter_map(|l| l.attn.as_ref().and_then(|a| Some((a, a.latent.as_ref()?))));
        let most = |f: &dyn Fn(&Attention, &Latent) -> usize| layers().map(|(attn, latent)| f(attn, latent)).max();
        let rows = |linear: Option<&Linear>| linear.map_or(0, |l| l.weight.rows());
        let n_head = most(&|attn, _| attn.shape.n_head)?;
        let widths = |i: usize| layers().flat_map(move |(_, latent)| latent.widths()[i].clone());
        let both = |n| move |k| Activations::of_either_form(kernels, n, k, ty);
        let q = most(&|attn, latent| rows(attn.scores.q()).max(rows(latent.q.as_ref().map(|(_, second)| second))))?;
        let made = most(&|_, latent| match &latent.heads {
            LatentHeads::Absorbed { v, .. } => v.weight.rows(),
            LatentHeads::Made(linear) => linear.weight.rows(),
        })?;
        Some(Self {
            q: SharedBuf::new(n * q),
            k: SharedBuf::new(n * most(&|attn, _| rows(attn.scores.k()))?),
            rows: Widths::new(widths(0), both(n)),
            head_rows: Widths::new(widths(1), both(n * n_head)),
            sums: Activations::new(kernels, n, n_head * most(&|_, latent| latent.rank)?, false, ActivationType::F32),
            made: SharedBuf::new(n * made),
        })
    }
}

/// The layer's part of this kind with its work space, if it has any.
pub(super) fn of_layer<'a>(attn: &'a Attention, buf: &'a Buffers) -> Option<(&'a Latent, &'a LatentBuffers)> {
    attn.latent.as_ref().zip(buf.latent.as_ref())
}

/// Where the layer's first projections, which others call those of queries and keys, leave their results.
pub(super) fn first_results<'b>(attn: &Attention, buf: &'b Buffers) -> [&'b SharedBuf<f32>; 2] {
    let (Some(latent), Some(b)) = (&attn.latent, &buf.latent) else { return [&buf.q, &buf.k] };
    let has_more = latent.q.is_some() || matches!(latent.heads, LatentHeads::Absorbed { k: Some(_), .. });
    [if has_more { &b.q } else { &buf.q }, if latent.norm.is_some() { &b.k } else { &buf.k }]
}

/// Where attention leaves what it sums up, so that [`results`] finds it: in `out` where there is nothing to find.
pub(super) fn sums<'b>(attn: &'b Attention, buf: &'b Buffers, out: Operand<'b>) -> Operand<'b> {
    match of_layer(attn, buf) {
        Some((Latent { heads: LatentHeads::Absorbed { .. }, .. }, b)) => b.sums.with(Form::Int8, 0.0),
        _ => out,
    }
}

/// Makes queries of `n_asked` tokens, and keys and values of `n_fed`, of what the first projections made. `form`: of the pass.
pub(super) fn heads(
    ops: &mut Ops,
    attn: &Attention,
    buf: &Buffers,
    n_fed: usize,
    n_asked: usize,
    form: Form,
    eps: f32,
) {
    let Some((latent, b)) = of_layer(attn, buf) else { return };
    if let Some(norm) = &latent.norm {
        keys(ops, attn, latent, norm, buf, b, n_fed, form, eps);
    }
    if n_asked > 0 {
        queries(ops, attn, latent, buf, b, n_asked, form, eps);
    }
}

#[allow(clippy::too_many_arguments)]
fn queries(
    ops: &mut Ops,
    attn: &Attention,
    latent: &Latent,
    buf: &Buffers,
    b: &LatentBuffers,
    n: usize,
    form: Form,
    eps: f32,
) {
    if let Some((norm, second)) = &latent.q {
        let low = b.rows.of(second.weight.cols()).with(form, fine_step::ATTENTION);
        ops.norm(&b.q, 0..n, Some(norm), eps, low);
        let out = if let LatentHeads::Made(_) = latent.heads { &buf.q } else { &b.q };
        ops.linear(low, 0..n, &[(second, out)]);
    }
    let LatentHeads::Absorbed { k: Some(k), .. } = &latent.heads else { return };
    let (n_head, n_plain, dk) = (attn.shape.n_head, k.weight.cols(), attn.shape.head_dim_k);
    let len = n_plain + latent.n_rot;
    // SAFETY: nobody writes the first results before this is done.
    let rows = unsafe { b.q.get(0..n * n_head * len) };
    for i in ops.worker.share(n * n_head) {
        // SAFETY: heads are shared out disjointly, and products leave these of their elements alone.
        let turning = unsafe { buf.q.get_mut(i * dk + latent.rank..(i + 1) * dk) };
        turning.copy_from_slice(&rows[i * len + n_plain..(i + 1) * len]);
    }
    let operand = b.head_rows.of(n_plain).with(Form::of(ops.kernels, n), fine_step::ATTENTION);
    ops.of_heads(Heads { rows, n_head, len }, n, k, operand, Heads { rows: &buf.q, n_head, len: dk });
}

#[allow(clippy::too_many_arguments)]
fn keys(
    ops: &mut Ops,
    attn: &Attention,
    latent: &Latent,
    norm: &[f32],
    buf: &Buffers,
    b: &LatentBuffers,
    n: usize,
    form: Form,
    eps: f32,
) {
    let (float, s, rank) = (&ops.kernels.float, &attn.shape, latent.rank);
    let len = rank + latent.n_rot;
    // SAFETY: nobody writes the first results before this is done.
    let first = |t: usize| unsafe { b.k.get(t * len..(t + 1) * len) }.split_at(rank);
    let LatentHeads::Made(made) = &latent.heads else {
        for t in ops.worker.share(n) {
            let (x, turning) = first(t);
            // SAFETY: rows are shared out disjointly.
            let (key, value) =
                unsafe { (buf.k.get_mut(t * len..(t + 1) * len), buf.v.get_mut(t * rank..(t + 1) * rank)) };
            float.rms_norm(x, norm, eps, value);
            key[..rank].copy_from_slice(value);
            key[rank..].copy_from_slice(turning);
        }
        return ops.worker.barrier();
    };
    let latents = b.rows.of(rank).with(form, fine_step::ATTENTION);
    for t in ops.worker.share(n) {
        // SAFETY: rows are shared out disjointly.
        unsafe {
            float.rms_norm(first(t).0, norm, eps, latents.row_mut(t));
            latents.finish_row(ops.kernels, t);
        }
    }
    ops.worker.barrier();
    ops.linear(latents, 0..n, &[(made, &b.made)]);
    let (dk, dv, n_plain) = (s.head_dim_k, s.head_dim_v, s.head_dim_k - latent.n_rot);
    for i in ops.worker.share(n * s.n_head_kv) {
        // SAFETY: heads are shared out disjointly, and nobody writes what was made in this phase.
        unsafe {
            let (plain, value) = b.made.get(i * (n_plain + dv)..(i + 1) * (n_plain + dv)).split_at(n_plain);
            let key = buf.k.get_mut(i * dk..(i + 1) * dk);
            key[..n_plain].copy_from_slice(plain);
            key[n_plain..].copy_from_slice(first(i / s.n_head_kv).1);
            buf.v.get_mut(i * dv..(i + 1) * dv).copy_from_slice(value);
        }
    }
    ops.worker.barrier();
}

/// Makes the heads' values, into `out`, of the weighted sums of `n` tokens, where these are of latents.
pub(super) fn results(ops: &mut Ops, attn: &Attention, buf: &Buffers, n: usize, out: Operand) {
    let Some((latent, b)) = of_layer(attn, buf) else { return };
    let LatentHeads::Absorbed { v, .. } = &latent.heads else { return };
    let (n_head, len) = (attn.shape.n_head, latent.rank);
    // SAFETY: nobody writes the sums before the next layer.
    let rows = unsafe { b.sums.with(Form::Int8, 0.0).f32(0..n) };
    let operand = b.head_rows.of(len).with(Form::of(ops.kernels, n), fine_step::HEADS);
    let made = Heads { rows: &b.made, n_head, len: out.k() / n_head };
    ops.of_heads(Heads { rows, n_head, len }, n, v, operand, made);
    ops.norm(&b.made, 0..n, None, 0.0, out);
}
