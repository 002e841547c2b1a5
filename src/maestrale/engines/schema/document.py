"""A JSON schema as a document: its numbers as they were written, and what its `$ref`s lead to."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn
from urllib.parse import unquote, urldefrag, urljoin

MAX_DEPTH = 200
_MAX_DIGITS = 310  # a double has no more before its point
_LEAST_EXPONENT = -350
# Keywords whose values are data: what looks like a schema in them is none.
_DATA = frozenset({"const", "default", "enum", "example", "examples"})
# Those whose values are schemas by names, which may be any word.
_BY_NAME = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")

Conjunction = tuple[int, ...]
"""Numbers of the schemas that hold at once; none: anything goes."""

NOTHING = 0  # the number of the schema `false`


@dataclass(frozen=True, eq=False)
class Node:
    """A schema and the URI that its references are relative to."""

    schema: dict[str, Any]
    base: str


class Document:
    """The schemas of one document, numbered as they are come across."""

    def __init__(self, text: str) -> None:
        """Raises: ValueError when it is not JSON, nested too deep, or holds no schema."""
        try:
            self.root = json.loads(
                text, parse_float=_decimal, parse_int=_integer, parse_constant=_no_number
            )
            json.dumps(self.root, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            raise ValueError("it contains half a character (a surrogate)") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"it is not JSON: {error}") from error
        except RecursionError as error:
            raise ValueError("it is nested too deep") from error
        if not isinstance(self.root, dict | bool):
            raise ValueError("a schema must be an object or a boolean")
        self.nodes = [Node({"not": {}}, "")]
        self._numbers: dict[int, int] = {}
        self._resources: dict[str, Any] = {"": self.root}
        self._anchors: dict[tuple[str, str], tuple[Any, str]] = {}
        self._index(self.root, "", 0)

    def conjunction(self, schema: object, base: str, keyword: str) -> Conjunction:
        """The schema as a conjunction of one; of none where it says nothing.

        Raises: ValueError naming the keyword when it isn't a schema.
        """
        if schema is True or schema == {}:
            return ()
        if schema is False:
            return (NOTHING,)
        if not isinstance(schema, dict):
            raise ValueError(f"{keyword} must hold schemas: objects or booleans")
        number = self._numbers.get(id(schema))
        if number is None:
            number = self._numbers[id(schema)] = len(self.nodes)
            self.nodes.append(Node(schema, _base(schema, base)))
        return (number,)

    def resolve(self, reference: object, base: str) -> Conjunction:
        """What a `$ref` points to. Raises: ValueError when that isn't in this document."""
        if not isinstance(reference, str):
            raise ValueError("'$ref' must be a string")
        # Bases that no path can be joined to (urn:…) are kept for what is in them.
        whole = base + reference if reference.startswith("#") else _join(base, reference)
        uri, fragment = urldefrag(whole)
        fragment = unquote(fragment)
        if uri not in self._resources:
            raise ValueError("a '$ref' may only point inside the schema itself")
        found, base = self._resources[uri], uri
        if fragment and not fragment.startswith("/"):
            if (uri, fragment) not in self._anchors:
                raise ValueError(f"'$ref' points to {reference!r}, which isn't there")
            found, base = self._anchors[uri, fragment]
        for step in fragment.split("/")[1:] if fragment.startswith("/") else ():
            found = _child(found, step.replace("~1", "/").replace("~0", "~"), reference)
            if isinstance(found, dict):
                base = _base(found, base)
        return self.conjunction(found, base, "'$ref'")

    def _index(self, value: object, base: str, depth: int) -> None:
        """Note which parts have a name of their own ($id, $anchor)."""
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deep")
        if isinstance(value, list):
            for item in value:
                self._index(item, base, depth + 1)
        if not isinstance(value, dict):
            return
        base = _base(value, base)
        if isinstance(value.get("$id"), str):
            self._resources.setdefault(base, value)
        for keyword in ("$anchor", "$dynamicAnchor"):
            anchor = value.get(keyword)
            if isinstance(anchor, str):
                self._anchors[base, anchor] = (value, base)
        for key, item in value.items():
            if key in _BY_NAME and isinstance(item, dict):
                for each in item.values():
                    self._index(each, base, depth + 2)
            elif key not in _DATA:
                self._index(item, base, depth + 1)


def _base(schema: dict[str, Any], base: str) -> str:
    own = schema.get("$id")
    return urldefrag(_join(base, own))[0] if isinstance(own, str) else base


def _join(base: str, reference: str) -> str:
    try:
        return urljoin(base, reference)
    except ValueError as error:
        raise ValueError(f"{reference[:60]!r} is not a URI") from error


def _child(value: object, step: str, reference: str) -> object:
    if isinstance(value, dict) and step in value:
        return value[step]
    if isinstance(value, list) and step.isdecimal() and int(step) < len(value):
        return value[int(step)]
    raise ValueError(f"'$ref' points to {reference!r}, which isn't there")


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS or abs(int(text)) > 2**1024 - 2**970:
        raise ValueError(f"the number {text[:20]}… is beyond what a double can hold")
    return int(text)


def _decimal(text: str) -> Decimal:
    try:
        number = Decimal(text)
    except InvalidOperation as error:
        raise ValueError(f"the number {text[:20]} is beyond what a double can hold") from error
    if len(text) > 2 * _MAX_DIGITS or math.isinf(float(number)):
        raise ValueError(f"the number {text[:20]} is beyond what a double can hold")
    if number and number.adjusted() < _LEAST_EXPONENT:
        raise ValueError(f"the number {text[:20]} is smaller than a double can hold")
    return number if number else Decimal(0)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"it is not JSON: {text} is no number")
