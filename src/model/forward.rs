//! The forward pass: one for all families, read from top to bottom.

use std::ops::Range;
use std::sync::Arc;

use ggml_ext::kernels::{Kernels, MatmulScratch};

use super::buffers::Buffers;
use super::decoder::{
    Attention, Decoder, ExpertInput, Experts, FeedForward, Ffn, Layer, QueryKey, Scores, SideInputs, SideNetwork,
};
use super::streams::StreamLayer;
use super::{latent, laurel};
use crate::attention::{
    Attend, AttentionScratch, Convolution, Gates, KvCache, LayerCache, Queries, Recurrence, RecurrentStep, ScoreSource,
    TimeMixBuffers,
};
use crate::compute::{Act, Form, Laps, Networks, Norm, Observer, Operand, Ops, Phase, Profile, SharedBuf, Worker};

/// From which step on a block of int8 activations gets second digits, relative to its row's root mean square. What attention takes
/// matters most, scores being exponents; what the last layer's feed-forward network and the output head take is fine throughout:
/// nothing after them evens errors out, and of a prompt's tokens only the last meets them. Mean KL divergence from floats on
/// WikiText-2 (8 windows), which none of these was chosen with: SmolLM2 Q4_1 1.3e-4, Q8_0 1.3e-4, Q4_K_M 1.4e-4, Gemma-3-270M Q4_K_M
/// 1.2e-4; without second digits about 2.9e-3. Steps larger by 10/7 were tried: twice the divergence, prompts 5 to 9 % faster, and the
/// most likely token another than that of floats at 1 in 100 positions instead of 1 in 150.
pub(super) mod fine_step {
    pub const ATTENTION: f32 = 0.0154;
    pub const HEADS: f32 = 0.021;
    pub const FEED_FORWARD: f32 = 0.0196;
    pub const HIDDEN: f32 = 0.0196;
    /// Of the last layer's feed-forward network, and of the head.
    pub const LAST: f32 = 0.0;
}

/// How a pass computes.
pub struct Mode {
    /// The kernel table.
    pub kernels: &'static Kernels,
    /// Looks on.
    pub observer: Option<Arc<dyn Observer>>,
    /// Receives the time of each phase.
    pub profile: Option<Profile>,
}

impl Mode {
    /// The watch of member `worker`: the first member's measures.
    fn laps(&self, worker: &Worker) -> Laps<'_> {
        Laps::start(self.profile.as_ref().filter(|_| worker.id == 0))
    }

    /// Member `worker`'s tools.
    fn ops<'a>(&'a self, worker: &'a Worker<'a>, scratch: &'a mut MatmulScratch) -> Ops<'a> {
        Ops { worker, kernels: self.kernels, scratch, observer: self.observer.as_deref() }
    }
}

/// Tokens on their way through the layers.
pub struct Tokens<'a> {
    /// What they are.
    pub ids: &'a [u32],
    /// Position of the first.
    pub pos: usize,
    /// Of how many, the last ones, the final states are wanted.
    pub n_wanted: usize,
}

/// Runs `tokens` through all layers: fills the cache and leaves the normalised last hidden states of those wanted for [`head`].
pub fn forward(model: &Decoder, w: &Worker, o: &Mode, buf: &Buffers, cache: &KvCache, tokens: &Tokens) {
    // SAFETY: the only reference while the member is here.
    let (scratch, of_products) = unsafe { buf.member(w) };
    let n = tokens.ids.len();
    let (ops, laps) = (o.ops(w, of_products), o.laps(w));
    let form = Form::of(o.kernels, n);
    let mut pass = Pass { model, buf, cache, ops, laps, scratch, form, pos: tokens.pos, round: 0, eps: model.norm_eps };
    pass.embed(tokens.ids);
    // Later tokens see of a token what layers have cached of it. What the last layer that caches anything, and those after it, make
    // of it beyond that serves its own logits alone.
    let last_caching = model.last_caching();
    let mut fed = 0..n;
    'rounds: for round in 0..model.rounds.n {
        pass.begin_round(round, n);
        for i in 0..model.layers.len() {
            let asked = if !pass.is_last_round() || i < last_caching { 0..n } else { n - tokens.n_wanted..n };
            let looks_back = model.layers[i].channel_mix.is_some();
            let mut through = Through { asked: if looks_back { fed.clone() } else { asked.clone() }, fed };
            pass.project(i, &through);
            pass.place(i, &through);
            if through.asked.is_empty() {
                break 'rounds;
            }
            pass.mix(i, &through);
            if looks_back {
                pass.look_back(i, &asked, &through);
                through = Through { asked, ..through };
                if through.asked.is_empty() {
                    break 'rounds;
                }
            }
            pass.feed_forward(i, &through);
            pass.add_up(i, &through);
            fed = through.asked;
        }
    }
    pass.laps.pass();
}

/// Which tokens of a step go through a layer: those that its input has, one to a row, and of these the last ones, whose results are
/// wanted, again one to a row.
struct Through {
    fed: Range<usize>,
    asked: Range<usize>,
}

/// One member's way through the layers.
struct Pass<'a> {
    model: &'a Decoder,
    buf: &'a Buffers,
    cache: &'a KvCache,
    ops: Ops<'a>,
    laps: Laps<'a>,
    scratch: &'a mut AttentionScratch,
    /// In which form activations meet weights.
    form: Form,
    /// Position of the step's first token.
    pos: usize,
    /// How often the tokens have passed through all layers.
    round: usize,
    /// The norms' epsilon.
    eps: f32,
}

impl<'a> Pass<'a> {
    /// The norm before layer `i`, or before the head after the last, and where it leaves the layer's input.
    fn input(&self, i: usize) -> (Option<&'a Norm>, Operand<'a>) {
        match self.model.layers.get(i) {
            Some(layer) => (layer.attn_norm.as_ref(), self.buf.n.with(self.form, fine_step::ATTENTION)),
            None => (Some(&self.model.output_norm), self.buf.n.with(self.form, fine_step::LAST)),
        }
    }

    /// The step for second digits in layer `i`, elsewhere `usual`.
    fn step(&self, i: usize, usual: f32) -> f32 {
        if i + 1 == self.model.layers.len() && self.is_last_round() { fine_step::LAST } else { usual }
    }

    /// Room for the hidden units of a network of layer `i`.
    fn hidden(&self, i: usize, width: usize) -> Operand<'a> {
        self.buf.hidden.of(width).with(self.form, self.step(i, fine_step::HIDDEN))
    }

    /// The residual stream and the first layer's input, and the tokens' rotations.
    fn embed(&mut self, ids: &[u32]) {
        let (model, buf, pos) = (self.model, self.buf, self.pos);
        for (rope, table) in model.ropes.iter().zip(&buf.ropes) {
            let rows = self.ops.worker.share(ids.len());
            // SAFETY: rows are shared out disjointly.
            rows.for_each(|i| unsafe { table.fill(rope.for_context(buf.n_ctx), i, (pos + i) as f64) });
        }
        let n = ids.len();
        self.ops.embed(&model.embed.weight, n, |i| ids[i] as usize, model.embed_scale, &buf.x);
        if let Some(positions) = &model.positions {
            self.ops.embed(positions, n, |i| pos + i, 1.0, &buf.delta);
            self.ops.add(&buf.x, &buf.delta, n * positions.cols());
        }
        if let Some(norm) = &model.embed_norm {
            self.ops.norm_in_place(&buf.x, n, norm, self.eps);
        }
        if let Some(embedded) = &buf.embedded {
            self.ops.copy(embedded, &buf.x, n * model.embed.weight.cols());
        }
        let (norm, out) = self.input(0);
        if let (Some(inputs), Some(bufs)) = (&model.side, &buf.side) {
            side_inputs(&mut self.ops, inputs, buf, bufs, ids, out, self.eps);
        }
        if let (Some(streams), Some(all)) = (&model.streams, &buf.streams) {
            streams.expand(&mut self.ops, all, &buf.x, n, out);
            self.predict(0, &(0..n));
        }
        self.ops.norm(&buf.x, 0..n, norm, self.eps, out);
        self.laps.end(Phase::Embed);
    }

    fn is_last_round(&self) -> bool {
        self.round + 1 == self.model.rounds.n
    }

    /// The first layer's input, of the residual stream of `n` tokens that have passed through all layers `round` times. Of those that have not
    /// it lies there already.
    fn begin_round(&mut self, round: usize, n: usize) {
        self.round = round;
        if round == 0 {
            return;
        }
        if self.model.rounds.normed {
            self.ops.norm_in_place(&self.buf.x, n, &self.model.output_norm, self.eps);
        }
        let (norm, out) = self.input(0);
        self.ops.norm(&self.buf.x, 0..n, norm, self.eps, out);
        self.laps.end(Phase::Norm);
    }

    /// The place in the cache of what layer `i` keeps in this round.
    fn cached(&self, i: usize) -> usize {
        self.round * self.model.layers.len() + i
    }

    /// The products of layer `i`'s input that its attention and its state start from.
    fn project(&mut self, i: usize, Through { fed, asked }: &Through) {
        let (layer, buf, (_, x)) = (&self.model.layers[i], self.buf, self.input(i));
        self.keep_normed(layer, x, fed);
        project(&mut self.ops, layer, buf, x, fed, asked);
        if let Some(attn) = &layer.attn {
            latent::heads(&mut self.ops, attn, buf, fed.len(), asked.len(), self.form, self.eps);
            clip_and_norm_rows(&self.ops, attn, buf, fed, asked, self.eps);
        }
        self.laps.end(Phase::Project);
    }

    /// Leaves in the residual stream of tokens `rows` what a norm has made of it, the first rows of `x`, where `layer` has it so.
    fn keep_normed(&mut self, layer: &Layer, x: Operand, rows: &Range<usize>) {
        if let Some(factor) = layer.keeps_normed {
            self.ops.take_back(&self.buf.x, rows.clone(), x, factor);
        }
    }

    /// Where what a state gives is read to.
    fn read(&self, recurrence: &Recurrence) -> Operand<'a> {
        self.read_to(recurrence.shape.n_values())
    }

    /// The same where that are so many values.
    fn read_to(&self, n_values: usize) -> Operand<'a> {
        self.buf.read.of(n_values).with(self.form, fine_step::HEADS)
    }

    /// Puts into the cache what later tokens see of layer `i`. Where the layer has a state, takes the tokens into it, and reads what was asked
    /// for.
    fn place(&mut self, i: usize, through: &Through) {
        let (layer, cache) = (&self.model.layers[i], self.cache.layer(self.cached(i)));
        if let Some(attn) = &layer.attn {
            self.place_heads(attn, cache, through);
        }
        if let (Some(recurrence), Some(work)) = (&layer.recurrence, &self.buf.recurrent) {
            let (n, n_wanted) = (through.fed.len(), through.asked.len());
            let (form, fine_step) = (self.form, fine_step::ATTENTION);
            let (step, out) =
                (RecurrentStep { begins: self.pos == 0, n, n_wanted, form, fine_step }, self.read(recurrence));
            recurrence.absorb(&mut self.ops, work, cache, step, out);
        }
        if let (Some(mix), Some(work)) = (&layer.time_mix, &self.buf.time_mix) {
            let (n, n_wanted) = (through.fed.len(), through.asked.len());
            let (form, fine_step) = (self.form, fine_step::ATTENTION);
            let step = RecurrentStep { begins: self.pos == 0, n, n_wanted, form, fine_step };
            let (x, out) = (self.input(i).1, self.read_to(mix.shape.n_embd()));
            mix.absorb(&mut self.ops, work, x, cache, step, out);
        }
        self.laps.end(Phase::Place);
    }

    /// What layer `i` makes of what the tokens asked for know of those before, into `buf.delta`.
    fn mix(&mut self, i: usize, through: &Through) {
        let (layer, buf, n) = (&self.model.layers[i], self.buf, through.asked.len());
        if let Some(attn) = &layer.attn {
            self.attend(i, attn, through);
        }
        if let (Some(recurrence), Some(work)) = (&layer.recurrence, &buf.recurrent) {
            let (read, made) = (self.read(recurrence), if layer.attn.is_some() { &buf.beside } else { &buf.delta });
            recurrence.finish(&mut self.ops, work, n, (self.form, fine_step::ATTENTION), read);
            self.laps.end(Phase::Attention);
            self.ops.linear(read, 0..n, &[(&recurrence.out, made)]);
            if layer.attn.is_some() {
                self.ops.add(&buf.delta, made, n * recurrence.out.weight.rows());
            }
            self.laps.end(Phase::AttnOut);
        }
        if let Some(mix) = &layer.time_mix {
            self.ops.linear(self.read_to(mix.shape.n_embd()), 0..n, &[(&mix.out, &buf.delta)]);
            self.laps.end(Phase::AttnOut);
        }
        if let Some(map) = &layer.map {
            let last = through.fed.len() - n..through.fed.len();
            self.ops.linear(self.input(i).1, last, &[(map, &buf.delta)]);
            self.laps.end(Phase::AttnOut);
        }
    }

    /// What the attention of layer `i`, or a convolution in its place, makes of the tokens asked for, into `buf.delta`.
    fn attend(&mut self, i: usize, attn: &Attention, Through { asked, .. }: &Through) {
        let (buf, n) = (self.buf, asked.len());
        let (worker, kernels) = (self.ops.worker, self.ops.kernels);
        let results = buf.heads.of(attn.out.weight.cols()).with(self.form, fine_step::HEADS);
        // Where sums go, and where the heads' results are made of them.
        let (out, cache) = (latent::sums(attn, buf, results), self.cache.layer(self.cached(i)));
        let queries = Queries { pos: self.pos + asked.start, first: asked.start, n };
        match source_of(attn, buf, |owner| self.cache.layer(self.cached(owner.unwrap_or(i)))) {
            Source::Filter(conv, gates) => conv.run(worker, kernels, queries, cache, gates, out, self.scratch),
            Source::Scores(scores, values) => {
                let bf16 = buf.bf16_attention && self.form == Form::Bf16;
                let route = self.model.routes.layer(i);
                let attend = Attend {
                    worker,
                    kernels,
                    shape: &attn.shape,
                    queries,
                    scores,
                    chunked: attn.chunked,
                    slopes: attn.slopes.as_deref(),
                    sinks: attn.sinks.as_deref(),
                    gates: attn.gate.as_ref().map(|g| Gates {
                        values: &buf.gates,
                        n: g.linear.weight.rows(),
                        curve: g.curve,
                    }),
                    values,
                    weights: &buf.weights,
                    route: if bf16 { route.keeping_scores() } else { route },
                    partial: &buf.partial,
                    out,
                    bf16,
                };
                attend.run(self.scratch);
            }
        }
        self.laps.end(Phase::Attention);
        latent::results(&mut self.ops, attn, buf, n, results);
        if let Some(norm) = &attn.sub_norm {
            self.ops.norm_operand(results, n, norm, self.eps);
        }
        self.ops.linear(results, 0..n, &[(&attn.out, &buf.delta)]);
        if attn.comp.is_some() {
            self.ops.add(&buf.delta, &buf.comp, n * attn.out.weight.rows());
        }
        self.laps.end(Phase::AttnOut);
    }

    /// Where the second half of layer `i` leans to the token before: adds up what the first made of all tokens, and makes of this what the second is
    /// given of those in `wanted`.
    fn look_back(&mut self, i: usize, wanted: &Range<usize>, Through { asked, .. }: &Through) {
        let (layer, buf, eps) = (&self.model.layers[i], self.buf, self.eps);
        let (Some(mix), Some(work)) = (&layer.channel_mix, &buf.time_mix) else { return };
        let (x, post) = (self.input(i).1, layer.post_attn_norm.as_ref());
        self.ops.residual_norm(&buf.x, asked.clone(), &buf.delta, post, 1.0, layer.ffn_norm.as_ref(), eps, x);
        let state = self.cache.layer(self.cached(i)).state();
        mix.lean(&self.ops, x, asked.len(), wanted.clone(), state, &self.leaning(i, work));
        self.laps.end(Phase::Norm);
    }

    /// The operands of the second half of layer `i` where it leans to the token before.
    fn leaning(&self, i: usize, work: &'a TimeMixBuffers) -> Vec<Operand<'a>> {
        work.operands(self.form, self.step(i, fine_step::FEED_FORWARD))
    }

    /// The second half of layer `i`, if it has one. The results of both halves are left in the residual stream and `buf.delta`, not yet added
    /// up.
    fn feed_forward(&mut self, i: usize, Through { fed, asked }: &Through) {
        let (layer, buf, eps, n) = (&self.model.layers[i], self.buf, self.eps, asked.len());
        let Some(ffn) = &layer.ffn else { return };
        let normed = buf.n.with(self.form, self.step(i, fine_step::FEED_FORWARD));
        if let Some(experts) = ffn.experts() {
            self.before_half(i, experts, normed, asked);
        }
        // Which rows of the operand the half is given, and where its result goes.
        let (mut x, mut given, mut made) = (normed, 0..n, &buf.delta);
        let mixed = layer.channel_mix.as_ref().zip(buf.time_mix.as_ref());
        let mixed = mixed.map(|(mix, work)| (mix, work, self.leaning(i, work)));
        match (layer.parallel, layer.ffn_norm.as_ref()) {
            _ if layer.channel_mix.is_some() => x = mixed.as_ref().map_or(x, |(.., operands)| operands[0]),
            _ if !layer.has_mixer() => (x, given) = (self.input(i).1, fed.len() - n..fed.len()),
            (false, norm) => {
                let (post, mut scale) = (layer.post_attn_norm.as_ref(), 1.0);
                if let Some(of_layer) = &layer.laurel {
                    let input_norm = layer.attn_norm.as_ref();
                    laurel::add(&mut self.ops, of_layer, input_norm, buf, asked, (self.form, normed), eps);
                    scale = laurel::SCALE;
                }
                self.ops.residual_norm(&buf.x, asked.clone(), &buf.delta, post, scale, norm, eps, normed);
                self.keep_normed(layer, normed, asked);
            }
            // Experts are given the first rows of an operand, which the layer's input need not begin with.
            (true, own) if own.is_some() || ffn.experts().is_some() => {
                self.ops.norm(&buf.x, asked.clone(), own.or(layer.attn_norm.as_ref()), eps, normed);
                made = &buf.beside;
            }
            (true, _) => (x, given, made) = (self.input(i).1, fed.len() - n..fed.len(), &buf.beside),
        }
        self.laps.end(Phase::Norm);
        match ffn {
            Ffn::One(f) => self.network(f, x, given, self.hidden(i, f.n_hidden()), made),
            Ffn::Experts(experts) => {
                assert_eq!(given.start, 0, "experts are given the first rows");
                self.mixture(i, experts, x, asked, made);
            }
        }
        if let Some((mix, work, operands)) = &mixed {
            mix.gate(&mut self.ops, operands, n, work.gates(), made);
            self.laps.end(Phase::Down);
        }
        if layer.parallel {
            self.ops.add(&buf.delta, &buf.beside, n * x.k());
            self.laps.end(Phase::Down);
        }
    }

    /// Adds what layer `i` made to the residual stream, and makes the next layer's input.
    fn add_up(&mut self, i: usize, Through { asked, .. }: &Through) {
        let (layer, buf, eps) = (&self.model.layers[i], self.buf, self.eps);
        if let (Some(streams), Some(all)) = (&layer.streams, &buf.streams) {
            return self.add_up_streams(i, streams, all, asked);
        }
        let (norm, out) = self.input(i + 1);
        if !layer.has_mixer() && layer.ffn.is_none() {
            // It made nothing.
            self.ops.norm(&buf.x, asked.clone(), norm, eps, out);
            return self.laps.end(Phase::Norm);
        }
        if let (Some(factor), Some(embedded)) = (layer.embeddings, &buf.embedded) {
            self.ops.add_rows(&buf.delta, embedded, asked.clone(), factor, out.k());
        }
        let mut post = layer.post_ffn_norm.as_ref();
        if let (Some(side), Some([inputs, _])) = (&layer.side, &buf.side) {
            let x = buf.n.with(self.form, self.step(i, fine_step::FEED_FORWARD));
            self.ops.residual_norm(&buf.x, asked.clone(), &buf.delta, post, 1.0, None, eps, x);
            self.laps.end(Phase::Norm);
            self.side_network(i, side, inputs, x, asked);
            post = Some(&side.norm);
        }
        self.ops.residual_norm(&buf.x, asked.clone(), &buf.delta, post, layer.scale, norm, eps, out);
        self.laps.end(Phase::Norm);
    }

    /// The same where the residual stream has several rows, `all`, of which the layer computed one.
    fn add_up_streams(&mut self, i: usize, streams: &StreamLayer, all: &[SharedBuf<f32>], asked: &Range<usize>) {
        let (layer, buf, eps) = (&self.model.layers[i], self.buf, self.eps);
        let x = buf.n.with(self.form, self.step(i, fine_step::FEED_FORWARD));
        let post = layer.post_ffn_norm.as_ref();
        self.ops.residual_norm(&buf.x, asked.clone(), &buf.delta, post, layer.scale, None, eps, x);
        streams.correct(&self.ops, all, &buf.x, asked, eps, x);
        self.laps.end(Phase::Norm);
        if let (Some(side), Some([inputs, _])) = (&layer.side, &buf.side) {
            self.side_network(i, side, inputs, x, asked);
            StreamLayer::add_to_others(&self.ops, all, &buf.delta, &side.norm, asked, eps);
        }
        match &self.model.streams {
            Some(streams) if i + 1 == self.model.layers.len() => {
                streams.merge(&mut self.ops, all, &buf.x, asked, &buf.delta, x)
            }
            _ => self.predict(i + 1, asked),
        }
        let (norm, out) = self.input(i + 1);
        self.ops.norm(&buf.x, asked.clone(), norm, eps, out);
        self.laps.end(Phase::Norm);
    }

    /// Leaves in `buf.x` what layer `i` is given of the rows of the residual stream of tokens `asked`, where there are several.
    fn predict(&mut self, i: usize, asked: &Range<usize>) {
        if let (Some(streams), Some(all)) = (&self.model.layers[i].streams, &self.buf.streams) {
            streams.predict(&self.ops, all, &self.buf.x, asked, self.eps);
        }
    }

    /// What `network` makes of `rows` of `x`, into `out`; its hidden units go to `hidden`.
    fn network(
        &mut self,
        network: &FeedForward,
        x: Operand,
        rows: Range<usize>,
        hidden: Operand,
        out: &SharedBuf<f32>,
    ) {
        let (FeedForward { gate, up, norm, deviations, down, act }, n) = (network, rows.len());
        let (buf, ops, laps, eps) = (self.buf, &mut self.ops, &mut self.laps, self.eps);
        let in_one = norm.is_none() && deviations.is_none();
        match up {
            Some(up) if in_one && ops.gated_products(x, rows.clone(), [gate, up, down], *act, hidden) => {
                laps.end(Phase::GateUp)
            }
            Some(up) => {
                ops.linear(x, rows, &[(gate, &buf.gate), (up, &buf.up)]);
                laps.end(Phase::GateUp);
                if let Some(deviations) = deviations {
                    ops.cut(&buf.gate, n, gate.weight.rows(), *deviations);
                }
                ops.gated(*act, &buf.gate, &buf.up, n, hidden);
                laps.end(Phase::Gated);
            }
            None => {
                ops.linear(x, rows, &[(gate, &buf.gate)]);
                laps.end(Phase::GateUp);
                ops.activated(*act, &buf.gate, n, hidden);
                laps.end(Phase::Gated);
            }
        }
        if let Some(norm) = norm {
            ops.norm_operand(hidden, n, norm, eps);
            laps.end(Phase::Gated);
        }
        ops.linear(hidden, 0..n, &[(down, out)]);
        laps.end(Phase::Down);
    }

    /// The scores that experts are chosen by, of the first `n` rows of `x`.
    fn route(&mut self, experts: &Experts, x: Operand, n: usize) {
        let b = self.buf.experts.as_ref().expect("work space for experts");
        self.ops.linear(x, 0..n, &[(&experts.router, &b.scores)]);
        self.laps.end(Phase::Experts);
    }

    /// What the `experts` of layer `i`, or their router, make of its input: what the residual stream of tokens `asked` still is. `x`: room for
    /// these.
    fn before_half(&mut self, i: usize, experts: &Experts, x: Operand, asked: &Range<usize>) {
        let norm = match &experts.input {
            ExpertInput::Half => return,
            ExpertInput::RoutedBefore => None,
            ExpertInput::Before(norm) => Some(norm),
        };
        self.ops.norm(&self.buf.x, asked.clone(), norm, self.eps, x);
        self.route(experts, x, asked.len());
        if norm.is_some() {
            self.chosen(i, experts, x, asked.len(), &self.buf.beside);
        }
    }

    /// What the `experts` of layer `i` make of the first rows of `x`, those of tokens `asked`, into `out`.
    fn mixture(&mut self, i: usize, experts: &Experts, x: Operand, asked: &Range<usize>, out: &SharedBuf<f32>) {
        let (buf, eps, n) = (self.buf, self.eps, asked.len());
        let b = buf.experts.as_ref().expect("work space for experts");
        let beside = experts.shared.as_ref();
        if let (Some(norms), Some(beside)) = (&experts.norms, beside) {
            // What the norms make of the residual stream lies in one place after the other.
            self.network(&beside.network, x, 0..n, self.hidden(i, beside.network.n_hidden()), &b.shared);
            self.ops.norm(&buf.x, asked.clone(), Some(&norms.router), eps, x);
            self.route(experts, x, n);
            self.ops.norm(&buf.x, asked.clone(), Some(&norms.experts), eps, x);
            self.chosen(i, experts, x, n, out);
            self.ops.add_normed(out, &b.shared, n, [&norms.result, &norms.shared], eps);
            return self.laps.end(Phase::Experts);
        }
        if let ExpertInput::Before(_) = &experts.input {
            let beside = beside.expect("experts that are given the layer's input are beside its network");
            // What the experts make lies ready.
            self.network(&beside.network, x, 0..n, self.hidden(i, beside.network.n_hidden()), out);
            self.ops.add(out, &buf.beside, n * x.k());
            return self.laps.end(Phase::Down);
        }
        if let ExpertInput::Half = experts.input {
            self.route(experts, x, n);
        }
        self.chosen(i, experts, x, n, out);
        if let Some(networks) = &experts.of_groups {
            self.of_groups(i, experts, networks, x, n, out);
        }
        if let Some(beside) = beside {
            self.network(&beside.network, x, 0..n, self.hidden(i, beside.network.n_hidden()), &b.shared);
            match &beside.gate {
                Some(gate) => self.ops.add_gated(out, &b.shared, n, x, gate),
                None => self.ops.add(out, &b.shared, n * x.k()),
            }
            self.laps.end(Phase::Down);
        }
    }

    /// What those of the `experts` of layer `i` that the router's scores choose make together of the first `n` rows of `x`, into `out`.
    fn chosen(&mut self, i: usize, experts: &Experts, x: Operand, n: usize, out: &SharedBuf<f32>) {
        let (buf, eps) = (self.buf, self.eps);
        let b = buf.experts.as_ref().expect("work space for experts");
        let steps = [fine_step::FEED_FORWARD, fine_step::HIDDEN].map(|usual| self.step(i, usual));
        match &experts.latent {
            None => self.ops.experts(x, n, &experts.networks, b, steps, out),
            Some(latent) => {
                let (low, rows) = (&buf.latents, buf.latent_rows.of(latent.up.weight.cols()).with(self.form, steps[0]));
                self.ops.linear(x, 0..n, &[(&latent.down, low)]);
                self.ops.norm(low, 0..n, None, eps, rows);
                self.ops.experts(rows, n, &experts.networks, b, steps, low);
                self.ops.norm(low, 0..n, None, eps, rows);
                self.ops.linear(rows, 0..n, &[(&latent.up, out)]);
            }
        }
        self.laps.end(Phase::Experts);
    }

    /// Adds to the first `n` rows of `out`, what the `experts` of layer `i` have made of those of `x`, what `networks` make of them that groups of
    /// experts share.
    fn of_groups(
        &mut self,
        i: usize,
        experts: &Experts,
        networks: &Networks,
        x: Operand,
        n: usize,
        out: &SharedBuf<f32>,
    ) {
        let b = self.buf.experts.as_ref().expect("work space for experts");
        let steps = [fine_step::FEED_FORWARD, fine_step::HIDDEN].map(|usual| self.step(i, usual));
        // The choice has used up the scores.
        self.route(experts, x, n);
        self.ops.norm(out, 0..n, None, self.eps, x);
        self.ops.experts(x, n, networks, b, steps, &b.shared);
        self.ops.add(out, &b.shared, n * x.k());
        self.laps.end(Phase::Experts);
    }

    /// What layer `i` makes of the first rows of `x`, the residual stream of tokens `asked`, and of its `inputs` beside it. Into `buf.delta`.
    fn side_network(
        &mut self,
        i: usize,
        side: &SideNetwork,
        inputs: &SharedBuf<f32>,
        x: Operand,
        asked: &Range<usize>,
    ) {
        let (buf, n, width, n_layer) = (self.buf, asked.len(), side.out.weight.cols(), self.model.layers.len());
        let at = |row: usize| ((asked.start + row) * n_layer + i) * width;
        let hidden = self.hidden(i, width);
        self.ops.linear(x, 0..n, &[(&side.gate, &buf.gate)]);
        self.laps.end(Phase::GateUp);
        self.ops.gated_by(Act::Gelu, &buf.gate, inputs, at, n, hidden);
        self.laps.end(Phase::Gated);
        self.ops.linear(hidden, 0..n, &[(&side.out, &buf.delta)]);
        self.laps.end(Phase::Down);
    }

    /// Gives the queries of tokens `asked` and the keys of tokens `fed` their head norms and positions, and puts keys and values into the
    /// cache. One phase, shared out by token and head.
    fn place_heads(&self, attn: &Attention, cache: &LayerCache, through: &Through) {
        let Through { fed, asked } = through;
        let (s, kernels, buf, pos, eps) = (&attn.shape, self.ops.kernels, self.buf, self.pos, self.eps);
        let head_eps = attn.head_eps.unwrap_or(eps);
        let rope = &buf.ropes[attn.rope];
        let norm_and_turn = |head: &mut [f32], h: usize, proj: &QueryKey, t: usize| {
            if attn.norm_after_turn {
                rope.rotate(kernels, t, head);
            }
            if let Some(norm) = proj.head_norm(h) {
                norm.apply_in_place(&kernels.float, head, head_eps);
            }
            if !attn.norm_after_turn {
                rope.rotate(kernels, t, head);
            }
        };
        let (n_q, n_k) = match &attn.scores {
            Scores::Own { .. } => (s.n_head, s.n_head_kv),
            Scores::Queries { .. } => (s.n_head, 0),
            Scores::Shared | Scores::Fixed(_) => (0, 0),
            Scores::Lisa(lisa) => (0, if lisa.low_rank.is_some() { s.n_head_kv } else { 0 }),
        };
        let n_v = if attn.has_values() { s.n_head_kv } else { 0 };
        let per_token = n_q + n_k + n_v;
        for i in self.ops.worker.share(fed.len() * per_token) {
            let (row, h) = (i / per_token, i % per_token);
            let t = fed.start + row;
            let query = t.checked_sub(asked.start);
            let (dk, dv) = (s.head_dim_k, s.head_dim_v);
            // SAFETY: each (token, head) of each buffer, and each cache row, is this member's alone.
            unsafe {
                if h >= n_q + n_k {
                    let g = h - n_q - n_k;
                    let start = (row * s.n_head_kv + g) * dv;
                    let value = buf.v.get_mut(start..start + dv);
                    if let Some(weight) = &attn.v_norm {
                        kernels.float.rms_norm_in_place(value, weight, eps);
                    }
                    if let Scores::Fixed(_) = attn.scores {
                        kernels.float.mul_assign(value, buf.k.get(start..start + dv));
                    }
                    cache.store_v(kernels, g, pos + t, value);
                    continue;
                }
                match &attn.scores {
                    Scores::Own { q, .. } | Scores::Queries { q, .. } if h < n_q => {
                        let Some(query) = query else { continue };
                        let start = (query * s.n_head + h) * dk;
                        let query = buf.q.get_mut(start..start + dk);
                        norm_and_turn(query, h, q, t);
                        if let Some(temperature) = attn.temperature {
                            kernels.float.scale(query, temperature.at(pos + t));
                        }
                    }
                    Scores::Own { k, .. } => {
                        let g = h - n_q;
                        let start = (row * s.n_head_kv + g) * dk;
                        let key = buf.k.get_mut(start..start + dk);
                        norm_and_turn(key, g, k, t);
                        cache.keys().store(kernels, g, pos + t, key);
                    }
                    Scores::Lisa(lisa) => {
                        let low_rank = lisa.low_rank.as_ref().expect("counted above");
                        let part = |row: usize, n: usize| {
                            let start = (row * s.n_head_kv + h) * n;
                            start..start + n
                        };
                        let key = buf.k.get_mut(part(row, low_rank.rank));
                        let queries = query.map_or(0..0, |query| part(query, s.group() * low_rank.rank));
                        low_rank.rotate(kernels, h, pos + t, buf.q.get_mut(queries), key);
                        cache.low_rank().store(kernels, h, pos + t, key);
                    }
                    Scores::Queries { .. } | Scores::Shared | Scores::Fixed(_) => {
                        unreachable!("no more heads are counted")
                    }
                }
            }
        }
        self.ops.worker.barrier();
    }
}

/// The layers' inputs beside the residual stream, for all tokens of a step whose embeddings are in place. `x`: room for these.
fn side_inputs(
    ops: &mut Ops,
    side: &SideInputs,
    buf: &Buffers,
    [sums, projections]: &[SharedBuf<f32>; 2],
    ids: &[u32],
    x: Operand,
    eps: f32,
) {
    let (n, len) = (ids.len(), side.embed.cols());
    ops.norm(&buf.x, 0..n, None, eps, x);
    ops.linear(x, 0..n, &[(&side.projection, projections)]);
    ops.embed(&side.embed, n, |i| ids[i] as usize, (side.width as f32).sqrt(), sums);
    let float = &ops.kernels.float;
    for i in ops.worker.share(n) {
        // SAFETY: rows are shared out disjointly.
        let (sums, row) =
            unsafe { (sums.get_mut(i * len..(i + 1) * len), projections.get_mut(i * len..(i + 1) * len)) };
        float.scale(row, 1.0 / (x.k() as f32).sqrt());
        row.chunks_exact_mut(side.width).for_each(|part| float.rms_norm_in_place(part, &side.norm, eps));
        float.add_assign(sums, row);
        float.scale(sums, std::f32::consts::FRAC_1_SQRT_2);
    }
    ops.worker.barrier();
}

/// Logits of `rows` of the states that the last [`forward`], of `n_tokens`, left: at most [`Buffers::n_logit_rows`] of them.
pub fn head(model: &Decoder, w: &Worker, o: &Mode, buf: &Buffers, n_tokens: usize, rows: Range<usize>) {
    // SAFETY: as in `forward`.
    let (_, scratch) = unsafe { buf.member(w) };
    let mut ops = o.ops(w, scratch);
    let x = buf.n.with(Form::of(o.kernels, n_tokens), fine_step::LAST);
    let (n_rows, n_vocab) = (rows.len(), model.n_vocab());
    let mut laps = o.laps(w);
    ops.linear(x, rows, &[(model.head(), &buf.logits)]);
    if let Some(cap) = model.logit_softcap {
        // SAFETY: shared out disjointly.
        o.kernels.float.soft_cap(unsafe { buf.logits.get_mut(w.share(n_rows * n_vocab)) }, cap);
        w.barrier();
    }
    if let Some(silent) = &model.silent {
        for start in w.share(n_rows).map(|row| row * n_vocab) {
            // SAFETY: rows are shared out disjointly.
            unsafe { buf.logits.get_mut(start + silent.start..start + silent.end) }.fill(f32::MIN);
        }
        w.barrier();
    }
    laps.end(Phase::Head);
}

/// The products of the layer's normalised input, of tokens `fed`, that its attention, what is beside it, and its state start from: what is cached of all, what
/// serves their own results of tokens `asked`, the last of them. In one phase where these are the same.
fn project(ops: &mut Ops, layer: &Layer, buf: &Buffers, x: Operand, fed: &Range<usize>, asked: &Range<usize>) {
    let (mut cached, mut own) = ([None; 7], [None; 5]);
    if let Some(attn) = &layer.attn {
        let [to_q, to_k] = latent::first_results(attn, buf);
        let job = |linear, out| Some((linear?, out));
        [cached[0], cached[1]] = [job(attn.scores.k(), to_k), job(attn.v.as_ref(), &buf.v)];
        let [comp, gate] = [job(attn.comp.as_ref(), &buf.comp), job(attn.gate.as_ref().map(|g| &g.linear), &buf.gates)];
        [own[0], own[1], own[2]] = [job(attn.scores.q(), to_q), comp, gate];
    }
    if let (Some(laurel), Some(work)) = (&layer.laurel, &buf.laurel) {
        own[4] = Some((&laurel.down, &work.low));
    }
    if let (Some(recurrence), Some(work)) = (&layer.recurrence, &buf.recurrent) {
        let (of_state, gate) = recurrence.products(work);
        cached[2..].copy_from_slice(&of_state);
        own[3] = Some(gate);
    }
    if layer.attn.is_none() && layer.recurrence.is_none() {
        return;
    }
    let rows = 0..fed.len();
    if fed == asked {
        return ops.linear_some(x, rows, &[&own[..], &cached].concat());
    }
    ops.linear_some(x, rows.clone(), &cached);
    if !asked.is_empty() {
        ops.linear_some(x, rows.end - asked.len()..rows.end, &own);
    }
}

/// Clips the queries of tokens `asked`, and the keys and values of tokens `fed`, where the family does so, and normalises queries and keys
/// where it does that with all heads together. One phase, where there is anything to do.
fn clip_and_norm_rows(ops: &Ops, attn: &Attention, buf: &Buffers, fed: &Range<usize>, asked: &Range<usize>, eps: f32) {
    let (q, k) = match &attn.scores {
        Scores::Own { q, k } => (Some(q), Some(k)),
        Scores::Queries { q, .. } => (Some(q), None),
        Scores::Shared | Scores::Fixed(_) | Scores::Lisa(_) => (None, None),
    };
    let [of_q, of_k] = [q, k].map(|proj| proj.and_then(QueryKey::row_norm));
    if attn.clip.is_none() && of_q.is_none() && of_k.is_none() {
        return;
    }
    let projections = [
        (q.map(|q| &q.linear), of_q, &buf.q, asked.len()),
        (k.map(|k| &k.linear), of_k, &buf.k, fed.len()),
        (attn.v.as_ref(), None, &buf.v, fed.len()),
    ];
    for (linear, norm, x, n) in projections {
        let Some(width) = linear.map(|l| l.weight.rows()) else { continue };
        for i in ops.worker.share(n) {
            // SAFETY: rows are shared out disjointly.
            let row = unsafe { x.get_mut(i * width..(i + 1) * width) };
            if let Some(clip) = attn.clip {
                row.iter_mut().for_each(|x| *x = x.clamp(-clip, clip));
            }
            if let Some(norm) = norm {
                norm.apply_in_place(&ops.kernels.float, row, eps);
            }
        }
    }
    ops.worker.barrier();
}

/// Where a layer's weighted values come from.
enum Source<'a> {
    /// Scores, and the cache with the values.
    Scores(ScoreSource<'a>, &'a LayerCache),
    /// Fixed weights, and the gates on what they make of its own values.
    Filter(&'a Convolution, &'a SharedBuf<f32>),
}

/// `cache`: that of a layer, or the attention's own.
fn source_of<'a>(attn: &'a Attention, buf: &'a Buffers, cache: impl Fn(Option<usize>) -> &'a LayerCache) -> Source<'a> {
    let (q, own) = (&buf.q, cache(None));
    match &attn.scores {
        Scores::Own { .. } => Source::Scores(ScoreSource::Keys { q, keys: own }, own),
        Scores::Queries { owner, .. } => {
            let keys = cache(Some(*owner));
            Source::Scores(ScoreSource::Keys { q, keys }, keys)
        }
        Scores::Shared => Source::Scores(ScoreSource::Shared, own),
        Scores::Lisa(lisa) => Source::Scores(ScoreSource::Lisa { lisa, q, keys: own }, own),
        Scores::Fixed(conv) => Source::Filter(conv, q),
    }
}
