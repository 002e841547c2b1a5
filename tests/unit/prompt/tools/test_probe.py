"""A model's tool-call format, found by what its chat template renders for a call.

The templates here are small ones of our own that print what the models' own print.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.jinja import ChatTemplate
from maestrale.prompt.tools.base import ToolFormat, ToolSpec, ToolUse
from maestrale.prompt.tools.layout_format import LayoutFormat
from maestrale.prompt.tools.pick import format_of_probe
from maestrale.prompt.tools.probe import probe
from maestrale.prompt.tools.rendering import renderer

TOKENS = ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|channel|>", "<|message|>", "<|start|>",
          "<|call|>", "<|end|>", "<|constrain|>", "<|tool_call_start|>"]  # fmt: skip
VOCABULARY = Vocabulary(
    (*(bytes([value]) for value in range(256)), b"", *[b""] * len(TOKENS)),
    {"<eos>": 256, **{name: 257 + place for place, name in enumerate(TOKENS)}},
    (256,),
)
PLAIN = Vocabulary(VOCABULARY.token_bytes[:257], {"<eos>": 256}, (256,))
BAR, LOW = "\uff5c", "\u2581"


def format_of_template(source: str, vocabulary: Vocabulary) -> ToolFormat | None:
    chat_template = ChatTemplate(source, {"bos_token": "", "eos_token": ""})
    return format_of_probe(probe(renderer(chat_template)), vocabulary)


def template(calls: str, *, system: str = "{{ tools | tojson }}", think: str = "") -> str:
    """A ChatML template with these words for tools, and for a turn's calls."""
    return (
        "{% if tools %}<|im_start|>system\n" + system + "<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}" + think + "{% endif %}{{ m.content or '' }}"
        "{% if m.tool_calls %}" + calls + "{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def each(call: str, between: str = "") -> str:
    joined = "{% if not loop.last %}" + between + "{% endif %}" if between else ""
    return "{% for c in m.tool_calls %}{% set f = c.function %}" + call + joined + "{% endfor %}"


ITEMS = "{% for k, v in f.arguments.items() %}"
VALUE = "{{ v if v is string else v | tojson }}"
JSON = '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}'
CODER = each(
    "\n<tool_call>\n<function={{ f.name }}>\n" + ITEMS + "<parameter={{ k }}>\n" + VALUE
    + "\n</parameter>\n{% endfor %}</function>\n</tool_call>"
)  # fmt: skip
GLM = each(
    "\n<tool_call>{{ f.name }}\n" + ITEMS + "<arg_key>{{ k }}</arg_key>\n<arg_value>" + VALUE
    + "</arg_value>\n{% endfor %}</tool_call>"
)  # fmt: skip
SEED = each(
    "<seed:tool_call>\n<function={{ f.name }}>\n" + ITEMS + "<parameter={{ k }}>" + VALUE
    + "</parameter>\n{% endfor %}</function>\n</seed:tool_call>"
)  # fmt: skip
INVOKE = (
    "<x:calls>\n" + each(
        '<invoke name="{{ f.name }}">\n' + ITEMS + '<parameter name="{{ k }}" string="'
        "{{ 'true' if v is string else 'false' }}\">" + VALUE
        + "</parameter>\n{% endfor %}</invoke>\n"
    ) + "</x:calls>"
)  # fmt: skip


def deepseek(word: str) -> str:
    return f"<{BAR}tool{LOW}{word}{BAR}>"


DEEPSEEK = (
    deepseek(f"calls{LOW}begin")
    + each(deepseek(f"call{LOW}begin") + "{{ f.name }}" + deepseek("sep")
           + "{{ f.arguments | tojson }}" + deepseek(f"call{LOW}end"))
    + deepseek(f"calls{LOW}end")
)  # fmt: skip
DEEPSEEK_R1 = (
    deepseek(f"calls{LOW}begin")
    + each(deepseek(f"call{LOW}begin") + "function" + deepseek("sep")
           + "{{ f.name }}\n```json\n{{ f.arguments | tojson }}\n```"
           + deepseek(f"call{LOW}end"), "\n")
    + deepseek(f"calls{LOW}end")
)  # fmt: skip
KIMI = (
    "<|tool_calls_section_begin|>"
    + each("<|tool_call_begin|>functions.{{ f.name }}:{{ loop.index0 }}<|tool_call_argument_begin|>"
           "{{ f.arguments | tojson }}<|tool_call_end|>")
    + "<|tool_calls_section_end|>"
)  # fmt: skip
PYTHON = (
    "[" + each("{{ f.name }}(" + ITEMS + "{{ k }}={{ \"'\" ~ v ~ \"'\" if v is string else v }}"
               "{% if not loop.last %}, {% endif %}{% endfor %})", ", ") + "]"
)  # fmt: skip
GEMMA = each(
    "<|tool_call>call:{{ f.name ~ '{' }}" + ITEMS
    + "{{ k }}:{% if v is string %}<|\"|>{{ v }}<|\"|>{% else %}[{{ v | join(',') }}]{% endif %}"
    "{% if not loop.last %},{% endif %}{% endfor %}{{ '}' }}<tool_call|>"
)  # fmt: skip
HARMONY = each(
    "<|start|>assistant to=functions.{{ f.name }}<|channel|>commentary json<|message|>"
    "{{ f.arguments | tojson }}<|call|>"
)
COHERE = (
    "<|START_ACTION|>[\n" + each(
        '    {"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ f.name }}", '
        '"parameters": {{ f.arguments | tojson }}}', ",\n"
    ) + "\n]<|END_ACTION|>"
)  # fmt: skip
BY_NAME = (
    "<|tools_prefix|>["
    + each('{"{{ f.name }}": {{ f.arguments | tojson }}}', ", ")
    + ("]<|tools_suffix|>")
)
WITH_IDS = each(
    "<|call:begin|>{{ c.id }}<|call:name|>{{ f.name }}<|call:args|>{{ f.arguments | tojson }}"
    "<|call:end|>"
)

RENDERED: list[tuple[str, str]] = [
    ("hermes", each("<tool_call>\n" + JSON + "\n</tool_call>", "\n")),
    ("hermes", each("\n<tool_call>\n{{ f | tojson }}\n</tool_call>")),
    ("qwen3_coder", CODER),
    ("glm45", GLM),
    ("glm45", GLM.replace("\n", "")),
    ("template", SEED),
    ("template", INVOKE),
    ("deepseek_v31", DEEPSEEK),
    ("deepseek_v3", DEEPSEEK_R1),
    ("kimi_k2", KIMI),
    ("granite", "<|tool_call|>[" + each(JSON, ", ") + "]"),
    ("template", "<TOOLCALL>[" + each(JSON, ", ") + "]</TOOLCALL>"),
    ("template", "<tool_calls>\n" + each(JSON + "\n") + "</tool_calls>"),
    ("template", each("<function={{ f.name }}>{{ f.arguments | tojson }}</function>")),
    ("template", COHERE),
    ("template", BY_NAME),
    ("template", WITH_IDS),
    ("pythonic", PYTHON),
    ("lfm2", "<|tool_call_start|>" + PYTHON + "<|tool_call_end|>"),
    ("gemma4", GEMMA),
    ("functiongemma", GEMMA.replace("<|tool_call>", "<start_function_call>").replace(
        "<tool_call|>", "<end_function_call>").replace('<|"|>', "<escape>")),
    ("openai", HARMONY),
    ("mistral", "[TOOL_CALLS][" + each(JSON[:-1] + ', "id": "{{ c.id }}"}', ", ") + "]"),
    ("mistral", each("[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}")),
    ("mistral",
     each("[TOOL_CALLS]{{ f.name }}[CALL_ID]{{ c.id }}[ARGS]{{ f.arguments | tojson }}")),
    ("llama3_json", each('{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}')),
    ("llama3_json", each(JSON, "; ")),
]  # fmt: skip
TALK = [
    ("f", {"s": "Lyon", "n": [1, 2]}),
    ("g", {"s": "a <b> c"}),
]


def use() -> ToolUse:
    schema = {"properties": {"s": {"type": "string"}, "n": {"type": "array"}}}
    tools = tuple(
        ToolSpec(name=name, definition={}, parameters=json.dumps(schema)) for name in ("f", "g")
    )
    return ToolUse(tools=tools, callable=("f", "g"))


def rendered(source: str, calls: list[tuple[str, Any]]) -> str:
    """What a model trained on the template writes for these calls."""
    asked = {"role": "user", "content": "?"}
    made = [
        {"id": "abcdefghi", "type": "function", "function": {"name": name, "arguments": given}}
        for name, given in calls
    ]
    turn = {"role": "assistant", "content": "", "tool_calls": made}
    text = ChatTemplate(source, {}).render(messages=[asked, turn], tools=[{"name": "t"}])
    return text.rpartition("<|im_start|>assistant\n")[2].removesuffix("<|im_end|>\n")


@pytest.mark.parametrize(("name", "calls"), RENDERED)
@pytest.mark.parametrize("think", ["", "<think>\n\n</think>\n\n"])
def test_what_a_template_renders_is_read_back(name: str, calls: str, think: str) -> None:
    source = template(calls, think=think)
    form = format_of_template(source, VOCABULARY)
    assert form is not None
    assert form.name == name
    for made in (TALK[:1],) if name == "openai" else (TALK[:1], TALK):
        written = rendered(source, made).removeprefix(think)
        if name == "openai":  # it is asked for from here on
            written = written.removeprefix("<|start|>assistant")
        for token, shown in form.shown.items():
            spelled = next(text for text, each in VOCABULARY.control_ids.items() if each == token)
            written = written.replace(spelled, shown)
        parser = form.parser(use().reader(b""), parallel=True)
        pieces = [parser.push(letter) for letter in written] + [parser.push("", last=True)]
        assert "".join(piece.text for piece in pieces).strip() == ""
        found = [call for piece in pieces for call in piece.calls]
        assert [(call.name, json.loads(call.arguments)) for call in found] == made


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("qwen3_coder", "<tool_call>\n<function=name>\n<parameter=p>\nvalue\n</parameter>\n"),
        ("glm45", "<tool_call>{name}\n<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>\n"),
        ("hermes", '<tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call>'),
        ("granite", "respond only with <|tool_call|> followed by a JSON list of tools used"),
        ("pythonic", "[func_name1(params_name1=params_value1), func_name2(params)]"),
        ("llama3_json", 'Respond as {"name": function name, "parameters": dictionary of values}'),
    ],
)  # fmt: skip
def test_where_no_call_is_rendered_the_instruction_tells(name: str, words: str) -> None:
    for source in ("{% if tools %}{{ tools | tojson }}" + words + "{% endif %}",
                   "{% if tools %}" + words + "{% endif %}"):  # fmt: skip
        form = format_of_template(source, PLAIN)
        assert form is not None
        assert form.name == name


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{# <tool_call> #}{% for m in messages %}{{ m.content }}{% endfor %}",
        template("{{ m.tool_calls | length }}"),
        template(each(">>{{ f.name }}: " + ITEMS + "{{ k }} is {{ v }};{% endfor %}")),
    ],
)
def test_a_format_that_is_not_understood_is_none(source: str) -> None:
    assert format_of_template(source, PLAIN) is None


def test_a_word_in_the_source_is_not_a_format() -> None:
    """Tags around other calls than JSON were taken for Hermes."""
    coder = format_of_template(template(CODER, system="{{ tools | tojson }}<tool_call>"), PLAIN)
    assert isinstance(coder, LayoutFormat)
    assert coder.layout.style == "tags"
