//! What the reader accepts, and what it reads from it.

mod common;

use common::{Raw, array, string};
use ggml_ext::GgmlType;
use ggml_ext::gguf::{Gguf, Value, ValueType};

fn i32s(values: &[i32]) -> Vec<u8> {
    array(ValueType::I32.id(), values.len() as u64, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
}

#[test]
fn reads_every_value_type() {
    let bytes = Raw::new()
        .pair("u8", 0, &[200])
        .pair("i8", 1, &[0x80])
        .pair("u16", 2, &65535u16.to_le_bytes())
        .pair("i16", 3, &(-300i16).to_le_bytes())
        .pair("u32", 4, &4_000_000_000u32.to_le_bytes())
        .pair("i32", 5, &(-5i32).to_le_bytes())
        .pair("f32", 6, &1.5f32.to_le_bytes())
        .pair("bool", 7, &[1])
        .pair("string", 8, &string("grüße"))
        .pair("array", 9, &i32s(&[1, -2, 3]))
        .pair("u64", 10, &u64::MAX.to_le_bytes())
        .pair("i64", 11, &i64::MIN.to_le_bytes())
        .pair("f64", 12, &0.1f64.to_le_bytes())
        .build();
    let g = Gguf::parse(&bytes).unwrap();
    assert_eq!((g.version(), g.alignment()), (3, 32));
    let keys: Vec<_> = g.metadata().map(|(k, v)| (k, v.type_name())).collect();
    assert_eq!(keys.len(), 13);
    assert!(keys.iter().all(|(k, ty)| k == ty || (*k == "array" && ty == "array of i32")), "{keys:?}");
    assert_eq!(g.get("u8"), Some(&Value::U8(200)));
    assert_eq!(g.get("i8"), Some(&Value::I8(-128)));
    assert_eq!(g.u32("u16"), Ok(Some(65535)));
    assert_eq!(g.i32("i16"), Ok(Some(-300)));
    assert_eq!(g.u32("u32"), Ok(Some(4_000_000_000)));
    assert_eq!(g.i32("i32"), Ok(Some(-5)));
    assert_eq!(g.f32("f32"), Ok(Some(1.5)));
    assert_eq!(g.bool("bool"), Ok(Some(true)));
    assert_eq!(g.str("string"), Ok(Some("grüße")));
    assert_eq!(g.i32s("array"), Ok(Some(vec![1, -2, 3])));
    assert_eq!(g.u64("u64"), Ok(Some(u64::MAX)));
    assert_eq!(g.get("i64"), Some(&Value::I64(i64::MIN)));
    assert_eq!(g.f32("f64"), Ok(Some(0.1)));
    common::walk(&g);
}

#[test]
fn getters_say_what_they_found() {
    let bytes = Raw::new()
        .u32("n", 7)
        .pair("big", 10, &(1u64 << 40).to_le_bytes())
        .pair("list", 9, &i32s(&[1, -2]))
        .string("s", "x")
        .build();
    let g = Gguf::parse(&bytes).unwrap();
    assert_eq!(g.u32("absent"), Ok(None));
    assert!(g.strings("absent").unwrap().is_none());
    for (error, text) in [
        (g.str("n").unwrap_err(), r#"key "n" is of type u32, expected string"#),
        (g.f32("n").unwrap_err(), r#"key "n" is of type u32, expected f32"#),
        (g.u32("s").unwrap_err(), r#"key "s" is of type string, expected u32"#),
        (g.u32("big").unwrap_err(), r#"key "big" is 1099511627776, which does not fit in u32"#),
        (g.u32s("list").unwrap_err(), r#"key "list" is -2, which does not fit in array of u32"#),
        (g.strings("list").unwrap_err(), r#"key "list" is of type array of i32, expected array of string"#),
        (g.f32s("list").unwrap_err(), r#"key "list" is of type array of i32, expected array of f32"#),
        (g.i32s("n").unwrap_err(), r#"key "n" is of type u32, expected array of i32"#),
    ] {
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn reads_arrays_without_copying_them() {
    let strings: Vec<u8> = ["<unk>", "", "▁the", "\n"].iter().flat_map(string).collect();
    let inner = [i32s(&[1, 2]), i32s(&[]), i32s(&[3])].concat();
    let bytes = Raw::new()
        .pair("tokens", 9, &array(ValueType::String.id(), 4, &strings))
        .pair("nested", 9, &array(ValueType::Array.id(), 3, &inner))
        .pair("flags", 9, &array(ValueType::Bool.id(), 3, &[1, 0, 1]))
        .pair("empty", 9, &array(ValueType::String.id(), 0, &[]))
        .build();
    let g = Gguf::parse(&bytes).unwrap();
    let tokens = g.strings("tokens").unwrap().unwrap();
    assert_eq!(tokens.iter().collect::<Vec<_>>(), ["<unk>", "", "▁the", "\n"]);
    assert_eq!((tokens.len(), tokens.iter().len()), (4, 4));
    let file = bytes.as_ptr_range();
    assert!(tokens.iter().all(|t| file.contains(&t.as_ptr())));
    let nested = g.get("nested").unwrap().as_array().unwrap();
    let lens: Vec<_> = nested.iter().map(|v| v.as_array().unwrap().len()).collect();
    assert_eq!(lens, [2, 0, 1]);
    assert_eq!(g.bools("flags"), Ok(Some(vec![true, false, true])));
    assert!(g.strings("empty").unwrap().unwrap().is_empty());
    assert_eq!(g.get("nested").unwrap().to_string(), "array[3] [i32[2] [1, 2], i32[0] [], i32[1] [3]]");
    common::walk(&g);
}

#[test]
fn finds_tensors_and_their_bytes() {
    for (version, alignment) in [(3, 32), (2, 32), (3, 64), (3, 1), (3, 4096)] {
        let raw = Raw { version, alignment, ..Raw::new() };
        let raw = if alignment == 32 { raw } else { raw.u32("general.alignment", alignment as u32) };
        let bytes = raw
            .tensor("a", &[3], GgmlType::F32)
            .tensor("b", &[64, 2], GgmlType::Q4_0)
            .tensor("c", &[256, 1, 2, 1], GgmlType::Q6_K)
            .build();
        let g = Gguf::parse(&bytes).unwrap();
        assert_eq!((g.version(), g.alignment(), g.tensors().len()), (version, alignment as u64, 3));
        let b = g.tensor("b").unwrap();
        assert_eq!((b.row_len(), b.n_rows(), b.n_elements(), b.n_bytes, b.ty), (64, 2, 128, 72, GgmlType::Q4_0));
        for t in g.tensors() {
            assert_eq!(t.offset % alignment as u64, 0);
            let expected: Vec<u8> = (0..t.n_bytes).map(|i| i as u8).collect();
            assert_eq!(g.tensor_data(t), expected, "{}", t.name);
        }
        assert_eq!(g.tensor("c").unwrap().shape, [256, 1, 2, 1]);
        assert!(g.tensor("d").is_none());
    }
}

#[test]
fn accepts_the_edges() {
    // A vocabulary-only file has no tensors, and need not be padded to the alignment either.
    assert!(Gguf::parse(&Raw::new().u32("k", 1).build()).unwrap().tensors().is_empty());
    assert_eq!(Gguf::parse(&Raw::new().build()).unwrap().metadata().len(), 0);
    // The longest names.
    let raw = Raw::new().string(&"k".repeat(65535), "v").tensor(&"t".repeat(64), &[1], GgmlType::F32);
    assert!(Gguf::parse(&raw.build()).is_ok());
    // Tensors out of file order, unused bytes between and after them.
    let bytes = Raw::new().raw_tensor("b", 1, &[1], 0, 64).raw_tensor("a", 1, &[1], 0, 0).data(100).build();
    let g = Gguf::parse(&bytes).unwrap();
    assert_eq!(g.tensor("b").unwrap().offset - g.tensor("a").unwrap().offset, 64);
    // Arrays to the depth limit.
    let nested = (0..3).fold(i32s(&[1]), |inner, _| array(9, 1, &inner));
    assert!(Gguf::parse(&Raw::new().pair("deep", 9, &nested).build()).is_ok());
}

#[test]
fn strings_of_any_length_in_one_array() {
    // 127 and less have one ASCII byte of length, 0x80c2 has two that are a character of their own.
    let lengths = [0, 1, 127, 128, 129, 255, 256, 0x80c2, 3];
    for n in 1..=lengths.len() {
        let strings: Vec<String> =
            lengths[..n].iter().map(|&len| format!("{}{}", "é".repeat(len / 2), &"x"[..len % 2])).collect();
        let bytes =
            Raw::new().pair("list", 9, &array(8, n as u64, &strings.iter().flat_map(string).collect::<Vec<_>>()));
        let bytes = bytes.build();
        let g = Gguf::parse(&bytes).unwrap();
        let list = g.strings("list").unwrap().unwrap();
        assert_eq!((list.len(), list.iter().collect::<Vec<_>>()), (n, strings.iter().map(String::as_str).collect()));
        let values: Vec<_> = g.get("list").unwrap().as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        assert_eq!(values, strings);
    }
}

#[test]
fn values_can_be_set() {
    let bytes = Raw::new().u32("n", 7).string("s", "x").build();
    let mut g = Gguf::parse(&bytes).unwrap();
    g.set("n", Value::F32(0.5));
    g.set("new", Value::Bool(true));
    assert_eq!((g.f32("n"), g.str("s"), g.bool("new")), (Ok(Some(0.5)), Ok(Some("x")), Ok(Some(true))));
    assert_eq!(g.metadata().map(|(key, _)| key).collect::<Vec<_>>(), ["n", "s", "new"]);
}
