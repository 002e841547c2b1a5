"""Reading GGUF headers: what is written comes back; damage is a ModelError, never a crash."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestrale.errors import ModelError
from maestrale.models.gguf_file import read_gguf


def write(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Näme")
    writer.add_context_length(4096)
    writer.add_rope_freq_base(10000.0)
    writer.add_add_bos_token(True)
    writer.add_token_list(["a", "b", "é"])
    writer.add_token_types([1, 1, 3])
    writer.add_tensor("first", np.zeros((4, 32), np.float32))
    writer.add_tensor("last", np.zeros((2, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("gguf") / "model.gguf").read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf") / "scratch.gguf"


def test_metadata_and_tensors_come_back(written: bytes, scratch: Path) -> None:
    scratch.write_bytes(written)
    read = read_gguf(scratch)
    assert read.metadata["general.name"] == "Näme"
    assert read.metadata["llama.context_length"] == 4096
    assert read.metadata["llama.rope.freq_base"] == 10000.0
    assert read.metadata["tokenizer.ggml.add_bos_token"] is True
    assert read.metadata["tokenizer.ggml.tokens"] == ["a", "b", "é"]
    assert read.metadata["tokenizer.ggml.token_type"] == [1, 1, 3]
    assert tuple(read.tensors) == ("first", "last")
    bare = read_gguf(scratch, texts=False)
    assert bare.tensors == read.tensors
    assert bare.metadata == read.metadata  # a short array is read in any case


def test_a_vocabulary_of_any_size_is_read_whole(tmp_path: Path) -> None:
    texts = ["é" * (i % 300) for i in range(20_000)] + ["x" * (3 << 20), ""]
    writer = gguf.GGUFWriter(tmp_path / "long.gguf", "llama")
    writer.add_token_list(texts)
    writer.add_string("last", "one")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = read_gguf(tmp_path / "long.gguf").metadata
    assert read["tokenizer.ggml.tokens"] == texts
    assert read["last"] == "one"
    bare = read_gguf(tmp_path / "long.gguf", texts=False).metadata
    assert bare == {**read, "tokenizer.ggml.tokens": []}


@given(data=st.data())
def test_a_file_cut_anywhere_is_refused(written: bytes, scratch: Path, data: st.DataObject) -> None:
    # The writer pads the end, so that a cut within the last 32 bytes may lose nothing.
    scratch.write_bytes(written[: data.draw(st.integers(0, len(written) - 32))])
    with pytest.raises(ModelError):
        read_gguf(scratch)


@given(data=st.data())
def test_damaged_bytes_give_a_model_error_or_a_header(
    written: bytes, scratch: Path, data: st.DataObject
) -> None:
    damaged = bytearray(written)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(written) - 1))] = data.draw(st.integers(0, 255))
    scratch.write_bytes(damaged)
    with contextlib.suppress(ModelError):  # no other exception may come
        read_gguf(scratch)


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 a zip", b"GGUF"])
def test_other_files_are_refused(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)
    with pytest.raises(ModelError, match=r"GGUF|truncated"):
        read_gguf(scratch)


def test_other_versions_are_refused(written: bytes, scratch: Path) -> None:
    scratch.write_bytes(written[:4] + b"\x09\0\0\0" + written[8:])
    with pytest.raises(ModelError, match="version 9"):
        read_gguf(scratch)


def test_a_big_endian_file_is_named_as_such(written: bytes, scratch: Path) -> None:
    scratch.write_bytes(written[:4] + b"\0\0\0\x03" + written[8:])
    with pytest.raises(ModelError, match="big-endian machines"):
        read_gguf(scratch)


def test_a_truncated_file_is_named_as_such(written: bytes, scratch: Path) -> None:
    scratch.write_bytes(written[:-64])
    with pytest.raises(ModelError, match="is truncated: it has 1,024 bytes"):
        read_gguf(scratch)


def test_a_file_that_is_cut_while_it_is_read_is_truncated(
    written: bytes, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch.write_bytes(written[:100])
    real = os.fstat

    def before_the_cut(fd: int) -> os.stat_result:
        fields = list(real(fd))
        fields[stat.ST_SIZE] = len(written)
        return os.stat_result(fields)

    monkeypatch.setattr("maestrale.models.gguf_file.os.fstat", before_the_cut)
    with pytest.raises(ModelError, match="truncated"):
        read_gguf(scratch)
