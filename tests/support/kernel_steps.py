"""Steps of a decoder, as the engine makes them for one sequence."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from maestrale.engines.cpu.decoder import Batch, Decoder

BLOCK = 32


def computed(decoder: Decoder, tokens: list[int], chunk: int | None = None) -> NDArray[np.float32]:
    """The logits of every token, computed `chunk` tokens a step."""
    decoder.open_cache(-(-len(tokens) // BLOCK))
    rows = []
    size = chunk or len(tokens)
    for begin in range(0, len(tokens), size):
        part = tokens[begin : begin + size]
        blocks = np.arange(-(-(begin + len(part)) // BLOCK), dtype=np.int32)
        batch = Batch(
            token_ids=np.array(part, np.int32),
            past=np.array([begin], np.int32),
            begins=np.array([0, len(part)], np.int32),
            blocks=blocks,
            block_begins=np.array([0, len(blocks)], np.int32),
            logit_rows=np.arange(len(part), dtype=np.int32),
        )
        rows.append(decoder.step(batch).copy())
    return np.concatenate(rows)
