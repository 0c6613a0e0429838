//! What every family builds: a stack of decoder layers with its embedding and output head. A family differs from
//! another only in which parts are there and how they are shaped; the forward pass is one for all.

use std::ops::Range;

use super::latent::Latent;
use super::laurel::Laurel;
use super::streams::{StreamLayer, Streams};
use crate::attention::{
    AttentionShape, ChannelMix, Convolution, GateCurve, LayerCacheSpec, LisaAttention, Recurrence, Rope, Routes,
    Temperature, TimeMix,
};
use crate::compute::{Act, ExpertSizes, Linear, Matrix, Networks, Norm, Stack};

/// The attention of a layer.
pub struct Attention {
    /// Heads, scale, window.
    pub shape: AttentionShape,
    /// Which of the decoder's rotary embeddings turns queries and keys.
    pub rope: usize,
    /// Queries, keys and values are kept between this and its negative, where the family does so.
    pub clip: Option<f32>,
    /// What queries are multiplied with, by position.
    pub temperature: Option<Temperature>,
    /// Norms on heads come after their rotation instead of before.
    pub norm_after_turn: bool,
    /// The epsilon of norms on heads, where it is not the one of the other norms.
    pub head_eps: Option<f32>,
    /// What a score of each head loses for every position between query and key, where the family has it (see [`slopes`](crate::attention)).
    pub slopes: Option<Box<[f32]>>,
    /// Whether the window is a chunk of positions, of which a query sees those in its own, and not one that slides.
    pub chunked: bool,
    /// What each head's softmax counts besides the keys, where the family has it (see [`Attend::sinks`](crate::attention::Attend)).
    pub sinks: Option<Box<[f32]>>,
    /// What the heads' results are multiplied with, where the family has it.
    pub gate: Option<Gate>,
    /// Where the attention weights come from.
    pub scores: Scores,
    /// Value projection; `None` where the values are another layer's.
    pub v: Option<Linear>,
    /// RMSNorm on every value head, where the family has it.
    pub v_norm: Option<Box<[f32]>>,
    /// What makes heads' keys and values of a vector that they share, where the family has that.
    pub latent: Option<Latent>,
    /// Norm on the heads' results, all together, where the family has it.
    pub sub_norm: Option<Norm>,
    /// Output projection.
    pub out: Linear,
    /// Linear compensation (UniAttn, arXiv 2502.00439): what it makes of the layer's normalised input is added to `out`'s result.
    pub comp: Option<Linear>,
}

/// Gates on the results of heads.
pub struct Gate {
    /// Makes them of the layer's input: one for each value of all heads, or one for each head.
    pub linear: Linear,
    /// What makes factors of them.
    pub curve: GateCurve,
}

/// Where a layer's attention weights come from, with the parameters it takes to make them.
pub enum Scores {
    /// Its own queries and keys.
    Own {
        /// Query projection.
        q: QueryKey,
        /// Key projection.
        k: QueryKey,
    },
    /// Its own queries and the keys, and values, of layer `owner` (Cross-Layer Attention, arXiv 2405.12981).
    Queries {
        /// Query projection.
        q: QueryKey,
        /// The layer that has keys and values.
        owner: usize,
    },
    /// The weights of an earlier layer as they are (Shared Attention, arXiv 2407.12866).
    Shared,
    /// None: values are summed with fixed weights.
    Fixed(Convolution),
    /// The weights of an earlier layer, re-arranged and corrected (LISA, arXiv 2408.01890).
    Lisa(LisaAttention),
}

impl Scores {
    /// The projection that makes queries, low-rank ones included, or what else only a token's own result takes.
    pub fn q(&self) -> Option<&Linear> {
        match self {
            Self::Own { q, .. } | Self::Queries { q, .. } => Some(&q.linear),
            Self::Shared => None,
            Self::Fixed(conv) => Some(&conv.output),
            Self::Lisa(lisa) => lisa.low_rank.as_ref().map(|l| &l.q),
        }
    }

    /// The projection that makes keys, low-rank ones included, or what else is cached besides values.
    pub fn k(&self) -> Option<&Linear> {
        match self {
            Self::Own { k, .. } => Some(&k.linear),
            Self::Queries { .. } | Self::Shared => None,
            Self::Fixed(conv) => Some(&conv.input),
            Self::Lisa(lisa) => lisa.low_rank.as_ref().map(|l| &l.k),
        }
    }
}

/// A query or key projection.
pub struct QueryKey {
    /// The projection.
    pub linear: Linear,
    /// The norm on what it makes, where the family has one.
    pub norm: Option<HeadNorm>,
}

/// A norm on queries or keys.
pub enum HeadNorm {
    /// On every head: the same for all, or one for each.
    Each(Box<[Norm]>),
    /// On all heads together.
    Together(Norm),
}

impl QueryKey {
    /// The norm of head `h`, where each is normalised by itself.
    pub fn head_norm(&self, h: usize) -> Option<&Norm> {
        match self.norm.as_ref()? {
            HeadNorm::Each(norms) => norms.get(h % norms.len()),
            HeadNorm::Together(_) => None,
        }
    }

    /// The norm of all heads together, where there is one.
    pub fn row_norm(&self) -> Option<&Norm> {
        match self.norm.as_ref()? {
            HeadNorm::Each(_) => None,
            HeadNorm::Together(norm) => Some(norm),
        }
    }
}

impl HeadNorm {
    /// The weights, where it is RMSNorm, and the same for all that are normalised by themselves.
    pub fn rms(&self) -> Option<&[f32]> {
        let norm = match self {
            Self::Each(norms) if norms.len() == 1 => &norms[0],
            Self::Each(_) => return None,
            Self::Together(norm) => norm,
        };
        (!norm.centred && norm.bias.is_none()).then_some(&norm.weight)
    }
}

impl Attention {
    /// Attention without anything that only some families have.
    pub fn bare(shape: AttentionShape, rope: usize, scores: Scores, v: Option<Linear>, out: Linear) -> Self {
        Self {
            shape,
            rope,
            clip: None,
            temperature: None,
            norm_after_turn: false,
            head_eps: None,
            slopes: None,
            chunked: false,
            sinks: None,
            gate: None,
            scores,
            v,
            v_norm: None,
            latent: None,
            sub_norm: None,
            out,
            comp: None,
        }
    }

    /// Every matrix.
    fn matrices(&self) -> impl Iterator<Item = &Linear> {
        let own = [self.scores.q(), self.comp.as_ref(), self.gate.as_ref().map(|g| &g.linear)];
        let latent = self.latent.iter().flat_map(Latent::matrices);
        own.into_iter().flatten().chain(self.cached()).chain(latent).chain([&self.out])
    }

    /// The matrices of heads.
    fn stacks(&self) -> impl Iterator<Item = &Stack> {
        self.latent.iter().flat_map(Latent::stacks)
    }

    /// Whether the layer has values of its own.
    pub fn has_values(&self) -> bool {
        self.v.is_some() || self.latent.as_ref().is_some_and(|l| l.norm.is_some())
    }

    /// The matrices that make what later tokens need.
    fn cached(&self) -> impl Iterator<Item = &Linear> {
        [self.v.as_ref(), self.scores.k()].into_iter().flatten()
    }

    /// Whether the layer has attention, and not something else in its place.
    pub fn has_weights(&self) -> bool {
        !matches!(self.scores, Scores::Fixed(_))
    }

    /// Hidden units of a `lisa` layer.
    pub fn n_hidden(&self) -> usize {
        match &self.scores {
            Scores::Lisa(lisa) => lisa.n_hidden(),
            _ => 0,
        }
    }

    /// What the layer keeps in the cache.
    fn cache(&self) -> LayerCacheSpec {
        let s = &self.shape;
        let (key_dim, rank) = match &self.scores {
            Scores::Own { .. } => (Some(s.head_dim_k), None),
            Scores::Queries { .. } | Scores::Shared | Scores::Fixed(_) => (None, None),
            Scores::Lisa(lisa) => (None, lisa.low_rank.as_ref().map(|l| l.rank)),
        };
        let value_dim = self.has_values().then_some(s.head_dim_v);
        LayerCacheSpec { n_head_kv: s.n_head_kv, key_dim, rank, value_dim, window: s.window, n_state: 0 }
    }
}

/// The feed-forward half of a layer: `down(act(gate x) * up x)`, or without gates `down(act(gate x))`.
pub struct FeedForward {
    /// Gate projection; of a network without gates, its only one to the hidden units.
    pub gate: Linear,
    /// Up projection, where there are gates.
    pub up: Option<Linear>,
    /// Norm on the hidden units, where the family has it.
    pub norm: Option<Norm>,
    /// Gates of a token are left by as much as they are above their mean and so many of their standard deviations, and the rest are 0, where the
    /// family has it.
    pub deviations: Option<f32>,
    /// Down projection.
    pub down: Linear,
    /// The activation.
    pub act: Act,
}

impl FeedForward {
    /// Hidden units.
    pub fn n_hidden(&self) -> usize {
        self.down.weight.cols()
    }

    /// Every matrix.
    fn matrices(&self) -> impl Iterator<Item = &Linear> {
        [&self.gate].into_iter().chain(&self.up).chain([&self.down])
    }
}

/// A mixture of experts in place of one network.
pub struct Experts {
    /// Makes the scores that experts are chosen by.
    pub router: Linear,
    /// What it is given.
    pub input: ExpertInput,
    /// Who is chosen, and the networks.
    pub networks: Networks,
    /// Networks that experts share (Grove MoE, arXiv 2508.07785), chosen by the same scores: they are given what the experts have made together, and
    /// add to that.
    pub of_groups: Option<Networks>,
    /// What makes the rows that the networks are given, where these are latents.
    pub latent: Option<ExpertLatent>,
    /// A network that all tokens meet besides.
    pub shared: Option<SharedExpert>,
    /// Norms of their own, where the family has them.
    pub norms: Option<ExpertNorms>,
}

impl Experts {
    /// The networks of experts and of their groups.
    pub fn all_networks(&self) -> impl Iterator<Item = &Networks> {
        [&self.networks].into_iter().chain(&self.of_groups)
    }
}

/// What a mixture in the feed-forward half of a layer is given.
pub enum ExpertInput {
    /// What the half is given.
    Half,
    /// The same, but the router is given the layer's input.
    RoutedBefore,
    /// What this norm makes of the layer's input. The half is the network beside the mixture then, which knows what attention has added.
    Before(Norm),
}

/// Norms around a mixture beside a network that all tokens meet: the network is given what the layer's norm makes of the residual stream, the
/// rest what these make of it.
pub struct ExpertNorms {
    /// Before the router.
    pub router: Norm,
    /// Before the experts.
    pub experts: Norm,
    /// RMSNorm on what the experts make together.
    pub result: Box<[f32]>,
    /// RMSNorm on what the network makes.
    pub shared: Box<[f32]>,
}

/// Narrow rows that experts are given in the place of the layer's, and make: what is read for a token shrinks with them (Nemotron 3 Super).
pub struct ExpertLatent {
    /// To them, `[width, n_embd]`.
    pub down: Linear,
    /// From what experts make together, weighed and added up, `[n_embd, width]`.
    pub up: Linear,
}

/// An expert that all tokens meet.
pub struct SharedExpert {
    /// Its network.
    pub network: FeedForward,
    /// Its results are multiplied with `sigmoid(gate . x)`, where the family has that.
    pub gate: Option<Box<[f32]>>,
}

/// The feed-forward half of a layer.
pub enum Ffn {
    /// One network.
    One(Box<FeedForward>),
    /// Many, of which some are chosen.
    Experts(Box<Experts>),
}

impl Ffn {
    /// The network that every token meets, if there is one.
    pub fn network(&self) -> Option<&FeedForward> {
        match self {
            Self::One(f) => Some(f),
            Self::Experts(e) => e.shared.as_ref().map(|s| &s.network),
        }
    }

    /// The matrices that every token meets.
    fn matrices(&self) -> impl Iterator<Item = &Linear> {
        let router = self.experts().map(|e| &e.router);
        let latent = self.experts().and_then(|e| e.latent.as_ref()).into_iter().flat_map(|l| [&l.down, &l.up]);
        self.network().into_iter().flat_map(FeedForward::matrices).chain(router).chain(latent)
    }

    /// The experts, if there are any.
    pub fn experts(&self) -> Option<&Experts> {
        match self {
            Self::One(_) => None,
            Self::Experts(e) => Some(e),
        }
    }

    /// A number for each of the experts' stacks, scaled down to those that a token meets.
    fn of_chosen(&self, number: impl Fn(&Matrix) -> usize) -> usize {
        let per_token = |n: &Networks| {
            n.stacks().map(|s| number(&s.weight) / n.choice.n_networks() * n.choice.n_used).sum::<usize>()
        };
        self.experts().map_or(0, |e| e.all_networks().map(per_token).sum())
    }
}

/// What of a layer lets tokens know of those before, or is in its place.
#[derive(Default)]
pub struct Mixer {
    /// Attention.
    pub attn: Option<Attention>,
    /// A state, in place of attention or beside it.
    pub recurrence: Option<Box<Recurrence>>,
    /// Time mixing, in the place of both.
    pub time_mix: Option<Box<TimeMix>>,
    /// A linear map in their place, by which tokens know of none before.
    pub map: Option<Linear>,
}

impl From<Attention> for Mixer {
    fn from(attn: Attention) -> Self {
        Self { attn: Some(attn), ..Self::default() }
    }
}

impl From<Recurrence> for Mixer {
    fn from(recurrence: Recurrence) -> Self {
        Self { recurrence: Some(recurrence.into()), ..Self::default() }
    }
}

impl From<TimeMix> for Mixer {
    fn from(time_mix: TimeMix) -> Self {
        Self { time_mix: Some(time_mix.into()), ..Self::default() }
    }
}

impl From<Linear> for Mixer {
    fn from(map: Linear) -> Self {
        Self { map: Some(map), ..Self::default() }
    }
}

/// A decoder layer. Its halves may be missing; without both, the residual stream passes by.
pub struct Layer {
    /// Norm before the first half, where the family has it.
    pub attn_norm: Option<Norm>,
    /// Attention: a part of the first half.
    pub attn: Option<Attention>,
    /// A state in its place; or beside it, when both are given the same and what they make is added up.
    pub recurrence: Option<Box<Recurrence>>,
    /// Time mixing in the place of both.
    pub time_mix: Option<Box<TimeMix>>,
    /// A linear map in the place of these, where the layer has it.
    pub map: Option<Linear>,
    /// Norm on the attention's result, where the family has it.
    pub post_attn_norm: Option<Norm>,
    /// Norm before the feed-forward network, where the family has it.
    pub ffn_norm: Option<Norm>,
    /// What the second half is given of each token and the one before, where it does not know the former alone.
    pub channel_mix: Option<ChannelMix>,
    /// Feed-forward network: the second half.
    pub ffn: Option<Ffn>,
    /// Norm on the network's result, where the family has it.
    pub post_ffn_norm: Option<Norm>,
    /// Whether both halves start from the layer's input, and their results are added to it together. Without a norm of its own the
    /// feed-forward half then takes that of attention.
    pub parallel: bool,
    /// What the layer makes of its own input beside the residual stream, where the family has that.
    pub side: Option<SideNetwork>,
    /// What is added beside attention, where the family has it.
    pub laurel: Option<Laurel>,
    /// How it keeps the rows of the residual stream, where there are several; the layer itself computes one, and a side network adds to the others.
    pub streams: Option<StreamLayer>,
    /// What its halves' results are added to is what the norm before each makes of the residual stream, multiplied with this, and not that itself,
    /// where the family has it so.
    pub keeps_normed: Option<f32>,
    /// The tokens' embeddings are added to its results once more, multiplied with this, where the family has that.
    pub embeddings: Option<f32>,
    /// Factor on the residual stream after the layer.
    pub scale: f32,
}

/// What a layer makes of its [`SideInputs`]: `x += norm(out(gelu(gate x) * input))`.
pub struct SideNetwork {
    /// From the residual stream, as it is, to as many values as the input has.
    pub gate: Linear,
    /// Back again.
    pub out: Linear,
    /// Norm on the result.
    pub norm: Norm,
}

/// Inputs of every layer beside the residual stream (Gemma's per-layer embeddings): the sum, times 1 / sqrt 2, of what a second table says of
/// the token, and of what a projection, normalised layer by layer, makes of the token's embedding.
pub struct SideInputs {
    /// Values for each layer.
    pub width: usize,
    /// The table, `[n_vocab, n_layer * width]`.
    pub embed: Matrix,
    /// The projection, `[n_layer * width, n_embd]`.
    pub projection: Linear,
    /// RMSNorm on the projection's result.
    pub norm: Box<[f32]>,
}

impl Layer {
    /// A layer without norms.
    pub fn bare(mixer: impl Into<Mixer>, ffn: Option<Ffn>) -> Self {
        let Mixer { attn, recurrence, time_mix, map } = mixer.into();
        Self {
            attn_norm: None,
            attn,
            recurrence,
            time_mix,
            map,
            post_attn_norm: None,
            ffn_norm: None,
            channel_mix: None,
            ffn,
            post_ffn_norm: None,
            parallel: false,
            side: None,
            laurel: None,
            streams: None,
            keeps_normed: None,
            embeddings: None,
            scale: 1.0,
        }
    }

    /// Whether it has a first half.
    pub fn has_mixer(&self) -> bool {
        self.attn.is_some() || self.recurrence.is_some() || self.time_mix.is_some() || self.map.is_some()
    }

    /// The matrices that make what later tokens need.
    fn cached(&self) -> impl Iterator<Item = &Linear> {
        let states = self.recurrence.iter().flat_map(|r| r.cached());
        let mixed = self.time_mix.iter().flat_map(|m| m.cached());
        // What the second half keeps is made of all that the first makes.
        let of_second = self.time_mix.iter().filter(|_| self.channel_mix.is_some()).map(|m| &m.out);
        self.attn.iter().flat_map(Attention::cached).chain(states).chain(mixed).chain(of_second)
    }

    /// Every matrix but those of experts.
    fn matrices(&self) -> impl Iterator<Item = &Linear> {
        let states = self.recurrence.iter().flat_map(|r| r.matrices());
        let mixed = self.time_mix.iter().flat_map(|m| m.matrices());
        let mixer = self.attn.iter().flat_map(Attention::matrices).chain(states).chain(mixed).chain(&self.map);
        let mixer = mixer.chain(self.channel_mix.iter().flat_map(|m| &m.gate));
        let side = self.side.iter().flat_map(|s| [&s.gate, &s.out]);
        let laurel = self.laurel.iter().flat_map(Laurel::matrices);
        mixer.chain(self.ffn.iter().flat_map(Ffn::matrices)).chain(side).chain(laurel)
    }

    /// What it keeps in the cache.
    fn cache(&self) -> LayerCacheSpec {
        let of_time_mix = self.time_mix.as_ref().map_or(0, |m| m.shape.n_state());
        let n_state = self.recurrence.as_ref().map_or(of_time_mix, |r| r.shape.n_state());
        LayerCacheSpec { n_state, ..self.attn.as_ref().map_or(LayerCacheSpec::NONE, Attention::cache) }
    }

    /// The mixture of experts, if it has one.
    pub fn experts(&self) -> Option<&Experts> {
        self.ffn.as_ref()?.experts()
    }

    /// The matrices of experts and of heads, with how many of these there are.
    fn stacks(&self) -> impl Iterator<Item = (&Stack, usize)> {
        let networks = self.experts().into_iter().flat_map(Experts::all_networks);
        let of_experts = networks.flat_map(|n| n.stacks().map(|s| (s, n.choice.n_networks())));
        of_experts.chain(self.attn.iter().flat_map(|a| a.stacks().map(|s| (s, a.shape.n_head))))
    }

    /// A number for each of the matrices that a token meets.
    fn met(&self, number: impl Fn(&Matrix) -> usize) -> usize {
        let of_heads = self.attn.iter().flat_map(Attention::stacks).map(|s| &s.weight);
        let matrices = self.matrices().map(|l| &l.weight).chain(of_heads);
        matrices.map(&number).sum::<usize>() + self.ffn.as_ref().map_or(0, |ffn| ffn.of_chosen(number))
    }
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

    /// The same for dimensions of a head from `first` on.
    pub fn turning_from(self, first: usize) -> Self {
        let long = self.long.map(|(limit, rope)| (limit, rope.turning_from(first)));
        Self { short: self.short.turning_from(first), long }
    }

    /// The embedding for a context of `n_ctx`.
    pub fn for_context(&self, n_ctx: usize) -> &Rope {
        match &self.long {
            Some((limit, long)) if n_ctx > *limit => long,
            _ => &self.short,
        }
    }
}

/// How often tokens pass through all layers, each time with a cache of its own.
#[derive(Debug, Clone, Copy)]
pub struct Rounds {
    /// So often.
    pub n: usize,
    /// Whether the norm before the output head applies between one round and the next too.
    pub normed: bool,
}

impl Rounds {
    /// One round, as of most families.
    pub const ONE: Self = Self { n: 1, normed: false };
}

/// A whole model.
pub struct Decoder {
    /// Token embeddings; the output head too where there is none of its own.
    pub embed: Linear,
    /// Factor on the embeddings.
    pub embed_scale: f32,
    /// Learned positions, `[n_ctx, n_embd]`, added to the embeddings, where the family has them; its contexts end with them.
    pub positions: Option<Matrix>,
    /// Norm on the embeddings, where the family has it.
    pub embed_norm: Option<Norm>,
    /// Inputs of the layers beside the residual stream, where the family has them.
    pub side: Option<SideInputs>,
    /// The rows of the residual stream, where there are several.
    pub streams: Option<Streams>,
    /// Layers, first to last.
    pub layers: Vec<Layer>,
    /// How often tokens pass through these.
    pub rounds: Rounds,
    /// Rotary embeddings the layers refer to.
    pub ropes: Vec<ContextRope>,
    /// Where layers leave attention weights for later ones.
    pub routes: Routes,
    /// Norm before the output head.
    pub output_norm: Norm,
    /// The output head, unless tied to the embeddings.
    pub output: Option<Linear>,
    /// `cap * tanh(logit / cap)`, where the family has it.
    pub logit_softcap: Option<f32>,
    /// Tokens that are never predicted, whose logits are the least that there are.
    pub silent: Option<Range<usize>>,
    /// The norms' epsilon.
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

    /// Hidden units of the networks that every token meets.
    pub fn n_ffs(&self) -> impl Iterator<Item = usize> + '_ {
        let networks = self.layers.iter().filter_map(|l| l.ffn.as_ref()?.network());
        networks.map(FeedForward::n_hidden).chain(self.side.as_ref().map(|s| s.width))
    }

    /// Hidden units of the widest network that every token meets, 0 where there is none.
    pub fn n_ff(&self) -> usize {
        self.n_ffs().max().unwrap_or(0)
    }

    /// Most hidden units that a token meets in one product.
    pub fn n_ff_per_token(&self) -> usize {
        self.n_ff().max(self.experts().map_or(0, |e| e.n_used * e.n_ff))
    }

    /// Whether layers add the tokens' embeddings once more.
    pub fn adds_embeddings(&self) -> bool {
        self.layers.iter().any(|l| l.embeddings.is_some())
    }

    /// Sizes of the largest mixture of experts, if there is one.
    pub fn experts(&self) -> Option<ExpertSizes> {
        let all = self.layers.iter().filter_map(Layer::experts).flat_map(Experts::all_networks).map(Networks::sizes);
        all.reduce(|a, b| ExpertSizes {
            n_expert: a.n_expert.max(b.n_expert),
            n_used: a.n_used.max(b.n_used),
            n_ff: a.n_ff.max(b.n_ff),
            width: a.width.max(b.width),
        })
    }

    /// Every matrix but those of experts.
    pub fn matrices(&self) -> impl Iterator<Item = &Linear> {
        let side = self.side.as_ref().map(|s| &s.projection);
        let streams = self.streams.iter().flat_map(Streams::matrices);
        self.layers.iter().flat_map(Layer::matrices).chain([&self.embed]).chain(&self.output).chain(side).chain(streams)
    }

    /// All weights.
    pub fn weights(&self) -> impl Iterator<Item = &Matrix> {
        self.matrices().map(|l| &l.weight).chain(self.stacks().map(|(s, _)| &s.weight))
    }

    /// The weights of all layers.
    pub fn layer_weights(&self) -> impl Iterator<Item = &Matrix> {
        self.layers.iter().flat_map(|l| l.matrices().map(|m| &m.weight).chain(l.stacks().map(|(s, _)| &s.weight)))
    }

    /// The matrices of experts and of heads, with how many of these there are.
    pub fn stacks(&self) -> impl Iterator<Item = (&Stack, usize)> {
        self.layers.iter().flat_map(Layer::stacks)
    }

    /// The last layer that puts anything into the cache, in every round.
    pub fn last_caching(&self) -> usize {
        let caches = |l: &Layer| l.attn.as_ref().is_some_and(Attention::has_values) || l.cached().next().is_some();
        self.layers.iter().rposition(caches).unwrap_or(0)
    }

    /// Multiply-adds of the matrix products for a token of a prompt, which needs no logits: of the last layer that caches anything, those
    /// for what is cached, and of layers after it none.
    pub fn macs_per_token(&self) -> usize {
        let (before, rest) = self.layers.split_at(self.last_caching());
        let cached = rest.first().into_iter().flat_map(Layer::cached);
        let macs = |w: &Matrix| w.rows() * w.cols();
        let side = self.side.as_ref().map(|s| &s.projection);
        let streams = self.streams.iter().flat_map(|s| &s.expand);
        let once = cached.chain(side).chain(streams).map(|l| macs(&l.weight)).sum::<usize>();
        let of_layers = |layers: &[Layer]| layers.iter().map(|l| l.met(macs)).sum::<usize>();
        once + of_layers(before) + (self.rounds.n - 1) * of_layers(&self.layers)
    }

    /// Bytes of matrices that a generated token reads.
    pub fn bytes_per_token(&self) -> usize {
        let others = [self.head()].into_iter().chain(self.side.as_ref().map(|s| &s.projection));
        let others = others.chain(self.streams.iter().flat_map(Streams::matrices));
        let layers = self.layers.iter().map(|l| l.met(Matrix::n_bytes));
        others.map(|l| l.weight.n_bytes()).sum::<usize>() + self.rounds.n * layers.sum::<usize>()
    }

    /// What layers have in the place of attention that sums up values, and attention itself.
    fn attns(&self) -> impl Iterator<Item = &Attention> + Clone {
        self.layers.iter().filter_map(|l| l.attn.as_ref())
    }

    /// The shapes of layers with attention.
    pub fn attentions(&self) -> impl Iterator<Item = AttentionShape> + Clone {
        self.attns().filter(|a| a.has_weights()).map(|a| a.shape)
    }

    /// The shapes of layers with convolutions in its place: one head, with a value for every channel.
    pub fn convolutions(&self) -> impl Iterator<Item = AttentionShape> + Clone {
        self.attns().filter(|a| matches!(a.scores, Scores::Fixed(_))).map(|a| a.shape)
    }

    /// What layers with states have for these.
    pub fn recurrences(&self) -> impl Iterator<Item = &Recurrence> + Clone {
        self.layers.iter().filter_map(|l| l.recurrence.as_deref())
    }

    /// What layers with time mixing have for it.
    pub fn time_mixes(&self) -> impl Iterator<Item = &TimeMix> + Clone {
        self.layers.iter().filter_map(|l| l.time_mix.as_deref())
    }

    /// What every layer keeps in the cache, round by round.
    pub fn caches(&self) -> impl Iterator<Item = LayerCacheSpec> + '_ {
        (0..self.rounds.n).flat_map(|_| self.layers.iter().map(Layer::cache))
    }

    /// The layer that keeps what is at `i` of [`Decoder::caches`].
    pub fn layer_of_cache(&self, i: usize) -> &Layer {
        &self.layers[i % self.layers.len()]
    }
}
