"""Writes golden.json: what Jinja2 with Hugging Face's settings makes of the templates and expressions here.

    pip install jinja2==3.1.6 && python golden.py
"""

import json
from pathlib import Path

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = Path(__file__).parent


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

    def body(self, caller):
        return caller()


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


env = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
)
env.filters["tojson"] = tojson
env.globals["raise_exception"] = raise_exception
env.globals["strftime_now"] = lambda f: "01 Jan 2026"

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get <the> weather's \"state\" é",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "n": {"enum": [1, 2], "default": 1.5, "x": None}},
                "required": ["city"],
                "strict": True,
                "none": [],
                "empty": {},
            },
        },
    }
]
U, A, S = "user", "assistant", "system"
CONVERSATIONS = [
    [[U, "Hi there"]],
    [[S, "Be brief."], [U, "Hi\n"], [A, " Hello! "], [U, 'Who? é中 "q" <b>']],
    [[U, "a"], [A, "<think>\nhmm\n</think>\n\nb"], [U, "c"]],
    [[U, "a"], [A, "<think>\nhmm\n</think>\n\nb"]],
    [[S, "You are X"], [U, "q"], [A, "b"]],
]
EXPRESSION_MESSAGES = [["first", "S"], [U, "Hello World, a,b,,c"], [A, "<think>x</think>  y  "], [U, "Bye"]]


def render(template, messages, prompt, variables):
    messages = [{"role": r, "content": c} for r, c in messages]
    names = {"tools": None, "documents": None, **variables}
    try:
        return env.from_string(template).render(
            messages=messages, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>", **names
        )
    except jinja2.exceptions.TemplateError:
        return None  # refused


cases = []
for path in sorted(HERE.glob("*.jinja")):
    text = path.read_text()
    for messages in CONVERSATIONS:
        for prompt, variables in [(True, {}), (False, {}), (True, {"tools": TOOLS}), (True, {"enable_thinking": False})]:
            if any(v not in text for v in variables):
                continue
            out = render(text, messages, prompt, variables)
            case = {"template": path.name, "messages": messages, "prompt": prompt, "variables": variables, "text": out}
            cases.append(case)

expressions = []
for text in json.loads((HERE / "expressions.json").read_text()):
    expressions.append({"template": text, "text": render(text, EXPRESSION_MESSAGES, True, {})})

golden = {"cases": cases, "expression_messages": EXPRESSION_MESSAGES, "expressions": expressions}
(HERE / "golden.json").write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")
