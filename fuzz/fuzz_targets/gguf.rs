//! Any bytes at all, given to the GGUF reader: it may refuse them, it may not panic, and what it accepts must be whole.
//!
//! From the root of the repository:
//! ```text
//! cargo +nightly fuzz run gguf fuzz/corpus/gguf fuzz/seeds/gguf -- -dict=fuzz/gguf.dict -max_len=65536
//! ```

#![no_main]

use ggml_ext::gguf::split::SplitTensors;
use ggml_ext::gguf::{Gguf, GgufWriter, Value};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match Gguf::parse(bytes) {
        Ok(g) => check(bytes, g),
        Err(e) => assert!(!e.to_string().is_empty()),
    }
});

fn check(bytes: &[u8], g: Gguf) {
    for (key, value) in g.metadata() {
        assert!(std::ptr::eq(g.get(key).unwrap(), value));
        let _ = value.to_string();
        if let Some(a) = value.as_array() {
            assert_eq!(a.iter().count(), a.len());
            if let Some(strings) = a.strings() {
                assert!(strings.iter().map(Value::String).eq(a.iter()));
            }
        }
        let _ = (g.u32(key), g.i32(key), g.u64(key), g.f32(key), g.bool(key), g.str(key).is_ok());
        let _ = (g.f32s(key), g.i32s(key), g.u32s(key), g.bools(key));
    }
    let mut used = 0;
    for t in g.tensors() {
        assert_eq!(g.tensor(&t.name), Some(t));
        assert_eq!(g.tensor_data(t).len() as u64, t.n_bytes);
        assert_eq!(t.n_rows() * t.row_len(), t.n_elements());
        used += t.n_bytes;
    }
    assert!(used <= bytes.len() as u64, "tensors share bytes");
    let _ = SplitTensors::new(std::slice::from_ref(&g)).map(|tensors| assert_eq!(tensors.len(), g.tensors().len()));
    copy(&g);
}

/// What was accepted can be written, and reads the same again.
fn copy(g: &Gguf) {
    // Padding to a huge alignment would only slow the search down, and names of 64 bytes are read but not written.
    if g.alignment() > 4096 || g.tensors().iter().any(|t| t.name.len() == 64) {
        return;
    }
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
    let again = Gguf::parse(&copy).unwrap();
    assert_eq!(again.metadata().len(), g.metadata().len());
    assert_eq!(again.tensors().len(), g.tensors().len());
    for (a, b) in again.tensors().iter().zip(g.tensors()) {
        assert_eq!((&a.name, &a.shape, a.ty), (&b.name, &b.shape, b.ty));
        assert_eq!(again.tensor_data(a), g.tensor_data(b));
    }
}
