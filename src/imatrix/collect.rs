//! Measuring: an observer of the forward pass that sums the squares of what meets each matrix.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use super::{Entry, Imatrix};
use crate::compute::{Linear, Observer, Stack};
use crate::model::Model;

/// Sums for every matrix of a model's layers. Each tensor has sums of its own, also where several share an operand.
pub struct Collector {
    sums: HashMap<Box<str>, Mutex<Sums>>,
}

/// Double precision: single loses digits over long texts.
struct Sums {
    /// A row of columns for each matrix: one, or those of all experts or heads.
    squares: Vec<f64>,
    /// Rows of activations that each matrix met.
    rows: Vec<u64>,
}

impl Sums {
    fn new(n_matrices: usize, n_cols: usize) -> Mutex<Self> {
        Mutex::new(Self { squares: vec![0.0; n_matrices * n_cols], rows: vec![0; n_matrices] })
    }
}

impl Collector {
    /// A collector for `model`; with `output` for its output head too.
    pub fn new(model: &Model, output: bool) -> Self {
        let decoder = model.decoder();
        let layers = decoder.matrices().filter(|l| l.name.starts_with("blk."));
        let all = layers.chain(output.then(|| decoder.head()));
        let all = all.map(|l| (l.name.clone(), Sums::new(1, l.weight.cols())));
        let stacks = decoder.stacks().map(|(s, n)| (s.name.clone(), Sums::new(n, s.weight.cols())));
        Self { sums: all.chain(stacks).collect() }
    }

    /// What has been measured so far; matrices that nothing met are left out.
    pub fn entries(&self) -> BTreeMap<String, Entry> {
        let mut entries = BTreeMap::new();
        for (name, sums) in &self.sums {
            let sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
            if sums.rows.iter().any(|&n| n > 0) {
                entries.insert(name.to_string(), Entry { squares: sums.squares.clone(), counts: sums.rows.clone() });
            }
        }
        entries
    }

    /// [`Collector::entries`] with their provenance.
    pub fn to_imatrix(&self, dataset: Option<&str>, chunk_size: u32) -> Imatrix {
        Imatrix { entries: self.entries(), datasets: dataset.map(str::to_owned).into_iter().collect(), chunk_size }
    }

    fn add(&self, name: &str, matrix: usize, rows: &[f32]) {
        let Some(sums) = self.sums.get(name) else { return };
        let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
        let n = sums.squares.len() / sums.rows.len();
        let squares = &mut sums.squares[matrix * n..(matrix + 1) * n];
        for row in rows.chunks_exact(n) {
            for (sum, &x) in squares.iter_mut().zip(row) {
                *sum += f64::from(x) * f64::from(x);
            }
        }
        sums.rows[matrix] += (rows.len() / n) as u64;
    }
}

impl Observer for Collector {
    fn operand(&self, linear: &Linear, rows: &[f32]) {
        self.add(&linear.name, 0, rows);
    }

    fn stack_operand(&self, stack: &Stack, expert: usize, rows: &[f32]) {
        self.add(&stack.name, expert, rows);
    }
}
