"""The arrays of one step of the model, made of the chunks that the scheduler picked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maestrale.engines.cpu.decoder import Batch
from maestrale.engines.cpu.kv_cache import BLOCK_SIZE
from maestrale.engines.cpu.sequence import Chunk


def step_input(chunks: Sequence[Chunk]) -> Batch:
    """The arrays of one step, chunk after chunk. A chunk's guesses follow its own tokens."""
    tokens: list[int] = []
    past: list[int] = []
    begins = [0]
    blocks: list[int] = []
    block_begins = [0]
    rows: list[int] = []
    hidden_rows: list[int] = []
    for chunk in chunks:
        sequence = chunk.sequence
        start = sequence.computed
        wanted = hidden_rows if sequence.embeds else rows
        wanted += (len(tokens) + row for row in chunk.wanted_rows)
        tokens += sequence.tokens[start : start + chunk.count]
        rows += range(len(tokens), len(tokens) + len(chunk.drafts))
        tokens += chunk.drafts
        past.append(start)
        begins.append(len(tokens))
        end = start + len(tokens) - begins[-2]
        blocks += sequence.blocks[: -(-end // BLOCK_SIZE)]
        block_begins.append(len(blocks))
    lists = (tokens, past, begins, blocks, block_begins, rows, hidden_rows)
    return Batch(*(np.array(each, np.int32) for each in lists))
