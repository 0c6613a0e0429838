//! What names a base model whatever its quantisation.

use sha2::{Digest, Sha256};

use super::LisaError;
use crate::GgmlType;
use crate::blocks;

/// Hex SHA-256 over the little-endian F32 values of `blk.0.attn_norm.weight`, `blk.1...`, ..., `output_norm.weight`, with a layer's
/// `post_attention_norm` where it has no norm before attention, and its `ffn_norm` where it has no attention: norms are not quantised, so all
/// quantisations of a model have one fingerprint. Layers without attention and network (DeciLM's) tell nothing. Where no norm has weights, as
/// in OLMo, all such models have one fingerprint. `tensor` looks a tensor up by name.
///
/// # Errors
/// [`LisaError::MissingTensor`] where some norms have weights or the file has no embeddings either, and [`LisaError::Tensor`] for a norm that
/// is not in a float type.
pub fn fingerprint<'a>(
    n_layer: usize,
    tensor: impl Fn(&str) -> Option<(GgmlType, &'a [u8])>,
) -> Result<String, LisaError> {
    let mut hash = Sha256::new();
    let is_there = |name: &String| tensor(name).is_some();
    let is_model = tensor("token_embd.weight").is_some();
    let norm = |i: usize| {
        let name = |part: &str| format!("blk.{i}.{part}.weight");
        let has = |part: &&str| is_there(&name(part));
        let attends = !is_model || ["attn_v", "attn_qkv"].iter().any(has);
        let otherwise = if attends { Some("attn_norm") } else { Some("ffn_norm").filter(has) };
        ["attn_norm", "post_attention_norm"].into_iter().find(has).or(otherwise).map(name)
    };
    let last = ["output_norm.weight", "token_embd_norm.weight"];
    let last = last.into_iter().find(|name| tensor(name).is_some()).unwrap_or(last[0]);
    let norms: Vec<String> = (0..n_layer).filter_map(norm).chain([last.into()]).collect();
    let without_weights = is_model && !norms.iter().any(is_there);
    for name in if without_weights { vec![] } else { norms } {
        let Some((ty, bytes)) = tensor(&name) else { return Err(LisaError::MissingTensor { name }) };
        if !ty.is_float() {
            let what = format!("type {}, expected a float type for the fingerprint", ty.name());
            return Err(LisaError::Tensor { name, what });
        }
        if ty == GgmlType::F32 {
            hash.update(bytes);
            continue;
        }
        let mut row = vec![0f32; bytes.len() / ty.block_bytes()];
        blocks::dequantize_row(ty, bytes, &mut row);
        row.iter().for_each(|x| hash.update(x.to_le_bytes()));
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}
