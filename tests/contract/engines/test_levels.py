"""Replicas of the CPU engine on nodes with different instruction sets replay for each other."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maestrale.engines.base import EngineConfig, GenerationRequest, Sampling
from maestrale.engines.cpu.kernel.build import library
from maestrale.engines.cpu.library import Library
from ray_cluster import RayCluster, up, wait_until
from running_engine import Answer, RunningEngine, collect

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.timeout(900)]
TOKENS, KILLED_AFTER = 60, 12
PROMPT = tuple(range(100, 131))


def other_level(cache_dir: Path) -> str:
    """A level that this machine has, below its best."""
    kernel = Library(library(cache_dir, lambda phase, fraction: None))
    best = kernel.mst_level_name(kernel.level(None)).decode()
    return {"amx": "avx2", "avx512": "avx2", "i8mm": "neon"}.get(best, "scalar")


@pytest.fixture(scope="module")
def level(cache_dir: Path, prepared_model: Path) -> str:
    return other_level(cache_dir)


@pytest.fixture(scope="module")
def pair(ray_cluster: RayCluster, prepared_model: Path, level: str) -> Iterator[RunningEngine]:
    """One replica on each node: no node has room for two."""
    if not ray_cluster.namespaces:
        pytest.skip("a second node needs a network of its own, which only root can make")
    node = ray_cluster.second_node(cpus=5, MAESTRALE_CPU_LEVEL=level)
    config = EngineConfig(
        engine="cpu", model_dir=str(prepared_model), threads=1, kv_cache_bytes=64 << 20
    )
    running = ray_cluster.engine(config, least=2, cpus=5, routing="round_robin")
    yield running
    running.stop()
    node.kill()


def request(number: int, **sampling: Any) -> GenerationRequest:
    return GenerationRequest(
        request_id=f"r{number}-{sampling}",
        prompt=(*PROMPT, 200 + number),
        max_tokens=TOKENS,
        seed=number,
        sampling=Sampling(**sampling),
        logprobs=0,
    )


def forced(pid: int) -> str:
    """The level that a process's environment forces; "" for none."""
    for entry in Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0"):
        name, _, value = entry.partition("=")
        if name == "MAESTRALE_CPU_LEVEL":
            return value
    return ""


def streamed(running: RunningEngine, requests: list[GenerationRequest], pid: int) -> list[Answer]:
    """All at once, and the engine of this process killed while each of them is under way."""

    async def go() -> list[Answer]:
        begun = [asyncio.Event() for _ in requests]

        async def one(given: GenerationRequest, event: asyncio.Event) -> Answer:
            seen = 0

            async def count(delta: Any) -> None:
                nonlocal seen
                seen += len(delta.token_ids)
                if seen >= KILLED_AFTER:
                    event.set()

            return await collect(running.engine, given, count)

        both = zip(requests, begun, strict=True)
        tasks = [asyncio.create_task(one(given, event)) for given, event in both]
        for event in begun:
            await event.wait()
        os.kill(pid, signal.SIGKILL)
        return list(await asyncio.gather(*tasks))

    return running.do(go())


def bits(answers: list[Answer]) -> list[Any]:
    """All that an answer consists of, the log-probabilities to the last bit."""
    return [
        (answer.tokens, [each.logprob.hex() for each in answer.logprobs], answer.finish_reason)
        for answer in answers
    ]


@pytest.mark.parametrize("dies", ["forced", "best"])
def test_an_answer_goes_on_on_the_other_level(pair: RunningEngine, level: str, dies: str) -> None:
    wait_until(lambda: len(up(pair)) == 2, 120)
    of_level = {forced(replica.engine_pid): replica.engine_pid for replica in up(pair)}
    assert set(of_level) == {level, ""}
    requests = [request(number, temperature=0.8 * (number % 2)) for number in range(4)]
    calm = pair.run(*requests)
    replayed = pair.engine.stats().replayed
    again = [request(number, temperature=0.8 * (number % 2)) for number in range(4)]
    answers = streamed(pair, again, of_level[level if dies == "forced" else ""])
    assert pair.engine.stats().replayed - replayed == 2
    assert bits(answers) == bits(calm)
    assert all(len(answer.tokens) > KILLED_AFTER for answer in answers)
