"""Each format's parser: the same calls and text however the answer is cut."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.messages import ToolCall
from maestrale.prompt.tools.base import ToolFormat, ToolSpec, ToolUse
from maestrale.prompt.tools.harmony import HarmonyParser
from maestrale.prompt.tools.layout import LAYOUTS
from maestrale.prompt.tools.layout_format import LayoutFormat
from maestrale.prompt.tools.llama import LlamaParser
from maestrale.prompt.tools.mistral import MistralParser
from maestrale.prompt.tools.pick import PARSERS, format_by_name
from maestrale.prompt.tools.reading import CallReader, ToolCallParser

CALLS, CALL_ID, ARGS = "\ufdd0", "\ufdd1", "\ufdd2"  # how the control tokens are shown
TAG = "\ufdd0"
CHANNEL, MESSAGE, START, CONSTRAIN, CALL, END = map(chr, range(0xFDD0, 0xFDD6))
Make = Callable[..., ToolCallParser]
PLAIN = Vocabulary((*(bytes([value]) for value in range(256)), b""), {"</s>": 256}, (256,))


def by_layout(name: str) -> Make:
    return functools.partial(LayoutFormat(LAYOUTS[name], PLAIN).parser)


HermesParser = by_layout("hermes")
Case = tuple[str, str, list[tuple[str, str]]]  # what is written, the text, the calls

HERMES: dict[str, Case] = {
    "text": ("Hello,\n\n you. \n", "Hello,\n\n you. \n", []),
    "one call": ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "",
                 [("f", '{"a": 1}')]),
    "text, then calls": (
        'Let me see.\n\n<tool_call>{"name": "f", "arguments": {}}</tool_call>\n'
        '<tool_call>{"arguments": {"b": []}, "name": "g"}</tool_call>\n',
        "Let me see.", [("f", "{}"), ("g", '{"b": []}')]),
    "text after a call": ('<tool_call>{"name": "f"}</tool_call>\nDone. ', "Done.", [("f", "{}")]),
    "a marker in an argument": (
        '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>\\"}{"}}</tool_call>', "",
        [("f", '{"a": "</tool_call>\\"}{"}')]),
    "arguments as a text": ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "",
                            [("f", '{"a": 1}')]),
    "an unknown tool": ('<tool_call>\n{"name": "h"}\n</tool_call>', '\n{"name": "h"}\n', []),
    "no JSON": ("<tool_call>hello</tool_call>", "hello", []),
    "broken JSON": ('<tool_call>{"name": f}</tool_call>', '{"name": f}', []),
    "ended too early": ('<tool_call>{"name": "f", "argu', '{"name": "f", "argu', []),
    "the marker ended too early": ("I use <tool_c", "I use", []),
    "almost a marker": ("<tool_<tool_ call>", "<tool_<tool_ call>", []),
    "a stray end": ("Hello</tool_call> you <", "Hello you <", []),
    "no name": ('<tool_call>{"arguments": {}}</tool_call>', '{"arguments": {}}', []),
    "within a function": (
        '<tool_call>{"function": {"name": "f", "arguments": {"a": 1}}}</tool_call>', "",
        [("f", '{"a": 1}')]),
    "not closed": ('<tool_call>{"name": "f"}', "", [("f", "{}")]),
    "arguments no object": ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
                            '{"name": "f", "arguments": [1]}', []),
    "a number that is none": ('<tool_call>{"name": "f", "arguments": {"a": NaN}}',
                              '{"name": "f", "arguments": {"a": NaN}}', []),
}  # fmt: skip

MISTRAL: dict[str, Case] = {
    "text": ("Hello. ", "Hello. ", []),
    "a list": (
        CALLS + ' [{"name": "f", "arguments": {"a": 1}}, '
        '{"name": "g", "arguments": {}, "id": "x"}]',
        "", [("f", '{"a": 1}'), ("g", "{}")]),
    "text before": ("Well." + CALLS + '[{"name": "f", "arguments": {}}]', "Well.", [("f", "{}")]),
    "by name": (f'{CALLS}f{ARGS}{{"a": [1]}}{CALLS}g{CALL_ID}abcdefghi{ARGS}{{}}', "",
                [("f", '{"a": [1]}'), ("g", "{}")]),
    "one object": (CALLS + '{"name": "f", "arguments": {}}', "", [("f", "{}")]),
    "not closed": (CALLS + '[{"name": "f", "arguments": {}}', "", [("f", "{}")]),
    "broken": (CALLS + "[{oops}] yes", "[{oops}] yes", []),
    "a name alone": (CALLS + "f is it", "f is it", []),
    "a name cut off": (CALLS + "f" + ARGS, "f", []),
    "one good, one bad": (CALLS + '[{"name": "f"}, {"name": "?"}]', ', {"name": "?"}]',
                          [("f", "{}")]),
    "text that looks like it": ('[TOOL_CALLS] [{"name": "f"}]', '[TOOL_CALLS] [{"name": "f"}]', []),
    "a marker alone": (CALLS, "", []),
}  # fmt: skip

LLAMA: dict[str, Case] = {
    "text": ("Hello {you}. ", "Hello {you}. ", []),
    "one call": ('{"name": "f", "parameters": {"a": 1}}', "", [("f", '{"a": 1}')]),
    "two calls": ('\n{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', "",
                  [("f", "{}"), ("g", "{}")]),
    "typed": ('{"type": "function", "name": "f", "parameters": {}}', "", [("f", "{}")]),
    "after the tag": (TAG + '{"name": "f", "parameters": {}}', "", [("f", "{}")]),
    "code": (TAG + 'search.call(query="x")', 'search.call(query="x")', []),
    "an answer in JSON": ('{"answer": {"name": "f"}}', '{"answer": {"name": "f"}}', []),
    "a person": ('{"name": "Bob"}', '{"name": "Bob"}', []),
    "later JSON": ('See: {"name": "f", "parameters": {}}', 'See: {"name": "f", "parameters": {}}',
                   []),
    "cut off": ('{"na', '{"na', []),
}  # fmt: skip

CODER: dict[str, Case] = {
    "text": ("Hello <b>you</b>. ", "Hello <b>you</b>. ", []),
    "one call": (
        "I look.\n<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=s>\n"
        " 5 < 6 &amp;\n\n</parameter>\n</function>\n</tool_call>",
        "I look.", [("f", '{"a": 1, "s": " 5 < 6 &amp;\\n"}')]),
    "two calls": (
        "<tool_call>\n<function=g>\n</function>\n</tool_call>\n<tool_call>\n<function=f>\n"
        "<parameter=l>\n[1, 2]\n</parameter>\n</function>\n</tool_call>\n",
        "", [("g", "{}"), ("f", '{"l": [1, 2]}')]),
    "on one line": (
        "<tool_call><function=f><parameter=s>1</parameter></function></tool_call>", "",
        [("f", '{"s": "1"}')]),
    "without the outer marker": (
        "<function=f>\n<parameter=a>\n2\n</parameter>\n</function>\n</tool_call>", "",
        [("f", '{"a": 2}')]),
    "not closed": ("<tool_call>\n<function=f>\n<parameter=a>\n3\n", "", [("f", '{"a": 3}')]),
    "an unknown tool": ("<tool_call>\n<function=h>\n</function>\n</tool_call>", "h>\n\n", []),
    "a marker alone": ("<tool_call>", "", []),
}  # fmt: skip

GLM: dict[str, Case] = {
    "one call": (
        "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>s</arg_key>\n"
        "<arg_value>Lyon</arg_value>\n</tool_call>", "", [("f", '{"a": 1, "s": "Lyon"}')]),
    "ended after the name": ("<tool_call>g", "", [("g", "{}")]),
    "ended after a part of a name": ("<tool_call>h", "h", []),
    "numbers beyond": (
        "<tool_call>f<arg_key>a</arg_key><arg_value>5e419</arg_value><arg_key>x</arg_key>"
        "<arg_value>NaN</arg_value></tool_call>", "", [("f", '{"a": "5e419", "x": "NaN"}')]),
    "no arguments": ("Hm.\n<tool_call>g\n</tool_call>", "Hm.", [("g", "{}")]),
    "no blanks": ("<tool_call>f<arg_key>l</arg_key><arg_value>[3]</arg_value></tool_call>"
                  "<tool_call>g</tool_call> Done", "Done", [("f", '{"l": [3]}'), ("g", "{}")]),
}  # fmt: skip

S, B, E, C, D = (
    f"<\uff5ctool\u2581{word}\uff5c>"
    for word in ("sep", "calls\u2581begin", "calls\u2581end", "call\u2581begin", "call\u2581end")
)
DEEPSEEK: dict[str, Case] = {
    "two calls": (f'Well.{B}{C}f{S}{{"a": 1}}{D}{C}g{S}{{}}{D}{E}', "Well.",
                  [("f", '{"a": 1}'), ("g", "{}")]),
    "without the outer marker": (f'{C}f{S}{{"a": 1}}{D}', "", [("f", '{"a": 1}')]),
}  # fmt: skip
DEEPSEEK_V3: dict[str, Case] = {
    "two calls": (
        f'{B}{C}function{S}f\n```json\n{{"a": 1}}\n```{D}\n'
        f"{C}function{S}g\n```json\n{{}}\n```{D}{E}",
        "", [("f", '{"a": 1}'), ("g", "{}")]),
}  # fmt: skip
KIMI: dict[str, Case] = {
    "two calls": (
        '<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>'
        '{"a": 1}<|tool_call_end|><|tool_call_begin|>functions.g:1<|tool_call_argument_begin|>{}'
        "<|tool_call_end|><|tool_calls_section_end|>", "", [("f", '{"a": 1}'), ("g", "{}")]),
}  # fmt: skip
GRANITE: dict[str, Case] = {
    "two calls": ('<|tool_call|>[{"name": "f", "arguments": {"a": 1}}, {"name": "g"}]', "",
                  [("f", '{"a": 1}'), ("g", "{}")]),
    "with a blank": ('<|tool_call|> [{"name": "g", "arguments": {}}]', "", [("g", "{}")]),
}  # fmt: skip
PYTHONIC: dict[str, Case] = {
    "two calls": ("[f(a=1, s='it\\'s [x]', l=[1, {'k': None}]), g()]", "",
                  [("f", '{"a": 1, "s": "it\'s [x]", "l": [1, {"k": null}]}'), ("g", "{}")]),
    "JSON's words": ('[f(a=true, s="\\ud83d\\ude00")]', "",
                     [("f", '{"a": true, "s": "\U0001f600"}')]),
    "a list": ("[1, 2] are two.", "[1, 2] are two.", []),
    "a link": ("[see](http://a)", "[see](http://a)", []),
    "later": ("So: [f(a=1)]", "So: [f(a=1)]", []),
    "no literal": ("[f(a=g())]", "[f(a=g())]", []),
    "an unknown tool": ("[h(a=1)]", "[h(a=1)]", []),
}  # fmt: skip
LFM2: dict[str, Case] = {
    "one call": ('Yes.<|tool_call_start|>[f(s="x")]<|tool_call_end|>No.', "Yes.No.",
                 [("f", '{"s": "x"}')]),
}  # fmt: skip
Q = '<|"|>'
GEMMA: dict[str, Case] = {
    "two calls": (
        f"<|tool_call>call:f{{a:1,l:[1,2],s:{Q}a}}, b:{{{Q}}}<tool_call|>"
        "<|tool_call>call:g{}<tool_call|>",
        "", [("f", '{"a": 1, "l": [1, 2], "s": "a}, b:{"}'), ("g", "{}")]),
    "nested": (f"<|tool_call>call:f{{o:{{k:{Q}v{Q},n:null}}}}<tool_call|>", "",
               [("f", '{"o": {"k": "v", "n": null}}')]),
    "broken": ("<|tool_call>call:f{a:oops}<tool_call|>", "f{a:oops}", []),
}  # fmt: skip
HARMONY: dict[str, Case] = {
    "an answer": (f"{CHANNEL}analysis{MESSAGE}Hm, <x>.{END}{START}assistant{CHANNEL}final{MESSAGE}"
                  "Hello {you}.", "Hello {you}.", []),
    "a call": (
        f"{CHANNEL}analysis{MESSAGE}I look.{END}{START}assistant{CHANNEL}commentary to=functions.f "
        f'{CONSTRAIN}json{MESSAGE}{{"a": 1}}{CALL}', "", [("f", '{"a": 1}')]),
    "to whom first": (f" to=functions.g{CHANNEL}commentary json{MESSAGE}{{}}{CALL}", "",
                      [("g", "{}")]),
    "a preamble": (
        f"{CHANNEL}commentary{MESSAGE}I look it up.{END}{START}assistant to=functions.f{CHANNEL}"
        f'commentary json{MESSAGE}{{"s": "x"}}', "I look it up.", [("f", '{"s": "x"}')]),
    "text as it is": ("Hello.", "Hello.", []),
}  # fmt: skip

FORMATS: dict[str, tuple[Make, dict[str, Case]]] = {
    "mistral": (MistralParser, MISTRAL),
    "llama3_json": (LlamaParser, LLAMA),
    "openai": (HarmonyParser, HARMONY),
    "hermes": (HermesParser, HERMES),
    "qwen3_coder": (by_layout("qwen3_coder"), CODER),
    "glm45": (by_layout("glm45"), GLM),
    "deepseek_v31": (by_layout("deepseek_v31"), DEEPSEEK),
    "deepseek_v3": (by_layout("deepseek_v3"), DEEPSEEK_V3),
    "kimi_k2": (by_layout("kimi_k2"), KIMI),
    "granite": (by_layout("granite"), GRANITE),
    "pythonic": (by_layout("pythonic"), PYTHONIC),
    "lfm2": (by_layout("lfm2"), LFM2),
    "gemma4": (by_layout("gemma4"), GEMMA),
}
ALL = [
    pytest.param(make, case, id=f"{name}: {what}")
    for name, (make, cases) in FORMATS.items()
    for what, case in cases.items()
]
SCHEMA = {"properties": {"a": {"type": "integer"}, "s": {"type": "string"}, "l": {"type": "array"}}}


def use_of(*, required: bool = False, only: str | None = None) -> ToolUse:
    tools = tuple(
        ToolSpec(name=name, definition={}, parameters=json.dumps(SCHEMA)) for name in ("f", "g")
    )
    return ToolUse(tools=tools, callable=(only,) if only else ("f", "g"), required=required)


def reader(key: bytes = b"k", *, required: bool = False, only: str | None = None) -> CallReader:
    return use_of(required=required, only=only).reader(key)


def parse(
    make: Make,
    pieces: list[str],
    *,
    parallel: bool = True,
    key: bytes = b"k",
    cut: bool = False,
    required: bool = False,
    only: str | None = None,
) -> tuple[str, list[tuple[str, str]], list[str]]:
    """Text, (name, arguments) and ids of an answer that comes in these pieces."""
    parser = make(reader(key, required=required, only=only), parallel=parallel)
    calls: list[Any] = []
    text, seen, taken = "", 0, 0
    for number, piece in enumerate([*pieces, ""]):
        parsed = parser.push(piece, last=number == len(pieces), cut=cut and number == len(pieces))
        text += parsed.text
        calls += parsed.calls
        seen += 0 if parser.done else len(piece)
        taken += parsed.taken
        if not parser.done and number < len(pieces):
            assert len(text) + taken + parser.held == seen  # nothing is lost, nothing twice
        if parser.done:
            break
    assert parser.called == bool(calls)
    return text, [(call.name, call.arguments) for call in calls], [call.id for call in calls]


@pytest.mark.parametrize(("kind", "case"), ALL)
def test_an_answer_in_single_characters(kind: Make, case: Case) -> None:
    written, text, calls = case
    assert parse(kind, list(written))[:2] == (text, calls)


@given(st.data())
def test_how_an_answer_is_cut_changes_nothing(data: st.DataObject) -> None:
    cases: list[Any] = [tuple(param.values) for param in ALL]
    kind, case = data.draw(st.sampled_from(cases))
    written, text, calls = case
    cuts = sorted(data.draw(st.sets(st.integers(0, len(written)))))
    pieces = [written[a:b] for a, b in zip([0, *cuts], [*cuts, len(written)], strict=True)]
    assert parse(kind, pieces)[:2] == (text, calls)


@given(
    st.sampled_from([make for make, _ in FORMATS.values()]),
    st.lists(
        st.sampled_from(
            ["<tool_call>", "</tool_call>", '{"name": "f"', ', "arguments": {}', "}", "]", "[", "{",
             '"', "\\", " ", "\n", ";", ",", "f", "x", CALLS, CALL_ID, ARGS, "<function=f>",
             "<parameter=", "a>", "</parameter>", "<arg_key>", "</arg_key>", "<arg_value>", "(",
             ")", "a=", "<|tool_call>call:", Q, "to=functions.f", CONSTRAIN, CALL, END, B, C, S]
        )
    ),
    st.booleans(),
)  # fmt: skip
def test_any_text_ends_and_adds_up(kind: Make, pieces: list[str], cut: bool) -> None:
    text, calls, _ = parse(kind, pieces, cut=cut)
    whole = parse(kind, ["".join(pieces)], cut=cut)
    assert whole[:2] == (text, calls)
    markers: dict[Any, str] = {MistralParser: "[\ufdd0-\ufdd2]", HarmonyParser: "[\ufdd0-\ufdd5]"}
    own = markers.get(kind, "(?!)")
    assert not re.search(own, text)


def test_text_streams_and_only_markup_waits() -> None:
    parser = HermesParser(reader(), parallel=True)
    assert parser.push("Hello <").text == "Hello"
    assert parser.push("b> <tool").text == " <b>"
    assert parser.held == len(" <tool")
    assert parser.push("s>").text == " <tools>"


def test_a_call_comes_as_soon_as_it_is_whole() -> None:
    parser = MistralParser(reader(), parallel=True)
    assert not parser.push(CALLS + '[{"name": "f", "arguments": {}').calls
    assert [call.name for call in parser.push("}, {").calls] == ["f"]
    assert [call.name for call in parser.push('"name": "g"}').calls] == ["g"]


def test_without_parallel_calls_the_first_ends_the_answer() -> None:
    two = '<tool_call>{"name": "f"}</tool_call><tool_call>{"name": "g"}</tool_call>'
    assert parse(HermesParser, list(two), parallel=False)[1] == [("f", "{}")]


@pytest.mark.parametrize("name", [name for name in PARSERS if name != "openai"])
def test_where_calls_are_required_one_that_was_made_ends_the_answer(name: str) -> None:
    """The model has none left to make, and the grammar lets it say nothing else."""
    others = [ToolCall(id="2", name="g", arguments='{"a": 1}'), EXAMPLE]
    form, written = written_by(name, [EXAMPLE, *others])
    made = [("f", {"a": 1, "s": "x y", "l": [1, 2]}), ("g", {"a": 1})]
    for required, expected in ((True, made), (False, [*made, made[0]])):
        for pieces in ([written], list(written)):
            text, calls, _ = parse(form.parser, pieces, required=required)
            assert text == ""
            assert [(each, json.loads(arguments)) for each, arguments in calls] == expected
    spaced = '<tool_call>{"name": "f", "arguments": {"a": 1, "b": 2}}</tool_call>'
    again = '<tool_call>{"name": "f", "arguments": {\n  "b": 2, "a": 1}}</tool_call>'
    parser = HermesParser(reader(required=True), parallel=True)
    assert [call.name for call in parser.push(spaced + again).calls] == ["f"]
    assert parser.done


def test_ids_are_mistral_s_and_follow_from_the_key() -> None:
    two = CALLS + '[{"name": "f"}, {"name": "g"}]'
    first, second = parse(MistralParser, [two])[2]
    assert re.fullmatch("[a-zA-Z0-9]{9}", first)
    assert re.fullmatch("[a-zA-Z0-9]{9}", second)
    assert first != second
    assert parse(MistralParser, list(two))[2] == [first, second]
    assert parse(MistralParser, [two], key=b"other")[2] != [first, second]


def test_deep_json_is_text() -> None:
    deep = '<tool_call>{"name": "f", "arguments": ' + '{"a":' * 50_000 + "}" * 50_001
    assert parse(HermesParser, [deep])[1] == []


CUT = [  # name of the format, what came, the text, the calls
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": 1, "s": "Ly', "",
     [("f", '{"a": 1, "s": "Ly')]),
    ("hermes",
     'So.\n<tool_call>\n{"name": "f"}\n</tool_call>\n<tool_call>{"name": "g", "argum', "So.",
     [("f", "{}"), ("g", "")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1', "", [("f", '{"a": 1')]),
    ("hermes", '<tool_call>{"na', "", []),
    ("hermes", '<tool_call>{"name": "h", "arguments": {"a', "", []),
    ("hermes", "See <tool_c", "See", []),
    ("hermes", "1 <", "1", []),
    ("qwen3_coder",
     "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=s>\nLy", "",
     [("f", '{"a": 1, "s": "Ly')]),
    ("qwen3_coder", "<tool_call>\n<function=f>\n<para", "", [("f", "")]),
    ("qwen3_coder", "<tool_call>\n<func", "", []),
    ("glm45", "<tool_call>f\n<arg_key>l</arg_key>\n<arg_value>[1, 2", "", [("f", '{"l": [1, 2')]),
    ("deepseek_v31", f'{B}{C}f{S}{{"a": 1', "", [("f", '{"a": 1')]),
    ("mistral", CALLS + '[{"name": "f", "arguments": {"a": 1', "", [("f", '{"a": 1')]),
    ("mistral", f'{CALLS}f{ARGS}{{"a', "", [("f", '{"a')]),
    ("mistral", f"{CALLS}f", "", [("f", "")]),
    ("llama3_json", '{"name": "f", "parameters": {"a', "", [("f", '{"a')]),
    ("llama3_json", '{"name": "Bob", "age": 4', '{"name": "Bob", "age": 4', []),
    ("openai", f' to=functions.f{CHANNEL}commentary json{MESSAGE}{{"a": ', "", [("f", '{"a": ')]),
    ("gemma4", "<|tool_call>call:f{a:1", "", [("f", "")]),
    ("gemma4", f"<|tool_call>call:f{{a:1,s:{Q}x, y", "", [("f", '{"a": 1')]),
    ("pythonic", "[f(a=1", "", [("f", "")]),
    ("pythonic", "[f(a=1, s='x, y', l=[1, 2", "", [("f", '{"a": 1, "s": "x, y"')]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "written", "text", "calls"), CUT)
def test_a_call_that_is_cut_comes_as_far_as_it_came(
    name: str, written: str, text: str, calls: list[tuple[str, str]]
) -> None:
    make = FORMATS[name][0]
    for pieces in ([written], list(written)):
        assert parse(make, pieces, cut=True)[:2] == (text, calls)


WITH_TOKENS = Vocabulary(
    (*PLAIN.token_bytes, *[b""] * 8),
    {"</s>": 256, "[TOOL_CALLS]": 257, "[ARGS]": 258, "<|channel|>": 259, "<|message|>": 260,
     "<|start|>": 261, "<|call|>": 262, "<|end|>": 263, "<|constrain|>": 264},
    (256,),
)  # fmt: skip
EXAMPLE = ToolCall(id="1", name="f", arguments='{"a": 1, "s": "x y", "l": [1, 2]}')


def written_by(name: str, calls: list[ToolCall]) -> tuple[ToolFormat, str]:
    """A format, and these calls in it, with control tokens as its parser sees them."""
    form = format_by_name(name, WITH_TOKENS)
    written = form.write(calls)
    for token, shown in form.shown.items():
        spelled = next(text for text, each in WITH_TOKENS.control_ids.items() if each == token)
        written = written.replace(spelled, shown)
    return form, written


@pytest.mark.parametrize("name", PARSERS)
def test_a_required_call_cut_anywhere_is_that_call_and_no_text(name: str) -> None:
    """However little of what the model must write came, nothing of it is text."""
    form, written = written_by(name, [EXAMPLE])
    for size in range(len(written) + 1):
        for pieces in ([written[:size]], list(written[:size])):
            text, calls, _ = parse(form.parser, pieces, cut=True, required=True, only="f")
            assert text == ""
            assert [call for call, _ in calls] == ["f"]
            text, calls, _ = parse(form.parser, pieces, cut=True, required=True)
            assert text == ""
            assert len(calls) <= 1


ODD: list[tuple[str, dict[str, Any]]] = [
    *(
        (name, {"s": "\0 and 0"})
        for name in ("qwen3_coder", "glm45", "gemma4", "hermes", "kimi_k2")
    ),
    ("qwen3_coder", {"o": {"a": ["</parameter>", "<parameter=s>"]}}),
    ("glm45", {"l": ["</arg_value>"]}),
    *(
        (name, {"$filter": "a=1", "a b": "(c='d', e)", "x.y": {"k": 1}})
        for name in ("pythonic", "lfm2")
    ),
    *(
        (name, {"$filter": "a:1", "o": {"a b": 1, "c-d": "{e: 1}"}})
        for name in ("gemma4", "functiongemma")
    ),
]


@pytest.mark.parametrize(("name", "arguments"), ODD)
def test_odd_arguments_are_read_as_they_are_written(name: str, arguments: dict[str, Any]) -> None:
    kinds = {"s": {"type": "string"}, "o": {"type": "object"}, "l": {"type": "array"}}
    schemas = {"f": json.dumps({"type": "object", "properties": kinds})}
    form = format_by_name(name, PLAIN)
    call = ToolCall(id="", name="f", arguments=json.dumps(arguments))
    for size in (1, 1000):
        parser = form.parser(CallReader(["f"], b"", schemas=schemas), parallel=True)
        written = form.write([call])
        parts = [written[at : at + size] for at in range(0, len(written), size)]
        found = [parser.push(part) for part in parts] + [parser.push("", last=True)]
        calls = [json.loads(each.arguments) for parsed in found for each in parsed.calls]
        assert calls == [arguments]
        assert not "".join(parsed.text for parsed in found)


@pytest.mark.parametrize("name", PARSERS)
def test_earlier_calls_are_written_as_they_are_read(name: str) -> None:
    count = 1 if name == "openai" else 2
    form, written = written_by(name, [EXAMPLE] * count)
    read = form.parser(reader(), parallel=True).push(written, last=True)
    assert read.text == ""
    assert [(each.name, json.loads(each.arguments)) for each in read.calls] == [
        ("f", {"a": 1, "s": "x y", "l": [1, 2]})
    ] * count
