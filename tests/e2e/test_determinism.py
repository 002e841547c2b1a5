"""A request's tokens depend on the request alone: over a thousand runs on the real model.

120 different requests are run one by one on an engine without a prefix cache; that is what
each gives alone. Then each is run again in every setting of `SETTINGS`, in random order, up to
40 in flight, so that chunk boundaries, batch sizes and cached prefixes differ each time. Tokens,
finish reasons and log-probabilities must be the same to the last bit. All that is with the form
of the weights that is fastest here; the others are run together once.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace

from kernel_models import kernel
from maestrale.engines.base import Constraint, EngineConfig, GenerationRequest, Sampling, TokenDelta
from maestrale.engines.cpu.library import LEVELS
from maestrale.engines.mailbox import merge
from maestrale.models.prepared import load_prepared
from maestrale.prompt.encode import encoder_for
from maestrale.supervise.process import Restarts, SupervisedEngine

pytestmark = [
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.anyio,
    pytest.mark.timeout(1200),
]

IN_FLIGHT = 40
# Around the block of the KV cache (32 tokens), the step beside answers (80) and the largest
# chunk of prefill (256).
LENGTHS = (1, 31, 32, 33, 79, 80, 81, 255, 256, 257, 600)
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TEXTS = (
    "The history of bread begins with the first farmers, who ground grain between two stones. ",
    "A ship left the harbour at dawn; nobody on board knew how long the journey would be. ",
)


@dataclass(frozen=True)
class Setting:
    """How the requests are run again."""

    name: str
    rounds: int = 1
    in_flight: int = IN_FLIGHT
    kills: int = 0  # per round, of the engine, spread over it
    aborts: bool = False  # others begin beside them and leave
    kv_cache_bytes: int = 1 << 30


SETTINGS = (
    Setting("together, cache cold and then warm", rounds=3),
    Setting("one at a time, cache warm", in_flight=1),
    Setting("with others that leave", aborts=True),
    Setting("engine killed", rounds=2, kills=2),
    # Room for some 1,400 tokens: sequences are preempted, and computed again as prompts.
    Setting("cache too small", rounds=2, kv_cache_bytes=18 << 20),
)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def requests(prepared_model: Path) -> list[GenerationRequest]:
    """120 of them: every length with every kind of sampling, and some seeds more."""
    encoder = encoder_for(prepared_model)
    stops = load_prepared(prepared_model).eos_token_ids
    texts = [encoder.encode_text(text * 60) for text in TEXTS]
    schema = Constraint("json_schema", json.dumps(SCHEMA))
    penalised = Sampling(
        temperature=0.8, presence_penalty=0.5, frequency_penalty=0.4, repetition_penalty=1.1
    )
    biased = Sampling(temperature=1.2, min_p=0.02, logit_bias=((texts[0][3], 2.0), (100, -5.0)))
    kinds: tuple[dict[str, object], ...] = (
        {"sampling": Sampling(temperature=0.0), "logprobs": 2},
        {},
        {"sampling": Sampling(temperature=0.9, top_p=0.9, top_k=50), "logprobs": 0},
        {"sampling": penalised, "min_tokens": 10},
        {"sampling": biased, "logprobs": 5},
        {"sampling": Sampling(temperature=0.0), "constraint": schema, "max_tokens": 24},
        {"constraint": schema, "max_tokens": 24, "logprobs": 1},
        {"constraint": Constraint("regex", r"[a-z ]{5,40}\.")},
    )
    made = []
    for place in range(120):
        length, kind = LENGTHS[place % len(LENGTHS)], kinds[place % len(kinds)]
        fields = {
            "request_id": f"r{place}",
            # Those of one text share their beginnings, and so the prefix cache.
            "prompt": texts[place % 3 == 0][:length],
            "max_tokens": 8 + place % 13,
            "seed": place * 7919,
            "stop_token_ids": stops,
            **kind,
        }
        made.append(GenerationRequest(**fields))  # type: ignore[arg-type]
    return made


@asynccontextmanager
async def running(folder: Path, **settings: object) -> AsyncIterator[SupervisedEngine]:
    config = EngineConfig(engine="cpu", model_dir=str(folder), **settings)  # type: ignore[arg-type]
    engine = SupervisedEngine(config, restarts=Restarts(most=1000))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def run(engine: SupervisedEngine, request: GenerationRequest) -> TokenDelta:
    """The whole answer, less what may differ: how much was cached, how long it waited."""
    whole = merge([delta async for delta in engine.generate(request)])
    return replace(whole, cached_tokens=0, waited=0.0)


@pytest.fixture(scope="module")
async def alone(
    anyio_backend: str, prepared_model: Path, requests: list[GenerationRequest]
) -> dict[str, TokenDelta]:
    """What each request gives with nothing else in the engine, before or beside it."""
    async with running(prepared_model, enable_prefix_caching=False) as engine:
        return {request.request_id: await run(engine, request) for request in requests}


def test_these_are_over_a_thousand_runs(requests: list[GenerationRequest]) -> None:
    assert len({replace(request, request_id="") for request in requests}) == len(requests)
    assert len(requests) * sum(setting.rounds for setting in SETTINGS) >= 1000


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
async def test_the_tokens_are_those_that_the_request_gives_alone(
    prepared_model: Path,
    requests: list[GenerationRequest],
    alone: dict[str, TokenDelta],
    setting: Setting,
) -> None:
    draw = random.Random(setting.name)
    async with running(prepared_model, kv_cache_bytes=setting.kv_cache_bytes) as engine:
        for number in range(setting.rounds):
            order = draw.sample(requests, len(requests))
            got = await run_together(engine, order, setting, draw)
            changed = {
                name: (answer, alone[name]) for name, answer in got.items() if answer != alone[name]
            }
            assert not changed, f"round {number}: {len(changed)} of {len(got)} changed"
        assert engine.counters.mismatched == 0
        assert engine.counters.restarts == setting.kills * setting.rounds
        preempted = engine.stats().preemptions > 0
        assert preempted == (setting.name == "cache too small")
        if setting.name != "cache too small":
            assert engine.stats().prefix_cache_hits > 0


@pytest.mark.parametrize("level", LEVELS)
async def test_every_instruction_set_gives_the_same_answers(
    prepared_model: Path,
    requests: list[GenerationRequest],
    alone: dict[str, TokenDelta],
    level: str,
) -> None:
    if not kernel().mst_has_level(LEVELS.index(level)):
        pytest.skip(f"this CPU has no {level}")
    some = requests[:: 29 if level == "scalar" else 9]  # of each kind
    draw = random.Random(level)
    async with running(prepared_model, options={"cpu_level": level}) as engine:
        got = await run_together(engine, draw.sample(some, len(some)), Setting(level), draw)
    assert got == {request.request_id: alone[request.request_id] for request in some}


async def run_together(
    engine: SupervisedEngine,
    order: list[GenerationRequest],
    setting: Setting,
    draw: random.Random,
) -> dict[str, TokenDelta]:
    """All of them, in this order, each as soon as there is room and after a short wait."""
    room = asyncio.Semaphore(setting.in_flight)
    got: dict[str, TokenDelta] = {}
    # The engine is killed once so many are there.
    kills = [len(order) * (n + 1) // (setting.kills + 1) for n in range(setting.kills)]

    async def one(request: GenerationRequest) -> None:
        try:
            got[request.request_id] = await run(engine, request)
        finally:
            room.release()
        if kills and len(got) >= kills[0] and engine.engine_pid is not None:
            kills.pop(0)
            os.kill(engine.engine_pid, signal.SIGKILL)

    async def leave(request: GenerationRequest, after: int) -> None:
        deltas = engine.generate(request)
        async for _ in deltas:
            after -= 1
            if after <= 0:
                break
        await deltas.aclose()  # type: ignore[attr-defined]

    async with asyncio.TaskGroup() as group:
        for request in order:
            await room.acquire()
            if setting.in_flight > 1:
                await asyncio.sleep(draw.expovariate(100))
            group.create_task(one(request))
            if setting.aborts and draw.random() < 0.3:
                other = replace(draw.choice(order), request_id=f"left-{draw.random()}")
                group.create_task(leave(other, draw.randrange(8)))
    assert not kills
    return got


async def test_the_fingerprint_outlives_a_restart_and_names_nothing_that_changes_no_answer(
    prepared_model: Path,
) -> None:
    async with running(prepared_model) as engine:
        usual = engine.describe().fingerprint
        pid = engine.engine_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        while engine.engine_pid in (pid, None):
            await asyncio.sleep(0.05)
        assert engine.describe().fingerprint == usual
        assert "deterministic" in engine.describe().features
    others: list[dict[str, object]] = [
        {"deterministic": False},
        {"threads": 1},
        {"options": {"cpu_level": "scalar"}},
        {"max_num_batched_tokens": 128},
        {"enable_prefix_caching": False},
    ]
    for settings in others:
        async with running(prepared_model, **settings) as engine:
            assert engine.describe().fingerprint == usual
            assert "deterministic" in engine.describe().features
