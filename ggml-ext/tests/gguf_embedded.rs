//! The embedded model is what its converter makes.

mod common;
#[allow(dead_code)] // its `main`
#[path = "../examples/llama2c_to_gguf.rs"]
mod llama2c_to_gguf;

use ggml_ext::gguf::Gguf;
use llama2c_to_gguf::convert;

fn embedded() -> Vec<u8> {
    common::model("stories260K.gguf").expect("models/stories260K.gguf is part of the repository")
}

/// The llama2.c files that hold what `g` holds.
fn llama2c(g: &Gguf) -> (Vec<u8>, Vec<u8>) {
    let key = |key: &str| g.u32(&format!("llama.{key}")).unwrap().unwrap();
    let (n_layer, n_ctx, head_dim) = (key("block_count"), key("context_length"), key("rope.dimension_count"));
    let mut checkpoint: Vec<u8> = [
        key("embedding_length"),
        key("feed_forward_length"),
        n_layer,
        key("attention.head_count"),
        key("attention.head_count_kv"),
        key("vocab_size"),
        n_ctx,
    ]
    .iter()
    .flat_map(|v| v.to_le_bytes())
    .collect();
    let mut put = |name: &str| checkpoint.extend(g.tensor_data(g.tensor(name).unwrap()));
    put("token_embd.weight");
    for kind in "attn_norm attn_q attn_k attn_v attn_output ffn_norm ffn_gate ffn_down ffn_up".split(' ') {
        (0..n_layer).for_each(|layer| put(&format!("blk.{layer}.{kind}.weight")));
    }
    put("output_norm.weight");
    checkpoint.resize(checkpoint.len() + (n_ctx * head_dim) as usize * 4, 0);

    let mut tokenizer = 7u32.to_le_bytes().to_vec();
    let scores = g.f32s("tokenizer.ggml.scores").unwrap().unwrap();
    for (token, score) in g.strings("tokenizer.ggml.tokens").unwrap().unwrap().iter().zip(scores) {
        let token =
            if matches!(token, "<s>" | "</s>") { format!("\n{token}\n") } else { token.replace('\u{2581}', " ") };
        tokenizer.extend(score.to_le_bytes());
        tokenizer.extend((token.len() as u32).to_le_bytes());
        tokenizer.extend(token.as_bytes());
    }
    (checkpoint, tokenizer)
}

#[test]
fn the_converter_makes_it() {
    let bytes = embedded();
    let (checkpoint, tokenizer) = llama2c(&Gguf::parse(&bytes).unwrap());
    // The sizes of the files it was made from.
    assert_eq!((checkpoint.len(), tokenizer.len()), (1_056_540, 6_227));
    assert!(convert(&checkpoint, &tokenizer, "stories260K").unwrap() == bytes);
}

#[test]
fn it_says_what_a_llama_model_must() {
    let bytes = embedded();
    let g = Gguf::parse(&bytes).unwrap();
    assert_eq!(g.str("general.architecture"), Ok(Some("llama")));
    assert_eq!(g.str("tokenizer.ggml.model"), Ok(Some("llama")));
    let tokens: Vec<_> = g.strings("tokenizer.ggml.tokens").unwrap().unwrap().iter().collect();
    assert_eq!(tokens[..4], ["<unk>", "<s>", "</s>", "<0x00>"]);
    assert_eq!((tokens.len(), tokens[258], tokens[265]), (512, "<0xFF>", "\u{2581}the"));
    let types = g.i32s("tokenizer.ggml.token_type").unwrap().unwrap();
    assert_eq!(types[..4], [2, 3, 3, 6]);
    assert!(types[3..259].iter().all(|&ty| ty == 6) && types[259..].iter().all(|&ty| ty == 1));
    assert_eq!(g.tensor("blk.4.ffn_down.weight").unwrap().shape, [172, 64]);
    assert!(g.tensor("output.weight").is_none(), "the head is the token embedding");
}

#[test]
fn the_converter_refuses_other_files() {
    let bytes = embedded();
    let (checkpoint, tokenizer) = llama2c(&Gguf::parse(&bytes).unwrap());
    let fails = |checkpoint: &[u8], tokenizer: &[u8], text: &str| {
        assert_eq!(convert(checkpoint, tokenizer, "x").unwrap_err().to_string(), text);
    };
    fails(&checkpoint[..20], &tokenizer, "checkpoint: 4 more bytes expected, 0 left");
    fails(&checkpoint[..checkpoint.len() - 1], &tokenizer, "checkpoint: 16384 more bytes expected, 16383 left");
    fails(&[&checkpoint[..], &[0]].concat(), &tokenizer, "checkpoint: 1 bytes behind the last tensor");
    fails(&checkpoint, &tokenizer[..6226], "tokenizer: 3 more bytes expected, 2 left");
    fails(&checkpoint, &[&tokenizer[..], &[0]].concat(), "tokenizer: more than the 512 tokens of the checkpoint");
    let mut other = checkpoint.clone();
    other[8..12].copy_from_slice(&(-5i32).to_le_bytes());
    fails(&other, &tokenizer, "n_layers is -5");
    other[8..12].copy_from_slice(&5i32.to_le_bytes());
    other[12..16].copy_from_slice(&7i32.to_le_bytes());
    fails(&other, &tokenizer, "dim 64, 7 heads and 4 KV heads do not divide");
}

#[test]
fn an_output_matrix_of_its_own_is_kept() {
    let bytes = embedded();
    let (mut checkpoint, tokenizer) = llama2c(&Gguf::parse(&bytes).unwrap());
    checkpoint[20..24].copy_from_slice(&(-512i32).to_le_bytes());
    checkpoint.extend((0..64 * 512).flat_map(|i| (i as f32).to_le_bytes()));
    let untied = convert(&checkpoint, &tokenizer, "x").unwrap();
    let g = Gguf::parse(&untied).unwrap();
    let output = g.tensor("output.weight").unwrap();
    assert_eq!(output.shape, [64, 512]);
    assert_eq!(g.tensor_data(output)[4..8], 1f32.to_le_bytes());
}
