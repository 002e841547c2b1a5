"""Chains of products in one operation compute what the graph did that they stand for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray
from openvino import opset13

from maestrale.engines.openvino.weights.chain import OPERATION, Chain
from maestrale.engines.openvino.weights.repack import repack

Float = NDArray[np.float32]

DRAW = np.random.default_rng(5)
WIDTH, INNER = 64, 96
OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}


def parameter(name: str, width: int = WIDTH) -> Any:
    node = opset13.parameter([-1, 1, width], ov.Type.f32, name=name)
    node.output(0).get_tensor().set_names({name})
    return node


def projection(x: Any, outputs: int, width: int = WIDTH) -> Any:
    """x times weights of 4 bits in groups of 32, small enough for sums of them to stay near 1."""
    values = DRAW.integers(0, 256, outputs * width // 2, dtype=np.uint8)
    stored = ov.Tensor(values, ov.Shape([outputs, width // 32, 32]), ov.Type.u4)
    centred = opset13.subtract(
        opset13.convert(opset13.constant(stored, shared_memory=False), "f16"),
        opset13.constant(np.full((outputs, width // 32, 1), 8, np.float16)),
    )
    scales = DRAW.uniform(0.01, 0.03, (outputs, width // 32, 1)).astype(np.float16)
    scaled = opset13.multiply(centred, opset13.constant(scales))
    flat = opset13.reshape(scaled, opset13.constant([outputs, width]), special_zero=False)
    return opset13.matmul(x, opset13.convert(flat, "f32"), False, True)


def norm(x: Any, width: int = WIDTH, axis: int = -1) -> Any:
    """As a GGUF's conversion writes it."""
    square = opset13.power(x, opset13.constant(np.full((1, 1, 1), 2, np.float32)))
    mean = opset13.reduce_mean(square, opset13.constant(np.array([axis])), keep_dims=True)
    root = opset13.sqrt(opset13.add(mean, opset13.constant(np.full((1, 1, 1), 1e-5, np.float32))))
    factor = opset13.divide(opset13.constant(np.ones((1, 1, 1), np.float32)), root)
    gain = DRAW.uniform(0.5, 1.5, (1, 1, width)).astype(np.float32)
    return opset13.multiply(opset13.multiply(x, factor), opset13.constant(gain))


def gated(x: Any, swapped: bool = False) -> Any:
    gate, up = projection(x, INNER), projection(x, INNER)
    swish = opset13.swish(gate)
    return opset13.multiply(up, swish) if swapped else opset13.multiply(swish, up)


def named(results: list[Any]) -> list[Any]:
    for index, result in enumerate(results):
        result.output(0).get_tensor().set_names({f"result{index}"})
    return results


def layer(swapped: bool = False) -> ov.Model:
    """From one attention to the next: out, norm, gate and up, down, norm, QKV; two residuals."""
    attention, stream = parameter("attention"), parameter("stream")
    out = projection(attention, WIDTH)
    first = opset13.add(out, stream) if swapped else opset13.add(stream, out)
    down = projection(gated(norm(first), swapped), WIDTH, INNER)
    second = opset13.add(down, first) if swapped else opset13.add(first, down)
    normed = norm(second)
    # Relu: else these would be the model's last products.
    taken = [opset13.relu(projection(normed, count)) for count in (WIDTH, 32, 32)]
    results = named([opset13.relu(second), *taken])
    return ov.Model(results, [attention, stream], "layer")


def operations(model: ov.Model) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() == OPERATION]


def kinds(model: ov.Model) -> Counter[str]:
    return Counter(node.get_type_name() for node in model.get_ordered_ops())


def run(model: ov.Model, *inputs: Float) -> list[Float]:
    compiled = ov.Core().compile_model(model, "CPU", OPTIONS)
    found = compiled(list(inputs))
    return [np.array(found[index]) for index in range(len(model.outputs))]


def rows(count: int, width: int = WIDTH) -> Float:
    return DRAW.standard_normal((count, 1, width)).astype(np.float32)


def assert_near(found: list[Float], expected: list[Float]) -> None:
    """As near as activations of 8 bits allow, in four products one behind the other."""
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() < 0.03 * np.abs(other).max()


def assert_repacked_is_near(kernel: Path, model: ov.Model, *inputs: Float) -> None:
    """Repacks `model`: it computes what it did before."""
    before = run(model, *inputs)
    repack(model, "a8", kernel)
    assert_near(run(model, *inputs), before)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("count", [1, 3, 8, 21])
def test_a_layer_becomes_one_operation(kernel: Path, swapped: bool, count: int) -> None:
    model = layer(swapped)
    inputs = rows(count), rows(count)
    assert_repacked_is_near(kernel, model, *inputs)
    (node,) = operations(model)
    chain = Chain.of(node)
    assert [stage.before for stage in chain.stages] == ["nothing", "norm", "gate", "norm"]
    assert sorted(chain.outputs) == [(2, WIDTH), (3, 32), (3, 32), (3, WIDTH)]
    assert not kinds(model).keys() & {"MatMul", "Swish", "Sqrt", "VariadicSplit"}


def test_a_row_of_a_layer_gets_the_same_bits_whatever_stands_beside_it(kernel: Path) -> None:
    model = layer()
    repack(model, "a8", kernel)
    compiled = ov.Core().compile_model(model, "CPU", OPTIONS)
    x, y = rows(40), rows(40)

    def bits(rows: slice) -> list[bytes]:
        found = compiled([x[rows], y[rows]])
        return [np.array(found[index])[:1].tobytes() for index in range(4)]

    alone = bits(slice(7, 8))
    for count in (2, 3, 4, 5, 7, 8, 9, 16, 33):
        assert bits(slice(7, 7 + count)) == alone


def logits() -> ov.Model:
    """A product whose weights become 8 bits."""
    x = parameter("x")
    weights = DRAW.standard_normal((84, WIDTH)).astype(np.float32)
    product = opset13.matmul(x, opset13.constant(weights), False, True)
    return ov.Model(named([opset13.relu(product)]), [x], "logits")


@pytest.mark.parametrize("make", [layer, logits])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_cpu_with_vnni_computes_the_same_bits_as_one_without(
    kernel: Path, without_vnni: Path, make: Callable[[], ov.Model], count: int
) -> None:
    """Where this CPU has none, both are the same code."""
    model = make()
    other = model.clone()
    inputs = [rows(count) for _ in model.inputs]
    repack(model, "a8", kernel)
    repack(other, "a8", without_vnni)
    for one, same in zip(run(model, *inputs), run(other, *inputs), strict=True):
        assert one.tobytes() == same.tobytes()


def test_what_is_saved_and_read_again_computes_the_same(kernel: Path, tmp_path: Path) -> None:
    model = layer()
    repack(model, "a8", kernel)
    inputs = rows(5), rows(5)
    ov.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    core = ov.Core()
    core.add_extension(kernel)
    again = core.compile_model(core.read_model(tmp_path / "model.xml"), "CPU", OPTIONS)
    found = again(list(inputs))
    for index, expected in enumerate(run(model, *inputs)):
        assert np.array(found[index]).tobytes() == expected.tobytes()


def test_a_bias_is_no_residual(kernel: Path) -> None:
    x = parameter("x")
    bias = opset13.constant(rows(1)[0])
    model = ov.Model(named([opset13.relu(opset13.add(projection(x, WIDTH), bias))]), [x], "bias")
    batch = rows(4)
    assert_repacked_is_near(kernel, model, batch)
    assert kinds(model)["Add"] == 1


def test_a_result_that_others_take_too_is_not_swallowed(kernel: Path) -> None:
    x = parameter("x")
    gate, up = projection(x, INNER), projection(x, INNER)
    both = opset13.multiply(opset13.swish(gate), up)
    results = [opset13.relu(projection(both, WIDTH, INNER)), opset13.relu(up)]
    model = ov.Model(named(results), [x], "shared")
    batch = rows(4)
    assert_repacked_is_near(kernel, model, batch)
    assert kinds(model)["Swish"] == 1


def test_a_norm_over_another_axis_is_left_alone(kernel: Path) -> None:
    x = parameter("x")
    model = ov.Model(named([opset13.relu(projection(norm(x, axis=1), WIDTH))]), [x], "axis")
    batch = rows(4)
    assert_repacked_is_near(kernel, model, batch)
    assert kinds(model)["Sqrt"] == 1


def test_what_attention_stands_between_stays_two_operations(kernel: Path) -> None:
    x, y = parameter("x"), parameter("y")
    first = projection(x, WIDTH)
    second = projection(opset13.add(opset13.relu(first), y), WIDTH)
    model = ov.Model(named([opset13.relu(second)]), [x, y], "between")
    inputs = rows(4), rows(4)
    assert_repacked_is_near(kernel, model, *inputs)
    assert len(operations(model)) == 2


def test_the_last_product_stays_alone(kernel: Path) -> None:
    """Only the rows whose logits are wanted are picked before it."""
    x = parameter("x")
    model = ov.Model(named([projection(norm(projection(x, WIDTH)), 80)]), [x], "logits")
    repack(model, "a8", kernel)
    assert [len(Chain.of(node).stages) for node in operations(model)] == [1, 1]


HEADS, HEAD = 3, 32


def angles(position: Any) -> tuple[Any, Any]:
    """Cosines and sines of each position [batch, length, 1], as a GGUF's conversion makes them."""
    speeds = np.tile(1.0 / 7.0 ** np.arange(0, 1, 2 / HEAD), 2).astype(np.float32)
    turned = opset13.multiply(position, opset13.constant(speeds.reshape(1, 1, HEAD)))
    return opset13.cos(turned), opset13.sin(turned)


def heads_of(x: Any, count: int) -> Any:
    cut = opset13.reshape(x, opset13.constant([0, 0, count, HEAD]), special_zero=True)
    return opset13.transpose(cut, opset13.constant([0, 2, 1, 3]))


def part(x: Any, start: int, stop: int) -> Any:
    one, last = opset13.constant([1]), opset13.constant([3])
    return opset13.slice(x, opset13.constant([start]), opset13.constant([stop]), one, last)


def rotated(x: Any, cos: Any, sin: Any, sign: float = -1.0, half: int = HEAD // 2) -> Any:
    minus = opset13.multiply(part(x, half, 2**63 - 1), np.full((1, 1, 1, 1), sign, np.float32))
    turned = opset13.concat([minus, part(x, 0, half)], 3)
    axis = opset13.constant(1)
    straight = opset13.multiply(x, opset13.unsqueeze(cos, axis))
    return opset13.add(straight, opset13.multiply(turned, opset13.unsqueeze(sin, axis)))


def attention_inputs(**changes: Any) -> ov.Model:
    """Queries and keys with rotary embedding, values without, of one norm."""
    x, position = parameter("x"), parameter("position", 1)
    cos, sin = angles(position)
    normed = norm(x)
    queries, keys, values = (projection(normed, n * HEAD) for n in (HEADS, 1, 1))
    results = [
        opset13.relu(rotated(heads_of(queries, HEADS), cos, sin, **changes)),
        opset13.relu(rotated(heads_of(keys, 1), cos, sin, **changes)),
        opset13.relu(heads_of(values, 1)),
    ]
    return ov.Model(named(results), [x, position], "rotated")


@pytest.mark.parametrize("count", [1, 3, 21])
def test_rotary_embedding_is_part_of_the_product(kernel: Path, count: int) -> None:
    model = attention_inputs()
    inputs = rows(count), np.arange(count, dtype=np.float32).reshape(count, 1, 1) * 5
    assert_repacked_is_near(kernel, model, *inputs)
    (node,) = operations(model)
    assert sorted(Chain.of(node).rotated) == [0, HEAD, HEAD]
    assert not kinds(model).keys() & {"Slice", "Concat", "Add", "Sqrt"}


@pytest.mark.parametrize("change", [{"sign": 1.0}, {"half": 8}])
def test_what_only_looks_like_rotary_embedding_is_left_alone(
    kernel: Path, change: dict[str, Any]
) -> None:
    model = attention_inputs(**change)
    inputs = rows(4), np.arange(4, dtype=np.float32).reshape(4, 1, 1)
    assert_repacked_is_near(kernel, model, *inputs)
    (node,) = operations(model)
    assert not any(Chain.of(node).rotated)


def test_heads_that_are_also_used_unrotated_stay_so(kernel: Path) -> None:
    x, position = parameter("x"), parameter("position", 1)
    heads = heads_of(projection(x, HEADS * HEAD), HEADS)
    results = [opset13.relu(rotated(heads, *angles(position))), opset13.relu(heads)]
    model = ov.Model(named(results), [x, position], "both")
    inputs = rows(4), np.arange(4, dtype=np.float32).reshape(4, 1, 1)
    assert_repacked_is_near(kernel, model, *inputs)
