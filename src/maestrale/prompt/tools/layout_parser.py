"""Reads calls by a layout, with any blanks between its markers."""

from __future__ import annotations

import json
import re
from typing import Any

from maestrale.prompt.tools.arguments import bare_object, may_be_text, python_arguments, value_of
from maestrale.prompt.tools.lark import WILD
from maestrale.prompt.tools.layout import Layout, is_marker, units
from maestrale.prompt.tools.reading import CallReader, ObjectEnd, ToolCallParser

PARTIAL = -1
_NAME = re.compile(r"[a-zA-Z0-9_-]*")
_WORD = re.compile(r"[a-zA-Z0-9_-]+")
_BEGINS_CALL = re.compile(r"\s*[a-zA-Z_][a-zA-Z0-9_-]*\(")
_MAY_BEGIN_CALL = re.compile(r"\s*([a-zA-Z_][a-zA-Z0-9_-]*)?")


def match(wanted: list[str], text: str, at: int) -> int | None:
    """Where these units end if `text` has them at `at`; PARTIAL if it ends before they do."""
    for place, unit in enumerate(wanted):
        while place and at < len(text) and text[at].isspace():
            at += 1
        if at == len(text):
            return PARTIAL
        if unit == WILD:
            word = _WORD.match(text, at)
            if word is None:
                return None
            at = word.end()
        elif text.startswith(unit, at):
            at += len(unit)
        elif unit.startswith(text[at:]):
            return PARTIAL
        else:
            return None
    return at


class LayoutParser(ToolCallParser):
    """Never lets out what may be the beginning of a marker."""

    def __init__(self, layout: Layout, reader: CallReader, *, parallel: bool) -> None:
        super().__init__(reader, parallel=parallel)
        self._layout = layout
        opener = units(layout.opener)
        starts = [place for place, unit in enumerate(opener) if is_marker(unit)]
        # Models leave out the outer of two markers, so each may begin a call.
        self._openers = [opener[place:] for place in starts]
        self._bare = not starts
        self._between = units(layout.between)
        self._closers = [[unit] for unit in {*self._between, *units(layout.closer)}]
        self._strays = [
            [unit]
            for unit in dict.fromkeys(unit for text in layout.texts() for unit in units(text))
            if is_marker(unit)
        ]
        firsts = {wanted[0][0] for wanted in self._openers + self._strays}
        self._starts = re.compile(
            "[" + re.escape("".join(sorted(firsts))) + "]" if firsts else "(?!)"
        )
        self._name = ""
        self._schema: dict[str, Any] = {}
        self._values: dict[str, Any] = {}

    def _begin(self, last: bool) -> bool:
        """A format without markers has calls at the beginning of an answer only."""
        if not self._bare:
            return super()._begin(last)
        self._open_blanks()
        opener = units(self._layout.opener)
        end = match(opener, self._buffer, 0) if self._buffer else PARTIAL
        if end is None:
            return self._no_call()
        if end == PARTIAL:
            return self._wait(last)
        rest = self._buffer[end:]
        if _BEGINS_CALL.match(rest):
            self._open(end)
            self._step = self._core
            return True
        whole = _MAY_BEGIN_CALL.fullmatch(rest)
        return self._wait(last) if whole else self._no_call()

    def _in_text(self, last: bool) -> bool:
        found = self._starts.search(self._buffer)
        while found is not None:
            at = found.start()
            opened = [match(wanted, self._buffer, at) for wanted in self._openers]
            strays = [match(wanted, self._buffer, at) for wanted in self._strays]
            if PARTIAL in opened + strays and not last:
                return self._let_out(at)
            if end := max((end for end in opened if end and end > 0), default=0):
                self._let_out(at)
                self._mark(end - at)
                self._step = self._core
                return True
            # Here the answer ends: what may have become a marker is one, if it says anything.
            telling = self._cut or any(map(str.isalnum, self._buffer[at:]))
            if telling and PARTIAL in opened:
                return self._drop_from(at)
            if end := max((end for end in strays if end and end > 0), default=0):
                self._let_out(at)
                self._buffer = self._buffer[end - at :]
                return True
            if telling and PARTIAL in strays:
                return self._drop_from(at)
            found = self._starts.search(self._buffer, at + 1)
        return self._let_out(len(self._buffer))

    def _drop_from(self, at: int) -> bool:
        self._let_out(at)
        self._buffer = self._blanks = ""
        return False

    def _let_out(self, size: int) -> bool:
        self._give(self._buffer[:size])
        self._buffer = self._buffer[size:]
        return False

    def _core(self, last: bool) -> bool:
        """A call begins here."""
        self._open_blanks()
        if not self._buffer:
            return self._wait(last)
        if self._layout.style == "json" and self._layout.in_json:
            self._name = ""
            is_object = self._buffer[0] == "{"
            return self._begin_object(self._after_call) if is_object else self._no_call()
        self._step = self._in_name
        return True

    def _in_name(self, last: bool) -> bool:
        name = _NAME.match(self._buffer)
        end = name.end() if name else 0
        if name is None or end == len(self._buffer):
            if last and not self._cut and self._layout.style == "tags":
                self._name = self._buffer  # a call without arguments, not closed
                return self._end_of_call({}, end)
            return self._wait(last)
        middle = match(units(self._layout.middle), self._buffer, _past_blanks(self._buffer, end))
        if middle == PARTIAL and not last:
            return False
        if name[0] not in self._reader.names:
            return self._no_call()
        if self._layout.style == "json":
            if middle is None or middle == PARTIAL:
                return self._no_call() if middle is None else self._wait(last)
            end = middle
        elif self._layout.style == "tags":
            end = middle if middle and middle > 0 else end
        self._name = name[0]
        self._open(end)
        self._schema = self._reader.schema(self._name)
        self._values = {}
        self._end, self._after = ObjectEnd('"' if self._quoted else "\"'"), self._after_call
        self._step = self._in_tags if self._layout.style == "tags" else self._at_object
        return True

    @property
    def _quoted(self) -> bool:
        return self._layout.style != "python"

    def _at_object(self, last: bool) -> bool:
        self._open_blanks()
        if not self._buffer:
            return self._wait(last)
        if self._buffer[0] != ("(" if self._layout.style == "python" else "{"):
            return self._no_call()
        self._step = self._in_bare if self._layout.style == "bare" else self._in_object
        return True

    def _in_bare(self, last: bool) -> bool:
        """An object in which what is in quotes may hold braces."""
        parts = self._buffer.split(self._layout.quote)
        depth = at = 0
        for place, part in enumerate(parts):
            for offset, character in enumerate(part if place % 2 == 0 else ""):
                depth += (character in "{[") - (character in "}]")
                if depth == 0:
                    end = at + offset + 1
                    value = bare_object(self._buffer[:end], self._layout.quote)
                    return self._end_of_call(value, end)
            at += len(part) + len(self._layout.quote)
        return self._wait(last)

    def _read(self, text: str) -> Any:
        if self._layout.style == "python":
            value = python_arguments(text)
            return None if value is None else self._reader.make(self._name, _json(value))
        return self._reader.make(self._name, text) if self._name else self._reader.read(text)

    def _in_tags(self, last: bool) -> bool:
        """Arguments, each in its tags, until something else comes."""
        self._buffer = self._buffer.lstrip()
        layout = self._layout
        end = match(units(layout.key_open), self._buffer, 0) if self._buffer else PARTIAL
        if end == PARTIAL and (not last or self._cut):
            return self._wait(last)
        if end is None or end == PARTIAL:
            return self._end_of_call(self._values, 0)
        argument = self._argument(end, last)
        if argument is None:
            return self._wait(last)
        key, text, rest = argument
        self._values[key] = self._value(key, text)
        self._buffer = self._buffer[rest:]
        return True

    def _argument(self, at: int, last: bool) -> tuple[str, str, int] | None:
        """Key, text and end of the argument whose key begins at `at`; None when more is needed."""
        layout, buffer = self._layout, self._buffer
        begun = self._key(at)
        if begun is None:
            return (buffer[at:].strip(), "", len(buffer)) if last and not self._cut else None
        key, start = begun
        close = units(layout.value_close)
        value = (
            ObjectEnd().find(buffer[start:]) if self._is_json(key, buffer[start : start + 1]) else 0
        )
        stop = -1 if value is None else buffer.find(close[0], start + value)
        if stop < 0:
            if not last or self._cut:
                return None
            stop = rest = len(buffer)
        else:
            whole = match(close, buffer, stop)
            if whole == PARTIAL and not last:
                return None
            rest = whole if whole and whole > 0 else stop + len(close[0])
        text = buffer[start:stop]
        return key, text.removesuffix("\n") if layout.value_close[0] == "\n" else text, rest

    def _key(self, at: int) -> tuple[str, int] | None:
        """The key, and where its value begins."""
        layout, buffer = self._layout, self._buffer
        for written in dict.fromkeys((layout.key_close, layout.key_close_json)):
            close = units(written)
            place = buffer.find(close[0], at)
            end = match(close, buffer, place) if place >= 0 else None
            if end is None or end == PARTIAL:
                continue
            if written.endswith("\n"):
                if end == len(buffer):
                    return None
                end += buffer[end] == "\n"
            return buffer[at:place].strip(), end
        return None

    def _value(self, key: str, text: str) -> Any:
        return value_of(self._schema_of(key), self._schema, text)

    def _is_json(self, key: str, first: str) -> bool:
        """Whether a value is an object or a list, in whose texts a closing tag may stand."""
        return first in ("{", "[") and not may_be_text(self._schema_of(key), self._schema)

    def _schema_of(self, key: str) -> Any:
        named = self._schema.get("properties", {})
        return named.get(key, self._schema.get("additionalProperties", {}))

    def _end_of_call(self, values: dict[str, Any] | None, end: int) -> bool:
        call = None if values is None else self._reader.make(self._name, _json(values))
        if not self._take(call):
            return self._no_call()
        self._buffer = self._buffer[end:]
        self._step = self._after_call
        return True

    def _after_call(self, last: bool) -> bool:
        """Another call, closing markers, which some models leave out, or text."""
        self._buffer = self._buffer.lstrip()
        if not self._buffer:
            return False
        end = match(self._between, self._buffer, 0) if self._between else None
        if not self._between and self._buffer[0] == "{" and self._layout.in_json:
            self._step = self._core
            return True
        if end is not None and end > 0:
            self._mark(end)
            self._step = self._core
            return True
        closed = [match(wanted, self._buffer, 0) for wanted in self._closers]
        if end == PARTIAL or PARTIAL in closed:
            if last:  # a closing marker that never ended
                self._buffer = ""
            return False
        size = max((each for each in closed if each), default=0)
        self._buffer = self._buffer[max(size, 0) :]
        if size <= 0:
            self._step = self._in_text
        return True

    def _so_far(self) -> tuple[str, str]:
        if self._step == self._in_name:
            return self._buffer.strip(), ""
        if self._step == self._in_tags:
            return self._name, self._tags_so_far()
        if self._step in (self._in_bare, self._at_object) or (
            self._step == self._in_object and self._name
        ):
            is_json = self._layout.style == "json"
            return self._name, self._buffer if is_json else self._whole_so_far()
        return super()._so_far()

    def _whole_so_far(self) -> str:
        """The arguments that are whole, of some that are no JSON, as JSON that isn't closed."""
        at = len(self._buffer)
        for _ in range(64):
            at = self._buffer.rfind(",", 0, at)
            if at < 0:
                return ""
            if self._layout.style == "python":
                values = python_arguments(self._buffer[:at] + ")")
            else:
                values = bare_object(self._buffer[:at] + "}", self._layout.quote)
            if values is not None:
                return _json(values)[:-1]
        return ""

    def _tags_so_far(self) -> str:
        whole = _json(self._values)[:-1]
        end = match(units(self._layout.key_open), self._buffer, 0) if self._buffer else None
        begun = self._key(end) if end is not None and end > 0 else None
        if begun is None:
            return whole if self._values else ""
        key, start = begun
        text = self._buffer[start:]
        is_text = may_be_text(self._schema_of(key), self._schema)
        written = _json(text)[:-1] if is_text else text
        return f"{whole}{', ' if self._values else ''}{_json(key)}: {written}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _past_blanks(text: str, at: int) -> int:
    """Where the blanks after `at` end, unless they end the text."""
    rest = text[at:]
    return at + len(rest) - len(rest.lstrip())
