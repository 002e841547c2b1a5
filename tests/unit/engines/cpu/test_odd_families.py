"""Sizes and settings that the tiny models of the golden files don't have, from a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import golden_files as golden
from kernel_steps import computed
from maestrale.engines.cpu.decoder import load_decoder
from maestrale.engines.cpu.model_files import open_model, spec_of
from maestrale.errors import ModelError
from numpy_decoder import NumpyDecoder
from odd_families import BY_NAME, ROWS
from rewritten_gguf import Tensors, rewritten
from tiny_models import write_folder

CONTEXT = 64  # of those served; above the original one of each longrope, as 40 tokens are
_LOGITS = golden.GOLDEN / "odd.npz"


def test_every_odd_model_has_its_golden_logits() -> None:
    assert sorted(np.load(_LOGITS)) == sorted(BY_NAME)


@pytest.mark.parametrize("name", BY_NAME)
def test_logits_are_those_of_transformers(name: str, kernel: Path, tmp_path: Path) -> None:
    model, expected = BY_NAME[name], np.load(_LOGITS)[name]
    folder = write_folder(model, tmp_path / "model", "F16", shards=2)
    most = {"scales": 2e-5}.get(name, 1e-4)  # whose logits are a fifteenth of the others'
    plain = NumpyDecoder(open_model(folder), CONTEXT).logits(model.text())
    np.testing.assert_allclose(plain[list(ROWS)], expected, atol=most)
    decoder = load_decoder(folder, kernel, context=CONTEXT, threads=2, exact=True)
    try:
        logits = computed(decoder, model.text())
    finally:
        decoder.close()
    np.testing.assert_allclose(logits[list(ROWS)], expected, atol=most)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"partial_rotary_factor": 0.5}, "'partial_rotary_factor' isn't 1"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "'partial_rotary_factor' isn't 1"),
        (
            {"rope_parameters": {"rope_theta": 2.0}, "rope_scaling": {"rope_theta": 3.0}},
            "'rope_scaling' and rope_parameters differ in 'rope_theta'",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 9.0}}, "'alpha'"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(
    more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = _changed(tmp_path, "llama2", **more)
    with pytest.raises(ModelError, match=message):
        spec_of(folder)


def test_rope_parameters_may_be_said_twice(tmp_path: Path) -> None:
    same = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    folder = _changed(tmp_path, "llama2", rope_parameters=same)
    once = spec_of(folder)
    older = {"type": "linear", "factor": 2.0}
    assert spec_of(_changed(tmp_path, "llama2", rope_parameters=same, rope_scaling=older)) == once


@pytest.mark.parametrize(
    ("more", "windows"), [({}, 4096), ({"sliding_window": None}, 0), ({"sliding_window": 7}, 7)]
)
def test_a_window_that_is_left_out_is_the_class_own_and_null_is_none(
    more: dict[str, Any], windows: int, tmp_path: Path
) -> None:
    folder = _changed(tmp_path, "mistral", "sliding_window", **more)
    assert set(spec_of(folder).windows) == {windows}


@pytest.mark.parametrize("name", ["qwen3", "qwen3moe", "smollm3", "olmo2"])
def test_biases_of_a_gguf_file_count(name: str, tmp_path: Path) -> None:
    """llama.cpp takes them where they are; halves of heads are interleaved like the rows'."""
    path = golden.gguf_file(name, tmp_path)
    spec = spec_of(path)
    value = np.arange(spec.heads * spec.head_dim, dtype=np.float32)

    def add(metadata: dict[str, Any], tensors: Tensors) -> None:
        tensors["blk.0.attn_q.bias"] = value

    roles = open_model(rewritten(path, tmp_path / "biased.gguf", add)).roles
    bias = roles.layers[0].query_bias
    assert bias is not None
    assert bias.heads == roles.layers[0].query.heads == (spec.heads if name == "smollm3" else 0)
    assert roles.layers[1].query_bias is None


def _changed(place: Path, name: str, *without: str, **more: Any) -> Path:
    folder = golden.hf_folder(name, place)
    config = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in config.items() if key not in without}
    (folder / "config.json").write_text(json.dumps(kept | more))
    return folder
