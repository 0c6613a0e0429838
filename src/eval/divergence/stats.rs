//! Statistics over the positions of a comparison, and their text in the layout of `llama-perplexity`.

use super::TokenDivergence;
use serde::Serialize;
use std::fmt;

/// A mean, and its standard error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Measured {
    /// The value.
    pub value: f64,
    /// Its standard error; 0 where there is too little data.
    pub error: f64,
}

/// Where the values of a quantity lie, over all positions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Distribution {
    /// The largest.
    pub maximum: f64,
    /// (percent, the value that so many percent of all do not exceed), from the largest percentage to the smallest.
    pub percentiles: Vec<(f64, f64)>,
    /// The value in the middle.
    pub median: f64,
    /// The smallest.
    pub minimum: f64,
}

/// A sum of values and of their squares.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    sum: f64,
    squares: f64,
}

impl Sums {
    fn add(&mut self, x: f64) {
        self.sum += x;
        self.squares += x * x;
    }

    fn mean(&self, n: usize) -> Measured {
        if n == 0 {
            return Measured { value: 0.0, error: 0.0 };
        }
        let value = self.sum / n as f64;
        let variance = self.squares / n as f64 - value * value;
        let error = if variance > 0.0 && n > 10 { (variance / (n - 1) as f64).sqrt() } else { 0.0 };
        Measured { value, error }
    }
}

/// Sums over all positions compared so far, and the values whose distribution is asked for.
#[derive(Debug, Clone, Default)]
pub struct DivergenceStats {
    nll: Sums,
    nll_base: Sums,
    nll_products: f64,
    kld: Sums,
    p_diff: Sums,
    p_diff_squares: Sums,
    n_same_top: usize,
    klds: Vec<f32>,
    p_diffs: Vec<f32>,
}

const KLD_PERCENTS: [f64; 8] = [99.9, 99.0, 95.0, 90.0, 10.0, 5.0, 1.0, 0.1];
const P_PERCENTS: [f64; 10] = [99.9, 99.0, 95.0, 90.0, 75.0, 25.0, 10.0, 5.0, 1.0, 0.1];

impl DivergenceStats {
    /// Adds a position.
    pub fn add(&mut self, t: &TokenDivergence) {
        let p_diff = (-t.nll).exp() - (-t.nll_base).exp();
        self.nll.add(t.nll);
        self.nll_base.add(t.nll_base);
        self.nll_products += t.nll * t.nll_base;
        self.kld.add(t.kld);
        self.p_diff.add(p_diff);
        self.p_diff_squares.add(p_diff * p_diff);
        self.n_same_top += usize::from(t.same_top);
        self.klds.push(t.kld as f32);
        self.p_diffs.push(p_diff as f32);
    }

    /// Positions compared.
    pub fn count(&self) -> usize {
        self.klds.len()
    }

    /// The model's perplexity.
    pub fn ppl(&self) -> Measured {
        exp(self.nll.mean(self.count()))
    }

    /// The baseline's perplexity.
    pub fn ppl_base(&self) -> Measured {
        exp(self.nll_base.mean(self.count()))
    }

    /// `ln(PPL / PPL of the baseline)`; its error knows that both read the same text.
    pub fn ln_ratio(&self) -> Measured {
        let (a, b) = (self.nll.mean(self.count()), self.nll_base.mean(self.count()));
        Measured { value: a.value - b.value, error: difference_error(a.error, b.error, self.covariance()) }
    }

    /// `PPL / PPL of the baseline`.
    pub fn ratio(&self) -> Measured {
        exp(self.ln_ratio())
    }

    /// `PPL - PPL of the baseline`.
    pub fn difference(&self) -> Measured {
        let (a, b) = (self.ppl(), self.ppl_base());
        let covariance = a.value * b.value * self.covariance();
        Measured { value: a.value - b.value, error: difference_error(a.error, b.error, covariance) }
    }

    /// Correlation of the two models' losses, -1 to 1.
    pub fn correlation(&self) -> f64 {
        let (a, b) = (self.nll.mean(self.count()), self.nll_base.mean(self.count()));
        self.covariance() / (a.error * b.error)
    }

    /// Mean Kullback-Leibler divergence, in nats.
    pub fn kld(&self) -> Measured {
        self.kld.mean(self.count())
    }

    /// Mean change of the probability of the token that follows.
    pub fn delta_p(&self) -> Measured {
        self.p_diff.mean(self.count())
    }

    /// Root of the mean square of that change.
    pub fn rms_delta_p(&self) -> Measured {
        let square = self.p_diff_squares.mean(self.count());
        let value = square.value.sqrt();
        Measured { value, error: if value > 0.0 { 0.5 / value * square.error } else { 0.0 } }
    }

    /// Fraction of positions where both find the same token most likely.
    pub fn same_top(&self) -> Measured {
        let n = self.count() as f64;
        let value = self.n_same_top as f64 / n;
        Measured { value, error: (value * (1.0 - value) / (n - 1.0)).sqrt() }
    }

    /// The distribution of the divergence.
    pub fn kld_distribution(&self) -> Distribution {
        distribution(&self.klds, &KLD_PERCENTS)
    }

    /// The distribution of the change of the probability of the token that follows.
    pub fn delta_p_distribution(&self) -> Distribution {
        distribution(&self.p_diffs, &P_PERCENTS)
    }

    /// Covariance of the two mean losses.
    fn covariance(&self) -> f64 {
        let n = self.count() as f64;
        if self.count() < 10 {
            return 0.0;
        }
        (self.nll_products / n - self.nll.sum / n * (self.nll_base.sum / n)) / (n - 1.0)
    }

    /// All of it as JSON: fractions, not percent.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "n_scored": self.count(),
            "ppl": self.ppl(),
            "ppl_base": self.ppl_base(),
            "correlation": self.correlation(),
            "ln_ppl_ratio": self.ln_ratio(),
            "ppl_ratio": self.ratio(),
            "ppl_difference": self.difference(),
            "kld": self.kld(),
            "kld_distribution": self.kld_distribution(),
            "delta_p": self.delta_p(),
            "delta_p_distribution": self.delta_p_distribution(),
            "rms_delta_p": self.rms_delta_p(),
            "same_top_p": self.same_top(),
        })
    }

    /// The heading of [`DivergenceStats::row`].
    pub const HEADING: &str = "chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              \
                               Δp RMS            Same top p";

    /// The figures after `n_windows` windows, in one line.
    pub fn row(&self, n_windows: usize) -> String {
        let (ppl, ratio, kld) = (self.ppl(), self.ln_ratio(), self.kld());
        let (rms, top) = (percent(self.rms_delta_p()), percent(self.same_top()));
        format!(
            "{n_windows:4}    {:9.4} ± {:9.4}    {:10.5} ± {:10.5}    {:10.5} ± {:10.5}    {:6.3} ± {:6.3} %    {:6.3} ± {:6.3} %",
            ppl.value,
            ppl.error,
            ratio.value,
            ratio.error,
            kld.value,
            kld.error,
            rms.value,
            rms.error,
            top.value,
            top.error
        )
    }
}

impl fmt::Display for DivergenceStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, name: &str, m: Measured| {
            writeln!(f, "{name:30}: {:10.6} ± {:10.6}", m.value, m.error)
        };
        writeln!(f, "====== Perplexity statistics ======")?;
        line(f, "Mean PPL(Q)", self.ppl())?;
        line(f, "Mean PPL(base)", self.ppl_base())?;
        writeln!(f, "Cor(ln(PPL(Q)), ln(PPL(base))): {:6.2}%", 100.0 * self.correlation())?;
        line(f, "Mean ln(PPL(Q)/PPL(base))", self.ln_ratio())?;
        line(f, "Mean PPL(Q)/PPL(base)", self.ratio())?;
        line(f, "Mean PPL(Q)-PPL(base)", self.difference())?;
        writeln!(f, "\n====== KL divergence statistics ======")?;
        let kld = self.kld();
        writeln!(f, "Mean    KLD: {:10.6} ± {:10.6}", kld.value, kld.error)?;
        for (name, value) in self.kld_distribution().lines() {
            writeln!(f, "{name:7} KLD: {value:10.6}")?;
        }
        writeln!(f, "\n====== Token probability statistics ======")?;
        let (mean, rms, top) = (percent(self.delta_p()), percent(self.rms_delta_p()), percent(self.same_top()));
        writeln!(f, "Mean    Δp: {:6.3} ± {:5.3} %", mean.value, mean.error)?;
        for (name, value) in self.delta_p_distribution().lines() {
            writeln!(f, "{name:7} Δp: {:6.3}%", 100.0 * value)?;
        }
        writeln!(f, "RMS Δp    : {:6.3} ± {:5.3} %", rms.value, rms.error)?;
        writeln!(f, "Same top p: {:6.3} ± {:5.3} %", top.value, top.error)
    }
}

impl Distribution {
    /// Names and values, from the largest to the smallest.
    fn lines(&self) -> Vec<(String, f64)> {
        let mut lines = vec![("Maximum".to_owned(), self.maximum)];
        for &(percent, value) in &self.percentiles {
            if percent < 50.0 && lines.iter().all(|l| l.0 != "Median") {
                lines.push(("Median".into(), self.median));
            }
            lines.push((format!("{percent:4.1}%"), value));
        }
        lines.push(("Minimum".into(), self.minimum));
        lines
    }
}

/// `e^x`, its error to first order.
fn exp(x: Measured) -> Measured {
    let value = x.value.exp();
    Measured { value, error: value * x.error }
}

fn percent(x: Measured) -> Measured {
    Measured { value: 100.0 * x.value, error: 100.0 * x.error }
}

/// The standard error of a difference of two values with a covariance. Rounding can make the variance of equal ones negative.
fn difference_error(a: f64, b: f64, covariance: f64) -> f64 {
    (a * a + b * b - 2.0 * covariance).max(0.0).sqrt()
}

fn distribution(values: &[f32], percents: &[f64]) -> Distribution {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    let at = |fraction: f64| -> f64 {
        let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
        let place = fraction * last as f64;
        let below = place as usize;
        let part = place - below as f64;
        (1.0 - part) * f64::from(sorted[below]) + part * f64::from(sorted[(below + 1).min(last)])
    };
    Distribution {
        maximum: at(1.0),
        percentiles: percents.iter().map(|&p| (p, at(p / 100.0))).collect(),
        median: at(0.5),
        minimum: at(0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(tokens: &[(f64, f64, f64, bool)]) -> DivergenceStats {
        let mut s = DivergenceStats::default();
        for &(nll, nll_base, kld, same_top) in tokens {
            s.add(&TokenDivergence { nll, nll_base, kld, same_top });
        }
        s
    }

    #[test]
    fn means_by_hand() {
        let s = stats(&[(1.0, 1.0, 0.0, true), (2.0, 1.0, 0.5, false)]);
        assert!((s.ppl().value - 1.5f64.exp()).abs() < 1e-12);
        assert!((s.ppl_base().value - 1f64.exp()).abs() < 1e-12);
        assert!((s.ratio().value - 0.5f64.exp()).abs() < 1e-12);
        assert_eq!(s.kld().value, 0.25);
        assert_eq!(s.same_top().value, 0.5);
        let d = (-2f64).exp() - (-1f64).exp();
        assert!((s.delta_p().value - d / 2.0).abs() < 1e-12);
        assert!((s.rms_delta_p().value - (d * d / 2.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn the_error_of_a_ratio_knows_that_the_losses_go_together() {
        // The losses of one model are those of the other plus a constant: the ratio has no error.
        let s = stats(&(0..20).map(|i| (f64::from(i) + 0.5, f64::from(i), 0.1, true)).collect::<Vec<_>>());
        assert!((s.correlation() - 1.0).abs() < 1e-9);
        assert!(s.ln_ratio().error < 1e-6 && (s.ln_ratio().value - 0.5).abs() < 1e-12);
        assert!(s.ppl().error > 0.0);
    }

    #[test]
    fn percentiles_lie_between_values() {
        let d = distribution(&[4.0, 1.0, 3.0, 2.0, 5.0], &[90.0, 25.0]);
        assert_eq!((d.maximum, d.median, d.minimum), (5.0, 3.0, 1.0));
        assert!((d.percentiles[0].1 - 4.6).abs() < 1e-9);
        assert_eq!(d.percentiles[1], (25.0, 2.0));
    }

    #[test]
    fn the_text_has_every_line_of_the_layout() {
        let s = stats(&(0..200).map(|i| (f64::from(i % 7), f64::from(i % 5), 0.1, i % 3 == 0)).collect::<Vec<_>>());
        let text = s.to_string();
        for line in
            ["Mean PPL(Q)                   : ", "99.9%   KLD: ", " 0.1%   KLD: ", "Median  Δp: ", "75.0%   Δp: "]
        {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        assert!(s.row(3).starts_with("   3    "));
    }
}
