//! The norms between the parts of a model.

use ggml_ext::kernels::float::FloatKernels;

/// RMSNorm (arXiv 1910.07467), `x / sqrt(mean(x^2) + eps) * weight`; or LayerNorm (arXiv 1607.06450), the same of `x - mean(x)`, with a bias or
/// without.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// One factor per element.
    pub weight: Box<[f32]>,
    /// What is added at last.
    pub bias: Option<Box<[f32]>>,
    /// Whether the mean is taken off first.
    pub centred: bool,
    /// The epsilon, where it is not that of the model's other norms.
    pub eps: Option<f32>,
}

impl Norm {
    /// RMSNorm.
    pub fn rms(weight: Box<[f32]>) -> Self {
        Self { weight, bias: None, centred: false, eps: None }
    }

    /// Either without weights, of `n` values.
    pub fn plain(n: usize, centred: bool) -> Self {
        Self { weight: vec![1.0; n].into(), bias: None, centred, eps: None }
    }

    /// `out = norm(x)`. `eps`: that of the model's norms.
    pub fn apply(&self, k: &FloatKernels, x: &[f32], eps: f32, out: &mut [f32]) {
        let eps = self.eps.unwrap_or(eps);
        if self.centred {
            let mean = mean(x);
            out.iter_mut().zip(x).for_each(|(out, x)| *out = x - mean);
            k.rms_norm_in_place(out, &self.weight, eps);
        } else {
            k.rms_norm(x, &self.weight, eps, out);
        }
        if let Some(bias) = &self.bias {
            k.add_assign(out, bias);
        }
    }

    /// `x = norm(x)`. `eps`: that of the model's norms.
    pub fn apply_in_place(&self, k: &FloatKernels, x: &mut [f32], eps: f32) {
        let eps = self.eps.unwrap_or(eps);
        if self.centred {
            let mean = mean(x);
            x.iter_mut().for_each(|x| *x -= mean);
        }
        k.rms_norm_in_place(x, &self.weight, eps);
        if let Some(bias) = &self.bias {
            k.add_assign(x, bias);
        }
    }

    /// Factors on the result.
    pub fn scale(&mut self, factor: f32) {
        self.weight.iter_mut().chain(self.bias.iter_mut().flat_map(|b| b.iter_mut())).for_each(|w| *w *= factor);
    }
}

/// The mean, summed in a fixed order.
pub fn mean(x: &[f32]) -> f32 {
    let (parts, rest) = x.as_chunks::<16>();
    let mut sums = [0.0f32; 16];
    for part in parts {
        sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
    }
    (sums.iter().sum::<f32>() + rest.iter().sum::<f32>()) / x.len().max(1) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use ggml_ext::kernels::Kernels;

    #[test]
    fn layer_norm_is_that_of_its_definition() {
        let x: Vec<f32> = (0..37).map(|i| 5.0 + (i as f32 * 0.7).sin()).collect();
        let weight: Box<[f32]> = (0..37).map(|i| 1.0 + i as f32 / 50.0).collect();
        let bias: Box<[f32]> = (0..37).map(|i| i as f32 / 10.0).collect();
        let wide: Vec<f64> = x.iter().map(|&x| x.into()).collect();
        let mean = wide.iter().sum::<f64>() / 37.0;
        let variance = wide.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 37.0;
        let mut norm = Norm { weight: weight.clone(), bias: Some(bias.clone()), centred: true, eps: None };
        for factor in [1.0, 3.0] {
            let mut out = vec![0.0; 37];
            norm.apply(&Kernels::detect().float, &x, 0.01, &mut out);
            let mut in_place = x.clone();
            norm.apply_in_place(&Kernels::detect().float, &mut in_place, 0.01);
            assert_eq!(in_place, out);
            for i in 0..37 {
                let want = (wide[i] - mean) / (variance + 0.01).sqrt() * f64::from(weight[i]) + f64::from(bias[i]);
                assert!((f64::from(out[i]) - factor * want).abs() < 2e-5, "{i}: {} for {}", out[i], factor * want);
            }
            norm.scale(3.0);
        }
    }
}
