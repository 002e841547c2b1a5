"""What a tool-call format is: a parser of streamed text, and a grammar that allows only calls."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec
from msgspec import Raw, Struct

from maestrale.prompt.messages import Tool, ToolCall

MAX_CALLS = 16  # parallel calls that a grammar allows in one answer
ID_LENGTH = 9  # what Mistral's prompts demand: ^[a-zA-Z0-9]{9}$
_ALPHABET = string.digits + string.ascii_letters
_NULL = Raw(b"null")
_NO_ARGUMENTS = "{}"


class ToolSpec(Struct, frozen=True, kw_only=True):
    """One tool of a request.

    `definition` goes into the prompt, as the client wrote it; `parameters` is the JSON schema
    of its arguments, as text; `strict` asks that they satisfy it even when the model is free
    not to call.
    """

    name: str
    definition: Tool
    parameters: str
    strict: bool = False


class ToolUse(Struct, frozen=True, kw_only=True):
    """The tools of a request, and what the model may or must do with them.

    All `tools` are in the prompt; those named in `callable` may be called (at least one).
    """

    tools: tuple[ToolSpec, ...]
    callable: tuple[str, ...]
    required: bool = False
    parallel: bool = True

    @property
    def definitions(self) -> list[Tool]:
        return [tool.definition for tool in self.tools]

    @property
    def candidates(self) -> list[ToolSpec]:
        """The tools that may be called."""
        return [tool for tool in self.tools if tool.name in self.callable]


class Parsed(Struct, frozen=True):
    """What some more text turned out to be.

    `text` belongs to the answer; `calls` are whole; `taken` counts the characters that were
    markup or calls, and are no text.
    """

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    taken: int = 0


class CallReader:
    """Reads the JSON of a call, and numbers the calls of one answer.

    A call's id depends on `key` and its place only, so that a replayed request gives the same.
    """

    def __init__(self, names: Sequence[str], key: bytes) -> None:
        self._names = frozenset(names)
        self._key = key
        self.count = 0

    def read(self, text: str) -> ToolCall | None:
        """The call that this JSON object is; None when it is none, or of an unknown tool."""
        try:
            call = msgspec.json.decode(text, type=_WrittenCall)
        except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
            return None
        given = bytes(call.arguments if call.arguments is not _NULL else call.parameters)
        return self.make(call.name, given.decode())

    def make(self, name: str, arguments: str) -> ToolCall | None:
        """The call of `name`; None when no such tool may be called, or `arguments` are no object.

        Some models write the object as a JSON string; that is taken, too.
        """
        if name not in self._names:
            return None
        try:
            value = msgspec.json.decode(arguments)
            if isinstance(value, str):
                arguments = value
                value = msgspec.json.decode(arguments)
        except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
            return None
        if value is None:
            arguments, value = _NO_ARGUMENTS, {}
        if not isinstance(value, dict):
            return None
        call_id = make_id(self._key + self.count.to_bytes(4, "big"))
        self.count += 1
        return ToolCall(id=call_id, name=name, arguments=arguments.strip())


class _WrittenCall(Struct):
    name: str
    arguments: Raw = msgspec.field(default_factory=lambda: _NULL)
    parameters: Raw = msgspec.field(default_factory=lambda: _NULL)


class ToolCallParser:
    """Takes an answer's text as it comes, and tells calls from text.

    A subclass has one `_step` for each state; the rest is here. Blanks at the end of the text
    are held back, since those between text and a call, or between calls, are dropped.
    """

    def __init__(self, reader: CallReader, *, parallel: bool) -> None:
        self._reader = reader
        self._parallel = parallel
        self._buffer = ""  # not looked at yet, or not enough to tell
        self._opening = ""  # what a call may begin with: given as text if it turns out to be none
        self._blanks = ""
        self._text: list[str] = []
        self._calls: list[ToolCall] = []
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

    def push(self, text: str, *, last: bool = False) -> Parsed:
        """Take more text; with `last`, nothing may stay held."""
        before = self.held + len(text)
        self._buffer += text
        while not self.done and (self._buffer or last) and self._step(last):
            pass
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
        self._calls.append(call)
        self.done = not self._parallel
        return True

    def _open(self, size: int) -> None:
        """The next `size` characters may begin a call."""
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
        """More is needed to tell; if there is no more, it is no call."""
        return self._no_call() if last and (self._buffer or self._opening) else False

    def _no_call(self) -> bool:
        """What was begun is text after all."""
        self._give(self._opening)
        self._opening = ""
        self._step = self._in_text
        return True


class ObjectEnd:
    """Finds the end of a JSON object whose text comes in pieces."""

    def __init__(self) -> None:
        self._at = 0
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def find(self, text: str) -> int | None:
        """Where the object that `text` begins with ends; call again with more text if None."""
        while self._at < len(text):
            character = text[self._at]
            self._at += 1
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return self._at
        return None


class ToolFormat(Protocol):
    """How a family of models writes tool calls."""

    name: str
    shown: Mapping[int, str]
    """Control tokens that mean something to the parser, and the text they are spelled as."""

    def parser(self, reader: CallReader, *, parallel: bool) -> ToolCallParser: ...

    def rules(self, names: Sequence[str], most: int, *, text: bool) -> str:
        """Lark rules: `calls` is one to `most` calls, `call_I` of `names[I]`, with its arguments
        in the rule `args_I`, which is for the caller to add.

        With `text`, `free` is text without calls, or text and then calls.
        """


def make_id(key: bytes) -> str:
    number = int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "big")
    letters = []
    for _ in range(ID_LENGTH):
        number, letter = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[letter])
    return "".join(letters)


def lark_text(text: str) -> str:
    """`text` as a Lark string."""
    return msgspec.json.encode(text).decode()


def call_rules(
    names: Sequence[str],
    write: Callable[[str], tuple[str, str]],
) -> str:
    """The rules `call` and `call_I`; `write` gives what stands before and after the arguments."""
    lines = ["call: " + " | ".join(f"call_{index}" for index in range(len(names)))]
    for index, name in enumerate(names):
        before, after = write(name)
        lines.append(f"call_{index}: {before} args_{index} {after}")
    return "\n".join(lines)


def json_call(field: str) -> Callable[[str], tuple[str, str]]:
    """A call as `{"name": ..., field: ...}`.

    In lexemes as small as JSON's own: where other JSON may stand as well, the lexer, which
    takes the longest, could not go back.
    """

    def write(name: str) -> tuple[str, str]:
        parts = ["{", '"name"', ": ", f'"{name}"', ", ", f'"{field}"', ": "]
        return " ".join(map(lark_text, parts)), lark_text("}")

    return write
