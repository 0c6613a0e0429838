//! Sidecars: matching one with a base model, writing one, and getting one back out of a merged model.

use std::io::Write;

use super::{
    ADAPTER_TYPE, Geometry, KEY_PREFIX, KEYS, LisaError, LisaMeta, MakeError, SIDECAR_TYPE, VERSION_KEY, check,
    check_tensors, fingerprint, is_lisa_name, is_sidecar,
};
use crate::gguf::split::SplitTensors;
use crate::gguf::{ALIGNMENT_KEY, Gguf, GgufWriter, TensorInfo, WriteError};

/// Before the keys of a sidecar that are not of the extension (its name, its licence), in a merged model.
const FOREIGN_PREFIX: &str = "lisa.sidecar.";

/// Checks that a plan is made for the model whose parts are `base`: number of layers, heads, fingerprint. The model may
/// be merged already.
///
/// # Errors
/// [`MakeError::Sidecar`] names what differs, [`MakeError::Model`] what the model lacks.
pub fn check_base(meta: &LisaMeta, base: &[Gguf]) -> Result<Geometry, MakeError> {
    // Before the fingerprint: another number of layers says more than another number in hexadecimal.
    let geometry = Geometry::read(head(base)?).map_err(MakeError::Model)?;
    check::check_plan(meta, &geometry).map_err(MakeError::Sidecar)?;
    let (geometry, expected) = identify(base)?;
    if meta.fingerprint != expected {
        let found = meta.fingerprint.clone();
        return Err(MakeError::Sidecar(LisaError::Fingerprint { found, expected }));
    }
    Ok(geometry)
}

/// The sizes and the [`fingerprint`] of the model whose parts are `base`.
///
/// # Errors
/// [`MakeError::Parts`] for parts that do not belong together, [`MakeError::Model`] for what the model lacks.
pub fn identify(base: &[Gguf]) -> Result<(Geometry, String), MakeError> {
    let geometry = Geometry::read(head(base)?).map_err(MakeError::Model)?;
    let tensors = SplitTensors::new(base)?;
    let bytes = |name: &str| tensors.get(name).map(|(part, t)| (t.ty, base[part].tensor_data(t)));
    let print = fingerprint(geometry.layers.len(), bytes).map_err(MakeError::Model)?;
    Ok((geometry, print))
}

/// Checks that a file is a sidecar, for a model of the architecture `arch`: the first of the checks, as all others say
/// little about a file that is none.
///
/// # Errors
/// Names the key.
pub fn check_container(sidecar: &Gguf, arch: &str) -> Result<(), LisaError> {
    if !is_sidecar(sidecar) {
        let what =
            format!("not a LISA sidecar: general.type is not {SIDECAR_TYPE:?} and adapter.type {ADAPTER_TYPE:?}");
        return Err(LisaError::Container { what });
    }
    let found = sidecar.str("general.architecture")?;
    let found = found.ok_or(LisaError::MissingKey { key: "general.architecture" })?;
    if found != arch {
        return Err(LisaError::Architecture { found: found.into(), expected: arch.into() });
    }
    Ok(())
}

/// Checks that `sidecar` is one, for a model of the architecture `arch`, and that its tensors are those that `meta` asks
/// for and no others. [`check_base`] checks the rest.
///
/// # Errors
/// Names the key or the tensor.
pub fn check_sidecar(meta: &LisaMeta, geometry: &Geometry, arch: &str, sidecar: &Gguf) -> Result<(), LisaError> {
    check_container(sidecar, arch)?;
    if let Some(t) = sidecar.tensors().iter().find(|t| !is_lisa_name(&t.name)) {
        let what = "not a tensor of the extension, expected blk.N.lisa_*".into();
        return Err(LisaError::Tensor { name: t.name.clone(), what });
    }
    check_tensors(meta, geometry, with_data(sidecar))
}

/// The part that holds a model's metadata.
pub(super) fn head<'g, 'a>(parts: &'g [Gguf<'a>]) -> Result<&'g Gguf<'a>, MakeError> {
    let none = || MakeError::Model(LisaError::Container { what: "no file given, expected a model".into() });
    parts.first().ok_or_else(none)
}

/// All tensors of a file with their bytes.
pub(super) fn with_data<'g>(gguf: &'g Gguf) -> impl Iterator<Item = (&'g TensorInfo, &'g [u8])> + Clone {
    gguf.tensors().iter().map(|t| (t, gguf.tensor_data(t)))
}

/// Writes a sidecar for a model of the architecture `arch`; of each tensor name, shape, type and bytes are used. Checks
/// nothing: see [`check_tensors`].
///
/// # Errors
/// As the calls of [`GgufWriter`].
pub fn write_sidecar<'a, W: Write>(
    arch: &str,
    meta: &LisaMeta,
    tensors: impl IntoIterator<Item = (&'a TensorInfo, &'a [u8])> + Clone,
    out: W,
) -> Result<(), WriteError> {
    let mut w = begin(arch, out)?;
    meta.write(&mut w)?;
    finish(w, tensors)
}

/// Gets the sidecar back that was merged into a model: the same keys and the same bytes in its tensors.
///
/// # Errors
/// A model without the extension, or one whose keys and tensors contradict each other; a failure of `out`.
pub fn extract<W: Write>(merged: &[Gguf], out: W) -> Result<(), MakeError> {
    SplitTensors::new(merged)?;
    let head = head(merged)?;
    let model = MakeError::Model;
    if is_sidecar(head) {
        return Err(model(LisaError::Container { what: "is a sidecar already, expected a merged model".into() }));
    }
    let meta = LisaMeta::read(head).map_err(model)?.ok_or_else(|| {
        model(LisaError::Container { what: format!("not a merged model: key {VERSION_KEY} is missing") })
    })?;
    let geometry = Geometry::read(head).map_err(model)?;
    let tensors = merged.iter().flat_map(with_data).filter(|(t, _)| is_lisa_name(&t.name));
    check_tensors(&meta, &geometry, tensors.clone()).map_err(model)?;
    let arch = head.str("general.architecture").map_err(|e| model(e.into()))?.unwrap_or_default();
    let mut w = begin(arch, out)?;
    for (key, value) in head.metadata() {
        if let Some(key) = key.strip_prefix(FOREIGN_PREFIX) {
            w.value(key, value)?;
        }
    }
    meta.write(&mut w)?;
    for (key, value) in head.metadata() {
        if key.starts_with(KEY_PREFIX) && !key.starts_with(FOREIGN_PREFIX) && !KEYS.contains(&key) {
            w.value(key, value)?;
        }
    }
    Ok(finish(w, tensors)?)
}

fn begin<W: Write>(arch: &str, out: W) -> Result<GgufWriter<W>, WriteError> {
    let mut w = GgufWriter::new(out);
    w.str("general.architecture", arch)?;
    w.str("general.type", SIDECAR_TYPE)?;
    w.str("adapter.type", ADAPTER_TYPE)?;
    Ok(w)
}

fn finish<'a, W: Write>(
    mut w: GgufWriter<W>,
    tensors: impl IntoIterator<Item = (&'a TensorInfo, &'a [u8])> + Clone,
) -> Result<(), WriteError> {
    for (t, _) in tensors.clone() {
        w.tensor(&t.name, &t.shape, t.ty)?;
    }
    for (t, bytes) in tensors {
        w.data(&t.name, bytes)?;
    }
    w.finish().map(drop)
}

/// Adds to a merged model what a sidecar holds beyond the keys that [`LisaMeta`] knows: later keys of the extension under
/// their names, the rest behind a prefix, so that [`extract`] can give all of it back.
pub(super) fn write_other_keys<W: Write>(sidecar: &Gguf, w: &mut GgufWriter<W>) -> Result<(), WriteError> {
    const CONTAINER: [&str; 4] = ["general.architecture", "general.type", "adapter.type", ALIGNMENT_KEY];
    for (key, value) in sidecar.metadata() {
        if CONTAINER.contains(&key) || KEYS.contains(&key) {
            continue;
        }
        match key.starts_with(KEY_PREFIX) {
            true => w.value(key, value)?,
            false => w.value(&format!("{FOREIGN_PREFIX}{key}"), value)?,
        }
    }
    Ok(())
}
