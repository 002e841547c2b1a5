"""Reading a request's body: bounded in size, JSON only, decoded strictly.

A thousand clients that each send all but the last byte of a large body would fill the memory.
So large bodies share a budget; small ones, which a chat is, always have room. When the budget
is spent, the slowest sender, if it had its time, makes room for the others.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import msgspec
from starlette.types import Message, Receive, Scope

from maestrale.api.http.connections import ClientDisconnected
from maestrale.api.validation import decoded, of_validation
from maestrale.errors import (
    InvalidRequest,
    PayloadTooLarge,
    RequestTimeout,
    Unavailable,
    UnsupportedMediaType,
    quoted,
)
from maestrale.text_files import without_bom

# Decoding more than this takes long enough to hold others up: it leaves the event loop.
DECODE_IN_THREAD = 256 * 1024
SMALL_BODY = 64 * 1024  # bytes that need no room in the budget
BUDGET = 128 * 1024 * 1024  # bytes of large bodies held at once
GRACE = 5.0  # seconds in which nobody is too slow
# Escapes in JSON, and at last a half of a surrogate pair: escaped, or as bytes that no UTF-8 has.
_ESCAPES = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2}|\xed[\xa0-\xbf][\x80-\xbf])"
    rb"|\\."
)

T = TypeVar("T", bound=msgspec.Struct)
Used = TypeVar("Used")


class _LargeBody:
    """A body that takes room while it is received."""

    def __init__(self) -> None:
        self.size = 0  # bytes
        self.complete = False
        self.evicted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._began = time.monotonic()

    @property
    def age(self) -> float:
        """In seconds."""
        return time.monotonic() - self._began

    @property
    def rate(self) -> float:
        """Bytes a second so far."""
        return self.size / max(self.age, 1e-3)


class BodyReader:
    """Reads the bodies of all requests: of each at most `limit` bytes are ever held."""

    def __init__(self, limit: int, budget: int = BUDGET) -> None:
        """`budget`: bytes of large bodies held at once; one body of the full size always fits."""
        self._limit = limit
        self._budget = max(budget, limit)
        self._large: set[_LargeBody] = set()

    @property
    def held(self) -> int:
        """Bytes of large bodies held now."""
        return sum(body.size for body in self._large)

    async def read(self, scope: Scope, receive: Receive, type_: type[T]) -> T:
        """Read, decode and validate the body as `type_`.

        Raises: PayloadTooLarge, UnsupportedMediaType, InvalidRequest, Unavailable (too many large
        bodies at once), RequestTimeout (slower than others that need the room),
        ClientDisconnected.
        """
        check_media_type(scope)
        return await self._receive(scope, receive, lambda body: decode(body, type_))

    async def raw(self, scope: Scope, receive: Receive) -> bytes:
        """A body of any kind, not decoded. Raises: as `read`, but for UnsupportedMediaType."""
        return await self._receive(scope, receive, bytes)

    async def _receive(
        self, scope: Scope, receive: Receive, use: Callable[[bytearray], Used]
    ) -> Used:
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared[:20]) > self._limit:
            raise self._too_large()
        body = bytearray()
        large: _LargeBody | None = None
        try:
            while True:
                # Its time is bounded by api/http/protocol.py.
                message = await (receive() if large is None else _unless_evicted(receive, large))
                if message["type"] == "http.disconnect":
                    raise ClientDisconnected
                body += message.get("body", b"")
                if len(body) > self._limit:
                    raise self._too_large()
                if len(body) > SMALL_BODY:
                    if large is None:
                        large = _LargeBody()
                        self._large.add(large)
                    large.size = len(body)
                    self._make_room(large)
                if not message.get("more_body", False):
                    break
            if large is not None:
                large.complete = True
            if len(body) > DECODE_IN_THREAD:
                return await asyncio.to_thread(use, body)
            return use(body)
        finally:
            if large is not None:
                self._large.discard(large)

    def _make_room(self, body: _LargeBody) -> None:
        """Raises: Unavailable, RequestTimeout when `body` itself must give way."""
        while self.held > self._budget:
            slow = [each for each in self._large if each.age >= GRACE and not each.complete]
            slowest = min(slow, key=lambda each: each.rate, default=None)
            if slowest is None:
                raise Unavailable(
                    "Too many large bodies are being received; try again.",
                    code="busy",
                    retry_after=1,
                )
            if slowest is body:
                raise _too_slow(body)
            self._large.discard(slowest)
            slowest.evicted.set_result(None)

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"The body is larger than {self._limit} bytes (--max-body-bytes).")


async def _unless_evicted(receive: Receive, body: _LargeBody) -> Message:
    """The next message. Raises: RequestTimeout when another body needs the room."""
    receiving = asyncio.ensure_future(receive())
    try:
        either: set[asyncio.Future[Any]] = {receiving, body.evicted}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if body.evicted.done():
            raise _too_slow(body)
        return receiving.result()
    finally:
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)


def _too_slow(body: _LargeBody) -> RequestTimeout:
    return RequestTimeout(
        f"The body came at {body.rate / 1024:.0f} KiB/s, slower than others that need the room."
    )


def decode(raw: bytes | bytearray, type_: type[T]) -> T:
    """Decode JSON as `type_`. Raises: InvalidRequest."""
    raw = without_bom(raw)
    if not raw:
        raise InvalidRequest("The body is empty; a JSON object is expected.", code="invalid_json")
    try:
        raw.decode()  # parts that nobody reads must be UTF-8 too
        result: T = decoded(raw, type_, _decoder(type_))
    except msgspec.ValidationError as error:
        raise of_validation(error, type_) from None
    except UnicodeDecodeError:
        fault = half_pair(raw) or "The body is not UTF-8."
        raise InvalidRequest(fault, code="invalid_json") from None
    except msgspec.DecodeError as error:
        fault = half_pair(raw) or f"The body is not valid JSON: {quoted(str(error))}."
        raise InvalidRequest(fault, code="invalid_json") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deep.", code="invalid_json") from None
    return result


def half_pair(raw: bytes | bytearray) -> str:
    """What is wrong with a body that has half of a surrogate pair, as a sentence; "" for none."""
    for match in _ESCAPES.finditer(raw):
        if match["half"]:
            found = match["half"].decode("latin-1")
            shown = found if found.startswith("\\") else f"U+{ord(_code_point(match['half'])):04X}"
            return (
                f"The body has half of a surrogate pair, {shown} (byte {match.start('half')}): a "
                "character such as an emoji was cut in two. Cut text between characters."
            )
    return ""


def _code_point(half: bytes) -> str:
    return half.decode("utf-8", "surrogatepass")


@cache
def _decoder(type_: type[msgspec.Struct]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(type_)


def check_media_type(scope: Scope) -> None:
    """JSON in UTF-8, not compressed. Raises: UnsupportedMediaType."""
    headers = dict(scope["headers"])
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
