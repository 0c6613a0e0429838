//! Checkpoints: the state of a run in a GGUF file, to the last bit.

use std::io::Write;

use ggml_ext::GgmlType;
use ggml_ext::gguf::{Gguf, GgufWriter, WriteError};
use ggml_ext::lisa::{Activation, Domain, Kind};
use serde::{Deserialize, Serialize};

use super::adam::Adam;
use super::modules::{Module, Modules};
use super::team::Stage;
use super::trainer::State;

/// A state to be written, with what a run that goes on from it must agree with.
pub struct Checkpoint<'a> {
    /// The state.
    pub state: &'a State,
    /// See [`super::trainer::identity`].
    pub identity: String,
}

const TYPE: &str = "lisa-checkpoint";
const IDENTITY: &str = "distill.identity";
const PROGRESS: &str = "distill.progress";
const VALUES: &str = "values";
const MEANS: &str = "adam.m";
const SQUARES: &str = "adam.v";
const BEST: &str = "best";

/// A state but for its large vectors.
#[derive(Serialize, Deserialize)]
struct Progress {
    stage: String,
    step: usize,
    adam_steps: u64,
    /// The bits of the loss: decimal digits of an infinity do not exist in JSON.
    best: Option<u64>,
    stale: usize,
    tokens: u64,
    activation: String,
    domain: String,
    scale: u32,
    modules: Vec<Entry>,
}

/// A module; numbers of bits where floats must come back as they were.
#[derive(Serialize, Deserialize)]
struct Entry {
    layer: usize,
    source: usize,
    kind: String,
    n_head: usize,
    n_head_kv: usize,
    n_embd: usize,
    rank: usize,
    n_hidden: usize,
    comp: bool,
    freq: Vec<u32>,
}

impl Checkpoint<'_> {
    /// Writes the file.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write<W: Write>(&self, out: W) -> Result<(), WriteError> {
        let s = self.state;
        let entry = |m: &Module| Entry {
            layer: m.layer,
            source: m.source,
            kind: m.kind.name().into(),
            n_head: m.n_head,
            n_head_kv: m.n_head_kv,
            n_embd: m.n_embd,
            rank: m.rank,
            n_hidden: m.n_hidden,
            comp: m.comp,
            freq: m.freq.iter().map(|f| f.to_bits()).collect(),
        };
        let progress = Progress {
            stage: s.stage.name().into(),
            step: s.step,
            adam_steps: s.adam.steps,
            best: s.best.as_ref().map(|b| b.0.to_bits()),
            stale: s.stale,
            tokens: s.tokens,
            activation: s.modules.activation.name().into(),
            domain: s.modules.domain.name().into(),
            scale: s.modules.scale.to_bits(),
            modules: s.modules.iter().map(entry).collect(),
        };
        let mut w = GgufWriter::new(out);
        w.str("general.type", TYPE)?;
        w.str(IDENTITY, &self.identity)?;
        w.str(PROGRESS, &serde_json::to_string(&progress).expect("plain numbers and strings"))?;
        let mut all = vec![(VALUES, &s.modules.values), (MEANS, &s.adam.m), (SQUARES, &s.adam.v)];
        all.extend(s.best.as_ref().map(|b| (BEST, &b.1)));
        // A student without values to train has no tensors.
        all.retain(|(_, x)| !x.is_empty());
        for (name, x) in &all {
            w.tensor(name, &[x.len() as u64], GgmlType::F32)?;
        }
        for (name, x) in &all {
            let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
            w.data(name, &bytes)?;
        }
        w.finish().map(drop)
    }

    /// The state in a file of a run with this `identity`.
    ///
    /// # Errors
    /// What is wrong with the file, or how it differs.
    pub fn read(bytes: &[u8], identity: &str) -> Result<State, String> {
        let gguf = Gguf::parse(bytes).map_err(|e| e.to_string())?;
        let str = |key: &str| gguf.str(key).map_err(|e| e.to_string())?.ok_or(format!("key {key} is missing"));
        if gguf.str("general.type").ok().flatten() != Some(TYPE) {
            return Err("not a checkpoint of `lisa-cpp distill`".into());
        }
        let found = str(IDENTITY)?;
        if found != identity {
            return Err(format!("of another run: it has {found}, this run {identity}"));
        }
        let p: Progress = serde_json::from_str(str(PROGRESS)?).map_err(|e| format!("key {PROGRESS}: {e}"))?;
        let unknown = |what: &str, name: &str| format!("key {PROGRESS}: unknown {what} '{name}'");
        let mut list = Vec::new();
        for e in p.modules {
            list.push(Module {
                layer: e.layer,
                source: e.source,
                kind: Kind::from_name(&e.kind).ok_or_else(|| unknown("kind", &e.kind))?,
                n_head: e.n_head,
                n_head_kv: e.n_head_kv,
                n_embd: e.n_embd,
                rank: e.rank,
                n_hidden: e.n_hidden,
                comp: e.comp,
                freq: e.freq.into_iter().map(f32::from_bits).collect(),
                start: 0,
            });
        }
        let activation = Activation::from_name(&p.activation).ok_or_else(|| unknown("activation", &p.activation))?;
        let domain = Domain::from_name(&p.domain).ok_or_else(|| unknown("domain", &p.domain))?;
        let stage = [Stage::Attention, Stage::EndToEnd].into_iter().find(|s| s.name() == p.stage);
        let mut modules = Modules::new(list, activation, domain, f32::from_bits(p.scale));
        let n = modules.values.len();
        let floats = |name: &str| -> Result<Vec<f32>, String> {
            if n == 0 {
                return Ok(Vec::new());
            }
            let t = gguf.tensors().iter().find(|t| t.name == name).ok_or(format!("tensor {name} is missing"))?;
            let data = gguf.tensor_data(t);
            if t.ty != GgmlType::F32 || data.len() != 4 * n {
                return Err(format!("tensor {name} has shape {:?} of {}, expected [{n}] of F32", t.shape, t.ty.name()));
            }
            Ok(data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
        };
        modules.values = floats(VALUES)?;
        Ok(State {
            modules,
            stage: stage.ok_or_else(|| unknown("stage", &p.stage))?,
            step: p.step,
            adam: Adam { m: floats(MEANS)?, v: floats(SQUARES)?, steps: p.adam_steps },
            best: p.best.map(|b| Ok::<_, String>((f64::from_bits(b), floats(BEST)?))).transpose()?,
            stale: p.stale,
            tokens: p.tokens,
        })
    }
}
