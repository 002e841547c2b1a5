"""The tool-call format that a layout describes: it reads calls, rules them and writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import asdict, replace

from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.messages import ToolCall
from maestrale.prompt.tools import arguments
from maestrale.prompt.tools.base import CallSchema, Rules
from maestrale.prompt.tools.lark import WILD
from maestrale.prompt.tools.layout import Layout
from maestrale.prompt.tools.layout_grammar import LayoutGrammar
from maestrale.prompt.tools.layout_parser import LayoutParser
from maestrale.prompt.tools.reading import CallReader, ToolCallParser


class LayoutFormat:
    """The format that a layout describes."""

    def __init__(self, layout: Layout, vocabulary: Vocabulary) -> None:
        self.layout = layout
        texts = {k: v.replace(WILD, "0") for k, v in asdict(layout).items() if WILD in v}
        self._written = replace(layout, **texts)
        self.name = layout.name
        used = "\n".join(layout.texts())
        self.controls = {
            name: token
            for name, token in vocabulary.control_ids.items()
            if name in used and token not in vocabulary.eos_token_ids
        }
        self.shown: Mapping[int, str] = {token: name for name, token in self.controls.items()}

    def parser(self, reader: CallReader, *, parallel: bool) -> ToolCallParser:
        """See `ToolFormat.parser`."""
        return LayoutParser(self.layout, reader, parallel=parallel)

    def rules(self, tools: Sequence[CallSchema], most: int, *, text: bool) -> Rules:
        """See `ToolFormat.rules`."""
        return LayoutGrammar(self.layout, self.controls).rules(tools, most, text=text)

    def write(self, calls: Sequence[ToolCall]) -> str:
        """See `ToolFormat.write`."""
        layout = self._written
        written = layout.between.join(self._core(call) for call in calls)
        return f"{layout.opener}{written}{layout.closer}"

    def _core(self, call: ToolCall) -> str:
        layout = self._written
        if layout.style == "json":
            return f"{layout.before}{call.name}{layout.middle}{call.arguments}{layout.after}"
        try:
            given = json.loads(call.arguments)
        except (ValueError, RecursionError):
            given = {}
        values: dict[str, Any] = given if isinstance(given, dict) else {}
        if layout.style == "python":
            inside = ", ".join(f"{key}={arguments.python_text(values[key])}" for key in values)
            return f"{call.name}({inside})"
        if layout.style == "bare":
            return call.name + arguments.bare_text(values, layout.quote)
        return call.name + layout.middle + "".join(self._argument(*item) for item in values.items())

    def _argument(self, key: str, value: Any) -> str:
        layout = self._written
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        close = layout.key_close if isinstance(value, str) else layout.key_close_json
        return f"{layout.key_open}{key}{close}{text}{layout.value_close}"
