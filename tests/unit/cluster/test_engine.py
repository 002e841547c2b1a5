"""The engine's life over a Ray Serve that the test plays: started, unloaded, started again."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

import maestrale.cluster
from maestrale.cluster.engine import RayServeEngine
from maestrale.cluster.options import ClusterOptions
from maestrale.cluster.routing_table import routing_table
from maestrale.cluster.runtime import Runtime
from maestrale.cluster.wire import Beat, Hello, pack
from maestrale.engines.base import (
    EngineConfig,
    EngineInfo,
    EngineStats,
    GenerationRequest,
    TokenDelta,
)
from maestrale.errors import EngineError, Unavailable
from maestrale.supervise.messages import Delta

APP, MODEL = "maestrale-m", "m"
CONFIG = EngineConfig(engine="scripted", model_dir="")
INFO = EngineInfo(
    engine="scripted",
    version="1",
    fingerprint="",
    max_model_len=256,
    vocab_size=256,
    kv_capacity_tokens=4096,
    max_num_seqs=8,
    features=frozenset(),
)


@dataclass
class Deployed:
    """In the place of the cluster's note."""

    api: str
    config: EngineConfig
    options: ClusterOptions


class Ray:
    """One application, of one replica that answers each request with a token."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.there: Deployed | None = None
        self.fault = ""
        self.slow = False
        self.Deployed = Deployed

    # What cluster/deployment.py has

    def deploy(self, wanted: Deployed) -> None:
        self.told.append("deploy")
        self.there = wanted

    def deployed(self, app: str) -> Deployed | None:
        return self.there

    def others(self, app: str) -> list[str]:
        return []

    def remove(self, app: str) -> None:
        self.told.append("remove")
        self.there = None
        routing_table(APP).on_replicas(frozenset())

    def trouble(self, app: str) -> tuple[str, bool]:
        return self.fault, bool(self.fault)

    def handle(self, app: str) -> Ray:
        return self

    # What Ray Serve's handle has

    def options(self, **_: object) -> Ray:
        return self

    @property
    def control(self) -> Any:
        return SimpleNamespace(remote=self._control)

    @property
    def listen(self) -> Any:
        return SimpleNamespace(remote=self._listen)

    @property
    def run(self) -> Any:
        return SimpleNamespace(remote=self._run)

    async def _control(self, *_: object) -> None:
        if not self.fault and not self.slow:
            routing_table(APP).on_replicas(frozenset({"r"}))

    async def _listen(self, session: str, name: str, pause: float) -> AsyncIterator[bytes]:
        assert self.there is not None
        self.answers: asyncio.Queue[Delta] = asyncio.Queue()
        hello = Hello(MODEL, INFO, "node", "host", 1, 2, EngineStats(), self.there.api)
        yield pack([hello])
        while True:
            delta = await self.answers.get()
            yield pack([delta, Beat(EngineStats(generation_tokens=1), ())])

    async def _run(self, api: str, wire_id: str, payload: bytes) -> None:
        routing_table(APP).routed(wire_id, "r")
        self.answers.put_nowait(Delta(wire_id, TokenDelta((5,), "length")))
        await asyncio.Event().wait()


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    played = Ray()
    monkeypatch.setitem(sys.modules, "maestrale.cluster.deployment", played)
    monkeypatch.setattr(maestrale.cluster, "deployment", played, raising=False)
    monkeypatch.setattr(Runtime, "join", lambda self: played.told.append("join"))
    monkeypatch.setattr(Runtime, "leave", lambda self: played.told.append("leave"))
    return played


def engine(**more: Any) -> RayServeEngine:
    options = ClusterOptions(model=MODEL, least=1, most=2, address="there:1", app=APP)
    return RayServeEngine(CONFIG, options, **more)


async def ask(engine: RayServeEngine) -> list[int]:
    request = GenerationRequest(request_id="r", prompt=(1, 2), max_tokens=1, seed=0)
    return [token async for delta in engine.generate(request) for token in delta.token_ids]


def run(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), 20))


def test_one_that_is_known_beforehand_is_started_and_unloaded_again_and_again(ray: Ray) -> None:
    async def scene() -> None:
        served = engine(expected=INFO)
        assert served.describe().max_model_len == 256
        for turn in (1, 2):
            assert (await served.health()).state == "unloaded"
            assert (served.stats().loaded, served.stats().up, served.paused) == (False, True, False)
            with pytest.raises(Unavailable):
                await ask(served)
            await served.start()
            assert (await served.health()).state == "ready"
            assert await ask(served) == [5]
            while served.stats().generation_tokens < turn:
                await asyncio.sleep(0)
            await served.unload()
            assert served.stats().generation_tokens == turn
            assert served.replicas() == []
        assert ray.told == ["join", *["deploy", "remove"] * 2]
        await served.close()
        assert ray.told[-1] == "leave"

    run(scene)


def test_a_start_that_fails_can_be_tried_again_where_it_is_known_beforehand(ray: Ray) -> None:
    async def scene() -> None:
        ray.fault = "There is no such model."
        served = engine(expected=INFO)
        with pytest.raises(EngineError, match="There is no such model"):
            await served.start()
        assert (await served.health()).state == "unloaded"
        assert ray.told == ["join", "deploy", "remove"]
        ray.fault = ""
        await served.start()
        assert await ask(served) == [5]
        await served.close()
        assert ray.there is None
        unknown = engine()
        ray.fault = "There is no such model."
        with pytest.raises(EngineError):
            await unknown.start()
        assert (await unknown.health()).state == "dead"
        assert ray.told[-1] == "leave"

    run(scene)


def test_it_can_be_closed_while_it_starts(ray: Ray) -> None:
    async def scene() -> None:
        ray.slow = True
        served = engine(expected=INFO)
        starting = asyncio.create_task(served.start())
        while ray.told != ["join", "deploy"]:
            await asyncio.sleep(0.01)
        assert (await served.health()).state == "loading"
        await served.close()
        with pytest.raises(EngineError, match="stopping"):
            await starting
        assert ray.told == ["join", "deploy", "remove", "leave"]

    run(scene)


def test_what_another_server_has_deployed_meanwhile_is_left_alone(ray: Ray) -> None:
    async def scene() -> None:
        served = engine()
        await served.start()
        assert ray.there is not None
        ray.there = Deployed("another", CONFIG, ray.there.options)
        await served.unload()
        assert ray.told == ["join", "deploy"]
        await served.close()

    run(scene)
