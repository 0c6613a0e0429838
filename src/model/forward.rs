//! The forward pass: one for all families, read from top to bottom.

use std::ops::Range;
use std::sync::Arc;

use ggml_ext::kernels::{Kernels, MatmulScratch};

use super::buffers::Buffers;
use super::decoder::{Attention, Decoder, Experts, FeedForward, Ffn, QueryKey, Scores, SideInputs, SideNetwork};
use super::latent;
use crate::attention::{
    Attend, Convolution, DeltaBuffers, DeltaNet, DeltaStep, KvCache, LayerCache, Queries, ScoreSource,
};
use crate::compute::{Act, Form, Laps, Observer, Operand, Ops, Phase, Profile, SharedBuf, Worker};

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
    let (attn_scratch, scratch) = unsafe { buf.member(w) };
    let (ids, pos, n, eps) = (tokens.ids, tokens.pos, tokens.ids.len(), model.norm_eps);
    let mut ops = o.ops(w, scratch);
    let form = Form::of(o.kernels, n);
    let bf16 = buf.bf16_attention && form == Form::Bf16;

    for (rope, table) in model.ropes.iter().zip(&buf.ropes) {
        // SAFETY: rows are shared out disjointly.
        w.share(n).for_each(|i| unsafe { table.fill(rope.for_context(buf.n_ctx), i, (pos + i) as f64) });
    }
    let mut laps = o.laps(w);
    ops.embed(&model.embed.weight, ids, model.embed_scale, &buf.x);
    let input = |i: usize| match model.layers.get(i) {
        Some(layer) => (layer.attn_norm.as_ref(), buf.n.with(form, fine_step::ATTENTION)),
        None => (Some(&model.output_norm), buf.n.with(form, fine_step::LAST)),
    };
    if let (Some(inputs), Some(bufs)) = (&model.side, &buf.side) {
        side_inputs(&mut ops, inputs, buf, bufs, ids, input(0).1, eps);
    }
    let (norm, out) = input(0);
    ops.norm(&buf.x, 0..n, norm, eps, out);
    laps.end(Phase::Embed);

    // Later tokens see of a token what layers have cached of it. What the last layer that caches anything, and those after it, make
    // of it beyond that serves its own logits alone.
    let last_caching = model.last_caching();
    let mut fed = 0..n;
    for (i, layer) in model.layers.iter().enumerate() {
        let attn = &layer.attn;
        let asked = if i < last_caching { 0..n } else { n - tokens.n_wanted..n };
        project(&mut ops, attn, buf, input(i).1, &fed, &asked);
        latent::heads(&mut ops, attn, buf, fed.len(), asked.len(), form, eps);
        norm_rows(&ops, attn, buf, &fed, &asked, eps);
        laps.end(Phase::Project);
        let (kernels, shape, n, rows) = (o.kernels, &attn.shape, asked.len(), 0..asked.len());
        let result = buf.heads.of(attn.out.weight.cols()).with(form, fine_step::HEADS);
        let out = latent::sums(attn, buf, result);
        place(&ops, attn, buf, cache.layer(i), pos, &fed, &asked, eps, out);
        laps.end(Phase::Place);
        if asked.is_empty() {
            break;
        }
        let queries = Queries { pos: pos + asked.start, first: asked.start, n };
        match source_of(attn, buf, cache, i) {
            Source::Filter(conv, gates) => conv.run(w, kernels, queries, cache.layer(i), gates, out, attn_scratch),
            Source::State(net, work) => net.finish(w, kernels, &work.gate, n, out),
            Source::Scores(scores, values) => {
                let route = model.routes.layer(i);
                let route = if bf16 { route.keeping_scores() } else { route };
                let (worker, weights, partial, sinks) = (w, &buf.weights, &buf.partial, attn.sinks.as_deref());
                let gates = attn.gate.as_ref().map(|_| &buf.gates);
                let attend = Attend {
                    worker,
                    kernels,
                    shape,
                    queries,
                    scores,
                    sinks,
                    gates,
                    values,
                    weights,
                    route,
                    partial,
                    out,
                    bf16,
                };
                attend.run(attn_scratch);
            }
        }
        laps.end(Phase::Attention);
        latent::results(&mut ops, attn, buf, n, result);
        ops.linear(result, rows.clone(), &[(&attn.out, &buf.delta)]);
        if attn.comp.is_some() {
            ops.add(&buf.delta, &buf.comp, n * attn.out.weight.rows());
        }
        laps.end(Phase::AttnOut);
        let step = |usual| if i + 1 == model.layers.len() { fine_step::LAST } else { usual };
        let normed = buf.n.with(form, step(fine_step::FEED_FORWARD));
        // Which rows of the operand the feed-forward half is given, and where its result goes.
        let (mut x, mut given, mut made) = (normed, rows.clone(), &buf.delta);
        match (layer.parallel, layer.ffn_norm.as_ref()) {
            (false, norm) => {
                let post = layer.post_attn_norm.as_ref();
                ops.residual_norm(&buf.x, asked.clone(), &buf.delta, post, 1.0, norm, eps, normed);
            }
            (true, Some(norm)) => {
                ops.norm(&buf.x, asked.clone(), Some(norm), eps, normed);
                made = &buf.beside;
            }
            (true, None) => (x, given, made) = (input(i).1, fed.len() - n..fed.len(), &buf.beside),
        }
        laps.end(Phase::Norm);

        let hidden = |width: usize| buf.hidden.of(width).with(form, step(fine_step::HIDDEN));
        match &layer.ffn {
            Ffn::One(f) => feed_forward(&mut ops, &mut laps, f, buf, x, given, hidden(f.n_hidden()), made),
            Ffn::Experts(experts) => {
                assert_eq!(given.start, 0, "experts are given the first rows");
                let steps = [fine_step::FEED_FORWARD, fine_step::HIDDEN].map(step);
                mixture(&mut ops, &mut laps, experts, buf, x, &asked, steps, &hidden, made, eps);
            }
        }
        if layer.parallel {
            ops.add(&buf.delta, &buf.beside, n * x.k());
            laps.end(Phase::Down);
        }
        let mut post = layer.post_ffn_norm.as_ref();
        if let (Some(side), Some([inputs, _])) = (&layer.side, &buf.side) {
            ops.residual_norm(&buf.x, asked.clone(), &buf.delta, post, 1.0, None, eps, normed);
            laps.end(Phase::Norm);
            let width = side.out.weight.cols();
            let at = |row: usize| ((asked.start + row) * model.layers.len() + i) * width;
            side_network(&mut ops, &mut laps, side, buf, normed, n, (inputs, &at), hidden(width));
            post = Some(&side.norm);
        }
        let (norm, out) = input(i + 1);
        ops.residual_norm(&buf.x, asked.clone(), &buf.delta, post, layer.scale, norm, eps, out);
        laps.end(Phase::Norm);
        fed = asked;
    }
    laps.pass();
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
    ops.embed(&side.embed, ids, (side.width as f32).sqrt(), sums);
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
    let n = rows.len() * model.n_vocab();
    let mut laps = o.laps(w);
    ops.linear(x, rows, &[(model.head(), &buf.logits)]);
    if let Some(cap) = model.logit_softcap {
        // SAFETY: shared out disjointly.
        o.kernels.float.soft_cap(unsafe { buf.logits.get_mut(w.share(n)) }, cap);
        w.barrier();
    }
    laps.end(Phase::Head);
}

/// What `network` makes of `rows` of `x`, into `out`; its hidden units go to `hidden`.
#[allow(clippy::too_many_arguments)]
fn feed_forward(
    ops: &mut Ops,
    laps: &mut Laps,
    network: &FeedForward,
    buf: &Buffers,
    x: Operand,
    rows: Range<usize>,
    hidden: Operand,
    out: &SharedBuf<f32>,
) {
    let (FeedForward { gate, up, down, act }, n) = (network, rows.len());
    match up {
        Some(up) if ops.gated_products(x, rows.clone(), [gate, up, down], *act, hidden) => laps.end(Phase::GateUp),
        Some(up) => {
            ops.linear(x, rows, &[(gate, &buf.gate), (up, &buf.up)]);
            laps.end(Phase::GateUp);
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
    ops.linear(hidden, 0..n, &[(down, out)]);
    laps.end(Phase::Down);
}

/// What the `experts` make of the first rows of `x`, those of tokens `asked`, into `out`. `steps`: of what they are given, and of their hidden
/// units; `hidden` has room for as many of these as a network that all tokens meet has.
#[allow(clippy::too_many_arguments)]
fn mixture<'b>(
    ops: &mut Ops,
    laps: &mut Laps,
    experts: &Experts,
    buf: &Buffers,
    x: Operand,
    asked: &Range<usize>,
    steps: [f32; 2],
    hidden: &impl Fn(usize) -> Operand<'b>,
    out: &SharedBuf<f32>,
    eps: f32,
) {
    let (b, n) = (buf.experts.as_ref().expect("work space for experts"), asked.len());
    let shared = |ops: &mut Ops, laps: &mut Laps, f: &FeedForward| {
        feed_forward(ops, laps, f, buf, x, 0..n, hidden(f.n_hidden()), &b.shared)
    };
    if let (Some(norms), Some(beside)) = (&experts.norms, &experts.shared) {
        // What the norms make of the residual stream lies in one place after the other.
        shared(ops, laps, &beside.network);
        ops.norm(&buf.x, asked.clone(), Some(&norms.router), eps, x);
        ops.linear(x, 0..n, &[(&experts.router, &b.scores)]);
        ops.norm(&buf.x, asked.clone(), Some(&norms.experts), eps, x);
        ops.experts(x, n, &experts.networks, b, steps, out);
        ops.add_normed(out, &b.shared, n, [&norms.result, &norms.shared], eps);
        return laps.end(Phase::Experts);
    }
    ops.linear(x, 0..n, &[(&experts.router, &b.scores)]);
    ops.experts(x, n, &experts.networks, b, steps, out);
    laps.end(Phase::Experts);
    if let Some(beside) = &experts.shared {
        shared(ops, laps, &beside.network);
        match &beside.gate {
            Some(gate) => ops.add_gated(out, &b.shared, n, x, gate),
            None => ops.add(out, &b.shared, n * x.k()),
        }
        laps.end(Phase::Down);
    }
}

/// What a layer makes of the first `n` rows of `x`, which are its residual stream, and of its inputs beside: those of row `i` begin at
/// `at(i)`. Into `buf.delta`.
#[allow(clippy::too_many_arguments)]
fn side_network(
    ops: &mut Ops,
    laps: &mut Laps,
    side: &SideNetwork,
    buf: &Buffers,
    x: Operand,
    n: usize,
    (inputs, at): (&SharedBuf<f32>, &dyn Fn(usize) -> usize),
    hidden: Operand,
) {
    ops.linear(x, 0..n, &[(&side.gate, &buf.gate)]);
    laps.end(Phase::GateUp);
    ops.gated_by(Act::Gelu, &buf.gate, inputs, at, n, hidden);
    laps.end(Phase::Gated);
    ops.linear(hidden, 0..n, &[(&side.out, &buf.delta)]);
    laps.end(Phase::Down);
}

/// The products of the layer's normalised input, of tokens `fed`, that its attention starts from: what is cached of all, what serves
/// their own results of tokens `asked`, the last of them. In one phase where these are the same.
fn project(ops: &mut Ops, attn: &Attention, buf: &Buffers, x: Operand, fed: &Range<usize>, asked: &Range<usize>) {
    let job = |linear, out| Some((linear?, out));
    let (cached, own) = match (attn.delta(), &buf.delta_rule) {
        (Some(net), Some(b)) => {
            let cached =
                [job(Some(&net.mixed), &b.mixed), job(Some(&net.alpha), &b.alpha), job(Some(&net.beta), &b.beta)];
            (cached, [job(Some(&net.gate), &b.gate), None, None])
        }
        _ => {
            let [to_q, to_k] = latent::first_results(attn, buf);
            let [comp, gate] = [job(attn.comp.as_ref(), &buf.comp), job(attn.gate.as_ref(), &buf.gates)];
            let cached = [job(attn.scores.k(), to_k), job(attn.v.as_ref(), &buf.v), None];
            (cached, [job(attn.scores.q(), to_q), comp, gate])
        }
    };
    let rows = 0..fed.len();
    if fed == asked {
        return ops.linear_some(x, rows, &[own, cached].concat());
    }
    ops.linear_some(x, rows.clone(), &cached);
    if !asked.is_empty() {
        ops.linear_some(x, rows.end - asked.len()..rows.end, &own);
    }
}

/// Normalises the queries of tokens `asked` and the keys of tokens `fed` where the family does so with all heads together. One phase, where
/// it does.
fn norm_rows(ops: &Ops, attn: &Attention, buf: &Buffers, fed: &Range<usize>, asked: &Range<usize>, eps: f32) {
    let (q, k) = match &attn.scores {
        Scores::Own { q, k } => (q.row_norm(&attn.shape), k.row_norm(&attn.shape)),
        Scores::Queries { q, .. } => (q.row_norm(&attn.shape), None),
        Scores::Shared | Scores::Fixed(_) | Scores::Delta(_) | Scores::Lisa(_) => (None, None),
    };
    let norms = [(q, &buf.q, asked.len()), (k, &buf.k, fed.len())];
    if norms.iter().all(|(weight, ..)| weight.is_none()) {
        return;
    }
    for (weight, x, n) in norms {
        let Some(weight) = weight else { continue };
        for i in ops.worker.share(n) {
            // SAFETY: rows are shared out disjointly.
            let row = unsafe { x.get_mut(i * weight.len()..(i + 1) * weight.len()) };
            ops.kernels.float.rms_norm_in_place(row, weight, eps);
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
    /// A state, which has been read already.
    State(&'a DeltaNet, &'a DeltaBuffers),
}

fn source_of<'a>(attn: &'a Attention, buf: &'a Buffers, cache: &'a KvCache, i: usize) -> Source<'a> {
    let (q, own) = (&buf.q, cache.layer(i));
    match &attn.scores {
        Scores::Own { .. } => Source::Scores(ScoreSource::Keys { q, keys: own }, own),
        Scores::Queries { owner, .. } => {
            let keys = cache.layer(*owner);
            Source::Scores(ScoreSource::Keys { q, keys }, keys)
        }
        Scores::Shared => Source::Scores(ScoreSource::Shared, own),
        Scores::Lisa(lisa) => Source::Scores(ScoreSource::Lisa { lisa, q, keys: own }, own),
        Scores::Fixed(conv) => Source::Filter(conv, q),
        Scores::Delta(net) => Source::State(net, buf.delta_rule.as_ref().expect("work space for the delta rule")),
    }
}

/// Gives the queries of tokens `asked` and the keys of tokens `fed` their head norms and positions, and puts keys and values into the
/// cache. `pos` is where the step begins. One phase, shared out by token and head. Where the layer has a state instead, takes tokens `fed`
/// into it, and what tokens `asked` read there goes to `out`.
#[allow(clippy::too_many_arguments)]
fn place(
    ops: &Ops,
    attn: &Attention,
    buf: &Buffers,
    cache: &LayerCache,
    pos: usize,
    fed: &Range<usize>,
    asked: &Range<usize>,
    eps: f32,
    out: Operand,
) {
    let (s, kernels) = (&attn.shape, ops.kernels);
    if let (Some(net), Some(work)) = (attn.delta(), &buf.delta_rule) {
        let step = DeltaStep { begins: pos == 0, n: fed.len(), n_wanted: asked.len() };
        return net.absorb(ops.worker, kernels, work, cache, step, out);
    }
    let rope = &buf.ropes[attn.rope];
    let norm_and_turn = |head: &mut [f32], proj: &QueryKey, t: usize| {
        if attn.norm_after_turn {
            rope.rotate(kernels, t, head);
        }
        if let Some(weight) = proj.head_norm(s) {
            kernels.float.rms_norm_in_place(head, weight, eps);
        }
        if !attn.norm_after_turn {
            rope.rotate(kernels, t, head);
        }
    };
    let (n_q, n_k) = match &attn.scores {
        Scores::Own { .. } => (s.n_head, s.n_head_kv),
        Scores::Queries { .. } => (s.n_head, 0),
        Scores::Shared | Scores::Fixed(_) | Scores::Delta(_) => (0, 0),
        Scores::Lisa(lisa) => (0, if lisa.low_rank.is_some() { s.n_head_kv } else { 0 }),
    };
    let n_v = if attn.has_values() { s.n_head_kv } else { 0 };
    let per_token = n_q + n_k + n_v;
    for i in ops.worker.share(fed.len() * per_token) {
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
                    norm_and_turn(query, q, t);
                    if let Some(temperature) = attn.temperature {
                        kernels.float.scale(query, temperature.at(pos + t));
                    }
                }
                Scores::Own { k, .. } => {
                    let g = h - n_q;
                    let start = (row * s.n_head_kv + g) * dk;
                    let key = buf.k.get_mut(start..start + dk);
                    norm_and_turn(key, k, t);
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
                Scores::Queries { .. } | Scores::Shared | Scores::Fixed(_) | Scores::Delta(_) => {
                    unreachable!("no more heads are counted")
                }
            }
        }
    }
    ops.worker.barrier();
}
