//! Modules in the orders of other programs become the tensors of a known sidecar.

use crate::build::*;
use ggml_ext::GgmlType;
use ggml_ext::blocks::{f32_to_bf16, f32_to_f16};
use ggml_ext::gguf::{Gguf, GgufWriter};
use ggml_ext::lisa::{ConvertError, Kind, LisaMeta, Map, Part, convert};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize};
use serde_json::{Value, json};

/// A tensor of a safetensors file.
#[derive(Clone)]
struct St {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl St {
    fn new(name: impl Into<String>, dtype: Dtype, shape: &[usize], x: &[f32]) -> Self {
        let data = match dtype {
            Dtype::F64 => x.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect(),
            Dtype::F16 => x.iter().flat_map(|&v| f32_to_f16(v).to_le_bytes()).collect(),
            Dtype::BF16 => x.iter().flat_map(|&v| f32_to_bf16(v).to_le_bytes()).collect(),
            _ => x.iter().flat_map(|&v| v.to_le_bytes()).collect(),
        };
        Self { name: name.into(), dtype, shape: shape.into(), data }
    }
}

fn file(tensors: &[St]) -> Vec<u8> {
    let view = |t: &'_ St| TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap().data().to_vec();
    assert!(tensors.iter().all(|t| view(t) == t.data));
    let views = tensors.iter().map(|t| (&t.name, TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()));
    serialize(views, None).unwrap()
}

/// Columns become rows, stated for its own sake: `x` is `[n_rows][n_cols]`.
fn turned(x: &[f32], n_rows: usize, n_cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    for row in 0..n_rows {
        for col in 0..n_cols {
            out[col * n_rows + row] = x[row * n_cols + col];
        }
    }
    out
}

/// The known sidecar: `lisa` of rank 4 with 3 hidden units and `shared` with compensation on `llama`; low-rank tensors
/// in F32 whose values F16 and BF16 hold exactly.
fn known(base: &[u8]) -> Sidecar {
    let mut s = Sidecar::new(base, plan(base, Kind::Shared), 3);
    for (i, (t, data)) in s.tensors.iter_mut().enumerate() {
        let x: Vec<f32> = values(t.n_elements(), i as u64 + 50).iter().map(|v| (v * 256.0).round() / 128.0).collect();
        let (info, bytes) = tensor(&t.name, &t.shape, GgmlType::F32, &x);
        (*t, *data) = (info, bytes);
    }
    s
}

/// The known sidecar's tensors as a PyTorch program stores them: `[out, in]`, pairs in halves.
fn torch(s: &Sidecar) -> Vec<St> {
    let bytes = s.bytes();
    let g = Gguf::parse(&bytes).unwrap();
    let get = |n: &str| floats(&g, n);
    // Row 2p of a head goes to p, row 2p + 1 to p + 2.
    let halves = |x: Vec<f32>| -> Vec<f32> {
        x.chunks(4 * 64).flat_map(|head| [0, 2, 1, 3].map(|row| head[row * 64..][..64].to_vec())).flatten().collect()
    };
    let at = |part: &str| format!("model.layers.1.self_attn.lisa.{part}");
    vec![
        St::new(at("skip.weight"), Dtype::F32, &[4, 4], &turned(&get("blk.1.lisa_align_skip.weight"), 4, 4)),
        St::new(at("up.weight"), Dtype::BF16, &[3, 4], &turned(&get("blk.1.lisa_align_up.weight"), 4, 3)),
        St::new(at("up.bias"), Dtype::F64, &[3], &get("blk.1.lisa_align_up.bias")),
        St::new(at("down.weight"), Dtype::F64, &[4, 3], &turned(&get("blk.1.lisa_align_down.weight"), 3, 4)),
        St::new(at("q_proj.weight"), Dtype::F16, &[16, 64], &halves(get("blk.1.lisa_q.weight"))),
        St::new(at("k_proj.weight"), Dtype::BF16, &[8, 64], &halves(get("blk.1.lisa_k.weight"))),
        St::new(at("freq"), Dtype::F32, &[2, 2], &get("blk.1.lisa_freq.weight")),
        St::new("model.layers.2.comp.weight", Dtype::F32, &[64, 64], &get("blk.2.lisa_comp.weight")),
        St::new("model.layers.0.self_attn.q_proj.weight", Dtype::F32, &[2, 2], &[f32::NAN; 4]),
    ]
}

fn map() -> Value {
    let at = |part: &str| format!("model.layers.{{layer}}.self_attn.lisa.{part}");
    json!({
        "tensors": {
            "skip": at("skip.weight"), "up": at("up.weight"), "up_bias": at("up.bias"), "down": at("down.weight"),
            "q": at("q_proj.weight"), "k": at("k_proj.weight"), "freq": at("freq"),
            "comp": "model.layers.{layer}.comp.weight",
        },
        "layers": {"1": {}, "2": {"kind": "shared"}},
        "activation": "silu",
        "rope_pairs": "half",
        "type": "F32",
        "trained": {"tokens": 3, "data": "none", "seed": 4},
    })
}

fn converted(base: &[u8], tensors: &[St], map: &Value) -> Result<Vec<u8>, ConvertError> {
    let mut out = Vec::new();
    convert(&[Gguf::parse(base).unwrap()], &file(tensors), &Map::parse(&map.to_string())?, &mut out)?;
    Ok(out)
}

fn without(map: &Value, path: &[&str]) -> Value {
    let mut map = map.clone();
    let (last, folders) = path.split_last().unwrap();
    let object = folders.iter().fold(&mut map, |v, key| &mut v[key]);
    object.as_object_mut().unwrap().remove(*last);
    map
}

#[test]
fn torch_modules_become_the_known_sidecar() {
    let base = family("llama");
    let known = known(&base);
    let out = converted(&base, &torch(&known), &map()).unwrap();
    assert!(out == known.bytes());
    // Which a model takes.
    assert!(merged(&[&base], &out).is_ok());
}

/// The same from the other order and the other pairing, and with the plan spelled out.
#[test]
fn the_other_orders() {
    let base = family("llama");
    let known = known(&base);
    let bytes = known.bytes();
    let g = Gguf::parse(&bytes).unwrap();
    let mut map = map();
    map["rope_pairs"] = "interleaved".into();
    map["layers"] = json!({"1": {"kind": "lisa", "source": 0, "rank": 4}, "2": {"kind": "shared", "source": 1}});
    map["scale"] = 0.25.into();
    map["domain"] = "log".into();
    let mut tensors = Vec::new();
    for (part, key) in [
        (Part::AlignSkip, "skip"),
        (Part::AlignUp, "up"),
        (Part::AlignDown, "down"),
        (Part::Q, "q"),
        (Part::K, "k"),
        (Part::Comp, "comp"),
    ] {
        let layer = if part == Part::Comp { 2 } else { 1 };
        let (t, x) = (g.tensor(&part.tensor(layer)).unwrap(), floats(&g, &part.tensor(layer)));
        let (fast, slow) = (t.shape[0] as usize, t.shape[1] as usize);
        // Alignment: GGUF rows are inputs already. Projections: they are outputs.
        let by_input = matches!(part, Part::AlignSkip | Part::AlignUp | Part::AlignDown);
        let (shape, x) = if by_input { ([slow, fast], x) } else { ([fast, slow], turned(&x, slow, fast)) };
        tensors.push(St::new(format!("m.{layer}.{key}"), Dtype::F32, &shape, &x));
        map["tensors"][key] = json!({"name": format!("m.{{layer}}.{key}"), "order": "[in, out]"});
    }
    let torch = torch(&known);
    tensors.extend(torch.into_iter().filter(|t| t.name.ends_with("bias") || t.name.ends_with("freq")));
    assert!(converted(&base, &tensors, &map).unwrap() == bytes);
}

/// Without layers in the map, layers with tensors are `lisa` from the layer before; types of blocks; a network without
/// bias; frequencies from the base.
#[test]
fn defaults_and_frequencies() {
    let base = family("llama");
    let mut tensors = torch(&known(&base));
    tensors.retain(|t| !["bias", "freq", "comp.weight"].iter().any(|end| t.name.ends_with(end)));
    let mut map = without(&without(&without(&map(), &["layers"]), &["tensors", "up_bias"]), &["tensors", "freq"]);
    map["type"] = "Q8_0".into();
    map["freq_pairs"] = json!([[0, 3], [7, 1]]);
    let read = |map: &Value| -> (LisaMeta, Vec<f32>, Vec<f32>, GgmlType) {
        let out = converted(&base, &tensors, map).unwrap();
        let g = Gguf::parse(&out).unwrap();
        let ty = g.tensor("blk.1.lisa_q.weight").unwrap().ty;
        let meta = LisaMeta::read(&g).unwrap().unwrap();
        (meta, floats(&g, "blk.1.lisa_freq.weight"), floats(&g, "blk.1.lisa_align_up.bias"), ty)
    };
    let (meta, freq, bias, ty) = read(&map);
    assert_eq!(meta.layers, [layer_full(), layer(Kind::Lisa, 0, 4), layer_full()]);
    assert_eq!((meta.scale, bias, ty), (0.25, vec![0.0; 3], GgmlType::Q8_0));
    // Heads of 16: pair p turns by 10000^(-2p/16).
    let expected: Vec<f32> = [0, 3, 7, 1].iter().map(|&p| 10_000f64.powf(f64::from(p) / -8.0) as f32).collect();
    assert_eq!(freq, expected);

    map["freq_base"] = 100.0.into();
    map["freq_pairs"] = json!({"1": [4, 0]});
    assert_eq!(read(&map).1, [0.1, 1.0, 0.1, 1.0]);
    map["type"] = Value::Null;
    assert_eq!(read(&map).3, GgmlType::F16);

    // A factor stretches every pair, divisors each its own; what depends on the context has no one answer.
    let mut map = without(&map, &["freq_base"]);
    map["freq_pairs"] = json!([2, 5]);
    let frequencies = |name: &str| {
        let out = converted(&family(name), &tensors, &map);
        out.map(|out| floats(&Gguf::parse(&out).unwrap(), "blk.1.lisa_freq.weight"))
    };
    let by = |name: &str, d: [f32; 2]| {
        let base = family(name);
        let theta = Gguf::parse(&base).unwrap().f32("llama.rope.freq_base").unwrap().unwrap();
        let of = |p: i32, d: f32| (f64::from(theta).powf(f64::from(p) / -8.0) / f64::from(d)) as f32;
        [of(2, d[0]), of(5, d[1]), of(2, d[0]), of(5, d[1])]
    };
    let base = family("llama_linear");
    let factor = Gguf::parse(&base).unwrap().f32("llama.rope.scaling.factor").unwrap().unwrap();
    assert!(factor > 1.0);
    assert_eq!(frequencies("llama_linear").unwrap(), by("llama_linear", [factor; 2]));
    let base = family("llama_rope_freqs");
    let divisors = floats(&Gguf::parse(&base).unwrap(), "rope_freqs.weight");
    assert!(divisors[5] > 1.0);
    assert_eq!(frequencies("llama_rope_freqs").unwrap(), by("llama_rope_freqs", [divisors[2], divisors[5]]));
    let message = frequencies("llama_yarn").unwrap_err().to_string();
    assert!(message.contains("freq_pairs") && message.contains("yarn"), "{message}");
    let message = frequencies("llama_window_key").unwrap_err().to_string();
    assert!(message.contains("freq_pairs") && message.contains("sliding_window"), "{message}");
}

/// A number of rotated values that no head has, whatever it asks for.
#[test]
fn rotated_values_are_values_of_a_head() {
    let base = family("llama");
    let mut tensors = torch(&known(&base));
    tensors.retain(|t| !t.name.ends_with("freq"));
    let mut map = without(&map(), &["tensors", "freq"]);
    map["freq_pairs"] = json!([[0, 3], [7, 1]]);
    let gguf = Gguf::parse(&base).unwrap();
    for n in [0, 3, 1 << 10, u32::MAX - 1] {
        let mut w = GgufWriter::new(Vec::new());
        let key = "llama.rope.dimension_count";
        gguf.metadata().filter(|(k, _)| *k != key).for_each(|(k, v)| w.value(k, v).unwrap());
        w.u32(key, n).unwrap();
        gguf.tensors().iter().for_each(|t| w.tensor(&t.name, &t.shape, t.ty).unwrap());
        gguf.tensors().iter().for_each(|t| w.data(&t.name, gguf.tensor_data(t)).unwrap());
        let base = w.finish().unwrap();
        for freq_base in [Value::Null, json!(10_000.0)] {
            map["freq_base"] = freq_base;
            let message = converted(&base, &tensors, &map).unwrap_err().to_string();
            assert!(message.contains("dimension_count") && message.contains(&n.to_string()), "{message}");
        }
    }
}

fn layer_full() -> ggml_ext::lisa::LayerMeta {
    ggml_ext::lisa::LayerMeta::FULL
}

/// Frequencies for all KV heads alike can be stored once.
#[test]
fn frequencies_shared_by_the_heads() {
    let base = family("llama");
    let mut tensors = torch(&known(&base));
    for t in &mut tensors {
        if t.name.ends_with("freq") {
            *t = St::new(t.name.clone(), Dtype::F32, &[2], &[0.5, 0.25]);
        }
    }
    let out = converted(&base, &tensors, &map()).unwrap();
    assert_eq!(floats(&Gguf::parse(&out).unwrap(), "blk.1.lisa_freq.weight"), [0.5, 0.25, 0.5, 0.25]);
}

#[test]
fn refusals_name_the_tensor_or_the_key() {
    let base = family("llama");
    let (tensors, good) = (torch(&known(&base)), map());
    let refused = |tensors: &[St], map: &Value, is_map: bool, parts: &[&str]| {
        let e = converted(&base, tensors, map).unwrap_err();
        let text = e.to_string();
        assert!(parts.iter().all(|p| text.contains(p)) && !text.contains('\n'), "{text}");
        assert_eq!(matches!(e, ConvertError::Map(_)), is_map, "{text}");
    };
    let find = |end: &str| tensors.iter().position(|t| t.name.ends_with(end)).unwrap();
    let changed = |end: &str, new: &dyn Fn(&St) -> St| {
        let mut all = tensors.clone();
        all[find(end)] = new(&tensors[find(end)]);
        all
    };

    // Tensors.
    for (end, shape, expected) in [
        ("skip.weight", &[2, 8][..], "[4, 4] ([out, in])"),
        // Read as four hidden units of three heads.
        ("up.weight", &[4, 3], "[4, 4]"),
        ("up.bias", &[3, 1], "[3]"),
        ("down.weight", &[3, 4], "[4, 3]"),
        ("lisa.q_proj.weight", &[64, 16], "[64, 64]"),
        ("lisa.q_proj.weight", &[12, 64], "even number for each of 4 heads"),
        ("lisa.q_proj.weight", &[1024], "two dimensions"),
        ("k_proj.weight", &[64, 8], "[8, 64]"),
        ("freq", &[4], "[2, 2] or [2] ([KV head, pair] or [pair])"),
        ("comp.weight", &[4096], "[64, 64]"),
    ] {
        let reshaped = |t: &St| {
            let n: usize = shape.iter().product();
            St::new(t.name.clone(), Dtype::F32, shape, &values(n as u64, 1))
        };
        let all = changed(end, &reshaped);
        refused(&all, &good, false, &[end, expected]);
    }
    let ints =
        changed("skip.weight", &|t| St { dtype: Dtype::I32, ..St::new(&t.name, Dtype::F32, &[4, 4], &[0.; 16]) });
    refused(&ints, &good, false, &["skip.weight", "I32", "expected F64, F32, F16 or BF16"]);
    let nan = changed("down.weight", &|t| St::new(&t.name, Dtype::F16, &[4, 3], &[f32::NAN; 12]));
    refused(&nan, &good, false, &["down.weight", "element 0 is NaN"]);
    let mut half = good.clone();
    half["type"] = "F16".into();
    let large = changed("k_proj.weight", &|t| St::new(&t.name, Dtype::F32, &[8, 64], &[1e6; 512]));
    refused(&large, &half, false, &["k_proj.weight", "1000000", "F16"]);
    for end in ["skip.weight", "up.weight", "up.bias", "down.weight", "k_proj.weight", "freq"] {
        let less: Vec<_> = tensors.iter().filter(|t| !t.name.ends_with(end)).cloned().collect();
        refused(&less, &good, false, &[&format!("model.layers.1.self_attn.lisa.{end}"), "missing", "layer 1"]);
    }
    let no_q: Vec<_> = tensors.iter().filter(|t| !t.name.ends_with("lisa.q_proj.weight")).cloned().collect();
    refused(&no_q, &good, false, &["k_proj.weight", "not expected", "rank 0"]);
    let more = |to: &str| {
        let skip = &tensors[find("skip.weight")];
        [&tensors[..], &[St { name: skip.name.replace(".1.", to), ..skip.clone() }]].concat()
    };
    refused(&more(".7."), &good, false, &["model.layers.7", "the model has 3"]);
    refused(&more(".0."), &good, false, &["model.layers.0", "do not list"]);
    refused(&more(".2."), &good, false, &["model.layers.2", "not expected", "kind shared"]);
    refused(&[], &without(&good, &["layers"]), false, &["no tensor"]);
    let e = convert(&[Gguf::parse(&base).unwrap()], b"GGUF", &Map::parse(&good.to_string()).unwrap(), Vec::new());
    assert!(e.unwrap_err().to_string().contains("not a safetensors file"));

    // The map.
    let with = |path: &[&str], value: Value| {
        let mut map = good.clone();
        let (last, folders) = path.split_last().unwrap();
        let object = folders.iter().fold(&mut map, |v, key| &mut v[key]);
        object[last] = value;
        map
    };
    for (path, value, parts) in [
        (&["activation"][..], json!("tanh"), &["activation", "tanh", "relu, silu, gelu"][..]),
        (&["activation"], Value::Null, &["activation", "missing"]),
        (&["domain"], json!("odds"), &["domain", "odds", "log, weight"]),
        (&["scale"], json!(-1), &["scale", "-1", "positive"]),
        (&["rope_pairs"], Value::Null, &["rope_pairs", "missing", "interleaved"]),
        (&["rope_pairs"], json!("third"), &["third", "interleaved"]),
        (&["type"], json!("Q9"), &["type", "Q9", "Q8_0"]),
        (&["type"], json!("Q4_K"), &["type", "64", "Q4_K", "256"]),
        (&["colour"], json!(1), &["colour", "rope_pairs"]),
        (&["tensors", "q"], json!("model.q"), &["tensors.q", "model.q", "{layer}"]),
        (&["tensors", "q"], json!(3), &["name", "order"]),
        (&["tensors", "freq"], json!({"name": "{layer}", "order": "[in, out]"}), &["tensors.freq", "without order"]),
        (&["tensors", "skip"], Value::Null, &["tensors.skip", "missing", "layer 1"]),
        (&["layers", "1", "kind"], json!("linear"), &["layers.1.kind", "linear", "full, shared, lisa, kv"]),
        (&["layers", "1", "source"], json!(1), &["layers.1.source", "before 1"]),
        (&["layers", "1", "rank"], json!(3), &["layers.1.rank", "3", "even"]),
        (&["layers", "9"], json!({}), &["layers.9", "has 3"]),
        (&["layers", "0"], json!({}), &["layers.0", "no layer before"]),
        (&["layers", "2"], json!({"kind": "full", "source": 1}), &["layers.2.source", "full"]),
        (&["freq_pairs"], json!([0, 1]), &["freq_pairs", "one of the two"]),
        (&["freq_pairs"], json!("x"), &["freq_pairs", "list of pair numbers"]),
        (&["tensors", "freq"], Value::Null, &["tensors.freq", "freq_pairs"]),
    ] {
        refused(&tensors, &with(path, value), true, parts);
    }
    let no_freq = without(&good, &["tensors", "freq"]);
    for (pairs, parts) in [
        (json!([0]), &["freq_pairs", "[1, 1] pairs", "2 (half the rank) for each of 2"][..]),
        (json!([[0, 1]]), &["freq_pairs", "[2] pairs", "2 KV heads"]),
        (json!([0, 8]), &["freq_pairs", "pair 8", "0 to 7"]),
        (json!({"2": [0, 1]}), &["freq_pairs", "missing for layer 1"]),
    ] {
        let mut map = no_freq.clone();
        map["freq_pairs"] = pairs;
        refused(&tensors, &map, true, parts);
        map["freq_base"] = json!(0);
        refused(&tensors, &map, true, &["freq_base"]);
    }
    // `kv` from a `lisa` layer is found where every plan is checked.
    let kv = with(&["layers", "2"], json!({"kind": "kv"}));
    let less: Vec<_> = tensors.iter().filter(|t| !t.name.contains("comp")).cloned().collect();
    refused(&less, &kv, true, &["layer 2", "kv"]);
}

/// Every byte of the header and some of the data, changed: a message or an acceptance, never a panic.
#[test]
fn damaged_safetensors() {
    let base = family("llama");
    let gguf = [Gguf::parse(&base).unwrap()];
    let map = Map::parse(&map().to_string()).unwrap();
    let mut bytes = file(&torch(&known(&base)));
    let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let (mut refused, mut accepted) = (0, 0);
    for at in (0..header).chain((header..bytes.len()).step_by(501)) {
        let original = bytes[at];
        for change in [0x01, 0x04, 0x80] {
            bytes[at] = original ^ change;
            match convert(&gguf, &bytes, &map, Vec::new()) {
                Ok(_) => accepted += 1,
                Err(e) => refused += usize::from(!e.to_string().is_empty()),
            }
        }
        bytes[at] = original;
    }
    assert!(refused > header && accepted > 10, "{refused} refused, {accepted} accepted");
}

/// A base without the norms that name it.
#[test]
fn a_base_without_fingerprint() {
    let base = family("llama");
    let g = Gguf::parse(&base).unwrap();
    let mut w = GgufWriter::new(Vec::new());
    g.metadata().for_each(|(k, v)| w.value(k, v).unwrap());
    let bare = w.finish().unwrap();
    let e = converted(&bare, &torch(&known(&base)), &map()).unwrap_err();
    assert!(matches!(e, ConvertError::Make(_)) && e.to_string().contains("blk.0.attn_norm.weight"), "{e}");
}
