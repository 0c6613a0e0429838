//! Models in several files.

mod common;

use common::Raw;
use ggml_ext::GgmlType;
use ggml_ext::gguf::Gguf;
use ggml_ext::gguf::split::{PartName, SplitError, SplitTensors};

#[test]
fn part_names() {
    let name = "dir.d/Llama-3-of-7-00002-of-00010.gguf";
    let part = PartName::parse(name).unwrap();
    assert_eq!(part, PartName { prefix: "dir.d/Llama-3-of-7", no: 1, count: 10 });
    assert_eq!(part.to_string(), name);
    let all: Vec<_> = part.all().collect();
    assert_eq!(all.len(), 10);
    assert_eq!(all[0], "dir.d/Llama-3-of-7-00001-of-00010.gguf");
    assert_eq!(all[9], "dir.d/Llama-3-of-7-00010-of-00010.gguf");
    assert_eq!(PartName::parse("m-65535-of-65535.gguf").unwrap().no, 65534);
    assert_eq!(PartName::parse("m-65535-of-65535.gguf").unwrap().to_string(), "m-65535-of-65535.gguf");
    assert_eq!(PartName::parse("-00001-of-00001.gguf").unwrap().prefix, "");
    for bad in [
        "",
        "model.gguf",
        "m-00001-of-00003",
        "m-00001-of-00003.bin",
        "m-00000-of-00003.gguf",
        "m-00004-of-00003.gguf",
        "m-00001-of-00000.gguf",
        "m-0001-of-00003.gguf",
        "m-00001-of-3.gguf",
        "m-000001-of-000003.gguf",
        "m-+0001-of-00003.gguf",
        "m-00001of00003.gguf",
        "m-99999-of-99999.gguf",
        "00001-of-00003.gguf",
        "é0001-of-00003.gguf",
        "€€€.gguf",
    ] {
        assert_eq!(PartName::parse(bad), None, "{bad}");
    }
}

/// Part `no` of `count` with one tensor, of a model with `total`.
fn part(no: u16, count: u16, total: i32, tensor: &str) -> Vec<u8> {
    Raw::new()
        .pair("split.no", 2, &no.to_le_bytes())
        .pair("split.count", 2, &count.to_le_bytes())
        .pair("split.tensors.count", 5, &total.to_le_bytes())
        .tensor(tensor, &[4], GgmlType::F32)
        .build()
}

#[track_caller]
fn check(parts: &[Vec<u8>]) -> Result<usize, SplitError> {
    let parsed: Vec<_> = parts.iter().map(|p| Gguf::parse(p).unwrap()).collect();
    SplitTensors::new(&parsed).map(|tensors| tensors.len())
}

#[test]
fn finds_tensors_over_parts() {
    let files = [part(0, 3, 3, "a"), part(1, 3, 3, "b"), part(2, 3, 3, "c")];
    let parts: Vec<_> = files.iter().map(|p| Gguf::parse(p).unwrap()).collect();
    let tensors = SplitTensors::new(&parts).unwrap();
    assert_eq!(tensors.len(), 3);
    let (i, t) = tensors.get("b").unwrap();
    assert_eq!((i, parts[i].tensor_data(t).len()), (1, 16));
    assert!(tensors.get("d").is_none());
    assert_eq!(check(&[part(0, 1, 1, "a")]), Ok(1));
    assert_eq!(check(&[Raw::new().tensor("a", &[4], GgmlType::F32).build()]), Ok(1));
}

#[test]
fn rejects_what_does_not_belong_together() {
    let unsplit = Raw::new().tensor("c", &[4], GgmlType::F32).build();
    let text_no = Raw::new().pair("split.count", 2, &[2, 0]).string("split.no", "1").build();
    let wrong_total = part(1, 2, 7, "b");
    for (parts, text) in [
        (
            vec![part(0, 3, 3, "a"), part(1, 3, 3, "b")],
            r#"part 1: key "split.count" says the model has 3 parts, 2 given"#,
        ),
        (
            vec![part(0, 2, 2, "a"), part(1, 3, 2, "b")],
            r#"part 2: key "split.count" says the model has 3 parts, 2 given"#,
        ),
        (
            vec![part(0, 2, 2, "a"), part(0, 2, 2, "b")],
            r#"in place of part 2 stands a file whose key "split.no" says that it is part 1"#,
        ),
        (
            vec![part(1, 2, 2, "b"), part(0, 2, 2, "a")],
            r#"in place of part 1 stands a file whose key "split.no" says that it is part 2"#,
        ),
        (vec![part(1, 2, 2, "b")], r#"part 1: key "split.count" says the model has 2 parts, 1 given"#),
        (vec![part(0, 2, 2, "a"), unsplit], r#"part 2: key "split.count" is missing"#),
        (vec![part(0, 2, 2, "a"), part(1, 2, 2, "a")], r#"tensor "a" is in part 1 and in part 2"#),
        (
            vec![part(0, 2, 2, "a"), wrong_total],
            r#"part 2: key "split.tensors.count" says the model has 7 tensors, its parts hold 2"#,
        ),
        (vec![part(0, 2, 2, "a"), text_no], r#"part 2: key "split.no" is of type string, expected u64"#),
    ] {
        assert_eq!(check(&parts).unwrap_err().to_string(), text);
    }
}
