//! `lisa-cpp quantize` as its users meet it: which tensor gets which type, what is refused, and that what is written runs.

mod common;
#[path = "common/program.rs"]
mod program;

use ggml_ext::gguf::{Gguf, GgufWriter, Value};
use ggml_ext::{GgmlType, blocks};
use lisa_cpp::imatrix::{Entry, Format, Imatrix};
use lisa_cpp::quantize::Recipe;
use lisa_cpp::{Model, ModelFile, ModelParams, Session, SessionParams};
use program::{command, ok, refused};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

const STORIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/stories260K.gguf");
/// A shape whose rows divide into all blocks.
const SMALL: &str =
    "--like llama3-8b --layers 8 --n-embd 256 --n-head 4 --n-head-kv 1 --n-ff 512 --n-vocab 400 --ctx 64";

/// A model of random numbers of this shape and type.
fn synth(folder: &Path, name: &str, args: &str) -> String {
    let path = text(&folder.join(name));
    ok(&[&["synth"], &args.split_whitespace().collect::<Vec<_>>()[..], &["-o", &path]].concat());
    path
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// The types that a dry run lists, by tensor.
fn dry_run(args: &[&str]) -> BTreeMap<String, String> {
    let listing = ok(&[&["quantize", "--dry-run"], args].concat());
    let line = |line: &str| {
        let (name, rest) = line.split_once(' ')?;
        let words: Vec<&str> = rest.split_whitespace().collect();
        let is_type = |w: &&&str| GgmlType::ALL.iter().any(|t| t.name() == **w);
        Some((name.to_owned(), words.iter().rfind(is_type)?.to_string()))
    };
    listing.lines().filter_map(line).collect()
}

fn types(path: &str) -> BTreeMap<String, String> {
    let bytes = std::fs::read(path).unwrap();
    let g = Gguf::parse(&bytes).unwrap();
    g.tensors().iter().map(|t| (t.name.clone(), t.ty.name().to_owned())).collect()
}

/// A tensor's values.
fn values(path: &str, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let g = Gguf::parse(&bytes).unwrap();
    let t = g.tensor(name).unwrap();
    let mut x = vec![0.0; t.n_elements() as usize];
    blocks::dequantize_row(t.ty, g.tensor_data(t), &mut x);
    x
}

/// The logits after a prompt.
fn logits(path: &str) -> Vec<f32> {
    let model = Arc::new(Model::open(path.as_ref(), ModelParams::default()).unwrap_or_else(|e| panic!("{e}")));
    let ids = model.tokenizer().encode("Once upon a time there was", true, false).unwrap();
    let params = SessionParams { n_threads: 2, ..Default::default() };
    Session::new(model, params).unwrap().prefill(&ids, &mut |_| ()).unwrap().to_vec()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn every_tensor_gets_the_type_that_llama_quantize_gives_it() {
    let folder = tempfile::tempdir().unwrap();
    let cases = common::json("quantize/mix.json.gz");
    let mut compared = 0;
    for (name, case) in cases.as_object().unwrap() {
        let path = synth(folder.path(), name, &format!("{} --type F16", case["args"].as_str().unwrap()));
        for (recipe, modules) in case["types"].as_object().unwrap() {
            let ours = dry_run(&[&path, recipe]);
            for (module, by_layer) in modules.as_object().unwrap() {
                for (i, expected) in by_layer.as_array().unwrap().iter().enumerate() {
                    let tensor = module.replace('*', &i.to_string());
                    assert_eq!(ours[&tensor], expected.as_str().unwrap(), "{name} {recipe}: {tensor}");
                    compared += 1;
                }
            }
        }
    }
    // Three models of 9 to 80 layers of seven matrices, in 33 recipes.
    assert_eq!(compared, 33 * (7 * (34 + 9 + 80) + 2 + 1 + 2));
}

#[test]
fn every_recipe_writes_a_model_that_runs_and_says_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let source = synth(folder.path(), "f32", &format!("{SMALL} --type F32"));
    let reference = logits(&source);
    let out = text(&folder.path().join("out.gguf"));
    let m = imatrix(&source, &folder.path().join("imatrix"), Format::Gguf, |_| 1.0);
    let mut far = String::new();
    for &recipe in Recipe::ALL {
        ok(&["quantize", "--imatrix", &m, &source, &out, recipe.name(), "2"]);
        assert_eq!(types(&out), dry_run(&["--imatrix", &m, &source, recipe.name()]), "{}", recipe.name());
        let bytes = std::fs::read(&out).unwrap();
        let g = Gguf::parse(&bytes).unwrap();
        assert_eq!(g.u32("general.file_type").unwrap(), Some(recipe.id()));
        assert_eq!(g.u32("general.quantization_version").unwrap(), Some(2));
        assert_eq!(g.u32("llama.block_count").unwrap(), Some(8));
        // Random weights bear quantising worse than trained ones: what is asked for here is only that nothing is mixed up.
        let near = cosine(&logits(&out), &reference);
        let expected = match recipe.base() {
            // For models that were trained so.
            GgmlType::Q1_0 | GgmlType::TQ1_0 | GgmlType::TQ2_0 | GgmlType::Q2_0 => -1.0,
            GgmlType::Q2_K => 0.2,
            GgmlType::IQ1_S | GgmlType::IQ1_M | GgmlType::IQ2_XXS | GgmlType::IQ2_XS | GgmlType::IQ2_S => 0.3,
            GgmlType::Q3_K => 0.5,
            GgmlType::IQ3_XXS | GgmlType::IQ3_S => 0.65,
            _ => 0.85,
        };
        if near <= expected {
            far += &format!("{}: cosine {near}\n", recipe.name());
        }
    }
    assert!(far.is_empty(), "{far}");
}

#[test]
fn the_bytes_are_those_of_the_block_types_and_all_threads_make_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let [one, five] = ["one", "five"].map(|n| text(&folder.path().join(n)));
    ok(&["quantize", STORIES, &one, "Q5_K_M", "1"]);
    ok(&["quantize", STORIES, &five, "Q5_K_M", "5"]);
    assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(&five).unwrap());

    // Rows of 172 do not divide into blocks; rows of 64 do, of 32.
    let found = types(&one);
    assert_eq!([&found["blk.0.ffn_down.weight"], &found["blk.2.ffn_up.weight"]], ["F16", "Q5_1"]);
    let x = values(STORIES, "blk.2.ffn_up.weight");
    let mut expected = vec![0; GgmlType::Q5_1.row_bytes(x.len()).unwrap()];
    blocks::quantize_row(GgmlType::Q5_1, &x, &mut expected);
    let bytes = std::fs::read(&one).unwrap();
    let g = Gguf::parse(&bytes).unwrap();
    assert_eq!(g.tensor_data(g.tensor("blk.2.ffn_up.weight").unwrap()), expected);

    // A copy has the same tensors and metadata.
    ok(&["quantize", STORIES, &one, "copy"]);
    let [a, b] = [STORIES, &one].map(|p| std::fs::read(p).unwrap());
    let [a, b] = [&a, &b].map(|bytes| Gguf::parse(bytes).unwrap());
    assert!(a.tensors().iter().all(|t| a.tensor_data(t) == b.tensor_data(b.tensor(&t.name).unwrap())));
    assert_eq!(a.get("general.file_type"), b.get("general.file_type"));
    assert_eq!(types(STORIES), types(&one));
}

#[test]
fn a_story_in_eight_bits_is_the_same_story() {
    let folder = tempfile::tempdir().unwrap();
    let small = text(&folder.path().join("q8.gguf"));
    ok(&["quantize", STORIES, &small, "Q8_0"]);
    let story = |model: &str| ok(&["-m", model, "-p", "Once upon a time", "-n", "24", "--temp", "0"]);
    assert_eq!(story(&small), story(STORIES));
    // In two bits it is another, but still text.
    ok(&["quantize", "--pure", STORIES, &small, "Q4_0"]);
    assert!(cosine(&logits(&small), &logits(STORIES)) > 0.9);
}

#[test]
fn flags_choose_types() {
    let folder = tempfile::tempdir().unwrap();
    let m = synth(folder.path(), "m", &format!("{SMALL} --type F16"));
    let of = |args: &[&str], names: &[&str]| -> Vec<String> {
        let all = dry_run(&[args, &[&m, "Q4_K_M"]].concat());
        names.iter().map(|n| all[*n].clone()).collect()
    };
    let names =
        ["output.weight", "token_embd.weight", "blk.0.attn_v.weight", "blk.1.ffn_down.weight", "blk.1.ffn_up.weight"];
    assert_eq!(of(&[], &names), ["Q6_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K"]);
    assert_eq!(of(&["--pure"], &names), ["Q4_K"; 5]);
    assert_eq!(of(&["--leave-output-tensor"], &names[..1]), ["F16"]);
    assert_eq!(of(&["--output-tensor-type", "q8_0"], &names[..2]), ["Q8_0", "Q4_K"]);
    assert_eq!(of(&["--token-embedding-type", "bf16"], &names[..2]), ["Q6_K", "BF16"]);
    // The first pattern that is found counts, whatever the case; the others keep the types they had.
    let patterns = ["--tensor-type", r"^BLK\.[01]\.ffn_(up|down)=q5_0", "--tensor-type", "ffn=Q8_0"];
    assert_eq!(of(&patterns, &names), ["Q6_K", "Q4_K", "Q6_K", "Q5_0", "Q5_0"]);
    assert_eq!(of(&patterns, &["blk.2.ffn_gate.weight", "blk.2.attn_q.weight"]), ["Q8_0", "Q4_K"]);
    let list = folder.path().join("types.txt");
    std::fs::write(&list, "attn_q=q3_k\n  attn_v=f32 ").unwrap();
    assert_eq!(of(&["--tensor-type-file", &text(&list)], &["blk.1.attn_q.weight", names[2]]), ["Q3_K", "F32"]);
}

#[test]
fn metadata_can_be_replaced_and_added() {
    let folder = tempfile::tempdir().unwrap();
    let out = text(&folder.path().join("out.gguf"));
    let flags =
        ["general.name=str:a=b:c", "llama.context_length=int:99", "x.y=float:0.5", "x.z=bool:true", "x.n=int:-3"];
    let flags: Vec<&str> = flags.iter().flat_map(|f| ["--override-kv", f]).collect();
    ok(&[&["quantize"], &flags[..], &[STORIES, &out, "Q8_0"]].concat());
    let bytes = std::fs::read(&out).unwrap();
    let g = Gguf::parse(&bytes).unwrap();
    assert_eq!(g.get("general.name"), Some(&Value::String("a=b:c")));
    assert_eq!(g.get("llama.context_length"), Some(&Value::U32(99)));
    assert_eq!(
        [g.get("x.y"), g.get("x.z"), g.get("x.n")],
        [Some(&Value::F32(0.5)), Some(&Value::Bool(true)), Some(&Value::I32(-3))]
    );
    for bad in ["k", "k=int", "=int:1", "k=int:x", "k=bool:1", "k=u8:1"] {
        refused(&["quantize", "--override-kv", bad, STORIES, &out, "Q8_0"], 2, &["--override-kv", bad]);
    }
}

#[test]
fn what_is_quantised_is_not_quantised_again_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let [q8, q4] = ["q8.gguf", "q4.gguf"].map(|n| text(&folder.path().join(n)));
    ok(&["quantize", STORIES, &q8, "Q8_0"]);
    refused(&["quantize", &q8, &q4, "Q4_0"], 1, &["q8.gguf", "Q8_0", "--allow-requantize"]);
    assert!(!Path::new(&q4).exists());
    ok(&["quantize", "--allow-requantize", &q8, &q4, "Q4_0"]);
    assert_eq!(types(&q4)["blk.0.attn_q.weight"], "Q4_0");
    // What stays as it is needs no leave.
    ok(&["quantize", &q8, &q4, "Q8_0"]);
}

#[test]
fn mistakes_are_named_and_write_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = text(&folder.path().join("out.gguf"));
    let elsewhere = tempfile::tempdir().unwrap();
    let types = text(&elsewhere.path().join("types"));
    std::fs::write(&types, "ffn=q8_0\nffn_up=Q7\n").unwrap();
    for (args, code, part) in [
        (&["quantize", STORIES, "Q4_X"][..], 2, "'Q4_X'"),
        (&["quantize", STORIES, &out, "Q9_0"], 2, "'Q9_0'"),
        (&["quantize", STORIES, &out, "Q8_0", "many"], 2, "'many'"),
        (&["quantize", STORIES, "Q8_0", "2", "3"], 2, "'3'"),
        (&["quantize", "--tensor-type", "ffn", STORIES, &out, "Q8_0"], 2, "--tensor-type ffn"),
        (&["quantize", "--tensor-type", "ffn=Q7", STORIES, &out, "Q8_0"], 2, "'Q7'"),
        (&["quantize", "--tensor-type", "ffn(=Q8_0", STORIES, &out, "Q8_0"], 2, "ffn("),
        (&["quantize", "--tensor-type-file", &types, STORIES, &out, "Q8_0"], 1, "ffn_up=Q7"),
        (&["quantize", "--output-tensor-type", "int8", STORIES, &out, "Q8_0"], 2, "int8"),
        (&["quantize", "nowhere.gguf", &out, "Q8_0"], 1, "nowhere.gguf"),
        (&["quantize", "--imatrix", "nowhere.dat", STORIES, &out, "Q8_0"], 1, "nowhere.dat"),
        (&["quantize", "--tensor-type", "ffn=Q8_0", STORIES, &out, "COPY"], 2, "--tensor-type"),
        (&["quantize", STORIES, STORIES, "Q8_0"], 2, "would replace the input"),
        (
            &["quantize", "--include-weights", "a", "--exclude-weights", "b", STORIES, &out, "Q8_0"],
            2,
            "--exclude-weights",
        ),
    ] {
        refused(args, code, &[part]);
    }
    let ran = program::run(&["quantize", "--dry-run", "--tensor-type", "ffn_don=q8_0", STORIES, "Q4_0"]);
    assert!(
        ran.code == Some(0) && ran.err.contains("--tensor-type ffn_don=q8_0: there is no such tensor"),
        "{}",
        ran.err
    );
    let listing = ok(&["quantize", "--dry-run", STORIES, "Q8_0"]);
    assert!(listing.contains("blk.4.ffn_up.weight") && listing.contains("bits a weight"), "{listing}");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
}

#[test]
fn without_a_name_the_output_lies_beside_the_input() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.gguf");
    std::fs::copy(STORIES, &input).unwrap();
    ok(&["quantize", &text(&input), "q6_k"]);
    assert!(folder.path().join("ggml-model-Q6_K.gguf").is_file());
}

/// Gives a copy of the embedded model another first value in a tensor.
fn poisoned(folder: &Path, tensor: &str, value: f32) -> String {
    let mut bytes = std::fs::read(STORIES).unwrap();
    let at = Gguf::parse(&bytes).unwrap().tensor(tensor).unwrap().offset as usize;
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    let path = folder.join("poisoned.gguf");
    std::fs::write(&path, bytes).unwrap();
    text(&path)
}

#[test]
fn a_run_that_fails_midway_leaves_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    std::fs::write(&out, "precious").unwrap();
    for (value, ty) in [(f32::NAN, "Q4_K_M"), (f32::NEG_INFINITY, "BF16"), (7e4, "F16"), (7e4, "Q8_0")] {
        let bad = poisoned(folder.path(), "blk.3.ffn_up.weight", value);
        refused(&["quantize", &bad, &text(&out), ty], 1, &["poisoned.gguf", "blk.3.ffn_up.weight", "row 0, column 0"]);
        assert_eq!(std::fs::read(&out).unwrap(), b"precious");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2, "a temporary file is left");
    }
    // BF16 has room for it.
    let large = poisoned(folder.path(), "blk.3.ffn_up.weight", 7e4);
    ok(&["quantize", &large, &text(&out), "BF16"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    // A second's work for one thread.
    let args = "--like llama3-8b --layers 40 --n-embd 256 --n-head 4 --n-head-kv 1 --n-ff 512 --n-vocab 400 --ctx 64 --type F16";
    let source = synth(folder.path(), "in.gguf", args);
    let out = folder.path().join("out.gguf");
    std::fs::write(&out, "precious").unwrap();
    let mut child = command(&["quantize", &source, &text(&out), "Q2_K", "1"]).stderr(Stdio::null()).spawn().unwrap();
    while std::fs::read_dir(&folder).unwrap().count() < 3 && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(std::fs::read(&out).unwrap(), b"precious");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2, "a temporary file is left");
}

/// An importance matrix that says of every matrix of a model that its column `i` matters `f(i)`.
fn imatrix(model: &str, path: &Path, format: Format, f: impl Fn(usize) -> f64) -> String {
    let bytes = std::fs::read(model).unwrap();
    let g = Gguf::parse(&bytes).unwrap();
    let matrices = g.tensors().iter().filter(|t| t.shape.len() == 2 && t.name.starts_with("blk."));
    let entry = |n: u64| Entry { squares: (0..n as usize).map(&f).collect(), counts: vec![1024] };
    let m = Imatrix {
        entries: matrices.map(|t| (t.name.clone(), entry(t.row_len()))).collect(),
        datasets: vec!["some text".into()],
        chunk_size: 512,
    };
    std::fs::write(path, m.to_bytes(format).unwrap()).unwrap();
    text(path)
}

#[test]
fn an_importance_matrix_moves_precision_to_where_it_matters() {
    let folder = tempfile::tempdir().unwrap();
    let matters = |i: usize| if i.is_multiple_of(8) { 1000.0 } else { 1.0 };
    let error = |path: &str, name: &str| -> f64 {
        let [x, y] = [values(STORIES, name), values(path, name)];
        let of = |(i, (x, y)): (usize, (&f32, &f32))| matters(i % 64) * f64::from(x - y).powi(2);
        x.iter().zip(&y).enumerate().map(of).sum()
    };
    for format in [Format::Gguf, Format::Dat] {
        let m = imatrix(STORIES, &folder.path().join("imatrix"), format, matters);
        let [with, without] = ["with", "without"].map(|n| text(&folder.path().join(n)));
        ok(&["quantize", "--imatrix", &m, "--exclude-weights", "ffn_gate", STORIES, &with, "Q4_0"]);
        ok(&["quantize", STORIES, &without, "Q4_0"]);
        for name in ["blk.1.attn_q.weight", "blk.4.ffn_up.weight"] {
            let [a, b] = [error(&with, name), error(&without, name)];
            assert!(a < 0.7 * b, "{name}: {a}, {b} without importances");
        }
        assert_eq!(values(&with, "blk.1.ffn_gate.weight"), values(&without, "blk.1.ffn_gate.weight"));
        let bytes = std::fs::read(&with).unwrap();
        let g = Gguf::parse(&bytes).unwrap();
        assert_eq!(g.str("quantize.imatrix.file").unwrap(), Some(m.as_str()));
        assert_eq!(g.str("quantize.imatrix.dataset").unwrap(), Some("some text"));
        assert_eq!(g.u32("quantize.imatrix.chunks_count").unwrap(), Some(2));
        assert_eq!(g.u32("quantize.imatrix.entries_count").unwrap(), Some(5 * 6));
    }
    let m = imatrix(STORIES, &folder.path().join("imatrix"), Format::Gguf, matters);
    let only = text(&folder.path().join("only"));
    ok(&["quantize", "--imatrix", &m, "--include-weights", "blk.2.attn_", STORIES, &only, "Q4_0"]);
    let bytes = std::fs::read(&only).unwrap();
    assert_eq!(Gguf::parse(&bytes).unwrap().u32("quantize.imatrix.entries_count").unwrap(), Some(4));
}

#[test]
fn importances_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let m = folder.path().join("m");
    let out = text(&folder.path().join("out.gguf"));
    let quantize = |m: &Path, ty: &str, parts: &[&str]| {
        refused(&["quantize", "--imatrix", &text(m), STORIES, &out, ty], 1, parts);
    };
    let good = std::fs::read(imatrix(STORIES, &m, Format::Gguf, |_| 1.0)).unwrap();
    std::fs::write(&m, &good[..good.len() / 2]).unwrap();
    quantize(&m, "Q4_0", &["m: ", "bytes"]);
    std::fs::write(&m, "not an importance matrix").unwrap();
    quantize(&m, "Q4_0", &["not an importance matrix"]);
    quantize(Path::new(STORIES), "Q4_0", &["holds no importances"]);
    let entry = |n: usize| Entry { squares: vec![1.0; n], counts: vec![1] };
    let other = Imatrix { entries: [("blk.0.ffn_up.weight".into(), entry(65))].into(), ..Default::default() };
    std::fs::write(&m, other.to_bytes(Format::Gguf).unwrap()).unwrap();
    quantize(&m, "Q4_0", &["blk.0.ffn_up.weight", "65", "64"]);
    // A recipe of so few bits needs importances of every matrix.
    let small = synth(folder.path(), "small", &format!("{SMALL} --type F16"));
    refused(&["quantize", &small, &out, "Q2_K_S"], 1, &["Q2_K_S", "--imatrix"]);
    refused(&["quantize", &small, &out, "IQ2_XS"], 1, &["IQ2_XS", "--imatrix"]);
    assert!(!Path::new(&out).exists());
}

/// Cuts a model into two files.
fn split(folder: &Path) -> String {
    let bytes = std::fs::read(STORIES).unwrap();
    let g = Gguf::parse(&bytes).unwrap();
    let paths = [1, 2].map(|i| folder.join(format!("in-{i:05}-of-00002.gguf")));
    let half = g.tensors().len() / 2;
    for (no, tensors) in [&g.tensors()[..half], &g.tensors()[half..]].into_iter().enumerate() {
        let mut w = GgufWriter::new(std::fs::File::create(&paths[no]).unwrap());
        if no == 0 {
            g.metadata().for_each(|(k, v)| w.value(k, v).unwrap());
        }
        w.u16("split.no", no as u16).unwrap();
        w.u16("split.count", 2).unwrap();
        w.i32("split.tensors.count", g.tensors().len() as i32).unwrap();
        tensors.iter().for_each(|t| w.tensor(&t.name, &t.shape, t.ty).unwrap());
        tensors.iter().for_each(|t| w.data(&t.name, g.tensor_data(t)).unwrap());
        w.finish().unwrap();
    }
    text(&paths[0])
}

#[test]
fn split_models_become_one_file_or_as_many() {
    let folder = tempfile::tempdir().unwrap();
    let input = split(folder.path());
    let [whole, one] = ["whole.gguf", "one.gguf"].map(|n| text(&folder.path().join(n)));
    ok(&["quantize", STORIES, &whole, "Q5_0"]);
    ok(&["quantize", &input, &one, "Q5_0"]);
    assert_eq!(types(&one), types(&whole));
    assert_eq!(logits(&one), logits(&whole));
    assert!(!std::fs::read(&one).unwrap().windows(9).any(|w| w == b"split.no\0" || w == b"split.cou"));

    ok(&["quantize", "--keep-split", &input, &text(&folder.path().join("out.gguf")), "Q5_0"]);
    let parts = [1, 2].map(|i| folder.path().join(format!("out-{i:05}-of-00002.gguf")));
    assert!(parts.iter().all(|p| p.is_file()));
    assert_eq!(ModelFile::open(&parts[0]).unwrap().parse().unwrap().len(), 2);
    assert_eq!(logits(&text(&parts[0])), logits(&whole));
}

#[test]
fn parts_get_their_names_together() {
    let folder = tempfile::tempdir().unwrap();
    let input = split(folder.path());
    let second = folder.path().join("in-00002-of-00002.gguf");
    let mut bytes = std::fs::read(&second).unwrap();
    let n = bytes.len();
    // Not numbers in F32.
    bytes[n - 100_000..].fill(0xff);
    std::fs::write(&second, bytes).unwrap();
    let out = text(&folder.path().join("out.gguf"));
    refused(&["quantize", "--keep-split", &input, &out, "Q5_0"], 1, &["NaN"]);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2, "a part of what failed is left");
}

#[test]
fn sharing_layers_keep_their_factors_and_do_not_confuse_the_mix() {
    let folder = tempfile::tempdir().unwrap();
    let sharing = "--layers-substituted 3 --rank 16 --lisa-type F16";
    let whole = synth(folder.path(), "whole", &format!("{SMALL} --type F16"));
    let merged = synth(folder.path(), "merged", &format!("{SMALL} --type F16 {sharing}"));
    let out = text(&folder.path().join("out.gguf"));
    let shared: Vec<String> =
        types(&merged).keys().filter_map(|n| n.strip_suffix("lisa_q.weight").map(str::to_owned)).collect();
    assert_eq!(shared.len(), 3);
    for recipe in ["Q4_K_M", "Q3_K_M", "Q2_K", "F32"] {
        let plain = dry_run(&[&whole, recipe]);
        ok(&["quantize", &merged, &out, recipe]);
        let found = types(&out);
        assert!(shared.iter().all(|layer| !found.contains_key(&format!("{layer}attn_q.weight"))));
        for (name, ty) in &found {
            match plain.get(name) {
                Some(expected) => assert_eq!(ty, expected, "{recipe}: {name}"),
                None => assert_eq!(
                    ty,
                    if name.contains("align") || name.contains("freq") { "F32" } else { "F16" },
                    "{name}"
                ),
            }
        }
        assert!(logits(&out).iter().all(|v| v.is_finite()));
    }
    let asked = dry_run(&["--tensor-type", "lisa_=q8_0", &merged, "Q4_K_M"]);
    assert_eq!(asked[&format!("{}lisa_q.weight", shared[0])], "Q8_0");
    assert_eq!(asked[&format!("{}lisa_align_skip.weight", shared[0])], "F32");

    // A sidecar holds nothing but factors: there the type is meant for them.
    let sidecar = text(&folder.path().join("x.lisa.gguf"));
    ok(&["extract", "-m", &merged, "-o", &sidecar]);
    ok(&["quantize", &sidecar, &out, "Q8_0"]);
    let found = types(&out);
    let of = |part: &str| &found[&format!("{}{part}", shared[0])];
    assert_eq!([of("lisa_k.weight"), of("lisa_freq.weight")], ["Q8_0", "F32"]);
    let [a, b] = [&sidecar, &out].map(|s| ok(&["logits", "-m", &whole, "--lisa", s, "--ids", "[1,2,3]", "--top", "1"]));
    assert!(!a.is_empty() && !b.is_empty());
}
