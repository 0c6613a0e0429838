//! Windows of text shared out among threads, the results in the order of the windows.

use std::sync::{Mutex, PoisonError};

use super::dense::DenseModel;
use super::modules::Modules;
use super::student::{Outcome, Pair, Teacher, Workspace};
use crate::Result;
use crate::compute::Pool;
use crate::model::thread_error;

/// Which loss is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Attention weights of every substituted layer, on the teacher's own inputs and from the teacher's weights of its source, as
    /// if no other layer were substituted: before it is known which will be.
    Apart,
    /// Attention weights of every substituted layer, on the teacher's own inputs, from its source as the student has it.
    Attention,
    /// The model's predictions.
    EndToEnd,
}

impl Stage {
    /// The name in logs and checkpoints.
    pub fn name(self) -> &'static str {
        match self {
            Self::Apart => "apart",
            Self::Attention => "attention",
            Self::EndToEnd => "end-to-end",
        }
    }
}

/// Threads with their work spaces.
pub struct Team {
    pool: Pool,
    spaces: Vec<Mutex<Workspace>>,
}

impl Team {
    /// A team of `n_threads`.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn new(n_threads: usize) -> Result<Self> {
        let pool = Pool::new(n_threads).map_err(thread_error)?;
        Ok(Self { pool, spaces: (0..n_threads.max(1)).map(|_| Mutex::default()).collect() })
    }

    /// Threads.
    pub fn n_threads(&self) -> usize {
        self.pool.n_threads()
    }

    /// `f(i)` for `i` below `n` on all threads, in the order of `i`.
    pub fn map<T: Send>(&mut self, n: usize, f: impl Fn(usize, &mut Workspace) -> T + Sync) -> Vec<T> {
        let slots: Vec<Mutex<Option<T>>> = (0..n).map(|_| Mutex::new(None)).collect();
        let spaces = &self.spaces;
        self.pool.run(|w| {
            let mut space = spaces[w.id].lock().unwrap_or_else(PoisonError::into_inner);
            w.for_each_chunk(n, |i| {
                let value = f(i, &mut space);
                *slots[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
            });
        });
        let all = slots.into_iter().map(|s| s.into_inner().unwrap_or_else(PoisonError::into_inner));
        all.map(|v| v.expect("every chunk was handed out")).collect()
    }

    /// The loss of `stage` over `windows`, its gradient the mean over positions, where it is wanted.
    pub fn loss(
        &mut self,
        model: &DenseModel,
        modules: &Modules,
        stage: Stage,
        windows: &[&[u32]],
        gradient: bool,
    ) -> Outcome {
        let pair = Pair { model, modules };
        let all = self.map(windows.len(), |i, w| match stage {
            Stage::Apart => pair.attention(w, windows[i], false, gradient),
            Stage::Attention => pair.attention(w, windows[i], true, gradient),
            Stage::EndToEnd => pair.end_to_end(w, windows[i], gradient),
        });
        sum(&all)
    }

    /// What the teacher makes of `windows`, for many students to be compared with it.
    pub fn teach(&mut self, model: &DenseModel, windows: &[&[u32]]) -> Vec<Teacher> {
        let none = Modules::none();
        let pair = Pair { model, modules: &none };
        self.map(windows.len(), |i, w| pair.teacher(w, windows[i]))
    }

    /// The loss of the predictions on what [`Team::teach`] saw.
    pub fn compare(&mut self, model: &DenseModel, modules: &Modules, taught: &[Teacher]) -> Outcome {
        let pair = Pair { model, modules };
        sum(&self.map(taught.len(), |i, w| pair.compare(w, &taught[i])))
    }
}

fn sum(all: &[Outcome]) -> Outcome {
    let mut out = Outcome::default();
    all.iter().for_each(|o| out.add(o));
    let n = out.n.max(1) as f32;
    out.grads.iter_mut().for_each(|g| *g /= n);
    out
}
