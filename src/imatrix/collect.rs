//! Measuring: an observer of the forward pass that sums the squares of what meets each matrix.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use super::{Entry, Imatrix};
use crate::compute::{Linear, Observer};
use crate::model::Model;

/// Sums for every matrix of a model's layers. Each tensor has sums of its own, also where several share an operand.
pub struct Collector {
    sums: HashMap<Box<str>, Mutex<Sums>>,
}

/// Double precision: single loses digits over long texts.
struct Sums {
    squares: Vec<f64>,
    rows: u64,
}

impl Collector {
    /// A collector for `model`; with `output` for its output head too.
    pub fn new(model: &Model, output: bool) -> Self {
        let decoder = model.decoder();
        let layers = decoder.matrices().filter(|l| l.name.starts_with("blk."));
        let all = layers.chain(output.then(|| decoder.head()));
        let sums = |l: &Linear| Mutex::new(Sums { squares: vec![0.0; l.weight.cols()], rows: 0 });
        Self { sums: all.map(|l| (l.name.clone(), sums(l))).collect() }
    }

    /// What has been measured so far; matrices that nothing met are left out.
    pub fn entries(&self) -> BTreeMap<String, Entry> {
        let mut entries = BTreeMap::new();
        for (name, sums) in &self.sums {
            let sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
            if sums.rows > 0 {
                entries.insert(name.to_string(), Entry { squares: sums.squares.clone(), counts: vec![sums.rows] });
            }
        }
        entries
    }

    /// [`Collector::entries`] with their provenance.
    pub fn to_imatrix(&self, dataset: Option<&str>, chunk_size: u32) -> Imatrix {
        Imatrix { entries: self.entries(), datasets: dataset.map(str::to_owned).into_iter().collect(), chunk_size }
    }
}

impl Observer for Collector {
    fn operand(&self, linear: &Linear, rows: &[f32]) {
        let Some(sums) = self.sums.get(&linear.name) else { return };
        let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
        let n = sums.squares.len();
        for row in rows.chunks_exact(n) {
            for (sum, &x) in sums.squares.iter_mut().zip(row) {
                *sum += f64::from(x) * f64::from(x);
            }
        }
        sums.rows += (rows.len() / n) as u64;
    }
}
