"""A client that loses its server again and again, and comes back: nothing may be lost or twice."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import httpx

READ_SECONDS = 180.0
PAUSE_SECONDS = 0.2  # before the server is asked again
BUSY = (503, 529)  # it starts, stops, or has lost its engine: come again
WORKING = ("queued", "in_progress")
# What an answer has of its own, and no other answer to the same request.
_OWN = (
    rb'"(?:id|item_id)":"[^"]*"',
    rb'"(?:created|created_at|completed_at)":(?:\d+|null)',
    rb'"cached_tokens":\d+',
    rb'"input_tokens":\d+,"cache_creation_input_tokens":\d+,"cache_read_input_tokens":\d+',
)
T = TypeVar("T")
Heard = Callable[[int], Awaitable[bool]]


class Lost(Exception):
    """No complete answer came."""


@dataclass
class Got:
    """An answer. `parts`: its events, or its body. `id`: its stream's, or its response's."""

    id: str = ""
    seed: int | None = None
    parts: list[bytes] = field(default_factory=list)

    @property
    def whole(self) -> bytes:
        """All of it."""
        return b"".join(self.parts)


def without_own(answer: bytes) -> bytes:
    """What two answers to one request must have in common: all but ids, times, and what was in
    the prefix cache.
    """
    for own in _OWN:
        answer = re.sub(own, b"", answer)
    return answer


class Client:
    """Asks until it has an answer, at most for `patience` seconds."""

    def __init__(self, url: str, patience: float = 600.0) -> None:
        self.http = httpx.AsyncClient(
            base_url=url,
            limits=httpx.Limits(max_connections=None),
            timeout=httpx.Timeout(READ_SECONDS),
        )
        self.came_again = 0
        self._patience = patience

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *of: object) -> None:
        await self.http.aclose()

    async def whole(self, path: str, body: dict[str, Any], key: str = "") -> Got:
        """An answer in one piece. Raises: Lost."""
        got = await self._until_there(lambda: self._post(path, body, key))
        if body.get("background"):
            await self._until_there(lambda: self._wait(path, got))
        return got

    async def streamed(
        self, path: str, body: dict[str, Any], key: str = "", heard: Heard | None = None
    ) -> Got:
        """A stream, gone on with after its last event as often as its connection is lost.

        `heard` is told how many events there are, at each; where it says True the connection is
        left. Raises: Lost.
        """
        got = Got()
        await self._until_there(lambda: self._read(path, {**body, "stream": True}, key, got, heard))
        return got

    async def all_of(self, stream: str) -> bytes:
        """A whole stream, as the server gives it now. Raises: Lost."""

        async def get() -> bytes:
            answer = await self.http.get(f"/v1/streams/{stream}")
            _check(answer.status_code, answer.text)
            return answer.content

        return await self._until_there(get)

    async def refused(self, path: str, content: bytes) -> tuple[int, str | None]:
        """Status and error code of a request that is to be refused. Raises: Lost."""

        async def post() -> tuple[int, str | None]:
            headers = {"content-type": "application/json"}
            answer = await self.http.post(path, content=content, headers=headers)
            if answer.status_code == 200 or answer.status_code in BUSY:
                _check(answer.status_code, answer.text)
                return 200, None
            return answer.status_code, answer.json()["error"]["code"]

        return await self._until_there(post)

    async def _until_there(self, attempt: Callable[[], Awaitable[T]]) -> T:
        ends = time.monotonic() + self._patience
        while True:
            try:
                return await attempt()
            except (httpx.TransportError, _Busy) as error:
                if time.monotonic() > ends:
                    raise Lost(f"{type(error).__name__}: {error}") from error
            self.came_again += 1
            await asyncio.sleep(PAUSE_SECONDS)

    async def _post(self, path: str, body: dict[str, Any], key: str) -> Got:
        answer = await self.http.post(path, json=body, headers=_headers(key))
        _check(answer.status_code, answer.text)
        seed = answer.headers.get("x-seed")
        id = answer.json()["id"]
        return Got(id, int(seed) if seed else None, [answer.content])

    async def _wait(self, path: str, got: Got) -> None:
        """Until a response in the background has come to its end."""
        while True:
            answer = await self.http.get(f"{path}/{got.id}")
            _check(answer.status_code, answer.text)
            if answer.json()["status"] not in WORKING:
                got.parts = [answer.content]
                return
            await asyncio.sleep(PAUSE_SECONDS)

    async def _read(
        self, path: str, body: dict[str, Any], key: str, got: Got, heard: Heard | None
    ) -> None:
        last = len(got.parts) - 1
        if not got.id:
            asked = self.http.stream("POST", path, json=body, headers=_headers(key))
        elif body.get("background"):
            place = {"stream": "true"} | ({"starting_after": str(last)} if got.parts else {})
            asked = self.http.stream("GET", f"{path}/{got.id}", params=place)
        else:
            after = {"last-event-id": str(last)} if got.parts else {}
            asked = self.http.stream("GET", f"/v1/streams/{got.id}", headers=after)
        async with asked as answer:
            if answer.status_code == 204 and got.parts:
                return  # only the end of the connection was lost
            if answer.status_code != 200:
                _check(answer.status_code, (await answer.aread()).decode(errors="replace"))
            got.id = answer.headers.get("x-stream-id", got.id)
            seed = answer.headers.get("x-seed")
            got.seed = int(seed) if seed else got.seed
            async for event in _events(answer):
                self._take(event, got)
                if heard is not None and await heard(len(got.parts)):
                    raise httpx.ReadError("left")

    def _take(self, event: bytes, got: Got) -> None:
        """Raises: Lost where it isn't the next one."""
        number = b"%d" % len(got.parts)
        data = event.partition(b"data: ")[2].rstrip()
        if event.startswith(b"id: "):
            right = event.startswith(b"id: %b\n" % number)
        else:
            right = data.endswith(b'"sequence_number":%b}' % number)
        if not right:
            raise Lost(f"not event {number.decode()}: {event.decode(errors='replace')[:300]}")
        if not got.id:
            got.id = json.loads(data)["response"]["id"]
        got.parts.append(event)


class _Busy(Exception):
    """The server asks to come again."""


def _check(status: int, text: str) -> None:
    """Raises: Lost, _Busy."""
    if status in BUSY:
        raise _Busy(text[:300])
    if status != 200:
        raise Lost(f"status {status}: {text[:300]}")


def _headers(key: str) -> dict[str, str]:
    return {"idempotency-key": key} if key else {}


async def _events(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Comments are left out."""
    rest = b""
    async for part in answer.aiter_raw():
        *blocks, rest = (rest + part).split(b"\n\n")
        for block in blocks:
            if block and not block.startswith(b":"):
                yield block + b"\n\n"
