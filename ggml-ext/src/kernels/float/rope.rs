//! Rotary position embedding, Su et al. 2021 (arXiv 2104.09864), given the cosines and sines of one position.

use super::simd::Simd;

/// Pairs `(2p, 2p + 1)`; plain Rust, since the shuffles a compiler finds are the ones a hand would write.
#[inline(always)]
pub(super) unsafe fn rope_norm<V: Simd>(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (pairs, _) = x.as_chunks_mut::<2>();
    for ((pair, &c), &s) in pairs.iter_mut().zip(cos).zip(sin) {
        let [a, b] = *pair;
        *pair = [a * c - b * s, a * s + b * c];
    }
}

/// Pairs `(p, p + n / 2)` of the first `n = 2 * cos.len()` elements.
#[inline(always)]
pub(super) unsafe fn rope_neox<V: Simd>(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, rest) = x.split_at_mut(cos.len());
    for (((a, b), &c), &s) in low.iter_mut().zip(rest).zip(cos).zip(sin) {
        (*a, *b) = (*a * c - *b * s, *a * s + *b * c);
    }
}
