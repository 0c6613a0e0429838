//! Training: the two stages, held-out losses, early stop, checkpoints.

use std::time::Instant;

use super::adam::{Adam, Schedule, clip};
use super::basis::Bases;
use super::checkpoint::{Checkpoint, Identity};
use super::data::{Windows, slices};
use super::dense::DenseModel;
use super::modules::Modules;
use super::team::{Stage, Team};

/// How a student is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Windows per step.
    pub batch: usize,
    /// Steps of training layers apart, before some of them are chosen.
    pub steps_choice: usize,
    /// Steps of attention distillation.
    pub steps_attention: usize,
    /// Steps of end-to-end distillation.
    pub steps_end_to_end: usize,
    /// Peak learning rate of attention distillation, relative to the values' size ([`Modules::relative`]).
    pub lr_attention: f64,
    /// Peak learning rate of end-to-end distillation, relative likewise.
    pub lr_end_to_end: f64,
    /// Part of the steps that warm up.
    pub warmup: f64,
    /// Largest norm of the gradient.
    pub clip: f64,
    /// Weight decay.
    pub decay: f64,
    /// Part of the tokens trained on that others take the place of.
    pub noise: f64,
    /// Order of the text, and first values of hidden units.
    pub seed: u64,
    /// Steps between held-out losses.
    pub eval_every: usize,
    /// Held-out losses without progress after which a stage ends; 0: never.
    pub patience: usize,
}

impl Settings {
    /// Steps of `stage`.
    pub fn steps(&self, stage: Stage) -> usize {
        match stage {
            Stage::Apart => self.steps_choice,
            Stage::Attention => self.steps_attention,
            Stage::EndToEnd => self.steps_end_to_end,
        }
    }

    fn schedule(&self, stage: Stage) -> Schedule {
        let steps = self.steps(stage);
        let lr = if stage == Stage::EndToEnd { self.lr_end_to_end } else { self.lr_attention };
        Schedule { lr, warmup: (self.warmup * steps as f64).round() as usize, steps }
    }
}

/// A held-out loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeldOut {
    /// Of the stage.
    pub loss: f64,
    /// KL(teacher's predictions || student's) per token.
    pub kl: f64,
    /// Of the student.
    pub perplexity: f64,
    /// Of the unchanged model.
    pub perplexity_teacher: f64,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// A step is done.
    Step {
        /// In which stage.
        stage: Stage,
        /// Its number, from 1.
        step: usize,
        /// Steps of the stage.
        steps: usize,
        /// On the step's own windows.
        loss: f64,
        /// Of the gradient, before clipping.
        norm: f64,
        /// The learning rate.
        lr: f64,
        /// In this stage, since the run began or was resumed, without the looks at the text held out.
        tokens_per_second: f64,
    },
    /// The held-out text was looked at.
    HeldOut {
        /// In which stage.
        stage: Stage,
        /// After how many steps.
        step: usize,
        /// The losses.
        found: HeldOut,
    },
}

/// What the observer of a run wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// More of it.
    Go,
    /// A checkpoint, then more.
    Save,
    /// Stop here.
    Stop,
}

/// The state of a run, which a checkpoint holds.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// The student.
    pub modules: Modules,
    /// The stage at work.
    pub stage: Stage,
    /// Steps done in it.
    pub step: usize,
    /// Its optimiser.
    pub adam: Adam,
    /// The values with the smallest held-out loss of the stage, and that loss.
    pub best: Option<(f64, Vec<f32>)>,
    /// Held-out losses since then.
    pub stale: usize,
    /// Tokens trained on, both stages.
    pub tokens: u64,
}

impl State {
    /// Before the first step.
    pub fn new(modules: Modules) -> Self {
        let adam = Adam::new(modules.values.len());
        Self { modules, stage: Stage::Attention, step: 0, adam, best: None, stale: 0, tokens: 0 }
    }
}

/// A run.
pub struct Trainer<'a> {
    /// The unchanged model.
    pub model: &'a DenseModel<'a>,
    /// The text.
    pub windows: &'a Windows,
    /// How.
    pub settings: &'a Settings,
    /// By whom.
    pub team: &'a mut Team,
    /// In which directions.
    pub bases: Bases,
}

/// What a step found.
struct Step {
    loss: f64,
    norm: f64,
    lr: f64,
}

impl Trainer<'_> {
    /// The step `at` of `stage`.
    fn step(&mut self, modules: &mut Modules, adam: &mut Adam, stage: Stage, at: usize) -> Step {
        let order = self.settings.seed.wrapping_add(stage as u64);
        let windows = self.windows.batch(order, at, self.settings.batch, self.settings.noise);
        let mut out = self.team.loss(self.model, modules, stage, &slices(&windows), true);
        let norm = clip(&mut out.grads, self.settings.clip);
        let lr = self.settings.schedule(stage).at(at);
        self.bases.turn(self.model, modules, &mut out.grads);
        adam.step(&mut out.grads, lr);
        self.bases.turn_back(self.model, modules, &mut out.grads);
        modules.relative(&mut out.grads);
        let shrink = (1.0 - lr * self.settings.decay) as f32;
        modules.values.iter_mut().zip(&out.grads).for_each(|(x, step)| *x = *x * shrink + step);
        Step { loss: out.mean_loss(), norm, lr }
    }

    /// All steps of `stage`, in one go; `observer` hears every step's number and loss and returns false to stop.
    ///
    /// # Errors
    /// [`crate::Error::Interrupted`] when stopped.
    pub fn fit(
        &mut self,
        modules: &mut Modules,
        stage: Stage,
        observer: &mut dyn FnMut(usize, f64) -> bool,
    ) -> crate::Result<()> {
        let mut adam = Adam::new(modules.values.len());
        for at in 0..self.settings.steps(stage) {
            let step = self.step(modules, &mut adam, stage, at);
            if !observer(at + 1, step.loss) {
                return Err(crate::Error::Interrupted);
            }
        }
        Ok(())
    }

    /// The losses of `modules` on the held-out text.
    pub fn held_out(&mut self, modules: &Modules, stage: Stage) -> HeldOut {
        let windows = slices(&self.windows.held_out);
        let out = self.team.loss(self.model, modules, Stage::EndToEnd, &windows, false);
        let loss = match stage {
            Stage::EndToEnd => out.mean_loss(),
            _ => self.team.loss(self.model, modules, stage, &windows, false).mean_loss(),
        };
        let (perplexity, perplexity_teacher) = (out.perplexity(), out.perplexity_teacher());
        HeldOut { loss, kl: out.mean_loss(), perplexity, perplexity_teacher }
    }

    /// Goes on from `state` to the end, or to where the observer stops it. Returns whether the end was reached; then the student has
    /// the values with the smallest held-out loss.
    ///
    /// The observer hears every event; `save` is given the state when it asks for that, and when it stops.
    pub fn run(
        &mut self,
        state: &mut State,
        observer: &mut dyn FnMut(Event) -> Next,
        save: &mut dyn FnMut(&State) -> crate::Result<()>,
    ) -> crate::Result<bool> {
        for stage in [Stage::Attention, Stage::EndToEnd] {
            if stage < state.stage {
                continue;
            }
            if stage > state.stage {
                let (modules, tokens) = (state.modules.clone(), state.tokens);
                *state = State { stage, tokens, ..State::new(modules) };
            }
            let steps = self.settings.steps(stage);
            // Only alignment and low-rank scores have weights of their own to compare.
            let has_scores = state.modules.iter().any(|m| m.kind == ggml_ext::lisa::Kind::Lisa);
            let idle = state.modules.values.is_empty() || stage == Stage::Attention && !has_scores;
            let (mut seconds, mut tokens) = (0.0, 0);
            while state.step < steps && !idle && !self.is_stale(state) {
                let start = Instant::now();
                let State { modules, adam, step, .. } = &mut *state;
                let Step { loss, norm, lr } = self.step(modules, adam, stage, *step);
                state.step += 1;
                seconds += start.elapsed().as_secs_f64();
                tokens += self.settings.batch * self.model.n_ctx;
                state.tokens += (self.settings.batch * self.model.n_ctx) as u64;
                let tokens_per_second = tokens as f64 / seconds;
                let step = state.step;
                let mut next = observer(Event::Step { stage, step, steps, loss, norm, lr, tokens_per_second });
                if step.is_multiple_of(self.settings.eval_every) || step == steps {
                    let found = self.held_out(&state.modules, stage);
                    self.remember(state, found.loss);
                    let after = observer(Event::HeldOut { stage, step, found });
                    next = if next == Next::Stop { next } else { after };
                }
                if next != Next::Go {
                    save(state)?;
                }
                if next == Next::Stop {
                    return Ok(false);
                }
            }
            if let Some((_, values)) = state.best.take() {
                state.modules.values = values;
            }
        }
        Ok(true)
    }

    fn remember(&self, state: &mut State, loss: f64) {
        // Not a number is no progress.
        if state.best.as_ref().is_none_or(|(best, _)| loss < *best) && loss.is_finite() {
            state.best = Some((loss, state.modules.values.clone()));
            state.stale = 0;
        } else {
            state.stale += 1;
        }
    }

    fn is_stale(&self, state: &State) -> bool {
        self.settings.patience > 0 && state.stale >= self.settings.patience
    }
}

/// What a checkpoint of this run must agree with: every setting that the result depends on, by the name of its flag.
pub fn identity(settings: &Settings, fingerprint: &str, windows: &Windows) -> Identity {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for id in windows.all() {
        hash = (hash ^ u64::from(id)).wrapping_mul(0x0100_0000_01b3);
    }
    let s = settings;
    [
        ("--batch-size", s.batch.to_string()),
        ("--steps-choice", s.steps_choice.to_string()),
        ("--steps-attention", s.steps_attention.to_string()),
        ("--steps", s.steps_end_to_end.to_string()),
        ("--lr-attention", s.lr_attention.to_string()),
        ("--lr", s.lr_end_to_end.to_string()),
        ("--warmup", s.warmup.to_string()),
        ("--clip", s.clip.to_string()),
        ("--weight-decay", s.decay.to_string()),
        ("--noise", s.noise.to_string()),
        ("--seed", s.seed.to_string()),
        ("--eval-every", s.eval_every.to_string()),
        ("--patience", s.patience.to_string()),
        ("the model", fingerprint.to_owned()),
        ("the text", format!("{hash:016x}")),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

impl State {
    /// As a file's contents.
    pub fn checkpoint(&self, identity: &Identity) -> Checkpoint<'_> {
        Checkpoint { state: self, identity: identity.clone() }
    }
}
