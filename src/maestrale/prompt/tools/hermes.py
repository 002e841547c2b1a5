"""The format of Hermes, Qwen and many others.

`<tool_call>{"name": ..., "arguments": ...}</tool_call>`, each on lines of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.tools.base import (
    CallReader,
    ToolCallParser,
    call_rules,
    json_call,
    lark_text,
)

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesFormat:
    """JSON between two markers."""

    name = "hermes"

    def __init__(self, vocabulary: Vocabulary) -> None:
        ids = vocabulary.control_ids
        # Plain text in most vocabularies, or a token that spells itself; control tokens in some.
        self.shown: Mapping[int, str] = {ids[mark]: mark for mark in (OPEN, CLOSE) if mark in ids}
        self._open_id = ids.get(OPEN)
        self._open = _terminal(vocabulary, OPEN)
        self._close = _terminal(vocabulary, CLOSE)

    def parser(self, reader: CallReader, *, parallel: bool) -> ToolCallParser:
        return HermesParser(reader, parallel=parallel)

    def rules(self, names: Sequence[str], most: int, *, text: bool) -> str:
        """See `ToolFormat.rules`."""
        more = f'("\\n" {self._open} rest){{0,{most - 1}}}' if most > 1 else ""
        lines = [
            f"calls: {self._open} rest {more}",
            f'rest: "\\n" call "\\n" {self._close}',
            call_rules(names, json_call("arguments")),
        ]
        if text and self._open_id is not None:
            lines += ["free: TEXT calls?", "TEXT: /(.|\\n)*/"]
        elif text:
            lines += [
                f"free: TEXT | until rest {more}",
                f"TEXT: /(.|\\n)*/ & ~/(.|\\n)*{OPEN}(.|\\n)*/",
                f"until[suffix={lark_text(OPEN)}]: /(.|\\n)*/",
            ]
        return "\n".join(lines)


def _terminal(vocabulary: Vocabulary, mark: str) -> str:
    token = vocabulary.control_ids.get(mark)
    return lark_text(mark) if token is None else f"<[{token}]>"


class HermesParser(ToolCallParser):
    """Never lets out what may be the beginning of a marker."""

    def _in_text(self, last: bool) -> bool:
        before, marker, after = self._buffer.partition(OPEN)
        if marker:
            self._give(before)
            self._buffer = marker + after
            self._open(len(marker))
            self._step = self._after_marker
            return True
        size = len(before) - (0 if last else _overlap(before, OPEN))
        self._give(before[:size])
        self._buffer = before[size:]
        return False

    def _after_marker(self, last: bool) -> bool:
        self._open_blanks()
        if not self._buffer:
            return self._wait(last)
        return self._begin_object(self._after_call) if self._buffer[0] == "{" else self._no_call()

    def _after_call(self, last: bool) -> bool:
        """The closing marker, which some models leave out."""
        self._buffer = self._buffer.lstrip()
        if self._buffer.startswith(CLOSE):
            self._buffer = self._buffer[len(CLOSE) :]
        elif not last and CLOSE.startswith(self._buffer):
            return False
        self._step = self._between
        return True

    def _between(self, last: bool) -> bool:
        self._buffer = self._buffer.lstrip()
        self._step = self._in_text if self._buffer else self._between
        return bool(self._buffer)


def _overlap(text: str, marker: str) -> int:
    """How much of `text`'s end may be the beginning of `marker`."""
    for size in range(min(len(text), len(marker) - 1), 0, -1):
        if marker.startswith(text[-size:]):
            return size
    return 0
