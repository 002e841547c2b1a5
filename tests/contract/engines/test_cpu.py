"""What only the CPU engine can show: preemption, a lost step, settings it can't meet."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from maestrale.engines import constraint
from maestrale.engines.base import Constraint, EngineConfig, GenerationRequest, Sampling
from maestrale.engines.cpu.decoder import Batch
from maestrale.engines.cpu.engine import CPUEngine
from maestrale.engines.registry import build_engine, forecast
from maestrale.errors import EngineDied, EngineError, ModelError
from maestrale.models.fit_cpu import PROCESSES
from running_engine import RunningEngine

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def small(prepared_model: Path) -> EngineConfig:
    return EngineConfig(
        engine="cpu",
        model_dir=str(prepared_model),
        kv_cache_bytes=3_200_000,  # 256 tokens
    )


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


@pytest.mark.parametrize("cache", [3_200_000, None], ids=["given", "as memory allows"])
def test_what_it_will_be_is_what_it_is(small: EngineConfig, cache: int | None) -> None:
    """The forecast reads metadata only; its config gives an engine of just that size."""
    wanted = msgspec.structs.replace(small, kv_cache_bytes=cache, max_num_seqs=7)
    memory = 2 << 30
    foreseen = forecast(wanted, memory)
    assert foreseen is not None
    engine = RunningEngine(foreseen.config)
    try:
        info = msgspec.structs.replace(engine.info, fingerprint="", step_seconds=None)
        assert info == foreseen.info
    finally:
        engine.stop()
    assert foreseen.memory <= memory
    assert foreseen.config.kv_cache_bytes is not None
    assert foreseen.memory > foreseen.config.kv_cache_bytes + PROCESSES


def test_one_for_which_memory_is_too_small_is_refused(small: EngineConfig) -> None:
    with pytest.raises(EngineError, match="No memory is left for the KV cache"):
        forecast(msgspec.structs.replace(small, kv_cache_bytes=None), PROCESSES)


@pytest.mark.slow
def test_preempted_requests_give_the_tokens_they_give_alone(cramped: RunningEngine) -> None:
    requests = [request(number) for number in range(6)]
    alone = [cramped.run(one)[0].tokens for one in requests]
    before = cramped.engine.stats().preemptions
    together = [answer.tokens for answer in cramped.run(*requests)]
    assert cramped.engine.stats().preemptions > before
    assert together == alone


@pytest.mark.parametrize(("setting", "says"), [(9000, "made for at most 8192"), (300, "256 does")])
def test_a_context_that_cannot_be_had_is_refused_at_start(
    small: EngineConfig, setting: int, says: str
) -> None:
    config = msgspec.structs.replace(small, max_model_len=setting)
    with pytest.raises(EngineError, match=says):
        RunningEngine(config)


def test_a_folder_that_is_no_model_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        RunningEngine(EngineConfig(engine="cpu", model_dir=str(tmp_path)))


def test_options_of_other_engines_are_refused() -> None:
    with pytest.raises(EngineError, match="crash_at_token"):
        build_engine(EngineConfig(engine="cpu", model_dir="", options={"crash_at_token": "1"}))


@pytest.fixture(scope="module")
def roomy(small: EngineConfig) -> Iterator[RunningEngine]:
    engine = RunningEngine(msgspec.structs.replace(small, kv_cache_bytes=200 << 20))
    yield engine
    engine.stop()


def chanting(number: int) -> GenerationRequest:
    """One whose answer repeats itself, so that guesses are often right."""
    prompt = tuple(range(300 + number, 312 + number)) * 6
    return GenerationRequest(
        request_id=str(number), prompt=prompt, max_tokens=60, seed=number, logprobs=2,
        sampling=Sampling(temperature=1.0),
    )  # fmt: skip


def test_guesses_change_the_steps_and_not_a_bit_of_the_answer(roomy: RunningEngine) -> None:
    before = roomy.settled()
    requests = [chanting(number) for number in range(3)]
    alone = [roomy.run(one)[0] for one in requests]
    after = roomy.settled()
    accepted = after.accepted_tokens - before.accepted_tokens
    assert 0 < accepted < after.draft_tokens - before.draft_tokens
    tokens = sum(len(answer.tokens) for answer in alone)
    assert after.steps - before.steps < tokens
    together = roomy.run(*requests)
    for one, other in zip(alone, together, strict=True):
        assert one.tokens == other.tokens
        assert one.logprobs == other.logprobs


def test_a_replay_computes_several_forced_tokens_in_a_step(roomy: RunningEngine) -> None:
    plain = roomy.run(request(21, max_tokens=60))[0]
    forced = msgspec.structs.replace(
        request(21, max_tokens=60), forced=tuple(plain.tokens[:40]), request_id="again"
    )
    before = roomy.settled().steps
    assert roomy.run(forced)[0].tokens == plain.tokens
    assert roomy.settled().steps - before < 40


def test_what_a_schema_forces_is_guessed(roomy: RunningEngine) -> None:
    properties = {f"a_rather_long_name_{number}": {"type": "boolean"} for number in range(6)}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    value = json.dumps(schema | {"additionalProperties": False})
    one = msgspec.structs.replace(
        request(51, max_tokens=200), constraint=Constraint("json_schema", value), logprobs=1
    )
    before = roomy.settled()
    alone = roomy.run(one)[0]
    after = roomy.settled()
    assert after.steps - before.steps < len(alone.tokens) * 0.6
    beside = roomy.run(one, request(52, max_tokens=100), request(53, max_tokens=100))[0]
    assert (beside.tokens, beside.logprobs) == (alone.tokens, alone.logprobs)


def test_copied_parts_of_blocks_change_no_bit(roomy: RunningEngine, small: EngineConfig) -> None:
    first = request(41, length=50)
    others = [
        msgspec.structs.replace(
            request(42 + length, length=40), prompt=(*first.prompt[:length], 7, 8, 9, 10 + length)
        )
        for length in (1, 20, 31, 33, 45, 50)
    ]
    requests = [msgspec.structs.replace(one, logprobs=2) for one in others]
    roomy.run(first)
    warm = [roomy.run(one)[0] for one in requests]
    assert [answer.cached_tokens for answer in warm] == [1, 20, 31, 33, 45, 50]
    fresh = RunningEngine(msgspec.structs.replace(small, enable_prefix_caching=False))
    cold = [fresh.run(one)[0] for one in requests]
    fresh.stop()
    for one, other in zip(warm, cold, strict=True):
        assert one.tokens == other.tokens
        assert one.logprobs == other.logprobs


def test_answers_are_cached_as_they_are_made(roomy: RunningEngine, small: EngineConfig) -> None:
    first = request(71, length=70, max_tokens=60)
    answer = roomy.run(first)[0].tokens
    asked = request(72, length=8)
    follow_up = msgspec.structs.replace(asked, prompt=(*first.prompt, *answer, *asked.prompt))
    after = roomy.run(follow_up)[0]
    assert after.cached_tokens == 129  # all but the answer's last, which was never computed
    fresh = RunningEngine(msgspec.structs.replace(small, kv_cache_bytes=200 << 20))
    undisturbed = fresh.run(follow_up)[0]
    fresh.stop()
    assert after.tokens == undisturbed.tokens


def test_an_idle_engine_prepares_for_constraints(
    small: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it builds once for all of them holds up every stream."""
    own = RunningEngine(small)
    assert isinstance(own.engine, CPUEngine)
    try:
        deadline = time.monotonic() + 30
        while constraint._latest is None or constraint._latest[0] is not own.engine._vocabulary:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        monkeypatch.setattr(constraint, "LLTokenizer", None)
        limited = msgspec.structs.replace(request(73), constraint=Constraint("regex", "[ab]{3}"))
        assert own.run(limited)[0].tokens
    finally:
        own.stop()


@pytest.mark.slow
def test_a_step_that_fails_loses_the_engine(small: EngineConfig) -> None:
    own = RunningEngine(small)
    engine = own.engine
    assert isinstance(engine, CPUEngine)

    def fail(step: Batch) -> None:
        raise RuntimeError("device lost")

    engine._decoder.step_both = fail  # type: ignore[assignment,method-assign]
    with pytest.raises(EngineDied):
        own.run(request(1))
    assert own.do(engine.health()).state == "dead"
    with pytest.raises(EngineDied):
        own.run(request(2))
    own.stop()
