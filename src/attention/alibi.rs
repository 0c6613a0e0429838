//! Attention with linear biases (ALiBi, arXiv 2108.12409): in place of positions, scores fall with the distance between query and key, in each
//! head at a slope of its own.

/// The paper's `max_bias`, which most models have and few files say.
pub const USUAL_MAX_BIAS: f32 = 8.0;

/// What a score of each of `n_head` heads loses for every position between query and key: powers of two, of which that of the last head is
/// `2^-max_bias`. Where there is no power of two of heads, those beyond the greatest one that there is take what lies half-way between the first
/// slopes, as published.
pub fn slopes(n_head: usize, max_bias: f32) -> Box<[f32]> {
    let n = n_head.checked_ilog2().map_or(1, |log| 1 << log);
    let slope = |steps: usize, of: usize| (-max_bias * steps as f32 / of as f32).exp2();
    (0..n_head).map(|h| if h < n { slope(h + 1, n) } else { slope(2 * (h - n) + 1, 2 * n) }).collect()
}

/// Takes off `scores` of a query at `pos` with the keys from position `first` on what a head of this `slope` loses.
pub fn subtract_distances(scores: &mut [f32], slope: f32, first: usize, pos: usize) {
    // Positions are far below 2^24: differences are exact.
    let nearest = first as f32 - pos as f32;
    scores.iter_mut().enumerate().for_each(|(i, score)| *score += slope * (nearest + i as f32));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_paper() {
        assert_eq!(*slopes(8, 8.0), [1, 2, 3, 4, 5, 6, 7, 8].map(|i| 0.5f32.powi(i)));
        assert_eq!(slopes(12, 8.0)[8..], [0.5f32, 1.5, 2.5, 3.5].map(|i| 0.5f32.powf(i)));
        assert_eq!(*slopes(2, 4.0), [0.25, 0.0625]);
    }

    #[test]
    fn scores_fall_with_distance() {
        let mut scores = [1.0; 3];
        subtract_distances(&mut scores, 0.25, 7, 9);
        assert_eq!(scores, [0.5, 0.75, 1.0]);
    }
}
