"""Thoughts between two tags, at the beginning of an answer or opened by the prompt already.

`<think>...</think>` of DeepSeek, Qwen3, SmolLM3 and many more, Mistral's `[THINK]...[/THINK]`.
Where a tag is one token of the vocabulary, only that token counts; else its text does.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.reasoning.base import ANSWER, ANSWERED, CONTENT, TEXT, StepParser
from maestrale.prompt.tools.lark import lark_text

# Noncharacters stand for the tokens, so that text that only looks like them stays text.
_OPENS, _CLOSES = "\ufdd8", "\ufdd9"
_GAP = r"GAP: /\n{1,2}/"  # most models write an empty line after a thought
_PIECE = "\ufffd"  # of a character whose rest was never written


class Tags(Struct, frozen=True):
    """A pair of tags, and the name of the format."""

    name: str
    start: str
    end: str


KNOWN = (
    Tags("mistral", "[THINK]", "[/THINK]"),
    Tags("think", "<think>", "</think>"),
    Tags("seed", "<seed:think>", "</seed:think>"),
    Tags("cohere", "<|START_THINKING|>", "<|END_THINKING|>"),
    Tags("kimi", "\u25c1think\u25b7", "\u25c1/think\u25b7"),
)


class TagFormat:
    """The format that two tags make."""

    def __init__(self, tags: Tags, vocabulary: Vocabulary) -> None:
        self.name = tags.name
        self._tags = tags
        start, end = token_of(tags.start, vocabulary), token_of(tags.end, vocabulary)
        self._start_id, self._end_id = start, end
        self._start_is_text = tags.start not in vocabulary.control_ids
        self.keeps_budgets = end is not None
        self.shown: Mapping[int, str] = {
            token: mark for token, mark in ((start, _OPENS), (end, _CLOSES)) if token is not None
        }
        self._spelled = {
            mark: "" if tag in vocabulary.control_ids else tag
            for mark, tag in ((_OPENS, tags.start), (_CLOSES, tags.end))
        }

    def opened_by(self, prompt: str) -> bool:
        """See `ReasoningFormat.opened_by`."""
        return prompt.rstrip().endswith(self._tags.start)

    def parser(self, *, opened: bool, calls: bool) -> TagParser:
        """See `ReasoningFormat.parser`."""
        return TagParser(
            self._tags.start if self._start_id is None else _OPENS,
            self._tags.end if self._end_id is None else _CLOSES,
            self._spelled,
            opened=opened,
        )

    def content(self) -> str:
        """See `ReasoningFormat.content`."""
        return f"{CONTENT}: {ANSWER}"

    def start(self, *, opened: bool, budget: int | None) -> str:
        """See `ReasoningFormat.start`. With a budget there is a thought, if an empty one: else
        text that only looks like one could be longer.
        """
        opens = "" if opened else f"{_lark(self._tags.start, self._start_id)} "
        closes = _lark(self._tags.end, self._end_id)
        if budget == 0:
            return f"start: {opens}{closes} GAP? {ANSWERED}\n{_GAP}"
        if self._end_id is None:
            thought = f"{opens}reasoning GAP?"
            body = f"reasoning[suffix={lark_text(self._tags.end)}]: {TEXT}"
        else:
            thought = f"{opens}reasoning {closes} GAP?"
            if budget is not None and budget > 1 and not opened and self._start_is_text:
                budget -= 1  # llguidance counts from the token after such a one
            body = f"reasoning{'' if budget is None else f'[max_tokens={budget}]'}: {TEXT}"
        if not opened and budget is None:
            thought = f"({thought})?"
        return f"start: {thought} {ANSWERED}\n{_GAP}\n{body}"


def token_of(name: str, vocabulary: Vocabulary) -> int | None:
    """The one token that is this text, if there is one."""
    found = vocabulary.control_ids.get(name)
    if found is not None:
        return found
    try:
        return vocabulary.token_bytes.index(name.encode())
    except ValueError:
        return None


def _lark(text: str, token: int | None) -> str:
    return lark_text(text) if token is None else f"<[{token}]>"


class TagParser(StepParser):
    """Reads one thought at the beginning; where tags are control tokens, others further on too.

    Blanks around a thought belong to its layout: they are neither thought nor answer.
    """

    def __init__(self, start: str, end: str, spelled: Mapping[str, str], *, opened: bool) -> None:
        """`start` and `end`: the tags as they come. `spelled`: marks of tokens, and what is shown
        of them in an answer, where they are no tags.
        """
        super().__init__()
        self._start, self._end, self._spelled = start, end, spelled
        self._anywhere = spelled.get(start) == ""
        self._separator = ""  # between this thought and the one before
        self._fresh = True  # nothing of this thought was given yet
        self._step = self._in_thought if opened else self._before

    def _before(self, last: bool) -> bool:
        """Nothing has come but blanks."""
        begun = self._buffer.lstrip()
        if begun.startswith(self._start):
            self._buffer = begun[len(self._start) :]
            self._step = self._in_thought
            return True
        if self._start.startswith(begun) and not last:
            return False
        self._step = self._in_text
        return True

    def _in_thought(self, last: bool) -> bool:
        if self._fresh:
            self._buffer = self._buffer.lstrip()
            if self._buffer.startswith(self._start):  # opened by the prompt, and again
                self._buffer = self._buffer[len(self._start) :]
                return True
            if self._start.startswith(self._buffer) and not last:
                return False
        thought, ended, rest = self._buffer.partition(self._end)
        if ended:
            self._think(thought.rstrip().rstrip(_PIECE))
            self._buffer, self._step = rest, self._after
            self._separator, self._fresh = "\n\n", True
            return True
        held = len(thought) - len(self._sure(thought, last))
        self._think(thought[: len(thought) - held])
        self._buffer = "" if last else thought[len(thought) - held :]
        return False

    def _sure(self, thought: str, last: bool) -> str:
        """What is thought however it goes on: no beginning of the tag, no blanks at the end."""
        if not last:
            for size in range(min(len(self._end) - 1, len(thought)), 0, -1):
                if thought.endswith(self._end[:size]):
                    thought = thought[:-size]
                    break
        return thought.rstrip()

    def _think(self, text: str) -> None:
        text = self._shown(text)
        if text and self._fresh:
            self._thoughts.append(self._separator)
            self._fresh = False
        self._thoughts.append(text)

    def _after(self, last: bool) -> bool:
        """Between a thought and the answer."""
        self._buffer = self._buffer.lstrip()
        if not self._buffer:
            return False
        self._step = self._in_text
        return True

    def _in_text(self, last: bool) -> bool:
        text, begun = self._buffer, ""
        if self._anywhere:
            text, begun, rest = self._buffer.partition(self._start)
        self._text.append(self._shown(text))
        self._buffer = rest if begun else ""
        if begun:
            self._step = self._in_thought
        return bool(begun)

    def _shown(self, text: str) -> str:
        for mark, spelled in self._spelled.items():
            text = text.replace(mark, spelled)
        return text
