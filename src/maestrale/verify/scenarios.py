"""The collection's scenarios as conversations: what the chat page offers and `bench` sends."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from maestrale.errors import CannotVerify
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

_MODEL = "{{model}}"
_PLACEHOLDER = re.compile(r"\{\{([^{}]+)\}\}")


@dataclass(frozen=True)
class ScenarioStep:
    """One request. `fields`: those of its body beside messages, model and stream.

    `messages`: what it adds to the conversation. `follows`: that goes on from the step before;
    what the collection sends back of earlier answers is left out.
    """

    title: str
    messages: tuple[dict[str, Any], ...]
    fields: dict[str, Any]
    follows: bool


def steps_of(folder: str) -> tuple[ScenarioStep, ...]:
    """The requests of a folder of the collection that have a body. Raises: CannotVerify."""
    collection = _collection()
    found = [one for one in collection.requests if one.location[0] == folder and one.body]
    if not found:
        raise CannotVerify(f"The collection has no folder {folder!r} with requests.")
    return tuple(_step(request, collection.variables) for request in found)


def description_of(folder: str) -> str:
    """What the collection says of a folder. Raises: CannotVerify."""
    return _collection().folders.get(folder, "")


def article() -> str:
    """The collection's article, as plain text. Raises: CannotVerify."""
    text: str = json.loads(f'"{_collection().variables["article"]}"')
    return text


@cache
def _collection() -> Collection:
    return read_collection(bundled_collection())


def _step(request: CollectionRequest, variables: Mapping[str, Any]) -> ScenarioStep:
    filled = replace(request.body or "", [variables]).replace(f'"{_MODEL}"', "null")
    # What is left are answers of this run: whole JSON strings, as {{summary}}.
    follows = _PLACEHOLDER.search(filled) is not None
    body = json.loads(_PLACEHOLDER.sub('"an earlier answer"', filled))
    messages: list[dict[str, Any]] = body.pop("messages")
    if follows:
        answers = [at for at, one in enumerate(messages) if one["role"] == "assistant"]
        messages = messages[answers[-1] + 1 :]
    fields = {key: value for key, value in body.items() if key not in ("model", "stream")}
    return ScenarioStep(request.name, tuple(messages), fields, follows)
