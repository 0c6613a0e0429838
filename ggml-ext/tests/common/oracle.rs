//! Comparison with the gguf-rs crate, which shares no code with ours.
//!
//! Known faults of gguf-rs 0.1.8 that the comparison steps around: it takes the blocks of BF16 and of all types from id
//! 10 on for 256 elements long, so the sizes of BF16, IQ4_NL and MXFP4 tensors are wrong; it reads no nested arrays.

use ggml_ext::GgmlType;
use ggml_ext::gguf::{Gguf, Value};
use gguf_rs::{ByteOrder, GGUFContainer};
use serde_json::Value as Json;

/// Asserts that both readers find the same metadata and the same tensors at the same places.
#[track_caller]
pub fn assert_same(bytes: &[u8]) {
    let ours = Gguf::parse(bytes).unwrap();
    let rest = std::io::Cursor::new(bytes[4..].to_vec());
    let theirs = GGUFContainer::new(ByteOrder::LE, Box::new(rest), u64::MAX).decode().unwrap();

    assert_eq!(format!("v{}", ours.version()), theirs.get_version());
    assert_eq!(ours.alignment(), theirs.alignment());
    assert_eq!(ours.metadata().len(), theirs.metadata().len());
    for (key, value) in ours.metadata() {
        let other = theirs.metadata().get(key).unwrap_or_else(|| panic!("gguf-rs has no key {key}"));
        assert!(same_value(value, other), "{key}: {value} here, {other} there");
    }

    assert_eq!(ours.tensors().len(), theirs.tensors().len());
    for (a, b) in ours.tensors().iter().zip(theirs.tensors()) {
        assert_eq!((&a.name, &a.shape, a.ty.id()), (&b.name, &b.shape, b.kind));
        assert_eq!(a.offset, theirs.data_offset() + b.offset, "{}", a.name);
        if !matches!(a.ty, GgmlType::BF16 | GgmlType::IQ4_NL | GgmlType::MXFP4) {
            assert_eq!(a.n_bytes, b.size, "{}", a.name);
        }
    }
}

/// gguf-rs turns numbers into JSON numbers, which keep their decimal text; what JSON has no number for is null.
fn same_value(ours: &Value, theirs: &Json) -> bool {
    match ours {
        Value::F32(v) if v.is_finite() => theirs.is_number() && theirs.to_string().parse() == Ok(*v),
        Value::F64(v) if v.is_finite() => theirs.is_number() && theirs.to_string().parse() == Ok(*v),
        Value::F32(_) | Value::F64(_) => theirs.is_null(),
        Value::Bool(v) => theirs.as_bool() == Some(*v),
        Value::String(v) => theirs.as_str() == Some(v),
        Value::Array(a) => theirs
            .as_array()
            .is_some_and(|b| a.len() == b.len() && a.iter().zip(b).all(|(ours, theirs)| same_value(&ours, theirs))),
        int => int.as_int() == theirs.as_i64().map(i128::from).or(theirs.as_u64().map(i128::from)),
    }
}
