//! The report of a study: a page that needs nothing else, and a table for other programs.

mod analysis;
mod bars;
mod csv;
mod page;
mod scatter;
mod svg;
mod tables;

pub use analysis::is_analysis;
pub use csv::csv;
pub use page::html;

use super::{Record, Status};

/// The cells of one model with one type of cache.
pub struct Group<'a> {
    /// The model's name.
    pub model: String,
    /// The cache's type.
    pub kv: String,
    /// Names of quantisations, in the grid's order.
    pub quants: Vec<String>,
    /// Names of ways of sharing, in the grid's order.
    pub sharings: Vec<String>,
    records: Vec<&'a Record>,
}

impl<'a> Group<'a> {
    /// The groups of `records`, of cells that were measured.
    pub fn all(records: &'a [Record]) -> Vec<Group<'a>> {
        let mut groups: Vec<Group> = Vec::new();
        for r in records.iter().filter(|r| r.status == Status::Ok) {
            let c = &r.cell;
            let same = groups.iter().position(|g| g.model == c.model && g.kv == c.kv);
            let i = same.unwrap_or_else(|| {
                let (model, kv) = (c.model.clone(), c.kv.clone());
                groups.push(Group { model, kv, quants: Vec::new(), sharings: Vec::new(), records: Vec::new() });
                groups.len() - 1
            });
            add_name(&mut groups[i].quants, &c.quant);
            add_name(&mut groups[i].sharings, &c.sharing);
            groups[i].records.push(r);
        }
        groups
    }

    /// The cell with that quantisation and way of sharing.
    pub fn find(&self, quant: &str, sharing: &str) -> Option<&'a Record> {
        self.records.iter().find(|r| r.cell.quant == quant && r.cell.sharing == sharing).copied()
    }

    /// All its cells.
    pub fn records(&self) -> &[&'a Record] {
        &self.records
    }

    /// The number of the way of sharing of `record`: its series in figures.
    pub fn series(&self, record: &Record) -> usize {
        self.sharings.iter().position(|s| *s == record.cell.sharing).unwrap_or(0)
    }
}

fn add_name(names: &mut Vec<String>, name: &str) {
    if names.iter().all(|n| n != name) {
        names.push(name.into());
    }
}

/// Benchmarks and the figures there are of each, in the order of the records.
fn task_metrics(records: &[Record]) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    for tasks in records.iter().filter_map(|r| r.quality.get("tasks")?.as_object()) {
        for (task, metrics) in tasks {
            for metric in metrics.as_object().into_iter().flatten().filter(|m| m.1.is_object()) {
                let name = (task.clone(), metric.0.clone());
                if !all.contains(&name) {
                    all.push(name);
                }
            }
        }
    }
    all
}

/// Names of the tests of speed, in the order of the records.
fn tests(records: &[Record]) -> Vec<String> {
    let mut all = Vec::new();
    for tests in records.iter().filter_map(|r| r.speed.get("tests")?.as_array()) {
        tests.iter().filter_map(|t| t["test"].as_str()).for_each(|name| add_name(&mut all, name));
    }
    all
}
