"""What a reasoning format is: how a family of models marks its thoughts, apart from its answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Protocol

from msgspec import Struct

ANSWER = "answer"  # the rule of what a request constrains its answer to
CONTENT = "content"  # the rule of an answer that is no call of a tool
ANSWERED = "answered"  # the rule of all that comes after the thought
TEXT = r"/(.|\n)*/"


class Thoughts(Struct, frozen=True):
    """What some more of an answer turned out to be: `reasoning`, then `text` of the answer itself.

    `taken` counts the characters that are no text: thoughts, their marks, and blanks around them.
    """

    reasoning: str = ""
    text: str = ""
    taken: int = 0


class ReasoningParser(Protocol):
    """Takes an answer's text as it comes, and tells thoughts from the answer."""

    @property
    def thinking(self) -> bool:
        """A thought has begun, and its end hasn't come."""

    def push(self, text: str, *, last: bool = False) -> Thoughts:
        """Take more text; with `last`, nothing may stay held back."""


class StepParser(ABC):
    """A `ReasoningParser` that goes through what has come step by step.

    A step is told whether the text is at its end. It takes what it is sure of from the buffer,
    gives it out, may put another step in its place, and says whether to go on.
    """

    _step: Callable[[bool], bool]

    def __init__(self) -> None:
        self._buffer = ""
        self._thoughts: list[str] = []
        self._text: list[str] = []

    @property
    def thinking(self) -> bool:
        """See `ReasoningParser.thinking`."""
        return self._step == self._in_thought

    def push(self, text: str, *, last: bool = False) -> Thoughts:
        """See `ReasoningParser.push`."""
        self._buffer += text
        before = len(self._buffer)
        self._thoughts, self._text = [], []
        while self._step(last):
            pass
        reasoning, answer = "".join(self._thoughts), "".join(self._text)
        return Thoughts(reasoning, answer, before - len(self._buffer) - len(answer))

    @abstractmethod
    def _in_thought(self, last: bool) -> bool:
        """The step within a thought."""


class ReasoningFormat(Protocol):
    """How a family of models marks thoughts."""

    name: str
    shown: Mapping[int, str]
    """Tokens that are marks to the parser, and the text they are spelled as."""

    keeps_budgets: bool
    """The end of a thought can be forced: it is one token."""

    def opened_by(self, prompt: str) -> bool:
        """Whether a prompt, as text, ends within a thought: the answer begins with the rest."""

    def parser(self, *, opened: bool, calls: bool) -> ReasoningParser:
        """`opened`: the prompt began the thought. `calls`: a parser of tool calls comes after it,
        which wants the marks that it knows.
        """

    def content(self) -> str:
        """The Lark rule `content`: an answer that is no call, as this model begins it. What is
        asked of its text is the rule `answer`.
        """

    def start(self, *, opened: bool, budget: int | None) -> str:
        """Lark rules that make `start` of a thought and `answered`. The thought has at most
        `budget` tokens; None: any number, 0: it is empty, or there is none.
        """
