"""A tool-call format as the texts that stand around a call's name and its arguments.

Most formats differ in these texts only. They are read off what a chat template renders for a
call (probe.py), or written down here for models whose template renders none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

from maestrale.prompt.tools.lark import WILD

Style = Literal["json", "tags", "python", "bare"]
_UNIT = re.compile(r"\0|<[^<>\s\0]*>?|\[/?[A-Z_]+\]|\s+|[^<\s\[\0]+|\[")


class Layout(Struct, frozen=True, kw_only=True):
    """What stands where. `WILD` in a text is a number or an id.

    `opener` comes before the first call, `between` two calls, `closer` after the last. A call is

    - json: `before`, the name, `middle`, a JSON object, `after`
    - tags: the name, `middle`, and each argument as `key_open`, the key, `key_close`, the value,
      `value_close`; `key_close_json` where the value is no text
    - python: the name, and its arguments as Python writes them
    - bare: the name, and an object with bare keys and its texts within `quote`
    """

    name: str
    style: Style
    opener: str
    between: str
    closer: str
    before: str = ""
    middle: str = ""
    after: str = ""
    key_open: str = ""
    key_close: str = ""
    key_close_json: str = ""
    value_close: str = ""
    quote: str = ""

    @property
    def in_json(self) -> bool:
        """The name stands within the JSON object."""
        return "{" in self.before

    def texts(self) -> Iterator[str]:
        """All texts that may hold markers."""
        yield from (self.opener, self.between, self.closer, self.middle, self.key_open)
        yield from (self.key_close, self.key_close_json, self.value_close, self.quote)

    def same_as(self, other: Layout) -> bool:
        """Whether both are one format, blanks and closing texts aside."""
        fields = ("style", "in_json", "opener", "middle", "key_open", "key_close")
        mine, others = (
            ["".join(str(getattr(each, field)).split()) for field in fields]
            for each in (self, other)
        )
        return mine == others


def units(text: str) -> list[str]:
    """A text's markers and words, without the blanks between them."""
    return [unit for unit in _UNIT.findall(text) if not unit.isspace()]


def all_units(text: str) -> list[str]:
    """A text's markers, words and blanks."""
    return _UNIT.findall(text)


def is_marker(unit: str) -> bool:
    """Whether a unit is markup that no ordinary text has."""
    return len(unit) > 2 and unit[0] in "<[" and any(map(str.isalpha, unit))


def _tags(name: str, opener: str, between: str, closer: str, *argument: str) -> Layout:
    middle, key_open, key_close, value_close = argument
    return Layout(
        name=name, style="tags", opener=opener, between=between, closer=closer, middle=middle,
        key_open=key_open, key_close=key_close, key_close_json=key_close, value_close=value_close,
    )  # fmt: skip


def _object(name: str, opener: str, between: str, closer: str, key: str = "arguments") -> Layout:
    return Layout(
        name=name, style="json", opener=opener, between=between, closer=closer,
        before='{"name": "', middle=f'", "{key}": ', after="}",
    )  # fmt: skip


HERMES = _object("hermes", "<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>")
GENERIC = _object("generic", HERMES.opener, HERMES.between, HERMES.closer)
_CODER = _tags(
    "qwen3_coder", "<tool_call>\n<function=", "</function>\n</tool_call>\n<tool_call>\n<function=",
    "</function>\n</tool_call>", ">\n", "<parameter=", ">\n", "\n</parameter>\n",
)  # fmt: skip
_GLM = _tags(
    "glm45", "<tool_call>", "</tool_call>\n<tool_call>", "</tool_call>",
    "\n", "<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n",
)  # fmt: skip
_BEGIN, _END, _CALL, _CALLED, _SEP = (  # written with full-width bars
    f"<\uff5ctool\u2581{word}\uff5c>"
    for word in (
        "calls\u2581begin", "calls\u2581end", "call\u2581begin", "call\u2581end", "sep"
    )
)  # fmt: skip
_DEEPSEEK = Layout(
    name="deepseek_v31", style="json", opener=_BEGIN + _CALL, between=_CALLED + _CALL,
    closer=_CALLED + _END, middle=_SEP,
)  # fmt: skip
_DEEPSEEK_V3 = Layout(
    name="deepseek_v3", style="json", opener=f"{_BEGIN}{_CALL}function{_SEP}",
    between=f"\n```{_CALLED}\n{_CALL}function{_SEP}", closer=f"\n```{_CALLED}{_END}",
    middle="\n```json\n",
)  # fmt: skip
_KIMI = Layout(
    name="kimi_k2", style="json",
    opener="<|tool_calls_section_begin|><|tool_call_begin|>functions.",
    between="<|tool_call_end|><|tool_call_begin|>functions.",
    closer="<|tool_call_end|><|tool_calls_section_end|>",
    middle=f":{WILD}<|tool_call_argument_begin|>",
)  # fmt: skip
_GRANITE = _object("granite", "<|tool_call|>[", ", ", "]")
_PYTHONIC = Layout(name="pythonic", style="python", opener="[", between=", ", closer="]")
_LFM2 = Layout(
    name="lfm2", style="python", opener="<|tool_call_start|>[", between=", ",
    closer="]<|tool_call_end|>",
)  # fmt: skip
_GEMMA4 = Layout(
    name="gemma4", style="bare", opener="<|tool_call>call:",
    between="<tool_call|><|tool_call>call:", closer="<tool_call|>", quote='<|"|>',
)  # fmt: skip
_FUNCTION_GEMMA = Layout(
    name="functiongemma", style="bare", opener="<start_function_call>call:",
    between="<end_function_call><start_function_call>call:", closer="<end_function_call>",
    quote="<escape>",
)  # fmt: skip

LAYOUTS = {
    layout.name: layout
    for layout in (
        HERMES, _CODER, _GLM, _DEEPSEEK_V3, _DEEPSEEK, _KIMI, _GRANITE, _PYTHONIC, _LFM2,
        _GEMMA4, _FUNCTION_GEMMA,
    )
}  # fmt: skip
