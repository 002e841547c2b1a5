"""Model files that are wrong or hostile: one clear error each, never a hang or a crash."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import time
from pathlib import Path

import pytest

from maestrale.config.hub import hub_settings
from maestrale.errors import ModelError
from maestrale.models.describe import describe
from maestrale.models.fit_cpu import shortened
from maestrale.models.prepared import PreparedModel
from maestrale.models.resolve import prepare
from maestrale.models.safetensors_file import count_parameters
from tiny_mistral import write_tiny_mistral

CONFIG = {"vocab_size": 4, "max_position_embeddings": 64, "eos_token_id": 1}
TOKENIZER = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "d": 3}, "merges": []},
    "decoder": {"type": "ByteLevel"},
    "added_tokens": [],
}


def quiet(phase: str, fraction: float | None) -> None:
    """Progress that nobody looks at."""


def write_safetensors(path: Path, promised: int = 16, there: int = 16) -> Path:
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [promised // 4], "data_offsets": [0, promised]}}
    ).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(there))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    write_safetensors(folder / "model.safetensors")
    return folder


def refused(folder: Path, said: str, engine: str = "vllm") -> None:
    begun = time.monotonic()
    with pytest.raises(ModelError, match=said):
        prepare(str(folder), folder.parent / "cache", quiet, engine=engine)
    assert time.monotonic() - begun < 60


def test_a_whole_folder_is_prepared(folder: Path) -> None:
    prepared = prepare(str(folder), folder.parent / "cache", quiet, engine="vllm")
    names = {path.name for path in prepared.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "maestrale.json"} <= names


@pytest.mark.parametrize("kept", [0, 4, 8, 20, -1])
def test_truncated_safetensors(folder: Path, kept: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    refused(folder, "truncated or damaged")


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 5) + b"[[[[[" + bytes(20),
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 11) + b'{"w": null}',
        struct.pack("<Q", 8) + b"\xff" * 8,
        b"PK\x03\x04" + bytes(100),
    ],
)
def test_safetensors_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="truncated or damaged"):
        count_parameters(tmp_path / "w.safetensors")


def test_a_missing_shard_is_named(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, r"lacks 1 of the files .*model-2\.safetensors")


def test_an_index_that_leads_elsewhere(folder: Path) -> None:
    index = {"weight_map": {"a": "../../etc/passwd"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "no file of this folder")


@pytest.mark.parametrize("engine", ["vllm", "cpu"])
def test_a_folder_of_pickles_is_refused_unopened(tmp_path: Path, engine: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (tmp_path / "sprung",))

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    refused(folder, "pickles", engine)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "{", "not valid JSON"),
        ("config.json", "[" * 100_000, "not valid JSON"),
        ("config.json", '{"model_type": "odd"}', "lacks 'max_position_embeddings'"),
        ("config.json", json.dumps(CONFIG | {"vocab_size": -1}), "'vocab_size' is '-1'"),
        ("config.json", json.dumps(CONFIG | {"vocab_size": 10**9}), "which can't be"),
        ("config.json", json.dumps(CONFIG | {"max_position_embeddings": "x"}), "is 'x', which"),
        ("config.json", json.dumps(CONFIG | {"eos_token_id": 99}), "vocabulary of 4 tokens"),
        ("tokenizer.json", "{}", "tokenizer.json is none that is known"),
        ("tokenizer.json", '{"model": 3}', "tokenizer.json is none that is known"),
    ],
)
def test_damaged_descriptions(folder: Path, name: str, content: str, said: str) -> None:
    (folder / name).write_text(content)
    refused(folder, said)


def test_a_gguf_for_vllm_is_refused(tmp_path: Path) -> None:
    refused(write_tiny_mistral(tmp_path / "tiny.gguf"), "vllm needs a folder with safetensors")


PREPARED = PreparedModel(
    name="m",
    context_length=32768,
    vocab_size=4,
    eos_token_ids=(1,),
    tokenizer_kind="hf",
    tokenizer_file="tokenizer.json",
    weights_digest="",
)


def test_a_context_that_was_cut_is_told() -> None:
    assert "4,064 tokens" in shortened(PREPARED, 4064)
    assert shortened(PREPARED, 32768) == ""


def test_a_revision_of_what_is_here_is_refused(tmp_path: Path) -> None:
    weights = write_tiny_mistral(tmp_path / "tiny.gguf")
    for model in (str(weights), "smollm2-135m-instruct"):
        with pytest.raises(ModelError, match="--revision v2 is for models on the hub"):
            prepare(model, tmp_path, quiet, revision="v2")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "name is empty"),
        (" ", "name is empty"),
        ("org/none.gguf", "There is no file org/none.gguf here"),
        ("folder", "is not a GGUF file"),
        ("pipe", "neither a file nor a folder"),
        ("~nobody-of-that-name/x", "There is no model"),
        ("x" * 5000, "There is no model '" + "x" * 100 + "…'"),
        ("a\0b", "There is no model"),
    ],
)
def test_names_of_nothing_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a b.gguf").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match=re.escape(said)):
        describe(name, hub_settings({"HOME": str(tmp_path)}))
    with pytest.raises(ModelError):
        prepare(name, tmp_path / "cache", quiet)
