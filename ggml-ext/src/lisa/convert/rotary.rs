//! The angular frequencies of the base model's rotary position embedding.

use super::ConvertError;
use crate::gguf::split::SplitTensors;
use crate::gguf::{Gguf, GgufError};
use crate::lisa::{Heads, MakeError};
use crate::{GgmlType, blocks};

/// The frequency of every rotation pair of a head, in radians per position (RoPE, arXiv 2104.09864).
///
/// `freq_base` takes the place of the model's own base and of all its stretching.
pub(super) fn frequencies(base: &[Gguf], heads: &Heads, freq_base: Option<f64>) -> Result<Vec<f64>, ConvertError> {
    let refuse =
        |what: String| Err(ConvertError::Map(format!("freq_pairs: {what}; give freq_base, or freq as tensors")));
    let gguf = &base[0];
    let arch = gguf.str("general.architecture").map_err(model)?.unwrap_or_default();
    let key = |name: &str| format!("{arch}.{name}");
    let name = key("rope.dimension_count");
    let n_rot = gguf.u32(&name).map_err(model)?.map_or(heads.key_length, |n| n as usize);
    if n_rot == 0 || !n_rot.is_multiple_of(2) || n_rot > heads.key_length {
        let what = format!("the model rotates {n_rot} values of a head of {} (key {name})", heads.key_length);
        return Err(ConvertError::Map(format!("freq_pairs: {what}, expected an even number of them")));
    }
    if let Some(theta) = freq_base {
        return Ok(plain(theta, n_rot));
    }
    let theta = gguf.f32(&key("rope.freq_base")).map_err(model)?.unwrap_or(10_000.0);
    let name = key("attention.sliding_window");
    if gguf.get(&name).is_some() {
        return refuse(format!("the model has the key {name}, and layers with a window may have another base"));
    }
    let mut all = plain(theta.into(), n_rot);
    let name = key("rope.scaling.type");
    match gguf.str(&name).map_err(model)? {
        None | Some("none" | "linear") => {}
        Some(other) => return refuse(format!("the model stretches its rotation (key {name} is {other:?})")),
    }
    if gguf.str(&name).map_err(model)? != Some("none") {
        let factor = gguf.f32(&key("rope.scaling.factor")).map_err(model)?;
        let factor = factor.or(gguf.f32(&key("rope.scale_linear")).map_err(model)?);
        let factor = factor.filter(|&f| f != 0.0).unwrap_or(1.0);
        all.iter_mut().for_each(|f| *f /= f64::from(factor));
    }
    let tensors = SplitTensors::new(base).map_err(MakeError::Parts)?;
    if tensors.get("rope_factors_long.weight").is_some() {
        return refuse("the model's rotation depends on the context (tensor rope_factors_long.weight)".into());
    }
    if let Some((part, t)) = tensors.get("rope_freqs.weight") {
        if t.ty != GgmlType::F32 || t.n_elements() != all.len() as u64 {
            return refuse(format!("tensor rope_freqs.weight: expected {} divisors of type F32", all.len()));
        }
        let mut divisors = vec![0.0; all.len()];
        blocks::dequantize_row(t.ty, base[part].tensor_data(t), &mut divisors);
        all.iter_mut().zip(divisors).for_each(|(f, d)| *f /= f64::from(d));
    }
    Ok(all)
}

fn plain(theta: f64, n_rot: usize) -> Vec<f64> {
    (0..n_rot / 2).map(|p| theta.powf(-2.0 * p as f64 / n_rot as f64)).collect()
}

fn model(e: GgufError) -> ConvertError {
    ConvertError::Make(MakeError::Model(e.into()))
}
