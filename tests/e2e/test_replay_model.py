"""The real model's process is killed, suspended and killed again; each token stays the same."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from maestrale.engines.base import Constraint, EngineConfig, GenerationRequest, Sampling, TokenDelta
from maestrale.engines.mailbox import merge
from maestrale.models.prepared import load_prepared
from maestrale.prompt.encode import PromptEncoder, encoder_for
from maestrale.prompt.messages import ChatMessage
from maestrale.supervise.process import SupervisedEngine

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.anyio]

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "title": {"type": "string", "maxLength": 40},
            "year": {"type": "integer", "minimum": 1900, "maximum": 2030},
            "cast": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 4},
        },
        "required": ["title", "year", "cast"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def engine(anyio_backend: str, prepared_model: Path) -> AsyncIterator[SupervisedEngine]:
    engine = SupervisedEngine(EngineConfig(engine="cpu", model_dir=str(prepared_model)))
    await engine.start()
    yield engine
    await engine.close()


def requests(folder: Path) -> list[GenerationRequest]:
    """Eight of them: greedy, sampled, penalised, with logprobs, and constrained to JSON."""
    encoder = encoder_for(folder)
    stops = load_prepared(folder).eos_token_ids

    def made(number: int, text: str, **fields: object) -> GenerationRequest:
        values = {
            "request_id": f"r{number}",
            "prompt": prompt(encoder, text),
            "max_tokens": 40,
            "seed": number,
            "stop_token_ids": stops,
            **fields,
        }
        return GenerationRequest(**values)  # type: ignore[arg-type]

    greedy = Sampling(temperature=0.0)
    penalised = Sampling(temperature=0.9, frequency_penalty=0.7, repetition_penalty=1.2)
    schema = Constraint("json_schema", SCHEMA)
    return [
        made(0, "What is the plot of The Lion King?", sampling=greedy),
        made(1, "Count from one to fifty in words.", sampling=greedy, logprobs=3),
        made(2, "Write a poem about the sea."),
        made(3, "Write a poem about the sea.", sampling=Sampling(top_p=0.9, top_k=40)),
        made(4, "Name some animals.", sampling=penalised, logprobs=0),
        made(5, "Describe a film as JSON.", sampling=greedy, constraint=schema, max_tokens=160),
        made(6, "Describe a film as JSON.", constraint=schema, max_tokens=160),
        made(7, "Why is the sky blue? " * 40),
    ]


def prompt(encoder: PromptEncoder, text: str) -> tuple[int, ...]:
    return encoder.encode_chat([ChatMessage(role="user", content=text)]).token_ids


async def read_all(
    engine: SupervisedEngine,
    wanted: list[GenerationRequest],
    disturb: dict[int, Callable[[int], None]],
) -> list[TokenDelta]:
    """All answers; `disturb[n](pid)` is called once n tokens are there in all."""
    pending = sorted(disturb.items())
    total = 0

    async def read(request: GenerationRequest) -> TokenDelta:
        nonlocal total
        deltas = []
        async for delta in engine.generate(request):
            deltas.append(delta)
            total += len(delta.token_ids)
            while pending and total >= pending[0][0] and engine.engine_pid is not None:
                pending.pop(0)[1](engine.engine_pid)
        return merge(deltas)

    answers = await asyncio.gather(*map(read, wanted))
    assert not pending, "not disturbed as planned"
    return answers


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def suspend(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


@pytest.mark.parametrize(
    "disturb",
    [{1: kill}, {60: kill, 180: kill}, {100: suspend}],
    ids=["killed early", "killed twice mid-stream", "suspended"],
)
async def test_eight_in_flight_give_the_tokens_of_an_undisturbed_run(
    engine: SupervisedEngine, prepared_model: Path, disturb: dict[int, Callable[[int], None]]
) -> None:
    wanted = requests(prepared_model)
    undisturbed = await read_all(engine, wanted, {})
    before = engine.counters.restarts
    disturbed = await read_all(engine, wanted, disturb)
    assert [answer.token_ids for answer in disturbed] == [a.token_ids for a in undisturbed]
    for one, other in zip(disturbed, undisturbed, strict=True):
        assert one.finish_reason == other.finish_reason
        assert one.logprobs == other.logprobs
    assert engine.counters.restarts == before + len(disturb)
    assert engine.counters.mismatched == 0
