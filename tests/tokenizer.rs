//! Tokenizers against llama.cpp's results (`tests/data/vocab`, `tests/data/tokens`), and against metadata that is wrong.

use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;
use ggml_ext::gguf::{Gguf, GgufWriter};
use lisa_cpp::Error;
use lisa_cpp::tokenizer::{StreamDecoder, Tokenizer};

/// The vocabularies that llama.cpp's own tests use, and some of other kinds.
const VOCABS: [&str; 9] =
    ["deepseek-llm", "falcon", "gpt-2", "llama-bpe", "llama-spm", "qwen2", "starcoder", "plamo2", "rwkv"];

fn data(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    if !name.ends_with(".gz") {
        return bytes;
    }
    let mut unpacked = Vec::new();
    GzDecoder::new(&bytes[..]).read_to_end(&mut unpacked).unwrap();
    unpacked
}

fn text(name: &str) -> String {
    String::from_utf8(data(name)).unwrap()
}

fn load_bytes(bytes: &[u8]) -> Tokenizer {
    Tokenizer::from_gguf(&Gguf::parse(bytes).unwrap()).unwrap()
}

fn load(name: &str) -> Tokenizer {
    load_bytes(&data(name))
}

fn vocab(name: &str) -> Tokenizer {
    load(&format!("vocab/{name}.gguf.gz"))
}

fn strings() -> Vec<String> {
    let text = text("vocab/strings.inp");
    let strings: Vec<String> = text.split("\n__ggml_vocab_test__\n").map(str::to_owned).collect();
    assert_eq!(strings.len(), 47, "46 strings, each with the separator after it");
    strings[..46].to_vec()
}

fn ids(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn vocabularies_of_llama_cpp_give_its_ids() {
    for name in VOCABS {
        let tokenizer = vocab(name);
        let out = text(&format!("vocab/{name}.out"));
        assert_eq!(out.lines().count(), 46);
        for (string, line) in strings().iter().zip(out.lines()) {
            let want: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert_eq!(tokenizer.encode(string, false, false).unwrap(), want, "{name}: {string:?}");
        }
    }
}

#[test]
fn models_give_the_ids_of_llama_cpp_with_and_without_special_tokens() {
    for name in ["smollm2", "gemma-3-270m"] {
        let tokenizer = load(&format!("tokens/{name}.gguf.gz"));
        let golden: serde_json::Value = serde_json::from_str(&text(&format!("tokens/tokens.{name}.json"))).unwrap();
        assert_eq!(golden.as_array().unwrap().len(), 60);
        for case in golden.as_array().unwrap() {
            // llama-tokenize turns the two characters of `\n` in its prompt into a newline.
            let text = case["text"].as_str().unwrap().replace("\\n", "\n");
            assert_eq!(tokenizer.encode(&text, true, false).unwrap(), ids(&case["ids"]), "{name}: {text:?}");
            assert_eq!(
                tokenizer.encode(&text, true, true).unwrap(),
                ids(&case["ids_special"]),
                "{name}, special tokens parsed: {text:?}"
            );
        }
    }
}

/// A vocabulary in which any two bytes merge, by ranks in no order, so that the ids tell where words were cut. A few
/// longer words are tokens that no merge makes.
fn any_pair(pre: &str) -> Vec<u8> {
    let spelled: Vec<char> = (0..=255u8)
        .map(|byte| match byte {
            0x21..=0x7e | 0xa1..=0xac | 0xae.. => byte as char,
            0..=0x20 => char::from_u32(0x100 + byte as u32).unwrap(),
            0x7f..=0xa0 => char::from_u32(0x121 + byte as u32 - 0x7f).unwrap(),
            0xad => '\u{143}',
        })
        .collect();
    let pairs: Vec<(char, char)> = (0..1 << 16)
        .map(|i: u64| (i * 40503 + 12345) as u16)
        .map(|pair| (spelled[pair as usize >> 8], spelled[pair as usize & 255]))
        .collect();
    let mut tokens: Vec<String> = spelled.iter().map(char::to_string).collect();
    tokens.extend(pairs.iter().map(|(a, b)| format!("{a}{b}")));
    tokens.extend(["Hello", "ĠWorld", "Ġtwo", "123", "code", "test"].map(String::from));
    let merges: Vec<String> = pairs.iter().map(|(a, b)| format!("{a} {b}")).collect();

    let mut w = GgufWriter::new(Vec::new());
    w.str("tokenizer.ggml.model", "gpt2").unwrap();
    w.str("tokenizer.ggml.pre", pre).unwrap();
    w.strings("tokenizer.ggml.tokens", &tokens).unwrap();
    w.strings("tokenizer.ggml.merges", &merges).unwrap();
    w.u32("tokenizer.ggml.bos_token_id", 0).unwrap();
    w.finish().unwrap()
}

/// One vocabulary under the rules of every pre-tokenizer; ids by llama.cpp with the same vocabulary.
#[test]
fn every_pre_tokenizer_cuts_as_llama_cpp_does() {
    let golden: serde_json::Value = serde_json::from_slice(&data("tokens/pre.json.gz")).unwrap();
    let texts: Vec<&str> = golden["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let names = golden["ids"].as_object().unwrap();
    assert_eq!((names.len(), texts.len()), (90, 51));
    for (name, want) in names {
        let tokenizer = Tokenizer::from_gguf(&Gguf::parse(&any_pair(name)).unwrap()).unwrap();
        for (text, want) in texts.iter().zip(want.as_array().unwrap()) {
            assert_eq!(tokenizer.encode(text, false, false).unwrap(), ids(want), "{name}: {text:?}");
        }
    }
}

#[test]
fn decoding_gives_back_the_text() {
    for name in VOCABS {
        let tokenizer = vocab(name);
        for string in strings() {
            // Falcon's vocabulary has no vertical tab, nor other control characters.
            let string = if name == "falcon" { string.replace('\x0b', "") } else { string };
            for add_special in [false, true] {
                let ids = tokenizer.encode(&string, add_special, false).unwrap();
                assert_eq!(tokenizer.decode(&ids, false), string, "{name}");
            }
        }
    }
}

#[test]
fn a_stream_of_tokens_gives_whole_characters_only() {
    let text = "Zażółć 👩‍👩‍👧 你好 नमस्ते 🇩🇪 ascii";
    for tokenizer in [vocab("gpt-2"), vocab("llama-spm"), load("tokens/smollm2.gguf.gz")] {
        let ids = tokenizer.encode(text, false, false).unwrap();
        let mut stream = StreamDecoder::default();
        let mut out = String::new();
        let mut held_back = false;
        for &id in &ids {
            let bytes = tokenizer.token_bytes(id, false);
            let piece = stream.push(&bytes);
            assert!(!piece.contains(char::REPLACEMENT_CHARACTER));
            held_back |= piece.is_empty();
            out += &piece;
        }
        assert!(held_back, "some character is several tokens");
        assert_eq!(stream.finish(), "");
        assert_eq!(out.trim_start(), text);
        assert_eq!(tokenizer.decode(&ids, false), text);
    }
}

#[test]
fn a_cut_character_is_replaced_at_the_end() {
    let tokenizer = vocab("gpt-2");
    let ids = tokenizer.encode("🇩", false, false).unwrap();
    let mut stream = StreamDecoder::default();
    let shown: String = ids[..ids.len() - 1].iter().map(|&id| stream.push(&tokenizer.token_bytes(id, false))).collect();
    assert_eq!(shown, "");
    assert_eq!(stream.finish(), "\u{fffd}");
    assert_eq!(tokenizer.decode(&ids[..ids.len() - 1], false), "\u{fffd}");
}

#[test]
fn a_long_text_is_tokenised_as_its_lines_are() {
    let tokenizer = vocab("llama-bpe");
    let line = "The quick brown fox, 1234 of them, don't jump.\n";
    let one = tokenizer.encode(line, false, false).unwrap();
    assert_eq!(tokenizer.encode(&line.repeat(5_000), false, false).unwrap(), one.repeat(5_000));
}

/// Words of a million letters take the merge loop, not a quadratic one, whatever the kind of vocabulary.
#[test]
fn a_very_long_word_is_tokenised() {
    for tokenizer in [vocab("gpt-2"), vocab("llama-spm")] {
        let word = "abcdefgh".repeat(125_000);
        let ids = tokenizer.encode(&word, false, true).unwrap();
        assert_eq!(tokenizer.decode(&ids, false), word);
    }
}

#[test]
fn tokens_not_to_be_generated_are_those_of_the_vocabulary() {
    let with = |ids: &[i32]| {
        let mut w = GgufWriter::new(Vec::new());
        w.str("tokenizer.ggml.model", "gpt2").unwrap();
        w.strings("tokenizer.ggml.tokens", &["a", "b", "ab"]).unwrap();
        w.strings("tokenizer.ggml.merges", &["a b"]).unwrap();
        w.i32s("tokenizer.ggml.suppress_tokens", ids).unwrap();
        load_bytes(&w.finish().unwrap()).suppressed().to_vec()
    };
    assert_eq!(with(&[2, 0, -1, 3]), [2, 0]);
    assert!(with(&[]).is_empty() && vocab("gpt-2").suppressed().is_empty());
}

#[test]
fn ids_and_flags_of_real_vocabularies() {
    let gemma = load("tokens/gemma-3-270m.gguf.gz");
    assert_eq!((gemma.n_vocab(), gemma.bos(), gemma.eos()), (262_144, Some(2), Some(1)));
    assert!(gemma.add_bos() && !gemma.add_eos());
    assert_eq!(gemma.eot().map(|id| gemma.token_text(id)), Some("<end_of_turn>"));
    assert!(gemma.is_eog(106) && gemma.is_eog(1) && !gemma.is_eog(2));
    assert_eq!(gemma.token_bytes(2, false).as_ref(), b"");
    assert_eq!(gemma.token_bytes(2, true).as_ref(), b"<bos>");

    let smollm = load("tokens/smollm2.gguf.gz");
    assert!(!smollm.add_bos());
    assert_eq!(smollm.eot(), smollm.token_id("<|im_end|>"));
    assert!(smollm.is_eog(smollm.token_id("<|endoftext|>").unwrap()));
    assert_eq!(smollm.encode("<|im_start|>", false, true).unwrap(), [1]);
    assert!(smollm.encode("<|im_start|>", false, false).unwrap().len() > 1);

    let llama3 = vocab("llama-bpe");
    assert!(llama3.add_bos(), "the pre-tokenizer asks for it where no key does");
    assert_eq!(llama3.encode("", true, false).unwrap(), [128_000]);
    assert!(llama3.encode("", false, false).unwrap().is_empty());

    // Ids that no vocabulary has come from callers, not from files: they print nothing.
    assert_eq!(llama3.token_bytes(u32::MAX, true).as_ref(), b"");
    assert_eq!((llama3.token_text(u32::MAX), llama3.is_eog(u32::MAX), llama3.is_control(u32::MAX)), ("", false, false));
    assert_eq!(llama3.decode(&[u32::MAX, 128_256], true), "");
}

/// Metadata to build a file of: the keys given later replace earlier ones, and `None` leaves a key out.
#[derive(Clone, Default)]
struct Meta {
    pairs: Vec<(&'static str, Field)>,
}

#[derive(Clone)]
enum Field {
    Str(&'static str),
    U32(u32),
    I32(i32),
    Bool(bool),
    Strings(Vec<String>),
    F32s(Vec<f32>),
    I32s(Vec<i32>),
}

impl Meta {
    fn set(mut self, key: &'static str, field: Field) -> Meta {
        self.pairs.retain(|(other, _)| *other != key);
        self.pairs.push((key, field));
        self
    }

    fn without(mut self, key: &str) -> Meta {
        self.pairs.retain(|(other, _)| *other != key);
        self
    }

    fn build(&self) -> Result<Tokenizer, Error> {
        let mut w = GgufWriter::new(Vec::new());
        for (key, field) in &self.pairs {
            let key = match *key {
                "general.name" => key.to_string(),
                key => format!("tokenizer.ggml.{key}"),
            };
            match field {
                Field::Str(value) => w.str(&key, value),
                Field::U32(value) => w.u32(&key, *value),
                Field::I32(value) => w.i32(&key, *value),
                Field::Bool(value) => w.bool(&key, *value),
                Field::Strings(values) => w.strings(&key, values),
                Field::F32s(values) => w.f32s(&key, values),
                Field::I32s(values) => w.i32s(&key, values),
            }
            .unwrap();
        }
        Tokenizer::from_gguf(&Gguf::parse(&w.finish().unwrap()).unwrap())
    }

    fn error(&self) -> String {
        match self.build() {
            Err(Error::Tokenizer(what)) => what,
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("this builds"),
        }
    }
}

fn list(items: &[&str]) -> Field {
    Field::Strings(items.iter().map(|item| item.to_string()).collect())
}

/// A byte-pair vocabulary of a few letters, ids in this order.
fn bpe() -> Meta {
    Meta::default()
        .set("model", Field::Str("gpt2"))
        .set("pre", Field::Str("gpt-2"))
        .set("tokens", list(&["a", "b", "c", "Ġ", "ab", "bc", "<s>", "<user>", "Ċ"]))
        .set("token_type", Field::I32s(vec![1, 1, 1, 1, 1, 1, 3, 4, 1]))
        .set("merges", list(&["a b", "b c"]))
}

/// A SentencePiece vocabulary: the specials, the 256 bytes (3 to 258), and a few words.
fn spm() -> Meta {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(["▁", "a", "b", "▁a", "ab", "▁ab"].map(String::from));
    let mut types = vec![2, 3, 3];
    types.extend([6; 256]);
    types.extend([1; 6]);
    let mut scores = vec![0.0; 259];
    scores.extend([-10.0, -10.0, -10.0, -2.0, -1.0, -3.0]);
    Meta::default()
        .set("model", Field::Str("llama"))
        .set("tokens", Field::Strings(tokens))
        .set("token_type", Field::I32s(types))
        .set("scores", Field::F32s(scores))
}

const SPM_SPACE: u32 = 259;
const SPM_A: u32 = 260;
const SPM_SPACE_AB: u32 = 264;

#[test]
fn byte_pairs_merge_by_rank_then_from_the_left() {
    let t = bpe().build().unwrap();
    assert_eq!(t.encode("abc", false, false).unwrap(), [4, 2]);
    assert_eq!(t.encode("bcab", false, false).unwrap(), [5, 4]);
    assert_eq!(t.encode("ab ab", false, false).unwrap(), [4, 3, 4]);
    let reversed = bpe().set("merges", list(&["b c", "a b"])).build().unwrap();
    assert_eq!(reversed.encode("abc", false, false).unwrap(), [0, 5]);
    // The first of two equal merges counts.
    let twice = bpe().set("merges", list(&["b c", "a b", "b c"])).build().unwrap();
    assert_eq!(twice.encode("abc", false, false).unwrap(), [0, 5]);
    // A byte without a token is left out.
    assert_eq!(t.encode("aéb", false, false).unwrap(), [0, 1]);
    // A merge to what is no token falls back to the bytes.
    let beyond = bpe().set("merges", list(&["a b", "ab c"])).build().unwrap();
    assert_eq!(beyond.encode("abc", false, false).unwrap(), [0, 1, 2]);
}

#[test]
fn a_missing_pre_tokenizer_is_the_default_and_an_unknown_one_is_an_error() {
    assert!(bpe().without("pre").build().is_ok());
    assert!(bpe().set("pre", Field::Str("")).build().is_ok());
    let what = bpe().set("pre", Field::Str("gpt-99")).error();
    assert!(what.contains("`gpt-99`") && what.contains("llama-bpe, ") && what.contains("smollm"), "{what}");
    // SentencePiece has none, whatever the key says.
    assert!(spm().set("pre", Field::Str("gpt-99")).build().is_ok());
}

#[test]
fn special_tokens_in_text() {
    let t = bpe().build().unwrap();
    assert_eq!(t.encode("a<user>b", false, false).unwrap(), [0, 7, 1], "user-defined: always");
    assert_eq!(t.encode("a<s>b", false, true).unwrap(), [0, 6, 1]);
    assert_eq!(t.encode("a<s>b", false, false).unwrap(), [0, 1], "control: only on request");
    assert_eq!(t.decode(&[0, 6, 7, 1], false), "a<user>b");
    assert_eq!(t.decode(&[0, 6, 7, 1], true), "a<s><user>b");

    // The longer token claims its place first, wherever it is.
    let overlap = bpe()
        .set("tokens", list(&["a", "b", "c", "d", "ab", "bcd"]))
        .set("token_type", Field::I32s(vec![1, 1, 1, 1, 4, 4]))
        .without("merges")
        .set("merges", Field::Strings(Vec::new()))
        .build()
        .unwrap();
    assert_eq!(overlap.encode("abcdab", false, false).unwrap(), [0, 5, 4]);

    // Phi-3's special tokens swallow the space after them.
    let phi = spm().set("general.name", Field::Str("Phi-3 mini")).build().unwrap();
    assert_eq!(phi.encode("</s>  ab", false, true).unwrap(), [2, SPM_SPACE_AB]);
    assert_eq!(phi.encode("<s> ab", false, true).unwrap(), [1, SPM_SPACE, SPM_SPACE_AB]);
}

#[test]
fn sentencepiece_merges_by_score_and_falls_back_to_bytes() {
    let t = spm().build().unwrap();
    // "▁ab": "ab" (-1) goes before "▁a" (-2), then "▁ab" is one.
    assert_eq!(t.encode("ab", false, false).unwrap(), [SPM_SPACE_AB]);
    assert_eq!(t.encode("aé", false, false).unwrap(), [262, 3 + 0xc3, 3 + 0xa9]);
    assert_eq!(t.decode(&t.encode(" aé ab", false, false).unwrap(), false), " aé ab");

    // A space goes before the first word and before words after special tokens.
    assert!(t.add_bos());
    assert_eq!(t.encode("a", true, true).unwrap(), [1, 262]);
    assert_eq!(t.encode("a</s>a", true, true).unwrap(), [1, 262, 2, 262]);
    let bare = spm().set("add_space_prefix", Field::Bool(false)).set("add_bos_token", Field::Bool(false));
    let bare = bare.set("add_eos_token", Field::Bool(true)).build().unwrap();
    assert_eq!(bare.encode("a", true, true).unwrap(), [SPM_A, 2]);
    assert_eq!(bare.decode(&[262], false), " a");
    assert_eq!(t.decode(&[1, 262], false), "a");

    // Where bytes have no tokens, the unknown token stands for each.
    let mut few = spm();
    few = few.set("tokens", list(&["<unk>", "<s>", "</s>", "▁", "a"]));
    few = few.set("token_type", Field::I32s(vec![2, 3, 3, 1, 1])).set("scores", Field::F32s(vec![0.0; 5]));
    assert_eq!(few.build().unwrap().encode("aé", false, false).unwrap(), [3, 4, 0, 0]);
}

#[test]
fn answers_end_with_the_tokens_known_to_end_them() {
    let with = |texts: &[&str]| {
        let mut tokens = vec!["a", "b"];
        tokens.extend(texts);
        bpe()
            .without("token_type")
            .set("merges", Field::Strings(Vec::new()))
            .set("tokens", list(&tokens))
            .build()
            .unwrap()
    };
    let eog = |texts: &[&str]| {
        let t = with(texts);
        t.eog().iter().map(|&id| t.token_text(id).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(eog(&["<|im_start|>", "<|im_end|>", "<|endoftext|>"]), ["<|im_end|>", "<|endoftext|>"]);
    assert_eq!(eog(&["<|end|>"]), ["<|end|>"]);
    assert_eq!(eog(&["<|end|>", "<|return|>", "<|call|>"]), ["<|return|>", "<|call|>"]);
    assert_eq!(eog(&["</s>", "<|tool_response>"]), ["<|tool_response>"]);
    assert!(eog(&["<|eot"]).is_empty());
    // They are control tokens whatever the file calls them, and channel markers are text.
    let t = with(&["<|im_end|>", "<|channel|>"]);
    assert_eq!(t.decode(&[2, 3], false), "<|channel|>");
    let t = bpe().set("eos_token_id", Field::U32(4)).build().unwrap();
    assert!(t.is_eog(4) && t.eos() == Some(4));
    // Minus one is how files say "none".
    let t = bpe().set("eos_token_id", Field::I32(-1)).set("bos_token_id", Field::U32(u32::MAX)).build().unwrap();
    assert_eq!((t.eos(), t.bos()), (None, None));
}

#[test]
fn malformed_metadata_is_refused_by_name() {
    let cases: &[(Meta, &[&str])] = &[
        (bpe().without("model"), &["tokenizer.ggml.model", "missing"]),
        (bpe().set("model", Field::Str("bert")), &["`bert`", "llama", "gpt2"]),
        (bpe().set("model", Field::U32(1)), &["tokenizer.ggml.model"]),
        (bpe().without("tokens"), &["tokenizer.ggml.tokens", "missing"]),
        (bpe().set("tokens", Field::I32s(vec![1])), &["tokenizer.ggml.tokens"]),
        (bpe().set("tokens", Field::Strings(Vec::new())), &["tokenizer.ggml.tokens", "0 entries"]),
        (bpe().set("tokens", list(&["a", "b", "c", "Ġ", "ab", "bc", "<s>", "<user>", "a"])), &["0 and 8", "`a`"]),
        (bpe().set("token_type", Field::I32s(vec![1; 8])), &["token_type", "8 entries for 9 tokens"]),
        (bpe().set("token_type", Field::I32s(vec![1, 1, 1, 1, 1, 1, 3, 4, 7])), &["token_type", "entry 8 is 7"]),
        (bpe().set("token_type", Field::I32s(vec![6, 1, 1, 1, 1, 1, 3, 4, 1])), &["token 0", "`a`", "<0xXX>"]),
        (bpe().set("token_type", Field::Strings(vec!["1".into()])), &["token_type"]),
        (bpe().without("merges"), &["tokenizer.ggml.merges", "missing"]),
        (bpe().set("merges", list(&["a b", "bc"])), &["merges", "entry 1 is `bc`"]),
        (bpe().set("merges", list(&["a "])), &["merges", "entry 0 is `a `"]),
        (bpe().set("merges", list(&[""])), &["merges", "entry 0"]),
        (bpe().set("merges", list(&[" b"])), &["merges", "entry 0 is ` b`"]),
        (bpe().set("merges", list(&["é"])), &["merges", "entry 0 is `é`"]),
        (bpe().set("pre", Field::U32(3)), &["tokenizer.ggml.pre"]),
        (bpe().set("bos_token_id", Field::U32(9)), &["bos_token_id", "is 9", "9 tokens"]),
        (bpe().set("eos_token_id", Field::I32(-2)), &["eos_token_id", "is -2"]),
        (bpe().set("eot_token_id", Field::Str("x")), &["eot_token_id", "not an integer"]),
        (bpe().set("fim_pad_token_id", Field::U32(1 << 20)), &["fim_pad_token_id"]),
        (bpe().set("add_bos_token", Field::Bool(true)), &["bos_token_id", "missing"]),
        (bpe().set("add_eos_token", Field::Bool(true)), &["eos_token_id", "missing"]),
        (bpe().set("add_bos_token", Field::U32(1)), &["add_bos_token"]),
        (spm().without("scores"), &["tokenizer.ggml.scores", "missing"]),
        (spm().set("scores", Field::F32s(vec![0.0; 264])), &["scores", "264 entries for 265 tokens"]),
        (spm().set("scores", Field::F32s(vec![f32::NAN; 265])), &["scores", "entry 0 is not a number"]),
        (spm().set("scores", Field::Str("x")), &["tokenizer.ggml.scores"]),
        (spm().set("add_space_prefix", Field::Str("x")), &["add_space_prefix"]),
    ];
    for (meta, words) in cases {
        let what = meta.error();
        for word in *words {
            assert!(what.contains(word), "{what:?} does not say {word:?}");
        }
    }
    // Not wrong, only odd: scores as ranks, empty tokens.
    assert!(spm().set("scores", Field::I32s((0..265).collect())).build().is_ok());
    let holes = bpe().set("tokens", list(&["a", "b", "", "Ġ", "ab", "bc", "", "<user>", "Ċ"])).build().unwrap();
    assert_eq!((holes.token_text(2), holes.token_text(6)), ("[EMPTY_2]", "[EMPTY_6]"));
}
