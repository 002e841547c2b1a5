"""gpt-oss's format, harmony: an answer is messages in channels, and a call one to a function.

`<|channel|>commentary to=functions.f <|constrain|>json<|message|>{...}<|call|>`, or with ` to=`
before the channel. Text is what the channel `final` has, and `commentary` to nobody; `analysis`
are the model's thoughts (prompt/reasoning/harmony.py), which are no part of the answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.messages import ToolCall
from maestrale.prompt.tools.base import CallSchema, Rules
from maestrale.prompt.tools.lark import alternatives, json_arguments
from maestrale.prompt.tools.reading import CallReader, ToolCallParser

CHANNEL, MESSAGE, START = "<|channel|>", "<|message|>", "<|start|>"
CONSTRAIN, CALL, END = "<|constrain|>", "<|call|>", "<|end|>"
# Noncharacters stand for the control tokens, so that text that only looks like them stays text.
SHOWN = {CHANNEL: "\ufdd0", MESSAGE: "\ufdd1", START: "\ufdd2", CONSTRAIN: "\ufdd3",
         CALL: "\ufdd4", END: "\ufdd5"}  # fmt: skip
MARKS = re.compile("[\ufdd0-\ufdd5]")
ENDS = re.compile(f"[{SHOWN[START]}{SHOWN[CHANNEL]}{SHOWN[END]}{SHOWN[CALL]}]")
TO = re.compile(r"to=functions\.([a-zA-Z0-9_-]*)")
CHANNEL_NAME = re.compile(f"{SHOWN[CHANNEL]}\\s*(\\w+)")


def is_harmony(rendered: str, vocabulary: Vocabulary) -> bool:
    """Whether this is a turn in channels, of a model that has the tokens for it."""
    needed = (CHANNEL, MESSAGE, START)
    return "to=functions." in rendered and all(
        token in rendered and token in vocabulary.control_ids for token in needed
    )


class HarmonyFormat:
    """A call is a message to a function."""

    name = "openai"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._ids = vocabulary.control_ids
        self.shown: Mapping[int, str] = {
            self._ids[token]: mark for token, mark in SHOWN.items() if token in self._ids
        }
        self._call_ends = self._ids.get(CALL) in vocabulary.eos_token_ids

    def parser(self, reader: CallReader, *, parallel: bool) -> ToolCallParser:
        """See `ToolFormat.parser`."""
        return HarmonyParser(reader, parallel=parallel)

    def rules(self, tools: Sequence[CallSchema], most: int, *, text: bool) -> Rules:
        """See `ToolFormat.rules`. After a call the model waits for its result: there is one."""
        channel, message = self._token(CHANNEL), self._token(MESSAGE)
        call_end = self._token(CALL) if CALL in self._ids and not self._call_ends else ""
        lines = [
            f"calls: call {call_end}",
            alternatives(tools),
        ]
        for index, tool in enumerate(tools):
            to = f'"to=functions.{tool.name}"'
            lines.append(
                f'call_{index}: (" " {to} {channel} "commentary json" | '
                f'{channel} "commentary " {to} " " {self._token(CONSTRAIN)} "json") '
                f"{message} args_{index}"
            )
        if text:
            preamble = f'{channel} ("final" | "commentary") {message} TEXT'
            lines += [f"free: {preamble} | calls", "TEXT: /(.|\\n)*/"]
        return Rules("\n".join(lines), json_arguments(tools))

    def _token(self, name: str) -> str:
        return f"<[{self._ids[name]}]>" if name in self._ids else ""

    def write(self, calls: Sequence[ToolCall]) -> str:
        """See `ToolFormat.write`."""
        return "".join(
            f" to=functions.{call.name}{CHANNEL}commentary json{MESSAGE}{call.arguments}{CALL}"
            for call in calls
        )


class HarmonyParser(ToolCallParser):
    """Reads message after message: a header, then what its channel makes of the content."""

    def __init__(self, reader: CallReader, *, parallel: bool) -> None:
        super().__init__(reader, parallel=parallel)
        self._name: str | None = None
        self._hidden = False

    def _begin(self, last: bool) -> bool:
        """A header, up to its `<|message|>`; text without one is an answer as it is."""
        self._step = self._in_header
        return True

    def _in_header(self, last: bool) -> bool:
        header, found, rest = self._buffer.partition(SHOWN[MESSAGE])
        looks_like_one = re.match(r"\s*(assistant|to=|[\ufdd0-\ufdd5]|$)", header) is not None
        maybe = any(word.startswith(header.strip()) for word in ("assistant", "to="))
        if not found:
            if not last and (looks_like_one or maybe):
                return False
            if looks_like_one or (
                maybe and self._cut and self._reader.required
            ):  # the answer ended within a header, which is no text
                if self._cut and (not self.called or "to=" in self._buffer):
                    self._keep(self._reader.cut(*self._so_far()))
                self._buffer = ""
                return False
            self._step = self._in_text
            return True
        if not looks_like_one and not maybe:
            self._step = self._in_text
            return True
        to, channel = TO.search(header), CHANNEL_NAME.search(header)
        self._buffer = rest
        self._name = to[1] if to else None
        self._hidden = channel is not None and channel[1] == "analysis" and to is None
        self._step = self._in_text
        if self._name is not None:
            self._marked = True
            self._step = self._at_arguments
        return True

    def _at_arguments(self, last: bool) -> bool:
        self._open_blanks()
        if not self._buffer:
            return self._wait(last)
        return self._begin_object(self._after_call) if self._buffer[0] == "{" else self._no_call()

    def _in_text(self, last: bool) -> bool:
        end = ENDS.search(self._buffer)
        text = self._buffer[: end.start()] if end else self._buffer
        if not self._hidden:
            self._give(MARKS.sub("", text))
        self._buffer = self._buffer[len(text) :]
        if end is None:
            return False
        if end[0] in (SHOWN[END], SHOWN[CALL]):
            self._buffer = self._buffer[1:]
        self._step = self._in_header
        return True

    def _after_call(self, last: bool) -> bool:
        self._buffer = self._buffer.lstrip().lstrip(SHOWN[CALL] + SHOWN[END])
        self._step = self._in_header
        return bool(self._buffer)

    def _read(self, text: str) -> ToolCall | None:
        return self._reader.make(self._name or "", text)

    def _so_far(self) -> tuple[str, str]:
        if self._step == self._in_object:
            return self._name or "", self._buffer
        if self._step == self._at_arguments:
            return self._name or "", ""
        to = TO.search(self._buffer)
        return (to[1] if to else ""), ""

    def _give(self, text: str) -> None:
        super()._give(MARKS.sub("", text))
