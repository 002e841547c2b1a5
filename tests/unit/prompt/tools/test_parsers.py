"""Each format's parser: the same calls and text however the answer is cut."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestrale.prompt.tools.base import CallReader, ToolCallParser
from maestrale.prompt.tools.hermes import HermesParser
from maestrale.prompt.tools.llama import LlamaParser
from maestrale.prompt.tools.mistral import MistralParser

CALLS, CALL_ID, ARGS = "\ufdd0", "\ufdd1", "\ufdd2"  # how the control tokens are shown
TAG = "\ufdd0"
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
    "an unknown tool": ('<tool_call>\n{"name": "h"}\n</tool_call>',
                        '<tool_call>\n{"name": "h"}\n</tool_call>', []),
    "no JSON": ("<tool_call>hello</tool_call>", "<tool_call>hello</tool_call>", []),
    "broken JSON": ('<tool_call>{"name": f}</tool_call>', '<tool_call>{"name": f}</tool_call>', []),
    "cut off": ('<tool_call>{"name": "f", "argu', '<tool_call>{"name": "f", "argu', []),
    "the marker cut off": ("I use <tool_c", "I use <tool_c", []),
    "almost a marker": ("<tool_<tool_ call>", "<tool_<tool_ call>", []),
    "not closed": ('<tool_call>{"name": "f"}', "", [("f", "{}")]),
    "arguments no object": ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
                            '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', []),
    "a number that is none": ('<tool_call>{"name": "f", "arguments": {"a": NaN}}',
                              '<tool_call>{"name": "f", "arguments": {"a": NaN}}', []),
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

ALL = [
    pytest.param(kind, case, id=f"{kind.__name__}: {name}")
    for kind, cases in ((HermesParser, HERMES), (MistralParser, MISTRAL), (LlamaParser, LLAMA))
    for name, case in cases.items()
]


def parse(
    kind: type[ToolCallParser], pieces: list[str], *, parallel: bool = True, key: bytes = b"k"
) -> tuple[str, list[tuple[str, str]], list[str]]:
    """Text, (name, arguments) and ids of an answer that comes in these pieces."""
    parser = kind(CallReader(["f", "g"], key), parallel=parallel)
    text, calls, seen, taken = "", [], 0, 0
    for number, piece in enumerate([*pieces, ""]):
        parsed = parser.push(piece, last=number == len(pieces))
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
def test_an_answer_in_single_characters(kind: type[ToolCallParser], case: Case) -> None:
    written, text, calls = case
    assert parse(kind, list(written))[:2] == (text, calls)


@given(st.data())
def test_how_an_answer_is_cut_changes_nothing(data: st.DataObject) -> None:
    kind, case = data.draw(st.sampled_from([tuple(param.values) for param in ALL]))
    assert isinstance(kind, type)
    written, text, calls = case
    cuts = sorted(data.draw(st.sets(st.integers(0, len(written)))))
    pieces = [written[a:b] for a, b in zip([0, *cuts], [*cuts, len(written)], strict=True)]
    assert parse(kind, pieces)[:2] == (text, calls)


@given(
    st.sampled_from([HermesParser, MistralParser, LlamaParser]),
    st.lists(
        st.sampled_from(
            ["<tool_call>", "</tool_call>", '{"name": "f"', ', "arguments": {}', "}", "]", "[", "{",
             '"', "\\", " ", "\n", ";", ",", "f", "x", CALLS, CALL_ID, ARGS]
        )
    ),
)  # fmt: skip
def test_any_text_ends_and_adds_up(kind: type[ToolCallParser], pieces: list[str]) -> None:
    text, calls, _ = parse(kind, pieces)
    whole = parse(kind, ["".join(pieces)])
    assert whole[:2] == (text, calls)
    assert not re.search("[\ufdd0-\ufdd2]", text) or kind is not MistralParser


def test_text_streams_and_only_markup_waits() -> None:
    parser = HermesParser(CallReader(["f"], b""), parallel=True)
    assert parser.push("Hello <").text == "Hello"
    assert parser.push("b> <tool").text == " <b>"
    assert parser.held == len(" <tool")
    assert parser.push("s>").text == " <tools>"


def test_a_call_comes_as_soon_as_it_is_whole() -> None:
    parser = MistralParser(CallReader(["f", "g"], b""), parallel=True)
    assert not parser.push(CALLS + '[{"name": "f", "arguments": {}').calls
    assert [call.name for call in parser.push("}, {").calls] == ["f"]
    assert [call.name for call in parser.push('"name": "g"}').calls] == ["g"]


def test_without_parallel_calls_the_first_ends_the_answer() -> None:
    two = '<tool_call>{"name": "f"}</tool_call><tool_call>{"name": "g"}</tool_call>'
    assert parse(HermesParser, list(two), parallel=False)[1] == [("f", "{}")]


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
