"""Fields of a body that no route knows: named with the nearest known one, or left out.

They are refused, as a misspelled setting would else be lost without a word. An operator whose
clients send what nobody needs may start the server with --unknown-fields ignore: then they are
left out before the body is read, and the answer's header `x-ignored-fields` names them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import msgspec
from msgspec import Raw
from msgspec import inspect as types

from maestrale.errors import Sent

HEADER = "x-ignored-fields"
_MOST_NAMED = 16
_LONGEST_NAME = 64  # of one that can be anybody's misspelling
_UNSAFE = re.compile(r"[^A-Za-z0-9_.\[\]-]")


class IgnoredFields:
    """What was left out of one request's body: all are counted, the first of them named."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._count = 0

    def add(self, at: Sent) -> None:
        """Leave out the field at this place."""
        self._count += 1
        if len(self._names) < _MOST_NAMED:
            name = _UNSAFE.sub("?", str(at)[:_LONGEST_NAME])
            if name not in self._names:
                self._names.append(name)

    def __bool__(self) -> bool:
        return self._count > 0

    @property
    def header(self) -> str:
        """The names, as a header can have them."""
        more = self._count - len(self._names)
        return ", ".join([*self._names, *([f"and {more} more"] if more > 0 else [])])


_ignored: ContextVar[IgnoredFields | None] = ContextVar("ignored_fields", default=None)


@contextmanager
def ignoring(fields: IgnoredFields | None) -> Iterator[None]:
    """Within this, unknown fields are left out and told to `fields`; None: they are refused."""
    before = _ignored.set(fields)
    try:
        yield
    finally:
        _ignored.reset(before)


def known_part(raw: bytes | bytearray, type_: Any, at: Sent = Sent()) -> bytes | None:  # noqa: B008
    """The JSON of `type_` without the fields that it doesn't know, where they are to be ignored;
    None where they aren't. `at`: where in the request it stands.
    """
    fields = _ignored.get()
    if fields is None:
        return None
    return _known(bytes(raw).strip(), _type_info(type_), at, fields)


def nearest(type_: Any, at: Sent) -> str | None:
    """The known field that is most like the one at this place; None where none is like it.

    One that goes on from its name is meant before one that looks like it: stop, stop_sequences.
    """
    *steps, name = at
    if not isinstance(name, str) or len(name) > _LONGEST_NAME:
        return None
    known = {
        field.encode_name
        for node in _nodes(_type_info(type_), steps)
        if isinstance(node, types.StructType)
        for field in node.fields
    }
    longer = [each for each in sorted(known) if each.startswith(f"{name}_")]
    found = longer if len(longer) == 1 else difflib.get_close_matches(name, sorted(known), n=1)
    return found[0] if found else None


@cache
def _type_info(type_: Any) -> types.Type:
    return types.type_info(type_)


def _alternatives(node: types.Type) -> Iterator[types.Type]:
    if isinstance(node, types.UnionType):
        yield from node.types
    else:
        yield node


def _nodes(node: types.Type, steps: list[int | str]) -> Iterator[types.Type]:
    """The types that may stand at the end of these steps."""
    for each in _alternatives(node):
        if not steps:
            yield each
        elif isinstance(each, types.StructType):
            for field in each.fields:
                if field.encode_name == steps[0]:
                    yield from _nodes(field.type, steps[1:])
        elif isinstance(each, types.ListType):
            yield from _nodes(each.item_type, steps[1:])
        elif isinstance(each, types.DictType):
            yield from _nodes(each.value_type, steps[1:])


def _known(raw: bytes, node: types.Type, at: Sent, fields: IgnoredFields) -> bytes:
    """The value without unknown fields; what no field of `node` is about stays as it was written.

    Raises: msgspec.DecodeError where it is no JSON.
    """
    kind = {b"{": types.StructType, b"[": types.ListType}.get(raw[:1])
    if kind is None:
        return raw
    fitting = [each for each in _alternatives(node) if isinstance(each, kind)]
    if len(fitting) != 1:  # none of ours has several
        return raw
    [found] = fitting
    if isinstance(found, types.StructType):
        known = {field.encode_name: field.type for field in found.fields}
        parts = []
        for name, value in msgspec.json.decode(raw, type=dict[str, Raw]).items():
            if name in known:
                inner = _known(bytes(value), known[name], at.at(name), fields)
                parts.append(msgspec.json.encode(name) + b":" + inner)
            else:
                fields.add(at.at(name))
        return b"{" + b",".join(parts) + b"}"
    assert isinstance(found, types.ListType)
    items = msgspec.json.decode(raw, type=list[Raw])
    return (
        b"["
        + b",".join(
            _known(bytes(item), found.item_type, at.at(place), fields)
            for place, item in enumerate(items)
        )
        + b"]"
    )
