"""Llama 3's format: an answer that is `{"name": ..., "parameters": ...}`, or several with `; `.

The object may follow the control token `<|python_tag|>`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.messages import ToolCall
from maestrale.prompt.tools.base import CallSchema, Rules
from maestrale.prompt.tools.lark import json_arguments, object_calls
from maestrale.prompt.tools.reading import CallReader, ToolCallParser

PYTHON_TAG = "<|python_tag|>"
_SHOWN = "\ufdd0"
_KEYS = ('"name"', '"type"', '"function"', '"parameters"', '"arguments"')


class LlamaFormat:
    """JSON is the answer."""

    name = "llama3_json"

    def __init__(self, vocabulary: Vocabulary, key: str = "parameters") -> None:
        """`key` is that of the arguments."""
        self._key = key
        ids = vocabulary.control_ids
        self.shown: Mapping[int, str] = {ids[PYTHON_TAG]: _SHOWN} if PYTHON_TAG in ids else {}

    def parser(self, reader: CallReader, *, parallel: bool) -> ToolCallParser:
        return LlamaParser(reader, parallel=parallel)

    def rules(self, tools: Sequence[CallSchema], most: int, *, text: bool) -> Rules:
        """See `ToolFormat.rules`."""
        more = f'("; " call){{0,{most - 1}}}' if most > 1 else ""
        tag = "".join(f"<[{token}]>? " for token in self.shown)
        lines = [f"calls: {tag}call {more}", object_calls(tools, self._key)]
        if text:
            lines += ["free: TEXT? | calls", "TEXT: /[^{](.|\\n)*/"]
        return Rules("\n".join(lines), json_arguments(tools))

    def write(self, calls: Sequence[ToolCall]) -> str:
        """See `ToolFormat.write`."""
        return "; ".join(
            f'{{"name": "{call.name}", "{self._key}": {call.arguments}}}' for call in calls
        )


class LlamaParser(ToolCallParser):
    """Only what an answer begins with, or what follows the control token, can be a call."""

    def _begin(self, last: bool) -> bool:
        self._open_blanks()
        if not self._buffer:
            return self._wait(last)
        if self._buffer[0] == "{":
            self._step = self._in_head
        elif self._buffer[0] == _SHOWN:
            self._step = self._in_text
        else:
            return self._no_call()
        return True

    def _in_text(self, last: bool) -> bool:
        before, tag, after = self._buffer.partition(_SHOWN)
        self._give(before)
        self._buffer = tag + after
        if tag:
            self._mark(len(tag))
            self._step = self._begin
        return bool(tag)

    def _in_head(self, last: bool) -> bool:
        """An object whose first key is none of a call's is an answer in JSON: it streams."""
        key = self._buffer[1:].lstrip()
        if any(key.startswith(known) for known in _KEYS):
            return self._begin_object(self._after_call)
        if any(known.startswith(key) for known in _KEYS):
            return self._wait(last)
        return self._no_call()

    def _after_call(self, last: bool) -> bool:
        rest = re.sub(r"^[\s;,]+", "", self._buffer)
        self._open(len(self._buffer) - len(rest))
        if not rest:
            return False
        if rest[0] == "{":
            self._step = self._in_head
            return True
        return self._no_call()

    def _give(self, text: str) -> None:
        super()._give(text.replace(_SHOWN, ""))
