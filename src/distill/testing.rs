//! Finite differences, for the tests of every gradient.

/// Reproducible values around 0 of standard deviation `scale`.
pub fn noise(seed: u64, n: usize, scale: f32) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    // A sum of uniform numbers is near enough to a normal one.
    (0..n).map(|_| ((0..6).map(|_| rng.f32()).sum::<f32>() - 3.0) * scale * 2f32.sqrt()).collect()
}

/// Checks `grad` against finite differences of `f` at `x`: along random directions, each over a stretch of the coordinates, so that
/// every one of them counts in one of them.
pub fn check(x: &[f32], grad: &[f32], f: impl Fn(&[f32]) -> f64) {
    const STRETCHES: usize = 40;
    const STEP: f32 = 2e-3;
    assert_eq!(x.len(), grad.len());
    let norm = |g: &[f32]| g.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    let floor = norm(grad) / (x.len() as f64).sqrt();
    assert!(floor > 0.0, "no gradient at all");
    let mut rng = fastrand::Rng::with_seed(1);
    let stretch = x.len().div_ceil(STRETCHES);
    for start in (0..x.len()).step_by(stretch) {
        let part = start..(start + stretch).min(x.len());
        let signs: Vec<f32> = part.clone().map(|_| if rng.bool() { 1.0 } else { -1.0 }).collect();
        let moved = |by: f32| {
            let mut y = x.to_vec();
            y[part.clone()].iter_mut().zip(&signs).for_each(|(y, s)| *y += by * s);
            f(&y)
        };
        let found = (moved(STEP) - moved(-STEP)) / (2.0 * f64::from(STEP));
        let told: f64 = grad[part.clone()].iter().zip(&signs).map(|(g, s)| f64::from(g * s)).sum();
        let allowed = 0.01 * norm(&grad[part.clone()]) + 0.05 * floor;
        assert!((found - told).abs() < allowed, "{part:?}: gradient {told}, finite difference {found}");
    }
}
