//! Rendering against Jinja2 itself (`tests/data/chat/golden.py` wrote the expected texts), and what is ours: the built-in
//! formats, the system role, continuations, errors.

use ggml_ext::gguf::{Gguf, GgufWriter};
use serde_json::Value as Json;

use super::*;

const GOLDEN: &str = include_str!("../../../tests/data/chat/golden.json");

fn messages(json: &Json) -> Vec<ChatMessage> {
    let text = |v: &Json| v.as_str().unwrap().to_string();
    json.as_array().unwrap().iter().map(|m| ChatMessage::new(text(&m[0]), text(&m[1]))).collect()
}

fn file(name: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/chat").join(name);
    std::fs::read_to_string(path).unwrap()
}

fn template(name: &str) -> ChatTemplate {
    ChatTemplate::new(&file(name), "<s>", "</s>").unwrap()
}

#[test]
fn templates_render_as_jinja2_renders_them() {
    let golden: Json = serde_json::from_str(GOLDEN).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 100);
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let mut t = template(name);
        for (variable, value) in case["variables"].as_object().unwrap() {
            t.set_variable(variable, value);
        }
        // As it stands, without the help for templates that refuse the system role.
        let got = t.render_as_is(&messages(&case["messages"]), case["prompt"].as_bool().unwrap());
        match case["text"].as_str() {
            Some(want) => assert_eq!(got.unwrap(), want, "{name}: {case}"),
            None => {
                let error = got.unwrap_err().to_string();
                assert!(error.starts_with("chat template: the template refuses: "), "{name}: {error}");
            }
        }
    }
}

#[test]
fn expressions_evaluate_as_in_python() {
    let golden: Json = serde_json::from_str(GOLDEN).unwrap();
    let messages = messages(&golden["expression_messages"]);
    let expressions = golden["expressions"].as_array().unwrap();
    assert!(expressions.len() > 100);
    for e in expressions {
        let source = e["template"].as_str().unwrap();
        let got = ChatTemplate::new(source, "<s>", "</s>").and_then(|t| t.render(&messages, true));
        assert_eq!(got.unwrap_or_else(|e| e.to_string()), e["text"].as_str().unwrap(), "{source}");
    }
}

#[test]
fn strftime_now_tells_the_date() {
    let t = ChatTemplate::new("{{ strftime_now('%Y-%m-%d') }}", "", "").unwrap();
    let before = chrono::Local::now().format("%Y-%m-%d").to_string();
    let got = t.render(&[], false).unwrap();
    let after = chrono::Local::now().format("%Y-%m-%d").to_string();
    assert!(got == before || got == after);
    let bad = ChatTemplate::new("{{ strftime_now('%Q') }}", "", "").unwrap();
    assert!(bad.render(&[], false).unwrap_err().to_string().contains("strftime_now"));
}

fn conversation() -> Vec<ChatMessage> {
    vec![ChatMessage::system("SYS"), ChatMessage::user("U1"), ChatMessage::assistant("A1"), ChatMessage::user(" U2 ")]
}

#[test]
fn built_in_formats() {
    let want = [
        (
            "bailing",
            "<role>SYSTEM</role>SYS<role>HUMAN</role>U1<role>ASSISTANT</role>A1<role>HUMAN</role> U2 <role>ASSIST\
             ANT</role>",
        ),
        (
            "bailing-think",
            "<role>SYSTEM</role>SYS<role>HUMAN</role>U1<role>ASSISTANT</role>A1<role>HUMAN</role> U2 <role>ASSIST\
             ANT</role><think>",
        ),
        (
            "bailing2",
            "<role>SYSTEM</role>SYS<|role_end|><role>HUMAN</role>U1<|role_end|><role>ASSISTANT</role>A1<|role_end\
             |><role>HUMAN</role> U2 <|role_end|><role>ASSISTANT</role>",
        ),
        ("chatglm3", "[gMASK]sop<|system|>\n SYS<|user|>\n U1<|assistant|>\n A1<|user|>\n  U2 <|assistant|>"),
        ("chatglm4", "[gMASK]<sop><|system|>\nSYS<|user|>\nU1<|assistant|>\nA1<|user|>\n U2 <|assistant|>\n"),
        (
            "chatml",
            "<|im_start|>system\nSYS<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n\
             <|im_start|>user\n U2 <|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "command-r",
            "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>SYS<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>U1\
             <|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>A1<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|>\
             <|USER_TOKEN|>U2<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        ),
        ("deepseek", "SYS### Instruction:\nU1\n### Response:\nA1\n<|EOT|>\n### Instruction:\n U2 \n### Response:\n"),
        ("deepseek-ocr", "SYSU1A1 U2 "),
        ("deepseek2", "SYS\n\nUser: U1\n\nAssistant: A1<｜end▁of▁sentence｜>User:  U2 \n\nAssistant:"),
        ("deepseek3", "SYS\n\n<｜User｜>U1<｜Assistant｜>A1<｜end▁of▁sentence｜><｜User｜> U2 <｜Assistant｜>"),
        (
            "exaone-moe",
            "<|system|>\nSYS<|endofturn|>\n<|user|>\nU1<|endofturn|>\n<|assistant|>\nA1<|endofturn|>\n<|user|>\nU\
             2<|endofturn|>\n<|assistant|>\n",
        ),
        ("exaone3", "[|system|]SYS[|endofturn|]\n[|user|]U1\n[|assistant|]A1[|endofturn|]\n[|user|]U2\n[|assistant|]"),
        ("exaone4", "[|system|]SYS[|endofturn|]\n[|user|]U1\n[|assistant|]A1[|endofturn|]\n[|user|]U2\n[|assistant|]"),
        ("falcon3", "<|system|>\nSYS\n<|user|>\nU1\n<|assistant|>\nA1\n<|user|>\n U2 \n<|assistant|>\n"),
        (
            "gemma",
            "<start_of_turn>user\nSYS\n\nU1<end_of_turn>\n<start_of_turn>model\nA1<end_of_turn>\n<start_of_turn>user\n\
             U2<end_of_turn>\n<start_of_turn>model\n",
        ),
        (
            "gigachat",
            "<s>SYS<|message_sep|>user<|role_sep|>U1<|message_sep|>available functions<|role_sep|>[]<|message_sep\
             |>assistant<|role_sep|>A1<|message_sep|>user<|role_sep|> U2 <|message_sep|>available functions<|role\
             _sep|>[]<|message_sep|>assistant<|role_sep|>",
        ),
        ("glmedge", "<|system|>\nSYS<|user|>\nU1<|assistant|>\nA1<|user|>\n U2 <|assistant|>"),
        (
            "gpt-oss",
            "<|start|>system<|message|>SYS<|end|><|start|>user<|message|>U1<|end|><|start|>assistant<|message|>A1<|return|>\
             <|start|>user<|message|> U2 <|end|><|start|>assistant",
        ),
        (
            "granite",
            "<|start_of_role|>system<|end_of_role|>SYS<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>U1<|end_of_text|>\n\
             <|start_of_role|>assistant<|end_of_role|>A1<|end_of_text|>\n<|start_of_role|>user<|end_of_role|> U2 \
             <|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        ),
        (
            "granite-4.0",
            "<|start_of_role|>system<|end_of_role|>SYS<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>U1<|en\
             d_of_text|>\n<|start_of_role|>assistant<|end_of_role|>A1<|end_of_text|>\n<|start_of_role|>user<|end_\
             of_role|> U2 <|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        ),
        (
            "granite-4.1",
            "<|start_of_role|>system<|end_of_role|>SYS<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>U1<|en\
             d_of_text|>\n<|start_of_role|>assistant<|end_of_role|>A1<|end_of_text|>\n<|start_of_role|>user<|end_\
             of_role|> U2 <|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        ),
        (
            "grok-2",
            "System: SYS<|separator|>\n\nHuman: U1<|separator|>\n\nAssistant: A1<|separator|>\n\nHuman: U2<|separ\
             ator|>\n\nAssistant:",
        ),
        (
            "hunyuan-dense",
            "SYS<｜hy_place▁holder▁no▁3｜><｜hy_User｜>U1<｜hy_Assistant｜>A1<｜hy_place▁holder▁no▁2｜><｜hy_User｜> U2 <｜h\
             y_Assistant｜>",
        ),
        (
            "hunyuan-moe",
            "<|startoftext|>SYS<|extra_4|><|startoftext|>U1<|extra_0|>A1<|eos|><|startoftext|> U2 <|extra_0|>",
        ),
        (
            "hunyuan-vl",
            "<｜hy_begin▁of▁sentence｜>SYS<｜hy_place▁holder▁no▁3｜>U1<｜hy_User｜>A1<｜hy_Assistant｜> U2 <｜hy_User｜>",
        ),
        (
            "kimi-k2",
            "<|im_system|>system<|im_middle|>SYS<|im_end|><|im_user|>user<|im_middle|>U1<|im_end|><|im_assistant|\
             >assistant<|im_middle|>A1<|im_end|><|im_user|>user<|im_middle|> U2 <|im_end|><|im_assistant|>assista\
             nt<|im_middle|>",
        ),
        ("llama2", "[INST] SYS\nU1 [/INST]A1</s>[INST]  U2  [/INST]"),
        ("llama2-sys", "[INST] <<SYS>>\nSYS\n<</SYS>>\n\nU1 [/INST]A1</s>[INST]  U2  [/INST]"),
        ("llama2-sys-bos", "[INST] <<SYS>>\nSYS\n<</SYS>>\n\nU1 [/INST]A1</s><s>[INST]  U2  [/INST]"),
        ("llama2-sys-strip", "[INST] <<SYS>>\nSYS\n<</SYS>>\n\nU1 [/INST]A1</s>[INST] U2 [/INST]"),
        (
            "llama3",
            "<|start_header_id|>system<|end_header_id|>\n\nSYS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU1<|eot_id|>\
             <|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU2\
             <|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "llama4",
            "<|header_start|>system<|header_end|>\n\nSYS<|eot|><|header_start|>user<|header_end|>\n\nU1<|eot|><|header_start|>\
             assistant<|header_end|>\n\nA1<|eot|><|header_start|>user<|header_end|>\n\nU2<|eot|><|header_start|>assistant\
             <|header_end|>\n\n",
        ),
        (
            "megrez",
            "<|role_start|>system<|role_end|>SYS<|turn_end|><|role_start|>user<|role_end|>U1<|turn_end|><|role_st\
             art|>assistant<|role_end|>A1<|turn_end|><|role_start|>user<|role_end|> U2 <|turn_end|><|role_start|>\
             assistant<|role_end|>",
        ),
        ("minicpm", "SYS<用户>U1<AI>A1<用户>U2<AI>"),
        ("mistral-v1", " [INST] SYS\n\nU1 [/INST] A1</s> [INST]  U2  [/INST]"),
        ("mistral-v3", "[INST] SYS\n\nU1[/INST] A1</s>[INST]  U2 [/INST]"),
        ("mistral-v3-tekken", "[INST]SYS\n\nU1[/INST]A1</s>[INST] U2 [/INST]"),
        ("mistral-v7", "[SYSTEM_PROMPT] SYS[/SYSTEM_PROMPT][INST] U1[/INST] A1</s>[INST]  U2 [/INST]"),
        ("mistral-v7-tekken", "[SYSTEM_PROMPT]SYS[/SYSTEM_PROMPT][INST]U1[/INST]A1</s>[INST] U2 [/INST]"),
        ("monarch", "system\nSYS</s>\n<s>user\nU1</s>\n<s>assistant\nA1</s>\n<s>user\n U2 </s>\n<s>assistant\n"),
        (
            "openchat",
            "SYS<|end_of_turn|>GPT4 Correct User: U1<|end_of_turn|>GPT4 Correct Assistant: A1<|end_of_turn|>GPT4 Correct User:  \
             U2 <|end_of_turn|>GPT4 Correct Assistant:",
        ),
        ("orion", "Human: SYS\n\nU1\n\nAssistant: </s>A1</s>Human:  U2 \n\nAssistant: </s>"),
        (
            "pangu-embedded",
            "[unused9]系统：SYS[unused10][unused9]用户：U1[unused10][unused9]助手：A1[unused10][unused9]用户： U2 [unused10][\
             unused9]助手：",
        ),
        (
            "phi3",
            "<|system|>\nSYS<|end|>\n<|user|>\nU1<|end|>\n<|assistant|>\nA1<|end|>\n<|user|>\n U2 <|end|>\n<|assistant|>\n",
        ),
        (
            "phi4",
            "<|im_start|>system<|im_sep|>SYS<|im_end|><|im_start|>user<|im_sep|>U1<|im_end|><|im_start|>assistant<|im_sep|>A1\
             <|im_end|><|im_start|>user<|im_sep|> U2 <|im_end|><|im_start|>assistant<|im_sep|>",
        ),
        ("rwkv-world", "System: SYS\n\nUser: U1\n\nAssistant: A1\n\nUser: U2\n\nAssistant:"),
        (
            "seed_oss",
            "<seed:bos>system\nSYS<seed:eos><seed:bos>user\nU1<seed:eos><seed:bos>assistant\nA1<seed:eos><seed:bo\
             s>user\n U2 <seed:eos><seed:bos>assistant\n",
        ),
        (
            "smolvlm",
            "<|im_start|>SYS\n\nUser: U1<end_of_utterance>\nAssistant: A1<end_of_utterance>\nUser:  U2 <end_of_utterance>\n\
             Assistant:",
        ),
        (
            "solar-open",
            "<|begin|>system<|content|>SYS<|end|><|begin|>user<|content|>U1<|end|><|begin|>assistant<|content|>A1\
             <|end|><|begin|>user<|content|> U2 <|end|><|begin|>assistant",
        ),
        ("vicuna", "SYS\n\nUSER: U1\nASSISTANT: A1</s>\nUSER:  U2 \nASSISTANT:"),
        ("vicuna-orca", "SYSTEM: SYS\nUSER: U1\nASSISTANT: A1</s>\nUSER:  U2 \nASSISTANT:"),
        ("yandex", " Пользователь: SYS\n\nU1\n\n Ассистент: A1\n\n Пользователь:  U2 \n\n Ассистент:[SEP]"),
        (
            "zephyr",
            "<|system|>\nSYS<|endoftext|>\n<|user|>\nU1<|endoftext|>\n<|assistant|>\nA1<|endoftext|>\n<|user|>\n U2 \
             <|endoftext|>\n<|assistant|>\n",
        ),
    ];
    assert!(want.iter().map(|w| w.0).eq(BUILTIN_NAMES.iter().copied()));
    for (name, text) in want {
        let t = ChatTemplate::builtin(name, "<bos>", "<eos>").unwrap();
        assert_eq!(t.render(&conversation(), true).unwrap(), text, "{name}");
        assert!(t.takes_system(), "{name}");
    }
}

#[test]
fn the_template_is_chosen_in_order() {
    let source = |given, model| {
        let (t, notice) = ChatTemplate::choose(given, model, "", "").unwrap();
        (t.source().to_string(), notice.is_some())
    };
    let builtin = |name| ChatTemplate::builtin(name, "", "").unwrap().source().to_string();
    assert_eq!(source(Some("llama3"), Some("{{ 1 }}")), (builtin("llama3"), false));
    assert_eq!(source(Some("{{ 2 }}"), Some("{{ 1 }}")), ("{{ 2 }}".into(), false));
    assert_eq!(source(None, Some("{{ 1 }}")), ("{{ 1 }}".into(), false));
    assert_eq!(source(None, Some("rwkv-world")), (builtin("rwkv-world"), false), "a file may have the name alone");
    assert_eq!(source(None, None), (builtin("chatml"), true));
    assert_eq!(source(None, Some(" ")), (builtin("chatml"), true));
    let error = ChatTemplate::choose(Some("llama-3"), None, "", "").err().unwrap().to_string();
    assert!(error.contains("`llama-3`") && error.contains("chatml"), "{error}");
}

#[test]
fn a_refused_system_message_joins_the_first_question() {
    let t = template("gemma2.jinja");
    assert!(!t.takes_system());
    let folded = "<s><start_of_turn>user\nSYS\n\nU1<end_of_turn>\n<start_of_turn>model\nA1<end_of_turn>\n\
                  <start_of_turn>user\nU2<end_of_turn>\n<start_of_turn>model\n";
    assert_eq!(t.render(&conversation(), true).unwrap(), folded);
    // A template that drops it in silence is helped as well.
    let t =
        ChatTemplate::new("{% for m in messages if m.role != 'system' %}{{ m.content }};{% endfor %}", "", "").unwrap();
    assert_eq!(t.render(&conversation(), false).unwrap(), "SYS\n\nU1;A1; U2 ;");
    assert_eq!(t.render(&conversation()[..1], false).unwrap(), "SYS;");
    assert!(template("gemma3.jinja").takes_system());
    // One that fails whatever it is given shows its own error.
    let t = ChatTemplate::new("{{ raise_exception('never') }}", "", "").unwrap();
    assert_eq!(t.render(&conversation(), true).unwrap_err().to_string(), "chat template: the template refuses: never");
}

#[test]
fn the_next_message_is_a_suffix() {
    let c = conversation();
    let append = |t: &ChatTemplate| match t.render_next(&c[..3], &c[3]).unwrap() {
        Continuation::Append(text) => text,
        other => panic!("{other:?}"),
    };
    // The line break after the end-of-turn token is not yet in the context.
    let chatml = ChatTemplate::builtin("chatml", "", "").unwrap();
    assert_eq!(append(&chatml), "\n<|im_start|>user\n U2 <|im_end|>\n<|im_start|>assistant\n");
    let llama3 = ChatTemplate::builtin("llama3", "", "").unwrap();
    let want =
        "<|start_header_id|>user<|end_header_id|>\n\nU2<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
    assert_eq!(append(&llama3), want);
    assert_eq!(
        chatml.render_next(&[], &c[1]).unwrap(),
        Continuation::Append("<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\n".into())
    );
    // A template that forgets reasoning once it is answered.
    let qwen3 = template("qwen3.jinja");
    let past = [ChatMessage::user("a"), ChatMessage::assistant("<think>\nhmm\n</think>\n\nb")];
    let next = ChatMessage::user("c");
    let all = [past[0].clone(), past[1].clone(), next.clone()];
    assert_eq!(qwen3.render_next(&past, &next).unwrap(), Continuation::Rewrite(qwen3.render(&all, true).unwrap()));
}

/// A vocabulary of bytes and `more`.
fn vocabulary(more: &[&str]) -> Tokenizer {
    let letters = (b'a'..=b'z').map(|byte| (byte as char).to_string());
    let tokens: Vec<String> = letters.chain(more.iter().map(|&text| text.to_owned())).collect();
    let mut w = GgufWriter::new(Vec::new());
    w.str("tokenizer.ggml.model", "gpt2").unwrap();
    w.strings("tokenizer.ggml.tokens", &tokens).unwrap();
    w.strings("tokenizer.ggml.merges", &["a b"]).unwrap();
    Tokenizer::from_gguf(&Gguf::parse(&w.finish().unwrap()).unwrap()).unwrap()
}

/// Templates of models that answer in channels refuse messages with their markers: a conversation would end at its second question.
#[test]
fn an_answer_in_channels_can_be_followed_by_a_question() {
    let t = ChatTemplate::new(
        "{% for m in messages %}{% if '<|channel|>' in m.content %}{{ raise_exception('channels in the content') }}{% endif %}\
         <|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        "",
        "",
    )
    .unwrap();
    let answer = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>A1";
    let render = |tokenizer: &Tokenizer| {
        let answered = ChatMessage::answered(answer, tokenizer);
        t.render(&[ChatMessage::user("U1"), answered, ChatMessage::user("U2")], true)
    };
    let want = "<|start|>user<|message|>U1<|end|><|start|>assistant<|message|>A1<|end|><|start|>user<|message|>U2<|end|>\
                <|start|>assistant";
    assert_eq!(render(&vocabulary(&["<|channel|>", "<|message|>"])).unwrap(), want);
    // Where they are no tokens, they are text that someone wrote about.
    assert!(render(&vocabulary(&[])).is_err());
}

#[test]
fn bos_is_stripped_once() {
    let t = ChatTemplate::new("{{ bos_token }}x", "<s>", "").unwrap();
    assert_eq!(t.strip_bos("<s>x"), "x");
    assert_eq!(t.strip_bos("<s><s>x"), "<s>x");
    assert_eq!(t.strip_bos("x"), "x");
}

#[test]
fn errors_are_one_line_and_say_where() {
    let compile = |s: &str| ChatTemplate::new(s, "", "").err().unwrap().to_string();
    let render = |s: &str| ChatTemplate::new(s, "", "").unwrap().render(&conversation(), true).unwrap_err().to_string();
    for (error, parts) in [
        (compile("a\n{% if %}"), ["line 2", "syntax error"]),
        (compile("{% for m in messages %}"), ["line 1", "syntax error"]),
        (compile("{{ 'x' }}\n\n{% unknown %}"), ["line 3", "unknown"]),
        (render("a\nb\n{{ messages[0].foo.bar }}"), ["line 3", "messages[0].foo"]),
        (render("{{ 'a' | nofilter }}"), ["line 1", "nofilter"]),
        (render("{{ nofunction() }}"), ["line 1", "nofunction"]),
        (render("{{ 'a'.nomethod() }}"), ["line 1", "nomethod"]),
        (render("{{ 'a' + 1 }}"), ["line 1", "+"]),
    ] {
        assert!(error.starts_with("chat template: ") && !error.contains('\n'), "{error}");
        assert!(parts.iter().all(|p| error.contains(p)), "{error}");
    }
}

#[test]
fn hostile_templates_end_with_an_error() {
    for source in [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}x{% endfor %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x' * 99999999999 }}",
        "{{ 'x'.ljust(99999999999) }}",
        "{{ range(99999999999) | list }}",
        "{{ ''.join(range(99999999999)) }}",
    ] {
        let t = ChatTemplate::new(source, "", "").unwrap();
        assert!(t.render(&conversation(), true).is_err(), "{source}");
    }
    let deep = "(".repeat(100_000);
    assert!(ChatTemplate::new(&format!("{{{{ {deep}"), "", "").is_err());
    assert!(ChatTemplate::new(&"{% if 1 %}".repeat(100_000), "", "").is_err());
}
