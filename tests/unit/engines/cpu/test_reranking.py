"""Rerankers on the CPU: transformers' scores, and the same bits in any step."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import golden_files as golden
from maestrale.engines.base import EngineConfig, GenerationRequest, Sampling
from maestrale.engines.cpu.decoder import Batch, load_decoder
from maestrale.engines.cpu.forecast import forecast
from maestrale.engines.cpu.kernel.build import KEPT
from maestrale.engines.cpu.memory import block_bytes
from maestrale.engines.cpu.model_files import open_model, spec_of
from maestrale.engines.cpu.scoring import scorer_of, sigmoid
from maestrale.errors import ModelError
from maestrale.models.prepared import load_prepared
from maestrale.models.resolve import prepare
from maestrale.models.vocabulary import load_vocabulary
from rewritten_gguf import rewritten
from running_engine import RunningEngine
from tiny_reranker import (
    NAME,
    NO,
    YES,
    golden_score,
    write_classifier,
    write_gguf,
    write_original,
    write_scored,
)

Start = Callable[..., RunningEngine]
MAKE: dict[str, Callable[[Path], Path]] = {
    "gguf": lambda path: write_gguf(path.with_suffix(".gguf")),
    "quantised gguf": lambda path: write_gguf(path.with_suffix(".gguf"), quantised=True),
    "folder": write_classifier,
    "folder of yes and no": lambda path: write_classifier(path, ("no", "yes")),
    "original": write_original,
    "original with its score": write_scored,
}
NO_PROGRESS = lambda phase, fraction: None  # noqa: E731


def test_the_sigmoid_is_rounded_to_the_nearest() -> None:
    assert [sigmoid(x) for x in (0.0, 1e9, -1e9)] == [0.5, 1.0, 0.0]
    for x in (-700.0, -30.25, -1e-9, 0.1, 2.5, 36.0):
        assert sigmoid(x) == pytest.approx(1 / (1 + math.exp(-x)), rel=1e-15)
        assert sigmoid(x) + sigmoid(-x) == pytest.approx(1, rel=1e-15)


@pytest.mark.parametrize("kind", MAKE)
def test_scores_are_those_of_transformers(kernel: Path, kind: str, tmp_path: Path) -> None:
    source, tokens = MAKE[kind](tmp_path / "model"), golden.model(NAME).text()
    folder = prepare(str(source), tmp_path / "cache", NO_PROGRESS)
    prepared, vocabulary = load_prepared(folder), load_vocabulary(folder)
    decoder = load_decoder(source, kernel, context=128, threads=1, exact=True)
    try:
        decoder.open_cache(2)
        some = [0, 7, len(tokens) - 1]
        lists: tuple[list[int], ...] = (tokens, [0], [0, len(tokens)], [0, 1], [0, 2], [], some)
        _, rows = decoder.step_both(Batch(*(np.array(each, np.int32) for each in lists)))
        score = scorer_of(decoder, prepared, vocabulary)
        found = [score(row) for row in rows]
        assert found == pytest.approx([golden_score(at) for at in some], abs=2e-5)
        assert math.isnan(score(np.full_like(rows[0], np.nan)))
    finally:
        decoder.close()


@pytest.fixture
def start(kernel: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts engines on a tiny reranker of this kind."""
    engines: list[RunningEngine] = []
    own = tmp_path / "cache" / KEPT / kernel.name
    own.parent.mkdir(parents=True)
    shutil.copy(kernel, own)  # else it would be compiled for this cache anew
    made: dict[str, Path] = {}

    def started(kind: str, **fields: Any) -> RunningEngine:
        if kind not in made:
            made[kind] = MAKE[kind](tmp_path / kind)
        folder = prepare(str(made[kind]), tmp_path / "cache", NO_PROGRESS)
        defaults = {"kv_cache_bytes": 8 << 20, "threads": 1, "task": "auto"}
        if kind == "original":
            defaults["task"] = "rerank"
        config = EngineConfig(engine="cpu", model_dir=str(folder), **{**defaults, **fields})
        engines.append(RunningEngine(config))
        return engines[-1]

    yield started
    for engine in engines:
        engine.stop()


def ask(name: str, prompt: list[int]) -> GenerationRequest:
    return GenerationRequest(
        request_id=name, prompt=tuple(prompt), max_tokens=0, seed=0, embed=True
    )


def some_prompt(number: int, length: int) -> GenerationRequest:
    chance = random.Random(number)
    return ask(f"s{number}", [chance.randrange(256) for _ in range(length)])


def scores(engine: RunningEngine, *requests: GenerationRequest) -> list[bytes]:
    found = [answer.embedding for answer in engine.run(*requests)]
    assert all(found)
    return [raw for raw in found if raw]


@pytest.mark.parametrize("kind", MAKE)
def test_an_engine_gives_one_number_near_transformers(start: Start, kind: str) -> None:
    engine = start(kind)
    assert (engine.info.task, engine.info.embedding_size) == ("rerank", 1)
    text = golden.model(NAME).text()
    for length in (8, 20, 40):
        (raw,) = scores(engine, ask(f"t{length}", text[:length]))
        (score,) = np.frombuffer(raw, "<f4").tolist()
        assert score == pytest.approx(golden_score(length - 1), abs=0.05)


@pytest.mark.parametrize("kind", ["gguf", "original"])
def test_the_same_bits_in_any_cut_cache_and_company(start: Start, kind: str) -> None:
    requests = [some_prompt(number, length) for number, length in enumerate((1, 31, 33, 77, 100))]
    plain = start(kind, enable_prefix_caching=False)
    alone = [scores(plain, request)[0] for request in requests]
    assert len(set(alone)) == len(alone)
    answers = [
        GenerationRequest(
            request_id=f"g{number}",
            prompt=tuple(range(20)),
            max_tokens=20,
            seed=number,
            sampling=Sampling(temperature=0.9),
        )
        for number in range(3)
    ]
    for fields in ({"max_num_batched_tokens": 18, "max_num_seqs": 2}, {"threads": 2}):
        engine = start(kind, **fields)
        together = engine.run(*requests, *answers)
        assert [answer.embedding for answer in together[: len(alone)]] == alone
        again = engine.run(*requests)  # now the cache knows their beginnings
        assert [answer.embedding for answer in again] == alone
        assert again[-1].cached_tokens >= 64


def test_preempted_ones_have_the_bits_they_have_alone(start: Start, tmp_path: Path) -> None:
    engine = start("folder")
    size = block_bytes(spec_of(tmp_path / "folder"))
    cramped = start("folder", kv_cache_bytes=5 * size, max_num_batched_tokens=24)
    requests = [some_prompt(number, 120) for number in range(4)]
    alone = [scores(engine, request)[0] for request in requests]
    assert scores(cramped, *requests) == alone


def test_the_forecast_says_what_the_engine_will_be(tmp_path: Path) -> None:
    for task, source in (
        ("auto", write_classifier(tmp_path / "folder")),
        ("rerank", write_original(tmp_path / "original")),
    ):
        folder = prepare(str(source), tmp_path / "cache", NO_PROGRESS)
        config = EngineConfig(engine="cpu", model_dir=str(folder), task=task)  # type: ignore[arg-type]
        info = forecast(config, 2 << 30).info
        assert (info.task, info.embedding_size) == ("rerank", 1)


BAD_FOLDERS: dict[str, tuple[dict[str, Any], str]] = {
    "three labels": ({"labels": ("bad", "so", "good")}, "bad, so, good for a classifier of 3"),
    "two other labels": ({"labels": ("LABEL_0", "LABEL_1")}, "label_0, label_1 for .* of 2"),
    "raw scores": (
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
        "activation_fn",
    ),
    "unknown words": ({"sentence_transformers": {"pooling": "x"}}, "pooling"),
    "a regression": ({"problem_type": "regression"}, "problem_type"),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_other_classifiers_are_refused_by_name(name: str, tmp_path: Path) -> None:
    fields, named = BAD_FOLDERS[name]
    source = write_classifier(tmp_path / "model", **fields)
    with pytest.raises(ModelError, match=named):
        open_model(source)


def test_sentence_transformers_own_word_for_a_probability_is_taken(tmp_path: Path) -> None:
    own = {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "4.1.0"}
    source = write_classifier(tmp_path / "model", sentence_transformers=own)
    assert open_model(source).classifier


def test_gguf_files_that_rank_otherwise_are_refused(tmp_path: Path) -> None:
    labels = write_gguf(tmp_path / "labels.gguf", ["good", "bad"])
    with pytest.raises(ModelError, match="names good, bad"):
        open_model(labels)

    def change(values: dict[str, Any], tensors: Any) -> None:
        values["llama.pooling_type"] = 4

    other = rewritten(golden.gguf_file("llama3", tmp_path), tmp_path / "other.gguf", change)
    with pytest.raises(ModelError, match="served of qwen3 alone"):
        open_model(other)

    def without(values: dict[str, Any], tensors: Any) -> None:
        del tensors["cls.output.weight"]

    lacking = rewritten(write_gguf(tmp_path / "whole.gguf"), tmp_path / "lacking.gguf", without)
    with pytest.raises(ModelError, match=r"lacks the tensor 'cls\.output\.weight'"):
        open_model(lacking)


@pytest.mark.parametrize(
    "changed",
    [
        {"true_token_id": NO, "false_token_id": YES},
        {"true_token_id": 10_000},
        {"true_token_id": -1},
        {"false_token_id": None},
        {"false_token_id": "no"},
    ],
)
def test_a_score_by_other_tokens_is_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    source = write_scored(tmp_path / "model", **changed)
    with pytest.raises(ModelError, match="score by other tokens"):
        prepare(str(source), tmp_path / "cache", NO_PROGRESS)


def test_a_model_that_can_not_rerank_says_so(start: Start, tmp_path: Path) -> None:
    folder = golden.hf_folder("qwen2", tmp_path)
    source = write_original(tmp_path / "tokenizer")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / file, folder / file)
    prepared = prepare(str(folder), tmp_path / "cache", NO_PROGRESS)
    config = EngineConfig(engine="cpu", model_dir=str(prepared), task="rerank")
    with pytest.raises(ModelError, match="no reranker: its architecture is qwen2"):
        forecast(config, 2 << 30)
