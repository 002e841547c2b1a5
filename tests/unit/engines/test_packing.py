"""The extension's products against the same arithmetic in numpy, for every layout of weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray
from openvino import opset13
from openvino.utils.node_factory import NodeFactory

from maestrale.engines.openvino.weights.chain import OPERATION, Chain, Stage
from maestrale.engines.openvino.weights.compressed import compressed_weights
from maestrale.engines.openvino.weights.packing import GROUP, TILE, Grouped, grouped, packed

Float = NDArray[np.float32]
Product = Callable[[Float], Float]

DRAW = np.random.default_rng(11)
RANGES = {"u4": (0, 15), "i4": (-8, 7), "u8": (0, 255), "i8": (-128, 127)}


def drawn(bits: int, outputs: int, groups: int) -> Grouped:
    most = 2**bits
    shape = (outputs, groups)
    return Grouped(
        bits=bits,
        values=DRAW.integers(0, most, (*shape, GROUP)).astype(np.uint8),
        zero_points=DRAW.integers(0, most, shape).astype(np.uint8),
        scales=DRAW.uniform(-0.1, 0.1, shape).astype(np.float16),
    )


def product(kernel: Path, parts: list[Grouped]) -> Product:
    """What the extension makes of rows [rows, inputs]."""
    weights = packed(parts)
    outputs = sum(len(part.values) for part in parts)
    assert weights.shape[0] == -(-outputs // TILE)
    width = weights.shape[1] * GROUP
    chain = Chain.plain([Stage(outputs, width, parts[0].bits)], [(0, outputs)])
    factory = NodeFactory()
    factory.add_extension(kernel)
    x = opset13.parameter([-1, width], ov.Type.f32, name="x")
    constant = opset13.constant(weights).output(0)
    node = factory.create(OPERATION, [x.output(0), constant], chain.attributes())
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}
    compiled = ov.Core().compile_model(ov.Model([node], [x], "product"), "CPU", options)
    return lambda rows: np.array(compiled([rows])[0])


def reference(x: Float, weights: Grouped) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same product, and the sizes of its terms added up, which bound what rounding does."""
    groups = x.reshape(len(x), -1, GROUP)
    largest = np.abs(groups).max(axis=2, keepdims=True)
    factors = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    whole = np.rint(groups * factors).astype(np.int64)
    centred = weights.values.astype(np.int64) - weights.zero_points[:, :, None]
    sums = np.einsum("rgi,ogi->rog", whole, centred).astype(np.float64)
    scales = (largest[:, None, :, 0] / np.float32(127)) * weights.scales.astype(np.float32)
    terms = sums * scales
    return terms.sum(axis=2), np.abs(terms).sum(axis=2)


def assert_is_reference(found: Float, x: Float, weights: Grouped) -> None:
    expected, sizes = reference(x, weights)
    groups = weights.values.shape[1]
    # Whole numbers are exact; each group adds one rounding of a float32.
    assert (np.abs(found - expected) <= groups * 2.0**-23 * sizes).all()
    assert found.shape == expected.shape


@pytest.mark.parametrize("rows", [*range(1, 10), 40])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_product_is_that_of_rounded_activations(kernel: Path, bits: int, rows: int) -> None:
    weights = drawn(bits, outputs=44, groups=6)  # 44: no multiple of 8
    x = DRAW.standard_normal((rows, 6 * GROUP)).astype(np.float32)
    assert_is_reference(product(kernel, [weights])(x), x, weights)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_extremes_do_not_overflow(kernel: Path, bits: int) -> None:
    """Each group at its largest: all weights at the top, all activations of one size."""
    shape = (16, 4)
    weights = Grouped(
        bits=bits,
        values=np.full((*shape, GROUP), 2**bits - 1, np.uint8),
        zero_points=np.zeros(shape, np.uint8),
        scales=np.ones(shape, np.float16),
    )
    x = np.full((5, 4 * GROUP), 3e30, np.float32)
    x[1] = -x[1]
    x[2, ::2] = 0
    x[3] = 0
    x[4] = 1e-30
    found = product(kernel, [weights])(x)
    assert_is_reference(found, x, weights)
    assert (found[3] == 0).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_gets_the_same_bits_whatever_stands_beside_it(kernel: Path, bits: int) -> None:
    run = product(kernel, [drawn(bits, outputs=100, groups=9)])
    x = DRAW.standard_normal((40, 9 * GROUP)).astype(np.float32)
    alone = np.concatenate([run(x[i : i + 1]) for i in range(len(x))])
    for count in (*range(2, 10), 17, 40):
        for first in (0, len(x) - count):
            rows = slice(first, first + count)
            assert run(x[rows]).tobytes() == alone[rows].tobytes()


def test_several_products_side_by_side_give_what_each_gives(kernel: Path) -> None:
    parts = [drawn(4, outputs, groups=3) for outputs in (12, 8, 5)]
    x = DRAW.standard_normal((6, 3 * GROUP)).astype(np.float32)
    each = np.concatenate([product(kernel, [part])(x) for part in parts], axis=1)
    assert product(kernel, parts)(x).tobytes() == each.tobytes()


def stored(
    kind: str, values: NDArray[Any], zeros: NDArray[Any] | None, scales: NDArray[Any]
) -> Any:
    """A product as an export has it: `values` [outputs, groups, n] in `kind`, then to float."""
    shape = ov.Shape(values.shape)
    if kind.endswith("4"):
        nibbles = (values.reshape(-1) & 15).astype(np.uint8)
        tensor = ov.Tensor(nibbles[0::2] | nibbles[1::2] << 4, shape, getattr(ov.Type, kind))
    else:
        tensor = ov.Tensor(values.astype(np.uint8 if kind == "u8" else np.int8))
    centred = opset13.convert(opset13.constant(tensor, shared_memory=False), "f32")
    if zeros is not None:
        centred = opset13.subtract(centred, opset13.constant(zeros.astype(np.float32)))
    scaled = opset13.multiply(centred, opset13.constant(scales.astype(np.float32)))
    width = values.shape[1] * values.shape[2]
    flat = opset13.reshape(scaled, opset13.constant([values.shape[0], width]), special_zero=False)
    x = opset13.parameter([-1, width], ov.Type.f32, name="x")
    return opset13.matmul(x, flat, False, True)


def taken_over(node: Any) -> tuple[Grouped, Float]:
    weights = compressed_weights(node)
    assert weights is not None
    return grouped(node.input_value(1).get_node(), weights), weights


def floats(weights: Grouped) -> Float:
    values = weights.values.astype(np.float32) - weights.zero_points[:, :, None]
    scaled: Float = values * weights.scales[:, :, None].astype(np.float32)
    return scaled.reshape(len(values), -1)


@pytest.mark.parametrize("with_zeros", [True, False])
@pytest.mark.parametrize("width", [32, 64, 128, 256])  # 256: one scale for each output
@pytest.mark.parametrize("kind", RANGES)
def test_what_is_stored_in_4_or_8_bits_is_taken_over(
    kind: str, width: int, with_zeros: bool
) -> None:
    low, high = RANGES[kind]
    shape = (20, 256 // width, 1)
    values = DRAW.integers(low, high + 1, (20, 256 // width, width))
    zeros = DRAW.integers(low, high + 1, shape) if with_zeros else None
    scales = DRAW.uniform(0.01, 0.1, shape).astype(np.float16)
    result, weights = taken_over(stored(kind, values, zeros, scales))
    assert result.bits == int(kind[1])
    assert (floats(result) == weights).all()


@pytest.mark.parametrize(
    ("zero", "scale"), [(0.5, 0.1), (300.0, 0.1), (-1.0, 0.1), (8.0, 1e6), (8.0, 1e-7)]
)
def test_what_a_block_can_not_hold_is_rounded_to_8_bits(zero: float, scale: float) -> None:
    """A zero point that is no byte, a scale that is no float16."""
    values = DRAW.integers(0, 16, (8, 2, 32))
    shape = (8, 2, 1)
    result, weights = taken_over(stored("u4", values, np.full(shape, zero), np.full(shape, scale)))
    assert result.bits == 8
    step = np.abs(weights.reshape(8, 2, 32)).max(axis=2).repeat(32, axis=1) / 127
    # The scale, too, is rounded: to 11 bits, or for the smallest to a multiple of 6e-8.
    assert (np.abs(floats(result) - weights) <= 0.6 * step + 127 * 2.0**-24).all()
