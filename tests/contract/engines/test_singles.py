"""Single tokens through one operation: what OpenVINO's attention computes, in any company."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from maestrale.engines.openvino.graph import PagedModel
from maestrale.engines.openvino.kv_cache import BLOCK_SIZE
from maestrale.engines.openvino.step import StepInput
from maestrale.engines.openvino.weights.extension import unavailable

pytestmark = pytest.mark.model

TOKENS = np.random.default_rng(3).integers(5, 40_000, 800)
LENGTHS = (3, 40, 300)  # of sequences; the last in two spans of the cache
FIRST_BLOCKS = (0, 1, 4)


@pytest.fixture(scope="module", params=[True, False])
def model(request: pytest.FixtureRequest, prepared_model: Path) -> PagedModel:
    """In deterministic mode and in fast mode, with three sequences in its cache."""
    if reason := unavailable(prepared_model):
        pytest.skip(reason)
    found = PagedModel(
        prepared_model,
        kv_cache_bytes=64 << 20,
        threads=2,
        deterministic=request.param,
        weight_format="a8",
    )
    for index, length in enumerate(LENGTHS):
        found.infer(step((index, 0, length)))
    return found


def step(*pieces: tuple[int, int, int]) -> StepInput:
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
        logit_rows=ends - 1,
        max_context_len=max(start + count for _, start, count in pieces),
    )


NEXT = [(index, length, 1) for index, length in enumerate(LENGTHS)]


def near(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """As near as roundings of activations to 8 bits, that fall otherwise, let them be."""
    return float(np.abs(one - other).max()) < 0.05 * float(np.abs(other).max())


def test_the_model_has_it(model: PagedModel) -> None:
    assert model._singles is not None


@pytest.mark.parametrize("piece", NEXT)
def test_it_computes_what_paged_attention_does(
    model: PagedModel, piece: tuple[int, int, int]
) -> None:
    found = model._infer_singles(step(piece)).copy()
    assert near(found, model._infer_paged(step(piece)))


def test_bits_are_the_same_in_any_company(model: PagedModel) -> None:
    alone = [model.infer(step(piece))[0].tobytes() for piece in NEXT]
    assert [row.tobytes() for row in model.infer(step(*NEXT))] == alone
    prompt = (0, 0, 3)  # what its blocks hold already
    mixed = model.infer(step(NEXT[1], prompt, NEXT[2]))
    assert [mixed[0].tobytes(), mixed[2].tobytes()] == alone[1:]


def test_a_prompt_beside_single_tokens_gets_its_own_bits(model: PagedModel) -> None:
    if not model.exact_step_tokens:
        pytest.skip("promised in deterministic mode only")
    prompt = (0, 0, 3)  # what its blocks hold already
    alone = model.infer(step(prompt))[0].tobytes()
    assert model.infer(step(NEXT[1], prompt, NEXT[2]))[1].tobytes() == alone
