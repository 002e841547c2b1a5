"""What this machine can do at most, measured on the spot, in a process of its own.

    python -m bench_peers.limits MODEL_XML [SERVED_XML]

Prints JSON: memory bandwidth (reading, as a matrix-vector product does: the better of numpy's and
our kernel's), fp32 and int8 matrix products (int8: the better of OpenVINO's and our kernel's), and
the model's number of weights and the bytes that one token reads, in the form of the model that is
served.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from maestrale.engines.openvino.weights.chain import OPERATION, Chain, Stage
from maestrale.engines.openvino.weights.extension import kept
from maestrale.engines.openvino.weights.packing import GROUP, Grouped, packed
from openvino import opset13 as ops
from openvino.utils.node_factory import NodeFactory

ROUNDS = 7
ROWS, INNER, OUTER = 512, 2048, 2048
LARGE = 131_072  # outputs of a product whose weights are beyond any cache


def best_of(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The shortest of several runs, in seconds: what the machine can do."""
    work()
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def read_bandwidth() -> float:
    """Bytes a second that all cores together read from memory."""
    matrix = np.ones((16384, 8192), np.float32)  # 512 MiB: beyond any cache
    vector = np.ones(8192, np.float32)
    return matrix.nbytes / best_of(lambda: matrix @ vector)


def copy_bandwidth() -> float:
    """Bytes a second read and written by one core's copy."""
    source = np.ones(1 << 26, np.float32)
    target = np.empty_like(source)
    return 2 * source.nbytes / best_of(lambda: np.copyto(target, source))


def matrix_product(weights: str) -> float:
    """Operations a second of a large product in OpenVINO; `weights`: f32 or i8."""
    drawn = np.random.default_rng(0).standard_normal((OUTER, INNER)).astype(np.float32)
    rows = ops.parameter([-1, INNER], np.float32)
    config: dict[str, object] = {"INFERENCE_PRECISION_HINT": "f32"}
    if weights == "f32":
        matrix = ops.constant(drawn)
        config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
    else:
        scale = np.abs(drawn).max(axis=1, keepdims=True) / 127
        small = ops.constant(np.round(drawn / scale).astype(np.int8))
        matrix = ops.multiply(ops.convert(small, "f32"), ops.constant(scale.astype(np.float32)))
        config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 128  # activations are made int8, too
    product = ops.matmul(rows, matrix, False, True)
    return 2 * ROWS * INNER * OUTER / _seconds(ov.Model([product], [rows]), ROWS, config)


def kernel_product(kernel: Path) -> float:
    """Operations a second of a large product in our own operation, weights of 4 bits."""
    model, _ = _kernel_model(kernel, OUTER)
    return 2 * ROWS * INNER * OUTER / _seconds(model, ROWS, {}, kernel)


def kernel_reading(kernel: Path) -> float:
    """Bytes of weights a second that it reads for a single row."""
    model, weight_bytes = _kernel_model(kernel, LARGE)
    return weight_bytes / _seconds(model, 1, {}, kernel)


def _kernel_model(kernel: Path, outputs: int) -> tuple[ov.Model, int]:
    """A model of one such product, and the bytes of its weights."""
    drawn = np.random.default_rng(0).integers(0, 16, (OUTER, INNER // GROUP, GROUP), np.uint8)
    ends = drawn[..., 0]
    some = packed([Grouped(4, drawn, ends, np.full(ends.shape, 0.01, np.float16))])
    weights = np.tile(some, (outputs // OUTER, 1, 1))
    factory = NodeFactory()
    factory.add_extension(kernel)
    rows = ops.parameter([-1, INNER], np.float32)
    chain = Chain.plain([Stage(outputs, INNER, 4)], [(0, outputs)])
    constant = ops.constant(weights).output(0)
    product = factory.create(OPERATION, [rows.output(0), constant], chain.attributes())
    return ov.Model([product], [rows]), weights.nbytes


def _seconds(
    model: ov.Model, rows: int, config: dict[str, object], kernel: Path | None = None
) -> float:
    request = _core(kernel).compile_model(model, "CPU", config).create_infer_request()
    given = np.random.default_rng(1).standard_normal((rows, INNER)).astype(np.float32)
    return best_of(lambda: request.infer([given]), 15)


def model_size(model_xml: Path) -> tuple[int, int, int]:
    """(weights that a token is multiplied with, those of the output layer, all their bytes).

    An embedding of its own is left out: a token reads one row of it. One that is the output
    layer, too, counts.
    """
    sizes = [
        (op.output(0).get_shape(), op.output(0).get_element_type().bitwidth)
        for op in _core(kept(model_xml.parent)).read_model(model_xml).get_ops()
        if op.get_type_name() == "Constant" and not _only_looked_up(op)
    ]
    # Scales and zero points end in 1: one for each group of weights.
    numbers = [int(np.prod(shape)) for shape, _ in sizes if len(shape) >= 2 and shape[-1] > 1]
    bytes_ = sum(int(np.prod(shape)) * bits // 8 for shape, bits in sizes)
    return sum(numbers), max(numbers, default=0), bytes_


def _core(kernel: Path | None) -> ov.Core:
    """One that also knows our operation, where its kernel is given."""
    core = ov.Core()
    if kernel is not None:
        core.add_extension(kernel)
    return core


def _only_looked_up(op: Any) -> bool:
    """Whether rows are taken from this constant (in whatever form), and nothing else is done."""
    if op.get_type_name() == "Gather":
        return True
    users = [target.get_node() for target in op.output(0).get_target_inputs()]
    through = ("Constant", "Convert", "Multiply", "Subtract", "Reshape")
    return op.get_type_name() in through and bool(users) and all(map(_only_looked_up, users))


def main() -> None:
    weights, head, weight_bytes = model_size(Path(sys.argv[1]))
    int8_ops, reading = matrix_product("i8"), read_bandwidth()
    for served in map(Path, sys.argv[2:]):
        weight_bytes = model_size(served)[2]
        if (kernel := kept(served.parent)) is not None:
            int8_ops = max(int8_ops, kernel_product(kernel))
            reading = max(reading, kernel_reading(kernel))
    found = {
        "read_bandwidth": reading,
        "copy_bandwidth": copy_bandwidth(),
        "fp32_ops": matrix_product("f32"),
        "int8_ops": int8_ops,
        "weights": weights,
        "head_weights": head,
        "weight_bytes": weight_bytes,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
