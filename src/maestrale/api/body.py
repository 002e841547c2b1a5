"""Reading a request's body: bounded in size, JSON only, decoded strictly.

A thousand clients that each send all but the last byte of a large body would fill the memory.
So large bodies share a budget; small ones, which a chat is, always have room.
"""

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
    Unavailable,
    UnsupportedMediaType,
)

# Decoding more than this takes long enough to hold others up: it leaves the event loop.
DECODE_IN_THREAD = 256 * 1024
SMALL_BODY = 64 * 1024  # bytes that need no room in the budget
BUDGET = 128 * 1024 * 1024  # bytes of large bodies held at once

T = TypeVar("T", bound=msgspec.Struct)


class BodyReader:
    """Reads the bodies of all requests: of each at most `limit` bytes are ever held."""

    def __init__(self, limit: int, budget: int = BUDGET) -> None:
        """`budget`: bytes of large bodies held at once; one body of the full size always fits."""
        self._limit = limit
        self._budget = max(budget, limit)
        self.held = 0
        """Bytes of large bodies held now."""

    async def read(self, scope: Scope, receive: Receive, type_: type[T]) -> T:
        """Read, decode and validate the body as `type_`.

        Raises: PayloadTooLarge, UnsupportedMediaType, InvalidRequest, Unavailable (too many large
        bodies at once), ClientDisconnected.
        """
        headers = dict(scope["headers"])
        _check_media_type(headers)
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared[:20]) > self._limit:
            raise self._too_large()
        body = bytearray()
        counted = 0
        try:
            while True:
                message = await receive()  # its time is bounded by api/protocol.py
                if message["type"] == "http.disconnect":
                    raise ClientDisconnected
                body += message.get("body", b"")
                if len(body) > self._limit:
                    raise self._too_large()
                if len(body) > SMALL_BODY:
                    self.held += len(body) - counted
                    counted = len(body)
                    if self.held > self._budget:
                        raise Unavailable(
                            "Too many large bodies are being received; try again.",
                            code="busy",
                            retry_after=1,
                        )
                if not message.get("more_body", False):
                    break
            if len(body) > DECODE_IN_THREAD:
                return await asyncio.to_thread(decode, body, type_)
            return decode(body, type_)
        finally:
            self.held -= counted

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"The body is larger than {self._limit} bytes (--max-body-bytes).")


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
