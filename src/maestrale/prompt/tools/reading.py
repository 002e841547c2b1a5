"""Finds calls in an answer's text as it comes: what the parsers of all formats share."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct

from maestrale.prompt.messages import ToolCall

ID_LENGTH = 9  # what Mistral's prompts demand: ^[a-zA-Z0-9]{9}$
_ALPHABET = string.digits + string.ascii_letters
_NULL = Raw(b"null")
_NO_ARGUMENTS = "{}"
_NAME_KEYS = ("name", "tool_name")
_ARGUMENT_KEYS = ("arguments", "parameters")
_DECODER = json.JSONDecoder()


class Parsed(Struct, frozen=True):
    """What some more text turned out to be.

    `text` belongs to the answer; `calls` are whole; `taken` counts the characters that were
    markup or calls, and are no text.
    """

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    taken: int = 0


class CallReader:
    """Makes calls of what a model wrote, and numbers the calls of one answer.

    A call's id depends on `key` and its place only, so that a replayed request gives the same.
    `schemas` are those of the tools' parameters, for formats that write values without quotes.
    """

    def __init__(
        self,
        names: Sequence[str],
        key: bytes,
        *,
        schemas: Mapping[str, str] | None = None,
        required: bool = False,
    ) -> None:
        self.names = frozenset(names)
        self.required = required
        self._key = key
        self._schemas = schemas or {}
        self.count = 0

    def schema(self, name: str) -> dict[str, Any]:
        """The schema of a tool's arguments; empty where none is known."""
        try:
            value = json.loads(self._schemas.get(name, "{}"))
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def read(self, text: str) -> ToolCall | None:
        """The call that this JSON object is; None when it is none, or of an unknown tool."""
        try:
            fields = msgspec.json.decode(text, type=dict[str, Raw])
            if len(fields) == 1:  # {name: arguments}, or the call within {"function": ...}
                ((key, value),) = fields.items()
                if key in self.names:
                    return self.make(key, bytes(value).decode())
                if key == "function":
                    fields = msgspec.json.decode(value, type=dict[str, Raw])
            name = _first(fields, _NAME_KEYS)
            called = msgspec.json.decode(name) if name is not _NULL else None
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            return None
        if not isinstance(called, str):
            return None
        return self.make(called, bytes(_first(fields, _ARGUMENT_KEYS)).decode())

    def make(self, name: str, arguments: str) -> ToolCall | None:
        """The call of `name`; None when no such tool may be called, or `arguments` are no object.

        Some models write the object as a JSON string; that is taken, too.
        """
        if name not in self.names:
            return None
        try:
            value = msgspec.json.decode(arguments)
            if isinstance(value, str):
                arguments = value
                value = msgspec.json.decode(arguments)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            return None
        if value is None:
            arguments, value = _NO_ARGUMENTS, {}
        if not isinstance(value, dict):
            return None
        return self._numbered(name, arguments.strip())

    def cut(self, name: str, arguments: str) -> ToolCall | None:
        """A call that the end of the answer cut off, with as much of its arguments as came.

        Where a call is required, the beginning of a name is enough if only one tool has it.
        """
        if name not in self.names:
            begun = [each for each in self.names if each.startswith(name)]
            if not self.required or len(begun) != 1 or arguments:
                return None
            name = begun[0]
        return self._numbered(name, arguments)

    def _numbered(self, name: str, arguments: str) -> ToolCall:
        call_id = make_id(self._key + self.count.to_bytes(4, "big"))
        self.count += 1
        return ToolCall(id=call_id, name=name, arguments=arguments)


def make_id(key: bytes) -> str:
    """An id of letters and digits that follows from `key`."""
    number = int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "big")
    letters = []
    for _ in range(ID_LENGTH):
        number, letter = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[letter])
    return "".join(letters)


def _first(fields: Mapping[str, Raw], keys: Sequence[str]) -> Raw:
    return next((fields[key] for key in keys if key in fields), _NULL)


class ToolCallParser:
    """Takes an answer's text as it comes, and tells calls from text.

    A subclass has one `_step` for each state; the rest is here. Blanks at the end of the text
    are held back, since those between text and a call, or between calls, are dropped. So are
    markers, whether or not a call follows: no part of one is ever text.

    Where calls are required, the grammar lets a model that has none left to make only end, or
    call again. So a call that it has made already is dropped, and ends the answer.
    """

    def __init__(self, reader: CallReader, *, parallel: bool) -> None:
        self._reader = reader
        self._parallel = parallel
        self._buffer = ""  # not looked at yet, or not enough to tell
        self._opening = ""  # what a call begins with: given as text if it turns out to be none
        self._marked = False  # a marker said that a call begins
        self._cut = False  # the answer was cut off here
        self._blanks = ""
        self._text: list[str] = []
        self._calls: list[ToolCall] = []
        self._made = set[tuple[str, str]]()  # names and arguments of the calls so far
        self._end = ObjectEnd()
        self._step: Callable[[bool], bool] = self._begin
        self._after: Callable[[bool], bool] = self._begin
        self.done = False
        """No more calls are wanted: the answer may end here."""

    @property
    def called(self) -> bool:
        return self._reader.count > 0

    @property
    def held(self) -> int:
        """Characters of which it isn't known yet what they are."""
        return len(self._blanks) + len(self._opening) + len(self._buffer)

    def push(self, text: str, *, last: bool = False, cut: bool = False) -> Parsed:
        """Take more text; with `last`, nothing may stay held.

        `cut` tells that the last text ends in the middle: a call that was begun is given as far
        as it came.
        """
        before = self.held + len(text)
        self._buffer += text
        self._cut = cut
        while not self.done and (self._buffer or last) and self._step(last):
            pass
        if last and cut and not self.called and self._reader.required:
            self._keep(self._reader.cut("", ""))
        if self.done:
            self._buffer = self._opening = self._blanks = ""
        elif last:
            if not self.called:
                self._text.append(self._blanks)
            self._blanks = ""
        given, self._text = "".join(self._text), []
        calls, self._calls = tuple(self._calls), []
        return Parsed(given, calls, before - len(given) - self.held)

    def _begin(self, last: bool) -> bool:
        """The first state. A step returns whether another is to follow at once."""
        self._step = self._in_text
        return True

    def _in_text(self, last: bool) -> bool:
        """Outside of calls."""
        raise NotImplementedError

    def _so_far(self) -> tuple[str, str]:
        """Name and arguments of the call that was begun, as far as they have come."""
        return partial_call(self._buffer) if self._step == self._in_object else ("", "")

    def _give(self, text: str) -> None:
        """`text` belongs to the answer."""
        whole = self._blanks + text
        stripped = whole.rstrip()
        self._blanks = whole[len(stripped) :]
        if stripped:
            self._text.append(stripped)

    def _take(self, call: ToolCall | None) -> bool:
        """Note a call; False when it was none."""
        if call is None:
            return False
        self._blanks = self._opening = ""
        self._marked = False
        repeated = self._reader.required and self._repeats(call)
        if not repeated:
            self._keep(call)
        self.done = repeated or not self._parallel
        return True

    def _repeats(self, call: ToolCall) -> bool:
        """Whether this answer has such a call already; it is noted, if not."""
        try:
            arguments = json.dumps(json.loads(call.arguments), sort_keys=True)
        except RecursionError:
            arguments = call.arguments
        made = (call.name, arguments)
        known = made in self._made
        self._made.add(made)
        return known

    def _keep(self, call: ToolCall | None) -> None:
        if call is not None:
            self._calls.append(call)

    def _mark(self, size: int) -> None:
        """The next `size` characters are a marker, after which a call begins."""
        self._buffer = self._buffer[size:]
        self._marked = True

    def _open(self, size: int) -> None:
        """The next `size` characters belong to what may be a call."""
        self._opening += self._buffer[:size]
        self._buffer = self._buffer[size:]

    def _open_blanks(self) -> None:
        self._open(len(self._buffer) - len(self._buffer.lstrip()))

    def _begin_object(self, after: Callable[[bool], bool]) -> bool:
        """The buffer begins with a JSON object; `after` is the state that follows a call."""
        self._end, self._after = ObjectEnd(), after
        self._step = self._in_object
        return True

    def _in_object(self, last: bool) -> bool:
        end = self._end.find(self._buffer)
        if end is None:
            return self._wait(last)
        if not self._take(self._read(self._buffer[:end])):
            return self._no_call()
        self._buffer = self._buffer[end:]
        self._step = self._after
        return True

    def _read(self, text: str) -> ToolCall | None:
        """The call that a JSON object is."""
        return self._reader.read(text)

    def _wait(self, last: bool) -> bool:
        """More is needed to tell. If there is no more, it is a call cut off, or none."""
        if not last or not (self._buffer or self._opening or self._marked):
            return False
        if self._cut:
            call = self._reader.cut(*self._so_far())
            self._keep(call)
            if call is not None or self._marked or self._reader.required:
                self._buffer = self._opening = self._blanks = ""
                self._marked = False
                self._step = self._in_text
                return False
        return self._no_call()

    def _no_call(self) -> bool:
        """What was begun is text after all."""
        self._give(self._opening)
        self._opening = ""
        self._marked = False
        self._step = self._in_text
        return True


class ObjectEnd:
    """Finds the end of what stands in brackets, whose text comes in pieces."""

    def __init__(self, quotes: str = '"') -> None:
        self._quotes = quotes
        self._at = 0
        self._depth = 0
        self._quote = ""
        self._escaped = False

    def find(self, text: str) -> int | None:
        """Where the object that `text` begins with ends; call again with more text if None."""
        while self._at < len(text):
            character = text[self._at]
            self._at += 1
            if self._quote:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == self._quote:
                    self._quote = ""
            elif character in self._quotes:
                self._quote = character
            elif character in "{[(":
                self._depth += 1
            elif character in "}])":
                self._depth -= 1
                if self._depth <= 0:
                    return self._at
        return None


def partial_call(text: str) -> tuple[str, str]:
    """Name and arguments of a call that is a JSON object cut off somewhere."""
    name = arguments = ""
    at = 1
    try:
        while at < len(text):
            at = _past(text, at, ",")
            key, at = _DECODER.raw_decode(text, at)
            at = _past(text, at, ":")
            begun = text[at:]
            if key in _NAME_KEYS:
                name = begun[1:].partition('"')[0] if begun[:1] == '"' else ""
            elif key in _ARGUMENT_KEYS:
                arguments = begun
            _, end = _DECODER.raw_decode(text, at)
            if key in _ARGUMENT_KEYS:
                arguments = text[at:end]
            at = end
    except (ValueError, RecursionError):
        pass  # here it was cut
    if arguments.startswith('"'):  # written as a JSON string
        with_end = arguments if arguments[1:].endswith('"') else arguments.rstrip("\\") + '"'
        try:
            arguments = str(json.loads(with_end))
        except (ValueError, RecursionError):
            arguments = ""
    return name, arguments


def _past(text: str, at: int, mark: str) -> int:
    while at < len(text) and (text[at].isspace() or text[at] == mark):
        at += 1
    return at
