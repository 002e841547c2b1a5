"""Embeddings, asked of every engine that makes them beside its answers, and of replicas."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

from maestrale.engines.base import GenerationRequest, Sampling
from maestrale.errors import EngineError
from running_engine import RunningEngine


@pytest.fixture
def embedder(running: RunningEngine) -> RunningEngine:
    if "embed" not in running.info.features:
        pytest.skip(f"{running.info.engine} makes none beside answers")
    return running


def embed(running: RunningEngine, seed: int, length: int = 20, **fields: Any) -> GenerationRequest:
    chance = random.Random(seed)
    most = running.info.vocab_size
    least = min(100, most // 2)
    prompt = tuple(chance.randrange(least, most - 10) for _ in range(length))
    return GenerationRequest(
        **{
            "request_id": f"e{seed}",
            "prompt": prompt,
            "max_tokens": 0,
            "seed": 0,
            "embed": True,
            **fields,
        }
    )


def vector(raw: bytes | None) -> tuple[float, ...]:
    assert raw is not None
    return struct.unpack(f"<{len(raw) // 4}f", raw)


def test_an_embedding_has_no_tokens_and_its_size(embedder: RunningEngine) -> None:
    before = embedder.settled()
    (answer,) = embedder.run(embed(embedder, 1))
    assert (answer.tokens, answer.finish_reason) == ([], "stop")
    values = vector(answer.embedding)
    assert len(values) == embedder.info.embedding_size > 0
    assert any(values)
    after = embedder.settled()
    assert after.prompt_tokens - before.prompt_tokens == 20
    assert after.generation_tokens == before.generation_tokens
    assert after.steps > before.steps


def test_another_prompt_has_another_and_the_same_one_the_same(embedder: RunningEngine) -> None:
    first, again, other = embedder.run(
        embed(embedder, 2), embed(embedder, 2, request_id="again"), embed(embedder, 3)
    )
    assert first.embedding == again.embedding
    assert first.embedding != other.embedding


def test_the_same_bits_alone_and_among_answers_and_other_embeddings(
    embedder: RunningEngine,
) -> None:
    if "deterministic" not in embedder.info.features:
        pytest.skip("it promises no bits")
    lengths = [1, 2, 31, 32, 33, 64, 200, 300]
    asked = [embed(embedder, 10 + number, length) for number, length in enumerate(lengths)]
    alone = [embedder.run(one)[0].embedding for one in asked]
    chance = random.Random(5)
    beside = [
        GenerationRequest(
            request_id=f"beside {number}",
            prompt=tuple(chance.randrange(100, 200) for _ in range(30)),
            max_tokens=10,
            seed=number,
            sampling=Sampling(temperature=0.8),
        )
        for number in range(4)
    ]
    generated = [embedder.run(one)[0].tokens for one in beside]
    fresh = [
        embed(embedder, 10 + number, length, request_id=f"again {number}")
        for number, length in enumerate(lengths)
    ]
    together = embedder.run(*fresh, *beside)
    assert [answer.embedding for answer in together[: len(lengths)]] == alone
    assert [answer.tokens for answer in together[len(lengths) :]] == generated


def test_a_prompt_as_long_as_the_context_is_embedded(embedder: RunningEngine) -> None:
    longest = min(embedder.info.max_model_len, embedder.info.kv_capacity_tokens)
    (answer,) = embedder.run(embed(embedder, 4, longest))
    assert answer.embedding
    with pytest.raises(EngineError, match=str(longest)):
        embedder.run(embed(embedder, 4, longest + 1))


@pytest.mark.parametrize("fields", [{"max_tokens": 3}, {"prompt_logprobs": 0}])
def test_an_embedding_is_of_the_prompt_alone(
    embedder: RunningEngine, fields: dict[str, Any]
) -> None:
    with pytest.raises(EngineError, match="prompt alone"):
        embedder.run(embed(embedder, 6, **fields))
