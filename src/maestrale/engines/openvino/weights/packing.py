"""Weights as `projection.cpp` reads them: in blocks of 8 outputs and 32 inputs.

What a GGUF or an export stores in 4 or 8 bits, in groups of 32 inputs or a multiple, is taken
over as it is. All else becomes 8 bits with a scale for each 32 inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from maestrale.engines.openvino.weights.compressed import Float, evaluated, sources

GROUP = 32  # inputs
TILE = 8  # outputs
# Bits, and what makes the values positive.
STORED = {
    str(ov.Type.u4): (4, 0),
    str(ov.Type.i4): (4, 8),
    str(ov.Type.u8): (8, 0),
    str(ov.Type.i8): (8, 128),
}

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Grouped:
    """Weights `(values - zero_points) * scales`.

    `values` [outputs, groups, 32] and `zero_points` [outputs, groups] of uint8, below 2**bits;
    `scales` [outputs, groups] float16.
    """

    bits: int
    values: Bytes
    zero_points: Bytes
    scales: NDArray[np.float16]


def grouped(operand: Any, weights: Float) -> Grouped:
    """The weights of a product: as `operand` stores them, else `weights` rounded to 8 bits."""
    return _stored(operand, *weights.shape) or _rounded(weights)


def packed(parts: Sequence[Grouped]) -> Bytes:
    """One after the other, all of the same bits and width: [tiles, groups, bytes of a block]."""
    values = _whole_tiles([part.values for part in parts])
    zero_points = _whole_tiles([part.zero_points for part in parts])
    scales = _whole_tiles([part.scales for part in parts])
    groups = values.shape[1]
    # Of each four inputs, those of the 8 outputs lie together.
    quads = values.reshape(-1, TILE, groups, GROUP // 4, 4).transpose(0, 2, 3, 1, 4)
    if parts[0].bits == 4:
        quads = quads[:, :, 0::2] | quads[:, :, 1::2] << 4
    tiles = len(quads)
    scales = np.ascontiguousarray(scales.reshape(tiles, TILE, groups).transpose(0, 2, 1))
    block = (
        quads.reshape(tiles, groups, -1),
        scales.view(np.uint8),
        zero_points.reshape(tiles, TILE, groups).transpose(0, 2, 1),
    )
    return np.concatenate(block, axis=2)


def _whole_tiles(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """All rows, and as many of zeros as fill the last tile."""
    rows = np.concatenate(parts)
    missing = -len(rows) % TILE
    return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)])


def _stored(operand: Any, outputs: int, inputs: int) -> Grouped | None:
    """What a decompression (Convert, Subtract, Multiply, Reshape) starts from; None: another."""
    node = operand
    while node.get_type_name() in ("Convert", "Reshape"):
        node = sources(node)[0]
    if node.get_type_name() != "Multiply":
        return None
    centred, scale = sources(node)
    zero_point = None
    if centred.get_type_name() == "Subtract":
        centred, zero_point = sources(centred)
    while centred.get_type_name() == "Convert":
        centred = sources(centred)[0]
    stored = STORED.get(str(centred.get_output_element_type(0)))
    values, scales = evaluated(centred), evaluated(scale)
    zeros = np.zeros(1, np.float32) if zero_point is None else evaluated(zero_point)
    if stored is None or values is None or scales is None or zeros is None:
        return None
    bits, offset = stored
    groups = inputs // GROUP
    scales, zeros = _spread(scales, outputs, groups), _spread(zeros, outputs, groups)
    if scales is None or zeros is None:
        return None
    zeros = zeros + offset
    if (zeros != np.rint(zeros).clip(0, 255)).any() or not _in_float16(scales):
        return None
    return Grouped(
        bits=bits,
        values=(values + offset).astype(np.uint8).reshape(outputs, groups, GROUP),
        zero_points=zeros.astype(np.uint8),
        scales=scales.astype(np.float16),
    )


def _in_float16(numbers: Float) -> bool:
    """Whether none is too large or too small for it."""
    size = np.abs(numbers[numbers != 0])
    limits = np.finfo(np.float16)
    return bool(((size >= limits.tiny) & (size <= limits.max)).all())


def _spread(numbers: Float, outputs: int, groups: int) -> Float | None:
    """One for all, for each output or for several groups: [outputs, groups]; None: another."""
    if numbers.size == 1:
        return np.full((outputs, groups), numbers.item(), np.float32)
    each, rest = divmod(numbers.size, outputs)
    if rest or groups % each:
        return None
    return np.repeat(numbers.reshape(outputs, each), groups // each, axis=1)


def _rounded(weights: Float) -> Grouped:
    """Symmetric around 128."""
    outputs, inputs = weights.shape
    groups = weights.reshape(outputs, inputs // GROUP, GROUP)
    scales = (np.abs(groups).max(axis=2) / np.float32(127)).astype(np.float16)
    scales[scales == 0] = 1
    whole = np.rint(groups / scales[:, :, None].astype(np.float32)).clip(-127, 127)
    return Grouped(
        bits=8,
        values=(whole + 128).astype(np.uint8),
        zero_points=np.full(scales.shape, 128, np.uint8),
        scales=scales,
    )
