//! The samplers that keep no state: each narrows or rescales the candidates. Formulas are those of the papers cited, with
//! llama.cpp's conventions for ties, `min_keep` and disabling values.

use super::candidates::Candidates;
use super::rng::Mt19937;

/// Keeps the `k` most likely tokens; `k <= 0` keeps all.
pub(super) fn top_k(c: &mut Candidates, k: i32) {
    if k > 0 {
        c.keep_top(k as usize);
    }
}

/// Nucleus sampling (Holtzman et al., 2019): the shortest prefix whose probabilities reach `p`.
pub(super) fn top_p(c: &mut Candidates, p: f32, min_keep: usize) {
    if p >= 1.0 || !c.softmax() {
        return;
    }
    // The nucleus is nearly always short: sort 256, and everything only if they do not reach p.
    let mut n_sorted = if c.is_sorted() { c.len() } else { c.len().min(256) };
    loop {
        let list = c.partly_sorted(n_sorted);
        let mut sum = 0.0;
        let cut = list[..n_sorted].iter().enumerate().position(|(i, t)| {
            sum += t.p;
            sum >= p && i + 1 >= min_keep
        });
        match cut {
            Some(last) => list.truncate(last + 1),
            None if n_sorted < list.len() => {
                n_sorted = list.len();
                continue;
            }
            None => {}
        }
        c.set_sorted(true);
        return;
    }
}

/// Keeps the tokens at least `p` times as likely as the best one.
pub(super) fn min_p(c: &mut Candidates, p: f32, min_keep: usize) {
    if p <= 0.0 {
        return;
    }
    let bar = c.max_logit() + p.ln();
    if c.logits().filter(|&l| l >= bar).count() >= min_keep {
        c.retain_at_least(bar);
    } else {
        c.keep_top(min_keep);
    }
}

/// Locally typical sampling (Meister et al., 2022): the tokens whose surprise is nearest the entropy, until their
/// probabilities exceed `p`.
pub(super) fn typical(c: &mut Candidates, p: f32, min_keep: usize) {
    if p >= 1.0 || !c.softmax() {
        return;
    }
    let list = c.list();
    let entropy: f64 = list.iter().map(|t| f64::from(t.p)).filter(|&p| p > 0.0).map(|p| -p * p.ln()).sum();
    for t in list.iter_mut() {
        t.key = (-f64::from(t.p).ln() - entropy).abs() as f32;
    }
    list.sort_unstable_by(|a, b| a.key.total_cmp(&b.key).then(b.logit.total_cmp(&a.logit)).then(a.id.cmp(&b.id)));
    let mut sum = 0.0;
    let cut = list.iter().enumerate().position(|(i, t)| {
        sum += t.p;
        sum > p && i + 1 >= min_keep
    });
    if let Some(last) = cut {
        list.truncate(last + 1);
    }
    c.set_sorted(false);
}

/// Top-n-sigma (Tang et al., 2024): keeps logits within `n` standard deviations of the maximum.
pub(super) fn top_n_sigma(c: &mut Candidates, n: f32) {
    if n <= 0.0 || c.len() <= 1 {
        return;
    }
    let allowed = c.logits().filter(|&l| l > f32::NEG_INFINITY).map(f64::from);
    let count = allowed.clone().count() as f64;
    if count == 0.0 {
        return;
    }
    let mean = allowed.clone().sum::<f64>() / count;
    let deviation = (allowed.map(|l| (l - mean) * (l - mean)).sum::<f64>() / count).sqrt();
    let bar = (f64::from(c.max_logit()) - f64::from(n) * deviation) as f32;
    // The order is kept, because what falls below the bar was below everything else already.
    c.map(|l| if l < bar { f32::NEG_INFINITY } else { l });
}

/// Exclude top choices: with the given probability, drops all tokens whose probability reaches `threshold` but the least
/// likely of them.
pub(super) fn xtc(c: &mut Candidates, probability: f32, threshold: f32, min_keep: usize, rng: &mut Mt19937) {
    if probability <= 0.0 || threshold > 0.5 || c.len() < 2 {
        return;
    }
    if rng.next_f32() > probability {
        return;
    }
    c.sorted();
    if !c.softmax() {
        return;
    }
    let list = c.list();
    let n_top = list.iter().take_while(|t| t.p >= threshold).count();
    let n_drop = n_top.saturating_sub(1);
    if n_drop > 0 && list.len() - n_drop >= min_keep {
        list.drain(..n_drop);
    }
}

/// Divides the logits by `temp`; `temp <= 0`, or so near it that the logits would overflow, keeps the best token alone.
pub(super) fn temperature(c: &mut Candidates, temp: f32) {
    if temp > 0.0 && (c.max_logit() / temp).is_finite() {
        c.map(|l| l / temp);
    } else {
        c.keep_top(1);
    }
}

/// Dynamic temperature: between `temp - range` and `temp + range`, by how near the entropy is to that of a uniform
/// distribution over the tokens in play.
pub(super) fn dynamic_temperature(c: &mut Candidates, temp: f32, range: f32, exponent: f32) {
    if range <= 0.0 {
        return temperature(c, temp);
    }
    if c.len() <= 1 || !c.softmax() {
        return;
    }
    let (low, high) = ((temp - range).max(0.0), temp + range);
    let list = c.list();
    let entropy: f64 = list.iter().map(|t| f64::from(t.p)).filter(|&p| p > 0.0).map(|p| -p * p.ln()).sum();
    let share = (entropy / (list.len() as f64).ln()).clamp(0.0, 1.0) as f32;
    temperature(c, low + (high - low) * share.powf(exponent));
}

/// Draws by the probabilities; `None` when no token is above -inf.
pub(super) fn draw(c: &mut Candidates, rng: &mut Mt19937) -> Option<usize> {
    if !c.softmax() {
        return None;
    }
    let list = c.list();
    let sum: f64 = list.iter().map(|t| f64::from(t.p)).sum();
    let target = rng.next_f64() * sum;
    let mut run = 0.0;
    let hit = list.iter().position(|t| {
        run += f64::from(t.p);
        run >= target && t.p > 0.0
    });
    hit.or_else(|| list.iter().rposition(|t| t.p > 0.0))
}
