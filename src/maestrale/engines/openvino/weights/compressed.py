"""Weights that a model's graph stores in few bits, read out of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

Float = NDArray[np.float32]


def compressed_weights(product: Any) -> Float | None:
    """The weights [out, in] that a MatMul multiplies by, where they are stored compressed."""
    if product.get_type_name() != "MatMul":
        return None
    attributes = product.get_attributes()
    if attributes["transpose_a"] or not attributes["transpose_b"]:
        return None
    operand = product.input_value(1).get_node()
    if operand.get_type_name() == "Constant" or not _is_constant(operand):
        return None
    values = evaluated(operand)
    return values if values is not None and values.ndim == 2 else None


def _is_constant(node: Any) -> bool:
    inputs = sources(node)
    return node.get_type_name() == "Constant" or (bool(inputs) and all(map(_is_constant, inputs)))


def sources(node: Any) -> list[Any]:
    """The nodes that this one's inputs come from."""
    return [value.get_node() for value in node.input_values()]


def evaluated(node: Any) -> Float | None:
    """A decompression (Convert, Subtract, Multiply, Reshape over constants); None: another."""
    kind = node.get_type_name()
    if kind == "Constant":
        return _constant(node)
    inputs = sources(node)
    first = evaluated(inputs[0])
    if first is None or kind == "Convert":
        return first
    if kind == "Reshape":
        return first.reshape(node.get_output_shape(0))
    second = evaluated(inputs[1]) if kind in ("Subtract", "Multiply") else None
    if second is None:
        return None
    return first - second if kind == "Subtract" else first * second


def _constant(node: Any) -> Float:
    kind = node.get_element_type()
    shape = node.get_output_shape(0)
    if kind not in (ov.Type.u4, ov.Type.i4):
        return np.asarray(node.data).astype(np.float32).reshape(shape)
    packed = np.frombuffer(node.data.tobytes(), np.uint8)
    nibbles = np.empty(packed.size * 2, np.int8)
    nibbles[0::2] = packed & 15
    nibbles[1::2] = packed >> 4
    if kind == ov.Type.i4:
        nibbles = (nibbles ^ 8) - 8
    return nibbles[: int(np.prod(shape))].astype(np.float32).reshape(shape)
