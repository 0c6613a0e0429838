//! The cells of a study, in an order that every machine agrees on.

use super::config::{AS_IS, Config, QuantEntry};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::str::FromStr;

/// The name of the model as it is, among ways of sharing.
pub const NO_SHARING: &str = "none";

/// Where a cell's weights come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Quant {
    /// A file that is there.
    File(PathBuf),
    /// A type that is made from a file.
    Make {
        /// The file.
        from: PathBuf,
        /// The type's name.
        ty: String,
        /// Importance matrix.
        imatrix: Option<PathBuf>,
    },
}

/// One combination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// Names of model, quantisation, way of sharing and cache type: what the report shows.
    pub model: String,
    /// See above.
    pub quant: String,
    /// See above.
    pub sharing: String,
    /// See above.
    pub kv: String,
    /// Where the weights come from.
    pub weights: Quant,
    /// What predictions are compared with.
    pub baseline: PathBuf,
    /// `--share`
    pub share: Option<String>,
    /// `--lisa`
    pub lisa: Option<PathBuf>,
}

impl Cell {
    /// Names of model, quantisation, way of sharing and cache type, which tell it from all other cells of a study.
    pub fn names(&self) -> [&str; 4] {
        [&self.model, &self.quant, &self.sharing, &self.kv]
    }
}

/// All cells of a study: models, then quantisations, cache types and ways of sharing.
pub fn grid(config: &Config) -> Vec<Cell> {
    let mut cells = Vec::new();
    for m in &config.models {
        let baseline = m.baseline.clone().unwrap_or_else(|| m.file.clone());
        let make = |ty: &str, imatrix: Option<PathBuf>| Quant::Make { from: m.file.clone(), ty: ty.into(), imatrix };
        let weights = |q: &QuantEntry| match q {
            QuantEntry::Type(t) if t == AS_IS => Quant::File(m.file.clone()),
            QuantEntry::Type(t) => make(t, None),
            QuantEntry::Table(t) => match (&t.file, &t.ty) {
                (Some(f), _) => Quant::File(f.clone()),
                (None, ty) => make(ty.as_deref().unwrap_or_default(), t.imatrix.clone()),
            },
        };
        let as_is = [QuantEntry::Type(AS_IS.into())];
        let quants = if m.quants.is_empty() { &as_is[..] } else { &m.quants };
        for (quant, weights) in quants.iter().map(|q| (q.name(), weights(q))) {
            for kv in &config.kv {
                let cell = |sharing: &str, share: Option<String>, lisa: Option<PathBuf>| Cell {
                    model: m.name.clone(),
                    quant: quant.clone(),
                    sharing: sharing.into(),
                    kv: kv.clone(),
                    weights: weights.clone(),
                    baseline: baseline.clone(),
                    share,
                    lisa,
                };
                cells.push(cell(NO_SHARING, None, None));
                cells.extend(config.sharings.iter().map(|s| cell(&s.name, s.share.clone(), s.lisa.clone())));
            }
        }
    }
    cells
}

/// One of `n` parts of a grid: `i/n`, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GridPart {
    /// Which part.
    pub i: usize,
    /// Of how many.
    pub n: usize,
}

impl FromStr for GridPart {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let numbers = s.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((i, n)) if 1 <= i && i <= n => Ok(GridPart { i, n }),
            _ => Err(format!("'{s}': expected a part of the grid such as 1/4, counted from 1")),
        }
    }
}

impl GridPart {
    /// Whether cell number `index`, from 0, is in this part.
    pub fn has(&self, index: usize) -> bool {
        index % self.n == self.i - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_once_and_shards_cover_them() {
        let text = "kv = [\"f16\", \"q8_0\"]\n[[model]]\nname = \"a\"\nfile = \"a.gguf\"\nbaseline = \"f.gguf\"\n\
                    quants = [\"Q4_0\", \"as-is\", { file = \"dir/x.gguf\" }]\n[[sharing]]\nname = \"one\"\nshare = \"5\"\n";
        let cells = grid(&Config::parse(text).unwrap());
        assert_eq!(cells.len(), 3 * 2 * 2);
        assert_eq!((cells[1].sharing.as_str(), cells[1].share.as_deref()), ("one", Some("5")));
        assert_eq!(cells[4].weights, Quant::File("a.gguf".into()));
        assert_eq!(cells[11].quant, "x");
        assert!(cells.iter().all(|c| c.baseline == *"f.gguf"));
        let shards: Vec<GridPart> = ["1/3", "2/3", "3/3"].iter().map(|s| s.parse().unwrap()).collect();
        for i in 0..cells.len() {
            assert_eq!(shards.iter().filter(|s| s.has(i)).count(), 1);
        }
        for bad in ["0/3", "4/3", "x", "1", "1/0"] {
            assert!(bad.parse::<GridPart>().is_err(), "{bad}");
        }
    }
}
