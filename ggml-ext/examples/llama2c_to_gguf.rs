//! Converts a checkpoint of karpathy's llama2.c (legacy float32 form) and its `tokenizer.bin` to a GGUF file of the
//! `llama` family: how `models/stories260K.gguf` was made.
//!
//! ```text
//! cargo run -p ggml-ext --example llama2c_to_gguf -- stories260K.bin tok512.bin stories260K stories260K.gguf
//! ```
//!
//! The checkpoint is seven i32 (see [`Config`]), then float32 matrices row by row, each kind for all layers before the
//! next kind. Weights stay float32: a row of 172 elements divides into no quantised block, and the file has 1 MB.
//! llama2.c rotates neighbouring pairs of a head's elements, as the `llama` family of GGUF does, so no row changes place.

use std::error::Error;

use ggml_ext::GgmlType;
use ggml_ext::gguf::GgufWriter;

/// Kinds of tokens as `tokenizer.ggml.token_type` numbers them.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const BYTE: i32 = 6;

/// llama2.c has these built in; its files do not state them.
const NORM_EPS: f32 = 1e-5;
const ROPE_BASE: f32 = 10_000.0;
const UNK: u32 = 0;
const BOS: u32 = 1;
const EOS: u32 = 2;

/// The checkpoint's header.
#[derive(Debug)]
pub struct Config {
    n_embd: u32,
    n_ff: u32,
    n_layer: u32,
    n_head: u32,
    n_head_kv: u32,
    n_vocab: u32,
    /// True when the output head is a matrix of its own and not the token embedding.
    has_output: bool,
    n_ctx: u32,
}

impl Config {
    fn read(input: &mut Input) -> Result<Self, Box<dyn Error>> {
        let mut field = |name: &str| -> Result<i32, Box<dyn Error>> {
            let v = i32::from_le_bytes(input.take(4)?.try_into()?);
            // The sign of the vocabulary size is a flag; and no field of a real model is anywhere near this limit.
            if v == 0 || v.unsigned_abs() > 1 << 24 || (v < 0 && name != "vocab_size") {
                return Err(format!("{name} is {v}").into());
            }
            Ok(v)
        };
        let [n_embd, n_ff, n_layer, n_head, n_head_kv] =
            [field("dim")?, field("hidden_dim")?, field("n_layers")?, field("n_heads")?, field("n_kv_heads")?]
                .map(i32::unsigned_abs);
        let vocab = field("vocab_size")?;
        let n_ctx = field("seq_len")?.unsigned_abs();
        if !n_embd.is_multiple_of(n_head) || !n_head.is_multiple_of(n_head_kv) || !(n_embd / n_head).is_multiple_of(2) {
            return Err(format!("dim {n_embd}, {n_head} heads and {n_head_kv} KV heads do not divide").into());
        }
        let (n_vocab, has_output) = (vocab.unsigned_abs(), vocab < 0);
        Ok(Config { n_embd, n_ff, n_layer, n_head, n_head_kv, n_vocab, has_output, n_ctx })
    }

    fn head_dim(&self) -> u32 {
        self.n_embd / self.n_head
    }
}

/// The unread rest of a file.
struct Input<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    fn take(&mut self, n: u64) -> Result<&'a [u8], Box<dyn Error>> {
        let left = self.rest.len();
        let split = usize::try_from(n).ok().and_then(|n| self.rest.split_at_checked(n));
        let (taken, rest) = split.ok_or_else(|| format!("{}: {n} more bytes expected, {left} left", self.what))?;
        self.rest = rest;
        Ok(taken)
    }
}

struct Vocabulary {
    tokens: Vec<String>,
    scores: Vec<f32>,
    types: Vec<i32>,
}

impl Vocabulary {
    /// Reads `tokenizer.bin`: the longest token's length (i32), then score (f32), length (i32) and bytes of each token.
    fn read(input: &mut Input, n_vocab: u32) -> Result<Self, Box<dyn Error>> {
        let mut v = Vocabulary { tokens: Vec::new(), scores: Vec::new(), types: Vec::new() };
        input.take(4)?;
        for id in 0..n_vocab {
            v.scores.push(f32::from_le_bytes(input.take(4)?.try_into()?));
            let len = u32::from_le_bytes(input.take(4)?.try_into()?);
            let text = std::str::from_utf8(input.take(len.into())?).map_err(|e| format!("token {id}: {e}"))?;
            // llama2.c stores the two control tokens between line ends, and spaces as such where GGUF has U+2581.
            let (text, ty) = match id {
                UNK => ("<unk>".into(), UNKNOWN),
                BOS => ("<s>".into(), CONTROL),
                EOS => ("</s>".into(), CONTROL),
                _ if is_byte_token(text) => (text.into(), BYTE),
                _ => (text.replace(' ', "\u{2581}"), NORMAL),
            };
            v.tokens.push(text);
            v.types.push(ty);
        }
        Ok(v)
    }
}

/// `<0x0A>` and its like, which stand for one byte each.
fn is_byte_token(text: &str) -> bool {
    let hex = text.strip_prefix("<0x").and_then(|s| s.strip_suffix('>'));
    hex.is_some_and(|h| h.len() == 2 && h.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The GGUF file for a checkpoint and its tokenizer.
pub fn convert(checkpoint: &[u8], tokenizer: &[u8], name: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut input = Input { what: "checkpoint", rest: checkpoint };
    let config = Config::read(&mut input)?;
    let mut vocab_input = Input { what: "tokenizer", rest: tokenizer };
    let vocabulary = Vocabulary::read(&mut vocab_input, config.n_vocab)?;
    if !vocab_input.rest.is_empty() {
        return Err(format!("tokenizer: more than the {} tokens of the checkpoint", config.n_vocab).into());
    }

    let mut w = GgufWriter::new(Vec::new());
    write_metadata(&mut w, &config, &vocabulary, name)?;
    let tensors = read_tensors(&mut input, &config)?;
    for t in &tensors {
        w.tensor(&t.name, &t.shape, GgmlType::F32)?;
    }
    for t in &tensors {
        w.data(&t.name, t.data)?;
    }
    Ok(w.finish()?)
}

fn write_metadata(
    w: &mut GgufWriter<Vec<u8>>,
    config: &Config,
    vocabulary: &Vocabulary,
    name: &str,
) -> Result<(), Box<dyn Error>> {
    w.str("general.architecture", "llama")?;
    w.str("general.type", "model")?;
    w.str("general.name", name)?;
    w.str("general.license", "mit")?;
    w.str("general.source.url", "https://huggingface.co/karpathy/tinyllamas")?;
    w.u32("general.file_type", 0)?; // all F32
    w.u32("llama.block_count", config.n_layer)?;
    w.u32("llama.context_length", config.n_ctx)?;
    w.u32("llama.embedding_length", config.n_embd)?;
    w.u32("llama.feed_forward_length", config.n_ff)?;
    w.u32("llama.attention.head_count", config.n_head)?;
    w.u32("llama.attention.head_count_kv", config.n_head_kv)?;
    w.f32("llama.attention.layer_norm_rms_epsilon", NORM_EPS)?;
    w.u32("llama.rope.dimension_count", config.head_dim())?;
    w.f32("llama.rope.freq_base", ROPE_BASE)?;
    w.u32("llama.vocab_size", config.n_vocab)?;
    w.str("tokenizer.ggml.model", "llama")?;
    w.str("tokenizer.ggml.pre", "default")?;
    w.strings("tokenizer.ggml.tokens", &vocabulary.tokens)?;
    w.f32s("tokenizer.ggml.scores", &vocabulary.scores)?;
    w.i32s("tokenizer.ggml.token_type", &vocabulary.types)?;
    w.u32("tokenizer.ggml.bos_token_id", BOS)?;
    w.u32("tokenizer.ggml.eos_token_id", EOS)?;
    w.u32("tokenizer.ggml.unknown_token_id", UNK)?;
    w.bool("tokenizer.ggml.add_bos_token", true)?;
    w.bool("tokenizer.ggml.add_eos_token", false)?;
    w.bool("tokenizer.ggml.add_space_prefix", true)?;
    Ok(())
}

struct Tensor<'a> {
    name: String,
    shape: Vec<u64>,
    data: &'a [u8],
}

/// All tensors in the checkpoint's order.
fn read_tensors<'a>(input: &mut Input<'a>, config: &Config) -> Result<Vec<Tensor<'a>>, Box<dyn Error>> {
    let [d, ff, n_vocab] = [config.n_embd, config.n_ff, config.n_vocab].map(u64::from);
    let d_kv = u64::from(config.n_head_kv * config.head_dim());
    let mut tensors = Vec::new();
    let mut read = |name: String, shape: Vec<u64>| -> Result<(), Box<dyn Error>> {
        let data = input.take(4 * shape.iter().product::<u64>())?;
        tensors.push(Tensor { name, shape, data });
        Ok(())
    };
    read("token_embd.weight".into(), vec![d, n_vocab])?;
    for (kind, shape) in [
        ("attn_norm", vec![d]),
        ("attn_q", vec![d, d]),
        ("attn_k", vec![d, d_kv]),
        ("attn_v", vec![d, d_kv]),
        ("attn_output", vec![d, d]),
        ("ffn_norm", vec![d]),
        ("ffn_gate", vec![d, ff]),
        ("ffn_down", vec![ff, d]),
        ("ffn_up", vec![d, ff]),
    ] {
        for layer in 0..config.n_layer {
            read(format!("blk.{layer}.{kind}.weight"), shape.clone())?;
        }
    }
    read("output_norm.weight".into(), vec![d])?;
    // Cosines and sines of the rotations, a table that any reader computes for itself.
    input.take(2 * 4 * u64::from(config.n_ctx) * u64::from(config.head_dim() / 2))?;
    if config.has_output {
        let data = input.take(4 * d * n_vocab)?;
        tensors.push(Tensor { name: "output.weight".into(), shape: vec![d, n_vocab], data });
    }
    if !input.rest.is_empty() {
        return Err(format!("checkpoint: {} bytes behind the last tensor", input.rest.len()).into());
    }
    Ok(tensors)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [checkpoint, tokenizer, name, output] = args.as_slice() else {
        return Err("usage: llama2c_to_gguf CHECKPOINT.bin TOKENIZER.bin NAME OUTPUT.gguf".into());
    };
    let read = |path: &String| std::fs::read(path).map_err(|e| format!("{path}: {e}"));
    let gguf = convert(&read(checkpoint)?, &read(tokenizer)?, name)?;
    std::fs::write(output, &gguf).map_err(|e| format!("{output}: {e}"))?;
    println!("{output}: {} bytes", gguf.len());
    Ok(())
}
