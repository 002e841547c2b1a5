"""Mistral's formats: `[TOOL_CALLS][{"name": ..., "arguments": ...}]` and, from tokenizer v11 on,
`[TOOL_CALLS]name[ARGS]{...}`. What is in brackets are control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.messages import ToolCall
from maestrale.prompt.tools.base import CallSchema, Rules
from maestrale.prompt.tools.lark import alternatives, json_arguments, object_calls
from maestrale.prompt.tools.reading import CallReader, ToolCallParser

CALLS, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
# Noncharacters stand for the control tokens, so that text that only looks like them stays text.
_SHOWN = {CALLS: "\ufdd0", CALL_ID: "\ufdd1", ARGS: "\ufdd2"}
_MARKS = re.compile("[\ufdd0-\ufdd2]")
_NAME = re.compile(r"\s*[a-zA-Z0-9_-]{0,256}\s*")


class MistralFormat:
    """`named`: a call is a name and its arguments, not JSON in a list."""

    name = "mistral"

    def __init__(self, vocabulary: Vocabulary, *, named: bool) -> None:
        ids = vocabulary.control_ids
        self.shown: Mapping[int, str] = {
            ids[token]: mark for token, mark in _SHOWN.items() if token in ids
        }
        self._named = named
        self._calls = f"<[{ids[CALLS]}]>"
        self._args = f"<[{ids[ARGS]}]>" if named else ""

    def parser(self, reader: CallReader, *, parallel: bool) -> ToolCallParser:
        return MistralParser(reader, parallel=parallel)

    def rules(self, tools: Sequence[CallSchema], most: int, *, text: bool) -> Rules:
        """See `ToolFormat.rules`."""
        if self._named:
            lines = [f"calls: call{{1,{most}}}", alternatives(tools)]
            lines += [
                f'call_{index}: {self._calls} "{tool.name}" {self._args} args_{index}'
                for index, tool in enumerate(tools)
            ]
        else:
            more = f'(", " call){{0,{most - 1}}}' if most > 1 else ""
            # SentencePiece writes a space after a control token.
            lines = [
                f'calls: {self._calls} " "? "[" call {more} "]"',
                object_calls(tools, "arguments"),
            ]
        if text:
            lines += ["free: TEXT calls?", "TEXT: /(.|\\n)*/"]
        return Rules("\n".join(lines), json_arguments(tools))

    def write(self, calls: Sequence[ToolCall]) -> str:
        """See `ToolFormat.write`."""
        if self._named:
            return "".join(f"{CALLS}{call.name}{ARGS}{call.arguments}" for call in calls)
        objects = (f'{{"name": "{call.name}", "arguments": {call.arguments}}}' for call in calls)
        return f"{CALLS}[{', '.join(objects)}]"


class MistralParser(ToolCallParser):
    """Reads both formats, whichever the model writes."""

    _name: str | None = None  # of the call whose arguments come

    def _in_text(self, last: bool) -> bool:
        before, marker, after = self._buffer.partition(_SHOWN[CALLS])
        self._give(before)
        self._buffer = marker + after
        if marker:
            self._mark(len(marker))
            self._step = self._after_marker
        return bool(marker)

    def _after_marker(self, last: bool) -> bool:
        self._open_blanks()
        if not self._buffer:
            return self._wait(last)
        self._name = None
        if self._buffer[0] == "{":
            return self._begin_object(self._after_calls)
        if self._buffer[0] == "[":
            self._open(1)
            self._step = self._in_list
        else:
            self._step = self._in_name
        return True

    def _in_list(self, last: bool) -> bool:
        rest = self._buffer.lstrip(" \t\r\n,")
        self._open(len(self._buffer) - len(rest))
        if not rest:
            return self._wait(last)
        if rest[0] == "{":
            return self._begin_object(self._in_list)
        if rest[0] != "]":
            return self._no_call()
        self._open(1)
        self._opening = ""
        self._step = self._after_calls
        return True

    def _in_name(self, last: bool) -> bool:
        name, _, arguments = self._buffer.partition(_SHOWN[ARGS])
        name, _, call_id = name.partition(_SHOWN[CALL_ID])
        if not _NAME.fullmatch(name) or not _NAME.fullmatch(call_id):
            return self._no_call()
        if not arguments.strip():
            return self._wait(last)
        if arguments.lstrip()[0] != "{":
            return self._no_call()
        self._name = name.strip()
        self._open(self._buffer.index("{"))
        return self._begin_object(self._after_calls)

    def _so_far(self) -> tuple[str, str]:
        if self._step == self._in_object and self._name is not None:
            return self._name, self._buffer
        if self._step == self._in_name:
            written = re.split(_MARKS, self._opening + self._buffer)[0]
            return written.strip(), ""
        return super()._so_far()

    def _read(self, text: str) -> ToolCall | None:
        if self._name is None:
            return self._reader.read(text)
        return self._reader.make(self._name, text)

    def _after_calls(self, last: bool) -> bool:
        self._buffer = self._buffer.lstrip()
        self._step = self._in_text
        return bool(self._buffer)

    def _give(self, text: str) -> None:
        super()._give(_MARKS.sub("", text))
