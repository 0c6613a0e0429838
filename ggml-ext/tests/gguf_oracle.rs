//! gguf-rs, an independent reader, sees the same in every fixture and in every file our writer makes.

mod common;

use common::oracle::assert_same;
use common::{model, walk};
use ggml_ext::GgmlType;
use ggml_ext::gguf::{Gguf, GgufWriter, Value, ValueType};

#[test]
fn the_models_read_the_same() {
    let embedded = model("stories260K.gguf").expect("models/stories260K.gguf is part of the repository");
    assert_same(&embedded);
    for name in ["SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"] {
        if let Some(bytes) = model(name) {
            assert_same(&bytes);
            walk(&Gguf::parse(&bytes).unwrap());
        }
    }
}

#[test]
fn a_copied_model_reads_the_same() {
    let bytes = model("stories260K.gguf").expect("models/stories260K.gguf is part of the repository");
    let g = Gguf::parse(&bytes).unwrap();
    let mut w = GgufWriter::new(Vec::new());
    for (key, value) in g.metadata() {
        w.value(key, value).unwrap();
    }
    for t in g.tensors() {
        w.tensor(&t.name, &t.shape, t.ty).unwrap();
    }
    for t in g.tensors() {
        w.data(&t.name, g.tensor_data(t)).unwrap();
    }
    let copy = w.finish().unwrap();
    assert!(copy == bytes, "the writer made the original, so a copy of all its parts is the original again");
}

#[test]
fn every_tensor_type_reads_the_same() {
    for alignment in [None, Some(8), Some(256)] {
        let mut w = GgufWriter::new(Vec::new());
        w.str("general.architecture", "test").unwrap();
        if let Some(a) = alignment {
            w.u32("general.alignment", a).unwrap();
        }
        let known = GgmlType::ALL.iter().filter(|ty| ty.id() <= 39); // newer ones are not gguf-rs's
        let tensors: Vec<_> = known.map(|&ty| (ty.name(), ty, ty.block_len() as u64)).collect();
        for (name, ty, block) in &tensors {
            w.tensor(name, &[block * 3, 5, 2], *ty).unwrap();
        }
        for (name, ty, _) in &tensors {
            let data: Vec<u8> = (0..30 * ty.block_bytes()).map(|i| (i % 251) as u8).collect();
            w.data(name, &data).unwrap();
        }
        assert_same(&w.finish().unwrap());
    }
}

#[test]
fn every_value_type_reads_the_same() {
    let mut w = GgufWriter::new(Vec::new());
    for (i, v) in [
        Value::U8(255),
        Value::I8(-128),
        Value::U16(65535),
        Value::I16(-32768),
        Value::U32(u32::MAX),
        Value::I32(i32::MIN),
        Value::U64(u64::MAX),
        Value::I64(i64::MIN),
        Value::F32(0.1),
        Value::F64(-1e300),
        Value::Bool(true),
        Value::String("a \u{2581}\0 \u{10ffff}"),
    ]
    .into_iter()
    .enumerate()
    {
        w.value(&format!("scalar.{i}"), &v).unwrap();
        w.array(&format!("array.{i}"), v.value_type(), vec![v; i * 100].into_iter()).unwrap();
    }
    w.array("empty", ValueType::U8, [].into_iter()).unwrap();
    w.strings("tokenizer.ggml.tokens", &vec!["token"; 5000]).unwrap();
    assert_same(&w.finish().unwrap());
}
