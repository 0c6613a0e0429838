//! Which matrix gets which type: llama.cpp's rules, so that a file made here has the types of one made there.
//!
//! The output head, the value projections and the ends of the feed-forward networks suffer most from few bits, above all in
//! the first and the last layers; the recipes spend their bits accordingly.

use super::Recipe;
use ggml_ext::GgmlType;
use ggml_ext::GgmlType::{IQ2_S, IQ2_XXS, IQ3_S, IQ3_XXS, MXFP4, Q2_K, Q3_K, Q4_1, Q4_K, Q5_1, Q5_K, Q6_K, Q8_0};

/// What a matrix does, as far as the rules care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Role {
    Output,
    Embedding,
    /// Value projections, also those fused with others.
    Value,
    Key,
    Query,
    AttentionOutput,
    Up,
    Gate,
    Down,
    Other,
}

impl Role {
    pub fn of(name: &str) -> Self {
        let has = |part| name.contains(part);
        match name {
            "output.weight" => Role::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Role::Embedding,
            _ if has("attn_qkv.weight") || has("attn_kv_b.weight") || has("attn_v.weight") => Role::Value,
            _ if has("attn_k.weight") => Role::Key,
            _ if has("attn_q.weight") => Role::Query,
            _ if has("attn_output.weight") => Role::AttentionOutput,
            _ if has("ffn_up") => Role::Up,
            _ if has("ffn_gate") => Role::Gate,
            _ if has("ffn_down") => Role::Down,
            _ => Role::Other,
        }
    }
}

/// What the rules ask about the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    pub arch: String,
    pub n_layer: usize,
    pub n_expert: usize,
    /// Query heads per key/value head.
    pub n_gqa: usize,
    /// Value projections.
    pub n_value: usize,
    /// The embedding is the output head too.
    pub tied: bool,
    pub has_imatrix: bool,
}

impl Facts {
    /// Models of about 70 billion parameters, whose value projections are small and shared by many heads.
    fn is_70b(&self) -> bool {
        match self.arch.as_str() {
            "llama" => self.n_layer == 80 && self.n_gqa != 1,
            "qwen2" | "deci" | "olmo" => self.n_layer == 80,
            "jais2" => self.n_layer == 68,
            _ => false,
        }
    }
}

/// The type for a matrix of this shape; `i` is its place among those of its role.
pub(super) fn choose(recipe: Recipe, role: Role, i: usize, shape: &[u64], m: &Facts) -> GgmlType {
    use Recipe as R;
    let base = recipe.base();
    let falcon = m.arch == "falcon";
    match role {
        Role::Output => head(recipe, shape[0], falcon),
        Role::Embedding if m.tied => head(recipe, shape[0], falcon),
        _ if recipe == R::MXFP4_MOE => {
            if shape.get(2).is_some_and(|&n| n > 1) {
                MXFP4
            } else {
                Q8_0
            }
        }
        Role::Embedding => match recipe {
            R::IQ1_S | R::IQ1_M | R::IQ2_XXS | R::IQ2_XS => Q2_K,
            R::IQ2_S | R::IQ2_M | R::IQ3_XXS => IQ3_S,
            R::TQ1_0 | R::TQ2_0 | R::Q2_0 => Q4_K,
            _ => base,
        },
        _ if matches!(recipe, R::IQ1_S | R::IQ1_M | R::IQ2_XXS | R::IQ2_XS | R::IQ2_S | R::IQ2_M) => {
            lowest(recipe, role, i, m)
        }
        Role::Value => {
            let ty = match recipe {
                R::Q2_K if m.n_gqa < 4 => Q3_K,
                R::Q2_K | R::Q2_K_S if m.n_gqa >= 4 => Q4_K,
                R::Q3_K_M => {
                    if i < 2 {
                        Q5_K
                    } else {
                        Q4_K
                    }
                }
                R::Q3_K_L => Q5_K,
                R::IQ3_XXS | R::IQ3_XS | R::IQ3_S if m.n_gqa >= 4 => Q4_K,
                R::IQ3_XXS if !m.has_imatrix => IQ3_S,
                R::IQ3_M => Q4_K,
                R::IQ4_NL | R::IQ4_XS if m.n_gqa >= 4 => Q5_K,
                R::Q4_K_M | R::Q5_K_M if deserves_more(i, m.n_value) => Q6_K,
                R::Q4_K_S if i < 4 => Q5_K,
                _ => base,
            };
            match ty {
                _ if m.n_expert == 8 => Q8_0,
                Q3_K | Q4_K if m.is_70b() => Q5_K,
                ty => ty,
            }
        }
        Role::Key if m.n_expert == 8 => Q8_0,
        Role::Key | Role::Query => match recipe {
            R::IQ3_XS => IQ3_XXS,
            R::IQ3_XXS => IQ2_S,
            _ => base,
        },
        Role::Up | Role::Gate if recipe == R::IQ3_XS && (m.n_layer / 8..7 * m.n_layer / 8).contains(&i) => IQ3_XXS,
        Role::Down => {
            let n = m.n_layer;
            match recipe {
                R::Q2_K => Q3_K,
                R::IQ3_XXS if !m.has_imatrix => {
                    if i < n / 8 {
                        Q4_K
                    } else {
                        Q3_K
                    }
                }
                R::IQ3_M if i < n / 8 || m.n_expert == 8 && deserves_more(i, n) => Q4_K,
                R::Q2_K_S if i < n / 8 => Q4_K,
                R::Q3_K_M if i < n / 16 => Q5_K,
                R::Q3_K_M if !falcon || deserves_more(i, n) => Q4_K,
                R::Q3_K_L => {
                    if falcon {
                        Q4_K
                    } else {
                        Q5_K
                    }
                }
                R::Q4_K_M if falcon && i >= n / 16 => {
                    if deserves_more(i, n) {
                        Q5_K
                    } else {
                        Q4_K
                    }
                }
                R::Q4_K_M if falcon => Q6_K,
                R::Q4_K_M | R::Q5_K_M if deserves_more(i, n) => Q6_K,
                R::IQ4_NL | R::IQ4_XS if i < n / 8 && !m.has_imatrix => Q5_K,
                R::Q4_K_S if i < n / 8 && !falcon => Q5_K,
                // With an importance matrix only: without one these types do worse here than the base.
                R::Q4_0 if i < n / 8 && m.has_imatrix => Q4_1,
                R::Q5_0 if i < n / 8 && m.has_imatrix => Q5_1,
                _ => base,
            }
        }
        Role::AttentionOutput if falcon => {
            if recipe == R::Q3_K_L {
                Q4_K
            } else {
                base
            }
        }
        Role::AttentionOutput if m.n_expert == 8 => match recipe {
            R::Q2_K | R::Q3_K_S | R::Q3_K_M | R::IQ4_NL | R::IQ4_XS | R::Q4_K_S | R::Q4_K_M => Q5_K,
            R::IQ3_XXS | R::IQ3_XS | R::IQ3_S | R::IQ3_M => Q5_K,
            _ => base,
        },
        Role::AttentionOutput => match recipe {
            R::Q2_K => Q3_K,
            R::IQ3_XXS => IQ3_S,
            R::Q3_K_M | R::IQ3_M => Q4_K,
            R::Q3_K_L => Q5_K,
            _ => base,
        },
        Role::Up | Role::Gate | Role::Other => base,
    }
}

/// The type for a matrix within a layer where two bits or fewer are the base.
fn lowest(recipe: Recipe, role: Role, i: usize, m: &Facts) -> GgmlType {
    use Recipe as R;
    let better = if matches!(recipe, R::IQ2_S | R::IQ2_M) { IQ3_S } else { Q2_K };
    match role {
        Role::Value if m.n_gqa >= 4 || m.n_expert >= 4 => Q4_K,
        Role::Value => better,
        Role::Key if m.n_expert == 8 => Q4_K,
        Role::Down if i < m.n_layer / 8 => better,
        Role::AttentionOutput if m.n_expert == 8 => Q5_K,
        Role::AttentionOutput => match recipe {
            R::IQ1_S | R::IQ1_M => IQ2_XXS,
            R::IQ2_S | R::IQ2_M => IQ3_S,
            _ => recipe.base(),
        },
        _ => recipe.base(),
    }
}

/// The type of the output head.
fn head(recipe: Recipe, n_cols: u64, falcon: bool) -> GgmlType {
    use Recipe as R;
    let base = recipe.base();
    match recipe {
        R::Q8_0 | R::MXFP4_MOE => Q8_0,
        _ if falcon || !n_cols.is_multiple_of(base.block_len() as u64) => Q8_0,
        R::IQ1_S | R::IQ1_M | R::IQ2_XXS | R::IQ2_XS | R::IQ2_S | R::IQ2_M | R::IQ3_XXS => Q5_K,
        _ => Q6_K,
    }
}

/// Whether matrices of a type, other than the head and the embedding, are of no use unless quantised by importance.
pub(super) fn needs_importance(ty: GgmlType, recipe: Option<Recipe>) -> bool {
    use GgmlType::{IQ1_M, IQ1_S, IQ2_XS};
    match ty {
        IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS => true,
        Q2_K => recipe == Some(Recipe::Q2_K_S),
        _ => false,
    }
}

/// The first and the last eighth of the layers, and every third between.
fn deserves_more(i: usize, n: usize) -> bool {
    i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2
}

/// The type for rows that do not divide into blocks of `ty`: one of shorter blocks and about as many bits, or F16. As in
/// llama.cpp; `ty` itself where they divide.
pub fn fallback(ty: GgmlType, n_cols: u64) -> GgmlType {
    use GgmlType::{IQ1_M, IQ1_S, IQ2_XS, IQ4_XS, Q2_0, TQ1_0, TQ2_0};
    let fits = |ty: GgmlType| n_cols.is_multiple_of(ty.block_len() as u64);
    if fits(ty) {
        return ty;
    }
    let shorter = match ty {
        IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ4_XS => GgmlType::IQ4_NL,
        TQ1_0 | TQ2_0 | Q2_0 | Q2_K | Q3_K => GgmlType::Q4_0,
        Q4_K => GgmlType::Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        ty => ty,
    };
    if fits(shorter) { shorter } else { GgmlType::F16 }
}

/// Parts of the names of tensors that stay as they are: small ones that routes, positions, convolutions and mixing weights hang on.
const KEPT: [&str; 36] = [
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
    "token_types.weight",
];

/// Whether a tensor is a matrix that may be quantised at all.
pub(super) fn is_quantizable(name: &str, shape: &[u64]) -> bool {
    let is_matrix = shape.iter().skip(1).any(|&d| d > 1);
    is_matrix
        && name.ends_with("weight")
        && name != "position_embd.weight"
        && !KEPT.iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_bits_go_to_the_ends_and_every_third_between() {
        let chosen: Vec<usize> = (0..32).filter(|&i| deserves_more(i, 32)).collect();
        assert_eq!(chosen, [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
        assert_eq!((0..5).filter(|&i| deserves_more(i, 5)).collect::<Vec<_>>(), [2, 4]);
    }

    #[test]
    fn rows_that_do_not_divide_get_shorter_blocks() {
        assert_eq!(fallback(Q4_K, 512), Q4_K);
        assert_eq!(fallback(Q4_K, 576), GgmlType::Q5_0);
        assert_eq!(fallback(Q6_K, 576), Q8_0);
        assert_eq!(fallback(GgmlType::IQ4_XS, 96), GgmlType::IQ4_NL);
        assert_eq!(fallback(Q4_K, 100), GgmlType::F16);
        assert_eq!(fallback(GgmlType::Q4_0, 100), GgmlType::F16);
    }

    #[test]
    fn norms_vectors_and_routers_stay() {
        assert!(is_quantizable("blk.0.ffn_up.weight", &[64, 64]));
        assert!(is_quantizable("blk.0.ffn_up_exps.weight", &[64, 1, 8]));
        for (name, shape) in [
            ("blk.0.attn_norm.weight", &[64, 2][..]),
            ("blk.0.attn_q.bias", &[64, 2]),
            ("blk.0.ffn_gate_inp.weight", &[64, 8]),
            ("output.weight", &[64, 1]),
        ] {
            assert!(!is_quantizable(name, shape), "{name}");
        }
    }
}
