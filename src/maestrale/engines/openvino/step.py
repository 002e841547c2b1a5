"""The arrays of one step of the model, made of the chunks that the scheduler picked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from maestrale.engines.openvino.kv_cache import BLOCK_SIZE
from maestrale.engines.openvino.scheduler import Chunk


@dataclass(frozen=True)
class StepInput:
    """One step's arrays for T tokens of S sequences; `past_lens[i]` tokens lie in the cache.

    `token_ids`, `positions` [T] int64; `past_lens` [S], `sequence_begins` [S+1],
    `block_indices` [B], `block_begins` [S+1] int32; `logit_rows` [R] int64, indices into T.
    """

    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    past_lens: NDArray[np.int32]
    sequence_begins: NDArray[np.int32]
    block_indices: NDArray[np.int32]
    block_begins: NDArray[np.int32]
    logit_rows: NDArray[np.int64]
    max_context_len: int


def step_input(chunks: Sequence[Chunk]) -> StepInput:
    """The arrays of one step, chunk after chunk."""
    tokens: list[int] = []
    positions: list[int] = []
    past: list[int] = []
    begins = [0]
    blocks: list[int] = []
    block_begins = [0]
    rows: list[int] = []
    longest = 0
    for chunk in chunks:
        sequence = chunk.sequence
        rows += (len(tokens) + row for row in chunk.logit_rows)
        start, end = sequence.computed, sequence.computed + chunk.count
        # A guess is a sequence of one token over the same blocks, one position further on.
        pieces = [sequence.tokens[start:end], *([guess] for guess in chunk.drafts)]
        for number, piece in enumerate(pieces):
            end = start + len(piece)
            tokens += piece
            positions += range(start, end)
            past.append(start)
            begins.append(len(tokens))
            blocks += sequence.blocks[: -(-end // BLOCK_SIZE)]
            block_begins.append(len(blocks))
            longest = max(longest, end)
            if number:
                rows.append(len(tokens) - 1)
            start = end
    return StepInput(
        token_ids=np.array(tokens, np.int64),
        positions=np.array(positions, np.int64),
        past_lens=np.array(past, np.int32),
        sequence_begins=np.array(begins, np.int32),
        block_indices=np.array(blocks, np.int32),
        block_begins=np.array(block_begins, np.int32),
        logit_rows=np.array(rows, np.int64),
        max_context_len=longest,
    )


def padded(step: StepInput, least_rows: int, spare_block: int) -> StepInput:
    """The step with no fewer than `least_rows` (1 or 2) tokens and logit rows."""
    missing = least_rows - len(step.logit_rows)
    if missing > 0:
        rows = np.concatenate((step.logit_rows, np.zeros(missing, np.int64)))
        step = replace(step, logit_rows=rows)
    if len(step.token_ids) >= least_rows:
        return step
    # One token of a sequence of its own, in the spare block.
    return replace(
        step,
        token_ids=np.append(step.token_ids, np.int64(0)),
        positions=np.append(step.positions, np.int64(0)),
        past_lens=np.append(step.past_lens, np.int32(0)),
        sequence_begins=np.append(step.sequence_begins, np.int32(len(step.token_ids) + 1)),
        block_indices=np.append(step.block_indices, np.int32(spare_block)),
        block_begins=np.append(step.block_begins, np.int32(len(step.block_indices) + 1)),
    )


def run(request: Any, step: StepInput, **more: NDArray[Any]) -> NDArray[np.float32]:
    """The output `logits` of an infer request for a step, valid until its next run.

    `more`: inputs besides the tokens, and where their sequences are in the cache.
    """
    arrays = {
        "input_ids": step.token_ids,
        "position_ids": step.positions,
        "past_lens": step.past_lens,
        "subsequence_begins": step.sequence_begins,
        "block_indices": step.block_indices,
        "block_indices_begins": step.block_begins,
        **more,
    }
    for name, array in arrays.items():
        request.set_tensor(name, ov.Tensor(array))
    request.infer()
    logits: NDArray[np.float32] = request.get_tensor("logits").data
    return logits
