"""The same model in another form: 8-bit weights, joined projections, no constant twice.

What a GGUF or an export gives is compact, but 4-bit weights in small groups take most of a
decode step to unpack, and each constant written twice is one more node for every pass of the
compiler. `repack` keeps the weights' values as near as one scale for each output row and 8 bits
allow (`scripts/perplexity` measures by how much that changes the model). Projections of the
same input (queries, keys and values; gate and up) become one product. What doesn't have this
shape is left alone.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13

GRAPH = "openvino_model.xml"
SMALL = 4096  # bytes; larger constants are weights, and never equal

Int8 = NDArray[np.int8]
Float = NDArray[np.float32]


def repacked_folder(folder: Path) -> Path:
    """Where the repacked form of a prepared model lies. Its name counts the versions of it."""
    return folder / "int8-1"


def save_repacked(folder: Path) -> Path | None:
    """Write the repacked form of the model in `folder`, once; returns its folder.

    None where it can't be written (a read-only cache, a full disk).
    """
    done = repacked_folder(folder)
    if (done / GRAPH).is_file():
        return done
    _remove_abandoned(done)
    draft = done.with_name(f"{done.name}.{os.getpid()}")
    try:
        draft.mkdir()
        model = ov.Core().read_model(folder / GRAPH)
        repack(model)
        ov.save_model(model, draft / GRAPH, compress_to_fp16=False)
        draft.rename(done)
    except (OSError, RuntimeError):
        shutil.rmtree(draft, ignore_errors=True)
        return done if (done / GRAPH).is_file() else None
    return done


def _remove_abandoned(done: Path) -> None:
    """Drafts of processes that were killed: each bears its process's number."""
    for draft in done.parent.glob(f"{done.name}.*"):
        if not Path("/proc", draft.suffix[1:]).exists():
            shutil.rmtree(draft, ignore_errors=True)


def repack(model: Any) -> None:
    """Change `model` in place."""
    siblings: dict[tuple[str, int], list[_Projection]] = defaultdict(list)
    for node in model.get_ordered_ops():
        weights = _weights_of(node)
        if weights is not None:
            source = node.input_value(0)
            key = (source.get_node().get_friendly_name(), source.get_index())
            siblings[key].append(_Projection(node, *_to_int8(weights)))
    for projections in siblings.values():
        _join(projections)
    _share_constants(model)
    model.validate_nodes_and_infer_types()


class _Projection:
    """A matrix product with its weights as int8 [out, in] and a scale [out, 1] for each row."""

    def __init__(self, node: Any, weights: Int8, scales: Float) -> None:
        self.node = node
        self.weights = weights
        self.scales = scales


def _weights_of(node: Any) -> Float | None:
    """The weights [out, in] that a MatMul multiplies by, where they are stored compressed."""
    if node.get_type_name() != "MatMul":
        return None
    attributes = node.get_attributes()
    if attributes["transpose_a"] or not attributes["transpose_b"]:
        return None
    operand = node.input_value(1).get_node()
    if operand.get_type_name() == "Constant" or not _is_constant(operand):
        return None
    values = _evaluate(operand)
    return values if values is not None and values.ndim == 2 else None


def _is_constant(node: Any) -> bool:
    inputs = [value.get_node() for value in node.input_values()]
    return node.get_type_name() == "Constant" or (bool(inputs) and all(map(_is_constant, inputs)))


def _evaluate(node: Any) -> Float | None:
    """A decompression (Convert, Subtract, Multiply, Reshape over constants); None: another."""
    kind = node.get_type_name()
    if kind == "Constant":
        return _constant(node)
    inputs = [value.get_node() for value in node.input_values()]
    first = _evaluate(inputs[0])
    if first is None or kind == "Convert":
        return first
    if kind == "Reshape":
        return first.reshape(node.get_output_shape(0))
    second = _evaluate(inputs[1]) if kind in ("Subtract", "Multiply") else None
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


def _to_int8(weights: Float) -> tuple[Int8, Float]:
    """Symmetric, one scale for each output row."""
    scales = np.abs(weights).max(axis=1, keepdims=True) / np.float32(127)
    scales[scales == 0] = 1
    return np.rint(weights / scales).astype(np.int8), scales


def _join(projections: list[_Projection]) -> None:
    """One product for all that multiply the same input, cut up again after it."""
    weights = opset13.constant(np.concatenate([p.weights for p in projections]))
    scales = opset13.constant(np.concatenate([p.scales for p in projections]))
    decompressed = opset13.multiply(opset13.convert(weights, "f32"), scales)
    first = projections[0].node
    if len(projections) == 1:
        first.input(1).replace_source_output(decompressed.output(0))
        return
    product = opset13.matmul(first.input_value(0), decompressed, False, True)
    lengths = opset13.constant(np.array([len(p.weights) for p in projections], np.int64))
    parts = opset13.variadic_split(product, opset13.constant(np.int64(-1)), lengths)
    for index, projection in enumerate(projections):
        _replace(projection.node.output(0), parts.output(index))


def _share_constants(model: Any) -> None:
    """Keep one of each small constant."""
    kept: dict[tuple[str, tuple[int, ...], bytes], Any] = {}
    for node in _small_constants(model):
        output = node.output(0)
        key = (str(node.get_element_type()), tuple(output.get_shape()), node.data.tobytes())
        first = kept.setdefault(key, output)
        if first is not output:
            _replace(output, first)


def _small_constants(model: Any) -> Iterator[Any]:
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant" and node.get_byte_size() <= SMALL:
            yield node


def _replace(old: Any, new: Any) -> None:
    for consumer in old.get_target_inputs():
        consumer.replace_source_output(new)
