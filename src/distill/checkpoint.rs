//! Checkpoints: the state of a run in a GGUF file, to the last bit.

use std::collections::BTreeMap;
use std::io::Write;

use ggml_ext::GgmlType;
use ggml_ext::gguf::{Gguf, GgufWriter, WriteError};
use ggml_ext::lisa::{Activation, Domain, Kind};
use serde::{Deserialize, Serialize};

use super::adam::Adam;
use super::choose::can_take;
use super::dense::DenseModel;
use super::modules::{Module, Modules};
use super::team::Stage;
use super::trainer::State;

/// What a run depends on: settings by name.
pub type Identity = BTreeMap<String, String>;

/// A state to be written, with what a run that goes on from it must agree with.
pub struct Checkpoint<'a> {
    /// The state.
    pub state: &'a State,
    /// See [`super::trainer::identity`].
    pub identity: Identity,
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
        w.str(IDENTITY, &serde_json::to_string(&self.identity).expect("strings"))?;
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

    /// The state in a file of a run of `model` with this `identity`.
    ///
    /// # Errors
    /// What is wrong with the file, or how it differs.
    pub fn read(bytes: &[u8], identity: &Identity, model: &DenseModel) -> Result<State, String> {
        let gguf = Gguf::parse(bytes).map_err(|e| e.to_string())?;
        let str = |key: &str| gguf.str(key).map_err(|e| e.to_string())?.ok_or(format!("key {key} is missing"));
        if gguf.str("general.type").ok().flatten() != Some(TYPE) {
            return Err("not a checkpoint of `lisa-cpp distill`".into());
        }
        let found: Identity = serde_json::from_str(str(IDENTITY)?)
            .map_err(|_| format!("key {IDENTITY} is not a list of settings: of another version of lisa-cpp"))?;
        let differences = differences(&found, identity);
        if !differences.is_empty() {
            return Err(format!("of another run: {}", differences.join("; ")));
        }
        let p: Progress = serde_json::from_str(str(PROGRESS)?).map_err(|e| format!("key {PROGRESS}: {e}"))?;
        let unknown = |what: &str, name: &str| format!("key {PROGRESS}: unknown {what} '{name}'");
        let mut list = Vec::new();
        for e in p.modules {
            let module = Module {
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
            };
            check(&module, &list, model, bytes.len())
                .map_err(|e| format!("key {PROGRESS}: layer {}: {e}", module.layer))?;
            list.push(module);
        }
        let activation = Activation::from_name(&p.activation).ok_or_else(|| unknown("activation", &p.activation))?;
        let domain = Domain::from_name(&p.domain).ok_or_else(|| unknown("domain", &p.domain))?;
        let stage = [Stage::Attention, Stage::EndToEnd].into_iter().find(|s| s.name() == p.stage);
        // The sizes are known to be those of a model in memory; what follows takes no more than the file does.
        let n: usize = list.iter().map(Module::len).sum();
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
        let values = floats(VALUES)?;
        let mut modules = Modules::new(list, activation, domain, f32::from_bits(p.scale));
        modules.values = values;
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

/// The settings in which two runs differ, with both values.
fn differences(found: &Identity, wanted: &Identity) -> Vec<String> {
    let mut names: Vec<&String> = found.keys().chain(wanted.keys()).collect();
    names.sort();
    names.dedup();
    let value = |of: &Identity, name: &String| of.get(name).cloned().unwrap_or_else(|| "nothing".into());
    let differing = names.into_iter().filter(|name| found.get(*name) != wanted.get(*name));
    differing.map(|name| format!("{name} is {} there and {} here", value(found, name), value(wanted, name))).collect()
}

/// Checks that `m` can be a module of `model` beside `others`, in a file of `n_bytes`.
fn check(m: &Module, others: &[Module], model: &DenseModel, n_bytes: usize) -> Result<(), String> {
    let n_layer = model.layers.len();
    if m.layer >= n_layer || others.iter().any(|o| o.layer == m.layer) {
        return Err(format!("expected a layer once, of the {n_layer} of the model"));
    }
    if m.source >= m.layer || !can_take(model, m.layer, m.source) {
        return Err(format!("its source {} is no earlier layer with its heads and window", m.source));
    }
    let shape = &model.layers[m.layer].shape;
    let (found, expected) = ((m.n_head, m.n_head_kv, m.n_embd), (shape.n_head, shape.n_head_kv, model.n_embd));
    if found != expected {
        return Err(format!("heads, key/value heads and width are {found:?}, the model's {expected:?}"));
    }
    let fits = match m.kind {
        Kind::Lisa => !m.comp,
        Kind::Shared => m.rank == 0 && m.n_hidden == 0,
        Kind::Full | Kind::Kv => false,
    };
    if !fits {
        return Err(format!("a module of kind {} has other parts", m.kind));
    }
    if m.rank > shape.head_dim_k || !m.rank.is_multiple_of(2) {
        return Err(format!("rank {}: expected an even number up to {}", m.rank, shape.head_dim_k));
    }
    if m.n_hidden > n_bytes / (8 * m.n_head) {
        return Err(format!("{} hidden units are more than the file has values for", m.n_hidden));
    }
    if m.freq.len() != m.n_head_kv * m.rank / 2 {
        return Err(format!("{} frequencies, expected {}", m.freq.len(), m.n_head_kv * m.rank / 2));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distill::frozen::Precision;
    use crate::distill::start::{Design, student};
    use crate::{Model, ModelParams};

    /// The bytes of a checkpoint whose progress was changed by `damage`.
    fn damaged(state: &State, identity: &Identity, damage: &dyn Fn(&mut serde_json::Value)) -> Vec<u8> {
        let mut bytes = Vec::new();
        Checkpoint { state, identity: identity.clone() }.write(&mut bytes).unwrap();
        let gguf = Gguf::parse(&bytes).unwrap();
        let mut progress: serde_json::Value = serde_json::from_str(gguf.str(PROGRESS).unwrap().unwrap()).unwrap();
        damage(&mut progress);
        let mut out = Vec::new();
        let mut w = GgufWriter::new(&mut out);
        for (key, value) in gguf.metadata() {
            match key == PROGRESS {
                true => w.str(key, &progress.to_string()).unwrap(),
                false => w.value(key, value).unwrap(),
            }
        }
        gguf.tensors().iter().for_each(|t| w.tensor(&t.name, &t.shape, t.ty).unwrap());
        gguf.tensors().iter().for_each(|t| w.data(&t.name, gguf.tensor_data(t)).unwrap());
        w.finish().unwrap();
        out
    }

    #[test]
    fn damaged_checkpoints_are_refused() {
        let model = Model::embedded(ModelParams::default()).unwrap();
        let dense = DenseModel::new(&model, 16, Precision::Exact).unwrap();
        let ids: Vec<u32> = (0..16).collect();
        let state = State::new(student(&dense, &Design::of_two_layers(2), &[&ids]).unwrap());
        let identity = Identity::from([("--lr".to_owned(), "0.1".to_owned()), ("--seed".to_owned(), "1".to_owned())]);
        let whole = damaged(&state, &identity, &|_| ());
        assert_eq!(Checkpoint::read(&whole, &identity, &dense).unwrap(), state);

        let huge = u64::MAX / 2;
        for (field, value) in [
            ("layer", 5),
            ("layer", 3),
            ("source", 2),
            ("source", huge),
            ("n_head", huge),
            ("n_head_kv", 1),
            ("n_embd", huge),
            ("rank", 3),
            ("rank", huge),
            ("n_hidden", 3),
            ("n_hidden", 1 << 40),
            ("n_hidden", huge),
        ] {
            let bytes = damaged(&state, &identity, &|p| p["modules"][0][field] = value.into());
            let message = Checkpoint::read(&bytes, &identity, &dense).unwrap_err();
            assert!(!message.contains('\n'), "{field}: {message}");
        }
        for (field, value) in [("kind", "shared"), ("kind", "full"), ("kind", "x")] {
            let bytes = damaged(&state, &identity, &|p| p["modules"][0][field] = value.into());
            assert!(Checkpoint::read(&bytes, &identity, &dense).is_err(), "{value}");
        }
        let bytes = damaged(&state, &identity, &|p| p["modules"][0]["freq"] = serde_json::json!([1]));
        assert!(Checkpoint::read(&bytes, &identity, &dense).unwrap_err().contains("frequencies"));
        for n in (0..whole.len()).step_by(97) {
            assert!(Checkpoint::read(&whole[..n], &identity, &dense).is_err(), "cut off after {n} bytes");
        }

        let mut other = identity.clone();
        other.insert("--lr".into(), "0.2".into());
        let message = Checkpoint::read(&whole, &other, &dense).unwrap_err();
        assert_eq!(message, "of another run: --lr is 0.1 there and 0.2 here");
    }
}
