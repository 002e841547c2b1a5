"""The collection's three scenarios as workloads: read from postman/, not written twice."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from maestrale.bench.conversation import BenchConversation, BenchTurn, Message, WorkloadOptions
from maestrale.errors import CannotBench, CannotVerify
from maestrale.verify.collection import (
    Collection,
    CollectionRequest,
    bundled_collection,
    read_collection,
)
from maestrale.verify.variables import replace

QUESTIONS = "Simple questions"
ARTICLE = "Summarise an article, then ask about it"
JSON_ONLY = "JSON only"

_PLACEHOLDER = re.compile(r"\{\{([^{}]+)\}\}")


@cache
def _collection() -> Collection:
    try:
        return read_collection(bundled_collection())
    except CannotVerify as error:
        raise CannotBench(str(error)) from error


def article() -> str:
    """The collection's article, as plain text."""
    text: str = json.loads(f'"{_collection().variables["article"]}"')
    return text


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
    """The requests of a folder; what they send back of earlier answers is left out."""
    collection = _collection()
    found = [one for one in collection.requests if one.location[0] == folder and one.body]
    if not found:
        raise CannotBench(f"The collection has no folder {folder!r} with requests.")
    return tuple(_turn(request, collection.variables) for request in found)


def _turn(request: CollectionRequest, variables: Mapping[str, Any]) -> BenchTurn:
    filled = replace(request.body or "", [variables])
    # What is left are answers of this run: whole JSON strings, as {{summary}}.
    body = json.loads(
        _PLACEHOLDER.sub('"an earlier answer"', filled.replace('"{{model}}"', "null"))
    )
    messages: list[Message] = body.pop("messages")
    if _PLACEHOLDER.search(filled.replace("{{model}}", "")):
        answers = [at for at, one in enumerate(messages) if one["role"] == "assistant"]
        messages = messages[answers[-1] + 1 :]
    fields = {key: value for key, value in body.items() if key not in ("model", "stream")}
    return BenchTurn(request.name, tuple(messages), fields)
