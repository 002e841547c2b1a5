"""Bodies of JSON that are not what a route takes: which field is at fault, what it can be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct

from maestrale.api.unknown_fields import known_part, nearest
from maestrale.errors import InvalidRequest, Sent, UnsupportedParameter, quoted

_WHERE = re.compile(r"^(?P<what>.*) - at `\$(?P<path>.*)`$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<field>.*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<field>.*)`$", re.DOTALL)
_STEP = re.compile(r"\[(?P<index>\d+)\]|\[(?P<any>\.\.\.)\]|\.?(?P<key>[^.\[\]]+)")

NOTHING = (b"null", b"[]", b"{}", b"false", b'""')


def of_validation(error: msgspec.ValidationError, type_: Any) -> InvalidRequest:
    """A body of valid JSON that is not `type_`, what the route takes; names the field."""
    text = str(error)
    where = _WHERE.match(text)
    what = where["what"] if where else text
    at = _sent(where["path"] if where else "")
    unknown = _UNKNOWN.match(what)
    if unknown:
        near = nearest(type_, at.at(unknown["field"]))
        hint = () if near is None else ("; the nearest known one is ", at.at(near))
        at = at.at(quoted(unknown["field"]))
        return InvalidRequest("unknown field ", at, *hint, at=at, code="unknown_field")
    missing = _MISSING.match(what)
    if missing:
        at = at.at(missing["field"])
        return InvalidRequest(at, " is required.", at=at, code="missing_field")
    if not at:
        return InvalidRequest(f"The body must be a JSON object: {what}.")
    allowed = allowed_at(type_, at) if what.startswith("Invalid enum value") else ()
    choice = f" It can be {', '.join(map(repr, allowed))}." if allowed else ""
    return InvalidRequest(at, f" is not valid: {quoted(what)}.{choice}", at=at)


def decoded_part(raw: Raw, type_: Any, at: Sent) -> Any:
    """A part of a body, which is at `at`, as this type. Raises: InvalidRequest naming the place."""
    try:
        return decoded(raw, type_, msgspec.json.Decoder(type_), at)
    except msgspec.ValidationError as error:
        inner = of_validation(error, type_)
        where = at if inner.at is None else at.at(*inner.at)
        raise InvalidRequest(inner.message, at=where, code=inner.code) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"This is not valid: {quoted(str(error))}.", at=at) from error


def decoded(
    raw: Raw | bytes | bytearray,
    type_: Any,
    decoder: msgspec.json.Decoder[Any],
    at: Sent = Sent(),  # noqa: B008
) -> Any:
    """JSON that stands at a place of the request, as `type_`, unknown fields left out where they
    are to be ignored.

    Raises: what the decoder does.
    """
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        if "unknown field" not in str(error):
            raise
        known = known_part(bytes(raw), type_, at)
        if known is None:
            raise
        return decoder.decode(known)


def refuse_given(body: Struct, fields: Mapping[str, str]) -> None:
    """Raises: UnsupportedParameter for the first of these fields, name → why not, that says more
    than nothing.
    """
    for name, reason in fields.items():
        if bytes(getattr(body, name)) not in NOTHING:
            raise UnsupportedParameter(f"'{name}' is not supported: {reason}.", at=Sent(name))


def check_seed(seed: int | None, at: Sent = Sent("seed")) -> int | None:  # noqa: B008
    """Any signed or unsigned 64-bit integer. Raises: InvalidRequest."""
    if seed is not None and not -(1 << 63) <= seed < 1 << 64:
        raise InvalidRequest(f"'{at}' must fit in 64 bits.", at=at)
    return seed


def type_of(raw: Raw, at: Sent) -> str | None:
    """What a part of a body says in `type`; None where it says nothing. Raises: InvalidRequest."""
    written = decoded_part(raw, Any, at)
    kind = written.get("type") if isinstance(written, dict) else None
    return kind if isinstance(kind, str) else None


def typed_parts(raws: Sequence[Raw], at: Sent, what: str) -> Iterator[tuple[Raw, str, Sent]]:
    """Each part, its type, and where it is. `what`: what the API calls it.

    Raises: InvalidRequest.
    """
    for index, raw in enumerate(raws):
        place = at.at(index)
        kind = type_of(raw, place)
        if kind is None:
            raise InvalidRequest(
                f"A {what} is an object with a 'type'.", at=place, code="missing_field"
            )
        yield raw, kind, place


def not_text(kind: str, at: Sent) -> UnsupportedParameter:
    """The refusal of a part of this type."""
    return UnsupportedParameter(
        f"Content of type {quoted(kind)!r} is not supported: the model reads text only, and this "
        "server never fetches anything.",
        at=at.at("type"),
    )


def _sent(path: str) -> Sent:
    """msgspec's `.messages[0].role` as a place."""
    steps = (
        int(step["index"]) if step["index"] else step["any"] or step["key"]
        for step in _STEP.finditer(path)
    )
    return Sent(*steps)


def allowed_at(type_: Any, at: Sent) -> tuple[str, ...]:
    """The fixed values of the field at a place of a body; none where it has no such."""
    steps = [None if isinstance(step, int) else step for step in at]
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
