"""Replaces {{variables}} in what is sent, as Postman does."""

from __future__ import annotations

import random
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from maestrale.errors import CannotVerify

_PLACEHOLDER = re.compile(r"\{\{([^{}]+)\}\}")
_DEEPEST = 20
_MOST_CHARACTERS = 16 * 1024 * 1024


def replace(text: str, layers: Iterable[Mapping[str, Any]]) -> str:
    """`text` with each {{name}} replaced from the first layer that has it.

    A name that no layer has stays as it is. Raises CannotVerify for a dynamic variable such as
    {{$randomCity}} that the runner lacks, and if the text grows without bound.
    """
    layers = list(layers)

    def value(match: re.Match[str]) -> str:
        name = match[1]
        for layer in layers:
            if name in layer:
                return _spelled(layer[name])
        return _dynamic(name) if name.startswith("$") else match[0]

    for _ in range(_DEEPEST):
        replaced = _PLACEHOLDER.sub(value, text)
        if len(replaced) > _MOST_CHARACTERS:
            raise CannotVerify("A {{variable}} grows without bound when it is replaced.")
        if replaced == text:
            break
        text = replaced
    return text


def _spelled(value: Any) -> str:
    """A value as JavaScript's String() spells it."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case float() if value.is_integer():
            return str(int(value))
        case _:
            return str(value)


def _dynamic(name: str) -> str:
    match name:
        case "$guid" | "$randomUUID":
            return str(uuid.uuid4())
        case "$timestamp":
            return str(int(time.time()))
        case "$isoTimestamp":
            return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case "$randomInt":
            return str(random.randint(0, 1000))  # noqa: S311 - test data, no secret
        case _:
            raise CannotVerify(
                f"The dynamic variable {{{{{name}}}}} is not supported by this runner."
            )
