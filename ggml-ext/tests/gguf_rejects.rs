//! One handcrafted file for each check of the reader: refused, with an error that says where and what.

mod common;

use common::{Raw, array, assert_rejects, string};
use ggml_ext::GgmlType;
use ggml_ext::gguf::{Gguf, ValueType};

const ARRAY: u32 = ValueType::Array.id();

#[test]
fn magic() {
    assert_rejects(b"", &["not a GGUF file", r#"starts with """#]);
    assert_rejects(b"GG", &["not a GGUF file", r#"starts with "GG""#]);
    Raw { magic: *b"ggml", ..Raw::new() }.assert_rejects(&[r#"starts with "ggml""#]);
    Raw { magic: *b"PK\x03\x04", ..Raw::new() }.assert_rejects(&[r#"starts with "PK\x03\x04""#]);
}

#[test]
fn version() {
    Raw { version: 0, ..Raw::new() }.assert_rejects(&["offset 4", "version 0"]);
    Raw { version: 1, ..Raw::new() }.assert_rejects(&["offset 4", "version 1", "convert the model again"]);
    Raw { version: 4, ..Raw::new() }.assert_rejects(&["offset 4", "version 4", "expected 2 or 3"]);
    Raw { version: u32::MAX, ..Raw::new() }.assert_rejects(&["version 4294967295"]);
    for version in [1u32, 2, 3] {
        let raw = Raw { version: version.swap_bytes(), ..Raw::new() };
        raw.assert_rejects(&["big-endian", &format!("version {version}")]);
    }
}

#[test]
fn header_cut_short() {
    let bytes = Raw::new().build();
    for (len, what) in [(4, "the version"), (7, "the version"), (8, "tensors"), (15, "tensors"), (16, "metadata pairs")]
    {
        assert_rejects(&bytes[..len], &["header", what, "bytes"]);
    }
}

#[test]
fn counts_that_the_file_cannot_hold() {
    for n in [1, 1000, u64::MAX] {
        Raw { n_pairs: Some(n), ..Raw::new() }.assert_rejects(&[
            "header",
            "metadata pairs",
            "offset 16",
            &n.to_string(),
        ]);
        Raw { n_tensors: Some(n), ..Raw::new() }.assert_rejects(&["header", "tensors", "offset 8", &n.to_string()]);
    }
    // Room for a second pair or tensor, but it is not one.
    let raw = Raw { n_pairs: Some(2), ..Raw::new().u32("a", 1).tensor("t", &[1], GgmlType::F32) };
    // The description of the tensor reads as a pair of key "t" and type i8.
    raw.assert_rejects(&["tensor description 0", "offset 55", "0 bytes"]);
    let raw = Raw { n_tensors: Some(2), ..Raw::new().tensor("t", &[16], GgmlType::F32) };
    raw.assert_rejects(&["tensor description 1"]);
}

#[test]
fn keys() {
    Raw::new().u32("", 1).assert_rejects(&["metadata key 0", "offset 24", "0 bytes"]);
    let long = "k".repeat(65536);
    Raw::new().u32("a", 1).u32(&long, 1).assert_rejects(&["metadata key 1", "65536 bytes", "65535"]);
    Raw::new().u32("a", 1).u32("b", 2).u32("a", 1).assert_rejects(&["key \"a\"", "twice", "offset 58"]);
    Raw::new().pair(b"a\xff", 0, &[1]).assert_rejects(&["metadata key 0", "offset 32", "UTF-8", "byte 1"]);
    let unbounded = [&u64::MAX.to_le_bytes()[..], b"a", &[0; 5]].concat();
    Raw::new().raw_pair(&unbounded).assert_rejects(&["metadata key 0", "18446744073709551615 bytes"]);
    let behind_end = [&100u64.to_le_bytes()[..], b"abcdef"].concat();
    Raw::new().raw_pair(&behind_end).assert_rejects(&["metadata key 0", "needs 100 bytes", "6 left"]);
}

#[test]
fn values() {
    for ty in [13, 255, u32::MAX] {
        Raw::new().pair("a.b", ty, &[0; 8]).assert_rejects(&["key \"a.b\"", &format!("value type {ty}"), "offset 35"]);
    }
    Raw::new().pair("flag", 7, &[2]).assert_rejects(&["key \"flag\"", "bool", "is 2", "offset 40"]);
    Raw::new().pair("wide", 12, &[0; 7]).assert_rejects(&["key \"wide\"", "needs 8 bytes", "7 left"]);
    Raw::new().string("text", b"ab\xe2\x82").assert_rejects(&["key \"text\"", "UTF-8", "byte 2", "offset 48"]);
    for len in [4u64, 1 << 40, u64::MAX] {
        let value = [&len.to_le_bytes()[..], b"abc"].concat();
        Raw::new().pair("text", 8, &value).assert_rejects(&["key \"text\"", &format!("needs {len} bytes"), "3 left"]);
    }
}

#[test]
fn arrays() {
    // The product of count and size overflows for the last two.
    for count in [3, 1 << 40, 1 << 62, u64::MAX] {
        for elem in [ValueType::U32, ValueType::U64, ValueType::String, ValueType::Array, ValueType::Bool] {
            let raw = Raw::new().pair("list", ARRAY, &array(elem.id(), count, &[0; 2]));
            raw.assert_rejects(&["key \"list\"", "array elements", &format!("is {count}"), "offset 44"]);
        }
    }
    Raw::new().pair("list", ARRAY, &array(99, 0, &[])).assert_rejects(&["key \"list\"", "value type 99"]);
    Raw::new().pair("list", ARRAY, &array(7, 3, &[1, 0, 9])).assert_rejects(&["key \"list\"", "is 9", "offset 54"]);
    let strings = [string("ok"), string(b"\xff")].concat();
    Raw::new().pair("list", ARRAY, &array(8, 2, &strings)).assert_rejects(&["key \"list\"", "UTF-8", "offset 70"]);
    // Half a character, completed by the next string's length or text: neither makes it whole.
    for next in [string("x".repeat(0x80)), string(b"\x80")] {
        let strings = [string("ok"), string(b"\xc2"), next].concat();
        Raw::new().pair("list", ARRAY, &array(8, 3, &strings)).assert_rejects(&["key \"list\"", "UTF-8", "offset 70"]);
    }
    let strings = [string("ok"), 9u64.to_le_bytes().to_vec()].concat();
    Raw::new().pair("list", ARRAY, &array(8, 2, &strings)).assert_rejects(&["key \"list\"", "needs 9 bytes"]);
    let nested = [array(4, 1, &[0; 4]), array(4, 2, &[0; 4])].concat();
    Raw::new().pair("list", ARRAY, &array(9, 2, &nested)).assert_rejects(&["key \"list\"", "array elements"]);
    for depth in [5, 100_000] {
        let deep: Vec<u8> = (1..depth).flat_map(|_| array(9, 1, &[])).chain(array(0, 0, &[])).collect();
        Raw::new().pair("list", ARRAY, &deep).assert_rejects(&["key \"list\"", "nested deeper than 4"]);
    }
}

#[test]
fn alignment() {
    for a in [0, 3, 33, u32::MAX] {
        let raw = Raw::new().u32("general.alignment", a);
        raw.assert_rejects(&["general.alignment", &format!("is {a}"), "power of two"]);
    }
    Raw::new().string("general.alignment", "32").assert_rejects(&["general.alignment", "string"]);
    let raw = Raw::new().pair("general.alignment", 10, &32u64.to_le_bytes());
    raw.assert_rejects(&["general.alignment", "32 (u64)"]);
    let raw = Raw::new().u32("general.alignment", 1 << 31).tensor("t", &[1], GgmlType::F32);
    raw.assert_rejects(&["tensor \"t\"", "2147483648"]);
}

#[test]
fn tensor_names() {
    Raw::new().tensor("", &[1], GgmlType::F32).assert_rejects(&["tensor description 0", "0 bytes"]);
    let long = "t".repeat(65);
    let raw = Raw::new().tensor("ok", &[1], GgmlType::F32).tensor(&long, &[1], GgmlType::F32);
    raw.assert_rejects(&["tensor description 1", "65 bytes", "1 to 64"]);
    let raw = Raw::new().raw_tensor(b"\xc3", 1, &[1], 0, 0).data(4);
    raw.assert_rejects(&["tensor description 0", "UTF-8", "offset 32"]);
    let raw = Raw::new().tensor("a", &[1], GgmlType::F32).tensor("b", &[1], GgmlType::F32);
    raw.tensor("a", &[2], GgmlType::F32).assert_rejects(&["tensor \"a\"", "twice", "offset 90"]);
}

#[test]
fn dimensions() {
    Raw::new().raw_tensor("t", 0, &[1], 0, 0).data(4).assert_rejects(&["tensor \"t\"", "0 dimensions", "offset 33"]);
    Raw::new().raw_tensor("t", 5, &[1; 5], 0, 0).data(4).assert_rejects(&["tensor \"t\"", "5 dimensions"]);
    Raw::new().raw_tensor("t", u32::MAX, &[1], 0, 0).data(4).assert_rejects(&["tensor \"t\"", "4294967295 dimensions"]);
    for (dims, dim, offset) in [([0, 2], 0, 37), ([2, 0], 1, 45)] {
        let text = [format!("dimension {dim}"), format!("offset {offset}")];
        let raw = Raw::new().raw_tensor("t", 2, &dims, 0, 0).data(4);
        raw.assert_rejects(&["tensor \"t\"", &text[0], &text[1], "zero"]);
    }
    // Products that leave 63 or 64 bits, in elements or only in bytes.
    for dims in [&[1 << 63][..], &[1 << 62], &[1 << 61], &[1 << 32, 1 << 32], &[2, u64::MAX], &[1 << 20; 4]] {
        let raw = Raw::new().raw_tensor("t", dims.len() as u32, dims, 0, 0).data(4);
        raw.assert_rejects(&["tensor \"t\"", "63 bits", &format!("{dims:?}"), "offset 37"]);
    }
}

#[test]
fn types() {
    for id in (0..60).filter(|&id| GgmlType::from_id(id).is_none()) {
        let raw = Raw::new().raw_tensor("blk.0.ffn_up.weight", 1, &[256], id, 0).data(4096);
        let name = GgmlType::unsupported_name(id).unwrap_or("unknown to the format");
        raw.assert_rejects(&["tensor \"blk.0.ffn_up.weight\"", &format!("id {id}"), name, "offset 63"]);
    }
    Raw::new().raw_tensor("t", 1, &[1], u32::MAX, 0).data(4).assert_rejects(&["id 4294967295"]);
}

#[test]
fn rows_that_do_not_divide() {
    for &ty in GgmlType::ALL.iter().filter(|ty| !ty.is_float()) {
        let row = ty.block_len() as u64 + 1;
        let raw = Raw::new().raw_tensor("t", 2, &[row, ty.block_len() as u64], ty.id(), 0).data(1 << 20);
        raw.assert_rejects(&["tensor \"t\"", &format!("rows of {row} elements"), ty.name(), "offset 37"]);
    }
}

#[test]
fn data_outside_the_file() {
    let whole = Raw::new().tensor("a", &[8], GgmlType::F32).tensor("b", &[9], GgmlType::F32).build();
    assert!(Gguf::parse(&whole).is_ok());
    assert_rejects(&whole[..whole.len() - 1], &["tensor \"b\"", "36 bytes", &format!("{} bytes", whole.len() - 1)]);
    assert_rejects(&whole[..whole.len() - 36], &["tensor \"b\""]);
    assert_rejects(&whole[..whole.len() - 37], &["tensor \"a\""]);
    for offset in [32, 1 << 40, 1 << 63, u64::MAX - 31] {
        Raw::new().raw_tensor("t", 1, &[1], 0, offset).data(4).assert_rejects(&["tensor \"t\"", "4 bytes"]);
    }
    Raw::new().raw_tensor("t", 1, &[1 << 40], 0, 0).data(64).assert_rejects(&["tensor \"t\"", "4398046511104 bytes"]);
}

#[test]
fn misaligned_data() {
    for offset in [1, 4, 31, 33] {
        let raw = Raw::new().raw_tensor("t", 1, &[1], 0, offset).data(100);
        raw.assert_rejects(&["tensor \"t\"", &format!("offset {offset}"), "alignment 32", "offset 49"]);
    }
    let raw = Raw::new().u32("general.alignment", 64).raw_tensor("t", 1, &[1], 0, 32).data(200);
    raw.assert_rejects(&["tensor \"t\"", "alignment 64"]);
}

#[test]
fn overlapping_data() {
    for (a, b) in [(0, 0), (0, 32), (32, 0)] {
        let raw = Raw::new().raw_tensor("a", 1, &[16], 0, a).raw_tensor("b", 1, &[16], 0, b).data(200);
        raw.assert_rejects(&["tensor \"a\"", "tensor \"b\"", "overlaps"]);
    }
    // The overlap is between the first and the last of three.
    let raw =
        Raw::new().raw_tensor("a", 1, &[17], 0, 0).raw_tensor("b", 1, &[1], 0, 128).raw_tensor("c", 1, &[1], 0, 64);
    raw.data(200).assert_rejects(&["tensor \"a\"", "tensor \"c\"", "overlaps"]);
}

#[test]
fn long_and_strange_names_are_shown_short_and_escaped() {
    let key = format!("\u{1b}[31m{}", "k".repeat(60_000));
    let error = Gguf::parse(&Raw::new().pair(&key, 99, &[0; 4]).build()).unwrap_err().to_string();
    assert!(error.contains("\\u{1b}[31mkkk") && error.contains("(60005 bytes)") && error.len() < 300, "{error}");
}
