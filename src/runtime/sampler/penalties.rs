//! Repeat (Keskar et al., 2019), frequency and presence penalties over the last tokens.

use std::collections::VecDeque;

use super::candidates::Candidates;
use super::params::SamplerParams;

/// Counts of the last `window` tokens, and the ids that occur among them.
pub(super) struct Penalties {
    window: usize,
    last: VecDeque<u32>,
    /// By token id.
    count: Vec<u32>,
    /// The ids whose count is not zero, in no particular order, and by token id where in that list it stands.
    present: Vec<u32>,
    position: Vec<u32>,
}

impl Penalties {
    /// `None` when the parameters switch every penalty off.
    pub fn new(p: &SamplerParams, n_vocab: usize, n_ctx: usize) -> Option<Self> {
        let window = usize::try_from(p.penalty_last_n).unwrap_or(n_ctx);
        let idle = p.penalty_repeat == 1.0 && p.penalty_freq == 0.0 && p.penalty_present == 0.0;
        (window > 0 && !idle).then(|| Penalties {
            window,
            // Bounded so that an absurd window costs nothing before it is filled.
            last: VecDeque::with_capacity(window.min(n_ctx) + 1),
            count: vec![0; n_vocab],
            present: Vec::with_capacity(window.min(n_ctx).min(n_vocab)),
            position: vec![0; n_vocab],
        })
    }

    /// `id` is below the vocabulary's size.
    pub fn accept(&mut self, id: u32) {
        if self.last.len() == self.window
            && let Some(old) = self.last.pop_front()
        {
            self.count[old as usize] -= 1;
            if self.count[old as usize] == 0 {
                let at = self.position[old as usize] as usize;
                self.present.swap_remove(at);
                if let Some(&moved) = self.present.get(at) {
                    self.position[moved as usize] = at as u32;
                }
            }
        }
        self.last.push_back(id);
        if self.count[id as usize] == 0 {
            self.position[id as usize] = self.present.len() as u32;
            self.present.push(id);
        }
        self.count[id as usize] += 1;
    }

    pub fn apply(&self, c: &mut Candidates, p: &SamplerParams) {
        for &id in &self.present {
            let count = self.count[id as usize] as f32;
            c.edit(id, |l| {
                // Dividing a negative logit would reward the repetition.
                let l = if l <= 0.0 { l * p.penalty_repeat } else { l / p.penalty_repeat };
                l - (count * p.penalty_freq + p.penalty_present)
            });
        }
    }

    pub fn reset(&mut self) {
        for &id in &self.present {
            self.count[id as usize] = 0;
        }
        self.present.clear();
        self.last.clear();
    }
}
