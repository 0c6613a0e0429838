//! Mixtures of experts (arXiv 1701.06538): a router picks a few of many gated networks for every token, and their results are added up
//! with its weights.
//!
//! A pass sorts its tokens by expert first: each takes a place for every expert that was picked for it, places of one expert lie
//! together, and an expert's matrices meet all of its places at once.

use std::ops::Range;

use ggml_ext::kernels::Kernels;
use ggml_ext::pack::ROWS;

use super::chunks::Chunks;
use super::{Act, ActivationType, Activations, Form, Matrix, Operand, Ops, SharedBuf, Widths};

/// The matrices of all experts, or of all heads, one below the other.
pub struct Stack {
    /// The tensor in the file.
    pub name: Box<str>,
    /// `[n * rows of one, cols]`
    pub weight: Matrix,
    /// Factors on the results, one per matrix.
    pub scales: Option<Box<[f32]>>,
    /// What is added to the results, `[n * rows of one]`.
    pub bias: Option<Box<[f32]>>,
}

/// A stack to be multiplied, and where the results go.
#[derive(Clone, Copy)]
pub(super) struct StackJob<'j> {
    pub stack: &'j Stack,
    pub out: &'j SharedBuf<f32>,
    /// Where the results of a matrix begin.
    pub start: &'j dyn Fn(usize) -> usize,
    /// Elements from a row of them to the next.
    pub stride: usize,
}

/// What makes probabilities of a router's scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gating {
    /// A softmax over all experts.
    Softmax,
    /// Of every score by itself `1 / (1 + e^-score)` (DeepSeek-V3, arXiv 2412.19437).
    Sigmoid,
}

/// `1 / (1 + e^-x)`.
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// How a router's scores choose.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    /// Experts to choose from.
    pub n_expert: usize,
    /// How many are chosen for a token.
    pub n_used: usize,
    /// What makes probabilities of scores.
    pub gating: Gating,
    /// Whether the weights of those chosen are made to add up to 1.
    pub normalised: bool,
    /// Factor on the weights.
    pub scale: f32,
    /// How many experts, one after another, share a network: 1 where each has its own. Where they share, a token meets the networks of those
    /// chosen, one maybe more than once, each weighed as the expert that has its number.
    pub n_sharing: usize,
    /// In how many groups of equal size experts are, of which only the best ones count for a token, and how many that are. A group is as
    /// good as its two best experts together (DeepSeek-V3).
    pub groups: Option<[usize; 2]>,
}

/// Most groups of experts.
pub const MAX_GROUPS: usize = 64;

/// Work space of a pass.
pub struct ExpertBuffers {
    /// Scores, `[n_tokens, n_expert]`.
    pub scores: SharedBuf<f32>,
    /// The experts chosen for each token, `[n_tokens, n_used]`, best first.
    chosen: SharedBuf<u32>,
    /// Their weights.
    weights: SharedBuf<f32>,
    /// The place of each of `chosen`.
    places: SharedBuf<u32>,
    /// Where each expert's places start, and at last how many there are.
    starts: SharedBuf<u32>,
    /// What networks are given, a row per place.
    input: Activations,
    /// Gates, and after them what they gate; or units without gates.
    inner: SharedBuf<f32>,
    hidden: Widths,
    output: SharedBuf<f32>,
    /// What a network that all tokens meet makes of them.
    pub shared: SharedBuf<f32>,
    most_experts: usize,
}

/// The networks of a layer.
pub struct Networks {
    /// Who is chosen.
    pub choice: Choice,
    /// Is added to the experts' probabilities for the choice, not for the weights.
    pub selection_bias: Option<Box<[f32]>>,
    /// What makes hidden units.
    pub units: Units,
    /// Down projections.
    pub down: Stack,
    /// The activation of gates, or of units without them.
    pub act: Act,
    /// Whether a token's weight for an expert multiplies what the expert is given, and not what it makes of that.
    pub weighs_input: bool,
}

/// The projections to the hidden units of networks.
pub enum Units {
    /// `act(gate x) * up x`.
    Gated {
        /// Gate projections.
        gate: Stack,
        /// Up projections.
        up: Stack,
    },
    /// The same with one matrix for both, the gate's rows first.
    Fused(Stack),
    /// `act(up x)`.
    Ungated(Stack),
}

/// Sizes of the largest mixture.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExpertSizes {
    /// Experts to choose from.
    pub n_expert: usize,
    /// How many are chosen.
    pub n_used: usize,
    /// Hidden units of one.
    pub n_ff: usize,
    /// Values of what one is given, and of what it makes.
    pub width: usize,
}

impl Networks {
    /// The stacks of all experts' matrices.
    pub fn stacks(&self) -> impl Iterator<Item = &Stack> {
        let units = match &self.units {
            Units::Gated { gate, up } => [Some(gate), Some(up)],
            Units::Fused(one) | Units::Ungated(one) => [Some(one), None],
        };
        units.into_iter().flatten().chain([&self.down])
    }

    /// How large they are.
    pub fn sizes(&self) -> ExpertSizes {
        let Choice { n_expert, n_used, .. } = self.choice;
        let down = &self.down.weight;
        ExpertSizes { n_expert, n_used, n_ff: down.cols(), width: down.rows() / self.choice.n_networks() }
    }
}

impl ExpertBuffers {
    /// Room for passes of up to `n_tokens`, whose rows outside of experts have `n_embd` values, in mixtures of up to these sizes; `n_ffs`: hidden
    /// units of an expert in each.
    pub fn new(
        kernels: &Kernels,
        n_tokens: usize,
        n_embd: usize,
        s: ExpertSizes,
        n_ffs: impl Iterator<Item = usize>,
        ty: ActivationType,
    ) -> Self {
        let n = n_tokens * s.n_used;
        Self {
            scores: SharedBuf::new(n_tokens * s.n_expert),
            chosen: SharedBuf::new(n),
            weights: SharedBuf::new(n),
            places: SharedBuf::new(n),
            starts: SharedBuf::new(s.n_expert + 1),
            input: Activations::of_either_form(kernels, n, s.width, ty),
            inner: SharedBuf::new(n * 2 * s.n_ff),
            hidden: Widths::new(n_ffs, |n_ff| Activations::of_either_form(kernels, n, n_ff, ty)),
            output: SharedBuf::new(n * s.width),
            shared: SharedBuf::new(n_tokens * n_embd),
            most_experts: s.n_expert,
        }
    }

    /// The places of expert `e`.
    ///
    /// # Safety
    /// Nobody sorts before the next barrier.
    unsafe fn places_of(&self, e: usize) -> Range<usize> {
        // SAFETY: passed on to the caller.
        let ends = unsafe { self.starts.get(e..e + 2) };
        ends[0] as usize..ends[1] as usize
    }
}

impl Choice {
    /// How many networks experts have.
    pub fn n_networks(&self) -> usize {
        self.n_expert / self.n_sharing
    }

    /// Turns a token's scores into probabilities.
    pub fn probabilities(&self, kernels: &Kernels, scores: &mut [f32]) {
        match self.gating {
            Gating::Softmax => kernels.float.softmax(scores),
            Gating::Sigmoid => scores.iter_mut().for_each(|s| *s = sigmoid(*s)),
        }
    }

    /// Turns a token's scores into probabilities and chooses: the best first, of equals the one with the smaller number. `bias` is added to
    /// probabilities where they are compared. Makes no sense of `scores` afterwards.
    pub fn choose(
        &self,
        kernels: &Kernels,
        scores: &mut [f32],
        bias: Option<&[f32]>,
        chosen: &mut [u32],
        weights: &mut [f32],
    ) {
        /// Smallest sum that weights are divided by, as in llama.cpp: the smallest normal number of F16.
        const SMALLEST: f32 = 6.103_515_6e-5;
        /// Marks those that cannot be chosen any more: no probability is below 0.
        const GONE: f32 = -1.0;
        self.probabilities(kernels, scores);
        // Where a damaged model makes NaN, any experts will do, but not one twice.
        let rank = |p: f32, j: usize| {
            let r = p + bias.map_or(0.0, |b| b[j]);
            if r.is_nan() { 0.0 } else { r }
        };
        if let Some([n_groups, n_best]) = self.groups {
            let len = scores.len() / n_groups;
            let goodness = |g: usize| {
                let mut best = [f32::NEG_INFINITY; 2];
                for r in (g * len..(g + 1) * len).map(|j| rank(scores[j], j)) {
                    if r > best[0] {
                        best = [r, best[0]];
                    } else if r > best[1] {
                        best[1] = r;
                    }
                }
                best[0] + if len > 1 { best[1] } else { 0.0 }
            };
            let mut kept = 0u64;
            let goodness: [f32; MAX_GROUPS] = std::array::from_fn(|g| if g < n_groups { goodness(g) } else { 0.0 });
            for _ in 0..n_best {
                kept |= 1 << best_of((0..n_groups).filter(|g| kept >> g & 1 == 0).map(|g| (g, goodness[g])));
            }
            let groups = scores.chunks_exact_mut(len).enumerate();
            groups.filter(|(g, _)| kept >> g & 1 == 0).for_each(|(_, group)| group.fill(GONE));
        }
        for (e, weight) in chosen.iter_mut().zip(weights.iter_mut()) {
            let left = scores.iter().enumerate().filter(|(_, p)| **p != GONE);
            let best = best_of(left.map(|(j, &p)| (j, rank(p, j))));
            (*e, *weight) = (best as u32, scores[best]);
            scores[best] = GONE;
        }
        if self.n_sharing > 1 {
            chosen.iter().zip(&*weights).for_each(|(&e, &weight)| scores[e as usize] = weight);
            for (e, weight) in chosen.iter_mut().zip(weights.iter_mut()) {
                *e /= self.n_sharing as u32;
                *weight = scores[*e as usize];
            }
        }
        if self.normalised {
            let sum = weights.iter().sum::<f32>().max(SMALLEST);
            weights.iter_mut().for_each(|w| *w /= sum);
        }
        if self.scale != 1.0 {
            weights.iter_mut().for_each(|w| *w *= self.scale);
        }
    }
}

/// The number with the greatest rank, the first of equals.
fn best_of(mut all: impl Iterator<Item = (usize, f32)>) -> usize {
    let first = all.next().expect("more candidates than are chosen");
    all.fold(first, |best, one| if one.1 > best.1 { one } else { best }).0
}

impl Ops<'_> {
    /// Adds up, for `n` tokens whose scores are in `b`, what the experts chosen for each make of its row of `x`: into `out`.
    /// `fine_step`: of what the networks are given, and of their hidden units.
    pub fn experts(
        &mut self,
        x: Operand,
        n: usize,
        net: &Networks,
        b: &ExpertBuffers,
        fine_step: [f32; 2],
        out: &SharedBuf<f32>,
    ) {
        let (n_networks, n_used) = (net.choice.n_networks(), net.choice.n_used);
        self.choose(n, net, b);
        // Which form is worth its while depends on how many rows an expert meets.
        let form = Form::of(self.kernels, n * n_used / n_networks.min(n * n_used).max(1));
        let input = b.input.with(form, fine_step[0]);
        for i in self.worker.share(n * n_used) {
            // SAFETY: places are shared out disjointly, and nobody writes the operands in this phase.
            unsafe {
                let place = b.places.get(i..i + 1)[0] as usize;
                let token = i / n_used;
                let row = input.row_mut(place);
                row.copy_from_slice(x.f32(token..token + 1));
                if net.weighs_input {
                    self.kernels.float.scale(row, b.weights.get(i..i + 1)[0]);
                }
                input.finish_row(self.kernels, place);
            }
        }
        self.worker.barrier();
        // SAFETY: places are given out before, and not again before the last product.
        let places = |e: usize| unsafe { b.places_of(e) };
        let (n_ff, width) = (net.sizes().n_ff, x.k());
        let hidden = b.hidden.of(n_ff).with(form, fine_step[1]);
        let [to_units, to_gates, to_ups] =
            [(1, 0), (2, 0), (2, n_ff)].map(|(n, column)| move |e: usize| places(e).start * n * n_ff + column);
        let gates = |stack| StackJob { stack, out: &b.inner, start: &to_gates, stride: 2 * n_ff };
        match &net.units {
            Units::Gated { gate, up } => {
                let ups = StackJob { start: &to_ups, ..gates(up) };
                self.products(input, n_networks, &places, &[gates(gate), ups]);
            }
            Units::Fused(both) => self.products(input, n_networks, &places, &[gates(both)]),
            Units::Ungated(up) => {
                let units = StackJob { stack: up, out: &b.inner, start: &to_units, stride: n_ff };
                self.products(input, n_networks, &places, &[units]);
            }
        }
        match net.units {
            Units::Ungated(_) => self.activated(net.act, &b.inner, n * n_used, hidden),
            _ => self.gated_halves(net.act, &b.inner, n * n_used, hidden),
        }
        let down = StackJob { stack: &net.down, out: &b.output, stride: width, start: &|e| places(e).start * width };
        self.products(hidden, n_networks, &places, &[down]);
        for t in self.worker.share(n) {
            let chosen = t * n_used..(t + 1) * n_used;
            // SAFETY: rows are shared out disjointly, and nobody writes the operands in this phase.
            unsafe {
                let row = out.get_mut(t * width..(t + 1) * width);
                row.fill(0.0);
                for (&weight, &place) in b.weights.get(chosen.clone()).iter().zip(b.places.get(chosen)) {
                    let (place, weight) = (place as usize, if net.weighs_input { 1.0 } else { weight });
                    self.kernels.float.axpy(weight, b.output.get(place * width..(place + 1) * width), row);
                }
            }
        }
        self.worker.barrier();
    }

    /// Chooses experts for `n` tokens and gives out places.
    fn choose(&mut self, n: usize, net: &Networks, b: &ExpertBuffers) {
        let (choice, bias) = (net.choice, net.selection_bias.as_deref());
        let (n_expert, n_used, n_networks) = (choice.n_expert, choice.n_used, choice.n_networks());
        assert!(n_expert <= b.most_experts && n_used <= n_expert);
        for t in self.worker.share(n) {
            let chosen = t * n_used..(t + 1) * n_used;
            // SAFETY: rows are shared out disjointly.
            unsafe {
                let scores = b.scores.get_mut(t * n_expert..(t + 1) * n_expert);
                let (chosen, weights) = (b.chosen.get_mut(chosen.clone()), b.weights.get_mut(chosen));
                choice.choose(self.kernels, scores, bias, chosen, weights);
            }
        }
        self.worker.barrier();
        if self.worker.id == 0 {
            // SAFETY: the first member alone is at work until the barrier.
            unsafe {
                let (chosen, starts) = (b.chosen.get(0..n * n_used), b.starts.get_mut(0..n_networks + 1));
                starts.fill(0);
                chosen.iter().for_each(|&e| starts[e as usize + 1] += 1);
                (0..n_networks).for_each(|e| starts[e + 1] += starts[e]);
                // The next free place of each expert; afterwards the start of the next expert's.
                for (&e, place) in chosen.iter().zip(b.places.get_mut(0..n * n_used)) {
                    *place = starts[e as usize];
                    starts[e as usize] += 1;
                }
                starts.copy_within(0..n_networks, 1);
                starts[0] = 0;
            }
        }
        self.worker.barrier();
    }

    /// Multiplies each of `n` matrices of every stack with the rows of `x` that are in its places, in one phase.
    pub(super) fn products(&mut self, x: Operand, n: usize, places: &dyn Fn(usize) -> Range<usize>, jobs: &[StackJob]) {
        let busy = || (0..n).filter(|&e| !places(e).is_empty());
        let n_groups = |stack: &Stack| (stack.weight.rows() / n).div_ceil(ROWS);
        let per_matrix: usize = jobs.iter().map(|j| n_groups(j.stack)).sum();
        let chunks = Chunks::new(busy().count() * per_matrix, self.worker.n);
        let worker = self.worker;
        if let Some(observer) = self.observer {
            for e in busy().filter(|e| e % worker.n == worker.id) {
                // SAFETY: nobody writes `x` in this phase.
                let rows = unsafe { x.f32(places(e)) };
                jobs.iter().for_each(|j| observer.stack_operand(j.stack, e, rows));
            }
        }
        worker.for_each_chunk(chunks.n_chunks(), |c| {
            let chunk = chunks.chunk(c);
            let mut first = 0;
            for e in busy() {
                for job in jobs {
                    let end = first + n_groups(job.stack);
                    let groups = chunk.start.max(first)..chunk.end.min(end);
                    if !groups.is_empty() {
                        let rows = job.stack.weight.rows() / n;
                        let part = (groups.start - first) * ROWS..((groups.end - first) * ROWS).min(rows);
                        self.product_of_stack(x, places(e), job, e, rows, part);
                    }
                    first = end;
                }
            }
        });
        worker.barrier();
    }

    /// Rows `part` of matrix `e` of a stack, one of `rows`, with those of `x` in `places`. Nobody else takes these in this phase.
    fn product_of_stack(
        &mut self,
        x: Operand,
        places: Range<usize>,
        job: &StackJob,
        e: usize,
        rows: usize,
        part: Range<usize>,
    ) {
        let StackJob { stack, out, stride, start } = *job;
        let (w, start) = (stack.weight.rows_view(e * rows..(e + 1) * rows), start(e));
        assert!(start + (places.len() - 1) * stride + rows <= out.len() && w.cols == x.k());
        // SAFETY: chunks are handed out once each, so that columns `part` of these rows are this member's; the assertion keeps all of them
        // inside `out`; nobody writes `x` in this phase.
        unsafe {
            let y = out.as_ptr().add(start);
            self.multiply(x, places.clone(), &w, part.clone(), y, stride);
            for i in 0..places.len() {
                let row = start + i * stride + part.start..start + i * stride + part.end;
                if let Some(scales) = &stack.scales {
                    self.kernels.float.scale(out.get_mut(row.clone()), scales[e]);
                }
                if let Some(bias) = &stack.bias {
                    self.kernels.float.add_assign(out.get_mut(row), &bias[e * rows..][part.clone()]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Choice = Choice {
        n_expert: 5,
        n_used: 3,
        gating: Gating::Softmax,
        normalised: false,
        scale: 1.0,
        n_sharing: 1,
        groups: None,
    };

    fn chosen(choice: Choice, scores: &[f32], bias: Option<&[f32]>) -> (Vec<u32>, Vec<f32>) {
        let (mut scores, n) = (scores.to_vec(), choice.n_used);
        let (mut chosen, mut weights) = (vec![0; n], vec![0.0; n]);
        choice.choose(Kernels::detect(), &mut scores, bias, &mut chosen, &mut weights);
        (chosen, weights)
    }

    fn close(a: &[f32], b: &[f32]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6)
    }

    #[test]
    fn the_most_likely_are_chosen() {
        // Probabilities in the ratio 1 : 4 : 2 : 4 : 1.
        let scores = [1.0, 4.0, 2.0, 4.0, 1.0].map(f32::ln);
        let (experts, weights) = chosen(PLAIN, &scores, None);
        assert_eq!(experts, [1, 3, 2]);
        assert!(close(&weights, &[4.0, 4.0, 2.0].map(|x| x / 12.0)), "{weights:?}");
        let (_, weights) = chosen(Choice { normalised: true, scale: 2.5, ..PLAIN }, &scores, None);
        assert!(close(&weights, &[1.0, 1.0, 0.5]), "{weights:?}");
    }

    #[test]
    fn a_bias_chooses_and_does_not_weigh() {
        let choice = Choice { gating: Gating::Sigmoid, n_used: 2, ..PLAIN };
        let scores = [0.0, 1.0, 2.0, 3.0, 4.0];
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        assert_eq!(chosen(choice, &scores, None).0, [4, 3]);
        let (experts, weights) = chosen(choice, &scores, Some(&[5.0, 0.0, 0.0, 0.0, -1.0]));
        assert_eq!(experts, [0, 3]);
        assert!(close(&weights, &[0.5, sigmoid(3.0)]), "{weights:?}");
    }

    #[test]
    fn networks_that_experts_share_are_weighed_by_their_numbers() {
        // Probabilities in the ratio 1 : 4 : 2 : 5 : 3 : 1.
        let scores = [1.0, 4.0, 2.0, 5.0, 3.0, 1.0].map(f32::ln);
        let choice = Choice { n_expert: 6, n_sharing: 2, ..PLAIN };
        assert_eq!(choice.n_networks(), 3);
        let (networks, weights) = chosen(choice, &scores, None);
        assert_eq!(networks, [1, 0, 2]);
        assert!(close(&weights, &[4.0, 1.0, 2.0].map(|x| x / 16.0)), "{weights:?}");
    }

    #[test]
    fn only_the_best_groups_count() {
        let choice = Choice { n_expert: 6, n_used: 3, gating: Gating::Sigmoid, groups: Some([3, 2]), ..PLAIN };
        // The best expert is in a group whose second is bad.
        assert_eq!(chosen(choice, &[3.0, -9.0, 1.0, 0.9, 0.8, 0.7], None).0, [2, 3, 4]);
        assert_eq!(chosen(Choice { groups: None, ..choice }, &[3.0, -9.0, 1.0, 0.9, 0.8, 0.7], None).0, [0, 2, 3]);
        let groups_of_one = Choice { n_expert: 3, n_used: 2, groups: Some([3, 2]), ..choice };
        assert_eq!(chosen(groups_of_one, &[1.0, 0.0, 2.0], None).0, [2, 0]);
    }

    /// Whatever the scores, no expert is chosen twice, and none that there is not.
    #[test]
    fn choices_are_different_ones() {
        let all = Choice { n_expert: 4, n_used: 4, normalised: true, ..PLAIN };
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for scores in
            [[nan; 4], [0.0, nan, 1.0, 2.0], [inf, 0.0, inf, -inf], [-inf; 4], [0.0; 4], [3e38, -3e38, 0.0, 1.0]]
        {
            for gating in [Gating::Softmax, Gating::Sigmoid] {
                for bias in [[0.0; 4], [nan; 4], [-inf, 0.0, inf, 1.0]] {
                    let choice = Choice { gating, ..all };
                    let (mut experts, _) = chosen(choice, &scores, Some(&bias));
                    experts.sort_unstable();
                    assert_eq!(experts, [0, 1, 2, 3], "{scores:?}");
                    let (mut experts, _) =
                        chosen(Choice { n_used: 2, groups: Some([2, 1]), ..choice }, &scores, Some(&bias));
                    experts.sort_unstable();
                    assert!(experts == [0, 1] || experts == [2, 3], "{scores:?}: {experts:?}");
                }
            }
        }
    }
}
