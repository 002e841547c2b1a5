"""A workload from a file: JSON lines, or one JSON array.

Each entry is a request (`{"messages": [...], "max_tokens": 100, ...}`, all fields are sent), or
a conversation as in ShareGPT (`{"conversations": [{"from": "human", "value": ...}, ...]}`): its
human turns are asked in order, the answers are the server's own, of 256 tokens at most.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maestrale.bench.conversation import BenchConversation, BenchTurn, Message, WorkloadOptions
from maestrale.errors import CannotBench

_HUMAN = ("human", "user")
_MACHINE = ("gpt", "assistant", "chatgpt", "bard", "bing")
_SHAREGPT_FIELDS = {"max_tokens": 256, "temperature": 0}
_OURS = ("stream", "stream_options", "model")


def from_file(path: Path, options: WorkloadOptions) -> Iterator[BenchConversation]:
    """The file's conversations in random order, again and again. Raises: CannotBench."""
    entries = [_conversation(entry, where) for entry, where in _entries(path)]
    if not entries:
        raise CannotBench(f"{path} holds no request.")
    return _endless(entries, options)


def _endless(
    entries: list[BenchConversation], options: WorkloadOptions
) -> Iterator[BenchConversation]:
    draw = random.Random(f"file {options.seed}")  # noqa: S311 - repeatable, no secret
    while True:
        yield from draw.sample(entries, len(entries))


def _entries(path: Path) -> list[tuple[Any, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise CannotBench(f"Can't read {path}: {reason}.") from error
    try:
        if text.lstrip().startswith("["):
            return [(one, f"{path}, entry {at}") for at, one in enumerate(json.loads(text), 1)]
        return [
            (json.loads(line), f"{path}, line {at}")
            for at, line in enumerate(text.splitlines(), 1)
            if line.strip()
        ]
    except (ValueError, RecursionError) as error:
        raise CannotBench(
            f"{path} is neither JSON lines nor a JSON array ({error}). See docs/guide/bench.md."
        ) from error


def _conversation(entry: Any, where: str) -> BenchConversation:
    if isinstance(entry, dict) and isinstance(entry.get("messages"), list) and entry["messages"]:
        fields = {key: value for key, value in entry.items() if key not in ("messages", *_OURS)}
        return BenchConversation((BenchTurn("request", tuple(entry["messages"]), fields),))
    if isinstance(entry, dict) and isinstance(entry.get("conversations"), list):
        turns = tuple(_turns(entry["conversations"], where))
        if turns:
            return BenchConversation(turns)
    raise CannotBench(
        f"{where}: neither 'messages' nor 'conversations' with a human's words. "
        'Write {"messages": [{"role": "user", "content": "..."}]}.'
    )


def _turns(said: list[Any], where: str) -> Iterator[BenchTurn]:
    waiting: list[Message] = []
    asked = 0
    for one in said:
        who, value = (one.get("from"), one.get("value")) if isinstance(one, dict) else (None, None)
        if not isinstance(value, str):
            raise CannotBench(f"{where}: each of 'conversations' needs 'from' and 'value'.")
        if who == "system":
            waiting.append({"role": "system", "content": value})
        elif who in _HUMAN:
            waiting.append({"role": "user", "content": value})
            asked += 1
            yield BenchTurn(
                "first question" if asked == 1 else "follow-up", tuple(waiting), _SHAREGPT_FIELDS
            )
            waiting = []
        elif who not in _MACHINE:
            raise CannotBench(f"{where}: 'from' is {who!r}; known are human, gpt and system.")
