use super::*;

fn meta() -> LisaMeta {
    let lisa = LayerMeta { kind: Kind::Lisa, source: Some(0), rank: 4 };
    let shared = LayerMeta { kind: Kind::Shared, source: Some(1), rank: 0 };
    let kv = LayerMeta { kind: Kind::Kv, source: Some(0), rank: 0 };
    LisaMeta {
        fingerprint: "0123456789abcdef".repeat(4),
        layers: vec![LayerMeta::FULL, lisa, shared, kv],
        activation: Activation::Gelu,
        domain: Domain::Weight,
        scale: 0.125,
        trained: Provenance { tokens: Some(7), data: Some("text".into()), seed: None, base: None },
    }
}

fn written(f: impl FnOnce(&mut GgufWriter<Vec<u8>>)) -> Vec<u8> {
    let mut w = GgufWriter::new(Vec::new());
    f(&mut w);
    w.finish().unwrap()
}

#[test]
fn what_is_written_is_read() {
    let bytes = written(|w| meta().write(w).unwrap());
    assert_eq!(LisaMeta::read(&Gguf::parse(&bytes).unwrap()).unwrap(), Some(meta()));
    let bytes = written(|w| w.u32("other", 1).unwrap());
    assert_eq!(LisaMeta::read(&Gguf::parse(&bytes).unwrap()).unwrap(), None);
}

#[test]
fn parts_and_their_names() {
    for &part in Part::ALL {
        assert_eq!(Part::parse(&part.tensor(12)), Some((12, part)));
    }
    for name in ["blk.1.attn_q.weight", "blk.01.lisa_q.weight", "blk.x.lisa_q.weight", "lisa_q.weight", "blk.1.lisa_q"]
    {
        assert_eq!(Part::parse(name), None, "{name}");
    }
}

/// Each refusal names the layer or the key.
#[test]
fn refusals() {
    let layers = |kinds: [&'static str; 3], sources: &'static [i32], ranks: &'static [u32]| {
        move |w: &mut GgufWriter<Vec<u8>>| {
            w.strings("lisa.layer.kind", &kinds).unwrap();
            w.i32s("lisa.layer.source", sources).unwrap();
            w.u32s("lisa.layer.rank", ranks).unwrap();
        }
    };
    let good = || layers(["full", "lisa", "shared"], &[-1, 0, 1], &[0, 4, 0]);
    let message = |f: &dyn Fn(&mut GgufWriter<Vec<u8>>)| {
        let bytes = written(f);
        LisaMeta::read(&Gguf::parse(&bytes).unwrap()).map(|_| ()).map_err(|e| e.to_string())
    };
    let head = |w: &mut GgufWriter<Vec<u8>>| {
        w.u32("lisa.version", 1).unwrap();
        w.str("lisa.base.fingerprint", &"0".repeat(64)).unwrap();
    };
    let tail = |w: &mut GgufWriter<Vec<u8>>| {
        w.str("lisa.align.activation", "relu").unwrap();
        w.str("lisa.align.domain", "log").unwrap();
        w.f32("lisa.scale", 0.5).unwrap();
    };
    assert_eq!(message(&|w| (head(w), good()(w), tail(w)).2), Ok(()));

    let refused = |f: &dyn Fn(&mut GgufWriter<Vec<u8>>), parts: &[&str]| {
        let message = message(f).unwrap_err();
        assert!(parts.iter().all(|p| message.contains(p)), "{message}");
    };
    refused(&|w| w.u32("lisa.version", 2).unwrap(), &["lisa.version", "2", "expected 1"]);
    refused(&|w| w.str("lisa.version", "1").unwrap(), &["lisa.version"]);
    refused(&|w| w.u32("lisa.version", 1).unwrap(), &["lisa.base.fingerprint", "missing"]);
    let bad_print = |w: &mut GgufWriter<Vec<u8>>| {
        w.u32("lisa.version", 1).unwrap();
        w.str("lisa.base.fingerprint", "00").unwrap();
    };
    refused(&bad_print, &["lisa.base.fingerprint", "64 hexadecimal"]);
    refused(&head, &["lisa.layer.kind", "missing"]);

    let with = |f: &dyn Fn(&mut GgufWriter<Vec<u8>>), parts: &[&str]| refused(&|w| (head(w), f(w), tail(w)).2, parts);
    with(
        &layers(["full", "linear", "shared"], &[-1, 0, 1], &[0, 0, 0]),
        &["layer 1", "linear", "full, shared, lisa, kv"],
    );
    with(&layers(["full", "shared", "shared"], &[-1, 0, 2], &[0, 0, 0]), &["layer 2", "source 2", "0 to 1"]);
    with(&layers(["full", "shared", "shared"], &[-1, 2, 1], &[0, 0, 0]), &["layer 1", "source 2"]);
    with(&layers(["shared", "full", "full"], &[0, -1, -1], &[0, 0, 0]), &["layer 0", "source 0"]);
    with(&layers(["full", "shared", "full"], &[-1, -1, -1], &[0, 0, 0]), &["layer 1", "source -1"]);
    with(&layers(["full", "full", "full"], &[-1, 0, -1], &[0, 0, 0]), &["layer 1", "full", "expected -1"]);
    with(&layers(["full", "lisa", "shared"], &[-1, 0, 1], &[0, 5, 0]), &["layer 1", "rank 5", "even"]);
    with(&layers(["full", "lisa", "shared"], &[-1, 0, 1], &[0, 4, 2]), &["layer 2", "shared", "rank 2"]);
    with(&layers(["full", "lisa", "kv"], &[-1, 0, 1], &[0, 4, 0]), &["layer 2", "kv", "full or kv", "kind lisa"]);
    with(&layers(["full", "lisa", "shared"], &[-1, 0], &[0, 4, 0]), &["lisa.layer.source", "2 values", "3"]);
    with(&layers(["full", "lisa", "shared"], &[-1, 0, 1], &[0, 4, 0, 0]), &["lisa.layer.rank", "4 values", "3"]);

    let after = |activation: &'static str, domain: &'static str, scale: f32| {
        move |w: &mut GgufWriter<Vec<u8>>| {
            w.str("lisa.align.activation", activation).unwrap();
            w.str("lisa.align.domain", domain).unwrap();
            w.f32("lisa.scale", scale).unwrap();
        }
    };
    let with = |f: &dyn Fn(&mut GgufWriter<Vec<u8>>), parts: &[&str]| refused(&|w| (head(w), good()(w), f(w)).2, parts);
    with(&after("tanh", "log", 1.0), &["lisa.align.activation", "tanh", "relu, silu, gelu"]);
    with(&after("silu", "odds", 1.0), &["lisa.align.domain", "odds", "log, weight"]);
    with(&after("silu", "log", f32::NAN), &["lisa.scale", "NaN", "positive"]);
    with(&after("silu", "log", 0.0), &["lisa.scale", "0", "positive"]);
    with(&|_| (), &["lisa.align.activation", "missing"]);
}
