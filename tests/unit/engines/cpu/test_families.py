"""Every family: what is read of a model is what transformers computes with it, in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import golden_files as golden
from maestrale.engines.cpu.model_files import open_model
from numpy_decoder import NumpyDecoder
from tiny_families import TINY


def test_every_tiny_model_has_its_golden_files() -> None:
    assert sorted(model.name for model in TINY) == golden.NAMES


@pytest.mark.parametrize("kind", ["gguf", "folder"])
@pytest.mark.parametrize("name", golden.NAMES)
def test_logits_are_those_of_transformers(name: str, kind: str, tmp_path: Path) -> None:
    make = golden.gguf_file if kind == "gguf" else golden.hf_folder
    described = open_model(make(name, tmp_path))
    tokens = golden.model(name).text()
    context = described.spec.context if len(tokens) > 32 else 32
    logits = NumpyDecoder(described, context).logits(tokens)
    # llama.cpp's converter drops the window of a llama.
    count = 12 if (name, kind) == ("mistral", "gguf") else len(tokens)
    np.testing.assert_allclose(logits[:count], golden.logits(name)[:count], atol=1e-4)


@pytest.mark.parametrize("name", golden.NAMES)
def test_both_formats_give_the_same_decoder(name: str, tmp_path: Path) -> None:
    read = open_model(golden.gguf_file(name, tmp_path)).spec
    other = open_model(golden.hf_folder(name, tmp_path)).spec
    assert read.parameters == other.parameters
    if name == "mistral":
        read = replace(read, windows=other.windows)  # see above
    for knob in ("windows", "layer_ropes", "experts", "tied", "context", "attention_soft_cap"):
        assert getattr(read, knob) == getattr(other, knob), knob
    for ours, theirs in zip(read.ropes, other.ropes, strict=True):
        assert ours.inverse_frequencies == pytest.approx(theirs.inverse_frequencies, rel=1e-6)
        assert ours.scale == pytest.approx(theirs.scale, rel=1e-6)
