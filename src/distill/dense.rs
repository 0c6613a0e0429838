//! The frozen model: what training runs through, forward and in reverse.

use ggml_ext::kernels::Kernels;
use ggml_ext::kernels::float::{FloatKernels, Rows, RowsMut};

use super::frozen::{Frozen, Precision};
use super::network::FeedForward;
use crate::attention::{AttentionShape, Rope, RopeTable};
use crate::compute::{Act, Matrix, Norm, Units, mean};
use crate::model::{Decoder, ExpertInput, Experts, HeadNorm, Model, QueryKey, Scores};
use crate::{Error, Result};

/// `y = a b^T`, rows of both of length `len`.
pub fn matmul_nt(k: &FloatKernels, a: &[f32], b: &[f32], y: &mut [f32], len: usize) {
    let (m, n) = (a.len() / len, b.len() / len);
    k.sgemm_nt(1.0, Rows::new(a, m, len, len), Rows::new(b, n, len, len), RowsMut::new(y, m, n, n));
}

/// `dx += dy w` for `w` of `n_out` rows.
pub fn matmul_nn(k: &FloatKernels, dy: &[f32], w: &[f32], dx: &mut [f32], n_out: usize) {
    let (m, n_in) = (dy.len() / n_out, w.len() / n_out);
    k.sgemm_nn_acc(Rows::new(dy, m, n_out, n_out), Rows::new(w, n_out, n_in, n_in), RowsMut::new(dx, m, n_in, n_in));
}

/// `dw += dy^T x`: the gradient of a matrix from those of its results, for `dy` with rows of `n_out`.
pub fn matmul_tn(k: &FloatKernels, dy: &[f32], x: &[f32], dw: &mut [f32], n_out: usize) {
    let m = dy.len() / n_out;
    let n_in = x.len() / m;
    let mut t = vec![0.0; dy.len()];
    transpose(dy, n_out, m, n_out, &mut t);
    k.sgemm_nn_acc(Rows::new(&t, n_out, m, m), Rows::new(x, m, n_in, n_in), RowsMut::new(dw, n_out, n_in, n_in));
}

/// Writes the `rows` x `cols` matrix `src`, its rows `stride` apart, to `dst` with a row per column.
pub fn transpose(src: &[f32], stride: usize, rows: usize, cols: usize, dst: &mut [f32]) {
    const TILE: usize = 16;
    for i0 in (0..rows).step_by(TILE) {
        for j0 in (0..cols).step_by(TILE) {
            for j in j0..(j0 + TILE).min(cols) {
                for i in i0..(i0 + TILE).min(rows) {
                    dst[j * rows + i] = src[i * stride + j];
                }
            }
        }
    }
}

/// The gradient of RMSNorm (`y = x / sqrt(mean(x^2) + eps) * weight`) with respect to its input, added to `dx`, row by row.
pub fn rms_norm_backward(k: &FloatKernels, x: &[f32], weight: &[f32], eps: f32, dy: &[f32], dx: &mut [f32]) {
    let n = weight.len();
    let mut scaled = vec![0.0; n];
    for ((x, dy), dx) in x.chunks_exact(n).zip(dy.chunks_exact(n)).zip(dx.chunks_exact_mut(n)) {
        let r = 1.0 / (k.dot(x, x) / n as f32 + eps).sqrt();
        scaled.copy_from_slice(dy);
        k.mul_assign(&mut scaled, weight);
        let along = k.dot(&scaled, x);
        k.axpy(r, &scaled, dx);
        k.axpy(-along * r * r * r / n as f32, x, dx);
    }
}

/// The norm of every row; without one `x` as it is.
pub fn normalise(k: &FloatKernels, x: &[f32], norm: Option<&Norm>, eps: f32, y: &mut [f32]) {
    let Some(norm) = norm else { return y.copy_from_slice(x) };
    let n = norm.weight.len();
    x.chunks_exact(n).zip(y.chunks_exact_mut(n)).for_each(|(x, y)| norm.apply(k, x, eps, y));
}

/// The gradient of [`normalise`] with respect to its input, added to `dx`. LayerNorm is RMSNorm of what has no mean, and so is its gradient.
pub fn normalise_backward(k: &FloatKernels, x: &[f32], norm: Option<&Norm>, eps: f32, dy: &[f32], dx: &mut [f32]) {
    let Some(norm) = norm else { return k.add_assign(dx, dy) };
    if !norm.centred {
        return rms_norm_backward(k, x, &norm.weight, eps, dy, dx);
    }
    let n = norm.weight.len();
    let (mut centred, mut gradient) = (x.to_vec(), vec![0.0; x.len()]);
    let centre = |row: &mut [f32]| {
        let mean = mean(row);
        row.iter_mut().for_each(|x| *x -= mean);
    };
    centred.chunks_exact_mut(n).for_each(centre);
    rms_norm_backward(k, &centred, &norm.weight, eps, dy, &mut gradient);
    gradient.chunks_exact_mut(n).for_each(centre);
    k.add_assign(dx, &gradient);
}

/// A query or key projection with its norm.
pub struct HeadProjection<'m> {
    /// The projection.
    pub dense: Frozen<'m>,
    /// RMSNorm weights, on every head or on all together.
    pub norm: Option<Box<[f32]>>,
}

/// A decoder layer.
pub struct DenseLayer<'m> {
    /// Norm before attention.
    pub attn_norm: Option<Norm>,
    /// Queries.
    pub q: HeadProjection<'m>,
    /// Keys.
    pub k: HeadProjection<'m>,
    /// Values.
    pub v: Frozen<'m>,
    /// Output projection.
    pub out: Frozen<'m>,
    /// Norm on the attention's result.
    pub post_attn_norm: Option<Norm>,
    /// Norm before the feed-forward network.
    pub ffn_norm: Option<Norm>,
    /// Feed-forward half.
    pub ffn: FeedForward<'m>,
    /// Norm on the network's result.
    pub post_ffn_norm: Option<Norm>,
    /// Whether both halves start from the layer's input.
    pub parallel: bool,
    /// Heads, scale, window.
    pub shape: AttentionShape,
    /// Which of the model's rotations turns queries and keys.
    pub rope: usize,
    /// What a score of each head loses for every position between query and key, where the family has it.
    pub slopes: Option<&'m [f32]>,
}

/// A rotary embedding at positions `0..n`, and its reverse.
pub struct Turns {
    /// The embedding.
    pub rope: Rope,
    /// By position.
    pub forward: RopeTable,
    /// Its transpose, for gradients.
    pub backward: RopeTable,
}

impl Turns {
    fn new(rope: &Rope, n: usize) -> Self {
        let (forward, backward) = (RopeTable::new(rope, n), RopeTable::new(rope, n));
        for i in 0..n {
            // SAFETY: nobody else has the tables yet.
            unsafe {
                forward.fill(rope, i, i as f64);
                backward.fill(rope, i, -(i as f64));
            }
        }
        Self { rope: rope.clone(), forward, backward }
    }
}

/// A whole model, its activations in F32, for windows of a fixed length.
pub struct DenseModel<'m> {
    /// The kernel table.
    pub kernels: &'static Kernels,
    /// Tokens of a window.
    pub n_ctx: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Tokens in the vocabulary.
    pub n_vocab: usize,
    /// Token embeddings.
    pub embed: Frozen<'m>,
    /// Factor on the embeddings.
    pub embed_scale: f32,
    /// Learned positions, where the family has them.
    pub positions: Option<&'m Matrix>,
    /// Norm on the embeddings, where the family has it.
    pub embed_norm: Option<Norm>,
    /// Layers.
    pub layers: Vec<DenseLayer<'m>>,
    /// Rotations the layers refer to.
    pub turns: Vec<Turns>,
    /// Norm before the output head.
    pub output_norm: Norm,
    /// The output head, unless tied.
    pub output: Option<Frozen<'m>>,
    /// `cap * tanh(logit / cap)`.
    pub logit_softcap: Option<f32>,
    /// The norms' epsilon.
    pub eps: f32,
}

impl<'m> DenseModel<'m> {
    /// `model` for windows of `n_ctx` tokens.
    ///
    /// # Errors
    /// A model some of whose layers share attention already.
    pub fn new(model: &'m Model, n_ctx: usize, precision: Precision) -> Result<Self> {
        let d: &Decoder = model.decoder();
        if let Some(linear) = d.matrices().find(|l| l.scale.is_some()) {
            let what = format!("{}: matrices with factors on their results are not supported here", linear.name);
            return Err(Error::Impossible(what));
        }
        if let Some(n) = d.positions.as_ref().map(Matrix::rows).filter(|&n| n < n_ctx) {
            let what = format!("windows of {n_ctx} tokens: the model has learned positions for {n} and no more");
            return Err(Error::Impossible(what));
        }
        if d.rounds.n > 1 {
            let what = "models through whose layers tokens pass more than once are not supported here";
            return Err(Error::Impossible(what.into()));
        }
        let frozen = |linear| Frozen::new(linear, model.kernels(), precision);
        let heads = |qk: &'m QueryKey| HeadProjection {
            dense: frozen(&qk.linear),
            norm: qk.norm.as_ref().and_then(HeadNorm::rms).map(Box::from),
        };
        let layers = d.layers.iter().enumerate().map(|(i, layer)| {
            let unsupported =
                |what: &str| Error::Impossible(format!("layer {i} {what}: models with such layers are not supported here"));
            if let Some(recurrence) = &layer.recurrence {
                return Err(unsupported(&format!("has {}", recurrence.rule.name())));
            }
            if layer.time_mix.is_some() {
                return Err(unsupported("has time mixing"));
            }
            if layer.map.is_some() {
                return Err(unsupported("has a linear map in the place of attention"));
            }
            let (Some(attn), Some(ffn)) = (&layer.attn, &layer.ffn) else {
                return Err(unsupported("has one half alone"));
            };
            if let Scores::Fixed(_) = attn.scores {
                return Err(unsupported("is a convolution"));
            }
            if attn.gate.is_some() {
                return Err(unsupported("has gates on its attention's results"));
            }
            if attn.latent.is_some() {
                let what = format!("layer {i} has multi-head latent attention: models with this are not supported here");
                return Err(Error::Impossible(what));
            }
            let Scores::Own { q, k } = &attn.scores else {
                return Err(Error::Impossible(format!(
                    "layer {i} shares attention already: give the model without a plan"
                )));
            };
            let is_other = |qk: &QueryKey| qk.norm.as_ref().is_some_and(|norm| norm.rms().is_none());
            if is_other(q) || is_other(k) || attn.clip.is_some() {
                let what = format!("layer {i} clips queries and keys, or has norms of single heads or LayerNorm on them, which is not supported here");
                return Err(Error::Impossible(what));
            }
            if let Some(t) = attn.temperature.filter(|t| n_ctx > t.n_ctx) {
                return Err(Error::Impossible(format!(
                    "windows of {n_ctx} tokens: layer {i} gives queries beyond {} a temperature, which is not \
                     supported here",
                    t.n_ctx
                )));
            }
            if attn.norm_after_turn {
                let what = "layers that normalise queries and keys after their rotation are not supported here";
                return Err(Error::Impossible(what.into()));
            }
            if layer.streams.is_some() || layer.laurel.is_some() || ffn.network().is_some_and(|n| n.deviations.is_some()) {
                let what = "models whose residual stream has several rows, that add something beside attention, or that cut \
                            gates off, are not supported here";
                return Err(Error::Impossible(what.into()));
            }
            let is_odd = layer.scale != 1.0 || layer.keeps_normed.is_some() || layer.embeddings.is_some();
            if attn.v_norm.is_some() || layer.side.is_some() || is_odd {
                let what = "layers with norms on values or with inputs of their own are not supported here";
                return Err(Error::Impossible(what.into()));
            }
            let is_odd = |e: &Experts| {
                let n = &e.networks;
                let is_fused = matches!(n.units, Units::Fused(_));
                e.norms.is_some()
                    || e.of_groups.is_some()
                    || e.latent.is_some()
                    || !matches!(e.input, ExpertInput::Half)
                    || n.stacks().any(|s| s.scales.is_some())
                    || is_fused
                    || n.weighs_input
            };
            if ffn.experts().is_some_and(is_odd) {
                let what = "experts with norms or factors of their own, on latents, with fused gates, in groups with networks, chosen by \
                            the layer's input or given that input, are not supported here";
                return Err(Error::Impossible(what.into()));
            }
            let is_capped = |act| matches!(act, Act::CappedSwiglu(_) | Act::ClippedSwiglu(_));
            if ffn.network().is_some_and(|n| is_capped(n.act)) || ffn.experts().is_some_and(|e| is_capped(e.networks.act)) {
                return Err(unsupported("caps its hidden units"));
            }
            if attn.sub_norm.is_some() || ffn.network().is_some_and(|n| n.norm.is_some()) {
                return Err(Error::Impossible("layers with norms inside their halves are not supported here".into()));
            }
            if attn.sinks.is_some() {
                return Err(Error::Impossible("heads with attention sinks are not supported here".into()));
            }
            let v = attn.v.as_ref().expect("a layer with its own attention has values");
            Ok(DenseLayer {
                attn_norm: layer.attn_norm.clone(),
                q: heads(q),
                k: heads(k),
                v: frozen(v),
                out: frozen(&attn.out),
                post_attn_norm: layer.post_attn_norm.clone(),
                ffn_norm: layer.ffn_norm.clone(),
                ffn: FeedForward::new(ffn, model.kernels(), precision),
                post_ffn_norm: layer.post_ffn_norm.clone(),
                parallel: layer.parallel,
                shape: attn.shape,
                rope: attn.rope,
                slopes: attn.slopes.as_deref(),
            })
        });
        Ok(Self {
            kernels: model.kernels(),
            n_ctx,
            n_embd: d.embed.weight.cols(),
            n_vocab: d.n_vocab(),
            embed: frozen(&d.embed),
            embed_scale: d.embed_scale,
            positions: d.positions.as_ref(),
            embed_norm: d.embed_norm.clone(),
            layers: layers.collect::<Result<_>>()?,
            turns: d.ropes.iter().map(|r| Turns::new(r.for_context(n_ctx), n_ctx)).collect(),
            output_norm: d.output_norm.clone(),
            output: d.output.as_ref().map(frozen),
            logit_softcap: d.logit_softcap,
            eps: d.norm_eps,
        })
    }

    /// The output head.
    pub fn head(&self) -> &Frozen<'m> {
        self.output.as_ref().unwrap_or(&self.embed)
    }

    /// The residual stream before the first layer, `[ids.len(), n_embd]`.
    pub fn embed(&self, ids: &[u32], x: &mut [f32]) {
        let mut position = vec![0.0; self.n_embd];
        for (pos, (&id, row)) in ids.iter().zip(x.chunks_exact_mut(self.n_embd)).enumerate() {
            self.embed.row(id as usize, row);
            if self.embed_scale != 1.0 {
                self.kernels.float.scale(row, self.embed_scale);
            }
            if let Some(positions) = self.positions {
                positions.row(pos, &mut position);
                self.kernels.float.add_assign(row, &position);
            }
            if let Some(norm) = &self.embed_norm {
                norm.apply_in_place(&self.kernels.float, row, self.eps);
            }
        }
    }

    /// Bytes that training takes for weights besides those of the engine: with `reverse`, for stages with a reverse pass too.
    pub fn bytes(model: &Model, precision: Precision, reverse: bool) -> u64 {
        let d = model.decoder();
        let others = [&d.embed].into_iter().chain(&d.output).map(|l| &l.weight);
        d.layer_weights().chain(others).map(|w| Frozen::bytes(w, precision, reverse)).sum()
    }
}
