//! AdamW (Loshchilov and Hutter, arXiv 1711.05101) and its schedule.

/// The learning rate over a run: linear warm-up, then a cosine down to a fraction of the peak.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The peak.
    pub lr: f64,
    /// Steps of warm-up.
    pub warmup: usize,
    /// Steps in all.
    pub steps: usize,
}

/// The last step's learning rate, of the peak.
const FINAL: f64 = 0.05;

impl Schedule {
    /// The learning rate of `step`, from 0.
    pub fn at(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.lr * (step + 1) as f64 / (self.warmup + 1) as f64;
        }
        let part = (step - self.warmup) as f64 / (self.steps - self.warmup).max(1) as f64;
        self.lr * (FINAL + (1.0 - FINAL) * 0.5 * (1.0 + (std::f64::consts::PI * part.min(1.0)).cos()))
    }
}

/// The optimiser's state.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Adam {
    /// Running means of gradients.
    pub m: Vec<f32>,
    /// Running means of their squares.
    pub v: Vec<f32>,
    /// Steps done.
    pub steps: u64,
}

const BETA: [f64; 2] = [0.9, 0.999];
const EPS: f64 = 1e-8;

impl Adam {
    /// A fresh state for `n` values.
    pub fn new(n: usize) -> Self {
        Self { m: vec![0.0; n], v: vec![0.0; n], steps: 0 }
    }

    /// Turns gradients into what is to be added to the values, decay aside.
    pub fn step(&mut self, grads: &mut [f32], lr: f64) {
        self.steps += 1;
        let [c1, c2] = BETA.map(|b| 1.0 - b.powf(self.steps as f64));
        let [b1, b2] = BETA.map(|b| b as f32);
        let step = (lr / c1) as f32;
        let (root, eps) = ((1.0 / c2.sqrt()) as f32, EPS as f32);
        for ((g, m), v) in grads.iter_mut().zip(&mut self.m).zip(&mut self.v) {
            *m = b1 * *m + (1.0 - b1) * *g;
            *v = b2 * *v + (1.0 - b2) * *g * *g;
            *g = -step * *m / (v.sqrt() * root + eps);
        }
    }
}

/// Scales `grads` down to a norm of at most `limit`; returns the norm they had.
pub fn clip(grads: &mut [f32], limit: f64) -> f64 {
    let norm = grads.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    if norm > limit {
        let by = (limit / norm) as f32;
        grads.iter_mut().for_each(|g| *g *= by);
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_warms_up_and_comes_down() {
        let s = Schedule { lr: 1.0, warmup: 3, steps: 100 };
        assert_eq!([0, 1, 2, 3].map(|i| s.at(i)), [0.25, 0.5, 0.75, 1.0]);
        assert!((s.at(100) - 0.05).abs() < 1e-12);
        assert!((4..100).all(|i| s.at(i) < s.at(i - 1)));
        assert_eq!(Schedule { lr: 2.0, warmup: 0, steps: 0 }.at(0), 2.0);
    }

    #[test]
    fn adam_finds_the_minimum_of_a_bowl() {
        let (target, mut x, mut adam) = ([1.0f32, -2.0, 0.5], [0.0; 3], Adam::new(3));
        for _ in 0..400 {
            let mut g: Vec<f32> = x.iter().zip(target).map(|(x, t)| 2.0 * (x - t)).collect();
            adam.step(&mut g, 0.02);
            x.iter_mut().zip(&g).for_each(|(x, step)| *x += step);
        }
        assert!(x.iter().zip(target).all(|(x, t)| (x - t).abs() < 1e-2), "{x:?}");
        // The first step is the learning rate along every axis, whatever the gradient's size.
        let mut g = [1e-3f32, -7.0];
        Adam::new(2).step(&mut g, 0.1);
        assert!((g[0] + 0.1).abs() < 1e-5 && (g[1] - 0.1).abs() < 1e-5);
    }

    #[test]
    fn clipping_keeps_the_direction() {
        let mut g = [3.0, 4.0];
        assert_eq!(clip(&mut g, 1.0), 5.0);
        assert!((g[0] - 0.6).abs() < 1e-6 && (g[1] - 0.8).abs() < 1e-6);
        let small = g;
        assert!((clip(&mut g, 2.0) - 1.0).abs() < 1e-6);
        assert_eq!(g, small);
    }
}
