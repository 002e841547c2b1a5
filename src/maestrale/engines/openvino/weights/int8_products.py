"""Products of 8-bit weights with one scale for each output row, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openvino import opset13

from maestrale.engines.openvino.weights.compressed import Float
from maestrale.engines.openvino.weights.rewiring import rewire_to_parts


@dataclass(frozen=True)
class Int8Projection:
    """A product with its weights as int8 [out, in] and a scale [out, 1] for each row."""

    node: Any
    weights: NDArray[np.int8]
    scales: Float


def int8_projection(node: Any, weights: Float) -> Int8Projection:
    """Symmetric, one scale for each output row."""
    scales = np.abs(weights).max(axis=1, keepdims=True) / np.float32(127)
    scales[scales == 0] = 1
    return Int8Projection(node, np.rint(weights / scales).astype(np.int8), scales)


def join(projections: Sequence[Int8Projection]) -> None:
    """Put one product in the place of several that have the same input."""
    weights = opset13.constant(np.concatenate([p.weights for p in projections]))
    scales = opset13.constant(np.concatenate([p.scales for p in projections]))
    decompressed = opset13.multiply(opset13.convert(weights, "f32"), scales)
    source = projections[0].node.input_value(0)
    product = opset13.matmul(source, decompressed, False, True)
    lengths = [len(p.weights) for p in projections]
    rewire_to_parts([p.node.output(0) for p in projections], product.output(0), lengths)
