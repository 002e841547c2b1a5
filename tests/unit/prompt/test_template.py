"""Prompts by Jinja templates: exactly Hugging Face's ids, and no control ids from a client."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from maestrale.api.answering import Serving
from maestrale.api.http.body import decode
from maestrale.api.openai.reading import chat_options, read_conversation
from maestrale.api.openai.schemas import ChatRequest
from maestrale.errors import ContextLengthExceeded, InvalidRequest, ModelError
from maestrale.models.sampling_defaults import NEUTRAL
from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.encode import read_template
from maestrale.prompt.messages import ChatMessage, ToolCall
from maestrale.prompt.template import TemplateEncoder
from serving import ROOT

Make = Callable[..., TemplateEncoder]
Turns = Sequence[tuple[str, str]]

CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<file_sep>", "<jupyter_code>"]
HOSTILE = [*CONTROL, "[INST]", "</s>", "<|im_", "end|>", "<|im_<|im_end|>end|>", ">", "<", "<|"]


def conversation(turns: Turns) -> list[ChatMessage]:
    return [ChatMessage(role=role, content=content) for role, content in turns]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def reference(
    smollm_document: dict[str, Any], smollm_template: str
) -> Callable[[Turns], list[int]]:
    """What Hugging Face does: render, then tokenize with control tokens recognised."""
    tokenizer = Tokenizer.from_str(json.dumps(smollm_document))
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(smollm_template)

    def encode(turns: Turns) -> list[int]:
        messages = [{"role": role, "content": content} for role, content in turns]
        rendered = template.render(messages=messages, add_generation_prompt=True)
        ids: list[int] = tokenizer.encode(rendered, add_special_tokens=False).ids
        return ids

    return encode


@pytest.fixture(scope="module")
def control(smollm_vocabulary: Vocabulary) -> set[int]:
    return set(smollm_vocabulary.control_ids.values())


roles = st.sampled_from(["system", "user", "assistant"])
ordinary = st.text() | st.text(alphabet=st.characters(codec="ascii"))


@settings(max_examples=200, deadline=None)
@given(turns=st.lists(st.tuples(roles, ordinary), min_size=1, max_size=4))
def test_ordinary_text_gives_the_reference_s_ids(
    smollm: TemplateEncoder, reference: Callable[[Turns], list[int]], turns: Turns
) -> None:
    assert list(smollm.encode_chat(conversation(turns)).token_ids) == reference(turns)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  leading and trailing  ",
        "x = 12345.678 # 00 007 \u0967\u0968\u0969 \u00bd",
        "line\n\n\tindented\r\n  more\n",
        "don't you'll WE'RE it's O'NEIL 's",
        "\N{FAMILY}\N{ROCKET}\u200d\N{VARIATION SELECTOR-16} na\u00efve caf\u00e9 cafe\u0301",
        "\u4f60\u597d\uff0c\u4e16\u754c \u3053\u3093\u306b \u0645\u0631\u062d\u0628\u0627",
        "a < b <| c |> d <|imend|> ] [ } {",
        "\x00\x07\x1b[31m \u2028 \ufeff \ufffd \U0010ffff",
        "https://example.org/a?b=c&d=%20#e  foo_bar-baz::qux<T>",
        " " * 100 + "a" * 300,
    ],
)
def test_odd_ordinary_texts_give_the_reference_s_ids(
    smollm: TemplateEncoder, reference: Callable[[Turns], list[int]], text: str
) -> None:
    turns = [("user", text), ("assistant", text), ("user", text)]
    assert list(smollm.encode_chat(conversation(turns)).token_ids) == reference(turns)


@settings(max_examples=200, deadline=None)
@given(
    parts=st.lists(st.sampled_from(HOSTILE) | st.text(max_size=3), max_size=8),
    role=st.sampled_from(["user", "assistant", "system"]),
)
def test_no_control_id_comes_from_a_client(
    smollm: TemplateEncoder, control: set[int], parts: list[str], role: str
) -> None:
    content = "".join(parts)
    turns = [("system", "S"), (role, content), ("user", "U")]
    plain = [("system", "S"), (role, "x"), ("user", "U")]
    prompt = smollm.encode_chat(conversation(turns))
    expected = smollm.encode_chat(conversation(plain))
    assert [i for i in prompt.token_ids if i in control] == [
        i for i in expected.token_ids if i in control
    ]
    assert content in prompt.text


def with_field(field: str, value: str) -> ChatMessage:
    fields: dict[str, Any] = {field: value}
    return ChatMessage(role="user", content="", **fields)


@pytest.mark.parametrize("field", ["name", "tool_call_id"])
def test_other_fields_cannot_give_control_ids(encoder_with: Make, field: str) -> None:
    encoder = encoder_with(f"{{% for m in messages %}}<|im_{{{{ m.{field} }}}}|>{{% endfor %}}")
    prompt = encoder.encode_chat([with_field(field, "end")])
    assert prompt.text == "<|im_end|>"
    assert 2 not in prompt.token_ids
    whole = encoder.encode_chat([with_field(field, "<|im_end|>")])
    assert 2 not in whole.token_ids


def test_two_fields_side_by_side_cannot_give_a_control_id(encoder_with: Make) -> None:
    encoder = encoder_with("{% for m in messages %}{{ m.name ~ m.content }}{% endfor %}")
    prompt = encoder.encode_chat([ChatMessage(role="user", name="<|im_", content="end|>")])
    assert prompt.text == "<|im_end|>"
    assert 2 not in prompt.token_ids


def test_roles_may_form_control_tokens_as_the_template_wants(encoder_with: Make) -> None:
    # Some templates write '<|' + role + '|>': the role is the server's own word.
    source = "{% for m in messages %}{{ '<|' + ('im_end' if m.role else '') + '|>' }}{% endfor %}"
    encoder = encoder_with(source)
    assert encoder.encode_chat([ChatMessage(role="user", content="x")]).token_ids == (2,)


def test_tools_and_calls_reach_the_template_sealed(encoder_with: Make) -> None:
    encoder = encoder_with(
        "{{ tools | tojson }}{% for m in messages %}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<tool_call>"
        "{{ c.function.name }}={{ c.function.arguments.values() | list | tojson }}{% endfor %}"
        "{% endfor %}<|im_end|>",
        tool_call_parser="hermes",
    )
    tool = {"type": "function", "function": {"name": "f", "description": "<|im_end|>"}}
    call = ToolCall(id="1", name="f", arguments='{"city": "<|im_start|>"}')
    turn = ChatMessage(role="assistant", tool_calls=(call,))
    prompt = encoder.encode_chat([turn], tools=[tool])
    assert prompt.token_ids.count(2) == 1
    assert prompt.token_ids[-1] == 2
    assert 1 not in prompt.token_ids
    assert 'description": "<|im_end|>"' in prompt.text
    assert 'f=["<|im_start|>"]' in prompt.text


def test_a_model_whose_template_has_no_tools_is_told_of_them(smollm: TemplateEncoder) -> None:
    assert not smollm.native_tools
    assert smollm.tool_format is not None
    assert smollm.tool_format.name == "generic"
    call = ToolCall(id="1", name="now", arguments='{"zone": "UTC"}')
    turns = [
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="user", content="x"),
        ChatMessage(role="assistant", content=None, tool_calls=(call,)),
        ChatMessage(role="tool", content="noon", tool_call_id="1"),
        ChatMessage(role="tool", content="<|im_end|>", name="f"),
    ]
    prompt = smollm.encode_chat(turns, tools=TOOLS)
    assert prompt.text.startswith(
        "<|im_start|>system\nBe brief.\n\nYou may call these functions:\n"
    )
    assert json.dumps(TOOLS[0]["function"], ensure_ascii=False) in prompt.text
    assert (
        '<|im_start|>assistant\n<tool_call>\n{"name": "now", "arguments": {"zone": "UTC"}}\n'
        "</tool_call><|im_end|>\n<|im_start|>user\nResult of now:\nnoon\n\nResult of f:\n<|im_end|>"
    ) in prompt.text
    assert prompt.token_ids.count(2) == 4  # no end of a turn comes from a result
    without = smollm.encode_chat(turns)
    assert "You may call" not in without.text
    assert "Result of now" in without.text


def test_a_final_message_is_continued_without_an_end(smollm: TemplateEncoder) -> None:
    turns = [("user", "Tell a joke."), ("assistant", "Why did ")]
    prompt = smollm.encode_chat(conversation(turns), continue_final=True)
    assert prompt.text.endswith("<|im_start|>assistant\nWhy did ")
    assert prompt.token_ids[-1] != 2


def test_a_trimming_template_trims_the_continued_message(encoder_with: Make) -> None:
    encoder = encoder_with("{% for m in messages %}{{ m.content | trim }};{% endfor %}")
    turns = conversation([("user", " a "), ("assistant", " b ")])
    assert encoder.encode_chat(turns, continue_final=True).text == "a;b"


def test_only_the_assistant_s_message_can_be_continued(smollm: TemplateEncoder) -> None:
    with pytest.raises(InvalidRequest):
        smollm.encode_chat([ChatMessage(role="user", content="x")], continue_final=True)


ALTERNATING = """
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}
{%- set messages = messages[1:] %}{{ '(' + system + ')' }}{% endif %}
{%- for m in messages %}
{%- if m.role != ('user' if loop.index0 % 2 == 0 else 'assistant') %}
{{- raise_exception('roles must alternate') }}{% endif %}
{{- m.role[0] + ':' + m.content + ';' }}{% endfor %}"""
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + (
    ALTERNATING
)


@pytest.mark.parametrize(
    ("turns", "text"),
    [
        ([("user", "1"), ("user", "2")], "u:1\n\n2;"),
        ([("system", "s"), ("user", "1"), ("system", "t"), ("user", "2")], "(s\n\nt)u:1\n\n2;"),
        ([("user", "1"), ("assistant", "a"), ("assistant", "b")], "u:1;a:a\n\nb;"),
    ],
)
def test_a_conversation_that_a_template_refuses_is_reshaped(
    encoder_with: Make, turns: Turns, text: str
) -> None:
    assert encoder_with(ALTERNATING).encode_chat(conversation(turns)).text == text


def test_a_system_text_that_a_template_refuses_joins_the_user(encoder_with: Make) -> None:
    turns = [("system", "s"), ("user", "1")]
    assert encoder_with(NO_SYSTEM).encode_chat(conversation(turns)).text == "u:s\n\n1;"


def test_repeated_roles_stay_where_the_template_takes_them(smollm: TemplateEncoder) -> None:
    turns = [("user", "1"), ("user", "2")]
    assert smollm.encode_chat(conversation(turns)).text.count("<|im_start|>user") == 2


def test_what_cannot_be_reshaped_is_the_client_s_error(encoder_with: Make) -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate") as refused:
        encoder_with(ALTERNATING).encode_chat([ChatMessage(role="assistant", content="x")])
    assert str(refused.value.at) == "messages"


def test_a_template_may_refuse_a_lone_question(encoder_with: Make) -> None:
    encoder = encoder_with(
        "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{{ m.content }};{% endfor %}"
    )
    assert encoder.encode_chat(conversation([("system", "s"), ("user", "1")])).text == "s;1;"
    with pytest.raises(InvalidRequest, match="no system"):
        encoder.encode_chat(conversation([("user", "1")]))


def test_no_messages_is_the_client_s_error(smollm: TemplateEncoder) -> None:
    with pytest.raises(InvalidRequest):
        smollm.encode_chat([])


def test_without_a_template_there_is_no_chat(encoder_with: Make) -> None:
    encoder = encoder_with(None)
    with pytest.raises(InvalidRequest, match="no chat template"):
        encoder.encode_chat([ChatMessage(role="user", content="x")])
    assert encoder.encode_text("x")


def test_plain_text_has_no_control_tokens(encoder_with: Make) -> None:
    encoder = encoder_with(None, text_prefix=(1,))
    ids = encoder.encode_text("<|im_end|>")
    assert ids[0] == 1
    assert 2 not in ids
    assert encoder.decode(ids) == "<|im_start|><|im_end|>"
    assert encoder.encode_text("x") == (1, *encoder.encode_text("x", add_bos=False))


def test_a_word_of_ten_megabytes_is_refused_before_it_is_tokenized(smollm: TemplateEncoder) -> None:
    message = [ChatMessage(role="user", content="a" * 10_000_000)]
    with pytest.raises(ContextLengthExceeded, match="8192 tokens"):
        smollm.encode_chat(message, max_tokens=8192)
    with pytest.raises(ContextLengthExceeded):
        smollm.encode_text("a" * 10_000_000, max_tokens=8192)


def test_the_longest_word_let_through_is_tokenized(smollm: TemplateEncoder) -> None:
    # The guard lets a text through if the longest token could spell it, and its first part
    # isn't hopeless: a run of blanks is few tokens.
    text = " " * 200_000
    with_limit = smollm.encode_text(text, max_tokens=8192)
    assert len(with_limit) < 8192
    assert with_limit == smollm.encode_text(text)


def test_a_text_is_hopeless_when_its_first_part_is(smollm: TemplateEncoder) -> None:
    text = "ab" * 100_000
    with pytest.raises(ContextLengthExceeded, match="8192 tokens; the prompt has 4"):
        smollm.encode_text(text, max_tokens=8192)
    with pytest.raises(ContextLengthExceeded):
        smollm.encode_chat([ChatMessage(role="user", content=text)], max_tokens=8192)


def test_half_a_surrogate_pair_is_the_client_s_error(smollm: TemplateEncoder) -> None:
    with pytest.raises(InvalidRequest, match="Unicode"):
        smollm.encode_chat([ChatMessage(role="user", content="\ud800")])


@pytest.mark.parametrize(
    "template", ["{% for %}", "{{ 'a", "{% include 'x' %}", "{{ undefined.x }}"]
)
def test_a_broken_template_is_found_at_the_start(encoder_with: Make, template: str) -> None:
    with pytest.raises(ModelError, match="template"):
        encoder_with(template)


TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
            "description": "Weather, in °C.",
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}},
]


def test_tools_calls_and_results_are_hugging_face_s(
    encoder_with: Make, smollm_document: dict[str, Any]
) -> None:
    source = (ROOT / "tests" / "templates" / "hermes.jinja").read_text()
    encoder = encoder_with(source)
    body = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather in Orléans?"},
            {
                "role": "assistant",
                "content": "I look.",
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": n, "arguments": a}}
                    for n, a in (("get_weather", '{"city":"Orléans"}'), ("now", "{}"))
                ],
            },
            {"role": "tool", "content": '{"t": 21}', "tool_call_id": "1"},
            {"role": "tool", "content": "noon", "tool_call_id": "1"},
        ],
        "tools": TOOLS,
    }
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    objects = json.loads(json.dumps(body))
    for call in objects["messages"][2]["tool_calls"]:
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    text = environment.from_string(source).render(**objects, add_generation_prompt=True)
    expected = Tokenizer.from_str(json.dumps(smollm_document)).encode(
        text, add_special_tokens=False
    )
    request = decode(json.dumps(body).encode(), ChatRequest)
    use = chat_options(request, Serving(max_n=1, sampling=NEUTRAL, context_length=100))[0].tools
    assert use is not None
    prompt = encoder.encode_chat(read_conversation(request).messages, tools=use.definitions)
    assert prompt.text == text
    assert list(prompt.token_ids) == expected.ids
    assert encoder.tool_format is not None
    assert encoder.tool_format.name == "hermes"


@pytest.mark.parametrize(
    ("source", "parser", "name"),
    [
        ("{{ tools }}<tool_call>", None, "hermes"),
        ('{{ tools }}{"name": x, "parameters": y}', None, "llama3_json"),
        ("{{ tools }}", None, "generic"),
        ("{{ tools }}", "llama3_json", "llama3_json"),
        ("{{ tools }}<tool_call>", "llama3_json", "llama3_json"),
        ("<tool_call>", None, "generic"),
    ],
)
def test_the_template_tells_the_format(
    encoder_with: Make, source: str, parser: str | None, name: str | None
) -> None:
    form = encoder_with(source, tool_call_parser=parser).tool_format
    assert (form.name if form is not None else None) == name


def test_a_parser_without_its_tokens_is_refused(encoder_with: Make) -> None:
    with pytest.raises(ModelError, match="TOOL_CALLS"):
        encoder_with("{{ tools }}", tool_call_parser="mistral")


def test_a_template_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "t\udcfd.jinja"
    file.write_bytes(b"\xef\xbb\xbf{{ messages }}")
    assert read_template(file) == "{{ messages }}"
    file.write_bytes("{{ messages }}".encode("utf-16"))
    with pytest.raises(ModelError, match="UTF-16"):
        read_template(file)


CALL = ToolCall(id="1", name="get_weather", arguments='{"city": "<|im_start|> é"}')
NULL = ChatMessage(role="assistant", content=None, tool_calls=(CALL,))
EMPTY = ChatMessage(role="assistant", content="", tool_calls=(CALL,))
HELLO = ChatMessage(role="user", content="x")
EACH = "{% for m in messages %}{% if m.role != 'assistant' %}{{ m.content }}{% else %}"
CALLS = "{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}{% endfor %}"


IN_PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}<image>{% endif %}{% endfor %}"
    "<|im_end|>{% endfor %}"
)


@pytest.mark.parametrize("before", ["", "{{ m.role + m.content[0]['type'] }}"])
def test_text_is_in_parts_where_a_template_shows_nothing_else(
    encoder_with: Make, before: str
) -> None:
    """Templates of models that take images go through a list of parts, and print no string."""
    encoder = encoder_with(IN_PARTS.replace("{% for part", before + "{% for part"))
    text = encoder.encode_chat(conversation([("system", "Be."), ("user", "<|im_end|> Hi")])).text
    assert "Be.<|im_end|>" in text
    assert text.endswith("<|im_end|> Hi<|im_end|>")
    turns = conversation([("user", "Hi"), ("assistant", "Well ")])
    assert encoder.encode_chat(turns, continue_final=True).text.endswith("Well ")
    assert "Well " in encoder.encode_chat([*turns, *conversation([("user", "Go")])]).text


@pytest.mark.parametrize(
    ("turn", "null", "empty"),
    [
        # DeepSeek's templates know by it that there are calls.
        ("{% if m.content is none %}" + CALLS + "{% else %}SAID {{ m.content }}{% endif %}",
         "x<tool_call>", "x<tool_call>"),
        ("{% if m.content is none %}NONE{% endif %}" + CALLS, "xNONE<tool_call>", "x<tool_call>"),
        # With these null would be an error, or the word None: they get an empty text.
        ("{{ m.content + '' }}" + CALLS, "x<tool_call>", "x<tool_call>"),
        ("{{ m.content }}" + CALLS, "x<tool_call>", "x<tool_call>"),
        ("{{ m.content | tojson }}" + CALLS, 'x""<tool_call>', 'x""<tool_call>'),
    ],
)  # fmt: skip
def test_a_template_sees_null_where_it_can_take_it(
    encoder_with: Make, turn: str, null: str, empty: str
) -> None:
    encoder = encoder_with(f"{EACH}{turn}{{% endif %}}{{% endfor %}}")
    assert encoder.encode_chat([HELLO, NULL]).text.startswith(null)
    assert encoder.encode_chat([HELLO, EMPTY]).text.startswith(empty)


def test_a_turn_without_calls_may_have_null_too(encoder_with: Make) -> None:
    alone = ChatMessage(role="assistant", content=None)
    encoder = encoder_with(EACH + "{{ m.content is none }}{% endif %}{% endfor %}")
    assert encoder.encode_chat([HELLO, alone]).text == "xTrue"
    encoder = encoder_with(EACH + "[{{ m.content }}]{% endif %}{% endfor %}")
    assert encoder.encode_chat([HELLO, alone]).text == "x[]"


def test_arguments_are_text_where_the_template_joins_them(encoder_with: Make) -> None:
    encoder = encoder_with(
        EACH + "{% for c in m.tool_calls %}<tool_call>{{ c.function.name + ' ' }}"
        "{{ '' + c.function.arguments }}{% endfor %}{% endif %}{% endfor %}"
    )
    prompt = encoder.encode_chat([HELLO, NULL])
    assert prompt.text == f"x<tool_call>get_weather {CALL.arguments}"
    assert 1 not in prompt.token_ids


PRINTED = [
    "{{ tools }}",
    "{{ tools | string }}",
    "{{ tools | string | e }}",
    "{{ tools | string | title }}",
    "{{ tools | string | urlencode }}",
    "{{ tools | upper }}",
    "{{ (tools or []) | join(',') }}",
    "{{ '%r' % tools }}",
    "{{ '{}'.format(tools) }}",
    "{{ tools | tojson(ensure_ascii=True) }}",
    "{{ tools | tojson(indent=2) }}",
    "{{ tools | tojson | tojson }}",
]


@pytest.mark.parametrize("source", PRINTED)
def test_no_mark_of_ours_reaches_the_prompt_however_tools_are_printed(
    encoder_with: Make, source: str
) -> None:
    """The prompt is what it would be if nothing had been marked, with no more control tokens."""
    tool = {"type": "function", "function": {"name": "f", "description": "a<|im_end|> é <|im_"}}
    each = "{% for m in messages %}{{ m.content }}{% endfor %}"
    encoder = encoder_with(source + each, tool_call_parser="hermes")
    prompt = encoder.encode_chat([HELLO], tools=[tool])
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, ensure_ascii=False, indent=None: json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent
    )
    assert prompt.text == environment.from_string(source).render(tools=[tool]) + "x"
    assert not set(prompt.token_ids) & {1, 2}


@pytest.mark.parametrize(
    "source",
    ["{{ c.function.arguments | string }}", "{{ c.function | string }}", "{{ '%r' % c }}",
     "{{ c.function.arguments | tojson(ensure_ascii=True) }}"],
)  # fmt: skip
def test_no_mark_of_ours_reaches_the_prompt_however_calls_are_printed(
    encoder_with: Make, source: str
) -> None:
    text = EACH + "{% for c in m.tool_calls %}<tool_call>{{ c.function.name }}" + source
    encoder = encoder_with(text + "{% endfor %}{% endif %}{% endfor %}", tool_call_parser="hermes")
    prompt = encoder.encode_chat([HELLO, NULL])
    assert not re.search(r"\d{8}|fdd", prompt.text)
    assert "<|im_start|>" in prompt.text
    assert 1 not in prompt.token_ids


def test_another_template_may_be_for_tools(
    smollm_document: dict[str, Any], smollm_vocabulary: Vocabulary
) -> None:
    encoder = TemplateEncoder(
        smollm_document, smollm_vocabulary,
        "{% for m in messages %}{{ m.content }};{% endfor %}", {}, (),
        tool_template="{% for tool in tools %}{% endfor %}{{ tools | tojson }}<tool_call>"
        "{% for m in messages %}{{ m.content }}{% endfor %}",
    )  # fmt: skip
    assert encoder.native_tools
    assert encoder.encode_chat([HELLO]).text == "x;"
    with_tools = encoder.encode_chat([HELLO], tools=TOOLS)
    assert with_tools.text == f"{json.dumps(TOOLS, ensure_ascii=False)}<tool_call>x"


def test_a_template_that_shows_tools_in_an_unknown_format_is_given_them(
    encoder_with: Make,
) -> None:
    encoder = encoder_with("{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}")
    prompt = encoder.encode_chat([HELLO], tools=TOOLS)
    assert prompt.text.startswith(json.dumps(TOOLS, ensure_ascii=False))
    assert prompt.text.count("get_weather") == 1
    assert "To call a function, answer" in prompt.text
