//! The parts that families have in common, so that a family's own file shows only what sets it apart.

use ggml_ext::lisa::{Domain, Kind, LisaMeta, Part};
use ggml_ext::pack::ROWS;

use super::config::{Config, Keys, MAX_WIDTH, USED};
use super::decoder::{
    Attention, ContextRope, Decoder, ExpertInput, ExpertLatent, Experts, FeedForward, Ffn, Gate, HeadNorm, Layer,
    Mixer, QueryKey, Rounds, Scores, SharedExpert, SideInputs, SideNetwork,
};
use super::weights::Loader;
use crate::Result;
use crate::attention::{
    AttentionShape, Convolution, GateCurve, Hidden, LisaAttention, LowRank, Rope, RopeScaling, RopeStyle, Routes,
    SharePlan, slopes,
};
use crate::compute::{Act, Choice, Gating, Linear, MAX_GROUPS, Matrix, Networks, Norm, Units};

/// How many pairs turn with each dimension of positions.
const SECTIONS: &str = "rope.dimension_sections";

/// What a family builds its decoder from.
pub struct Builder<'b, 'g, 'a, 'p> {
    /// The file's metadata.
    pub keys: &'b Keys<'g, 'a>,
    /// Hyper-parameters common to all families.
    pub config: &'b Config,
    /// Tokens in the vocabulary.
    pub n_vocab: usize,
    /// Which layers share attention.
    pub sharing: Sharing<'b>,
    /// The file's tensors.
    pub loader: &'b mut Loader<'p>,
    /// Things the user should know that do not stop the loading.
    pub warnings: Vec<String>,
    /// Whether the norms on the residual stream are LayerNorm.
    pub layer_norm: bool,
    /// Whether norms on the residual stream that are not LayerNorm have biases too.
    pub rms_biases: bool,
    /// Layers without a value projection use that of their keys, before its norm.
    pub keys_make_values: bool,
    /// The tensor of a layer's queries has, after each head's, the gates on what the head's attention gives.
    pub queries_have_gates: bool,
}

/// Which layers share attention, and how.
#[derive(Clone, Copy)]
pub struct Sharing<'b> {
    /// The plan.
    pub plan: &'b SharePlan,
    /// Where the plan comes from, unless from the command line.
    pub meta: Option<&'b LisaMeta>,
}

/// One of the projections of a layer's input that attention starts from.
#[derive(Clone, Copy)]
enum Projection {
    Q,
    K,
    V,
}

/// Norms of queries and keys, of the family's kind.
#[derive(Clone, Copy)]
pub enum QkNorm {
    /// None.
    None,
    /// On every head.
    Heads,
    /// The same, where the file has them.
    HeadsIfAny,
    /// On every head, with weights of its own.
    Own,
    /// The same, where the file has them.
    OwnIfAny,
    /// LayerNorm on every head, with weights of its own and maybe biases.
    OwnLayerNorm,
    /// On all heads together.
    Rows,
    /// On every head, without weights.
    Plain,
}

/// What the mixtures of experts of a model are like.
#[derive(Clone, Copy)]
pub struct Mixture {
    /// Hidden units of an expert.
    pub n_ff: usize,
    /// How experts are chosen.
    pub choice: Choice,
    /// The activation of gates, or of units without them.
    pub act: Act,
    /// Whether networks have gates.
    pub gated: bool,
    /// Hidden units of the network that all tokens meet besides, 0 without one.
    pub n_ff_shared: usize,
    /// Whether each token weighs that network's results by itself.
    pub weighed: bool,
    /// Values of the latents that experts are given, where they are given such.
    pub latent: Option<usize>,
}

impl Projection {
    fn name(self) -> &'static str {
        match self {
            Self::Q => "q",
            Self::K => "k",
            Self::V => "v",
        }
    }
}

/// Tensors of layer `i` that a layer of this kind does not need, whether the file has them or not.
fn unused_tensors(kind: Kind, i: usize) -> impl Iterator<Item = String> {
    let suffixes = [".weight", ".scale", ".input_scale", ".bias", "_norm.weight", "_norm.bias"];
    kind.idle_projections().iter().flat_map(move |p| suffixes.map(|s| format!("blk.{i}.attn_{p}{s}")))
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

    /// Dimensions that layers with windows turn, as many as others where the file does not say.
    pub fn n_rot_local(&self) -> Result<usize> {
        const KEY: &str = "rope.dimension_count_swa";
        let n = self.keys.count(KEY)?.unwrap_or(self.config.n_rot);
        self.keys.check_rotating(KEY, n, self.config.head_dim_k)?;
        Ok(n)
    }

    /// The rotary embeddings of layers that see the whole context and of those with a sliding window, whose frequencies may have another base.
    pub fn alternating_ropes(&self, style: RopeStyle) -> Result<[ContextRope; 2]> {
        self.alternating_ropes_of(style, self.config.n_rot)
    }

    /// The same where the latter turn `n_local` dimensions.
    pub fn alternating_ropes_of(&self, style: RopeStyle, n_local: usize) -> Result<[ContextRope; 2]> {
        let c = self.config;
        let base = self.keys.positive("rope.freq_base_swa")?.unwrap_or(c.rope_base);
        let local = Rope::new(style, n_local, base, &c.rope_scaling, None, c.rope_magnitude);
        Ok([self.rope(style, None), local].map(ContextRope::always))
    }

    /// The rotary embedding of layers with windows whose frequencies are not stretched, of `n_rot` dimensions; their base is `base` where the
    /// file does not say.
    pub fn local_rope(&self, style: RopeStyle, n_rot: usize, base: f32) -> Result<ContextRope> {
        let base = self.keys.positive("rope.freq_base_swa")?.unwrap_or(base);
        Ok(ContextRope::always(Rope::new(style, n_rot, base, &RopeScaling::None, None, 1.0)))
    }

    /// [`Builder::rope`] with the factors that files of many families may carry: divisors of every pair's frequency, as of Llama 3.1's stretching; or
    /// LongRoPE's (arXiv 2402.13753), one set within the original context, another for sessions beyond it.
    pub fn rope_with_factors(&mut self, style: RopeStyle) -> Result<ContextRope> {
        self.magnified_rope_with_factors(style, 1.0)
    }

    /// The same, its magnitude multiplied with `magnitude`.
    pub fn magnified_rope_with_factors(&mut self, style: RopeStyle, magnitude: f32) -> Result<ContextRope> {
        let (n, l) = (self.config.n_rot / 2, &mut *self.loader);
        let freqs = l.optional_vector("rope_freqs.weight", n)?;
        let short = l.optional_vector("rope_factors_short.weight", n)?;
        let long = l.optional_vector("rope_factors_long.weight", n)?;
        let c = self.config;
        let rope = |divisors: Option<&[f32]>| {
            Rope::new(style, c.n_rot, c.rope_base, &c.rope_scaling, divisors, c.rope_magnitude * magnitude)
        };
        Ok(match freqs {
            Some(freqs) => ContextRope::always(rope(Some(&freqs))),
            None => ContextRope { short: rope(short.as_deref()), long: long.map(|l| (c.n_ctx_orig, rope(Some(&l)))) },
        })
    }

    /// The attention half of layer `i`. What of its projections is loaded depends on the sharing plan. They may be stored as one tensor,
    /// `attn_qkv`.
    pub fn attention(&mut self, i: usize, shape: AttentionShape, rope: usize, norm: QkNorm) -> Result<Attention> {
        let share = self.sharing.plan.get(i);
        let kind = share.map_or(Kind::Full, |s| s.kind);
        let scores = match kind {
            Kind::Full => Scores::Own {
                q: self.query_key(i, Projection::Q, &shape, norm)?,
                k: self.query_key(i, Projection::K, &shape, norm)?,
            },
            Kind::Kv => Scores::Queries {
                q: self.query_key(i, Projection::Q, &shape, norm)?,
                owner: self.sharing.plan.kv_owner(i),
            },
            Kind::Shared => Scores::Shared,
            Kind::Lisa => Scores::Lisa(self.lisa(i, &shape)?),
        };
        let v = (kind != Kind::Kv).then(|| self.projection(i, Projection::V, &shape)).transpose()?;
        let gate = self.queries_have_gates.then(|| self.queries_or_gates(i, &shape, 1)).transpose()?;
        let gate = gate.map(|linear| Gate { linear, curve: GateCurve::Sigmoid });
        let attn = self.attention_from(i, shape, rope, kind, scores, v, shape.n_head * shape.head_dim_v)?;
        Ok(Attention { gate, ..attn })
    }

    /// The attention half of layer `i`, of this kind, around where its weights and its values come from; its output projection meets
    /// `n_result` values.
    #[allow(clippy::too_many_arguments)]
    pub fn attention_from(
        &mut self,
        i: usize,
        shape: AttentionShape,
        rope: usize,
        kind: Kind,
        scores: Scores,
        v: Option<Linear>,
        n_result: usize,
    ) -> Result<Attention> {
        for unused in unused_tensors(kind, i) {
            self.loader.skip(&unused);
        }
        let n_embd = self.config.n_embd;
        let out = self.loader.linear(&format!("blk.{i}.attn_output"), n_embd, n_result)?;
        let comp = Part::Comp.tensor(i);
        let comp = (kind == Kind::Shared && self.loader.has(&comp))
            .then(|| self.loader.linear(comp.trim_end_matches(".weight"), n_embd, n_embd));
        Ok(Attention { comp: comp.transpose()?, ..Attention::bare(shape, rope, scores, v, out) })
    }

    /// The attention half of layer `i` of a model that has it take the keys and values of layer `owner`.
    ///
    /// # Errors
    /// Where the sharing plan has something else in mind for the layer.
    pub fn attention_to(
        &mut self,
        i: usize,
        owner: usize,
        shape: AttentionShape,
        rope: usize,
        norm: QkNorm,
    ) -> Result<Attention> {
        if let Some(share) = self.sharing.plan.get(i) {
            let what =
                format_args!("layer {i} ({}): the model has it take the keys and values of layer {owner}", share.kind);
            return Err(self.loader.error(what));
        }
        if let Some(share) = self.sharing.plan.get(owner) {
            let what = format_args!("layer {owner} ({}): layer {i} needs its keys and values", share.kind);
            return Err(self.loader.error(what));
        }
        let scores = Scores::Queries { q: self.query_key(i, Projection::Q, &shape, norm)?, owner };
        self.attention_from(i, shape, rope, Kind::Kv, scores, None, shape.n_head * shape.head_dim_v)
    }

    /// The gates on the results of layer `i`'s heads, from a tensor of their own: as many as this has rows, one for each value or one for each
    /// head.
    pub fn gate(&mut self, i: usize, shape: &AttentionShape, curve: GateCurve) -> Result<Gate> {
        let name = format!("blk.{i}.attn_gate");
        let n = match self.loader.dims(&format!("{name}.weight")) {
            Some([_, n]) if *n == shape.n_head as u64 => shape.n_head,
            _ => shape.n_head * shape.head_dim_v,
        };
        Ok(Gate { linear: self.loader.linear(&name, n, self.config.n_embd)?, curve })
    }

    /// Layer `i` as a convolution over `n` positions in the place of attention; its three projections are one tensor.
    ///
    /// # Errors
    /// Where the sharing plan wants attention of it.
    pub fn convolution(&mut self, i: usize, n: usize) -> Result<Attention> {
        if let Some(share) = self.sharing.plan.get(i) {
            return Err(self.loader.error(format_args!("layer {i} ({}): it is a convolution", share.kind)));
        }
        let (d, l, name) = (self.config.n_embd, &mut *self.loader, format!("blk.{i}.shortconv"));
        let mut part = |j: usize| l.linear_rows(&format!("{name}.in_proj"), 3 * d, d, j * d..(j + 1) * d);
        let (input, output, v) = (part(0)?, part(1)?, part(2)?);
        let filter = l.transposed(&format!("{name}.conv.weight"), d, n)?;
        let shape = AttentionShape {
            n_head: 1,
            n_head_kv: 1,
            head_dim_k: 1,
            head_dim_v: d,
            scale: 1.0,
            softcap: None,
            window: Some(n),
        };
        let out = l.linear(&format!("{name}.out_proj"), d, d)?;
        Ok(Attention::bare(shape, 0, Scores::Fixed(Convolution { input, output, filter }), Some(v), out))
    }

    /// Where queries, keys and values are clipped, if they are.
    pub fn clip(&self) -> Result<Option<f32>> {
        const KEY: &str = "attention.clamp_kqv";
        match self.keys.float(KEY)?.filter(|&clip| clip != 0.0) {
            Some(clip) if clip < 0.0 => Err(self.keys.error(KEY, format_args!("{clip} is negative"))),
            clip => Ok(clip),
        }
    }

    /// Learned positions, one for each of the context that the model was trained for.
    pub fn positions(&mut self) -> Result<Matrix> {
        self.loader.table("position_embd.weight", self.config.n_ctx_train, self.config.n_embd)
    }

    /// The slopes of heads in place of positions, where `max_bias` is not 0 (see [`slopes`]).
    pub fn slopes(&self, max_bias: f32) -> Option<Box<[f32]>> {
        (max_bias != 0.0).then(|| slopes(self.config.n_head, max_bias))
    }

    /// That the sharing plan wants no attention of layer `i`, which has none.
    pub fn has_no_attention(&self, i: usize) -> Result<()> {
        match self.sharing.plan.get(i) {
            Some(share) => Err(self.loader.error(format_args!("layer {i} ({}): it has no attention", share.kind))),
            None => Ok(()),
        }
    }

    /// The sinks of layer `i`'s heads, where the file has them.
    pub fn sinks_if_any(&mut self, i: usize) -> Result<Option<Box<[f32]>>> {
        if self.loader.has(&format!("blk.{i}.attn_sinks.weight")) { self.sinks(i) } else { Ok(None) }
    }

    /// The sinks of layer `i`'s heads.
    ///
    /// # Errors
    /// Where the layer takes its attention weights from another, whose sinks are others.
    pub fn sinks(&mut self, i: usize) -> Result<Option<Box<[f32]>>> {
        if let Some(share) = self.sharing.plan.get(i).filter(|s| s.kind != Kind::Kv) {
            let what = format_args!(
                "layer {i} ({}): heads with attention sinks cannot take another layer's weights",
                share.kind
            );
            return Err(self.loader.error(what));
        }
        Ok(Some(self.loader.vector(&format!("blk.{i}.attn_sinks.weight"), self.config.n_head)?))
    }

    /// Of the tensor of layer `i`'s queries that has the gates too, the ones (0) or the others (1).
    fn queries_or_gates(&mut self, i: usize, shape: &AttentionShape, which: usize) -> Result<Linear> {
        let name = format!("blk.{i}.attn_q");
        self.loader.linear_by_turns(&name, shape.n_head, shape.head_dim_k, self.config.n_embd, which)
    }

    /// A projection of layer `i`, from its own tensor or from its rows of `attn_qkv`.
    fn projection(&mut self, i: usize, which: Projection, shape: &AttentionShape) -> Result<Linear> {
        if matches!(which, Projection::Q) && self.queries_have_gates {
            return self.queries_or_gates(i, shape, 0);
        }
        let (q, k, v) = widths(shape);
        let rows = match which {
            Projection::Q => 0..q,
            Projection::K => q..q + k,
            Projection::V => q + k..q + k + v,
        };
        let fused = format!("blk.{i}.attn_qkv");
        if self.loader.has(&format!("{fused}.weight")) {
            return self.loader.linear_rows(&fused, q + k + v, self.config.n_embd, rows);
        }
        let own = format!("blk.{i}.attn_{}", which.name());
        let from_keys =
            matches!(which, Projection::V) && self.keys_make_values && !self.loader.has(&format!("{own}.weight"));
        let name = if from_keys { format!("blk.{i}.attn_k") } else { own };
        self.loader.linear(&name, rows.len(), self.config.n_embd)
    }

    fn query_key(&mut self, i: usize, which: Projection, shape: &AttentionShape, norm: QkNorm) -> Result<QueryKey> {
        let linear = self.projection(i, which, shape)?;
        let name = format!("blk.{i}.attn_{}_norm", which.name());
        let (dim, n_row, is_there) =
            (shape.head_dim_k, linear.weight.rows(), self.loader.has(&format!("{name}.weight")));
        let norm = match norm {
            QkNorm::None => None,
            QkNorm::Plain => Some(HeadNorm::Each([Norm::plain(dim, self.layer_norm)].into())),
            QkNorm::HeadsIfAny | QkNorm::OwnIfAny if !is_there => None,
            QkNorm::Heads | QkNorm::HeadsIfAny => Some(HeadNorm::Each([self.norm_of(&name, dim)?].into())),
            QkNorm::Own | QkNorm::OwnIfAny => {
                let weights = self.loader.values(&format!("{name}.weight"), &[dim, n_row / dim])?;
                let of_head = |w: &[f32]| Norm { weight: w.into(), bias: None, centred: self.layer_norm, eps: None };
                Some(HeadNorm::Each(weights.chunks_exact(dim).map(of_head).collect()))
            }
            QkNorm::OwnLayerNorm => Some(HeadNorm::Each(self.layer_norms(&name, dim, n_row / dim)?)),
            QkNorm::Rows => Some(HeadNorm::Together(self.norm_of(&name, n_row)?)),
        };
        Ok(QueryKey { linear, norm })
    }

    /// LayerNorms of `n` heads of `dim` values.
    fn layer_norms(&mut self, name: &str, dim: usize, n: usize) -> Result<Box<[Norm]>> {
        let bias = format!("{name}.bias");
        let weights = self.loader.values(&format!("{name}.weight"), &[dim, n])?;
        let biases = self.loader.has(&bias).then(|| self.loader.values(&bias, &[dim, n])).transpose()?;
        let of_head = |(h, weight): (usize, &[f32])| {
            let bias = biases.as_ref().map(|all| all[h * dim..(h + 1) * dim].into());
            Norm { weight: weight.into(), bias, centred: true, eps: None }
        };
        Ok(weights.chunks_exact(dim).enumerate().map(of_head).collect())
    }

    /// The modules of a `lisa` layer.
    pub fn lisa(&mut self, i: usize, shape: &AttentionShape) -> Result<LisaAttention> {
        let meta = self.sharing.meta.expect("only metadata make lisa layers");
        let (n_head, n_head_kv, n_embd) = (shape.n_head, shape.n_head_kv, self.config.n_embd);
        let l = &mut *self.loader;
        let skip = l.values(&Part::AlignSkip.tensor(i), &[n_head, n_head])?;
        let hidden = match l.first_dim(&Part::AlignUp.tensor(i)) {
            None => None,
            Some(n) => Some(Hidden::new(
                l.values(&Part::AlignUp.tensor(i), &[n, n_head])?,
                l.vector(&Part::AlignUpBias.tensor(i), n)?,
                l.values(&Part::AlignDown.tensor(i), &[n_head, n])?,
                meta.activation,
            )),
        };
        let rank = meta.layers[i].rank;
        let name = |part: Part| part.tensor(i).trim_end_matches(".weight").to_owned();
        let low_rank = match rank {
            0 => None,
            _ => Some(LowRank {
                q: l.linear(&name(Part::Q), n_head * rank, n_embd)?,
                k: l.linear(&name(Part::K), n_head_kv * rank, n_embd)?,
                freq: l.values(&Part::Freq.tensor(i), &[rank / 2, n_head_kv])?,
                rank,
            }),
        };
        Ok(LisaAttention { skip, hidden, domain: meta.domain, low_rank, scale: meta.scale })
    }

    /// Whether positions have several dimensions, as those of models that see images. In text the first three are the same, and files know
    /// no fourth.
    pub fn has_sections(&self) -> Result<bool> {
        let sections = self.keys.numbers(SECTIONS)?;
        match sections.get(3).filter(|&&n| n != 0) {
            Some(_) => Err(self.keys.error(SECTIONS, "a fourth dimension of positions is not supported")),
            None => Ok(sections.iter().any(|&n| n != 0)),
        }
    }

    /// For each of `n` rotating pairs whether text turns it, where positions may have a fourth dimension: that is 0 in text. Sections say how
    /// many pairs each dimension turns, in this order and over again.
    pub fn turning_pairs(&self, n: usize) -> Result<Vec<bool>> {
        let sections: Vec<usize> = self.keys.numbers(SECTIONS)?.into_iter().map(|n| n as usize).collect();
        let several = sections.iter().take(2).filter(|&&n| n > 0).count() == 2;
        let fourth = sections.get(3).copied().filter(|_| several).unwrap_or(0);
        let first = sections.iter().take(3).sum::<usize>();
        if first + fourth > 2 * n {
            let what = format_args!("{first} and {fourth} pairs, expected at most those of {n}");
            return Err(self.keys.error(SECTIONS, what));
        }
        Ok((0..n).map(|pair| fourth == 0 || pair % (first + fourth) < first).collect())
    }

    /// Whether layer `i` has experts, for families whose files do not say.
    pub fn has_experts(&self, i: usize) -> bool {
        self.loader.has(&format!("blk.{i}.ffn_gate_inp.weight"))
    }

    /// Refuses files with experts, for families that have none.
    pub fn refuse_experts(&self) -> Result<()> {
        match self.config.n_expert {
            0 => Ok(()),
            n => Err(self.keys.error("expert_count", format_args!("{n}: this family has no mixtures of experts here"))),
        }
    }

    /// The gated network of layer `i` with `n_ff` hidden units, its tensors' names ending in `suffix`. Where it has no gate projection, this is
    /// the first half of what is called the up projection.
    pub fn network(&mut self, i: usize, suffix: &str, n_ff: usize, act: Act) -> Result<FeedForward> {
        let n_embd = self.config.n_embd;
        if !self.loader.has(&format!("blk.{i}.ffn_gate{suffix}.weight")) && self.is_fused(i, suffix, n_ff) {
            return self.fused_network(i, suffix, n_ff, act);
        }
        let mut linear =
            |part: &str, rows, cols| self.loader.linear(&format!("blk.{i}.ffn_{part}{suffix}"), rows, cols);
        let (gate, up, down) =
            (linear("gate", n_ff, n_embd)?, linear("up", n_ff, n_embd)?, linear("down", n_embd, n_ff)?);
        Ok(FeedForward { gate, up: Some(up), norm: None, deviations: None, down, act })
    }

    /// Whether the up projection of layer `i` has twice the rows that `n_ff` hidden units take.
    fn is_fused(&self, i: usize, suffix: &str, n_ff: usize) -> bool {
        let dims = self.loader.dims(&format!("blk.{i}.ffn_up{suffix}.weight"));
        dims.is_some_and(|dims| dims.get(1) == Some(&(2 * n_ff as u64)))
    }

    /// The gated network of layer `i` whose gate and up projections are one tensor, `ffn_up`, the gate's rows first.
    fn fused_network(&mut self, i: usize, suffix: &str, n_ff: usize, act: Act) -> Result<FeedForward> {
        let (n_embd, name) = (self.config.n_embd, format!("blk.{i}.ffn_up{suffix}"));
        let gate = self.loader.linear_rows(&name, 2 * n_ff, n_embd, 0..n_ff)?;
        let up = self.loader.linear_rows(&name, 2 * n_ff, n_embd, n_ff..2 * n_ff)?;
        let down = self.loader.linear(&format!("blk.{i}.ffn_down{suffix}"), n_embd, n_ff)?;
        Ok(FeedForward { gate, up: Some(up), norm: None, deviations: None, down, act })
    }

    /// The feed-forward half of layer `i` without gates.
    pub fn ungated_feed_forward(&mut self, i: usize, act: Act) -> Result<Ffn> {
        self.ungated_feed_forward_of(i, self.config.n_ff, act)
    }

    /// The same with `n_ff` hidden units.
    pub fn ungated_feed_forward_of(&mut self, i: usize, n_ff: usize, act: Act) -> Result<Ffn> {
        self.refuse_experts()?;
        Ok(Ffn::One(Box::new(self.ungated_network(i, "", n_ff, act)?)))
    }

    /// The network of layer `i` with `n_ff` hidden units and no gates, its tensors' names ending in `suffix`.
    fn ungated_network(&mut self, i: usize, suffix: &str, n_ff: usize, act: Act) -> Result<FeedForward> {
        self.ungated_network_of(["up", "down"].map(|part| format!("blk.{i}.ffn_{part}{suffix}")), n_ff, act)
    }

    /// The same of these two tensors, to hidden units and from them.
    pub fn ungated_network_of(&mut self, [up, down]: [String; 2], n_ff: usize, act: Act) -> Result<FeedForward> {
        let n_embd = self.config.n_embd;
        let gate = self.loader.linear(&up, n_ff, n_embd)?;
        let down = self.loader.linear(&down, n_embd, n_ff)?;
        Ok(FeedForward { gate, up: None, norm: None, deviations: None, down, act })
    }

    /// The feed-forward half of layer `i` with separate projections, in a family without mixtures of experts.
    pub fn feed_forward(&mut self, i: usize, act: Act) -> Result<Ffn> {
        self.refuse_experts()?;
        self.dense_feed_forward(i, act)
    }

    /// The same for a layer without experts of a model that has some.
    pub fn dense_feed_forward(&mut self, i: usize, act: Act) -> Result<Ffn> {
        Ok(Ffn::One(Box::new(self.network(i, "", self.config.n_ff, act)?)))
    }

    /// What makes probabilities of a router's scores, `default` where the file does not say.
    pub fn gating(&self, default: Gating) -> Result<Gating> {
        const KEY: &str = "expert_gating_func";
        match self.keys.count(KEY)?.unwrap_or(0) {
            0 => Ok(default),
            1 => Ok(Gating::Softmax),
            2 => Ok(Gating::Sigmoid),
            n => Err(self.keys.error(KEY, format_args!("{n}: expected 1 (softmax) or 2 (sigmoid)"))),
        }
    }

    /// Mixtures of experts with `n_ff` hidden units each, chosen by a softmax over all of them, as many as the file says.
    ///
    /// # Errors
    /// Names the key where the file has no experts, or where their groups are impossible.
    pub fn mixture(&self, n_ff: usize) -> Result<Mixture> {
        let n_used = self.keys.uniform(USED)?.unwrap_or(self.config.n_expert_used);
        self.mixture_of(n_ff, n_used)
    }

    /// The same where `n_used` experts are chosen for a token.
    pub fn mixture_of(&self, n_ff: usize, n_used: usize) -> Result<Mixture> {
        let n_expert = self.config.n_expert;
        if n_expert == 0 {
            return Err(self.keys.error("expert_count", "is missing or 0"));
        }
        self.keys.check_experts_used(n_used, n_expert)?;
        if n_ff == 0 || n_ff > MAX_WIDTH || !n_ff.is_multiple_of(ROWS) {
            let what = format_args!("{n_ff}, expected a multiple of {ROWS} up to {MAX_WIDTH}");
            return Err(self.keys.error("expert_feed_forward_length", what));
        }
        let groups = match self.keys.count("expert_group_count")?.unwrap_or(0) {
            0 | 1 => None,
            n_groups => {
                let n_best = self.keys.required("expert_group_used_count", n_groups)?;
                if n_groups > MAX_GROUPS || !n_expert.is_multiple_of(n_groups) || n_expert / n_groups * n_best < n_used
                {
                    let what =
                        format_args!("{n_groups} groups of {n_expert} experts, {n_best} of them for {n_used} chosen");
                    return Err(self.keys.error("expert_group_count", what));
                }
                Some([n_groups, n_best])
            }
        };
        let choice =
            Choice { n_expert, n_used, gating: Gating::Softmax, normalised: true, scale: 1.0, n_sharing: 1, groups };
        Ok(Mixture { n_ff, choice, act: Act::Silu, gated: true, n_ff_shared: 0, weighed: false, latent: None })
    }

    /// The feed-forward half of layer `i` as a mixture of experts.
    pub fn experts(&mut self, i: usize, mixture: &Mixture) -> Result<Ffn> {
        Ok(Ffn::Experts(Box::new(self.bare_experts(i, mixture)?)))
    }

    /// The experts of layer `i`. Gate and up projections may be stored as one tensor, `ffn_gate_up_exps`, the gate's rows first.
    pub fn bare_experts(&mut self, i: usize, mixture: &Mixture) -> Result<Experts> {
        let Mixture { n_ff, choice, act, gated, n_ff_shared, weighed, latent } = *mixture;
        let (n_embd, n_expert) = (self.config.n_embd, choice.n_expert);
        let width = latent.unwrap_or(n_embd);
        let l = &mut *self.loader;
        let router = l.linear(&format!("blk.{i}.ffn_gate_inp"), n_expert, n_embd)?;
        // Hy3's files call it otherwise.
        let names_of_bias = ["exp_probs_b.bias", "exp_probs_b"].map(|name| format!("blk.{i}.{name}"));
        let name_of_bias = names_of_bias.iter().find(|name| l.has(name));
        let selection_bias = name_of_bias.map(|name| l.vector(name, n_expert)).transpose()?;
        let fused = l.has(&format!("blk.{i}.ffn_gate_up_exps.weight"));
        let mut stack = |name: &str, rows, cols| l.stack(&format!("blk.{i}.ffn_{name}_exps"), n_expert, rows, cols);
        let units = match (gated, fused) {
            (false, _) => Units::Ungated(stack("up", n_ff, width)?),
            (true, true) => Units::Fused(stack("gate_up", 2 * n_ff, width)?),
            (true, false) => Units::Gated { gate: stack("gate", n_ff, width)?, up: stack("up", n_ff, width)? },
        };
        let down = stack("down", width, n_ff)?;
        let latent = match latent {
            None => None,
            Some(_) => Some(ExpertLatent {
                down: l.linear(&format!("blk.{i}.ffn_latent_down"), width, n_embd)?,
                up: l.linear(&format!("blk.{i}.ffn_latent_up"), n_embd, width)?,
            }),
        };
        let networks = Networks { choice, selection_bias, units, down, act, weighs_input: false };
        let shared = match n_ff_shared {
            0 => None,
            n => Some(SharedExpert {
                network: match gated {
                    true => self.network(i, "_shexp", n, act)?,
                    false => self.ungated_network(i, "_shexp", n, act)?,
                },
                gate: weighed
                    .then(|| self.loader.vector(&format!("blk.{i}.ffn_gate_inp_shexp.weight"), n_embd))
                    .transpose()?,
            }),
        };
        Ok(Experts { router, input: ExpertInput::Half, networks, of_groups: None, latent, shared, norms: None })
    }

    /// The feed-forward half of layer `i` whose gate and up projections are one tensor, `ffn_up`, the gate's rows first.
    pub fn fused_feed_forward(&mut self, i: usize, act: Act) -> Result<Ffn> {
        self.refuse_experts()?;
        Ok(Ffn::One(Box::new(self.fused_network(i, "", self.config.n_ff, act)?)))
    }

    /// A pre-norm layer from its halves.
    pub fn layer(&mut self, i: usize, mixer: impl Into<Mixer>, ffn: Ffn) -> Result<Layer> {
        self.pre_norm_layer(i, mixer, ffn, "ffn_norm")
    }

    /// The same where the norm before the feed-forward network is called `ffn_norm`.
    pub fn pre_norm_layer(&mut self, i: usize, mixer: impl Into<Mixer>, ffn: Ffn, ffn_norm: &str) -> Result<Layer> {
        let attn_norm = Some(self.norm(&format!("blk.{i}.attn_norm"))?);
        let ffn_norm = Some(self.norm(&format!("blk.{i}.{ffn_norm}"))?);
        Ok(Layer { attn_norm, ffn_norm, ..Layer::bare(mixer, Some(ffn)) })
    }

    /// A layer with norms before and after each half.
    pub fn sandwiched_layer(&mut self, i: usize, attn: Attention, ffn: Ffn) -> Result<Layer> {
        let layer = self.layer(i, attn, ffn)?;
        let [post_attn_norm, post_ffn_norm] = self.post_norms(i)?.map(Some);
        Ok(Layer { post_attn_norm, post_ffn_norm, ..layer })
    }

    /// A layer with norms after each half alone.
    pub fn post_norm_layer(&mut self, i: usize, attn: Attention, ffn: Ffn) -> Result<Layer> {
        let [post_attn_norm, post_ffn_norm] = self.post_norms(i)?.map(Some);
        Ok(Layer { post_attn_norm, post_ffn_norm, ..Layer::bare(attn, Some(ffn)) })
    }

    fn post_norms(&mut self, i: usize) -> Result<[Norm; 2]> {
        let mut norm = |name: &str| self.norm(&format!("blk.{i}.{name}"));
        Ok([norm("post_attention_norm")?, norm("post_ffw_norm")?])
    }

    /// The norm `name` on rows of the residual stream, of the family's kind.
    pub fn norm(&mut self, name: &str) -> Result<Norm> {
        self.norm_of(name, self.config.n_embd)
    }

    /// The norm `name` on `n` values.
    pub fn norm_of(&mut self, name: &str, n: usize) -> Result<Norm> {
        let centred = self.layer_norm;
        let weight = self.loader.vector(&format!("{name}.weight"), n)?;
        let bias =
            if centred || self.rms_biases { self.loader.optional_vector(&format!("{name}.bias"), n)? } else { None };
        Ok(Norm { weight, bias, centred, eps: None })
    }

    /// What layer `i` makes of its inputs beside the residual stream, which have `width` values.
    pub fn side_network(&mut self, i: usize, width: usize) -> Result<SideNetwork> {
        let (n_embd, l) = (self.config.n_embd, &mut *self.loader);
        Ok(SideNetwork {
            gate: l.linear(&format!("blk.{i}.inp_gate"), width, n_embd)?,
            out: l.linear(&format!("blk.{i}.proj"), n_embd, width)?,
            norm: Norm::rms(l.vector(&format!("blk.{i}.post_norm.weight"), n_embd)?),
        })
    }

    /// The layers' inputs beside the residual stream, `width` values for each.
    pub fn side_inputs(&mut self, width: usize) -> Result<SideInputs> {
        let (n_embd, n, l) = (self.config.n_embd, self.config.n_layer * width, &mut *self.loader);
        Ok(SideInputs {
            width,
            embed: l.table("per_layer_token_embd.weight", self.n_vocab, n)?,
            projection: l.linear("per_layer_model_proj", n, n_embd)?,
            norm: l.vector("per_layer_proj_norm.weight", width)?,
        })
    }

    /// The whole model around its layers.
    pub fn decoder(&mut self, layers: Vec<Layer>, ropes: Vec<ContextRope>) -> Result<Decoder> {
        self.decoder_with(layers, ropes, "output_norm")
    }

    /// The same where the last norm is called `output_norm`.
    pub fn decoder_with(&mut self, layers: Vec<Layer>, ropes: Vec<ContextRope>, output_norm: &str) -> Result<Decoder> {
        let output_norm = self.norm(output_norm)?;
        self.decoder_around(layers, ropes, output_norm)
    }

    /// The same where the last norm is none of the file's.
    pub fn decoder_around(
        &mut self,
        layers: Vec<Layer>,
        ropes: Vec<ContextRope>,
        output_norm: Norm,
    ) -> Result<Decoder> {
        let (n_embd, n_vocab, l) = (self.config.n_embd, self.n_vocab, &mut *self.loader);
        let plan = self.sharing.plan;
        plan.check_sources(|i| layers[i].attn.as_ref().filter(|a| a.has_weights()).map(|a| (a.shape, a.rope)))
            .map_err(|e| l.error(e))?;
        let domain = self.sharing.meta.map_or(Domain::Log, |m| m.domain);
        Ok(Decoder {
            routes: Routes::new(plan, layers.len(), domain),
            embed: l.embeddings("token_embd", n_vocab, n_embd)?,
            embed_scale: 1.0,
            positions: None,
            embed_norm: None,
            side: None,
            streams: None,
            layers,
            rounds: Rounds::ONE,
            ropes,
            output_norm,
            output: l.has("output.weight").then(|| l.linear("output", n_vocab, n_embd)).transpose()?,
            logit_softcap: None,
            silent: None,
            norm_eps: self.config.norm_eps,
        })
    }
}

/// Rows of the query, key and value projections.
fn widths(s: &AttentionShape) -> (usize, usize, usize) {
    (s.n_head * s.head_dim_k, s.n_head_kv * s.head_dim_k, s.n_head_kv * s.head_dim_v)
}
