"""Rate limits that several workers ask their parent for are as exact as one process's."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from maestrale.api.rate import RateLimiter
from maestrale.errors import RateLimited
from maestrale.keys import Key
from maestrale.serve.workers.handle import WorkerHandle
from maestrale.serve.workers.messages import FromApiWorker, Refused, Reply, ToApiWorker, error_of
from maestrale.serve.workers.remote import RemoteRates

ALICE = Key(name="alice", sha256="aa" * 32, requests_per_minute=600, tokens_per_minute=50)
BOB = Key(name="bob", sha256="bb" * 32)
NOON = 1000.0

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class _Parent:
    """What the handles share."""

    def __init__(self) -> None:
        self.rates = RateLimiter(clock=lambda: NOON)


class _Link:
    """A worker's link and the parent's handle of it, without a socket between them."""

    def __init__(self, parent: _Parent) -> None:
        self._handle = WorkerHandle.__new__(WorkerHandle)
        self._handle._parent = parent  # type: ignore[assignment]
        self._handle.send = self._hear  # type: ignore[method-assign]
        self._number = 0
        self.sent = 0
        self._heard: Any = None

    def number(self) -> int:
        self._number += 1
        return self._number

    def send(self, message: Any) -> None:
        self.sent += 1
        packed = msgspec.msgpack.encode(message)
        self._handle._take(msgspec.msgpack.decode(packed, type=FromApiWorker))

    def _hear(self, message: Any) -> None:
        packed = msgspec.msgpack.encode(message)
        self._heard = msgspec.msgpack.decode(packed, type=ToApiWorker)

    async def ask(self, number: int, message: Any) -> bytes:
        self.send(message)
        heard = self._heard
        assert heard.number == number
        if isinstance(heard, Refused):
            raise error_of(heard.fault)
        assert isinstance(heard, Reply)
        return heard.body


def two() -> tuple[RemoteRates, RemoteRates]:
    parent = _Parent()
    one, other = (RemoteRates(_Link(parent)) for _ in range(2))  # type: ignore[arg-type]
    return one, other


async def test_two_workers_grant_exactly_the_limit() -> None:
    rates = two()
    for turn in range(600):
        await rates[turn % 2].take_request(ALICE)
    for each in rates:
        with pytest.raises(RateLimited) as caught:
            await each.take_request(ALICE)
        assert caught.value.retry_after == 1


async def test_what_one_spends_the_other_knows() -> None:
    one, other = two()
    one.settle(ALICE, await one.reserve(ALICE, 20), 45)
    requests, tokens = await other.levels(ALICE, reserved=20)
    assert (requests.what, requests.remaining) == ("requests", 600)
    assert (tokens.what, tokens.remaining, tokens.reserved) == ("tokens", 5, 20)
    with pytest.raises(RateLimited, match="alice"):
        await other.reserve(ALICE, 6)
    assert await other.reserve(ALICE, 5) == 5


async def test_a_limit_that_one_worker_knows_later_stays_exact() -> None:
    """Each of them reads the key file by itself; back and forth gives no full bucket."""
    one, other = two()
    changed = msgspec.structs.replace(ALICE, tokens_per_minute=60)
    assert await one.reserve(ALICE, 50) == 50
    assert await other.reserve(changed, 60) == 60
    for rates, key in ((one, ALICE), (other, changed), (one, ALICE)):
        with pytest.raises(RateLimited):
            await rates.reserve(key, 1)


async def test_a_key_without_limits_asks_for_nothing() -> None:
    link = _Link(_Parent())
    rates = RemoteRates(link)  # type: ignore[arg-type]
    for key in (None, BOB):
        await rates.take_request(key)
        rates.settle(key, await rates.reserve(key, 1000), 1000)
        assert await rates.levels(key) == []
    assert link.sent == 0
