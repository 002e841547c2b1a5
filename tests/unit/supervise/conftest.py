"""A supervised scripted engine in real processes, with short patience."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from maestrale.engines.base import Constraint, EngineConfig, GenerationRequest, TokenDelta
from maestrale.engines.mailbox import merge
from maestrale.engines.scripted import ScriptedEngine
from maestrale.models.vocabulary import BYTE_EOS
from maestrale.supervise.process import Restarts, SupervisedEngine
from maestrale.supervise.watchdog import Patience

QUICK = Patience(silence=2.0, step=2.0, tick=0.1)
EAGER = Restarts(most=20, pause=0.01)
PACED = {"tokens_per_second": "400"}
SCHEMA = Constraint(
    "json_schema",
    '{"type": "object", "properties": {"name": {"type": "string"}, "ages": {"type": "array", '
    '"items": {"type": "integer"}, "minItems": 3, "maxItems": 9}}, "required": ["name", "ages"], '
    '"additionalProperties": false}',
)

StartEngine = Callable[..., Awaitable[SupervisedEngine]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def config(**options: str) -> EngineConfig:
    return EngineConfig(engine="scripted", model_dir="", options=options)


@pytest.fixture
async def start_engine(anyio_backend: str) -> AsyncIterator[StartEngine]:
    """Start supervised engines; when the test ends, all are closed and their processes gone."""
    engines: list[SupervisedEngine] = []

    async def start(
        restarts: Restarts = EAGER, patience: Patience = QUICK, **options: str
    ) -> SupervisedEngine:
        engine = SupervisedEngine(config(**options), restarts=restarts, patience=patience)
        engines.append(engine)
        await engine.start()
        return engine

    yield start
    pids = [engine.engine_pid for engine in engines]
    for engine in engines:
        await engine.close()
    assert not [pid for pid in pids if pid is not None and alive(pid)]


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie doesn't)."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def request(number: int = 0, **fields: object) -> GenerationRequest:
    """A request of 60 tokens, another one for each number."""
    values: dict[str, object] = {
        "request_id": f"r{number}",
        "prompt": (1, 2, 100 + number),
        "max_tokens": 60,
        "seed": number,
    }
    return GenerationRequest(**{**values, **fields})  # type: ignore[arg-type]


def json_request(number: int = 0) -> GenerationRequest:
    return request(number, constraint=SCHEMA, max_tokens=400, stop_token_ids=(BYTE_EOS,))


async def read(
    engine: SupervisedEngine | ScriptedEngine,
    what: GenerationRequest,
    at: dict[int, Callable[[], None]] | None = None,
) -> TokenDelta:
    """The whole answer as one delta. `at[n]()` is called once n tokens are there."""
    deltas: list[TokenDelta] = []
    pending = sorted((at or {}).items())
    async for delta in engine.generate(what):
        assert not deltas or deltas[-1].finish_reason is None, "a delta after the last one"
        deltas.append(delta)
        while pending and sum(len(d.token_ids) for d in deltas) >= pending[0][0]:
            pending.pop(0)[1]()
    return replace(merge(deltas), waited=0.0)  # how long it waited is no part of the answer


async def undisturbed(requests: Iterable[GenerationRequest], **options: str) -> list[TokenDelta]:
    """The same requests on an engine that nobody disturbs, in this process."""
    engine = ScriptedEngine(config(**{k: v for k, v in options.items() if k != "marker"}))
    await engine.start()
    answers = [await read(engine, what) for what in requests]
    await engine.close()
    return answers


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for the condition; fail when it doesn't come true."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it did not come true in time"
        await asyncio.sleep(0.01)


def kill(engine: SupervisedEngine, signal: int = 9) -> None:
    """Send a signal to the engine process, if there is one that is ready."""
    if engine.engine_pid is not None:
        with suppress(ProcessLookupError):
            os.kill(engine.engine_pid, signal)
