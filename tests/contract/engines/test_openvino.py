"""What only the OpenVINO engine can show: preemption, a lost step, settings it can't meet."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from maestrale.engines.base import EngineConfig, GenerationRequest, Sampling
from maestrale.engines.openvino.engine import OpenVINOEngine
from maestrale.engines.openvino.graph import StepInput
from maestrale.engines.registry import build_engine
from maestrale.errors import EngineDied, EngineError, ModelError
from running_engine import RunningEngine

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def small(prepared_model: Path) -> EngineConfig:
    return EngineConfig(engine="openvino", model_dir=str(prepared_model), kv_cache_bytes=14 << 20)


@pytest.fixture(scope="module")
def cramped(small: EngineConfig) -> Iterator[RunningEngine]:
    """An engine whose KV cache holds 256 tokens."""
    engine = RunningEngine(small)
    yield engine
    engine.stop()


def request(number: int, length: int = 60, max_tokens: int = 30) -> GenerationRequest:
    chance = random.Random(number)
    return GenerationRequest(
        request_id=str(number),
        prompt=tuple(chance.randrange(100, 40_000) for _ in range(length)),
        max_tokens=max_tokens,
        seed=number,
        sampling=Sampling(temperature=0.9, frequency_penalty=0.2),
    )


def test_the_context_shrinks_to_the_kv_cache(cramped: RunningEngine) -> None:
    assert cramped.info.max_model_len == cramped.info.kv_capacity_tokens == 256
    with pytest.raises(EngineError, match="256"):
        cramped.run(request(1, length=200, max_tokens=57))


@pytest.mark.slow
def test_preempted_requests_give_the_tokens_they_give_alone(cramped: RunningEngine) -> None:
    requests = [request(number) for number in range(6)]
    alone = [cramped.run(one)[0].tokens for one in requests]
    before = cramped.engine.stats().preemptions
    together = [answer.tokens for answer in cramped.run(*requests)]
    assert cramped.engine.stats().preemptions > before
    assert together == alone


@pytest.mark.parametrize(
    ("setting", "says"), [(9000, "trained for at most 8192"), (300, "KV cache holds 256")]
)
def test_a_context_that_cannot_be_had_is_refused_at_start(
    small: EngineConfig, setting: int, says: str
) -> None:
    config = msgspec.structs.replace(small, max_model_len=setting)
    with pytest.raises(EngineError, match=says):
        RunningEngine(config)


def test_a_folder_that_is_no_model_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        RunningEngine(EngineConfig(engine="openvino", model_dir=str(tmp_path)))


def test_options_of_other_engines_are_refused() -> None:
    with pytest.raises(EngineError, match="crash_at_token"):
        build_engine(EngineConfig(engine="openvino", model_dir="", options={"crash_at_token": "1"}))


@pytest.mark.slow
def test_a_step_that_fails_loses_the_engine(small: EngineConfig) -> None:
    own = RunningEngine(small)
    engine = own.engine
    assert isinstance(engine, OpenVINOEngine)

    def fail(step: StepInput) -> None:
        raise RuntimeError("device lost")

    engine._model.infer = fail  # type: ignore[assignment,method-assign]
    with pytest.raises(EngineDied):
        own.run(request(1))
    assert own.do(engine.health()).state == "dead"
    with pytest.raises(EngineDied):
        own.run(request(2))
    own.stop()
