//! The LISA extension on real containers: merging, extracting, refusing, converting. Bases are the tiny models of
//! `tests/data/families` and the embedded story model; sidecars are made here.

mod build;
mod convert;
mod merge;
mod refusals;
