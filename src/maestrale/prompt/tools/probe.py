"""Reads a model's tool-call format off what its chat template renders for a call.

The words in a template's source say little: `<tool_call>` stands around JSON, XML or pairs of
tags. So a conversation with a call of a made-up tool is rendered, and the texts around its name
and arguments are the format. It counts only if calls so written are read back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.tools.lark import WILD
from maestrale.prompt.tools.layout import LAYOUTS, Layout, all_units, is_marker, units
from maestrale.prompt.tools.layout_format import LayoutFormat
from maestrale.prompt.tools.reading import CallReader

Render = Callable[[list[dict[str, Any]], list[dict[str, Any]] | None], str | None]
"""Messages and tools → the prompt, without the beginning of an answer; None if it's refused."""

NAME, TEXT_KEY, LIST_KEY, TEXT, CALL_ID = (
    "probe_tool", "probe_a_text", "probe_b_list", "probed value", "probe1234"
)  # fmt: skip
LIST = [41, 42]
ARGUMENTS: dict[str, Any] = {TEXT_KEY: TEXT, LIST_KEY: LIST}
QUESTION, ANSWER, RESULT = "Probing question?", "Probing answer.", "Probing result."
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "A tool.",
        "parameters": {
            "type": "object",
            "properties": {
                TEXT_KEY: {"type": "string", "description": "A text."},
                LIST_KEY: {
                    "type": "array", "items": {"type": "integer"}, "description": "A list.",
                },
            },
            "required": [TEXT_KEY],
        },
    },
}  # fmt: skip
_THOUGHT = re.compile(
    r"\s*(?:<think[^<>]*>\s*</think[^<>]*>|</?think[^<>]*>|<\|START_THINKING\|><\|END_THINKING\|>"
    r"|None\b|null\b)"
)


class Probed(Struct, frozen=True, kw_only=True):
    """What a template does with tools and calls.

    `shows_tools`, `shows_calls`: they are in the prompt. `text_arguments`: a call's arguments
    are wanted as JSON text, not as an object. `takes_null`: a turn with calls may have the
    content null; `needs_null`: it must, or its calls are left out. `takes_null_alone`: so may
    a turn without calls. `shows_results`: so is what a tool gave.
    `one` and `two`: what stands after the question where one call was
    made, or two; `answered`: where the answer was text. `wants_parts`: it shows a turn's text in
    a list of parts only, as models that take images have it.
    """

    shows_tools: bool = False
    shows_calls: bool = False
    shows_results: bool = False
    text_arguments: bool = False
    takes_null: bool = False
    needs_null: bool = False
    takes_null_alone: bool = False
    wants_parts: bool = False
    instruction: str = ""
    one: str | None = None
    two: str | None = None
    answered: str | None = None


def probe(render: Render) -> Probed:
    """Try a template out."""
    question = {"role": "user", "content": QUESTION}
    plain, told = render([question], None) or "", render([question], [TOOL]) or ""
    if QUESTION not in plain and QUESTION in (render([in_parts(question)], None) or ""):
        found = probe(lambda turns, tools: render([in_parts(turn) for turn in turns], tools))
        return replace(found, wants_parts=True)
    shows = told.lower().count(NAME) > plain.lower().count(NAME)
    instruction = _instruction(plain, told) if told != plain else ""
    tools = [TOOL] if shows else None

    def after(turn: dict[str, Any] | None) -> str | None:
        rendered = None if turn is None else render([question, turn], tools)
        return rendered.rpartition(QUESTION)[2] if rendered and QUESTION in rendered else None

    def shows_result(call: dict[str, Any]) -> bool:
        result = {"role": "tool", "content": RESULT, "name": NAME, "tool_call_id": CALL_ID}
        rendered = render([question, call, result], tools)
        return rendered is not None and RESULT in rendered

    def alone(content: str | None) -> str | None:
        return after({"role": "assistant", "content": content})

    for text_arguments in (False, True):
        empty, null = (
            _with_call(after(_turn(content, 1, text_arguments))) for content in ("", None)
        )
        if not empty and not null:
            continue
        takes = null is not None and not (empty and _more_nulls(null, empty))
        content = None if takes else ""
        return Probed(
            shows_tools=shows,
            shows_calls=True,
            text_arguments=text_arguments,
            takes_null=takes,
            shows_results=shows_result(_turn(content, 1, text_arguments)),
            needs_null=empty is None,
            takes_null_alone=_takes(alone(None), alone("")),
            instruction=instruction,
            one=null if takes and null is not None else empty,
            two=_with_call(after(_turn(content, 2, text_arguments))),
            answered=alone(ANSWER),
        )
    return Probed(
        shows_tools=shows,
        shows_results=shows_result(_turn("", 1, False)),
        takes_null_alone=_takes(alone(None), alone("")),
        instruction=instruction,
        answered=alone(ANSWER),
    )


def in_parts(turn: dict[str, Any]) -> dict[str, Any]:
    """The turn with its text as a list of one part, where it isn't a list already."""
    content = turn["content"]
    if not isinstance(content, str):
        return turn
    return {**turn, "content": [{"type": "text", "text": content}] if content else []}


def _turn(content: str | None, calls: int, text_arguments: bool) -> dict[str, Any]:
    arguments: Any = json.dumps(ARGUMENTS) if text_arguments else ARGUMENTS
    function = {"name": NAME, "arguments": arguments}
    call = {"id": CALL_ID, "type": "function", "function": function}
    return {"role": "assistant", "content": content, "tool_calls": [call] * calls}


def _with_call(text: str | None) -> str | None:
    return text if text and NAME in text and TEXT in text else None


def _more_nulls(null: str, empty: str) -> bool:
    return any(null.count(word) > empty.count(word) for word in ("None", "null"))


def _takes(null: str | None, empty: str | None) -> bool:
    return null is not None and not (empty is not None and _more_nulls(null, empty))


def _instruction(plain: str, told: str) -> str:
    """What the tools add to the prompt."""
    start = 0
    while start < min(len(plain), len(told)) and plain[start] == told[start]:
        start += 1
    return told[start:]


def layout_of(probed: Probed, vocabulary: Vocabulary) -> Layout | None:
    """The layout of the calls that were rendered; None when none is found that reads them."""
    for layout in _candidates(probed, vocabulary):
        known = next((each for each in LAYOUTS.values() if each.same_as(layout)), None)
        layout = replace(layout, name=known.name if known else "template")
        if _reads(layout, vocabulary, probed.one, 1) and (
            probed.two is None or probed.two.count(NAME) < 2
            or _reads(layout, vocabulary, probed.two, 2)
        ):  # fmt: skip
            return layout
    return None


def bare_json_key(probed: Probed, vocabulary: Vocabulary) -> str | None:
    """The key of the arguments, where a call is a JSON object and nothing else."""
    for layout in _candidates(probed, vocabulary):
        unmarked = not any(map(is_marker, units(layout.opener + layout.closer)))
        key = re.fullmatch(r'", "(parameters|arguments)": ', layout.middle)
        if layout.style == "json" and unmarked and layout.before == '{"name": "' and key:
            return key[1]
    return None


def _candidates(probed: Probed, vocabulary: Vocabulary) -> list[Layout]:
    one = probed.one
    if one is None:
        return []
    found = [_json_layout(one), _tags_layout(one), _python_layout(one), _bare_layout(one)]
    layouts = [pair for pair in found if pair is not None]
    return [_framed(layout, start, end, probed, vocabulary) for layout, start, end in layouts]


Found = tuple[Layout, int, int]
_UNFRAMED: Mapping[str, str] = {"name": "", "opener": "", "between": "", "closer": ""}


def _objects(text: str) -> list[tuple[int, int, Any]]:
    """The JSON objects in a text that hold the probe's arguments, outermost first."""
    found = []
    for place in (match.start() for match in re.finditer(r"\{", text)):
        try:
            value, end = json.JSONDecoder().raw_decode(text, place)
        except ValueError:
            continue
        if TEXT_KEY in text[place:end]:
            found.append((place, end, value))
    return found


def _json_layout(text: str) -> Found | None:
    objects = _objects(text)
    bare = next((each for each in objects if each[2] == ARGUMENTS), None)
    if bare is None:
        return None
    start, end, _ = bare
    outer = next((each for each in objects if NAME in text[each[0] : each[0] + 80]), None)
    if outer is not None and outer[0] < start and NAME in text[outer[0] : start]:
        name = text.rindex(NAME, outer[0], start)
        return Layout(
            style="json", before=text[outer[0] : name], middle=text[name + len(NAME) : start],
            after=text[end : outer[1]], **_UNFRAMED,
        ), outer[0], outer[1]  # fmt: skip
    name = text.rfind(NAME, 0, start)
    if name < 0:
        return None
    middle = text[name + len(NAME) : start]
    return Layout(style="json", middle=middle, **_UNFRAMED), name, end


def _tags_layout(text: str) -> Found | None:
    places = [text.find(part) for part in (NAME, TEXT_KEY, TEXT, LIST_KEY, json.dumps(LIST))]
    name = text.rfind(NAME, 0, max(places[1], 0))
    places[0] = name
    if -1 in places or places != sorted(places):
        return None
    lengths = [len(part) for part in (NAME, TEXT_KEY, TEXT, LIST_KEY, json.dumps(LIST))]
    ends = [place + length for place, length in zip(places, lengths, strict=True)]
    first, close, gap, close_json = (text[ends[n] : places[n + 1]] for n in range(4))
    rest = text[ends[4] :]
    key_open = _common_end(first, gap)
    value_close = _common_start(gap.removesuffix(key_open), rest)
    if not key_open.strip() or not value_close.strip():
        return None
    return Layout(
        style="tags", middle=first.removesuffix(key_open), key_open=key_open, key_close=close,
        key_close_json=close_json, value_close=value_close, **_UNFRAMED,
    ), name, ends[4] + len(value_close)  # fmt: skip


def _python_layout(text: str) -> Found | None:
    call = re.search(rf"{NAME}\({TEXT_KEY}=(['\"]){TEXT}\1, ?{LIST_KEY}=\[41, ?42\]\)", text)
    return (Layout(style="python", **_UNFRAMED), call.start(), call.end()) if call else None


def _bare_layout(text: str) -> Found | None:
    quoted = rf"{TEXT_KEY}:(?P<quote>[^\s\w]\S*?){TEXT}(?P=quote)"
    listed = rf"{LIST_KEY}:\[41, ?42\]"
    call = re.search(rf"{NAME}\{{(?:{quoted},{listed})\}}", text) or re.search(
        rf"{NAME}\{{(?:{listed},{quoted})\}}", text
    )
    if call is None:
        return None
    return Layout(style="bare", quote=call["quote"], **_UNFRAMED), call.start(), call.end()


def _framed(layout: Layout, start: int, end: int, probed: Probed, vocabulary: Vocabulary) -> Layout:
    """The layout with what stands before, between and after calls."""
    one = probed.one or ""
    core = one[start:end]
    answered = probed.answered or ""
    head, found, tail = answered.partition(ANSWER)
    before = one[:start]
    opener = before.removeprefix(_common_start(before, head) if found else "")
    while thought := _THOUGHT.match(opener):
        opener = opener[thought.end() :]
    opener = opener.lstrip()
    closer = one[end:]
    if found and tail.strip():
        closer = closer.removesuffix(_common_end(closer, tail))
    closer = _until_end(closer, vocabulary)
    between = None
    if probed.two is not None:
        between, core_again = _between(probed.two, core, before)
        if core_again != core:  # a call's number
            layout = replace(layout, middle=_wild(layout.middle), before=_wild(layout.before))
    if between is None:
        between = closer + ("\n" if closer else "") + opener
    return replace(
        layout,
        opener=opener.replace(CALL_ID, WILD),
        between=between.replace(CALL_ID, WILD),
        closer=closer.rstrip(),
        middle=layout.middle.replace(CALL_ID, WILD),
        before=layout.before.replace(CALL_ID, WILD),
    )


def _between(two: str, core: str, before: str) -> tuple[str | None, str]:
    """What stands between two calls, and the second of them."""
    if not two.startswith(before + core):
        return None, core
    rest = two[len(before) + len(core) :]
    pattern = re.sub(r"\d+", r"\\d+", re.escape(core))
    # The probe's own numbers are the same in both calls; only a call's number may differ.
    again = re.search(pattern, rest)
    return (rest[: again.start()], again[0]) if again else (None, core)


def _wild(text: str) -> str:
    return re.sub(r"\d+", WILD, text)


def _until_end(text: str, vocabulary: Vocabulary) -> str:
    """The text before what ends a turn, or begins another."""
    ends = {name for name, token in vocabulary.control_ids.items()
            if token in vocabulary.eos_token_ids}  # fmt: skip
    kept = ""
    for unit in all_units(text):
        if unit in ends or "response" in unit or "im_end" in unit or "eot" in unit:
            break
        kept += unit
    return kept


def _common_start(first: str, second: str) -> str:
    """The whole units that both texts begin with."""
    same = ""
    for one, two in zip(all_units(first), all_units(second), strict=False):
        if one != two:
            break
        same += one
    return same


def _common_end(first: str, second: str) -> str:
    """The whole units that both texts end with."""
    same = ""
    pairs = zip(reversed(all_units(first)), reversed(all_units(second)), strict=False)
    for one, two in pairs:
        if one != two:
            break
        same = one + same
    return same


def _reads(layout: Layout, vocabulary: Vocabulary, text: str | None, calls: int) -> bool:
    """Whether a parser of this layout finds the probe's calls in what was rendered."""
    if text is None or any(NAME in each for each in layout.texts()):
        return False
    if not any(map(is_marker, units(layout.opener))) and layout.style != "python":
        return False
    schemas = {NAME: json.dumps(TOOL["function"]["parameters"])}
    reader = CallReader([NAME], b"", schemas=schemas)
    form = LayoutFormat(layout, vocabulary)
    written = text[text.find(units(layout.opener)[0].replace(WILD, "")) :]
    parsed = form.parser(reader, parallel=True).push(written, last=True)
    return len(parsed.calls) == calls and all(
        json.loads(call.arguments) == ARGUMENTS for call in parsed.calls
    )
