"""Scores of documents: what an engine gives for each, as a number."""

from __future__ import annotations

import math
import struct

from maestrale.errors import EngineError


def score_of(raw: bytes) -> float:
    """A reranker's score (float32, little-endian): from 0 to 1.

    Raises: EngineError where it is none.
    """
    (score,) = struct.unpack("<f", raw)
    if not math.isfinite(score):
        raise EngineError("The model gave a score that is no number: its weights are damaged.")
    return float(score)
