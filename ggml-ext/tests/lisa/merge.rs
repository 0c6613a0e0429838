//! What merging keeps, drops and cuts, and that extracting gives the sidecar back.

use crate::build::*;
use ggml_ext::GgmlType;
use ggml_ext::gguf::{Gguf, GgufWriter, Value};
use ggml_ext::lisa::{Kind, LayerMeta, LisaMeta, Sum, extract, merge};
use std::io::Read;

fn extracted(merged: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    extract(&[Gguf::parse(merged).unwrap()], &mut out).unwrap();
    out
}

fn names(gguf: &Gguf) -> Vec<String> {
    gguf.tensors().iter().map(|t| t.name.clone()).collect()
}

/// For each family and kind: exactly the idle projections are gone, and every other byte of the base is there.
#[test]
fn idle_projections_are_dropped_and_nothing_else() {
    let families = ["llama", "llama_bias", "llama_mqa", "llama_head_dim", "qwen2", "qwen3", "gemma3", "deepseek2"];
    const IDLE: [&str; 8] = ["q.", "k.", "q_norm.", "k_norm.", "q_a.", "q_a_norm.", "q_b.", "k_b."];
    const IDLE_IN_KV: [&str; 5] = ["k.", "v.", "k_norm.", "kv_a_mqa.", "kv_a_norm."];
    for (name, third) in families.iter().flat_map(|f| [Kind::Shared, Kind::Lisa, Kind::Kv].map(|k| (f, k))) {
        let base = family(name);
        let sidecar = Sidecar::new(&base, plan(&base, third), 5);
        let (out, report) = sidecar.merge(&base).unwrap();
        let (base, out) = (Gguf::parse(&base).unwrap(), Gguf::parse(&out).unwrap());

        let idle = |t: &str| {
            let of =
                |layer: usize, parts: &[&str]| parts.iter().any(|p| t.starts_with(&format!("blk.{layer}.attn_{p}")));
            of(1, &IDLE) || of(2, if third == Kind::Kv { &IDLE_IN_KV } else { &IDLE })
        };
        let kept = base.tensors().iter().filter(|t| !idle(&t.name));
        let expected: Vec<_> = kept.map(|t| &t.name).chain(sidecar.tensors.iter().map(|(t, _)| &t.name)).collect();
        assert_eq!(names(&out).iter().collect::<Vec<_>>(), expected, "{name} {third}");
        for t in out.tensors() {
            let original = base.tensor(&t.name).map(|b| (&b.shape, b.ty, base.tensor_data(b)));
            let added =
                || sidecar.tensors.iter().find(|(s, _)| s.name == t.name).map(|(s, d)| (&s.shape, s.ty, &d[..]));
            assert_eq!(Some((&t.shape, t.ty, out.tensor_data(t))), original.or_else(added), "{name} {}", t.name);
        }
        let dropped: Vec<_> = base.tensors().iter().filter(|t| idle(&t.name)).map(|t| t.n_bytes).collect();
        assert!(dropped.len() >= 4);
        assert_eq!(report.dropped, Sum { tensors: dropped.len(), bytes: dropped.iter().sum() });
        assert_eq!(report.cut, Sum::default());
        let added = sidecar.tensors.iter().map(|(_, d)| d.len() as u64);
        assert_eq!(report.added, Sum { tensors: added.len(), bytes: added.sum() });

        let n = base.metadata().len();
        assert!(out.metadata().take(n).eq(base.metadata()), "{name}");
        assert!(out.metadata().skip(n).all(|(key, _)| key.starts_with("lisa.")));
        assert_eq!(LisaMeta::read(&out).unwrap(), Some(sidecar.meta));
    }
}

/// Fused projections, in F32 and in blocks: what is left has the values of the rows that it stands for.
#[test]
fn fused_projections_are_cut_to_the_rows_in_use() {
    let original = family("phi3");
    let blocks = rewritten(&original, |t| if t.name.contains("attn_qkv") { GgmlType::Q8_0 } else { t.ty }, &[]);
    for (base, third) in [(&original, Kind::Shared), (&original, Kind::Kv), (&blocks, Kind::Lisa), (&blocks, Kind::Kv)]
    {
        let (out, report) = Sidecar::new(base, plan(base, third), 0).merge(base).unwrap();
        let (base, out) = (Gguf::parse(base).unwrap(), Gguf::parse(&out).unwrap());
        let number = |key: &str| base.u32(&format!("phi3.{key}")).unwrap().unwrap() as usize;
        let (n_embd, n_head, n_kv) =
            (number("embedding_length"), number("attention.head_count"), number("attention.head_count_kv"));
        let d = n_embd / n_head;
        let (q, k) = (n_head * d, n_kv * d);
        let mut cut = 0;
        for (layer, kind) in [(1, Kind::Lisa), (2, third)] {
            let name = format!("blk.{layer}.attn_qkv.weight");
            let whole = floats(&base, &name);
            assert_eq!(whole.len(), n_embd * (q + 2 * k));
            let (left, rows) = if kind == Kind::Kv {
                ("attn_q", &whole[..n_embd * q])
            } else {
                ("attn_v", &whole[n_embd * (q + k)..])
            };
            let left = format!("blk.{layer}.{left}.weight");
            assert_eq!(floats(&out, &left), rows);
            assert_eq!(out.tensor(&left).unwrap().shape, [n_embd as u64, (rows.len() / n_embd) as u64]);
            assert!(out.tensor(&name).is_none());
            assert_eq!(names(&out).iter().position(|n| *n == left), names(&base).iter().position(|n| *n == name));
            cut += base.tensor(&name).unwrap().n_bytes - out.tensor(&left).unwrap().n_bytes;
        }
        assert!(out.tensor("blk.0.attn_qkv.weight").is_some());
        assert_eq!((report.dropped, report.cut), (Sum::default(), Sum { tensors: 2, bytes: cut }));
    }
}

/// The model with one vector more.
fn with_vector(base: &[u8], name: &str, n: u64, ty: GgmlType) -> Vec<u8> {
    let gguf = Gguf::parse(base).unwrap();
    let (t, data) = tensor(name, &[n], ty, &values(n, 7));
    let mut w = GgufWriter::new(Vec::new());
    gguf.metadata().for_each(|(k, v)| w.value(k, v).unwrap());
    gguf.tensors().iter().chain([&t]).for_each(|t| w.tensor(&t.name, &t.shape, t.ty).unwrap());
    gguf.tensors().iter().for_each(|t| w.data(&t.name, gguf.tensor_data(t)).unwrap());
    w.data(&t.name, &data).unwrap();
    w.finish().unwrap()
}

#[test]
fn a_factor_goes_with_the_rows_that_are_left() {
    let base = with_vector(&family("phi3"), "blk.2.attn_qkv.scale", 1, GgmlType::F32);
    for (third, left) in [(Kind::Shared, "attn_v"), (Kind::Kv, "attn_q")] {
        let (out, _) = Sidecar::new(&base, plan(&base, third), 0).merge(&base).unwrap();
        let out = Gguf::parse(&out).unwrap();
        assert!(out.tensor("blk.2.attn_qkv.scale").is_none() && out.tensor(&format!("blk.2.{left}.weight")).is_some());
        assert_eq!(floats(&out, &format!("blk.2.{left}.scale")), values(1, 7), "{third}");
    }
}

#[test]
fn a_fused_bias_is_cut_with_its_weight() {
    let original = family("phi3");
    let n = Gguf::parse(&original).unwrap().tensor("blk.1.attn_qkv.weight").unwrap().n_rows();
    let with_bias = |ty: GgmlType| with_vector(&original, "blk.1.attn_qkv.bias", n, ty);
    let base = with_bias(GgmlType::F32);
    let (out, _) = Sidecar::new(&base, plan(&base, Kind::Kv), 0).merge(&base).unwrap();
    let out = Gguf::parse(&out).unwrap();
    let n_v = out.tensor("blk.1.attn_v.weight").unwrap().n_rows() as usize;
    assert_eq!(floats(&out, "blk.1.attn_v.bias"), values(n, 7)[n as usize - n_v..]);

    let base = with_bias(GgmlType::Q8_0);
    let e = Sidecar::new(&base, plan(&base, Kind::Kv), 0).merge(&base).unwrap_err().to_string();
    assert!(e.contains("blk.1.attn_qkv.bias") && e.contains("Q8_0"), "{e}");
}

#[test]
fn extracting_gives_the_sidecar_back_to_the_byte() {
    for base in [family("llama"), family("phi3"), family("gemma3"), embedded()] {
        for (third, n_hidden) in [(Kind::Shared, 0), (Kind::Lisa, 6), (Kind::Kv, 1)] {
            let mut sidecar = Sidecar::new(&base, plan(&base, third), n_hidden);
            sidecar.extra = vec![("general.name", "a name"), ("tool.note", "x"), ("lisa.later", "a key of tomorrow")];
            let bytes = sidecar.bytes();
            let (first, _) = merged(&[&base], &bytes).unwrap();
            assert!(extracted(&first) == bytes);
            let (second, _) = merged(&[&base], &extracted(&first)).unwrap();
            assert!(first == second);
            // The model's own name is not the sidecar's.
            let name = |b: &[u8]| Gguf::parse(b).unwrap().str("general.name").unwrap().map(String::from);
            assert_eq!(name(&first), name(&base));
        }
    }
}

/// A plan of kinds without tensors needs no sidecar.
#[test]
fn a_plan_alone() {
    let base = embedded();
    let layers = |k| vec![LayerMeta::FULL, layer(k, 0, 0), LayerMeta::FULL, layer(k, 2, 0), LayerMeta::FULL];
    for kind in [Kind::Shared, Kind::Kv] {
        let meta = Sidecar::new(&base, layers(kind), 0).meta;
        let base = [Gguf::parse(&base).unwrap()];
        let mut out = Vec::new();
        let report = merge(&base, &meta, None, &mut out).unwrap();
        assert_eq!((report.dropped.tensors, report.added), (4, Sum::default()));
        assert_eq!(LisaMeta::read(&Gguf::parse(&out).unwrap()).unwrap(), Some(meta));
    }
    let meta = Sidecar::new(&base, layers(Kind::Lisa), 0).meta;
    let e = merge(&[Gguf::parse(&base).unwrap()], &meta, None, Vec::new()).unwrap_err().to_string();
    assert!(e.contains("blk.1.lisa_align_skip.weight") && e.contains("missing"), "{e}");
}

/// The parts of a split model merge to the same file as the model in one.
#[test]
fn parts_merge_into_one_file() {
    let base = family("llama");
    let gguf = Gguf::parse(&base).unwrap();
    let n = gguf.tensors().len();
    let part = |no: u16, tensors: std::ops::Range<usize>| {
        let mut w = GgufWriter::new(Vec::new());
        if no == 0 {
            gguf.metadata().for_each(|(k, v)| w.value(k, v).unwrap());
        }
        w.u16("split.no", no).unwrap();
        w.u16("split.count", 2).unwrap();
        w.value("split.tensors.count", &Value::I32(n as i32)).unwrap();
        gguf.tensors()[tensors.clone()].iter().for_each(|t| w.tensor(&t.name, &t.shape, t.ty).unwrap());
        gguf.tensors()[tensors].iter().for_each(|t| w.data(&t.name, gguf.tensor_data(t)).unwrap());
        w.finish().unwrap()
    };
    let (first, second) = (part(0, 0..n / 2), part(1, n / 2..n));
    let sidecar = Sidecar::new(&base, plan(&base, Kind::Shared), 3).bytes();
    let (parts, _) = merged(&[&first, &second], &sidecar).unwrap();
    assert!(parts == merged(&[&base], &sidecar).unwrap().0);
    let e = merged(&[&first], &sidecar).unwrap_err().to_string();
    assert!(e.contains("split.count"), "{e}");
}

/// The alignment of the base is the merged file's.
#[test]
fn alignment_is_kept() {
    let base = family("llama");
    let gguf = Gguf::parse(&base).unwrap();
    let mut w = GgufWriter::new(Vec::new());
    w.u32("general.alignment", 256).unwrap();
    gguf.metadata().for_each(|(k, v)| w.value(k, v).unwrap());
    gguf.tensors().iter().for_each(|t| w.tensor(&t.name, &t.shape, t.ty).unwrap());
    gguf.tensors().iter().for_each(|t| w.data(&t.name, gguf.tensor_data(t)).unwrap());
    let base = w.finish().unwrap();
    let sidecar = Sidecar::new(&base, plan(&base, Kind::Shared), 3);
    let (out, _) = sidecar.merge(&base).unwrap();
    assert_eq!(Gguf::parse(&out).unwrap().alignment(), 256);
    assert!(extracted(&out) == sidecar.bytes());
}

/// The sidecars of `tests/data/sharing`, which another program wrote.
#[test]
fn sidecars_of_another_program() {
    let unzip = |name: &str| {
        let mut bytes = Vec::new();
        let packed = std::fs::read(path("tests/data/sharing").join(name)).ok()?;
        flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut bytes).unwrap();
        Some(bytes)
    };
    let mut n = 0;
    for entry in std::fs::read_dir(path("tests/data/sharing")).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let Some(name) = file.strip_suffix(".lisa.gguf.gz") else { continue };
        let runs: serde_json::Value = serde_json::from_slice(&unzip(&format!("{name}.json.gz")).unwrap()).unwrap();
        let base = runs["base"].as_str().unwrap();
        let base = unzip(&format!("{base}.gguf.gz")).unwrap_or_else(|| family(base));
        let sidecar = unzip(&file).unwrap();
        let (first, _) = merged(&[&base], &sidecar).unwrap_or_else(|e| panic!("{name}: {e}"));
        let back = extracted(&first);
        let (a, b) = (Gguf::parse(&sidecar).unwrap(), Gguf::parse(&back).unwrap());
        assert_eq!(LisaMeta::read(&a).unwrap(), LisaMeta::read(&b).unwrap());
        assert_eq!(names(&a), names(&b));
        assert!(a.tensors().iter().zip(b.tensors()).all(|(s, t)| a.tensor_data(s) == b.tensor_data(t)), "{name}");
        assert!(merged(&[&base], &back).unwrap().0 == first, "{name}");
        n += 1;
    }
    assert!(n > 10, "{n}");
}
