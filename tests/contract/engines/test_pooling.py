"""Embedding models and rerankers, asked of each engine that serves them: what they make of a
prompt, next to float32 numbers of others.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import golden_files as golden
from maestrale.engines.base import EngineConfig, GenerationRequest
from maestrale.engines.choose import has_vllm
from maestrale.engines.cpu.model_files import open_model
from maestrale.errors import EngineError
from maestrale.models.resolve import prepare
from numpy_decoder import NumpyDecoder
from running_engine import RunningEngine, collect
from tiny_embedder import EOS, write_embedder
from tiny_reranker import golden_score, write_classifier, write_original

ENGINES = ["cpu", *(["vllm"] if has_vllm() else [])]
MAKE: dict[str, Callable[[Path], Path]] = {
    "last": lambda path: write_embedder(path, pooling="last"),
    "mean": lambda path: write_embedder(path, pooling="mean"),
    "original reranker": write_original,
    "reranker of one label": write_classifier,
    "reranker of yes and no": lambda path: write_classifier(path, ("yes", "no")),
}
CONTEXT = 128


@dataclass
class Pooled:
    """An engine on a tiny model in a folder."""

    kind: str
    source: Path
    engine: RunningEngine

    @property
    def scores(self) -> bool:
        return "reranker" in self.kind

    def rows(self, *requests: GenerationRequest) -> list[NDArray[np.float32]]:
        answers = self.engine.run(*requests)
        assert all((answer.tokens, answer.finish_reason) == ([], "stop") for answer in answers)
        return [np.frombuffer(answer.embedding or b"", "<f4") for answer in answers]


@pytest.fixture(
    scope="module",
    params=[
        (engine, kind)
        for engine in ENGINES
        for kind in MAKE
        if engine == "cpu" or "reranker" not in kind  # which vLLM does not do here
    ],
    ids=lambda case: "-".join(case),
)
def pooled(
    request: pytest.FixtureRequest, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pooled]:
    name, kind = request.param
    source = MAKE[kind](tmp_path_factory.mktemp("models") / "tiny")
    folder = prepare(str(source), cache_dir, lambda phase, fraction: None, engine=name)
    engine = RunningEngine(
        EngineConfig(
            engine=name,
            model_dir=str(folder),
            max_model_len=CONTEXT,
            kv_cache_bytes=8 << 20,
            task="rerank" if kind == "original reranker" else "auto",
            options={"dtype": "float32", "enforce_eager": "True"} if name == "vllm" else {},
        )
    )
    yield Pooled(kind, source, engine)
    engine.stop()


def asked(name: str, prompt: list[int]) -> GenerationRequest:
    return GenerationRequest(
        request_id=name, prompt=tuple(prompt), max_tokens=0, seed=0, embed=True
    )


def some(number: int, length: int) -> GenerationRequest:
    chance = random.Random(number)
    return asked(f"s{number}", [*(chance.randrange(256) for _ in range(length - 1)), EOS])


def near(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    if len(one) == 1:
        return bool(abs(one[0] - other[0]) < 1e-3)
    return bool(one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.9999)


def test_it_says_what_it_is_for(pooled: Pooled) -> None:
    info = pooled.engine.info
    assert info.task == ("rerank" if pooled.scores else "embed")
    assert info.embedding_size == (1 if pooled.scores else 64)
    assert "embed" in info.features
    # vLLM can't make a mean of what it doesn't compute.
    known = info.engine == "cpu" or pooled.kind != "mean"
    assert ("prefix_cache" in info.features) == known


def test_its_numbers_are_nearly_those_of_float32(pooled: Pooled) -> None:
    text = golden.model("qwen3").text()
    if pooled.scores:
        lengths = (1, 8, 20, len(text))
        found = pooled.rows(*(asked(f"t{length}", text[:length]) for length in lengths))
        expected = [golden_score(length - 1) for length in lengths]
        assert [float(row[0]) for row in found] == pytest.approx(expected, abs=0.05)
        return
    decoder = NumpyDecoder(open_model(pooled.source))
    requests = [some(length, length) for length in (1, 5, 40, 100)]
    for request, row in zip(requests, pooled.rows(*requests), strict=True):
        rows = decoder.hidden(list(request.prompt))
        wanted = rows[-1] if pooled.kind == "last" else rows.mean(0)
        assert row @ wanted / np.linalg.norm(row) / np.linalg.norm(wanted) > 0.998


def test_the_same_alone_and_in_company_with_a_cache_and_without(pooled: Pooled) -> None:
    requests = [some(100 + number, length) for number, length in enumerate((1, 31, 33, 64, 120))]
    alone = [pooled.rows(request)[0] for request in requests]
    before = pooled.engine.settled()
    together = pooled.rows(*requests)
    after = pooled.engine.settled()
    if "deterministic" in pooled.engine.info.features:
        assert [row.tobytes() for row in together] == [row.tobytes() for row in alone]
    assert all(near(one, other) for one, other in zip(alone, together, strict=True))
    assert len({row.tobytes() for row in alone}) == len(alone)
    assert after.prompt_tokens - before.prompt_tokens == sum(map(len, (r.prompt for r in requests)))
    assert after.generation_tokens == before.generation_tokens
    assert after.steps > before.steps


def test_a_prompt_as_long_as_the_context_is_taken_and_no_longer_one(pooled: Pooled) -> None:
    assert len(pooled.rows(some(7, CONTEXT))[0]) == pooled.engine.info.embedding_size
    with pytest.raises(EngineError, match=str(CONTEXT)):
        pooled.rows(some(7, CONTEXT + 1))
    assert len(pooled.rows(some(8, 5))) == 1


def test_leaving_frees_everything(pooled: Pooled) -> None:
    engine = pooled.engine

    async def leave() -> None:
        tasks = [
            asyncio.create_task(collect(engine.engine, some(200 + number, 100)))
            for number in range(8)
        ]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks)

    engine.do(leave())
    stats = engine.settled()
    assert (stats.running, stats.waiting, stats.kv_cache_usage) == (0, 0, 0.0)
    assert engine.do(engine.engine.health()).state == "ready"
