"""Whatever stands under a key: a model is described or refused, and nothing else happens."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

import golden_files as golden
from maestrale.engines.cpu.architectures import describe
from maestrale.engines.cpu.keys import Keys
from maestrale.engines.cpu.model_files import spec_of
from maestrale.engines.cpu.weights.gguf import open_gguf
from maestrale.errors import ModelError
from maestrale.models.gguf_file import read_gguf
from tiny_families import BY_NAME

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, 3, -1, 1 << 40, 1 << 70, 1e-40, 0.3, 1e30, 1e300, "x", "yarn", [], [1],
    [None, 2], ["sliding_attention"] * 9, [1e300] * 40, [0.0] * 8, {}, {"rope_type": "yarn"},
    {"rope_type": "llama3", "factor": 0.0}, {"rope_type": "longrope", "factor": -1},
    {"full_attention": 3}, {"sliding_attention": {"rope_theta": 0}},
)  # fmt: skip


def parts(value: Any) -> list[tuple[str, ...]]:
    """The paths to all that stands in an object, and to itself."""
    found: list[tuple[str, ...]] = [()]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += [(key, *path) for path in parts(inner)]
    return found


def some(*names: str) -> list[Any]:
    """A few of the odd values, others for each name."""
    return random.Random("/".join(names)).sample(ODD, 6)


def changed(value: Any, path: tuple[str, ...], new: Any) -> Any:
    if not path:
        return new
    return {**value, path[0]: changed(value[path[0]], path[1:], new)}


@pytest.mark.parametrize("name", golden.NAMES)
def test_odd_values_in_a_config(name: str, tmp_path: Path) -> None:
    folder = golden.hf_folder(name, tmp_path)
    given = json.loads((folder / "config.json").read_text())
    served = 0
    for path in parts(given)[1:]:
        for odd in some(name, *path):
            (folder / "config.json").write_text(json.dumps(changed(given, path, odd)))
            with contextlib.suppress(ModelError):
                spec = spec_of(folder)
                assert all(rope.inverse_frequencies for rope in spec.ropes)
                served += 1
    assert served  # some keys change nothing, and some values are others' defaults


@pytest.mark.parametrize("name", golden.NAMES)
def test_odd_values_in_the_metadata(name: str, tmp_path: Path) -> None:
    path = golden.gguf_file(name, tmp_path)
    metadata = read_gguf(path).metadata
    prefix = f"{metadata['general.architecture']}."
    for key in [key for key in metadata if key.startswith(prefix)]:
        for odd in some(name, key):
            source = open_gguf(path)
            source.keys = Keys(str(path), {**metadata, key: odd}, prefix)
            with contextlib.suppress(ModelError):
                describe(source)


@pytest.mark.parametrize("name", ["llama3", "gemma3", "gptoss"])
def test_a_key_of_another_family_is_refused(name: str, tmp_path: Path) -> None:
    """What one family's files say and another's don't is never passed over."""
    path = golden.gguf_file(name, tmp_path)
    metadata = read_gguf(path).metadata
    prefix = f"{metadata['general.architecture']}."
    for other in ("kda.head_dim", "ssm.conv_kernel", "wkv.head_size", "attention.q_lora_rank",
                  "swiglu_clamp_exp", "attention.shared_kv_layers", "deepstack_mapping",
                  "rope.pattern", "moe_every_n_layers", "hyper_connection.count"):  # fmt: skip
        source = open_gguf(path)
        source.keys = Keys(str(path), {**metadata, prefix + other: 7}, prefix)
        with pytest.raises(ModelError, match=other):
            describe(source)


def test_every_tiny_model_is_another() -> None:
    assert len({json.dumps(model.config) for model in BY_NAME.values()}) == len(BY_NAME) - 1
