//! Adaptive-p: chooses tokens near a target probability, steering by a moving average of the probabilities chosen.

use super::candidates::Candidates;
use super::rng::Mt19937;
use super::stages::draw;

/// Shape of the preference: its peak, its width in probability, and its steepness.
const PEAK: f32 = 5.0;
const WIDTH: f32 = 0.3;
const SHARPNESS: f32 = 10.0;

pub(super) struct Adaptive {
    target: f32,
    decay: f32,
    sum: f32,
    weight: f32,
    /// The token last chosen and its probability before the transformation.
    pending: Option<(u32, f32)>,
}

impl Adaptive {
    pub fn new(target: f32, decay: f32) -> Self {
        Adaptive { target, decay, sum: 0.0, weight: 0.0, pending: None }
    }

    pub fn reset(&mut self) {
        *self = Adaptive::new(self.target, self.decay);
    }

    /// Chooses a token; `None` when no token is above -inf.
    pub fn choose(&mut self, c: &mut Candidates, rng: &mut Mt19937) -> Option<usize> {
        if self.target < 0.0 {
            return draw(c, rng);
        }
        if !c.softmax() {
            return None;
        }
        let aim = if self.weight == 0.0 { self.target } else { 2.0 * self.target - self.sum / self.weight };
        let aim = aim.clamp(0.0, 1.0);
        for t in c.list().iter_mut().filter(|t| t.logit > f32::NEG_INFINITY) {
            let distance = ((t.p - aim) / WIDTH).abs();
            // Quadratic near the aim, linear far from it.
            t.key = t.p;
            t.logit = PEAK - SHARPNESS * distance * distance / (1.0 + distance);
        }
        c.set_sorted(false);
        let chosen = draw(c, rng)?;
        self.pending = Some((c.list()[chosen].id, c.list()[chosen].key));
        Some(chosen)
    }

    pub fn accept(&mut self, id: u32) {
        if let Some((chosen, p)) = self.pending.take()
            && chosen == id
        {
            self.sum = p + self.decay * self.sum;
            self.weight = 1.0 + self.decay * self.weight;
        }
    }
}
