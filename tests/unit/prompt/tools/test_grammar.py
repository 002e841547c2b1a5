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
from maestrale.prompt.tools.base import CallReader, ToolFormat, ToolSpec, ToolUse
from maestrale.prompt.tools.grammar import argument_constraints, strict_schema, tool_constraint
from maestrale.prompt.tools.hermes import HermesFormat
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
    pytest.param(HermesFormat(PLAIN), PLAIN, id="hermes"),
    pytest.param(HermesFormat(BYTES), BYTES, id="hermes, control tokens"),
    pytest.param(LlamaFormat(PLAIN), PLAIN, id="llama"),
    pytest.param(LlamaFormat(BYTES), BYTES, id="llama, with tag"),
]


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
    parser = form.parser(CallReader(use.callable, b""), parallel=use.parallel)
    text, calls = "", []
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
    pytest.param(HermesFormat(PLAIN), PLAIN, "<tool_call>\n", "arguments", "\n</tool_call>",
                 id="hermes"),
    pytest.param(HermesFormat(BYTES), BYTES, "<tool_call>\n", "arguments", "\n</tool_call>",
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
    assert tool_constraint(HermesFormat(PLAIN), use(), None) is None


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
    constraint = tool_constraint(HermesFormat(PLAIN), wanted, None)
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
