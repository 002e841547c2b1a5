"""Limits and counts that several workers have of their parent are as exact as one process's."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from maestrale.api.accounts import KeyAccounts
from maestrale.api.rate import RateLimiter
from maestrale.engines.base import GenerationRequest, TokenDelta
from maestrale.errors import RateLimited
from maestrale.keys import Key
from maestrale.serve.workers.cut import Work
from maestrale.serve.workers.handle import WorkerHandle
from maestrale.serve.workers.messages import (
    FromApiWorker,
    Granted,
    Refused,
    Reply,
    ToApiWorker,
    error_of,
)
from maestrale.serve.workers.remote import RemoteAccounts
from maestrale.usage import UsageRow

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
        self.counted: list[UsageRow] = []
        limiter = RateLimiter(clock=lambda: NOON)
        self.accounts = KeyAccounts(limiter=limiter, observe=self.counted.append)
        self.charged: dict[str, int] = {}  # that can be asked for again: tokens counted

    async def charge(self, answer: str, tokens: int) -> int | None:
        before = self.charged.get(answer)
        if before is not None:
            self.charged[answer] = max(before, tokens)
        return before

    def host(self, model: str) -> Any:
        return SimpleNamespace(deployment=SimpleNamespace(name=model))


class _Link:
    """A worker's link and the parent's handle of it, without a socket between them."""

    def __init__(self, parent: _Parent) -> None:
        self._handle = WorkerHandle.__new__(WorkerHandle)
        self._handle._parent = parent  # type: ignore[assignment]
        self._handle.send = self._hear  # type: ignore[method-assign]
        self._handle._charges = set()
        self._handle._running, self._handle._asked, self._handle._work = {}, {}, {}
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
        await asyncio.sleep(0)  # what is granted when it is written
        heard = self._heard
        assert heard.number == number
        if isinstance(heard, Refused):
            raise error_of(heard.fault)
        assert isinstance(heard, Reply | Granted)
        return heard.body if isinstance(heard, Reply) else b""

    @property
    def work(self) -> dict[str, Work]:
        return self._handle._work

    async def die(self) -> None:
        await self._handle.clear()


def two() -> tuple[RemoteAccounts, RemoteAccounts]:
    parent = _Parent()
    one, other = (RemoteAccounts(_Link(parent)) for _ in range(2))  # type: ignore[arg-type]
    return one, other


def used(tokens: int, key: str = "alice") -> UsageRow:
    return UsageRow(day="2030-12-31", key=key, requests=1, completion_tokens=tokens)


async def test_two_workers_grant_exactly_the_limit() -> None:
    accounts = two()
    for turn in range(600):
        await accounts[turn % 2].take_request(ALICE)
    for each in accounts:
        with pytest.raises(RateLimited) as caught:
            await each.take_request(ALICE)
        assert caught.value.retry_after == 1


async def test_what_one_spends_the_other_knows() -> None:
    one, other = two()
    await one.settle(ALICE, await one.reserve(ALICE, 20, None), used(45))
    charge = await other.reserve(ALICE, 5, await other.take_request(ALICE))
    requests, tokens = await other.levels(ALICE, charge)
    assert (requests.what, requests.remaining) == ("requests", 599)
    assert (tokens.what, tokens.remaining, tokens.reserved) == ("tokens", 0, 5)
    with pytest.raises(RateLimited, match="alice"):
        await other.reserve(ALICE, 6, None)


async def test_a_limit_that_one_worker_knows_later_stays_exact() -> None:
    """Each of them reads the key file by itself; back and forth gives no full bucket."""
    one, other = two()
    changed = msgspec.structs.replace(ALICE, tokens_per_minute=60)
    await one.reserve(ALICE, 50, None)
    await other.reserve(changed, 60, None)
    for accounts, key in ((one, ALICE), (other, changed), (one, ALICE)):
        with pytest.raises(RateLimited):
            await accounts.reserve(key, 1, None)


async def test_a_key_without_limits_asks_for_nothing_and_is_counted() -> None:
    parent = _Parent()
    link = _Link(parent)
    accounts = RemoteAccounts(link)  # type: ignore[arg-type]
    for key in (None, BOB):
        charge = await accounts.reserve(key, 1000, await accounts.take_request(key))
        assert charge is None
        assert await accounts.levels(key, charge) == []
        assert link.sent == 0
    await accounts.settle(BOB, None, used(7, "bob"))
    assert parent.counted == [used(7, "bob")]


async def test_a_day_is_shared_by_two_workers_and_what_a_dead_one_held_is_free() -> None:
    parent = _Parent()
    links = [_Link(parent), _Link(parent)]
    one, other = (RemoteAccounts(link) for link in links)  # type: ignore[arg-type]
    key = Key(name="carol", sha256="cc" * 32, requests_per_day=3, tokens_per_day=100)
    await one.reserve(key, 60, await one.take_request(key))
    await other.take_request(key)
    with pytest.raises(RateLimited, match="60 are used or reserved") as caught:
        await other.reserve(key, 60, None)
    assert caught.value.code == "tokens_per_day_exceeded"
    assert caught.value.retry_after == 2  # the one in work may give back what it holds
    await links[0].die()
    charge = await other.reserve(key, 60, await other.take_request(key))
    requests, tokens = await other.levels(key, charge)
    assert (requests.window, requests.remaining) == ("day", 1)
    assert (tokens.window, tokens.remaining) == ("day", 40)


async def test_what_a_dead_worker_had_used_is_counted_once() -> None:
    """An answer that went on in another process was charged there, or will be."""
    parent = _Parent()
    link = _Link(parent)
    for answer in ("lost", "gone on with", "done", "done.again"):
        request = GenerationRequest(
            request_id=f"{answer}-0", prompt=(1, 2, 3), max_tokens=9, seed=1, share="alice"
        )
        work = link.work[request.request_id] = Work("m", request)
        work.take(TokenDelta((4, 5), cached_tokens=1))
        work.take(TokenDelta((6,)))
    parent.charged.update({"gone on with": 1, "done": 9})
    await link.die()
    assert [
        (each.requests, each.prompt_tokens, each.completion_tokens) for each in parent.counted
    ] == [
        (1, 3, 3),
        (0, 0, 2),
    ]
    assert parent.charged["gone on with"] == 3
