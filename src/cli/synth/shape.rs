//! What a random model consists of: the shapes of known models, and the tensors and keys that follow from a shape.

use clap::ValueEnum;
use ggml_ext::GgmlType;
use ggml_ext::gguf::{GgufWriter, WriteError};
use ggml_ext::lisa::{Activation, Domain, Kind, LayerMeta, LisaMeta, Part, Provenance};
use lisa_cpp::quantize::fallback;
use std::io::Write;

/// Models whose shape is known by name.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
#[value(rename_all = "verbatim")]
#[allow(missing_docs)]
pub enum Preset {
    #[value(name = "llama2-7b")]
    Llama2_7b,
    #[value(name = "llama2-13b")]
    Llama2_13b,
    #[value(name = "llama3-8b")]
    Llama3_8b,
    #[value(name = "tinyllama-1.1b")]
    TinyLlama,
    #[value(name = "smollm2-135m")]
    SmolLm2,
    #[value(name = "qwen2.5-0.5b")]
    Qwen25,
    #[value(name = "granite-3.1-1b-a400m")]
    GraniteMoe,
    #[value(name = "gpt-oss-20b")]
    GptOss,
}

/// Hyper-parameters of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// `general.architecture`.
    pub arch: &'static str,
    /// Decoder layers.
    pub n_layer: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Query heads.
    pub n_head: usize,
    /// Key/value heads.
    pub n_head_kv: usize,
    /// Length of a head, unless the heads together are as wide as the residual stream.
    pub head_dim: Option<usize>,
    /// Width of the feed-forward network.
    pub n_ff: usize,
    /// Tokens in the vocabulary.
    pub n_vocab: usize,
    /// Context of the metadata.
    pub n_ctx: usize,
    /// RoPE's frequency base.
    pub freq_base: f32,
    /// RMSNorm's epsilon.
    pub norm_eps: f32,
    /// The output head is the embedding.
    pub tied: bool,
    /// Biases on queries, keys and values.
    pub qkv_bias: bool,
    /// Sliding window of every second layer.
    pub window: Option<usize>,
    /// Biases everywhere else too, sinks for all heads, and the second norm's name as in gpt-oss.
    pub gpt_oss: bool,
    /// Networks of a layer, and how many of them a token meets, where there is more than one.
    pub experts: Option<[usize; 2]>,
    /// Other keys of the architecture.
    pub factors: &'static [(&'static str, f32)],
}

impl Preset {
    /// The model's published configuration.
    pub fn shape(self) -> Shape {
        let llama2 = Shape {
            arch: "llama",
            n_layer: 32,
            n_embd: 4096,
            n_head: 32,
            n_head_kv: 32,
            head_dim: None,
            n_ff: 11_008,
            n_vocab: 32_000,
            n_ctx: 4096,
            freq_base: 10_000.0,
            norm_eps: 1e-5,
            tied: false,
            qkv_bias: false,
            window: None,
            gpt_oss: false,
            experts: None,
            factors: &[],
        };
        match self {
            Self::Llama2_7b => llama2,
            Self::Llama2_13b => Shape { n_layer: 40, n_embd: 5120, n_head: 40, n_head_kv: 40, n_ff: 13_824, ..llama2 },
            Self::Llama3_8b => {
                Shape { n_head_kv: 8, n_ff: 14_336, n_vocab: 128_256, n_ctx: 8192, freq_base: 500_000.0, ..llama2 }
            }
            Self::TinyLlama => Shape { n_layer: 22, n_embd: 2048, n_head_kv: 4, n_ff: 5632, n_ctx: 2048, ..llama2 },
            Self::SmolLm2 => Shape {
                n_layer: 30,
                n_embd: 576,
                n_head: 9,
                n_head_kv: 3,
                n_ff: 1536,
                n_vocab: 49_152,
                n_ctx: 8192,
                freq_base: 100_000.0,
                tied: true,
                ..llama2
            },
            Self::Qwen25 => Shape {
                arch: "qwen2",
                n_layer: 24,
                n_embd: 896,
                n_head: 14,
                n_head_kv: 2,
                n_ff: 4864,
                n_vocab: 151_936,
                n_ctx: 32_768,
                freq_base: 1_000_000.0,
                norm_eps: 1e-6,
                tied: true,
                qkv_bias: true,
                ..llama2
            },
            Self::GraniteMoe => Shape {
                arch: "granitemoe",
                n_layer: 24,
                n_embd: 1024,
                n_head: 16,
                n_head_kv: 8,
                n_ff: 512,
                n_vocab: 49_155,
                n_ctx: 131_072,
                freq_base: 1_500_000.0,
                norm_eps: 1e-6,
                tied: true,
                experts: Some([32, 8]),
                factors: &[
                    ("embedding_scale", 12.0),
                    ("residual_scale", 0.22),
                    ("attention.scale", 0.015_625),
                    ("logit_scale", 6.0),
                ],
                ..llama2
            },
            Self::GptOss => Shape {
                arch: "gpt-oss",
                n_layer: 24,
                n_embd: 2880,
                n_head: 64,
                n_head_kv: 8,
                head_dim: Some(64),
                n_ff: 2880,
                n_vocab: 201_088,
                n_ctx: 131_072,
                freq_base: 150_000.0,
                qkv_bias: true,
                window: Some(128),
                gpt_oss: true,
                experts: Some([32, 4]),
                ..llama2
            },
        }
    }
}

/// Tokens that every vocabulary here has: three special ones and the 256 bytes.
pub const MIN_VOCAB: usize = 259;

impl Shape {
    /// Length of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.n_embd / self.n_head)
    }

    /// That the numbers belong together; the message names the flags.
    pub fn check(&self) -> Result<(), String> {
        let (head, kv) = (self.n_head, self.n_head_kv);
        if self.head_dim.is_none() && !self.n_embd.is_multiple_of(2 * head) {
            return Err(format!("--n-embd {}: expected a multiple of twice --n-head {head}", self.n_embd));
        }
        if !head.is_multiple_of(kv) {
            return Err(format!("--n-head-kv {kv}: expected a divisor of --n-head {head}"));
        }
        if self.n_vocab < MIN_VOCAB {
            return Err(format!("--n-vocab {}: expected at least {MIN_VOCAB}", self.n_vocab));
        }
        Ok(())
    }
}

/// Which layers take their attention from the layer before them, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Substitution {
    /// How many.
    pub n_layer: usize,
    /// `lisa` or `shared`.
    pub kind: Kind,
    /// Values per low-rank head.
    pub rank: usize,
    /// Hidden units of the alignment.
    pub hidden: usize,
    /// Type of the low-rank projections.
    pub ty: GgmlType,
}

/// Layers that stay full where there are enough others: shallow layers do not bear substitution.
const FIRST: usize = 4;

impl Substitution {
    /// The substituted layers: spread evenly over those from the fifth on, and from an earlier one where there are not
    /// enough; never the first.
    pub fn layers(&self, n_layer: usize) -> Vec<usize> {
        let first = FIRST.min(n_layer - self.n_layer);
        let among = n_layer - first;
        // The middles of `self.n_layer` equal runs of the layers from `first` on.
        (0..self.n_layer).map(|i| first + (2 * i + 1) * among / (2 * self.n_layer)).collect()
    }

    /// The extension's metadata for a model of this shape.
    pub fn meta(&self, shape: &Shape, fingerprint: String) -> LisaMeta {
        let mut layers = vec![LayerMeta::FULL; shape.n_layer];
        for l in self.layers(shape.n_layer) {
            let rank = if self.kind == Kind::Lisa { self.rank } else { 0 };
            layers[l] = LayerMeta { kind: self.kind, source: Some(l - 1), rank };
        }
        LisaMeta {
            fingerprint,
            layers,
            activation: Activation::Silu,
            domain: Domain::Log,
            scale: 1.0 / (shape.head_dim() as f32).sqrt(),
            trained: Provenance { data: Some("random values".into()), ..Provenance::default() },
        }
    }
}

/// How a tensor's values are made.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Normal values of this mean and deviation, each of its own.
    Normal(f32, f32),
    /// Normal values of mean 0 and this deviation, drawn block by block from a pool.
    Pooled(f32),
    /// A square matrix: this on the diagonal, and normal values of the second deviation over all.
    Diagonal(f32, f32),
    /// The row, repeated.
    Rows(Vec<f32>),
}

/// A tensor to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Its name in the file.
    pub name: String,
    /// Fastest dimension first.
    pub shape: Vec<u64>,
    /// Its type.
    pub ty: GgmlType,
    /// Its values.
    pub content: Content,
}

impl Tensor {
    /// Bytes of its data; `None` where its rows do not divide into blocks.
    pub fn n_bytes(&self) -> Option<u64> {
        let row = self.ty.row_bytes(self.shape[0] as usize)? as u64;
        Some(row * self.shape[1..].iter().product::<u64>())
    }
}

/// The output head's type in a file of `ty`: six bits or more, as in llama.cpp's mixes.
fn head_type(ty: GgmlType, cols: usize) -> GgmlType {
    if ty.is_float() || ty == GgmlType::Q8_0 { ty } else { fallback(GgmlType::Q6_K, cols as u64) }
}

/// Every tensor of the model, matrices in `ty`, in the order of the file.
pub fn tensors(s: &Shape, ty: GgmlType, substitution: Option<&Substitution>) -> Vec<Tensor> {
    let (n_embd, n_q, n_kv) = (s.n_embd, s.n_head * s.head_dim(), s.n_head_kv * s.head_dim());
    // As in gpt-oss's own files, experts alone are in four bits.
    let (of_experts, ty) = (ty, if s.gpt_oss && ty == GgmlType::MXFP4 { GgmlType::Q8_0 } else { ty });
    let matrix_of = |name: String, cols: usize, rows: usize, ty: GgmlType| Tensor {
        name,
        shape: vec![cols as u64, rows as u64],
        ty,
        content: Content::Pooled(1.0 / (cols as f32).sqrt()),
    };
    let matrix = |name: String, cols: usize, rows: usize| matrix_of(name, cols, rows, fallback(ty, cols as u64));
    let vector = |name: String, n: usize, mean: f32, deviation: f32| Tensor {
        name,
        shape: vec![n as u64],
        ty: GgmlType::F32,
        content: Content::Normal(mean, deviation),
    };
    let norm = |name: String| vector(name, n_embd, 1.0, 0.1);

    let embed_type = if s.tied { head_type(ty, n_embd) } else { fallback(ty, n_embd as u64) };
    let mut all = vec![matrix_of("token_embd.weight".into(), n_embd, s.n_vocab, embed_type)];
    let substituted = substitution.map(|sub| sub.layers(s.n_layer)).unwrap_or_default();
    for i in 0..s.n_layer {
        let name = |part: &str| format!("blk.{i}.{part}");
        let sub = substitution.filter(|_| substituted.contains(&i));
        all.push(norm(name("attn_norm.weight")));
        let projections = [("attn_q", n_q), ("attn_k", n_kv), ("attn_v", n_kv)];
        for (part, rows) in projections.into_iter().filter(|(part, _)| sub.is_none() || *part == "attn_v") {
            all.push(matrix(name(&format!("{part}.weight")), n_embd, rows));
            if s.qkv_bias {
                all.push(vector(name(&format!("{part}.bias")), rows, 0.0, 0.5));
            }
        }
        all.push(matrix(name("attn_output.weight"), n_q, n_embd));
        if s.gpt_oss {
            all.push(vector(name("attn_output.bias"), n_embd, 0.0, 0.1));
            all.push(vector(name("attn_sinks.weight"), s.n_head, 0.0, 1.0));
        }
        all.push(norm(name(if s.gpt_oss { "post_attention_norm.weight" } else { "ffn_norm.weight" })));
        let networks = [("ffn_gate", n_embd, s.n_ff), ("ffn_up", n_embd, s.n_ff), ("ffn_down", s.n_ff, n_embd)];
        match s.experts {
            None => all.extend(networks.map(|(part, cols, rows)| matrix(name(&format!("{part}.weight")), cols, rows))),
            Some([n_expert, _]) => {
                all.push(matrix_of(name("ffn_gate_inp.weight"), n_embd, n_expert, GgmlType::F32));
                if s.gpt_oss {
                    all.push(vector(name("ffn_gate_inp.bias"), n_expert, 0.0, 0.1));
                }
                for (part, cols, rows) in networks {
                    let ty = fallback(of_experts, cols as u64);
                    let mut stack = matrix_of(name(&format!("{part}_exps.weight")), cols, rows, ty);
                    stack.shape.push(n_expert as u64);
                    all.push(stack);
                    if s.gpt_oss {
                        let mut bias = vector(name(&format!("{part}_exps.bias")), rows, 0.0, 0.1);
                        bias.shape.push(n_expert as u64);
                        all.push(bias);
                    }
                }
            }
        }
        if let Some(sub) = sub.filter(|sub| sub.kind == Kind::Lisa) {
            all.extend(lisa_tensors(s, sub, i));
        }
    }
    all.push(norm("output_norm.weight".into()));
    if !s.tied {
        all.push(matrix_of("output.weight".into(), n_embd, s.n_vocab, head_type(ty, n_embd)));
    }
    all
}

/// What a `lisa` layer has instead of its queries and keys.
fn lisa_tensors(s: &Shape, sub: &Substitution, layer: usize) -> Vec<Tensor> {
    let (head, kv, rank, hidden) = (s.n_head as u64, s.n_head_kv as u64, sub.rank as u64, sub.hidden as u64);
    let n_embd = s.n_embd as u64;
    let tensor = |part: Part, shape: &[u64], ty: GgmlType, content: Content| Tensor {
        name: part.tensor(layer),
        shape: shape.to_vec(),
        ty,
        content,
    };
    let f32 = GgmlType::F32;
    let mut all = vec![tensor(Part::AlignSkip, &[head, head], f32, Content::Diagonal(0.5, 0.02))];
    if hidden > 0 {
        all.push(tensor(Part::AlignUp, &[hidden, head], f32, Content::Normal(0.0, 0.2)));
        all.push(tensor(Part::AlignUpBias, &[hidden], f32, Content::Normal(0.0, 0.2)));
        all.push(tensor(Part::AlignDown, &[head, hidden], f32, Content::Normal(0.0, 0.1)));
    }
    if rank > 0 {
        let ty = fallback(sub.ty, s.n_embd as u64);
        let projection = || Content::Pooled(1.0 / (s.n_embd as f32).sqrt());
        all.push(tensor(Part::Q, &[n_embd, head * rank], ty, projection()));
        all.push(tensor(Part::K, &[n_embd, kv * rank], ty, projection()));
        // Every so many of the original head's rotation pairs.
        let pair = |p: usize| (2 * p * s.head_dim() / sub.rank) as f32 / s.head_dim() as f32;
        let freq = (0..sub.rank / 2).map(|p| s.freq_base.powf(-pair(p))).collect();
        all.push(tensor(Part::Freq, &[rank / 2, kv], f32, Content::Rows(freq)));
    }
    all
}

/// The model's keys, with a vocabulary that can spell any text.
pub fn write_keys<W: Write>(w: &mut GgufWriter<W>, name: &str, s: &Shape) -> Result<(), WriteError> {
    w.str("general.architecture", s.arch)?;
    w.str("general.type", "model")?;
    w.str("general.name", name)?;
    w.u32("general.quantization_version", 2)?;
    let key = |key: &str| format!("{}.{key}", s.arch);
    w.u32(&key("block_count"), s.n_layer as u32)?;
    w.u32(&key("context_length"), s.n_ctx as u32)?;
    w.u32(&key("embedding_length"), s.n_embd as u32)?;
    w.u32(&key("feed_forward_length"), s.n_ff as u32)?;
    w.u32(&key("attention.head_count"), s.n_head as u32)?;
    w.u32(&key("attention.head_count_kv"), s.n_head_kv as u32)?;
    if let Some(head_dim) = s.head_dim {
        w.u32(&key("attention.key_length"), head_dim as u32)?;
        w.u32(&key("attention.value_length"), head_dim as u32)?;
    }
    if let Some(window) = s.window {
        w.u32(&key("attention.sliding_window"), window as u32)?;
    }
    if s.gpt_oss {
        w.u32(&key("expert_feed_forward_length"), s.n_ff as u32)?;
    }
    if let Some([n_expert, n_used]) = s.experts {
        w.u32(&key("expert_count"), n_expert as u32)?;
        w.u32(&key("expert_used_count"), n_used as u32)?;
    }
    for (factor, value) in s.factors {
        w.f32(&key(factor), *value)?;
    }
    w.u32(&key("rope.dimension_count"), s.head_dim() as u32)?;
    w.f32(&key("rope.freq_base"), s.freq_base)?;
    w.f32(&key("attention.layer_norm_rms_epsilon"), s.norm_eps)?;
    w.u32(&key("vocab_size"), s.n_vocab as u32)?;

    let n_words = s.n_vocab - MIN_VOCAB;
    let special = ["<unk>", "<s>", "</s>"].map(String::from);
    let bytes = (0..=255u8).map(|b| format!("<0x{b:02X}>"));
    let tokens: Vec<String> = special.into_iter().chain(bytes).chain((0..n_words).map(word)).collect();
    w.str("tokenizer.ggml.model", "llama")?;
    w.strings("tokenizer.ggml.tokens", &tokens)?;
    let scores: Vec<f32> = (0..s.n_vocab).map(|i| 0.0 - i.saturating_sub(MIN_VOCAB) as f32).collect();
    w.f32s("tokenizer.ggml.scores", &scores)?;
    let types: Vec<i32> = [2, 3, 3].into_iter().chain([6; 256]).chain(std::iter::repeat_n(1, n_words)).collect();
    w.i32s("tokenizer.ggml.token_type", &types)?;
    w.u32("tokenizer.ggml.unknown_token_id", 0)?;
    w.u32("tokenizer.ggml.bos_token_id", 1)?;
    w.u32("tokenizer.ggml.eos_token_id", 2)?;
    w.bool("tokenizer.ggml.add_bos_token", true)
}

/// The `i`-th of the words: the space and the letters, then all strings of letters after a space, short ones first.
fn word(i: usize) -> String {
    const SPACE: char = '\u{2581}';
    match i {
        0 => SPACE.into(),
        1..=26 => char::from(b'a' + (i - 1) as u8).into(),
        _ => {
            let (mut n, mut letters) = (i - 26, Vec::new());
            while n > 0 {
                n -= 1;
                letters.push(char::from(b'a' + (n % 26) as u8));
                n /= 26;
            }
            std::iter::once(SPACE).chain(letters.into_iter().rev()).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn bytes_and_parameters(preset: Preset) -> (u64, u64) {
        let all = tensors(&preset.shape(), GgmlType::Q4_0, None);
        (all.iter().map(|t| t.n_bytes().unwrap()).sum(), all.iter().map(|t| t.shape.iter().product::<u64>()).sum())
    }

    /// Against the sizes that llama.cpp prints for the real models' Q4_0 files.
    #[test]
    fn presets_are_as_large_as_the_real_models() {
        let gib = |n: u64| n as f64 / f64::from(1 << 30);
        for (preset, size, parameters) in [
            (Preset::Llama2_7b, 3.56, 6.74),
            (Preset::Llama2_13b, 6.86, 13.02),
            (Preset::Llama3_8b, 4.33, 8.03),
            (Preset::TinyLlama, 0.5923, 1.10),
            (Preset::SmolLm2, 0.0838, 0.1345),
            (Preset::Qwen25, 0.3224, 0.494),
        ] {
            let (bytes, n) = bytes_and_parameters(preset);
            assert!((gib(bytes) / size - 1.0).abs() < 0.01, "{preset:?}: {} GiB, expected {size}", gib(bytes));
            assert!((n as f64 / 1e9 / parameters - 1.0).abs() < 0.01, "{preset:?}: {n} parameters");
        }
    }

    #[test]
    fn gpt_oss_is_as_large_as_the_real_model() {
        let all = tensors(&Preset::GptOss.shape(), GgmlType::MXFP4, None);
        let bytes: u64 = all.iter().map(|t| t.n_bytes().unwrap()).sum();
        let n: u64 = all.iter().flat_map(|t| [t.shape.iter().product::<u64>()]).sum();
        assert!((bytes as f64 / f64::from(1 << 30) / 11.27 - 1.0).abs() < 0.01, "{bytes} bytes");
        assert!((n as f64 / 20.91e9 - 1.0).abs() < 0.01, "{n} parameters");
    }

    #[test]
    fn substituted_layers() {
        let sub = |n_layer| Substitution { n_layer, kind: Kind::Lisa, rank: 4, hidden: 0, ty: GgmlType::F16 };
        assert_eq!(sub(28).layers(32), (4..32).collect::<Vec<_>>());
        assert_eq!(sub(31).layers(32), (1..32).collect::<Vec<_>>());
        assert_eq!(sub(2).layers(24), [9, 19]);
        for n in 1..32 {
            let layers = sub(n).layers(32);
            assert_eq!(layers.len(), n);
            assert!(
                layers.is_sorted_by(|a, b| a < b) && layers[0] >= 4.min(32 - n) && layers[n - 1] < 32,
                "{layers:?}"
            );
        }
    }

    /// A merged model has the tensors its layers need and no others, and is smaller by what it leaves out.
    #[test]
    fn substituted_layers_have_no_queries_and_keys() {
        let shape = Preset::Llama2_7b.shape();
        let sub = Substitution { n_layer: 21, kind: Kind::Lisa, rank: 20, hidden: 0, ty: GgmlType::F16 };
        let all = tensors(&shape, GgmlType::Q4_0, Some(&sub));
        let names: HashSet<_> = all.iter().map(|t| t.name.as_str()).collect();
        for l in 0..shape.n_layer {
            let lisa = sub.layers(32).contains(&l);
            assert_eq!(names.contains(format!("blk.{l}.attn_q.weight").as_str()), !lisa, "layer {l}");
            assert_eq!(names.contains(format!("blk.{l}.attn_k.weight").as_str()), !lisa, "layer {l}");
            assert_eq!(names.contains(Part::Q.tensor(l).as_str()), lisa, "layer {l}");
            assert!(names.contains(format!("blk.{l}.attn_v.weight").as_str()));
        }
        let bytes: u64 = all.iter().map(|t| t.n_bytes().unwrap()).sum();
        let out = 2 * 4096 * 4096 / 32 * 18;
        let low_rank = 2 * (2 * 32 * 20 * 4096) + 4 * (32 * 32 + 10 * 32);
        assert_eq!(bytes, bytes_and_parameters(Preset::Llama2_7b).0 - 21 * out + 21 * low_rank);
    }

    #[test]
    fn words_differ() {
        let words: HashSet<String> = (0..152_000).map(word).collect();
        assert_eq!(words.len(), 152_000);
        assert_eq!([0, 1, 27, 53, 78].map(word), ["\u{2581}", "a", "\u{2581}a", "\u{2581}aa", "\u{2581}az"]);
    }
}
