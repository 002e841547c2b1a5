"""The values that a body's field may have, for the error that refuses another."""

from __future__ import annotations

import re

import msgspec

_STEP = re.compile(r"([A-Za-z_]\w*)|\[")


def allowed_at(type_: type[msgspec.Struct], path: str) -> tuple[str, ...]:
    """The fixed values of the field at `path` (`messages[0].role`); none where it has no such."""
    steps = [match[1] for match in _STEP.finditer(path)]  # a name, or None for an index
    return tuple(map(str, _values(msgspec.inspect.type_info(type_), steps)))


def _values(node: msgspec.inspect.Type, steps: list[str | None]) -> list[object]:
    if isinstance(node, msgspec.inspect.UnionType):
        return [value for each in node.types for value in _values(each, steps)]
    if not steps:
        return list(node.values) if isinstance(node, msgspec.inspect.LiteralType) else []
    if isinstance(node, msgspec.inspect.StructType):
        inner = [field.type for field in node.fields if field.encode_name == steps[0]]
    elif isinstance(node, msgspec.inspect.ListType) and steps[0] is None:
        inner = [node.item_type]
    else:
        inner = []
    return [value for each in inner for value in _values(each, steps[1:])]
