"""Grammars of calls: whatever tokens are chosen, the parser finds valid calls."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from maestrale.engines.base import Constraint
from maestrale.engines.constraint import TokenConstraint, compile_constraint
from maestrale.errors import ConstraintError, InvalidRequest
from maestrale.models.mistral_vocabulary import mistral_vocabulary
from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.decode import IncrementalDecoder
from maestrale.prompt.messages import ToolCall
from maestrale.prompt.tools.base import ToolFormat, ToolSpec, ToolUse
from maestrale.prompt.tools.grammar import argument_constraints, strict_schema, tool_constraint
from maestrale.prompt.tools.harmony import HarmonyFormat
from maestrale.prompt.tools.layout import HERMES, LAYOUTS
from maestrale.prompt.tools.layout_format import LayoutFormat
from maestrale.prompt.tools.llama import LlamaFormat
from maestrale.prompt.tools.mistral import MistralFormat

MISTRAL = mistral_vocabulary("v3", 0)
EOS = 256
# Bytes, an end, and control tokens as newer models have them.
BYTES = Vocabulary(
    (*(bytes([value]) for value in range(256)), b"", b"", b"", b"", b"", b""),
    {
        "</s>": EOS,
        "[TOOL_CALLS]": 257,
        "[ARGS]": 258,
        "<|python_tag|>": 259,
        "<tool_call>": 260,
        "</tool_call>": 261,
    },
    (EOS,),
)
HARMONY = Vocabulary(
    BYTES.token_bytes,
    {"</s>": EOS, "<|channel|>": 257, "<|message|>": 258, "<|start|>": 259, "<|end|>": 260,
     "<|constrain|>": 261},
    (EOS,),
)  # fmt: skip
PLAIN = Vocabulary(BYTES.token_bytes[:257], {"</s>": EOS}, (EOS,))

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"$ref": "#/$defs/city"},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
    },
    "required": ["city"],
    "$defs": {"city": {"type": "string", "maxLength": 12}},
}
TIME = {"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"]}
SCHEMAS: dict[str, dict[str, Any]] = {"get_weather": WEATHER, "get-time": TIME}

FORMATS: list[Any] = [
    pytest.param(MistralFormat(MISTRAL, named=False), MISTRAL, id="mistral"),
    pytest.param(MistralFormat(BYTES, named=True), BYTES, id="mistral, by name"),
    pytest.param(LayoutFormat(HERMES, PLAIN), PLAIN, id="hermes"),
    pytest.param(LayoutFormat(HERMES, BYTES), BYTES, id="hermes, control tokens"),
    pytest.param(LlamaFormat(PLAIN), PLAIN, id="llama"),
    pytest.param(LlamaFormat(BYTES), BYTES, id="llama, with tag"),
    *(
        pytest.param(LayoutFormat(LAYOUTS[name], PLAIN), PLAIN, id=name)
        for name in ("qwen3_coder", "glm45", "deepseek_v3", "deepseek_v31", "kimi_k2", "granite",
                     "pythonic", "lfm2")
    ),
    pytest.param(LayoutFormat(LAYOUTS["glm45"], BYTES), BYTES, id="glm45, control tokens"),
    pytest.param(HarmonyFormat(HARMONY), HARMONY, id="openai"),
]  # fmt: skip


def spec(name: str, schema: dict[str, Any], *, strict: bool = False) -> ToolSpec:
    return ToolSpec(name=name, definition={}, parameters=json.dumps(schema), strict=strict)


def use(*, strict: bool = False, only: str | None = None, **more: Any) -> ToolUse:
    tools = tuple(spec(name, schema, strict=strict) for name, schema in SCHEMAS.items())
    return ToolUse(tools=tools, callable=(only,) if only else tuple(SCHEMAS), **more)


def walk(
    form: ToolFormat, vocabulary: Vocabulary, compiled: TokenConstraint, use: ToolUse, seed: int
) -> tuple[str, list[ToolCall]]:
    """Text and calls of an answer of random tokens, that ends where it may."""
    draw = random.Random(seed)
    decoder = IncrementalDecoder(vocabulary, shown=form.shown)
    parser = form.parser(use.reader(b""), parallel=use.parallel)
    calls: list[Any] = []
    text = ""
    compiled = compiled.copy()
    for _ in range(3000):
        allowed = [int(token) for token in compiled.allowed().nonzero()[0]]
        ends = [token for token in allowed if token in vocabulary.eos_token_ids]
        closing = [t for t in allowed if vocabulary.token_bytes[t][-1:] in (b'"', b"}", b"]")]
        token = draw.choice(ends or (closing if closing and draw.random() < 0.3 else allowed))
        compiled.accept(token)
        done = token in vocabulary.eos_token_ids or compiled.finished
        parsed = parser.push(decoder.push([token]), last=done)
        text += parsed.text
        calls += parsed.calls
        if done:
            return text, calls
    raise AssertionError("the answer doesn't end")


@pytest.mark.parametrize(("form", "vocabulary"), FORMATS)
@pytest.mark.parametrize("only", [None, "get_weather", "get-time"])
def test_a_required_call_is_valid(
    form: ToolFormat, vocabulary: Vocabulary, only: str | None
) -> None:
    wanted = use(required=True, only=only)
    constraint = tool_constraint(form, wanted, None)
    assert constraint is not None
    compiled = compile_constraint(constraint, vocabulary)
    for seed in range(6):
        text, calls = walk(form, vocabulary, compiled, wanted, seed)
        assert text == ""
        assert calls
        for call in calls:
            assert only in (None, call.name)
            jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
            assert set(json.loads(call.arguments)) <= {"city", "days", "zone"}


@pytest.mark.parametrize(("form", "vocabulary"), FORMATS)
def test_without_parallel_calls_there_is_one(form: ToolFormat, vocabulary: Vocabulary) -> None:
    wanted = use(required=True, parallel=False)
    constraint = tool_constraint(form, wanted, None)
    assert constraint is not None
    compiled = compile_constraint(constraint, vocabulary)
    for seed in range(4):
        assert len(walk(form, vocabulary, compiled, wanted, seed)[1]) == 1


def spelled(vocabulary: Vocabulary, form: ToolFormat, text: str) -> list[int]:
    """Tokens of `text`: control tokens where the format shows them, else the longest that fit."""
    ids = {spelling: token for token, spelling in enumerate(vocabulary.token_bytes) if spelling}
    ids |= {mark.encode(): token for token, mark in form.shown.items()}
    rest, tokens = text.encode(), []
    while rest:
        size = max(size for size in range(1, 25) if rest[:size] in ids)
        tokens.append(ids[rest[:size]])
        rest = rest[size:]
    return tokens


def accepts(
    form: ToolFormat, vocabulary: Vocabulary, constraint: Constraint | None, text: str
) -> bool:
    """Whether `text` may be written, and the answer may end there."""
    assert constraint is not None
    compiled = compile_constraint(constraint, vocabulary)
    for token in spelled(vocabulary, form, text):
        if not compiled.allowed()[token]:
            return False
        compiled.accept(token)
    return compiled.finished or bool(compiled.allowed()[vocabulary.eos_token_ids[0]])


GOOD = '{"name": "get-time", "ARGS": {"zone": "UTC"}}'
BAD = '{"name": "get-time", "ARGS": {"zone": "Mars"}}'
WRITTEN: list[Any] = [  # before the call, the call's key for its arguments, after it
    pytest.param(MistralFormat(MISTRAL, named=False), MISTRAL, "\ufdd0 [", "arguments", "]",
                 id="mistral"),
    pytest.param(LayoutFormat(HERMES, PLAIN), PLAIN, "<tool_call>\n", "arguments", "\n</tool_call>",
                 id="hermes"),
    pytest.param(LayoutFormat(HERMES, BYTES), BYTES, "<tool_call>\n", "arguments", "\n</tool_call>",
                 id="hermes, control tokens"),
    pytest.param(LlamaFormat(BYTES), BYTES, "", "parameters", "", id="llama"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "vocabulary", "before", "key", "after"), WRITTEN)
def test_a_strict_tool_is_free_not_to_be_called(
    form: ToolFormat, vocabulary: Vocabulary, before: str, key: str, after: str
) -> None:
    constraint = tool_constraint(form, use(strict=True), None)
    good = before + GOOD.replace("ARGS", key) + after
    assert accepts(form, vocabulary, constraint, "Hello,\n\nyou.")
    assert accepts(form, vocabulary, constraint, good)
    assert not accepts(form, vocabulary, constraint, before + BAD.replace("ARGS", key) + after)
    if before:
        assert accepts(form, vocabulary, constraint, "I look.\n" + good)
        assert accepts(form, vocabulary, constraint, "1 < 2, <tool")


@pytest.mark.parametrize(("form", "vocabulary", "before", "key", "after"), WRITTEN)
def test_with_a_response_format_an_answer_is_json_or_a_call(
    form: ToolFormat, vocabulary: Vocabulary, before: str, key: str, after: str
) -> None:
    answer = Constraint("json_schema", '{"type":"object","properties":{"a":{"type":"integer"}},'
                        '"required":["a"],"additionalProperties":false}')  # fmt: skip
    constraint = tool_constraint(form, use(), answer)
    assert accepts(form, vocabulary, constraint, '{"a": 1}')
    assert accepts(form, vocabulary, constraint, before + BAD.replace("ARGS", key) + after)
    assert not accepts(form, vocabulary, constraint, "Hello")


def test_free_choice_without_strict_tools_is_not_constrained() -> None:
    assert tool_constraint(LayoutFormat(HERMES, PLAIN), use(), None) is None


def test_control_tokens_stay_forbidden_unless_the_format_names_them() -> None:
    constraint = tool_constraint(MistralFormat(BYTES, named=True), use(required=True), None)
    assert constraint is not None
    first = compile_constraint(constraint, BYTES).allowed()
    assert list(first.nonzero()[0]) == [257]
    free = tool_constraint(MistralFormat(BYTES, named=True), use(strict=True), None)
    assert free is not None
    allowed = compile_constraint(free, BYTES).allowed()
    assert allowed[257]
    assert not allowed[259:].any()


def test_the_tool_whose_schema_is_at_fault_can_be_found() -> None:
    tools = (spec("a", TIME), spec("b", {"properties": {"x": {"type": "string", "pattern": "(["}}}))
    wanted = ToolUse(tools=tools, callable=("a", "b"), required=True)
    constraint = tool_constraint(LayoutFormat(HERMES, PLAIN), wanted, None)
    assert constraint is not None
    with pytest.raises(ConstraintError):
        compile_constraint(constraint, PLAIN)
    (_, good), (place, bad) = argument_constraints(wanted)
    compile_constraint(good, PLAIN)
    assert place == 1
    with pytest.raises(ConstraintError):
        compile_constraint(bad, PLAIN)


@pytest.mark.parametrize(
    ("given", "closed"),
    [
        ({}, {"type": "object"}),
        ({"properties": {}}, {"type": "object", "properties": {}, "additionalProperties": False}),
        (
            {"properties": {"a": {"type": "array", "items": {"properties": {"b": {}}}}}},
            {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "a": {
                        "type": "array",
                        "items": {"properties": {"b": {}}, "additionalProperties": False},
                    }
                },
            },
        ),
        (
            {"properties": {"a": {}}, "additionalProperties": {"type": "string"}},
            {
                "type": "object",
                "properties": {"a": {}},
                "additionalProperties": {"type": "string"},
            },
        ),
        (
            {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
            {"type": "object", "allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
        ),
        (
            {"properties": {"a": {}}, "anyOf": [{"required": ["a"]}]},
            {"type": "object", "properties": {"a": {}}, "anyOf": [{"required": ["a"]}]},
        ),
    ],
)
def test_only_named_properties_may_occur(given: dict[str, Any], closed: dict[str, Any]) -> None:
    assert json.loads(strict_schema(spec("f", given))) == closed


def test_a_schema_nested_too_deep_is_refused() -> None:
    deep = '{"properties":{"a":' * 3000 + "{}" + "}}" * 3000
    with pytest.raises(InvalidRequest, match="deep"):
        strict_schema(ToolSpec(name="f", definition={}, parameters=deep))


PLAIN_TEXTS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Where."},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "unit": {"enum": ["C", "F"]},
        "days": {"type": "array", "items": {"type": "integer"}},
        "exact": {"type": "boolean"},
    },
    "required": ["city", "exact"],
}
ARGUMENTS = {"city": 'New "York" <b>, 5', "unit": "F", "days": [1, 2], "exact": True}


def one_tool(schema: dict[str, Any], **more: Any) -> ToolUse:
    return ToolUse(tools=(spec("f", schema),), callable=("f",), required=True, **more)


@pytest.mark.parametrize(
    "name",
    ["hermes", "qwen3_coder", "glm45", "deepseek_v31", "pythonic", "gemma4", "functiongemma"],
)
@pytest.mark.parametrize("vocabulary", [PLAIN, BYTES])
def test_what_the_format_writes_its_grammar_takes_and_its_parser_reads(
    name: str, vocabulary: Vocabulary
) -> None:
    form = LayoutFormat(LAYOUTS[name], vocabulary)
    wanted = one_tool(PLAIN_TEXTS)
    constraint = tool_constraint(form, wanted, None)
    several = [ARGUMENTS, ARGUMENTS | {"days": [2, 1]}]
    written = form.write([ToolCall(id="", name="f", arguments=json.dumps(x)) for x in several])
    if name == "pythonic":
        written = written.replace("'New \"York\" <b>, 5'", '"New \\"York\\" <b>, 5"').replace(
            "'F'", '"F"'
        )
    if name in ("gemma4", "functiongemma"):
        written = written.replace(", 5", "; 5")
    assert accepts(form, vocabulary, constraint, written)
    read = form.parser(wanted.reader(b""), parallel=True).push(written, last=True)
    assert [json.loads(each.arguments)["days"] for each in read.calls] == [[1, 2], [2, 1]]
    one = tool_constraint(form, one_tool(PLAIN_TEXTS, parallel=False), None)
    assert not accepts(form, vocabulary, one, written)
    for wrong in (written.replace("[1, 2]", '["x"]').replace("[1,2]", "[x]"),
                  written.replace("F", "K"), written.replace("f", "g", 1)):  # fmt: skip
        assert not accepts(form, vocabulary, constraint, wrong)


TAGS = ["<tool_call>\n<function=f>\n<parameter=", ">\n", "\n</parameter>\n",
        "</function>\n</tool_call>"]  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "5", "5"),
        ({"type": "string"}, "\n{x}\n", "\n{x}\n"),
        ({"type": ["string", "null"]}, "null", None),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "so", "so"),
        ({"type": "string", "maxLength": 3}, '"abc"', "abc"),
        ({"type": "string", "pattern": "^a+$"}, '"aa"', "aa"),
        ({"type": "integer"}, "-7", -7),
        ({"const": "x y"}, "x y", "x y"),
        ({"enum": [1, "1"]}, '"1"', "1"),
        ({"$ref": "#/$defs/k"}, "[true]", [True]),
        ({"type": "object", "properties": {"k": {"$ref": "#/$defs/k"}}, "required": ["k"],
          "additionalProperties": False}, '{"k": [false]}', {"k": [False]}),
        ({}, '"any"', "any"),
    ],
)  # fmt: skip
def test_a_value_in_tags_is_what_its_schema_makes_of_it(
    schema: dict[str, Any], text: str, value: Any
) -> None:
    form = LayoutFormat(LAYOUTS["qwen3_coder"], PLAIN)
    wanted = one_tool({
        "properties": {"a": schema}, "required": ["a"],
        "$defs": {"k": {"type": "array", "items": {"type": "boolean"}}},
    })  # fmt: skip
    written = TAGS[0] + "a" + TAGS[1] + text + TAGS[2] + TAGS[3]
    assert accepts(form, PLAIN, tool_constraint(form, wanted, None), written)
    (call,) = form.parser(wanted.reader(b""), parallel=True).push(written, last=True).calls
    assert json.loads(call.arguments) == {"a": value}


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string", "maxLength": 3}, '"abcd"'),
        ({"type": "integer"}, "x"),
        ({"const": "x"}, "y"),
        ({"type": "array", "items": {"type": "string"}}, "[1]"),
    ],
)
def test_a_value_in_tags_that_its_schema_forbids_is_not_written(
    schema: dict[str, Any], text: str
) -> None:
    form = LayoutFormat(LAYOUTS["qwen3_coder"], PLAIN)
    wanted = one_tool({"properties": {"a": schema}, "required": ["a"]})
    written = TAGS[0] + "a" + TAGS[1] + text + TAGS[2] + TAGS[3]
    assert not accepts(form, PLAIN, tool_constraint(form, wanted, None), written)


def test_arguments_that_the_schema_leaves_open_may_be_written_in_tags() -> None:
    form = LayoutFormat(LAYOUTS["qwen3_coder"], PLAIN)
    schema = {"properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "number"}}
    constraint = tool_constraint(form, one_tool(schema), None)

    def written(key: str, text: str) -> str:
        return TAGS[0] + key + TAGS[1] + text + TAGS[2] + TAGS[3]

    assert accepts(form, PLAIN, constraint, written("b", "1.5"))
    assert not accepts(form, PLAIN, constraint, written("b", "x"))
    assert not accepts(form, PLAIN, constraint, written("a", "1.5"))


@pytest.mark.parametrize("name", ["qwen3_coder", "glm45", "pythonic", "gemma4"])
@pytest.mark.parametrize(
    "schema",
    [{"anyOf": [{"required": ["a"]}], "properties": {"a": {}}}, {"minProperties": 1}],
)
def test_what_one_by_one_can_not_be_held_to_is_refused_by_name(
    name: str, schema: dict[str, Any]
) -> None:
    form = LayoutFormat(LAYOUTS[name], PLAIN)
    with pytest.raises(InvalidRequest, match=f"'f' have '{next(iter(schema))}'") as refused:
        tool_constraint(form, one_tool(schema), None)
    assert str(refused.value.at) == "tools"


def test_gemma_s_format_refuses_what_it_has_no_words_for() -> None:
    form = LayoutFormat(LAYOUTS["gemma4"], PLAIN)
    with pytest.raises(InvalidRequest, match="tool 'f'"):
        tool_constraint(
            form, one_tool({"properties": {"a": {"type": "string", "minLength": 1}}}), None
        )
