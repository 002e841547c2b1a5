"""The repacked model is the same model, but for the rounding of its weights to 8 bits."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray
from openvino import opset13

from maestrale.engines.openvino.graph import PagedModel
from maestrale.engines.openvino.repack import GRAPH, repack, repacked_folder, save_repacked
from maestrale.engines.openvino.tuning_worker import _prompt_step

DRAW = np.random.default_rng(7)


def four_bit_model(zero_points: bool = True) -> ov.Model:
    """x [.., 64] times two matrices in groups of 32, as a GGUF gives them; the results added."""
    x = opset13.parameter([-1, 64], ov.Type.f32, name="x")
    parts = []
    for _ in range(2):
        packed = DRAW.integers(0, 256, 48 * 64 // 2, dtype=np.uint8)
        quantised = opset13.constant(
            ov.Tensor(packed, ov.Shape([48, 2, 32]), ov.Type.u4), shared_memory=False
        )
        values = opset13.convert(quantised, "f16")
        if zero_points:
            zeros = opset13.constant(DRAW.integers(0, 16, (48, 2, 1)).astype(np.float16))
            values = opset13.subtract(values, zeros)
        scales = opset13.constant(DRAW.uniform(0.01, 0.1, (48, 2, 1)).astype(np.float16))
        flat = opset13.reshape(
            opset13.multiply(values, scales), opset13.constant([48, 64]), special_zero=False
        )
        parts.append(opset13.matmul(x, opset13.convert(flat, "f32"), False, True))
    return ov.Model([opset13.add(parts[0], parts[1])], [x], "four bits")


def kinds(model: ov.Model) -> Counter[str]:
    return Counter(node.get_type_name() for node in model.get_ops())


def results(model: ov.Model, x: NDArray[np.float32]) -> NDArray[np.float32]:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found: NDArray[np.float32] = compiled([x])[0]
    return found


@pytest.mark.parametrize("zero_points", [True, False])
def test_products_of_one_input_become_one_with_nearly_the_same_values(zero_points: bool) -> None:
    model = four_bit_model(zero_points)
    x = DRAW.standard_normal((5, 64)).astype(np.float32)
    before = results(model, x)
    repack(model)
    after = results(model, x)
    assert kinds(model)["MatMul"] == 1
    types = {str(op.get_element_type()) for op in model.get_ops() if _is_matrix(op)}
    assert types == {str(ov.Type.i8)}
    # Half a step of 1/127 of the largest weight, over 64 terms of random sign.
    error = np.abs(after - before).max() / np.abs(before).max()
    assert 0 < error < 0.02


def _is_matrix(op: ov.Node) -> bool:
    return op.get_type_name() == "Constant" and np.prod(op.get_output_shape(0)) > 1000


def test_weights_that_are_not_compressed_stay_as_they_are() -> None:
    x = opset13.parameter([-1, 64], ov.Type.f32, name="x")
    weights = DRAW.standard_normal((48, 64)).astype(np.float32)
    model = ov.Model([opset13.matmul(x, opset13.constant(weights), False, True)], [x], "plain")
    batch = DRAW.standard_normal((3, 64)).astype(np.float32)
    before = results(model, batch)
    repack(model)
    assert (results(model, batch) == before).all()


def test_equal_constants_are_kept_once() -> None:
    x = opset13.parameter([-1], ov.Type.f32, name="x")
    sums = opset13.add(
        opset13.add(x, opset13.constant(np.float32(2))), opset13.constant(np.float32(2))
    )
    model = ov.Model([sums], [x], "twice")
    assert kinds(model)["Constant"] == 2
    repack(model)
    assert kinds(model)["Constant"] == 1
    assert results(model, np.zeros(1, np.float32)) == [4.0]


def test_where_it_can_not_be_kept_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / GRAPH).write_text("no model")
    assert save_repacked(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == [GRAPH]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    ov.save_model(four_bit_model(), tmp_path / GRAPH)
    done = repacked_folder(tmp_path)
    abandoned = done.with_name(f"{done.name}.4194304")  # no process has this number
    abandoned.mkdir()
    assert save_repacked(tmp_path) == done
    assert not abandoned.exists()


@pytest.mark.model
@pytest.mark.slow
def test_a_damaged_copy_is_not_used(
    prepared_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(prepared_model, folder, ignore=shutil.ignore_patterns("int8*", "*.json"))
    done = save_repacked(folder)
    assert done is not None
    weights = done / "openvino_model.bin"
    weights.write_bytes(weights.read_bytes()[:1000])
    model = PagedModel(
        folder, kv_cache_bytes=64 << 20, threads=2, deterministic=True, weight_format="int8"
    )
    assert np.isfinite(model.infer(_prompt_step(0, 4, model))).all()
    assert "damaged" in caplog.text
    assert not done.exists()


@pytest.mark.model
@pytest.mark.slow
def test_the_bundled_model_predicts_nearly_the_same(prepared_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(prepared_model, folder, ignore=shutil.ignore_patterns("int8*", "*.json"))
    assert save_repacked(folder) == repacked_folder(folder)
    logits = {}
    for weight_format in ("original", "int8"):
        model = PagedModel(
            folder,
            kv_cache_bytes=64 << 20,
            threads=2,
            deterministic=True,
            weight_format=weight_format,  # type: ignore[arg-type]
        )
        logits[weight_format] = model.infer(_prompt_step(0, 40, model)).copy()
    original, repacked = logits["original"][0], logits["int8"][0]
    assert not (original == repacked).all()
    assert np.corrcoef(original, repacked)[0, 1] > 0.99
    assert original.argmax() == repacked.argmax()
