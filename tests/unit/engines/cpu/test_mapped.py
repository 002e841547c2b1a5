"""Mapped model files: the bytes that are there, and a message where they are gone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from maestrale.engines.cpu.weights.mapped import MappedTensors
from maestrale.errors import ModelError
from maestrale.models.tensor_info import TensorInfo

PAGES = 64 << 10


def tensors(file: Path) -> MappedTensors:
    file.write_bytes(bytes(range(256)) * (PAGES // 128))
    info = TensorInfo("last", "F32", (PAGES // 4,), file, PAGES, PAGES)
    return MappedTensors({"last": info})


def test_a_file_that_is_cut_while_it_is_mapped_is_said(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    mapped = tensors(file)
    tensor = mapped.tensors["last"]
    assert bytes(mapped.bytes_of(tensor)[:4]) == b"\0\1\2\3"
    os.truncate(file, PAGES)
    # Touching its pages now would end this process.
    with pytest.raises(ModelError, match=f"{file} was cut while it was read: the tensor 'last'"):
        mapped.values(tensor)
    mapped.close()


def test_one_that_is_replaced_or_removed_is_still_there(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    mapped = tensors(file)
    tensor = mapped.tensors["last"]
    whole = bytes(mapped.bytes_of(tensor))
    (tmp_path / "other").write_bytes(b"short")
    (tmp_path / "other").replace(file)
    assert bytes(mapped.bytes_of(tensor)) == whole
    file.unlink()
    assert bytes(mapped.bytes_of(tensor)) == whole
    mapped.close()
