"""The load generator: closed loop (so many at once) or open loop (so many a second).

In a closed loop each of N users starts the next conversation when the last has ended: it shows
what a server can do at most. In an open loop conversations begin at random times, whether or not
the server keeps up: it shows what users would see, and what happens beyond the limit.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from maestrale.bench.client import Client, Exchange
from maestrale.bench.conversation import BenchConversation, Message


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Times of arrival in seconds from the start, without end; `rate` > 0 a second on average.

    The gaps are independent and exponential, as those of many users who don't know of each
    other: now and then a burst, now and then a pause.
    """
    generator = random.Random(f"arrivals {seed}")  # noqa: S311 - repeatable, no secret
    time = 0.0
    while True:
        time += generator.expovariate(rate)
        yield time


_TICK = 0.25  # seconds between calls of `watch`


@dataclass(frozen=True, kw_only=True)
class LoadPoint:
    """One load to put on the server: either `concurrency` or `rate` is given.

    It ends after `duration` seconds or `requests` requests, whichever comes first; requests in
    flight then are waited for.
    """

    concurrency: int | None = None
    rate: float | None = None
    duration: float | None = None
    requests: int | None = None
    seed: int = 0

    def __str__(self) -> str:
        if self.rate is not None:
            return f"{self.rate:g}/s"
        return f"{self.concurrency} at once"


@dataclass
class RequestRecord:
    """One request of a run."""

    label: str
    exchange: Exchange


@dataclass
class Run:
    """What one point gave. `begun` and `ended` bound the window in which tokens count."""

    point: LoadPoint
    records: list[RequestRecord] = field(default_factory=list)
    begun: float = 0.0
    ended: float = 0.0
    running: int = 0
    """Requests in flight now."""
    sent: int = 0
    lateness: list[float] = field(default_factory=list)
    """Open loop: how long after its time each conversation was begun, in seconds."""
    generator_share: float = 0.0
    """CPU time of this process, as a share of one core."""

    @property
    def elapsed(self) -> float:
        return (self.ended or time.perf_counter()) - self.begun


class Generator:
    """Puts points of load on one server."""

    def __init__(self, client: Client, model: str, series: Iterator[BenchConversation]) -> None:
        self._client = client
        self._model = model
        self._series = series

    async def run(self, point: LoadPoint, watch: Callable[[Run], None] = lambda _: None) -> Run:
        """Load the server with one point; `watch` sees the run a few times a second."""
        run = Run(point, begun=time.perf_counter())
        cpu = time.process_time()
        watcher = asyncio.create_task(self._watch(run, watch))
        try:
            if point.rate is None:
                users = range(point.concurrency or 1)
                await _all(*(self._user(run) for _ in users))
            else:
                await self._arrivals(run, point.rate)
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
        last = max((record.exchange.ended for record in run.records), default=run.begun)
        run.ended = min(last, self._deadline(run))
        run.generator_share = (time.process_time() - cpu) / (time.perf_counter() - run.begun)
        watch(run)
        return run

    async def warm_up(self, conversations: int, concurrency: int) -> Run:
        """A short closed loop whose result nobody counts."""
        point = LoadPoint(
            concurrency=max(1, min(concurrency, conversations)), requests=conversations
        )
        return await self.run(point)

    @staticmethod
    async def _watch(run: Run, watch: Callable[[Run], None]) -> None:
        while True:
            watch(run)
            await asyncio.sleep(_TICK)

    @staticmethod
    def _deadline(run: Run) -> float:
        return run.begun + (run.point.duration or math.inf)

    def _over(self, run: Run) -> bool:
        enough = run.point.requests is not None and run.sent >= run.point.requests
        return enough or time.perf_counter() >= self._deadline(run)

    async def _user(self, run: Run) -> None:
        while not self._over(run):
            await self._converse(run, next(self._series))

    async def _arrivals(self, run: Run, rate: float) -> None:
        async with asyncio.TaskGroup() as group:
            for number, at in enumerate(poisson(rate, run.point.seed)):
                due = run.begun + at
                enough = run.point.requests is not None and number >= run.point.requests
                if enough or due > self._deadline(run):
                    return
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                run.lateness.append(max(0.0, time.perf_counter() - due))
                group.create_task(self._converse(run, next(self._series), due))

    async def _converse(
        self, run: Run, conversation: BenchConversation, due: float | None = None
    ) -> None:
        """Ask turn after turn; a turn that fails ends the conversation."""
        history: list[Message] = []
        for number, turn in enumerate(conversation.turns):
            # A closed loop may stop between turns; who has arrived in an open loop stays.
            if number and due is None and self._over(run):
                return
            history += turn.messages
            keep_text = number + 1 < len(conversation.turns)
            run.sent += 1
            run.running += 1
            body = msgspec.json.encode(self._client.api.body(self._model, turn, history))
            try:
                exchange = await self._client.ask(
                    body, keep_text=keep_text, due=None if number else due
                )
            finally:
                run.running -= 1
            run.records.append(RequestRecord(turn.label, exchange))
            if exchange.error is not None:
                # Who is refused comes back soon, not at once.
                await asyncio.sleep(0.05)
                return
            history.append({"role": "assistant", "content": exchange.text})


async def _all(*users: Any) -> None:
    async with asyncio.TaskGroup() as group:
        for user in users:
            group.create_task(user)


def points(
    concurrency: tuple[int, ...],
    rates: tuple[float, ...],
    *,
    duration: float | None,
    requests: int | None,
    seed: int,
) -> list[LoadPoint]:
    """A point for each concurrency and each rate, in the order given."""
    closed = (
        LoadPoint(concurrency=each, duration=duration, requests=requests, seed=seed)
        for each in concurrency
    )
    opened = (
        LoadPoint(rate=each, duration=duration, requests=requests, seed=seed) for each in rates
    )
    return list(itertools.chain(closed, opened))
