"""Embeddings on the CPU: the numbers of transformers and numpy, and the same bits in any step."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import golden_files as golden
from maestrale.engines.base import EngineConfig, GenerationRequest, Sampling
from maestrale.engines.cpu.decoder import Batch, Decoder, load_decoder
from maestrale.engines.cpu.kernel.build import KEPT
from maestrale.engines.cpu.memory import block_bytes
from maestrale.engines.cpu.model_files import open_model, spec_of
from maestrale.engines.cpu.sequence import Chunk, ScheduledSequence
from maestrale.engines.cpu.step import step_input
from maestrale.models.resolve import prepare
from numpy_decoder import NumpyDecoder
from running_engine import RunningEngine
from tiny_embedder import EOS, write_embedder

Start = Callable[..., RunningEngine]


def batch_of(tokens: list[int], logit_rows: list[int], hidden_rows: list[int]) -> Batch:
    count = len(tokens)
    blocks = -(-count // 32)
    lists = (tokens, [0], [0, count], range(blocks), [0, blocks], logit_rows, hidden_rows)
    return Batch(*(np.array(each, np.int32) for each in lists))


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "llama2", "mixtral"])
def test_hidden_rows_lead_to_transformers_logits(kernel: Path, name: str, tmp_path: Path) -> None:
    path, tokens = golden.hf_folder(name, tmp_path), golden.model(name).text()
    weights = golden.model(name).weights()
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    decoder = load_decoder(path, kernel, context=128, threads=2, exact=True)
    try:
        decoder.open_cache(2)
        some = [0, 7, len(tokens) - 1]
        logits, hidden = decoder.step_both(batch_of(tokens, some, list(range(len(tokens)))))
        np.testing.assert_allclose(hidden @ head.T, golden.logits(name), atol=1e-4)
        np.testing.assert_allclose(logits, golden.logits(name)[some], atol=1e-4)
    finally:
        decoder.close()


@pytest.mark.parametrize("name", ["qwen3", "gptoss"])
def test_logits_and_hidden_rows_do_not_change_each_other(
    kernel: Path, name: str, tmp_path: Path
) -> None:
    path, tokens = golden.hf_folder(name, tmp_path), golden.model(name).text()
    every = list(range(len(tokens)))

    def step(decoder: Decoder, logit_rows: list[int], hidden_rows: list[int]) -> list[bytes]:
        found = decoder.step_both(batch_of(tokens, logit_rows, hidden_rows))
        return [row.tobytes() for rows in found for row in rows]

    decoder = load_decoder(path, kernel, context=128, threads=2)
    try:
        decoder.open_cache(2)
        logits, hidden = step(decoder, every, []), step(decoder, [], every)
        assert len(logits) == len(hidden) == len(tokens)
        assert step(decoder, every, every) == logits + hidden
        assert step(decoder, [3, 5], [4, 3, 39]) == [
            *(logits[3], logits[5], hidden[4], hidden[3], hidden[39])
        ]
        assert step(decoder, [], []) == []
    finally:
        decoder.close()


def test_the_rows_of_embeddings_are_apart_from_those_of_logits() -> None:
    def sequence(tokens: int, computed: int, **fields: Any) -> ScheduledSequence:
        numbers = list(range(tokens))
        sizes: dict[str, Any] = {
            "prompt_length": tokens,
            "prefill_length": tokens,
            "computed": computed,
        }
        return ScheduledSequence(tokens=numbers, blocks=[1, 2], **sizes, **fields)

    last = sequence(34, 31, embeds=True)
    mean = sequence(40, 0, embeds=True, scoring=True)
    answer = sequence(33, 32)
    found = step_input([Chunk(last, 3), Chunk(answer, 1, drafts=(5, 6)), Chunk(mean, 10)])
    assert found.logit_rows.tolist() == [3, 4, 5]
    assert found.hidden_rows.tolist() == [2, *range(6, 16)]
    mean.computed = mean.scored = 10
    assert step_input([Chunk(mean, 30)]).hidden_rows.tolist() == list(range(30))
    mean.computed, mean.scored = 0, 39  # preempted, and computed again
    assert step_input([Chunk(mean, 40)]).hidden_rows.tolist() == [39]
    assert step_input([Chunk(mean, 39)]).hidden_rows.tolist() == []


@pytest.fixture
def start(kernel: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts engines on a tiny embedding model of this pooling."""
    engines: list[RunningEngine] = []
    own = tmp_path / "cache" / KEPT / kernel.name
    own.parent.mkdir(parents=True)
    shutil.copy(kernel, own)  # else it would be compiled for this cache anew

    def started(pooling: str, **fields: Any) -> RunningEngine:
        source = tmp_path / pooling
        if not source.exists():
            write_embedder(source, pooling=pooling)
        folder = prepare(str(source), tmp_path / "cache", lambda phase, fraction: None)
        defaults = {"kv_cache_bytes": 8 << 20, "threads": 1}
        config = EngineConfig(engine="cpu", model_dir=str(folder), **{**defaults, **fields})
        engines.append(RunningEngine(config))
        return engines[-1]

    yield started
    for engine in engines:
        engine.stop()


def embed(number: int, length: int) -> GenerationRequest:
    chance = random.Random(number)
    prompt = (*(chance.randrange(256) for _ in range(length - 1)), EOS)
    return GenerationRequest(
        request_id=f"e{number}", prompt=prompt, max_tokens=0, seed=0, embed=True
    )


def generate(number: int) -> GenerationRequest:
    chance = random.Random(number)
    return GenerationRequest(
        request_id=f"g{number}",
        prompt=tuple(chance.randrange(256) for _ in range(20)),
        max_tokens=30,
        seed=number,
        sampling=Sampling(temperature=0.9),
    )


def embeddings(engine: RunningEngine, *requests: GenerationRequest) -> list[bytes]:
    found = [answer.embedding for answer in engine.run(*requests)]
    assert all(found)
    return [raw for raw in found if raw]


def unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values / np.linalg.norm(values)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_embeddings_are_those_of_numpy(start: Start, pooling: str, tmp_path: Path) -> None:
    engine = start(pooling)
    assert engine.info.task == "embed"
    assert engine.info.embedding_size == 64
    decoder = NumpyDecoder(open_model(tmp_path / pooling))
    for length in (1, 5, 40, 100):
        request = embed(length, length)
        rows = decoder.hidden(list(request.prompt))
        expected = rows[-1] if pooling == "last" else rows.mean(0)
        (raw,) = embeddings(engine, request)
        assert unit(np.frombuffer(raw, "<f4")) @ unit(expected) > 0.998


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_same_bits_in_any_cut_cache_and_company(start: Start, pooling: str) -> None:
    lengths = (1, 31, 32, 33, 77, 100)
    requests = [embed(number, length) for number, length in enumerate(lengths)]
    plain = start(pooling, enable_prefix_caching=False)
    alone = [embeddings(plain, request)[0] for request in requests]
    assert len(set(alone)) == len(alone)
    for fields in (
        {"max_num_batched_tokens": 18, "max_num_seqs": 2},
        {"max_num_batched_tokens": 40},
        {"threads": 2},
    ):
        engine = start(pooling, **fields)
        answers = engine.run(*requests, *(generate(number) for number in range(4)))
        assert [answer.embedding for answer in answers[: len(alone)]] == alone
        again = engine.run(*requests)  # now the cache knows their beginnings
        assert [answer.embedding for answer in again] == alone
        if pooling == "last":
            assert again[-1].cached_tokens >= 64


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_preempted_embeddings_have_the_bits_they_have_alone(
    start: Start, pooling: str, tmp_path: Path
) -> None:
    engine = start(pooling)
    size = block_bytes(spec_of(tmp_path / pooling))
    cramped = start(pooling, kv_cache_bytes=5 * size, max_num_batched_tokens=24)
    requests = [embed(number, 120) for number in range(4)]
    alone = [embeddings(engine, request)[0] for request in requests]
    mixed = [*requests, *(generate(number) for number in range(3))]
    tokens = [engine.run(request)[0].tokens for request in mixed[4:]]
    answers = cramped.run(*mixed)
    assert [answer.embedding for answer in answers[:4]] == alone
    assert [answer.tokens for answer in answers[4:]] == tokens
    assert cramped.engine.stats().preemptions > 0
