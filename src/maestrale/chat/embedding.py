"""Embeddings: which inputs a model takes, and vectors as long as they are asked for.

An engine gives each input's vector as it is (`TokenDelta.embedding`). Here its first `dimensions`
numbers are taken (Matryoshka) and brought to the length 1, so that products are cosines.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from maestrale.chat.options import INPUT, Inputs, require, too_long
from maestrale.engines.base import EngineInfo
from maestrale.errors import EngineError, InvalidRequest, Location

DIMENSIONS = Location("dimensions")


def check_dimensions(asked: Inputs, info: EngineInfo) -> None:
    """Whether the model's vectors are as long as is asked for. Raises: InvalidRequest."""
    require(info, "embed", INPUT)
    most, wanted = info.embedding_size, asked.dimensions
    if wanted is not None and not 1 <= wanted <= most:
        raise InvalidRequest(
            DIMENSIONS,
            f" is {wanted}; this model's embeddings have {most} numbers, of which the first 1 to "
            f"{most} can be had.",
            at=DIMENSIONS,
        )


def place_of(index: int, inputs: Sequence[object]) -> Location:
    """Where the input of this index is in the request."""
    return INPUT.at(index) if len(inputs) > 1 else INPUT


def check_length(tokens: int, limit: int, at: Location) -> None:
    """Whether an input of so many tokens fits the context. Raises: InvalidRequest and its kin."""
    if not tokens:
        raise InvalidRequest("The input is empty.", at=at)
    if tokens > limit:
        raise too_long(limit, at, f"the input has {tokens} tokens")


def unit_vector(raw: bytes, dimensions: int | None) -> bytes:
    """The first `dimensions` numbers of a vector (float32, little-endian), at the length 1.

    Raises: EngineError where it has none.
    """
    values = struct.unpack(f"<{len(raw) // 4}f", raw)[:dimensions]
    length = math.hypot(*values)
    if not 0 < length < math.inf:
        raise EngineError("The model gave numbers that make no embedding: its weights are damaged.")
    return struct.pack(f"<{len(values)}f", *(value / length for value in values))
