//! Mirostat 1 and 2 (Basu et al., 2020): keeps the surprise of the chosen tokens near a target, tau bits.

use super::candidates::Candidates;
use super::rng::Mt19937;

/// Tokens from which version 1 estimates the exponent of Zipf's law.
const N_ESTIMATE: usize = 100;

pub(super) struct Mirostat {
    version: u32,
    tau: f32,
    eta: f32,
    n_vocab: usize,
    /// The largest surprise allowed, in bits; the controlled variable.
    mu: f32,
}

impl Mirostat {
    pub fn new(version: u32, tau: f32, eta: f32, n_vocab: usize) -> Self {
        Mirostat { version, tau, eta, n_vocab, mu: 2.0 * tau }
    }

    pub fn reset(&mut self) {
        self.mu = 2.0 * self.tau;
    }

    /// Chooses a token and moves mu towards the target; `None` when no token is above -inf.
    pub fn choose(&mut self, c: &mut Candidates, rng: &mut Mt19937) -> Option<usize> {
        c.sorted();
        if !c.softmax() {
            return None;
        }
        let keep = if self.version == 1 {
            self.zipf_cut(c)
        } else {
            c.list().iter().take_while(|t| -t.p.log2() <= self.mu).count()
        };
        c.keep_top(keep.max(1));
        c.softmax();
        let list = c.list();
        let chosen = draw_normalised(list.iter().map(|t| t.p), rng);
        let surprise = -list[chosen].p.log2();
        self.mu -= self.eta * (surprise - self.tau);
        Some(chosen)
    }

    /// Version 1: the k at which a Zipf distribution fitted to the most likely tokens has an expected surprise of mu.
    fn zipf_cut(&self, c: &mut Candidates) -> usize {
        let list = c.list();
        let (mut tb, mut tt) = (0.0f32, 0.0f32);
        for (i, pair) in list.windows(2).take(N_ESTIMATE - 1).enumerate() {
            if pair[1].p <= 0.0 {
                break;
            }
            let t = ((i + 2) as f32 / (i + 1) as f32).ln();
            tb += t * (pair[0].p / pair[1].p).ln();
            tt += t * t;
        }
        if tt == 0.0 {
            return 1;
        }
        let s = tb / tt;
        let epsilon = s - 1.0;
        let k = ((epsilon * self.mu.exp2()) / (1.0 - (self.n_vocab as f32).powf(-epsilon))).powf(1.0 / s);
        // A cast saturates and turns NaN (s = 0 or 1: a flat or exactly Zipfian head) into 0.
        if k.is_nan() { list.len() } else { k as usize }
    }
}

/// An index drawn by probabilities that sum to 1; nothing is drawn when there is only one.
fn draw_normalised(p: impl ExactSizeIterator<Item = f32> + Clone, rng: &mut Mt19937) -> usize {
    let last = p.len().saturating_sub(1);
    if last == 0 {
        return 0;
    }
    let total: f64 = p.clone().map(f64::from).sum();
    let target = rng.next_f64();
    let mut run = 0.0;
    p.take(last)
        .position(|p| {
            run += f64::from(p) / total;
            run >= target && p > 0.0
        })
        .unwrap_or(last)
}
