"""Changes of a graph that every form of a model needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from openvino import opset13


def rewire(old: Any, new: Any) -> None:
    """Give `new` to all that take the output `old`."""
    for consumer in old.get_target_inputs():
        consumer.replace_source_output(new)


def rewire_to_parts(olds: Sequence[Any], joined: Any, lengths: Sequence[int]) -> None:
    """Replace outputs by parts of one that holds them side by side on its last axis."""
    if len(olds) == 1:
        rewire(olds[0], joined)
        return
    cuts = opset13.constant(np.array(lengths, np.int64))
    parts = opset13.variadic_split(joined, opset13.constant(np.int64(-1)), cuts)
    for index, old in enumerate(olds):
        rewire(old, parts.output(index))
