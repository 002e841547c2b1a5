"""Where new requests go while replicas change: real links, over streams that the test writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from maestrale.cluster.dispatcher import Dispatcher
from maestrale.cluster.options import LONGEST_NAME, app_name
from maestrale.cluster.replica_pool import ReplicaPool
from maestrale.cluster.routing_table import RoutingTable
from maestrale.cluster.wire import Hello, pack
from maestrale.engines.base import EngineInfo, EngineStats, GenerationRequest


def info(fingerprint: str) -> EngineInfo:
    return EngineInfo(
        engine="scripted",
        version="1",
        fingerprint=fingerprint,
        max_model_len=256,
        vocab_size=256,
        kv_capacity_tokens=4096,
        max_num_seqs=8,
        features=frozenset(),
    )


class Handle:
    """In the place of Ray Serve's: a replica is named `fingerprint:number` or `model!…`."""

    def __init__(self) -> None:
        self.runs: list[str] = []

    def options(self, **_: object) -> Handle:
        return self

    @property
    def listen(self) -> Any:
        return _Method(self._listen)

    @property
    def run(self) -> Any:
        return _Method(self._run)

    async def _listen(self, session: str, name: str, pause: float) -> AsyncIterator[bytes]:
        model, _, rest = name.rpartition("!")
        fingerprint = rest.partition(":")[0]
        yield pack([Hello(model or "m", info(fingerprint), "node", "host", 1, 2, EngineStats())])
        await asyncio.Event().wait()

    async def _run(self, api: str, wire_id: str, payload: bytes) -> None:
        self.runs.append(wire_id)
        await asyncio.Event().wait()


class _Method:
    def __init__(self, function: Callable[..., Any]) -> None:
        self.remote = function


class Air:
    """A fleet with its traffic."""

    def __init__(self) -> None:
        self.directory, self.handle = RoutingTable(), Handle()
        self.traffic = Dispatcher("api", self.directory, most_failures=5, window=60)
        self.fleet = ReplicaPool("m", "api", self.directory, self.traffic)
        self.traffic.fleet, self.fleet.handle = self.fleet, self.handle
        self.pauses: list[bool] = []
        self.fleet.on_pause(self.pauses.append)

    async def now(self, *names: str) -> str:
        """Ray Serve says that these take requests; returns the fingerprint that new ones get."""
        self.fleet.replicas_are(frozenset(names))
        for _ in range(5):
            await asyncio.sleep(0)
        return self.fleet.info.fingerprint if self.fleet.info else ""


def flown(test: Callable[[Air], Coroutine[Any, Any, None]]) -> None:
    async def go() -> None:
        air = Air()
        try:
            await test(air)
        finally:
            await air.fleet.leave()
            await air.traffic.leave()

    asyncio.run(go())


def request() -> GenerationRequest:
    return GenerationRequest(request_id="r", prompt=(1, 2, 3), max_tokens=4, seed=0)


def test_a_rolling_change_moves_new_requests_over_once_without_a_pause() -> None:
    async def go(air: Air) -> None:
        assert await air.now("old:1", "old:2") == "old"
        assert await air.now("old:2") == "old"
        assert await air.now("old:2", "new:1") == "old"  # as many: the present one stays
        assert await air.now("new:1") == "new"
        assert await air.now("new:1", "new:2") == "new"
        assert air.pauses == [False]  # from the first replica on, never without one

    flown(go)


def test_most_replicas_decide_and_one_that_differs_gets_nothing() -> None:
    async def go(air: Air) -> None:
        assert await air.now("a:1", "a:2", "b:1") == "a"
        assert [link.name for link in air.fleet.usable()] in (["a:1", "a:2"], ["a:2", "a:1"])
        assert await air.now("b:1") == "b"
        assert await air.now("b:1", "a:3") == "b"
        assert await air.now("b:1", "a:3", "a:4") == "a"

    flown(go)


def test_without_replicas_there_is_a_pause_and_what_waits_goes_to_the_next() -> None:
    async def go(air: Air) -> None:
        await air.now("old:1")
        await air.now()
        assert air.pauses == [False, True]
        flight = air.traffic.begin(request())
        assert not flight.wire_id
        await air.now("new:1")
        assert air.pauses == [False, True, False]
        assert flight.entry.fingerprint == "new"
        assert air.handle.runs == [flight.wire_id]

    flown(go)


def test_a_request_on_its_way_to_replicas_that_are_gone_goes_anew() -> None:
    async def go(air: Air) -> None:
        await air.now("old:1", "new:1", "old:2")
        flight = air.traffic.begin(request())
        before = flight.wire_id
        assert air.directory.wanted[before].fingerprint == "old"
        await air.now("new:1")
        assert before not in air.directory.wanted
        assert air.directory.wanted[flight.wire_id].fingerprint == "new"
        assert air.traffic.counters.replayed == 0

    flown(go)


def test_a_request_that_a_replica_has_stays_there_while_it_drains() -> None:
    async def go(air: Air) -> None:
        await air.now("old:1")
        flight = air.traffic.begin(request())
        wire_id = flight.wire_id
        air.traffic.routed(wire_id, "old:1")
        await air.now("new:1")
        assert (flight.wire_id, flight.replica) == (wire_id, "old:1")
        assert {link.name: link.state for link in air.fleet.all()} == {
            "old:1": "draining",
            "new:1": "up",
        }

    flown(go)


def test_replicas_of_another_model_are_told_and_get_nothing() -> None:
    async def go(air: Air) -> None:
        await air.now("other!x:1")
        assert air.fleet.foreign() == "other"
        assert air.fleet.usable() == []
        await air.now("other!x:1", "x:2")
        assert air.fleet.foreign() == ""

    flown(go)


def test_each_model_and_revision_has_an_application_of_its_own() -> None:
    assert app_name("mistralai/Mistral-7B-Instruct-v0.2", None) == (
        "maestrale-mistralai-Mistral-7B-Instruct-v0.2"
    )
    assert app_name("m", None) != app_name("m", "abc") != app_name("n", "abc")
    assert app_name("/a folder/with #signs/", None) == "maestrale-a-folder-with-signs"
    assert len(app_name("x" * 500, "main")) <= LONGEST_NAME + len("maestrale-")
