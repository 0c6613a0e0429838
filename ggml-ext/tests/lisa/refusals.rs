//! What is refused, and that the message says where and why.

use crate::build::*;
use ggml_ext::GgmlType;
use ggml_ext::blocks::f32_to_f16;
use ggml_ext::gguf::{Gguf, GgufWriter};
use ggml_ext::lisa::{Geometry, Kind, LayerMeta, LisaMeta, MakeError, Part, check_tensors, extract};

fn sidecar(base: &[u8]) -> Sidecar {
    Sidecar::new(base, plan(base, Kind::Shared), 3)
}

/// The error of merging; it must name all of `parts` and be one line.
#[track_caller]
fn refused(sidecar: &Sidecar, base: &[u8], parts: &[&str]) -> MakeError {
    let e = sidecar.merge(base).unwrap_err();
    let text = e.to_string();
    assert!(parts.iter().all(|p| text.contains(p)) && !text.contains('\n'), "{text}");
    e
}

#[test]
fn another_base() {
    let base = family("llama");
    let good = sidecar(&base);
    assert!(good.merge(&base).is_ok());

    let other = family("llama_bias");
    let prints = [&good.meta.fingerprint[..16], &sidecar(&other).meta.fingerprint[..16]];
    let e = refused(&good, &other, &[prints[0], prints[1], "lisa.base.fingerprint"]);
    assert!(matches!(e, MakeError::Sidecar(_)));

    refused(&good, &embedded(), &["lisa.layer.kind", "3 layers", "has 5"]);
    // Of all that differs, the architecture comes first.
    refused(&good, &family("qwen2"), &["general.architecture", "llama", "qwen2"]);

    let mut wrong = good.clone();
    wrong.arch = "qwen2".into();
    refused(&wrong, &base, &["general.architecture", "qwen2", "llama"]);
    wrong.arch = good.arch.clone();
    wrong.kind = "model";
    refused(&wrong, &base, &["not a LISA sidecar", "general.type", "adapter"]);
}

#[test]
fn a_base_that_is_not_one() {
    let base = family("llama");
    let good = sidecar(&base);
    let (merged, _) = good.merge(&base).unwrap();
    let e = refused(&good, &merged, &["merged already", "lisa.version"]);
    assert!(matches!(e, MakeError::Model(_)));
    refused(&good, &good.bytes(), &["is a sidecar, expected a model"]);
    let foreign = rewritten(&base, |t| t.ty, &[("lisa.note", "x")]);
    refused(&good, &foreign, &["merged already", "lisa.note"]);

    let gguf = Gguf::parse(&base).unwrap();
    let changed = |rename: fn(&str) -> Option<String>| {
        let mut w = GgufWriter::new(Vec::new());
        gguf.metadata().for_each(|(k, v)| w.value(k, v).unwrap());
        let tensors = || gguf.tensors().iter().filter_map(|t| rename(&t.name).map(|n| (n, t)));
        tensors().for_each(|(n, t)| w.tensor(&n, &t.shape, t.ty).unwrap());
        tensors().for_each(|(n, t)| w.data(&n, gguf.tensor_data(t)).unwrap());
        w.finish().unwrap()
    };
    let stray = changed(|n| Some(n.replace("blk.1.attn_q.weight", "blk.1.lisa_q.weight")));
    refused(&good, &stray, &["merged already", "blk.1.lisa_q.weight"]);
    let unnormed = changed(|n| (n != "blk.1.attn_norm.weight").then(|| n.into()));
    refused(&good, &unnormed, &["blk.1.attn_norm.weight", "missing"]);
    let valueless = changed(|n| (n != "blk.2.attn_v.weight").then(|| n.into()));
    refused(&good, &valueless, &["blk.2.attn_v.weight", "missing", "blk.2.attn_qkv.weight", "layer 2"]);

    let fused = family("phi3");
    let e = sidecar(&fused);
    let gguf = Gguf::parse(&fused).unwrap();
    let mut w = GgufWriter::new(Vec::new());
    for (key, value) in gguf.metadata() {
        match key {
            "phi3.attention.head_count_kv" => w.u32(key, 1).unwrap(),
            _ => w.value(key, value).unwrap(),
        }
    }
    gguf.tensors().iter().for_each(|t| w.tensor(&t.name, &t.shape, t.ty).unwrap());
    gguf.tensors().iter().for_each(|t| w.data(&t.name, gguf.tensor_data(t)).unwrap());
    let fused = w.finish().unwrap();
    let mut e = Sidecar::new(&fused, e.meta.layers, 3);
    e.meta.layers[1] = layer(Kind::Kv, 0, 0);
    e.tensors.retain(|(t, _)| t.name.contains("blk.2."));
    refused(&e, &fused, &["blk.1.attn_qkv.weight", "value rows"]);
}

#[test]
fn tensors_that_are_missing() {
    let base = family("llama");
    let good = sidecar(&base);
    let needed = [Part::AlignSkip, Part::AlignUp, Part::AlignUpBias, Part::AlignDown, Part::Q, Part::K, Part::Freq];
    for part in needed {
        refused(&good.clone().without(1, part), &base, &[&part.tensor(1), "missing", "layer 1", "lisa", "rank 4"]);
    }
    // No hidden units at all, and no compensation, is as good.
    let less = good.without(1, Part::AlignUp).without(1, Part::AlignUpBias).without(1, Part::AlignDown);
    assert!(less.clone().without(2, Part::Comp).merge(&base).is_ok());
    assert!(less.merge(&base).is_ok());
}

#[test]
fn tensors_that_do_not_belong() {
    let base = family("llama");
    let good = sidecar(&base);
    let f32 = GgmlType::F32;
    for (name, why) in [
        ("blk.0.lisa_align_skip.weight", "layer 0 is of kind full"),
        ("blk.2.lisa_align_skip.weight", "layer 2 is of kind shared"),
        ("blk.2.lisa_q.weight", "layer 2 is of kind shared"),
        ("blk.1.lisa_comp.weight", "layer 1 is of kind lisa"),
        ("blk.3.lisa_q.weight", "no such layer, expected 0 to 2"),
        ("blk.1.lisa_gate.weight", "unknown"),
        ("blk.1.lisa_q.bias", "unknown"),
        ("blk.01.lisa_q.weight", "unknown"),
        ("lisa_table.weight", "unknown"),
        ("blk.1.attn_q.weight", "not a tensor of the extension"),
    ] {
        refused(&good.clone().with(name, &[4], f32), &base, &[name, why]);
    }
    let mut unranked = good;
    unranked.meta.layers[1].rank = 0;
    refused(&unranked, &base, &["blk.1.lisa_q.weight", "not expected", "rank 0"]);
}

#[test]
fn shapes_and_types() {
    let base = family("llama");
    let good = sidecar(&base);
    let f32 = GgmlType::F32;
    for (part, layer, shape, expected) in [
        (Part::AlignSkip, 1, &[4, 5][..], "[4, 4]"),
        (Part::AlignSkip, 1, &[16], "[4, 4]"),
        (Part::AlignUp, 1, &[3, 5], "[3, 4]"),
        (Part::AlignUpBias, 1, &[4], "[3]"),
        (Part::AlignDown, 1, &[3, 4], "[4, 3]"),
        (Part::Q, 1, &[64, 15], "[64, 16]"),
        (Part::Q, 1, &[16, 64], "[64, 16]"),
        (Part::K, 1, &[64, 16], "[64, 8]"),
        (Part::Freq, 1, &[2, 4], "[2, 2]"),
        (Part::Freq, 1, &[2, 2, 2], "[2, 2]"),
        (Part::Comp, 2, &[64, 32], "[64, 64]"),
    ] {
        let name = part.tensor(layer);
        let at = format!("layer {layer}");
        refused(&good.clone().with(&name, shape, f32), &base, &[&name, &format!("{shape:?}"), expected, &at]);
    }
    for (part, shape) in [(Part::AlignSkip, &[4, 4][..]), (Part::AlignUpBias, &[3]), (Part::Freq, &[2, 2])] {
        let name = part.tensor(1);
        refused(&good.clone().with(&name, shape, GgmlType::F16), &base, &[&name, "F16", "expected F32"]);
    }
    // ggml writes no trailing dimensions of one.
    let base = family("llama_mqa");
    let flat = sidecar(&base);
    assert_eq!(flat.clone().at(1, Part::Freq).0.shape, [2, 1]);
    assert!(flat.with("blk.1.lisa_freq.weight", &[2], f32).merge(&base).is_ok());
}

#[test]
fn values_that_are_not_finite() {
    let base = family("llama");
    let good = sidecar(&base);
    for part in [Part::AlignSkip, Part::AlignUp, Part::AlignUpBias, Part::AlignDown, Part::Freq] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut wrong = good.clone();
            wrong.at(1, part).1[4..8].copy_from_slice(&bad.to_le_bytes());
            refused(&wrong, &base, &[&part.tensor(1), "element 1 ", &bad.to_string(), "finite"]);
        }
    }
    // Far into an F16 tensor, in a BF16 tensor, and in a scale of a block.
    let mut wrong = good.clone();
    wrong.at(1, Part::Q).1[2 * 1023..][..2].copy_from_slice(&f32_to_f16(f32::INFINITY).to_le_bytes());
    refused(&wrong, &base, &["blk.1.lisa_q.weight", "element 1023 (row 15, column 63) is inf"]);
    let mut wrong = good.clone();
    wrong.at(2, Part::Comp).1[2 * 3000..][..2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    refused(&wrong, &base, &["blk.2.lisa_comp.weight", "element 3000 (row 46, column 56) is NaN"]);
    let mut wrong = good.clone();
    wrong.at(1, Part::K).1[3 * 34..][..2].copy_from_slice(&f32_to_f16(f32::NAN).to_le_bytes());
    refused(&wrong, &base, &["blk.1.lisa_k.weight", "(row 1, column 32) is NaN"]);
    // Subnormal and large numbers are numbers.
    let mut fine = good;
    fine.at(1, Part::AlignSkip).1[..8].copy_from_slice(&[f32::MAX.to_le_bytes(), 1e-42f32.to_le_bytes()].concat());
    assert!(fine.merge(&base).is_ok());
}

/// Sources must have the heads that the kind works with.
#[test]
fn heads_of_the_source() {
    let base = family("llama");
    let good = sidecar(&base);
    let gguf = Gguf::parse(&base).unwrap();
    let mut geometry = Geometry::read(&gguf).unwrap();
    let check = |meta: &LisaMeta, geometry: &Geometry| {
        let bytes = good.bytes();
        let g = Gguf::parse(&bytes).unwrap();
        check_tensors(meta, geometry, g.tensors().iter().map(|t| (t, g.tensor_data(t)))).map_err(|e| e.to_string())
    };
    assert_eq!(check(&good.meta, &geometry), Ok(()));
    geometry.layers[1].n_head = 2;
    let e = check(&good.meta, &geometry).unwrap_err();
    assert!(e.contains("layer 2") && e.contains("4 query heads") && e.contains("source 1 has 2"), "{e}");
    geometry.layers[1].n_head = 0;
    geometry.layers[2].n_head = 0;
    let e = check(&good.meta, &geometry).unwrap_err();
    assert!(e.contains("layer 1") && e.contains("heads"), "{e}");

    let mut meta = good.meta.clone();
    meta.layers = vec![LayerMeta::FULL, layer(Kind::Kv, 0, 0), LayerMeta::FULL];
    let mut geometry = Geometry::read(&gguf).unwrap();
    geometry.layers[0].n_head_kv = 1;
    let e = check(&meta, &geometry).unwrap_err();
    assert!(e.contains("layer 1") && e.contains("2 key heads") && e.contains("source 0 has 1"), "{e}");
}

#[test]
fn geometry_of_a_damaged_base() {
    let base = family("llama");
    let gguf = Gguf::parse(&base).unwrap();
    let message = |key: &str, set: &dyn Fn(&mut GgufWriter<Vec<u8>>)| {
        let mut w = GgufWriter::new(Vec::new());
        gguf.metadata().filter(|(k, _)| *k != key).for_each(|(k, v)| w.value(k, v).unwrap());
        set(&mut w);
        let bytes = w.finish().unwrap();
        let e = Geometry::read(&Gguf::parse(&bytes).unwrap()).map(|_| ()).unwrap_err().to_string();
        assert!(e.contains(key), "{e}");
        e
    };
    let key = "llama.block_count";
    assert!(message(key, &|_| ()).contains("missing"));
    assert!(message(key, &|w| w.u32(key, u32::MAX).unwrap()).contains("4294967295"));
    assert!(message(key, &|w| w.u32(key, 0).unwrap()).contains("expected 1 to"));
    assert!(message(key, &|w| w.str(key, "3").unwrap()).contains("string"));
    let key = "llama.attention.head_count";
    assert!(message(key, &|_| ()).contains("missing"));
    assert!(message(key, &|w| w.u32s(key, &[4, 4]).unwrap()).contains("2 values, expected one per layer: 3"));
    assert!(message(key, &|w| w.u32(key, u32::MAX).unwrap()).contains("4294967295"));

    let mut w = GgufWriter::new(Vec::new());
    let key = "llama.attention.head_count_kv";
    gguf.metadata().filter(|(k, _)| *k != key).for_each(|(k, v)| w.value(k, v).unwrap());
    w.u32s(key, &[2, 1, 4]).unwrap();
    let bytes = w.finish().unwrap();
    let geometry = Geometry::read(&Gguf::parse(&bytes).unwrap()).unwrap();
    assert_eq!(geometry.layers.iter().map(|l| l.n_head_kv).collect::<Vec<_>>(), [2, 1, 4]);
}

#[test]
fn nothing_to_extract() {
    let base = family("llama");
    let message = |bytes: &[u8]| extract(&[Gguf::parse(bytes).unwrap()], Vec::new()).unwrap_err().to_string();
    assert!(message(&base).contains("lisa.version is missing"));
    assert!(message(&sidecar(&base).bytes()).contains("is a sidecar already"));
    let (merged, _) = sidecar(&base).merge(&base).unwrap();
    let mut torn = merged.clone();
    let at = Gguf::parse(&merged).unwrap().tensor("blk.1.lisa_freq.weight").unwrap().offset as usize;
    torn[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(message(&torn).contains("blk.1.lisa_freq.weight"));
    assert!(extract(&[], Vec::new()).unwrap_err().to_string().contains("no file"));
}

/// Every byte of a small sidecar, changed in several ways: a message or an acceptance, never a panic.
#[test]
fn single_byte_mutations() {
    let base = family("llama_mqa");
    let geometry = Geometry::read(&Gguf::parse(&base).unwrap()).unwrap();
    let mut small = sidecar(&base);
    // The large tensors add nothing but time.
    small.meta.layers[2] = LayerMeta::FULL;
    let mut bytes = small.without(2, Part::Comp).bytes();
    let (mut refused, mut accepted) = (0, 0);
    let header = Gguf::parse(&bytes).unwrap().tensors()[0].offset as usize;
    for at in 0..bytes.len() {
        let original = bytes[at];
        let changes: &[u8] = if at < header { &[0x01, 0x80, 0xff, 0x04, 0x20] } else { &[0x80, 0x7f] };
        for change in changes {
            bytes[at] = original ^ change;
            let checked = Gguf::parse(&bytes).map_err(|e| e.to_string()).and_then(|g| {
                let meta = LisaMeta::read(&g).map_err(|e| e.to_string())?.ok_or("no extension")?;
                check_tensors(&meta, &geometry, g.tensors().iter().map(|t| (t, g.tensor_data(t))))
                    .map_err(|e| e.to_string())
            });
            match checked {
                Ok(()) => accepted += 1,
                Err(message) => {
                    assert!(!message.is_empty());
                    refused += 1;
                }
            }
        }
        bytes[at] = original;
    }
    // Most of the header is checked, most of the data is numbers.
    assert!(refused > header && accepted > 1000, "{refused} refused, {accepted} accepted");
}
