"""Reading a request's body: bounded in size, JSON only, decoded strictly."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any, TypeVar

import msgspec
from starlette.types import Receive, Scope

from maestrale.api.errors import ClientDisconnected, of_validation, quoted
from maestrale.errors import (
    InvalidRequest,
    PayloadTooLarge,
    UnsupportedMediaType,
)

# Decoding more than this takes long enough to hold others up: it leaves the event loop.
DECODE_IN_THREAD = 256 * 1024

T = TypeVar("T", bound=msgspec.Struct)


async def read_body(scope: Scope, receive: Receive, type_: type[T], limit: int) -> T:
    """Read, decode and validate the body as `type_`; at most `limit` bytes are ever held.

    Raises: PayloadTooLarge, UnsupportedMediaType, InvalidRequest, ClientDisconnected.
    """
    headers = _headers(scope)
    _check_media_type(headers)
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared[:20]) > limit:
        raise _too_large(limit)
    raw = await _read(receive, limit)  # its time is bounded by api/protocol.py
    if len(raw) > DECODE_IN_THREAD:
        return await asyncio.to_thread(decode, raw, type_)
    return decode(raw, type_)


def decode(raw: bytes | bytearray, type_: type[T]) -> T:
    """Decode JSON as `type_`. Raises: InvalidRequest."""
    if not raw:
        raise InvalidRequest("The body is empty; a JSON object is expected.", code="invalid_json")
    try:
        raw.decode()  # parts that nobody reads must be UTF-8 too
        result: T = _decoder(type_).decode(raw)
    except msgspec.ValidationError as error:
        raise of_validation(error) from None
    except UnicodeDecodeError:
        raise InvalidRequest("The body is not UTF-8.", code="invalid_json") from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(
            f"The body is not valid JSON: {quoted(str(error))}.", code="invalid_json"
        ) from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deep.", code="invalid_json") from None
    return result


@cache
def _decoder(type_: type[msgspec.Struct]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(type_)


def _headers(scope: Scope) -> dict[bytes, bytes]:
    return dict(scope["headers"])


def _check_media_type(headers: dict[bytes, bytes]) -> None:
    """JSON in UTF-8, not compressed. Raises: UnsupportedMediaType."""
    given = headers.get(b"content-type", b"").decode("latin-1")
    media_type, _, parameters = given.partition(";")
    if media_type.strip().lower() != "application/json":
        raise UnsupportedMediaType(
            f"The body's Content-Type is {quoted(given) or 'missing'}; send "
            "'Content-Type: application/json' (curl: -H 'Content-Type: application/json')."
        )
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip(' "').lower() not in (
            "utf-8",
            "utf8",
            "us-ascii",
        ):
            raise UnsupportedMediaType("The body must be UTF-8.")
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1")
    if encoding.strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType(
            f"Content-Encoding {quoted(encoding)} is not supported; send the body as it is."
        )


async def _read(receive: Receive, limit: int) -> bytearray:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return body


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body is larger than {limit} bytes (--max-body-bytes).")
