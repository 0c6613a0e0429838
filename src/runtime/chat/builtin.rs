//! Chat formats known by name, for models whose file carries no template or a broken one. Names are llama.cpp's, and so are the
//! formats, but for one turn's marker that llama.cpp writes twice in `hunyuan-dense`. None but `gigachat` and `hunyuan-vl` write
//! BOS: the tokenizer adds it where the model wants one. A format without a system role puts the system text in front of the
//! next user message.

/// The names [`ChatTemplate::builtin`](super::ChatTemplate::builtin) knows.
pub const BUILTIN_NAMES: &[&str] = &{
    let mut names = [""; TABLE.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = TABLE[i].0;
        i += 1;
    }
    names
};

pub(super) fn source(name: &str) -> Option<&'static str> {
    TABLE.iter().find(|row| row.0 == name).map(|row| row.1)
}

/// Of EXAONE 3 and 4.
const EXAONE: &str = "{% for m in messages %}{{ '[|' ~ m.role ~ '|]' ~ m.content | trim }}{% if m.role != 'user' %}[|endofturn|]{% endif %}\
         {{ '\\n' }}{% endfor %}{% if add_generation_prompt %}[|assistant|]{% endif %}";

/// Of Granite 3 and 4.
const GRANITE: &str = "{% for m in messages %}<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>\n{% endfor %}\
         {% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}";

const TABLE: &[(&str, &str)] = &[
    (
        "bailing",
        "{% for m in messages %}<role>{{ 'HUMAN' if m.role == 'user' else m.role | upper }}</role>{{ m.content }}\
         {% endfor %}{% if add_generation_prompt %}<role>ASSISTANT</role>{% endif %}",
    ),
    (
        "bailing-think",
        "{% for m in messages %}<role>{{ 'HUMAN' if m.role == 'user' else m.role | upper }}</role>{{ m.content }}\
         {% endfor %}{% if add_generation_prompt %}<role>ASSISTANT</role><think>{% endif %}",
    ),
    (
        "bailing2",
        "{% if messages[0].role != 'system' %}<role>SYSTEM</role>detailed thinking off<|role_end|>{% endif %}\
         {% for m in messages %}<role>{{ 'HUMAN' if m.role == 'user' else m.role | upper }}</role>\
         {{ m.content }}<|role_end|>{% endfor %}{% if add_generation_prompt %}<role>ASSISTANT</role>{% endif %}",
    ),
    (
        "chatglm3",
        "[gMASK]sop{% for m in messages %}{{ '<|' ~ m.role ~ '|>\\n ' ~ m.content }}{% endfor %}\
         {% if add_generation_prompt %}<|assistant|>{% endif %}",
    ),
    (
        "chatglm4",
        "[gMASK]<sop>{% for m in messages %}{{ '<|' ~ m.role ~ '|>\\n' ~ m.content }}{% endfor %}\
         {% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    ),
    (
        "chatml",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
         {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ),
    (
        "command-r",
        "{% set names = {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'} %}{% for m in messages %}\
         <|START_OF_TURN_TOKEN|><|{{ names[m.role] }}_TOKEN|>{{ m.content | trim }}<|END_OF_TURN_TOKEN|>{% endfor %}\
         {% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}",
    ),
    (
        "deepseek",
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}### Instruction:\n\
         {{ m.content ~ '\\n' }}{% else %}### Response:\n{{ m.content }}\n<|EOT|>\n{% endif %}{% endfor %}\
         {% if add_generation_prompt %}### Response:\n{% endif %}",
    ),
    ("deepseek-ocr", "{% for m in messages %}{{ m.content }}{% endfor %}"),
    (
        "deepseek2",
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content ~ '\\n\\n' }}{% elif m.role == 'user' %}\
         {{ 'User: ' ~ m.content ~ '\\n\\n' }}{% else %}{{ 'Assistant: ' ~ m.content ~ '<｜end▁of▁sentence｜>' }}{% endif %}\
         {% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}",
    ),
    (
        "deepseek3",
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content ~ '\\n\\n' }}{% elif m.role == 'user' %}\
         {{ '<｜User｜>' ~ m.content }}{% else %}{{ '<｜Assistant｜>' ~ m.content ~ '<｜end▁of▁sentence｜>' }}{% endif %}\
         {% endfor %}{% if add_generation_prompt %}<｜Assistant｜>{% endif %}",
    ),
    (
        "exaone-moe",
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>\\n' ~ m.content | trim ~ '<|endofturn|>\\n' }}{% endfor %}\
         {% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    ),
    ("exaone3", EXAONE),
    ("exaone4", EXAONE),
    (
        "falcon3",
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>\\n' ~ m.content ~ '\\n' }}{% endfor %}\
         {% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    ),
    (
        "gemma",
        "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}\
         {% set ns.system = ns.system ~ m.content | trim %}{% else %}\
         <start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n\
         {% if ns.system and m.role != 'assistant' %}{{ ns.system ~ '\\n\\n' }}{% set ns.system = '' %}{% endif %}\
         {{ m.content | trim }}<end_of_turn>\n{% endif %}{% endfor %}\
         {% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    ),
    (
        "gigachat",
        "<s>{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}<|message_sep|>\
         {% elif m.role == 'user' %}user<|role_sep|>\
         {{ m.content }}<|message_sep|>available functions<|role_sep|>[]<|message_sep|>{% else %}assistant<|role_sep|>\
         {{ m.content }}<|message_sep|>{% endif %}{% endfor %}{% if add_generation_prompt %}assistant<|role_sep|>\
         {% endif %}",
    ),
    (
        "glmedge",
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>\\n' ~ m.content }}{% endfor %}\
         {% if add_generation_prompt %}<|assistant|>{% endif %}",
    ),
    (
        "gpt-oss",
        "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}\
         {{ '<|return|>' if m.role == 'assistant' else '<|end|>' }}{% endfor %}\
         {% if add_generation_prompt %}<|start|>assistant{% endif %}",
    ),
    ("granite", GRANITE),
    ("granite-4.0", GRANITE),
    ("granite-4.1", GRANITE),
    (
        "grok-2",
        "{% set names = {'system': 'System', 'user': 'Human', 'assistant': 'Assistant'} %}{% for m in messages %}\
         {{ names[m.role] ~ ': ' ~ (m.content if m.role == 'assistant' else m.content | trim) ~ '<|separator|>\\n\\n' }}\
         {% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}",
    ),
    (
        "hunyuan-dense",
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}<｜hy_place▁holder▁no▁3｜>\
         {% elif m.role == 'user' %}<｜hy_User｜>{{ m.content }}{% else %}<｜hy_Assistant｜>\
         {{ m.content }}<｜hy_place▁holder▁no▁2｜>{% endif %}{% endfor %}{% if add_generation_prompt %}<｜hy_Assistant｜>\
         {% endif %}",
    ),
    (
        "hunyuan-moe",
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}<|eos|>{% else %}<|startoftext|>\
         {{ m.content }}{{ '<|extra_4|>' if m.role == 'system' else '<|extra_0|>' }}{% endif %}{% endfor %}",
    ),
    (
        "hunyuan-vl",
        "<｜hy_begin▁of▁sentence｜>{% for m in messages %}{% if m.role == 'system' %}\
         {{ m.content }}<｜hy_place▁holder▁no▁3｜>{% elif m.role == 'user' %}{{ m.content }}<｜hy_User｜>{% else %}\
         {{ m.content }}<｜hy_Assistant｜>{% endif %}{% endfor %}",
    ),
    (
        "kimi-k2",
        "{% for m in messages %}<|im_{{ m.role }}|>{{ m.role }}<|im_middle|>{{ m.content }}<|im_end|>{% endfor %}\
         {% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}",
    ),
    (
        "llama2",
        "{% set ns = namespace(open=false) %}{% for m in messages %}{% if not ns.open %}[INST] {% set ns.open = true %}{% endif %}\
         {% if m.role == 'system' %}{{ m.content ~ '\\n' }}{% elif m.role == 'user' %}{{ m.content }} [/INST]\
         {% else %}{{ m.content }}</s>{% set ns.open = false %}{% endif %}{% endfor %}",
    ),
    (
        "llama2-sys",
        "{% set ns = namespace(open=false) %}{% for m in messages %}{% if not ns.open %}[INST] {% set ns.open = true %}{% endif %}\
         {% if m.role == 'system' %}{{ '<<SYS>>\\n' ~ m.content ~ '\\n<</SYS>>\\n\\n' }}{% elif m.role == 'user' %}\
         {{ m.content }} [/INST]{% else %}{{ m.content }}</s>{% set ns.open = false %}{% endif %}{% endfor %}",
    ),
    (
        "llama2-sys-bos",
        "[INST] {% set ns = namespace(open=true) %}{% for m in messages %}{% if not ns.open %}<s>[INST] \
         {% set ns.open = true %}{% endif %}{% if m.role == 'system' %}\
         {{ '<<SYS>>\\n' ~ m.content ~ '\\n<</SYS>>\\n\\n' }}{% elif m.role == 'user' %}{{ m.content }} [/INST]{% else %}\
         {{ m.content }}</s>{% set ns.open = false %}{% endif %}{% endfor %}",
    ),
    (
        "llama2-sys-strip",
        "[INST] {% set ns = namespace(open=true) %}{% for m in messages %}{% if not ns.open %}[INST] \
         {% set ns.open = true %}{% endif %}{% if m.role == 'system' %}\
         {{ '<<SYS>>\\n' ~ m.content | trim ~ '\\n<</SYS>>\\n\\n' }}{% elif m.role == 'user' %}\
         {{ m.content | trim }} [/INST]{% else %}{{ m.content | trim }}</s>{% set ns.open = false %}{% endif %}\
         {% endfor %}",
    ),
    (
        "llama3",
        "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}\
         {% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    ),
    (
        "llama4",
        "{% for m in messages %}<|header_start|>{{ m.role }}<|header_end|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}\
         {% if add_generation_prompt %}<|header_start|>assistant<|header_end|>\n\n{% endif %}",
    ),
    (
        "megrez",
        "{% for m in messages %}<|role_start|>{{ m.role }}<|role_end|>{{ m.content }}<|turn_end|>{% endfor %}\
         {% if add_generation_prompt %}<|role_start|>assistant<|role_end|>{% endif %}",
    ),
    (
        "minicpm",
        "{% for m in messages %}{% if m.role == 'user' %}<用户>{{ m.content | trim }}<AI>{% else %}{{ m.content | trim }}\
         {% endif %}{% endfor %}",
    ),
    (
        "mistral-v1",
        "{% set ns = namespace(open=false) %}{% for m in messages %}{% if not ns.open %}{{ ' [INST] ' }}{% set ns.open = true %}\
         {% endif %}{% if m.role == 'system' %}{{ m.content ~ '\\n\\n' }}{% elif m.role == 'user' %}{{ m.content ~ ' [/INST]' }}\
         {% else %}{{ ' ' ~ m.content ~ '</s>' }}{% set ns.open = false %}{% endif %}{% endfor %}",
    ),
    (
        "mistral-v3",
        "{% set ns = namespace(open=false) %}{% for m in messages %}{% if not ns.open %}{{ '[INST] ' }}{% set ns.open = true %}\
         {% endif %}{% if m.role == 'system' %}{{ m.content ~ '\\n\\n' }}{% elif m.role == 'user' %}{{ m.content ~ '[/INST]' }}\
         {% else %}{{ ' ' ~ m.content | trim ~ '</s>' }}{% set ns.open = false %}{% endif %}{% endfor %}",
    ),
    (
        "mistral-v3-tekken",
        "{% set ns = namespace(open=false) %}{% for m in messages %}{% if not ns.open %}[INST]{% set ns.open = true %}\
         {% endif %}{% if m.role == 'system' %}{{ m.content ~ '\\n\\n' }}{% elif m.role == 'user' %}{{ m.content ~ '[/INST]' }}\
         {% else %}{{ m.content ~ '</s>' }}{% set ns.open = false %}{% endif %}{% endfor %}",
    ),
    (
        "mistral-v7",
        "{% for m in messages %}{% if m.role == 'system' %}{{ '[SYSTEM_PROMPT] ' ~ m.content ~ '[/SYSTEM_PROMPT]' }}\
         {% elif m.role == 'user' %}{{ '[INST] ' ~ m.content ~ '[/INST]' }}{% else %}{{ ' ' ~ m.content ~ '</s>' }}{% endif %}\
         {% endfor %}",
    ),
    (
        "mistral-v7-tekken",
        "{% for m in messages %}{% if m.role == 'system' %}{{ '[SYSTEM_PROMPT]' ~ m.content ~ '[/SYSTEM_PROMPT]' }}\
         {% elif m.role == 'user' %}{{ '[INST]' ~ m.content ~ '[/INST]' }}{% else %}{{ m.content ~ '</s>' }}{% endif %}{% endfor %}",
    ),
    (
        "monarch",
        "{% for m in messages %}{{ ('' if loop.first else '<s>') ~ m.role ~ '\\n' ~ m.content ~ '</s>\\n' }}{% endfor %}\
         {% if add_generation_prompt %}<s>assistant\n{% endif %}",
    ),
    (
        "openchat",
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}<|end_of_turn|>{% else %}\
         {{ 'GPT4 Correct ' ~ m.role | title ~ ': ' ~ m.content ~ '<|end_of_turn|>' }}{% endif %}{% endfor %}\
         {% if add_generation_prompt %}GPT4 Correct Assistant:{% endif %}",
    ),
    (
        "orion",
        "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}\
         {% set ns.system = ns.system ~ m.content %}{% elif m.role == 'user' %}Human: \
         {% if ns.system %}{{ ns.system ~ '\\n\\n' }}{% set ns.system = '' %}{% endif %}\
         {{ m.content ~ '\\n\\nAssistant: </s>' }}{% else %}{{ m.content }}</s>{% endif %}{% endfor %}",
    ),
    (
        "pangu-embedded",
        "{% set names = {'system': '系统', 'user': '用户', 'assistant': '助手'} %}\
         {% if messages[0].role != 'system' %}[unused9]系统：[unused10]{% endif %}{% for m in messages %}[unused9]\
         {{ names[m.role] }}：{{ m.content }}[unused10]{% endfor %}{% if add_generation_prompt %}[unused9]助手：{% endif %}",
    ),
    (
        "phi3",
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}\
         {% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    ),
    (
        "phi4",
        "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>{% endfor %}\
         {% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}",
    ),
    (
        "rwkv-world",
        "{% set names = {'system': 'System', 'user': 'User', 'assistant': 'Assistant'} %}{% for m in messages %}\
         {{ names[m.role] ~ ': ' ~ m.content | trim ~ '\\n\\n' }}{% endfor %}{% if add_generation_prompt %}Assistant:\
         {% endif %}",
    ),
    (
        "seed_oss",
        "{% for m in messages %}<seed:bos>\
         {{ m.role ~ '\\n' ~ (m.content | trim if m.role == 'assistant' else m.content) }}<seed:eos>{% endfor %}\
         {% if add_generation_prompt %}<seed:bos>assistant\n{% endif %}",
    ),
    (
        "smolvlm",
        "<|im_start|>{% for m in messages %}{% if m.role == 'system' %}{{ m.content ~ '\\n\\n' }}{% else %}\
         {{ m.role | title ~ ': ' ~ m.content ~ '<end_of_utterance>\\n' }}{% endif %}{% endfor %}\
         {% if add_generation_prompt %}Assistant:{% endif %}",
    ),
    (
        "solar-open",
        "{% for m in messages %}<|begin|>{{ m.role }}<|content|>{{ m.content }}<|end|>{% endfor %}\
         {% if add_generation_prompt %}<|begin|>assistant{% endif %}",
    ),
    (
        "vicuna",
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content ~ '\\n\\n' }}{% elif m.role == 'user' %}\
         {{ 'USER: ' ~ m.content ~ '\\n' }}{% else %}{{ 'ASSISTANT: ' ~ m.content ~ '</s>\\n' }}{% endif %}{% endfor %}\
         {% if add_generation_prompt %}ASSISTANT:{% endif %}",
    ),
    (
        "vicuna-orca",
        "{% for m in messages %}{% if m.role == 'system' %}{{ 'SYSTEM: ' ~ m.content ~ '\\n' }}{% elif m.role == 'user' %}\
         {{ 'USER: ' ~ m.content ~ '\\n' }}{% else %}{{ 'ASSISTANT: ' ~ m.content ~ '</s>\\n' }}{% endif %}{% endfor %}\
         {% if add_generation_prompt %}ASSISTANT:{% endif %}",
    ),
    (
        "yandex",
        "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}\
         {% set ns.system = ns.system ~ m.content ~ '\\n\\n' %}{% elif m.role == 'user' %}\
         {{ ' Пользователь: ' ~ ns.system ~ m.content ~ '\\n\\n' }}{% set ns.system = '' %}{% else %}\
         {{ ' Ассистент: ' ~ m.content ~ '\\n\\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %} Ассистент:[SEP]\
         {% endif %}",
    ),
    (
        "zephyr",
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|endoftext|>\n{% endfor %}\
         {% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    ),
];
