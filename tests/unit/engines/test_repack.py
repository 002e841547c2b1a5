"""A repacked model is the same model, but for rounding: int8 its weights, a8 its activations."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray
from openvino import opset13

from maestrale.engines.base import WeightFormat
from maestrale.engines.openvino.graph import PagedModel, _read
from maestrale.engines.openvino.tuning_worker import _prompt_step
from maestrale.engines.openvino.weights import extension as extensions
from maestrale.engines.openvino.weights.forms import RepackedFormat, repacked_folder
from maestrale.engines.openvino.weights.repack import GRAPH, repack, save_repacked
from maestrale.errors import EngineError

DRAW = np.random.default_rng(7)


def four_bit_model(zero_points: bool = True) -> ov.Model:
    """x [.., 64] times two matrices in groups of 32, as a GGUF gives them; the results added."""
    x = opset13.parameter([-1, 64], ov.Type.f32, name="x")
    parts = [opset13.matmul(x, weights(ov.Type.u4, zero_points), False, True) for _ in range(2)]
    return ov.Model([opset13.add(parts[0], parts[1])], [x], "four bits")


def weights(kind: ov.Type, zero_points: bool = True, group: int = 32) -> ov.Node:
    """48 outputs, two groups of inputs each."""
    count = 48 * 2 * group // (2 if kind == ov.Type.u4 else 1)
    values = DRAW.integers(0, 256, count, dtype=np.uint8)
    quantised = opset13.constant(
        ov.Tensor(values, ov.Shape([48, 2, group]), kind), shared_memory=False
    )
    floats = opset13.convert(quantised, "f16")
    if zero_points:
        zeros = opset13.constant(DRAW.integers(0, 16, (48, 2, 1)).astype(np.float16))
        floats = opset13.subtract(floats, zeros)
    scales = opset13.constant(DRAW.uniform(0.01, 0.1, (48, 2, 1)).astype(np.float16))
    flat = opset13.reshape(
        opset13.multiply(floats, scales), opset13.constant([48, 2 * group]), special_zero=False
    )
    return opset13.convert(flat, "f32")


def kinds(model: ov.Model) -> Counter[str]:
    return Counter(node.get_type_name() for node in model.get_ops())


def results(
    model: ov.Model | Path, x: NDArray[np.float32], extension: Path | None = None
) -> NDArray[np.float32]:
    core = ov.Core()
    if extension is not None:
        core.add_extension(extension)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found: NDArray[np.float32] = compiled([x])[0]
    return found


@pytest.mark.parametrize("zero_points", [True, False])
def test_products_of_one_input_become_one_with_nearly_the_same_values(zero_points: bool) -> None:
    model = four_bit_model(zero_points)
    x = DRAW.standard_normal((5, 64)).astype(np.float32)
    before = results(model, x)
    repack(model, "int8")
    after = results(model, x)
    assert kinds(model)["MatMul"] == 1
    types = {str(op.get_element_type()) for op in model.get_ops() if _is_matrix(op)}
    assert types == {str(ov.Type.i8)}
    # Half a step of 1/127 of the largest weight, over 64 terms of random sign.
    error = np.abs(after - before).max() / np.abs(before).max()
    assert 0 < error < 0.02


def _is_matrix(op: ov.Node) -> bool:
    return op.get_type_name() == "Constant" and np.prod(op.get_output_shape(0)) > 1000


def matrices(model: ov.Model) -> int:
    return sum(map(_is_matrix, model.get_ops()))


@pytest.mark.parametrize("zero_points", [True, False])
def test_weights_of_one_input_become_one_matrix_for_8_bit_activations(
    kernel: Path, tmp_path: Path, zero_points: bool
) -> None:
    model = four_bit_model(zero_points)
    x = DRAW.standard_normal((5, 64)).astype(np.float32)
    before = results(model, x)
    repack(model, "a8", kernel)
    after = results(model, x)
    assert kinds(model)["MatMul"] == 0
    assert matrices(model) == 1
    # Half a step of 1/127 of the largest activation, over 64 terms of random sign.
    error = np.abs(after - before).max() / np.abs(before).max()
    assert 0 < error < 0.02
    # Saved and read again it gives the same bits; so it does with other rows beside.
    ov.save_model(model, tmp_path / GRAPH, compress_to_fp16=False)
    assert results(tmp_path / GRAPH, x, kernel).tobytes() == after.tobytes()
    assert results(tmp_path / GRAPH, x[:1], kernel).tobytes() == after[:1].tobytes()


def test_weights_of_4_and_of_8_bits_stay_apart(kernel: Path) -> None:
    x = opset13.parameter([-1, 64], ov.Type.f32, name="x")
    kinds_of_weights = (ov.Type.u4, ov.Type.u8, ov.Type.u4)
    parts = [opset13.matmul(x, weights(kind), False, True) for kind in kinds_of_weights]
    model = ov.Model([opset13.concat(parts, 1)], [x], "mixed")
    batch = DRAW.standard_normal((3, 64)).astype(np.float32)
    before = results(model, batch)
    repack(model, "a8", kernel)
    assert matrices(model) == 2
    after = results(model, batch)
    error = np.abs(after - before).max() / np.abs(before).max()
    assert 0 < error < 0.02


def test_groups_that_are_not_whole_stay_as_they_are(kernel: Path) -> None:
    """80 inputs are no multiple of 32."""
    x = opset13.parameter([-1, 80], ov.Type.f32, name="x")
    product = opset13.matmul(x, weights(ov.Type.u4, group=40), False, True)
    model = ov.Model([product], [x], "narrow")
    batch = DRAW.standard_normal((3, 80)).astype(np.float32)
    before = results(model, batch)
    repack(model, "a8", kernel)
    assert kinds(model)["MatMul"] == 1
    assert (results(model, batch) == before).all()


def test_weights_that_are_not_compressed_stay_as_they_are() -> None:
    x = opset13.parameter([-1, 64], ov.Type.f32, name="x")
    weights = DRAW.standard_normal((48, 64)).astype(np.float32)
    model = ov.Model([opset13.matmul(x, opset13.constant(weights), False, True)], [x], "plain")
    batch = DRAW.standard_normal((3, 64)).astype(np.float32)
    before = results(model, batch)
    repack(model, "int8")
    assert (results(model, batch) == before).all()


def test_equal_constants_are_kept_once() -> None:
    x = opset13.parameter([-1], ov.Type.f32, name="x")
    sums = opset13.add(
        opset13.add(x, opset13.constant(np.float32(2))), opset13.constant(np.float32(2))
    )
    model = ov.Model([sums], [x], "twice")
    assert kinds(model)["Constant"] == 2
    repack(model, "int8")
    assert kinds(model)["Constant"] == 1
    assert results(model, np.zeros(1, np.float32)) == [4.0]


def test_where_it_can_not_be_kept_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / GRAPH).write_text("no model")
    assert save_repacked(tmp_path, "int8") is None
    assert [path.name for path in tmp_path.iterdir()] == [GRAPH]


def test_a_kernel_that_can_not_be_made_is_told_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extensions, "cpu_lacks", lambda: "")
    monkeypatch.setenv("CXX", "/bin/false")
    ov.save_model(four_bit_model(), tmp_path / GRAPH)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(EngineError, match="could not compile"):
        save_repacked(tmp_path, "a8")
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture
def compiled(kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler gives what it gave before, and at once."""
    program = tmp_path / "compiler"
    copy = f'while [ "$1" != -o ]; do shift; done; cp {kernel} "$2"'
    program.write_text(f"#!/bin/sh\n{copy}\n")
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("form", ["int8", "a8"])
def test_where_nothing_can_be_written_it_serves_all_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    form: RepackedFormat,
) -> None:
    folder = tmp_path / "model"
    ov.save_model(four_bit_model(), folder / GRAPH)
    x = DRAW.standard_normal((5, 64)).astype(np.float32)
    expected = results(_read(ov.Core(), folder, form)[0], x)
    shutil.rmtree(repacked_folder(folder, form))

    def refuse(path: Path, *args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert (results(_read(ov.Core(), folder, form)[0], x) == expected).all()
    assert "repacked at each start" in caplog.text
    assert not repacked_folder(folder, form).exists()


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    ov.save_model(four_bit_model(), tmp_path / GRAPH)
    done = repacked_folder(tmp_path, "int8")
    abandoned = done.with_name(f"{done.name}.4194304")  # no process has this number
    abandoned.mkdir()
    assert save_repacked(tmp_path, "int8") == done
    assert not abandoned.exists()


def copy(model: Path, folder: Path) -> Path:
    """The model without what was made or found out here."""
    ignored = shutil.ignore_patterns("int8*", "a8*", "tuning.json", "exact_steps.json")
    return shutil.copytree(model, folder, ignore=ignored)


def small(folder: Path, weight_format: WeightFormat) -> PagedModel:
    return PagedModel(
        folder,
        kv_cache_bytes=64 << 20,
        threads=2,
        deterministic=True,
        weight_format=weight_format,
    )


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("form", ["int8", "a8"])
def test_a_damaged_copy_is_not_used(
    prepared_model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    form: RepackedFormat,
) -> None:
    folder = copy(prepared_model, tmp_path / "model")
    done = save_repacked(folder, form)
    assert done is not None
    weights = done / "openvino_model.bin"
    weights.write_bytes(weights.read_bytes()[:1000])
    model = small(folder, form)
    assert np.isfinite(model.infer(_prompt_step(0, 4, model))).all()
    assert "damaged" in caplog.text
    assert not done.exists()


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
def test_the_bundled_model_predicts_nearly_the_same(prepared_model: Path, tmp_path: Path) -> None:
    folder = copy(prepared_model, tmp_path / "model")
    formats: tuple[WeightFormat, ...] = ("original", "int8", "a8")
    logits = {}
    for weight_format in formats:
        model = small(folder, weight_format)
        logits[weight_format] = model.infer(_prompt_step(0, 40, model))[0].copy()
    original = logits.pop("original")
    for repacked in logits.values():
        assert not (original == repacked).all()
        assert np.corrcoef(original, repacked)[0, 1] > 0.99
        assert original.argmax() == repacked.argmax()
