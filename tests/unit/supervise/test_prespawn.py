"""An engine process begun before its config is known: used once, or ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from subprocess import TimeoutExpired

import pytest

from maestrale.cli.serve import likely_engine
from maestrale.config.settings import Settings
from maestrale.engines.base import GenerationRequest
from maestrale.supervise import prespawn
from maestrale.supervise.process import SupervisedEngine

pytestmark = pytest.mark.anyio
StartEngine = Callable[..., Awaitable[SupervisedEngine]]


async def test_the_engine_runs_in_the_process_that_was_begun(start_engine: StartEngine) -> None:
    with prespawn.begun_engine("scripted"):
        begun = prespawn._engines["scripted"]
        engine = await start_engine()
        assert engine._process is not None
        assert engine._process.pid == begun.popen.pid
        request = GenerationRequest(request_id="r", prompt=(1,), max_tokens=3, seed=0)
        assert [delta async for delta in engine.generate(request)]
    assert begun.popen.poll() is None  # it was taken: its end is the engine's affair


async def test_what_nobody_took_is_ended() -> None:
    with prespawn.begun_engine("scripted"):
        begun = prespawn._engines["scripted"]
    assert begun.popen.returncode is not None
    assert prespawn.take_engine("scripted") is None


async def test_it_is_ended_when_the_server_can_not_start() -> None:
    begun: list[prespawn.Begun] = []

    def fail() -> None:
        with prespawn.begun_engine("scripted"):
            begun.append(prespawn._engines["scripted"])
            raise RuntimeError("the port is taken")

    with pytest.raises(RuntimeError):
        fail()
    assert begun[0].popen.returncode is not None


async def test_one_for_another_engine_is_ended(start_engine: StartEngine) -> None:
    with prespawn.begun_engine("cpu"):
        begun = prespawn._engines["cpu"]
        engine = await start_engine()
        assert engine._process is not None
        assert engine._process.pid != begun.popen.pid
        assert begun.popen.returncode is not None


async def test_an_engine_that_does_not_exist_is_told_by_the_config(
    start_engine: StartEngine,
) -> None:
    """The early import fails in silence; the process lives on and says what it always said."""
    with prespawn.begun_engine("nonsense"):
        begun = prespawn._engines["nonsense"]
        assert prespawn.take_engine("nonsense") is begun
        with pytest.raises(TimeoutExpired):
            begun.popen.wait(1.0)
        begun.end()


@pytest.mark.parametrize(
    ("settings", "engine"),
    [
        (Settings(engine="cpu"), "cpu"),
        (Settings(engine="vllm"), None),
        (Settings(engine="scripted"), None),
        (Settings(engine="cpu", replicas="1-2"), None),
    ],
)
async def test_only_the_cpu_engine_is_begun_early(settings: Settings, engine: str | None) -> None:
    assert likely_engine(settings) == engine
