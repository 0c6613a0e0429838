//! Least squares.

/// Ridge, of the mean of the diagonal: enough to keep directions that the data hardly have from being made up.
const RIDGE: f64 = 1e-3;

/// The `w` that make `x w` nearest to `y` over the rows of `x`, each of `n` values, in the least squares sense; `y` may have several
/// columns, its rows in the order of those of `x`. The result has a row of `n` per column of `y`.
pub fn ridge(x: &[f32], y: &[f32], n: usize) -> Vec<f32> {
    let rows = x.len() / n;
    let m = y.len() / rows;
    let mut a = vec![0.0f64; n * n];
    let mut b = vec![0.0f64; m * n];
    for (x, y) in x.chunks_exact(n).zip(y.chunks_exact(m)) {
        for (i, &xi) in x.iter().enumerate() {
            let row = &mut a[i * n..i * n + i + 1];
            row.iter_mut().zip(x).for_each(|(a, &xj)| *a += f64::from(xi) * f64::from(xj));
        }
        for (b, &y) in b.chunks_exact_mut(n).zip(y) {
            b.iter_mut().zip(x).for_each(|(b, &x)| *b += f64::from(y) * f64::from(x));
        }
    }
    let mean = (0..n).map(|i| a[i * n + i]).sum::<f64>() / n as f64;
    (0..n).for_each(|i| a[i * n + i] += RIDGE * mean.max(f64::MIN_POSITIVE));
    cholesky(&mut a, n);
    b.chunks_exact_mut(n).for_each(|b| solve(&a, n, b));
    b.into_iter().map(|x| x as f32).collect()
}

/// The lower triangle of the symmetric `a` becomes its Cholesky factor.
fn cholesky(a: &mut [f64], n: usize) {
    for i in 0..n {
        let (before, rest) = a.split_at_mut(i * n);
        let row = &mut rest[..n];
        for j in 0..i {
            let other = &before[j * n..j * n + j + 1];
            let sum: f64 = row[..j].iter().zip(other).map(|(a, b)| a * b).sum();
            row[j] = (row[j] - sum) / other[j];
        }
        let sum: f64 = row[..i].iter().map(|a| a * a).sum();
        row[i] = (row[i] - sum).max(f64::MIN_POSITIVE).sqrt();
    }
}

/// Solves with a Cholesky factor, in place.
fn solve(l: &[f64], n: usize, b: &mut [f64]) {
    for i in 0..n {
        let sum: f64 = l[i * n..i * n + i].iter().zip(&*b).map(|(l, b)| l * b).sum();
        b[i] = (b[i] - sum) / l[i * n + i];
    }
    for i in (0..n).rev() {
        b[i] /= l[i * n + i];
        let (head, x) = (i, b[i]);
        b[..head].iter_mut().zip(&l[i * n..i * n + i]).for_each(|(b, l)| *b -= l * x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distill::testing::noise;

    #[test]
    fn finds_the_map_that_made_the_data() {
        let (n, m, rows) = (7, 3, 400);
        let (x, w) = (noise(1, rows * n, 1.0), noise(2, m * n, 1.0));
        let y: Vec<f32> = x
            .chunks_exact(n)
            .flat_map(|x| w.chunks_exact(n).map(|w| w.iter().zip(x).map(|(a, b)| a * b).sum()).collect::<Vec<f32>>())
            .collect();
        let found = ridge(&x, &y, n);
        assert!(found.iter().zip(&w).all(|(a, b)| (a - b).abs() < 0.01), "{found:?} {w:?}");
    }
}
