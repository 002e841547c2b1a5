"""A step taken apart: the sequences with one token, and the others."""

from __future__ import annotations

import numpy as np

from maestrale.engines.openvino.step import StepInput, part, rows_of, singles_of


def step() -> StepInput:
    """A chunk of three tokens, one token, a chunk of two without logits, one token."""
    return StepInput(
        token_ids=np.array([10, 11, 12, 20, 30, 31, 40]),
        positions=np.array([0, 1, 2, 40, 5, 6, 33]),
        past_lens=np.array([0, 40, 5, 33], np.int32),
        sequence_begins=np.array([0, 3, 4, 6, 7], np.int32),
        block_indices=np.array([1, 2, 3, 4, 5, 6], np.int32),
        block_begins=np.array([0, 1, 3, 4, 6], np.int32),
        logit_rows=np.array([2, 3, 6]),
        max_context_len=41,
    )


def test_which_sequences_have_a_single_token() -> None:
    assert singles_of(step()).tolist() == [False, True, False, True]
    assert rows_of(step(), singles_of(step())).tolist() == [False] * 3 + [True, False, False, True]


def test_the_part_with_single_tokens() -> None:
    found = part(step(), singles_of(step()))
    assert found.token_ids.tolist() == [20, 40]
    assert found.positions.tolist() == [40, 33]
    assert found.past_lens.tolist() == [40, 33]
    assert found.sequence_begins.tolist() == [0, 1, 2]
    assert found.block_indices.tolist() == [2, 3, 5, 6]
    assert found.block_begins.tolist() == [0, 2, 4]
    assert found.logit_rows.tolist() == [0, 1]


def test_the_part_with_chunks() -> None:
    found = part(step(), ~singles_of(step()))
    assert found.token_ids.tolist() == [10, 11, 12, 30, 31]
    assert found.past_lens.tolist() == [0, 5]
    assert found.sequence_begins.tolist() == [0, 3, 5]
    assert found.block_indices.tolist() == [1, 4]
    assert found.block_begins.tolist() == [0, 1, 2]
    assert found.logit_rows.tolist() == [2]


def test_a_part_keeps_the_types_that_the_model_wants() -> None:
    whole, found = step(), part(step(), singles_of(step()))
    for name in ("token_ids", "past_lens", "sequence_begins", "block_indices", "block_begins"):
        assert getattr(found, name).dtype == getattr(whole, name).dtype
    assert found.logit_rows.dtype == whole.logit_rows.dtype
