"""What stands directly before and after a product in a model's graph, recognised by its shape.

`projection.cpp` does these together with its product: an RMS norm, the gate of a SwiGLU, the sum
with the residual, rotary embedding. What looks otherwise is left to OpenVINO.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov

from maestrale.engines.openvino.weights.compressed import Float, evaluated, sources


@dataclass(frozen=True)
class Norm:
    """x / sqrt(mean(x²) + epsilon) * gain, over the last axis of `x`."""

    x: Any
    gain: Float
    epsilon: float


@dataclass(frozen=True)
class Gate:
    """swish(gate) * up."""

    gate: Any
    up: Any


@dataclass(frozen=True)
class Rotation:
    """heads * cos + turned(heads) * sin, where turned(first, second) is (-second, first).

    `heads`, `rotated`: outputs [batch, heads, length, width]; `cos`, `sin`: [batch, length, width].
    """

    heads: Any
    rotated: Any
    cos: Any
    sin: Any
    width: int

    def like(self, other: Rotation | None) -> bool:
        """Whether both are turned by the same angles."""
        if other is None:
            return False
        return (self.cos, self.sin, self.width) == (other.cos, other.sin, other.width)


def norm_of(output: Any, width: int) -> Norm | None:
    """The RMS norm that `output` [..., width] is the result of."""
    scaled, gain = _with_constant(output.get_node(), "Multiply")
    if gain is None or gain.size != width or scaled.get_node().get_type_name() != "Multiply":
        return None
    for x, factor in _both_ways(scaled.get_node()):
        if (epsilon := _epsilon(factor.get_node(), x)) is not None:
            return Norm(x, gain.reshape(width).astype(np.float32), epsilon)
    return None


def _epsilon(factor: Any, x: Any) -> float | None:
    """Of `factor`, where it is 1 / sqrt(mean(x²) + epsilon)."""
    if factor.get_type_name() != "Divide" or _scalar(factor.input_value(0)) != 1:
        return None
    root = sources(factor)[1]
    if root.get_type_name() != "Sqrt":
        return None
    mean, epsilon = _with_constant(sources(root)[0], "Add")
    if epsilon is None or epsilon.size != 1 or mean.get_node().get_type_name() != "ReduceMean":
        return None
    square, axis = mean.get_node().input_values()
    power = square.get_node()
    last = (-1, x.get_partial_shape().rank.get_length() - 1)
    if _scalar(axis) not in last or power.get_type_name() != "Power":
        return None
    same = power.input_value(0) == x and _scalar(power.input_value(1)) == 2
    return float(epsilon.item()) if same else None


def gate_of(output: Any) -> Gate | None:
    """The two that `output` is made of, where it is swish(gate) * up."""
    node = output.get_node()
    if node.get_type_name() != "Multiply":
        return None
    for swish, up in _both_ways(node):
        x, *beta = swish.get_node().input_values() or [None]
        if swish.get_node().get_type_name() == "Swish" and all(_scalar(b) == 1 for b in beta):
            return Gate(x, up)
    return None


def feeds_gate(node: Any) -> bool:
    """Whether it is its result that a swish is taken of."""
    return any(target.get_node().get_type_name() == "Swish" for target in users(node))


def residual_after(node: Any) -> tuple[Any, Any] | None:
    """(the sum, what is added), where all that is done with `node`'s result is to add it."""
    users = list(node.output(0).get_target_inputs())
    if len(users) != 1 or users[0].get_node().get_type_name() != "Add":
        return None
    total = users[0].get_node()
    other = total.input_value(1 - users[0].get_index())
    shapes = [str(value.get_partial_shape()) for value in (node.output(0), other)]
    constant = other.get_node().get_type_name() == "Constant"
    return None if constant or shapes[0] != shapes[1] else (total, other)


def rotation_of(output: Any) -> Rotation | None:
    """Of what is cut from `output` [batch, length, heads * width], where it is all that is done."""
    cut = _only_taker(output, "Reshape")
    shape = None if cut is None else _constant(cut.input_value(1))
    heads = None if cut is None else _only_taker(cut.output(0), "Transpose")
    if heads is None or shape is None or shape.size != 4 or list(shape[:2]) != [0, 0]:
        return None
    order = _constant(heads.input_value(1))
    width, columns = int(shape[3]), output.get_partial_shape()[2]
    if order is None or list(order) != [0, 2, 1, 3] or columns != int(shape[2]) * width:
        return None
    x = heads.output(0)
    for taker in x.get_target_inputs():
        if taker.get_node().get_type_name() != "Multiply":
            continue
        straight, total = taker.get_node(), _only_taker(taker.get_node().output(0), "Add")
        if total is None:
            return None
        cos = _angles(straight.input_value(1 - taker.get_index()), width)
        for one, other in _both_ways(total):
            if one == straight.output(0) and cos is not None and width % 16 == 0:
                sin = _turned_by(other.get_node(), x, width)
                alone = len(x.get_target_inputs()) == 3  # itself and its halves
                return Rotation(x, total.output(0), cos, sin, width) if sin and alone else None
    return None


def _turned_by(node: Any, x: Any, width: int) -> Any | None:
    """What (-second, first) of x's halves is multiplied by."""
    if node.get_type_name() != "Multiply":
        return None
    for turned, factor in _both_ways(node):
        concat = turned.get_node()
        if concat.get_type_name() != "Concat" or concat.get_input_size() != 2:
            continue
        minus, first = concat.input_values()
        second, sign = _with_constant(minus.get_node(), "Multiply")
        if sign is None or sign.size != 1 or sign.item() != -1 or concat.get_axis() not in (-1, 3):
            continue
        halves = (_is_part(first, x, 0, width // 2), _is_part(second, x, width // 2, width))
        if all(halves):
            return _angles(factor, width)
    return None


def _is_part(output: Any, x: Any, start: int, stop: int) -> bool:
    """Whether it is x[..., start:stop]."""
    node = output.get_node()
    if node.get_type_name() != "Slice" or node.input_value(0) != x:
        return False
    begin, end, *rest = (_scalar(value) for value in node.input_values()[1:])
    last = x.get_partial_shape()[3].get_length()
    return (
        begin == start and end is not None and min(end, last) == stop and rest in ([1, 3], [1, -1])
    )


def _angles(output: Any, width: int) -> Any | None:
    """[batch, length, width], where that is what `output` [batch, 1, length, width] is made of."""
    node = output.get_node()
    if node.get_type_name() != "Unsqueeze" or _scalar(node.input_value(1)) != 1:
        return None
    angles = node.input_value(0)
    shape = angles.get_partial_shape()
    known = shape.rank.is_static and shape.rank.get_length() == 3
    floats = angles.get_element_type() == ov.Type.f32
    return angles if known and floats and shape[2] == width else None


def _only_taker(output: Any, kind: str) -> Any | None:
    """The node that alone takes this output, as its first or any input, if it is of this kind."""
    takers = list(output.get_target_inputs())
    alone = len(takers) == 1 and takers[0].get_node().get_type_name() == kind
    return takers[0].get_node() if alone else None


def users(node: Any) -> list[Any]:
    """The inputs that take an output of `node`."""
    return [target for output in node.outputs() for target in output.get_target_inputs()]


def variable_inputs(node: Any) -> list[Any]:
    """What `node` takes that isn't constant."""
    values = node.input_values()
    return [value for value in values if value.get_node().get_type_name() != "Constant"]


def only_user(output: Any, user: Any, gone: Container[str] = ()) -> bool:
    """Whether nothing but the node `user` takes this output. `gone`: names that don't count."""
    names = {target.get_node().get_friendly_name() for target in output.get_target_inputs()}
    return {name for name in names if name not in gone} <= {user.get_friendly_name()}


def _with_constant(node: Any, kind: str) -> tuple[Any, Float | None]:
    """(an input, the constant beside it) of a node of this kind."""
    if node.get_type_name() == kind:
        for other, constant in _both_ways(node):
            if (values := _constant(constant)) is not None:
                return other, values
    return None, None


def _both_ways(node: Any) -> list[tuple[Any, Any]]:
    first, second = node.input_values()
    return [(first, second), (second, first)]


def _constant(output: Any) -> Float | None:
    node = output.get_node()
    while node.get_type_name() == "Convert":
        node = sources(node)[0]
    return evaluated(node) if node.get_type_name() == "Constant" else None


def _scalar(output: Any) -> float | None:
    values = _constant(output)
    return float(values.item()) if values is not None and values.size == 1 else None
