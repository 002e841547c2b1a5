"""What a workload is made of: conversations of a few turns, and what the command line says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True)
class BenchTurn:
    """One request: what is added to the conversation, and the fields beside `messages`."""

    label: str
    messages: tuple[Message, ...]
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchConversation:
    turns: tuple[BenchTurn, ...]


@dataclass(frozen=True, kw_only=True)
class WorkloadOptions:
    """What the command line says of the workload. Lengths are in words, near enough to tokens."""

    seed: int = 0
    max_tokens: int | None = None
    """In place of what each request asks for."""
    input_words: tuple[int, int] = (16, 1024)
    output_tokens: tuple[int, int] = (16, 256)
    ignore_eos: bool = False
    """Answers go on to `max_tokens`. A field of vLLM, llama.cpp and maestrale."""


Workload = Callable[[WorkloadOptions], Iterator[BenchConversation]]
