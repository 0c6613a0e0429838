//! The writer: what it makes, what it refuses, and that the reader gets back whatever went in.

mod common;

use common::oracle::assert_same;
use common::walk;
use ggml_ext::GgmlType;
use ggml_ext::gguf::{Gguf, GgufWriter, Value, ValueType, WriteError};
use proptest::collection::vec;
use proptest::prelude::*;

fn writer() -> GgufWriter<Vec<u8>> {
    GgufWriter::new(Vec::new())
}

#[track_caller]
fn fails<T>(result: Result<T, WriteError>, text: &str) {
    match result {
        Ok(_) => panic!("accepted, expected: {text}"),
        Err(e) => assert_eq!(e.to_string(), text),
    }
}

#[test]
fn an_empty_file_is_a_header() {
    let bytes = writer().finish().unwrap();
    assert_eq!(bytes[..24], *b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(bytes.len() % 32, 0);
    assert_eq!(Gguf::parse(&bytes).unwrap().metadata().len(), 0);
}

#[test]
fn metadata_it_refuses() {
    let mut w = writer();
    fails(w.u32("", 1), "key \"\" has 0 bytes, expected 1 to 65535");
    w.u32(&"k".repeat(65535), 1).unwrap();
    assert!(matches!(w.u32(&"k".repeat(65536), 1), Err(WriteError::NameLength { .. })));
    w.u32("a", 1).unwrap();
    fails(w.str("a", "x"), "key \"a\" was added before");
    fails(
        w.array("b", ValueType::U32, [Value::U32(1), Value::I32(1)].into_iter()),
        "key \"b\": an array of i32 among elements of type u32",
    );
    w.u32("b", 1).unwrap();
    for (v, found) in [(Value::U32(24), "24 (u32)"), (Value::U32(0), "0 (u32)"), (Value::U64(32), "32 (u64)")] {
        let text = format!("key \"general.alignment\" is {found}, expected a power of two of type u32");
        fails(w.value("general.alignment", &v), &text);
    }
    fails(
        w.u32s("general.alignment", &[32]),
        "key \"general.alignment\" is an array of u32, expected a power of two of type u32",
    );
    w.tensor("t", &[1], GgmlType::F32).unwrap();
    fails(w.u32("general.alignment", 64), "key \"general.alignment\" was added after the first tensor declaration");
    w.data("t", &[0; 4]).unwrap();
    fails(w.u32("c", 1), "key \"c\" was added after the first tensor data");
    let bytes = w.finish().unwrap();
    let keys: Vec<_> = Gguf::parse(&bytes).unwrap().metadata().skip(1).map(|(k, _)| k.to_string()).collect();
    assert_eq!(keys, ["a", "b"]);
}

#[test]
fn tensors_it_refuses() {
    let mut w = writer();
    fails(w.tensor("", &[1], GgmlType::F32), "tensor \"\" has 0 bytes, expected 1 to 63");
    assert!(matches!(w.tensor(&"t".repeat(64), &[1], GgmlType::F32), Err(WriteError::NameLength { .. })));
    w.tensor(&"t".repeat(63), &[1], GgmlType::F32).unwrap();
    for (shape, ty, reason) in [
        (&[][..], GgmlType::F32, "expected 1 to 4 dimensions"),
        (&[1; 5], GgmlType::F32, "expected 1 to 4 dimensions"),
        (&[1, 0], GgmlType::F32, "a dimension is zero"),
        (&[48, 32], GgmlType::Q4_0, "the first dimension does not divide into blocks"),
        (&[1 << 62], GgmlType::F32, "the elements or bytes do not fit in 63 bits"),
        (&[1 << 40, 1 << 40], GgmlType::F32, "the elements or bytes do not fit in 63 bits"),
    ] {
        fails(w.tensor("a", shape, ty), &format!("tensor \"a\": shape {shape:?} of {ty}: {reason}"));
    }
    w.tensor("a", &[32], GgmlType::Q4_0).unwrap();
    fails(w.tensor("a", &[32], GgmlType::F32), "tensor \"a\" was declared before");
}

#[test]
fn data_it_refuses() {
    let mut w = writer();
    fails(w.data("a", &[]), "data for tensor \"a\", expected no more tensors");
    for name in ["a", "b", "c"] {
        w.tensor(name, &[2], GgmlType::F32).unwrap();
    }
    fails(w.data("b", &[0; 8]), "data for tensor \"b\", expected tensor \"a\"");
    fails(w.data("a", &[0; 7]), "tensor \"a\" has 7 bytes of data, its declaration says 8");
    w.data("a", &[1; 8]).unwrap();
    fails(w.data("a", &[0; 8]), "data for tensor \"a\", expected tensor \"b\"");
    fails(w.tensor("d", &[1], GgmlType::F32), "tensor \"d\" was added after the first tensor data");
    fails(w.finish(), "no data for tensor \"b\" and 1 more");
}

/// Data in pieces is the same file; what is left out or too much is refused.
#[test]
fn data_in_pieces() {
    let declared = || {
        let mut w = writer();
        w.tensor("a", &[3], GgmlType::F32).unwrap();
        w.tensor("b", &[1], GgmlType::F32).unwrap();
        w
    };
    let bytes: [u8; 12] = std::array::from_fn(|i| i as u8 + 1);
    let mut whole = declared();
    whole.data("a", &bytes).unwrap();
    whole.data("b", &[9; 4]).unwrap();
    let mut pieces = declared();
    pieces.part("a", &bytes[..5]).unwrap();
    fails(pieces.part("b", &[9; 4]), "data for tensor \"b\", expected tensor \"a\"");
    fails(pieces.part("a", &[0; 8]), "tensor \"a\" has 13 bytes of data, its declaration says 12");
    fails(pieces.data("a", &bytes), "tensor \"a\" has 17 bytes of data, its declaration says 12");
    pieces.part("a", &[]).unwrap();
    pieces.part("a", &bytes[5..]).unwrap();
    pieces.part("b", &[9; 4]).unwrap();
    assert_eq!(pieces.finish().unwrap(), whole.finish().unwrap());

    let mut short = declared();
    short.data("a", &bytes).unwrap();
    short.part("b", &[9; 3]).unwrap();
    fails(short.finish(), "no data for tensor \"b\" and 0 more");
}

#[test]
fn a_full_disk_is_an_error() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut w = GgufWriter::new(Full);
    w.tensor("t", &[1], GgmlType::F32).unwrap();
    assert!(matches!(w.data("t", &[0; 4]), Err(WriteError::Io(_))));
}

/// A value that owns what it holds. Arrays are not nested: gguf-rs reads none that are.
#[derive(Debug, Clone)]
enum Owned {
    Scalar(Scalar),
    Array(ValueType, Vec<Scalar>),
}

#[derive(Debug, Clone)]
enum Scalar {
    Fixed(Value<'static>),
    String(String),
}

impl Scalar {
    fn value(&self) -> Value<'_> {
        match self {
            Scalar::Fixed(v) => *v,
            Scalar::String(s) => Value::String(s),
        }
    }
}

fn scalar(ty: ValueType) -> BoxedStrategy<Scalar> {
    let fixed = match ty {
        ValueType::U8 => any::<u8>().prop_map(Value::U8).boxed(),
        ValueType::I8 => any::<i8>().prop_map(Value::I8).boxed(),
        ValueType::U16 => any::<u16>().prop_map(Value::U16).boxed(),
        ValueType::I16 => any::<i16>().prop_map(Value::I16).boxed(),
        ValueType::U32 => any::<u32>().prop_map(Value::U32).boxed(),
        ValueType::I32 => any::<i32>().prop_map(Value::I32).boxed(),
        ValueType::U64 => any::<u64>().prop_map(Value::U64).boxed(),
        ValueType::I64 => any::<i64>().prop_map(Value::I64).boxed(),
        ValueType::F32 => any::<f32>().prop_map(Value::F32).boxed(),
        ValueType::F64 => any::<f64>().prop_map(Value::F64).boxed(),
        ValueType::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
        ValueType::String => return any::<String>().prop_map(Scalar::String).boxed(),
        ValueType::Array => unreachable!("arrays are made of scalars"),
    };
    fixed.prop_map(Scalar::Fixed).boxed()
}

fn scalar_type() -> impl Strategy<Value = ValueType> {
    let ids = (0..=12).filter_map(ValueType::from_id).filter(|&ty| ty != ValueType::Array);
    proptest::sample::select(ids.collect::<Vec<_>>())
}

fn owned() -> impl Strategy<Value = Owned> {
    prop_oneof![
        scalar_type().prop_flat_map(scalar).prop_map(Owned::Scalar),
        scalar_type().prop_flat_map(|ty| vec(scalar(ty), 0..20).prop_map(move |v| Owned::Array(ty, v))),
    ]
}

/// Name, type, blocks per row, other dimensions, a seed of the bytes.
type Tensor = (String, GgmlType, u64, Vec<u64>, u8);

fn tensors() -> impl Strategy<Value = Vec<Tensor>> {
    // Newer types are not gguf-rs's, which reads what is written.
    let known: Vec<GgmlType> = GgmlType::ALL.iter().copied().filter(|ty| ty.id() <= 39).collect();
    let ty = proptest::sample::select(known);
    vec(("[a-z._0-9]{1,63}", ty, 1..4u64, vec(1..4u64, 0..4), any::<u8>()), 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_is_written_is_read(
        pairs in proptest::collection::btree_map("\\PC{1,40}", owned(), 0..12),
        tensors in tensors(),
        alignment in proptest::option::of(3..9u32),
    ) {
        let mut w = writer();
        if let Some(a) = alignment {
            w.u32("general.alignment", 1 << a).unwrap();
        }
        for (key, value) in &pairs {
            match value {
                Owned::Scalar(v) => w.value(key, &v.value()).unwrap(),
                Owned::Array(ty, v) => w.array(key, *ty, v.iter().map(Scalar::value)).unwrap(),
            }
        }
        let mut declared: Vec<(&String, Vec<u64>, GgmlType, Vec<u8>)> = Vec::new();
        for (name, ty, blocks, dims, seed) in &tensors {
            let shape: Vec<u64> = [&[blocks * ty.block_len() as u64][..], &dims[..dims.len().min(3)]].concat();
            if declared.iter().any(|(n, ..)| *n == name) {
                continue; // names drawn twice are the writer's own test
            }
            w.tensor(name, &shape, *ty).unwrap();
            let n_bytes = shape.iter().product::<u64>() as usize / ty.block_len() * ty.block_bytes();
            let data: Vec<u8> = (0..n_bytes).map(|i| seed.wrapping_mul(31).wrapping_add(i as u8)).collect();
            declared.push((name, shape, *ty, data));
        }
        for (name, _, _, data) in &declared {
            w.data(name, data).unwrap();
        }
        let bytes = w.finish().unwrap();

        let g = Gguf::parse(&bytes).unwrap();
        prop_assert_eq!(g.alignment(), alignment.map_or(32, |a| 1 << a));
        prop_assert_eq!(g.metadata().len(), pairs.len() + usize::from(alignment.is_some()));
        for (key, value) in &pairs {
            let read = g.get(key).unwrap();
            match value {
                Owned::Scalar(v) => prop_assert!(same_bits(read, &v.value())),
                Owned::Array(ty, v) => {
                    let a = read.as_array().unwrap();
                    prop_assert_eq!((a.elem_type(), a.len()), (*ty, v.len()));
                    prop_assert!(a.iter().zip(v).all(|(a, b)| same_bits(&a, &b.value())));
                }
            }
        }
        prop_assert_eq!(g.tensors().len(), declared.len());
        for (t, (name, shape, ty, data)) in g.tensors().iter().zip(&declared) {
            prop_assert_eq!((&t.name, &t.shape, t.ty), (*name, shape, *ty));
            prop_assert_eq!(g.tensor_data(t), &data[..]);
        }
        walk(&g);
        assert_same(&bytes);
    }
}

/// Equality in which a NaN equals itself.
fn same_bits(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::F32(a), Value::F32(b)) => a.to_bits() == b.to_bits(),
        (Value::F64(a), Value::F64(b)) => a.to_bits() == b.to_bits(),
        _ => a == b,
    }
}
