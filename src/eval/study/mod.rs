//! A study: quality, speed and memory of every combination of models, quantisations, cache types and ways of sharing attention,
//! one record each, and a report over the records.
//!
//! [`Config`] says what is combined, [`grid`] lists the cells, [`quality`] and [`speed`] measure one, [`Record`]s are kept a JSON
//! object a line, and [`report`] makes the page and the table. Who runs the cells, and in which processes, is left to the caller.

mod config;
mod grid;
mod hash;
mod measure;
mod record;
pub mod report;

pub use config::{Config, ModelEntry, Quality, QuantEntry, QuantTable, SharingEntry, Speed};
pub use grid::{Cell, GridPart, Quant, grid};
pub use hash::{Hashes, text as hash_text};
pub use measure::{Job, quality, speed};
pub use record::{Record, Status, join, read_records};
