//! Grammars over real vocabularies.

use std::io::Read;
use std::path::Path;

use super::*;
use crate::{Model, ModelParams};

fn vocab(name: &str) -> Tokenizer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/vocab/{name}.gguf.gz"));
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(&std::fs::read(path).unwrap()[..]).read_to_end(&mut bytes).unwrap();
    Tokenizer::from_gguf(&ggml_ext::gguf::Gguf::parse(&bytes).unwrap()).unwrap()
}

fn stories() -> Model {
    Model::embedded(ModelParams::default()).unwrap()
}

fn gbnf(text: &str, tokenizer: &Tokenizer) -> Constraint {
    Constraint::new(&Grammar::gbnf(text).unwrap(), tokenizer).unwrap()
}

fn schema(text: &str, tokenizer: &Tokenizer) -> Constraint {
    Constraint::new(&Grammar::json_schema(text).unwrap(), tokenizer).unwrap()
}

fn message<T>(result: Result<T>) -> String {
    result.err().expect("is refused").to_string()
}

/// Goes from token to token at random until the constraint has had enough, or `limit`. Tells what was written.
fn wander(c: &mut Constraint, tokenizer: &Tokenizer, seed: u64, limit: usize) -> (Vec<u8>, bool) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut bytes = Vec::new();
    for _ in 0..limit {
        if c.is_finished() {
            return (bytes, true);
        }
        let allowed: Vec<u32> = c.allowed().unwrap().iter().collect();
        let id = allowed[rng.usize(..allowed.len())];
        assert!(c.allows(id).unwrap());
        c.accept(id).unwrap();
        if tokenizer.is_eog(id) {
            assert!(c.is_complete().unwrap());
            return (bytes, true);
        }
        bytes.extend_from_slice(&tokenizer.token_bytes(id, false));
    }
    (bytes, false)
}

const GRAMMARS: [&str; 4] = [
    r#"root ::= ("yes" | "no" | "é" [0-9]{1,3})+ "."?"#,
    r#"root ::= [^\n"]{2,9} "\n" .*"#,
    "root ::= \"[\" ws (v (\",\" ws v)*)? \"]\"\nv ::= [0-9]+ | root | \"\\\"\" [ -~]* \"\\\"\"\nws ::= [ \\n]?",
    "root ::= [ぁ-ゟ]{3} \"😀\" [а-я ]+ \"!\"",
];

#[test]
fn the_set_holds_what_is_allowed_one_by_one() {
    for name in ["llama-spm", "llama-bpe", "falcon"] {
        let tokenizer = vocab(name);
        let mut rng = fastrand::Rng::with_seed(3);
        let json = r#"{"type": "object", "properties": {"é": {"type": "string"}, "b": {"enum": [1.5, null]}}}"#;
        let constraints = GRAMMARS.iter().map(|g| gbnf(g, &tokenizer)).chain([schema(json, &tokenizer)]);
        for (i, mut c) in constraints.enumerate() {
            for _ in 0..6 {
                let set = c.allowed().unwrap();
                for id in 0..tokenizer.n_vocab() as u32 {
                    let says = || format!("{name}, {i}: token {id} (`{}`)", tokenizer.token_text(id));
                    assert_eq!(set.is_allowed(id), c.allows(id).unwrap(), "{}", says());
                    assert!(!set.is_allowed(id) || tokenizer.is_eog(id) || !tokenizer.is_control(id), "{}", says());
                }
                let ids: Vec<u32> = set.iter().filter(|&id| !tokenizer.is_eog(id)).collect();
                if ids.is_empty() {
                    break;
                }
                c.accept(ids[rng.usize(..ids.len())]).unwrap();
            }
        }
    }
}

#[test]
fn texts_of_several_bytes_a_character_in_all_vocabularies() {
    let text = "é€😀 中\u{3042}!";
    let literal = format!("root ::= \"{text}\"");
    for name in ["deepseek-llm", "falcon", "gpt-2", "llama-bpe", "llama-spm", "qwen2", "starcoder"] {
        let tokenizer = vocab(name);
        let mut c = gbnf(&literal, &tokenizer);
        for seed in 0..5 {
            c.reset();
            assert_eq!(wander(&mut c, &tokenizer, seed, 100), (text.as_bytes().to_vec(), true), "{name}");
        }
        // The tokenizer's own way is among the ways.
        c.reset();
        let ids = tokenizer.encode(text, false, false).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id, false).into_owned()).collect();
        if bytes == text.as_bytes() {
            ids.iter().for_each(|&id| c.accept(id).unwrap());
            assert!(c.is_finished());
        }
    }
}

#[test]
fn what_is_not_allowed_changes_nothing() {
    let model = stories();
    let tokenizer = model.tokenizer();
    let mut c = gbnf("root ::= \"ab\" \"c\"?", tokenizer);
    let (eos, b) = (tokenizer.eos().unwrap(), tokenizer.token_id("b").unwrap());
    assert!(message(c.accept(b)).contains(&format!("token {b} here")));
    assert!(message(c.accept(eos)).contains("does not allow"));
    assert!(c.accept(100_000).is_err() && c.accept(tokenizer.bos().unwrap()).is_err());
    for text in ["a", "b"] {
        assert!(!c.is_complete().unwrap());
        c.accept(tokenizer.token_id(text).unwrap()).unwrap();
    }
    assert!(c.is_complete().unwrap() && !c.is_finished() && c.allows(eos).unwrap());
    c.accept(eos).unwrap();
    c.accept(tokenizer.token_id("c").unwrap()).unwrap();
    assert!(c.is_finished() && c.allows(eos).unwrap() && !c.allows(b).unwrap());
    assert_eq!(c.allowed().unwrap().iter().collect::<Vec<_>>(), [eos]);
    c.reset();
    assert!(!c.is_complete().unwrap() && !c.allows(eos).unwrap());
}

#[test]
fn tokens_by_name_and_number() {
    let tokenizer = vocab("qwen2");
    let start = tokenizer.token_id("<|im_start|>").unwrap();
    let mut c = gbnf(&format!("root ::= <|im_start|> !<[{start}]>{{2}} <[{start}]> .*"), &tokenizer);
    assert_eq!(c.allowed().unwrap().iter().collect::<Vec<_>>(), [start]);
    c.accept(start).unwrap();
    assert!(!c.allows(start).unwrap());
    let (hello, others) = (tokenizer.token_id("Hello").unwrap(), c.allowed().unwrap());
    assert!(others.is_allowed(hello) && others.num_set() > tokenizer.n_vocab() - 100);
    assert!(others.iter().all(|id| !tokenizer.is_control(id)), "`!` stands for tokens that texts are made of");
    c.accept(hello).unwrap();
    c.accept(hello).unwrap();
    c.accept(start).unwrap();
    assert!(c.is_complete().unwrap() && !c.allows(start).unwrap() && c.allows(hello).unwrap());
    // A token may be read by its name and as characters, with different ends.
    let mut c = gbnf(&format!("root ::= <[{hello}]> \"A\" | \"Hello\" \"B\" | \"He\" <[{hello}]>"), &tokenizer);
    c.accept(hello).unwrap();
    for (text, allowed) in [("A", true), ("B", true), ("Hello", false)] {
        assert_eq!(c.allows(tokenizer.token_id(text).unwrap()).unwrap(), allowed, "{text}");
    }
}

#[test]
fn tokens_that_cannot_be_named() {
    let tokenizer = vocab("qwen2");
    let refused = |text: &str| message(Constraint::new(&Grammar::gbnf(text).unwrap(), &tokenizer));
    for (grammar, says) in [
        ("root ::= <two words>", "grammar: line 1, column 10: `<two words>` is not one token of this vocabulary"),
        ("root ::=\n <[999999]>", "grammar: line 2, column 2: there is no token 999999: the vocabulary has "),
        ("root ::= \"a\" <|im_end|>", "(`<|im_end|>`) ends the text and cannot be a part of it: leave it out"),
    ] {
        let error = refused(grammar);
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn schemas_that_are_none() {
    for (schema, says) in [
        ("{\"type\": \"string\",}", "line 1, column 19: not JSON: trailing comma"),
        ("", "line 1, column 0: not JSON: EOF while parsing a value"),
        ("[]", "a JSON schema is an object"),
        ("false", "a JSON schema is an object"),
        (r#"{"type": "strin"}"#, "strin"),
        (r#"{"not": {}}"#, "not"),
        (r#"{"$ref": "http://example.com/x"}"#, "example.com"),
        (r##"{"$ref": "#/$defs/x"}"##, "$defs/x"),
        (r#"{"type": "string", "pattern": "("}"#, "("),
        (r#"{"type": "integer", "minimum": 3, "maximum": 2}"#, "Unsatisfiable"),
    ] {
        let error = message(Grammar::json_schema(schema));
        assert!(error.starts_with("grammar: ") && error.contains(says) && !error.contains('\n'), "{schema}: {error}");
    }
}

#[test]
fn random_texts_fulfil_the_schema() {
    let schemas = [
        r#"{"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer"},
            "tags": {"type": "array", "items": {"enum": ["a", "é"]}, "maxItems": 3}}, "required": ["name", "tags"]}"#,
        r#"{"type": "array", "items": {"oneOf": [{"const": 1}, {"type": "boolean"}]}, "minItems": 2, "maxItems": 4}"#,
    ];
    let (spm, bpe) = (vocab("llama-spm"), vocab("gpt-2"));
    for tokenizer in [&spm, &bpe] {
        for (i, text) in schemas.iter().enumerate() {
            let mut c = schema(text, tokenizer);
            let mut n = 0;
            for seed in 0..20 {
                c.reset();
                let (bytes, ended) = wander(&mut c, tokenizer, seed, 200);
                if !ended {
                    continue;
                }
                n += 1;
                let value: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
                match i {
                    0 => {
                        let object = value.as_object().unwrap();
                        assert!(object["name"].as_str().unwrap().chars().count() <= 9 && object["tags"].is_array());
                        assert!(object.keys().all(|key| ["name", "age", "tags"].contains(&key.as_str())), "{value}");
                    }
                    _ => assert!((2..=4).contains(&value.as_array().unwrap().len())),
                }
            }
            assert!(n > 3, "schema {i}: {n}");
        }
    }
}

#[test]
fn what_fulfils_a_schema_is_accepted() {
    let tokenizer = vocab("gpt-2");
    let accepts = |schema_text: &str, text: &str| {
        let mut c = schema(schema_text, &tokenizer);
        let ids = tokenizer.encode(text, false, false).unwrap();
        ids.iter().all(|&id| c.accept(id).is_ok()) && c.is_complete().unwrap()
    };
    let listed = r#"{"properties": {"a": {"type": "number"}, "b": {}}, "required": ["a"], "type": "object"}"#;
    assert!(accepts(listed, r#"{"a": -1.5e3, "b": [{"x": "\u00e9\n"}, null]}"#));
    assert!(accepts(listed, "{\n    \"a\": 0\n}") && !accepts(listed, r#"{"b": 1}"#));
    assert!(!accepts(listed, r#"{"a": 1, "c": 2}"#), "other properties");
    assert!(
        accepts(r#"{"type": "integer"}"#, "-999999999999999") && !accepts(r#"{"type": "integer"}"#, "1000000000000000")
    );
    assert!(accepts(&listed.replace("\"type\"", "\"additionalProperties\": true, \"type\""), r#"{"a": 1, "c": 2}"#));
    assert!(!accepts(listed, "{   \"a\": 0}"), "white space without end");
    let both = r##"{"allOf": [{"$ref": "#/$defs/a"}, {"properties": {"b": {"type": "null"}}, "required": ["b"]}],
        "type": "object", "$defs": {"a": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}}}"##;
    assert!(accepts(both, r#"{"a": 1, "b": null}"#) && !accepts(both, r#"{"b": null}"#));
    assert!(accepts("{}", "[1, {}]") && accepts("true", "null"));
    let one_of = r#"{"oneOf": [{"type": "integer"}, {"type": "number"}, {"type": "string", "pattern": "^[a-z]{2}$"}]}"#;
    assert!(accepts(one_of, "1.5") && accepts(one_of, r#""ab""#) && !accepts(one_of, r#""abc""#));
}

#[test]
fn a_constraint_can_go_to_another_thread() {
    fn goes<T: Send>() {}
    goes::<Constraint>();
    goes::<Grammar>();
}
