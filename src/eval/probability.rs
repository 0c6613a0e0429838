//! From logits to log-probabilities.

use ggml_ext::kernels::Kernels;

/// `ln(sum(exp(logits)))`: what is subtracted from a logit to make it a log-probability.
pub fn log_sum_exp(kernels: &Kernels, logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !max.is_finite() {
        return f64::from(max);
    }
    let mut buffer = [0f32; 4096];
    let mut sum = 0.0;
    for chunk in logits.chunks(buffer.len()) {
        let part = &mut buffer[..chunk.len()];
        part.copy_from_slice(chunk);
        sum += f64::from(kernels.float.exp_sub_sum(part, max));
    }
    f64::from(max) + sum.ln()
}

/// The `n` largest logits as (id, logit), largest first; of equal ones the smaller id first.
pub fn top(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    if n < all.len() {
        if n > 0 {
            all.select_nth_unstable_by(n - 1, order);
        }
        all.truncate(n);
    }
    all.sort_unstable_by(order);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_sum_exp_of_every_tier() {
        let logits: Vec<f32> = (0..10_001).map(|i| ((i * 7919) % 997) as f32 * 0.03 - 12.0).collect();
        let exact = logits.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
        for kernels in Kernels::available() {
            assert!((log_sum_exp(kernels, &logits) - exact).abs() < 1e-5, "{:?}", kernels.tier);
            assert_eq!(log_sum_exp(kernels, &[1000.0]), 1000.0);
            assert_eq!(log_sum_exp(kernels, &[f32::NEG_INFINITY]), f64::NEG_INFINITY);
        }
    }

    #[test]
    fn the_largest_in_order() {
        let logits = [0.5, 2.0, -1.0, 2.0, 7.0];
        assert_eq!(top(&logits, 3), [(4, 7.0), (1, 2.0), (3, 2.0)]);
        assert_eq!(top(&logits, 9).len(), 5);
        assert!(top(&logits, 0).is_empty());
    }
}
