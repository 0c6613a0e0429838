//! Nanbeige 4.2: Llama's layers, through all of which tokens pass several times, with keys and values of their own each time. Between one round
//! and the next the residual stream is normalised as before the output head.

use super::Family;
use super::builder::Builder;
use super::config::{Keys, MAX_LAYERS};
use super::decoder::{Decoder, Rounds};
use super::llama;
use crate::Result;
use crate::attention::RopeStyle;

/// The registry row.
pub const FAMILY: Family = Family::new("nanbeige", build).with_rounds(rounds);

fn rounds(keys: &Keys) -> Result<usize> {
    const ROUNDS: &str = "num_loops";
    match keys.count(ROUNDS)? {
        None => Ok(1),
        Some(_) => keys.required(ROUNDS, MAX_LAYERS / keys.n_layer()?),
    }
}

fn build(b: &mut Builder) -> Result<Decoder> {
    let normed = !b.keys.flag("skip_loop_final_norm")?.unwrap_or(false);
    let rounds = Rounds { n: rounds(b.keys)?, normed };
    Ok(Decoder { rounds, ..llama::build(b, RopeStyle::Norm)? })
}
