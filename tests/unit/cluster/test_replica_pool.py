"""Where new requests go while replicas change, over streams that the test writes."""

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
from maestrale.supervise.ledger import Entry


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


class Cluster:
    """A pool of replicas with its dispatcher."""

    def __init__(self) -> None:
        self.table, self.handle = RoutingTable(), Handle()
        self.dispatcher = Dispatcher("api", self.table, most_failures=5, window=60)
        self.pool = ReplicaPool("m", "api", self.table, self.dispatcher)
        self.dispatcher.pool, self.pool.handle = self.pool, self.handle
        self.pauses: list[bool] = []
        self.pool.on_pause(self.pauses.append)

    async def now(self, *names: str) -> str:
        """Ray Serve says that these take requests; returns the fingerprint that new ones get."""
        self.pool.replicas_are(frozenset(names))
        for _ in range(5):
            await asyncio.sleep(0)
        return self.pool.info.fingerprint if self.pool.info else ""


def on_a_pool(test: Callable[[Cluster], Coroutine[Any, Any, None]]) -> None:
    async def go() -> None:
        cluster = Cluster()
        try:
            await test(cluster)
        finally:
            await cluster.pool.leave()
            await cluster.dispatcher.leave()

    asyncio.run(go())


def wire_of(entry: Entry) -> str:
    assert entry.wire_id is not None
    return entry.wire_id


def request() -> GenerationRequest:
    return GenerationRequest(request_id="r", prompt=(1, 2, 3), max_tokens=4, seed=0)


def test_a_rolling_change_moves_new_requests_over_once_without_a_pause() -> None:
    async def go(cluster: Cluster) -> None:
        assert await cluster.now("old:1", "old:2") == "old"
        assert await cluster.now("old:2") == "old"
        assert await cluster.now("old:2", "new:1") == "old"  # as many: the present one stays
        assert await cluster.now("new:1") == "new"
        assert await cluster.now("new:1", "new:2") == "new"
        assert cluster.pauses == [False]  # from the first replica on, never without one

    on_a_pool(go)


def test_most_replicas_decide_and_one_that_differs_gets_nothing() -> None:
    async def go(cluster: Cluster) -> None:
        assert await cluster.now("a:1", "a:2", "b:1") == "a"
        assert {each.name for each in cluster.pool.usable()} == {"a:1", "a:2"}
        assert await cluster.now("b:1") == "b"
        assert await cluster.now("b:1", "a:3") == "b"
        assert await cluster.now("b:1", "a:3", "a:4") == "a"

    on_a_pool(go)


def test_without_replicas_there_is_a_pause_and_what_waits_goes_to_the_next() -> None:
    async def go(cluster: Cluster) -> None:
        await cluster.now("old:1")
        await cluster.now()
        assert cluster.pauses == [False, True]
        entry = cluster.dispatcher.ledger.open(request())
        assert entry.wire_id is None
        await cluster.now("new:1")
        assert cluster.pauses == [False, True, False]
        assert entry.fingerprint == "new"
        assert cluster.handle.runs == [wire_of(entry)]

    on_a_pool(go)


def test_a_request_on_its_way_to_replicas_that_are_gone_goes_anew() -> None:
    async def go(cluster: Cluster) -> None:
        await cluster.now("old:1", "new:1", "old:2")
        entry = cluster.dispatcher.ledger.open(request())
        before = wire_of(entry)
        assert cluster.table.pending[before].fingerprint == "old"
        await cluster.now("new:1")
        assert before not in cluster.table.pending
        assert cluster.table.pending[wire_of(entry)].fingerprint == "new"
        assert cluster.dispatcher.ledger.counters.replayed == 0

    on_a_pool(go)


def test_a_request_that_a_replica_has_stays_there_while_it_drains() -> None:
    async def go(cluster: Cluster) -> None:
        await cluster.now("old:1")
        entry = cluster.dispatcher.ledger.open(request())
        wire_id = wire_of(entry)
        cluster.dispatcher.routed(wire_id, "old:1")
        await cluster.now("new:1")
        assert entry.wire_id == wire_id
        assert cluster.pool.holding("old:1", wire_id) is not None
        assert {connection.name: connection.state for connection in cluster.pool.all()} == {
            "old:1": "draining",
            "new:1": "up",
        }

    on_a_pool(go)


def test_replicas_of_another_model_are_told_and_get_nothing() -> None:
    async def go(cluster: Cluster) -> None:
        await cluster.now("other!x:1")
        assert cluster.pool.foreign() == "other"
        assert cluster.pool.usable() == []
        await cluster.now("other!x:1", "x:2")
        assert cluster.pool.foreign() == ""

    on_a_pool(go)


def test_each_model_and_revision_has_an_application_of_its_own() -> None:
    assert app_name("mistralai/Mistral-7B-Instruct-v0.2", None) == (
        "maestrale-mistralai-Mistral-7B-Instruct-v0.2"
    )
    assert app_name("m", None) != app_name("m", "abc") != app_name("n", "abc")
    assert app_name("m", None, "coder") != app_name("m", None, "chat")
    assert app_name("/a folder/with #signs/", None) == "maestrale-a-folder-with-signs"
    assert len(app_name("x" * 500, "main")) <= LONGEST_NAME + len("maestrale-")
