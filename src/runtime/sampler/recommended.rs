//! Parameters that a model's file recommends ([`Model::recommended_sampling`](crate::Model::recommended_sampling)), under
//! llama.cpp's names.

use std::str::FromStr;

use super::{SamplerKind, SamplerParams};
use crate::model::RECOMMENDED_PREFIX;
use crate::{Error, Result};

impl SamplerParams {
    /// Takes over one recommendation: the name of its key, without `general.sampling.`, and its value. False for a name that
    /// means nothing here, as a newer converter may write it.
    ///
    /// # Errors
    /// [`Error::Impossible`] naming the key whose value cannot be used.
    pub fn recommend(&mut self, name: &str, value: &str) -> Result<bool> {
        let before = self.clone();
        let found = self.set(name, value).and_then(|found| self.validate().map(|()| found));
        found.map_err(|e| {
            *self = before;
            Error::Impossible(format!("`{RECOMMENDED_PREFIX}{name}` is `{value}`: {e}"))
        })
    }

    fn set(&mut self, name: &str, value: &str) -> Result<bool> {
        match name {
            "sequence" => self.samplers = SamplerKind::parse_names(value)?,
            "top_k" => self.top_k = number(value)?,
            "top_p" => self.top_p = number(value)?,
            "min_p" => self.min_p = number(value)?,
            "xtc_probability" => self.xtc_probability = number(value)?,
            "xtc_threshold" => self.xtc_threshold = number(value)?,
            "temp" => self.temp = number(value)?,
            "penalty_last_n" => self.penalty_last_n = number(value)?,
            "penalty_repeat" => self.penalty_repeat = number(value)?,
            "mirostat" => self.mirostat = number(value)?,
            "mirostat_tau" => self.mirostat_tau = number(value)?,
            "mirostat_eta" => self.mirostat_eta = number(value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// A number, also a whole one that is written with a point.
fn number<T: FromStr>(value: &str) -> Result<T> {
    let whole = value.trim().strip_suffix(".0").unwrap_or(value.trim());
    whole.parse().map_err(|_| Error::Params("expected a number".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reaches_its_field() {
        let mut p = SamplerParams::default();
        for (name, value) in [
            ("sequence", "top_k;temperature"),
            ("top_k", "20"),
            ("top_p", "0.8"),
            ("min_p", "0"),
            ("xtc_probability", "0.5"),
            ("xtc_threshold", "0.2"),
            ("temp", "0.6"),
            ("penalty_last_n", "32"),
            ("penalty_repeat", "1.05"),
            ("mirostat", "2"),
            ("mirostat_tau", "4"),
            ("mirostat_eta", "0.2"),
        ] {
            assert!(p.recommend(name, value).unwrap(), "{name}");
        }
        let want = SamplerParams {
            samplers: vec![SamplerKind::TopK, SamplerKind::Temperature],
            top_k: 20,
            top_p: 0.8,
            min_p: 0.0,
            xtc_probability: 0.5,
            xtc_threshold: 0.2,
            temp: 0.6,
            penalty_last_n: 32,
            penalty_repeat: 1.05,
            mirostat: 2,
            mirostat_tau: 4.0,
            mirostat_eta: 0.2,
            ..SamplerParams::default()
        };
        assert_eq!(p, want);
        assert!(p.recommend("top_k", "64.0").unwrap() && p.top_k == 64);
        assert!(!p.recommend("of_tomorrow", "x").unwrap());
    }

    #[test]
    fn what_cannot_be_used_names_the_key_and_changes_nothing() {
        let mut p = SamplerParams::default();
        for (name, value) in
            [("temp", "array of f32"), ("temp", "nan"), ("top_p", "7"), ("top_k", "1.5"), ("sequence", "top_z")]
        {
            let error = p.recommend(name, value).unwrap_err();
            assert!(matches!(error, Error::Impossible(_)), "{error:?}");
            assert!(error.to_string().starts_with(&format!("`general.sampling.{name}` is `{value}`: ")), "{error}");
        }
        assert_eq!(p, SamplerParams::default());
    }
}
