"""The collection's three scenarios as workloads: read from postman/, not written twice."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from functools import cache

from maestrale.bench.conversation import BenchConversation, BenchTurn, WorkloadOptions
from maestrale.errors import CannotBench, CannotVerify
from maestrale.verify import scenarios
from maestrale.verify.scenarios import ARTICLE, JSON_ONLY, QUESTIONS


def article() -> str:
    """The collection's article, as plain text."""
    try:
        return scenarios.article()
    except CannotVerify as error:
        raise CannotBench(str(error)) from error


def questions(options: WorkloadOptions) -> Iterator[BenchConversation]:
    """The short questions, in random order, each a conversation of its own."""
    return _shuffled([BenchConversation((turn,)) for turn in turns_of(QUESTIONS)], options)


def json_only(options: WorkloadOptions) -> Iterator[BenchConversation]:
    """The requests for JSON, in random order, each a conversation of its own."""
    return _shuffled([BenchConversation((turn,)) for turn in turns_of(JSON_ONLY)], options)


def article_and_follow_ups(options: WorkloadOptions) -> Iterator[BenchConversation]:
    """The article with its summary, then the questions about it, in one conversation.

    Each conversation begins with a line of its own. Otherwise all but the first would find the
    whole article in a server's prefix cache, and no prefill would be measured.
    """
    turns = turns_of(ARTICLE)
    first = turns[0]
    for number in itertools.count(1):
        line = f"Reader {options.seed}-{number}.\n\n"
        opening = {**first.messages[0], "content": line + first.messages[0]["content"]}
        yield BenchConversation(
            (BenchTurn(first.label, (opening, *first.messages[1:]), first.fields), *turns[1:])
        )


def _shuffled(
    series: list[BenchConversation], options: WorkloadOptions
) -> Iterator[BenchConversation]:
    draw = random.Random(f"order {options.seed}")  # noqa: S311 - repeatable, no secret
    while True:
        yield from draw.sample(series, len(series))


@cache
def turns_of(folder: str) -> tuple[BenchTurn, ...]:
    """The requests of a folder of the collection. Raises: CannotBench."""
    try:
        steps = scenarios.steps_of(folder)
    except CannotVerify as error:
        raise CannotBench(str(error)) from error
    return tuple(BenchTurn(step.title, step.messages, step.fields) for step in steps)
