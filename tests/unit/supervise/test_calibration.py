"""How a step's length is measured at the start of an engine."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from maestrale.engines.base import EngineConfig, TaskChoice
from maestrale.engines.scripted import ScriptedEngine
from maestrale.supervise import worker

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ([0.01], 0.01),  # quick: what the first step paid for besides can't matter
        ([1.0, 0.2], 0.2),
    ],
)
async def test_a_second_step_is_measured_where_the_first_may_be_slow(
    monkeypatch: pytest.MonkeyPatch, measured: list[float], expected: float
) -> None:
    left = list(measured)

    async def step_seconds(engine: object, first_token: int) -> float:
        return left.pop(0)

    monkeypatch.setattr(worker, "_step_seconds", step_seconds)
    engine = ScriptedEngine(EngineConfig(engine="scripted", model_dir=""))
    await engine.start()
    info = replace(engine.describe(), max_num_batched_tokens=256)
    scale = 256 / worker.CALIBRATION_TOKENS
    assert await worker.calibrate(engine, info) == pytest.approx(expected * scale)
    assert left == []
    await engine.close()


async def test_what_the_engine_knows_is_not_measured() -> None:
    engine = ScriptedEngine(EngineConfig(engine="scripted", model_dir=""))
    await engine.start()
    info = replace(engine.describe(), step_seconds=7.0)
    assert await worker.calibrate(engine, info) == 7.0
    assert engine.stats().steps == 0
    await engine.close()


@pytest.mark.parametrize("task", ["generate", "embed"])
async def test_it_is_measured_with_what_the_engine_is_for(task: TaskChoice) -> None:
    engine = ScriptedEngine(EngineConfig(engine="scripted", model_dir="", task=task))
    await engine.start()
    assert await worker.calibrate(engine, engine.describe()) > 0
    assert engine.stats().generation_tokens == (0 if task == "embed" else 1)
    await engine.close()
