"""Embeddings of vLLM's pooling runner, on its build for CPUs.

Run by scripts/test-vllm; left out where vLLM is not installed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from maestrale.engines.base import EngineConfig, GenerationRequest
from maestrale.engines.choose import has_vllm
from maestrale.errors import EngineError
from running_engine import RunningEngine

pytestmark = pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed")


@pytest.fixture(scope="module")
def running(hf_model: Path) -> Iterator[RunningEngine]:
    engine = RunningEngine(
        EngineConfig(
            engine="vllm",
            model_dir=str(hf_model),
            max_model_len=1024,
            kv_cache_bytes=128 << 20,
            options={"dtype": "float32", "enforce_eager": "True"},
            task="embed",
        )
    )
    yield engine
    engine.stop()


def embed(number: int) -> GenerationRequest:
    chance = random.Random(number)
    prompt = tuple(chance.randrange(100, 40_000) for _ in range(20))
    return GenerationRequest(
        request_id=str(number), prompt=prompt, max_tokens=0, seed=0, embed=True
    )


def vectors(engine: RunningEngine, *requests: GenerationRequest) -> list[NDArray[np.float32]]:
    rows = [np.frombuffer(each.embedding or b"", "<f4") for each in engine.run(*requests)]
    return [row / np.linalg.norm(row) for row in rows]


def test_its_embeddings_are_nearly_those_of_the_cpu_engine(
    running: RunningEngine, prepared_model: Path
) -> None:
    assert running.info.task == "embed"
    requests = [embed(number) for number in range(4)]
    ours = RunningEngine(EngineConfig(engine="cpu", model_dir=str(prepared_model)))
    try:
        assert ours.info.embedding_size == running.info.embedding_size
        for one, other in zip(vectors(running, *requests), vectors(ours, *requests), strict=True):
            assert one @ other > 0.99
    finally:
        ours.stop()


def test_it_generates_nothing(running: RunningEngine) -> None:
    with pytest.raises(EngineError, match="started for embeddings"):
        running.run(GenerationRequest(request_id="g", prompt=(1, 2), max_tokens=3, seed=0))
