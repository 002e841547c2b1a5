"""The model as one operation: what OpenVINO's attention computes, in any company, in any chunk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from maestrale.engines.openvino import graph
from maestrale.engines.openvino.graph import PagedModel
from maestrale.engines.openvino.kv_cache import BLOCK_SIZE
from maestrale.engines.openvino.step import StepInput
from maestrale.engines.openvino.weights.extension import unavailable

pytestmark = pytest.mark.model

TOKENS = np.random.default_rng(3).integers(5, 40_000, 800)
LENGTHS = (3, 40, 300)  # of sequences; the last in two spans of the cache
FIRST_BLOCKS = (0, 1, 4)


def loaded(folder: Path, deterministic: bool) -> PagedModel:
    if reason := unavailable(folder):
        pytest.skip(reason)
    return PagedModel(
        folder,
        kv_cache_bytes=64 << 20,
        threads=2,
        deterministic=deterministic,
        weight_format="a8",
    )


@pytest.fixture(scope="module", params=[True, False])
def model(request: pytest.FixtureRequest, prepared_model: Path) -> PagedModel:
    """In deterministic mode and in fast mode, with three sequences in its cache."""
    found = loaded(prepared_model, request.param)
    assert found.one_way
    for index, length in enumerate(LENGTHS):
        found.infer(step((index, 0, length)))
    return found


@pytest.fixture(scope="module")
def paged(prepared_model: Path) -> PagedModel:
    """The same weights with OpenVINO's attention, as other kinds of models have them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "decoder", lambda *_: None)
        found = loaded(prepared_model, deterministic=True)
    assert not found.one_way
    for index, length in enumerate(LENGTHS):
        found.infer(step((index, 0, length)))
    return found


def step(*pieces: tuple[int, int, int], logits: bool = True) -> StepInput:
    """Of each sequence (its index, the first token, how many): the last one's logits."""
    blocks = [
        np.arange(-(-(start + count) // BLOCK_SIZE)) + FIRST_BLOCKS[index]
        for index, start, count in pieces
    ]
    ends = np.cumsum([count for _, _, count in pieces])
    places = [np.arange(start, start + count) for _, start, count in pieces]
    return StepInput(
        token_ids=np.concatenate(
            [TOKENS[place + index] for (index, _, _), place in zip(pieces, places, strict=True)]
        ),
        positions=np.concatenate(places),
        past_lens=np.array([start for _, start, _ in pieces], np.int32),
        sequence_begins=np.append(0, ends).astype(np.int32),
        block_indices=np.concatenate(blocks).astype(np.int32),
        block_begins=np.append(0, np.cumsum([len(one) for one in blocks])).astype(np.int32),
        logit_rows=ends - 1 if logits else np.array([], np.int64),
        max_context_len=max(start + count for _, start, count in pieces),
    )


NEXT = [(index, length, 1) for index, length in enumerate(LENGTHS)]
PROMPT = (0, 0, 3)  # what its blocks hold already


def near(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """As near as roundings to 8 bits let them be."""
    return float(np.abs(one - other).max()) < 0.1 * float(np.abs(other).max())


@pytest.mark.parametrize("piece", NEXT)
def test_it_computes_what_openvinos_attention_does(
    model: PagedModel, paged: PagedModel, piece: tuple[int, int, int]
) -> None:
    assert near(model.infer(step(piece)), paged.infer(step(piece)))


def test_bits_are_the_same_in_any_company(model: PagedModel) -> None:
    alone = [model.infer(step(piece))[0].tobytes() for piece in NEXT]
    prompt = model.infer(step(PROMPT))[0].tobytes()
    assert [row.tobytes() for row in model.infer(step(*NEXT))] == alone
    mixed = [row.tobytes() for row in model.infer(step(NEXT[1], PROMPT, NEXT[2]))]
    assert mixed == [alone[1], prompt, alone[2]]


def test_bits_are_the_same_token_by_token_and_in_chunks(model: PagedModel) -> None:
    whole = model.infer(step((2, 0, 300)))[0].tobytes()
    for begin, count in ((0, 1), (1, 1), (2, 97), (99, 180), (279, 20)):
        model.infer(step((2, begin, count)))
    assert model.infer(step((2, 299, 1)))[0].tobytes() == whole


def test_a_step_without_logits_fills_the_cache(model: PagedModel) -> None:
    wanted = model.infer(step((1, 0, 41)))[0].tobytes()
    for cache in model._graph.caches:
        cache[:] = 0
    assert len(model.infer(step((1, 0, 40), logits=False))) == 0
    assert model.infer(step((1, 40, 1)))[0].tobytes() == wanted
    for index, length in enumerate(LENGTHS):
        model.infer(step((index, 0, length)))


def test_a_copied_block_is_as_good(model: PagedModel) -> None:
    wanted = model.infer(step((0, 3, 1)))[0].tobytes()
    model.copy_block(0, 30)
    other = step((0, 3, 1))
    other.block_indices[:] = 30
    assert model.infer(other)[0].tobytes() == wanted
