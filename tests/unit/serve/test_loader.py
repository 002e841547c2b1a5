"""The loader with engines that only pretend: no process, no time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from api_app import make_settings
from maestrale.api.backend import Backend
from maestrale.config.settings import Settings
from maestrale.engines.base import EngineConfig, EngineInfo, Forecast
from maestrale.errors import (
    Conflict,
    EngineError,
    ModelDoesNotFit,
    ModelError,
    NoMemoryLeft,
    SettingsError,
    Unavailable,
)
from maestrale.serve.deployment import DeploymentHost
from maestrale.serve.loader import ModelLoader
from maestrale.serve.progress import StartProgress
from maestrale.supervise.process import SupervisedEngine

MIB = 1 << 20
CONFIG = EngineConfig(engine="scripted", model_dir="")
INFO = EngineInfo(
    engine="scripted",
    version="1",
    fingerprint="",
    max_model_len=100,
    vocab_size=10,
    kv_capacity_tokens=100,
    max_num_seqs=4,
    features=frozenset(),
)


class PretendedEngine(SupervisedEngine):
    """Starts and ends in no time, unless it is told to fail or to wait."""

    fault = ""

    def __init__(self) -> None:
        super().__init__(CONFIG, expected=INFO)
        self.told: list[str] = []
        self.may_start = asyncio.Event()
        self.may_start.set()

    async def start(self) -> None:
        await self.may_start.wait()
        if self.fault:
            raise EngineError(self.fault)
        self.told.append("load")
        self._unloaded, self._up = False, True

    async def unload(self) -> None:
        self.told.append("unload")
        self._unloaded, self._up = True, False


class PretendedHost(DeploymentHost):
    """Takes so many MiB, as its settings say of the KV cache; one on vLLM is started to tell."""

    def forecast(self, config: EngineConfig, memory: int) -> Forecast | None:
        if self.settings.engine == "vllm":
            return None
        if self.settings.max_model_len == 1:
            raise NoMemoryLeft("No memory is left for the KV cache.")
        return Forecast(config=config, info=INFO, memory=self.settings.kv_cache_bytes or 0)

    def expect(self, forecast: Forecast) -> PretendedEngine:
        self.engine: PretendedEngine = PretendedEngine()
        return self.engine

    async def start(self, config: EngineConfig) -> PretendedEngine:
        self.engine = PretendedEngine()
        await self.engine.start()
        return self.engine

    async def load(self) -> None:
        await self.engine.start()

    def taken(self) -> int:
        return self.settings.kv_cache_bytes or 0


class World:
    """Several models and their loader; `told` counts the changes that were told of."""

    def __init__(self, *models: Settings, budget: str = "100MiB", **more: Any) -> None:
        settings = make_settings(memory_budget=budget, **more)
        self.backend = Backend(settings, models)
        self.told = 0
        self.broken: dict[str, str] = {}
        self.loader = ModelLoader(settings, len(models), self._changed, self._prepare)
        self.hosts = {each.id: PretendedHost(each) for each in self.backend.deployments}

    async def _changed(self) -> None:
        self.told += 1

    async def adopt(self) -> World:
        for host in self.hosts.values():
            await self._prepare(host)
        return self

    async def _prepare(self, host: DeploymentHost) -> None:
        id_ = host.deployment.id
        try:
            if id_ in self.broken:
                raise ModelError(self.broken[id_])
            with StartProgress(lambda phase: None) as progress:
                engine = await self.loader.adopt(host, id_, CONFIG, progress)
        except ModelError as error:
            self.loader.forget(host)
            await host.fail(error)
            raise
        host.deployment.open(engine, id_)

    def state(self) -> dict[str, list[str]]:
        return {id_: host.engine.told for id_, host in self.hosts.items()}

    async def ask(self, id_: str, end: asyncio.Event | None = None) -> None:
        """A request that is answered at once, or when told."""
        async with self.hosts[id_].deployment.admission.slot("key", 1, 4):
            if end is not None:
                await end.wait()


def model(name: str, size: int = 60, **more: Any) -> Settings:
    return make_settings(
        model=name, served_model_name=(name,), kv_cache_memory=f"{size}MiB", **more
    )


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def run(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), 20))


def test_a_request_has_its_model_loaded_and_another_one_unloaded() -> None:
    async def scene() -> None:
        world = await World(model("a"), model("b")).adopt()
        assert world.state() == {"a": [], "b": []}
        await world.ask("a")
        assert world.state() == {"a": ["load"], "b": []}
        await world.ask("b")
        assert world.state() == {"a": ["load", "unload"], "b": ["load"]}
        assert world.told == 3

    run(scene)


def test_one_with_work_in_flight_stays_and_the_other_waits() -> None:
    async def scene() -> None:
        world = await World(model("a"), model("b")).adopt()
        end = asyncio.Event()
        running = asyncio.create_task(world.ask("a", end))
        await settle()
        waiting = asyncio.create_task(world.ask("b"))
        await settle()  # from now on a lets nobody in
        later = asyncio.create_task(world.ask("a"))
        await settle()
        assert world.state() == {"a": ["load"], "b": []}
        end.set()
        await asyncio.gather(running, waiting, later)
        assert world.state() == {"a": ["load", "unload", "load"], "b": ["load", "unload"]}

    run(scene)


def test_the_first_and_the_pinned_are_loaded_at_the_start() -> None:
    async def scene() -> None:
        world = await World(
            model("a", 30), model("b", 30), model("c", 30, pinned=("c",)), pinned=("c",)
        ).adopt()
        found = [id_ for id_, host in world.hosts.items() if world.loader.at_start(host)]
        assert found == ["a", "c"]
        for id_ in found:
            await world.loader.load(world.hosts[id_])
        assert world.state() == {"a": ["load"], "b": [], "c": ["load"]}
        world.loader.check_pinned(make_settings(pinned=("c",)))
        with pytest.raises(SettingsError, match="no model is called 'd'; there is a, b, c"):
            world.loader.check_pinned(make_settings(pinned=("d",)))

    run(scene)


def test_one_that_does_not_fit_is_refused_with_figures() -> None:
    async def scene() -> None:
        with pytest.raises(ModelDoesNotFit, match=r"a takes 120 MiB .* 20 MiB more"):
            await World(model("a", 120), model("b")).adopt()
        with pytest.raises(ModelDoesNotFit, match=r"b takes 60 MiB .* 20 MiB more"):
            await World(model("a", pinned=("a",)), model("b")).adopt()
        with pytest.raises(ModelDoesNotFit, match=r"b takes 60 .* stays beside .* 20 MiB more"):
            await World(model("a"), model("b", pinned=("b",))).adopt()

    run(scene)


def test_a_failure_is_told_to_who_waits_and_tried_again_later() -> None:
    async def scene() -> None:
        world = await World(model("a"), model("b")).adopt()
        host = world.hosts["a"]
        host.engine.fault = "The file is gone.\nand more lines"
        with pytest.raises(Unavailable, match=r"^The file is gone.$") as caught:
            await world.ask("a")
        assert (caught.value.code, caught.value.retry_after) == ("model_not_loaded", 1)
        health = await host.deployment.health()
        assert (health.state, health.detail) == ("dead", "The file is gone.")
        assert host.deployment.retry_after >= 1
        await world.ask("b")
        host.engine.fault = ""
        world.loader.steer("a", "load")  # the operator needn't wait
        await world.ask("a")
        assert (await host.deployment.health()).state == "ready"
        host.engine.fault = "It is gone again."
        await world.ask("b")
        with pytest.raises(EngineError, match="gone again"):
            await world.loader.load(host)

    run(scene)


def test_an_idle_model_is_unloaded_after_its_time() -> None:
    async def scene() -> None:
        world = await World(model("a", keep_alive="0.05s"), model("b", 30)).adopt()
        await world.ask("a")
        await world.ask("b")
        await asyncio.sleep(0.3)
        assert world.state() == {"a": ["load", "unload"], "b": ["load"]}

    run(scene)


def test_the_operator_is_told_what_can_not_be() -> None:
    async def scene() -> None:
        world = await World(model("a"), model("b")).adopt()
        end = asyncio.Event()
        running = asyncio.create_task(world.ask("a", end))
        await settle()
        with pytest.raises(Conflict, match="in work or waiting"):
            world.loader.steer("a", "unload")
        end.set()
        await running
        world.loader.steer("a", "unload")
        await settle()
        assert world.state()["a"] == ["load", "unload"]
        with pytest.raises(Conflict, match="stays as it is"):
            world.loader.steer("c", "load")

    run(scene)


def test_who_leaves_while_a_model_is_loaded_leaves_nothing_behind() -> None:
    async def scene() -> None:
        world = await World(model("a"), model("b")).adopt()
        world.hosts["a"].engine.may_start.clear()
        waiting = asyncio.create_task(world.ask("a"))
        await settle()
        assert world.hosts["a"].deployment.admission.waiting == 1
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        world.hosts["a"].engine.may_start.set()
        await settle()
        assert world.hosts["a"].deployment.admission.idle.is_set()
        await world.ask("b")
        assert world.state() == {"a": ["load", "unload"], "b": ["load"]}

    run(scene)


def test_nothing_is_begun_once_it_stops() -> None:
    async def scene() -> None:
        world = await World(model("a"), model("b")).adopt()
        await world.loader.close()
        waiting = asyncio.create_task(world.ask("a"))
        await settle()
        assert world.state() == {"a": [], "b": []}
        waiting.cancel()

    run(scene)


def test_one_whose_replicas_begin_at_none_is_loaded_by_its_first_request() -> None:
    async def scene() -> None:
        world = await World(
            model("a", 0, replicas="0-2", keep_alive="0.05s"), model("b", 30, replicas="0-1")
        ).adopt()
        assert not any(world.loader.at_start(host) for host in world.hosts.values())
        await asyncio.gather(world.ask("a"), world.ask("b"))
        assert world.state() == {"a": ["load"], "b": ["load"]}
        await asyncio.sleep(0.3)
        assert world.state() == {"a": ["load", "unload"], "b": ["load"]}

    run(scene)


def test_a_budget_that_holds_nothing_of_a_model_is_named() -> None:
    async def scene() -> None:
        world = World(model("a", max_model_len=1), budget="5MiB")
        with pytest.raises(ModelDoesNotFit, match=r"in 5 MiB of memory.*--memory-budget leaves of"):
            await world.adopt()

    run(scene)


def test_one_on_a_gpu_is_started_with_the_server_and_unloaded_like_any_other() -> None:
    async def scene() -> None:
        world = await World(
            model("gpu", 0, engine="vllm", keep_alive="0.3s"),
            model("cpu", 60, engine="cpu"),
            budget="60MiB",
        ).adopt()
        assert world.state() == {"gpu": ["load"], "cpu": []}
        await world.ask("cpu")
        assert world.state() == {"gpu": ["load"], "cpu": ["load"]}
        await asyncio.sleep(0.6)
        await world.ask("gpu")
        assert world.state() == {"gpu": ["load", "unload", "load"], "cpu": ["load"]}

    run(scene)


def test_one_on_a_gpu_takes_what_its_processes_hold_once_it_was_started() -> None:
    async def scene() -> None:
        world = await World(model("gpu", 50, engine="vllm"), model("cpu", 60)).adopt()
        assert world.hosts["gpu"].deployment.memory == 50 * MIB
        await world.ask("cpu")
        assert world.state() == {"gpu": ["load", "unload"], "cpu": ["load"]}
        await world.ask("gpu")
        assert world.state() == {"gpu": ["load", "unload", "load"], "cpu": ["load", "unload"]}
        world = await World(
            model("a", 50, engine="vllm"), model("b", 60, engine="vllm"), model("c", 40)
        ).adopt()
        await settle()
        assert world.state() == {"a": ["load"], "b": ["load", "unload"], "c": []}
        with pytest.raises(ModelDoesNotFit, match=r"a takes 120 MiB .* 20 MiB more.*GPU's"):
            await World(model("a", 120, engine="vllm")).adopt()

    run(scene)


def test_one_that_could_not_be_prepared_is_tried_again_when_the_operator_loads_it() -> None:
    async def scene() -> None:
        world = World(model("a"), model("b"))
        world.broken["a"] = "The file /srv/models of ours/a.gguf is empty."
        with pytest.raises(ModelError):
            await world._prepare(world.hosts["a"])
        await world._prepare(world.hosts["b"])
        broken = world.hosts["a"].deployment
        assert (await broken.health()).state == "dead"
        with pytest.raises(Conflict, match="nothing to unload"):
            world.loader.steer("a", "unload")
        world.loader.steer("a", "load")
        world.loader.steer("a", "load")  # it is tried already
        await settle()
        assert (await broken.health()).state == "dead"  # and is still broken
        del world.broken["a"]
        world.loader.steer("a", "load")
        while (await broken.health()).state != "ready":
            await asyncio.sleep(0)
        await world.ask("a")
        assert world.state() == {"a": ["load"], "b": []}
        await world.ask("b")
        assert world.state() == {"a": ["load", "unload"], "b": ["load"]}

    run(scene)


def test_nothing_of_a_model_stays_behind_when_its_text_can_not_be_loaded() -> None:
    async def scene() -> None:
        world = await World(model("a", pinned=("a",)), model("b", 30)).adopt()
        error = ModelError("Its tokenizer is broken.")
        world.loader.forget(world.hosts["a"])
        await world.hosts["a"].fail(error)
        await world.ask("b")
        assert world.hosts["a"].deployment.failure == "Its tokenizer is broken."
        world.loader.steer("a", "load")
        while (await world.hosts["a"].deployment.health()).state != "ready":
            await asyncio.sleep(0)

    run(scene)
