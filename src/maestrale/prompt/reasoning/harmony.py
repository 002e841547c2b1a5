"""gpt-oss's thoughts: the messages of an answer whose channel is `analysis`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.reasoning.base import ANSWER, ANSWERED, CONTENT, TEXT, StepParser
from maestrale.prompt.tools.harmony import (
    CALL,
    CHANNEL,
    CHANNEL_NAME,
    END,
    ENDS,
    MARKS,
    MESSAGE,
    SHOWN,
    START,
)

NEEDED = (CHANNEL, MESSAGE, START, END)
_ANY_MARK = "".join(SHOWN.values())
_HEADER = re.compile(f"\\s*(assistant(?=[\\s{_ANY_MARK}]|$)|to=|[{_ANY_MARK}])")
_BEGUN = ("assistant", "to=")


class HarmonyReasoning:
    """The channels of an answer."""

    name = "openai"
    keeps_budgets = True

    def __init__(self, vocabulary: Vocabulary) -> None:
        """The vocabulary has all that is NEEDED."""
        ids = vocabulary.control_ids
        self.shown: Mapping[int, str] = {
            ids[token]: mark for token, mark in SHOWN.items() if token in ids
        }
        self._channel, self._message, self._start, self._end = (
            f"<[{ids[token]}]>" for token in NEEDED
        )

    def opened_by(self, prompt: str) -> bool:
        """See `ReasoningFormat.opened_by`."""
        return prompt.endswith(f"{CHANNEL}analysis{MESSAGE}")

    def parser(self, *, opened: bool, calls: bool) -> HarmonyThoughts:
        """See `ReasoningFormat.parser`."""
        return HarmonyThoughts(opened=opened, calls=calls)

    def content(self) -> str:
        """See `ReasoningFormat.content`."""
        return f'{CONTENT}: {self._channel} "final" {self._message} {ANSWER}'

    def start(self, *, opened: bool, budget: int | None) -> str:
        """See `ReasoningFormat.start`."""
        ending = f'{self._end} {self._start} "assistant"'
        if budget == 0:
            return f"start: {ending + ' ' if opened else ''}{ANSWERED}"
        limit = "" if budget is None else f"[max_tokens={budget}]"
        body = f"reasoning{limit}: {TEXT}"
        if opened:
            return f"start: reasoning {ending} {ANSWERED}\n{body}"
        begins = f'{self._channel} "analysis" {self._message}'
        return f"start: ({begins} reasoning {ending})? {ANSWERED}\n{body}"


class HarmonyThoughts(StepParser):
    """Takes the messages in `analysis` out of an answer.

    With `calls` the others are left as they are, headers and all, for the parser of calls; else
    what is in them is the answer.
    """

    def __init__(self, *, opened: bool, calls: bool) -> None:
        super().__init__()
        self._calls = calls
        self._blanks = ""  # at the end of a thought, if more comes
        self._given = False  # something of a thought
        self._separator = ""
        self._step = self._in_thought if opened else self._in_header

    def _in_header(self, last: bool) -> bool:
        """Up to its `<|message|>`; what doesn't look like a header is the answer as it is."""
        if not self._buffer:
            return False
        begun = self._buffer.lstrip()
        looks = _HEADER.match(self._buffer) is not None
        header, found, rest = self._buffer.partition(SHOWN[MESSAGE])
        if not found and not last and (looks or any(word.startswith(begun) for word in _BEGUN)):
            return False
        channel = CHANNEL_NAME.search(header)
        if found and looks and channel and channel[1] == "analysis" and "to=" not in header:
            self._buffer, self._step = rest, self._in_thought
            if self._given:
                self._separator = "\n\n"
            self._blanks = ""
            return True
        kept = self._calls or not looks
        self._text.append(header + found if kept else "")
        self._buffer, self._step = rest, self._in_answer
        return True

    def _in_thought(self, last: bool) -> bool:
        end = ENDS.search(self._buffer)
        thought = self._blanks + (self._buffer[: end.start()] if end else self._buffer)
        sure = thought.rstrip()
        if sure:
            self._thoughts.append(self._separator + MARKS.sub("", sure))
            self._given, self._separator = True, ""
        self._blanks = thought[len(sure) :] if self._given else ""
        self._buffer = self._buffer[end.start() :] if end else ""
        if end is None:
            return False
        self._end_message(keep=False)
        return True

    def _in_answer(self, last: bool) -> bool:
        end = ENDS.search(self._buffer)
        text = self._buffer[: end.start()] if end else self._buffer
        self._text.append(text if self._calls else MARKS.sub("", text))
        self._buffer = self._buffer[len(text) :]
        if end is None:
            return False
        self._end_message(keep=self._calls)
        return True

    def _end_message(self, *, keep: bool) -> None:
        """The buffer begins with a mark that ends a message, or begins the next one's header."""
        if self._buffer[0] in (SHOWN[END], SHOWN[CALL]):
            self._text.append(self._buffer[0] if keep else "")
            self._buffer = self._buffer[1:]
        self._step = self._in_header
