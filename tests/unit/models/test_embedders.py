"""Folders of embedding models: what they are prepared as, and that their tensors are found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from maestrale.engines.base import EngineConfig
from maestrale.engines.cpu.model_files import open_model
from maestrale.engines.task import task_of
from maestrale.errors import ModelError
from maestrale.models.file_selection import select_files
from maestrale.models.mistral_vocabulary import shipped_file
from maestrale.models.prepared import PreparedModel, load_prepared
from maestrale.models.resolve import prepare
from maestrale.prompt.encode import encoder_for
from rewritten_gguf import Tensors, rewritten
from tiny_embedder import EOS, write_embedder
from tiny_mistral import write_tiny_mistral


def prepared(source: Path, cache: Path) -> tuple[Path, PreparedModel]:
    folder = prepare(str(source), cache, lambda phase, fraction: None)
    return folder, load_prepared(folder)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_folder_as_qwen3_embedding_s(tmp_path: Path, pooling: str) -> None:
    source = write_embedder(tmp_path / "embedder", pooling=pooling)
    folder, known = prepared(source, tmp_path / "cache")
    assert (known.pooling, known.headless) == (pooling, False)
    assert task_of(EngineConfig(engine="cpu", model_dir=""), known) == "embed"
    encoder = encoder_for(folder)
    assert encoder.encode_text("Hi é") == (*"Hi é".encode(), EOS)
    assert encoder.encode_text("Hi", add_bos=False) == tuple(b"Hi")
    assert open_model(source).spec.tied


def test_a_folder_as_e5_mistral_s_has_no_head(tmp_path: Path) -> None:
    source = write_embedder(tmp_path / "e5", "mistral", "last", "MistralModel")
    _, known = prepared(source, tmp_path / "cache")
    assert known.headless
    assert open_model(source).roles.logits is None
    with pytest.raises(ModelError, match="only make embeddings"):
        task_of(EngineConfig(engine="cpu", model_dir="", task="generate"), known)


def test_a_bare_decoder_that_says_nothing_of_pooling_makes_embeddings(tmp_path: Path) -> None:
    source = write_embedder(tmp_path / "bare", "mistral", "", "MistralModel")
    _, known = prepared(source, tmp_path / "cache")
    assert known.pooling is None
    assert task_of(EngineConfig(engine="cpu", model_dir=""), known) == "embed"


def test_another_pooling_makes_another_prepared_model(tmp_path: Path) -> None:
    source = write_embedder(tmp_path / "embedder")
    first, _ = prepared(source, tmp_path / "cache")
    config = source / "1_Pooling" / "config.json"
    flags = json.loads(config.read_text())
    flags |= {"pooling_mode_lasttoken": False, "pooling_mode_mean_tokens": True}
    config.write_text(json.dumps(flags))
    second, known = prepared(source, tmp_path / "cache")
    assert second != first
    assert known.pooling == "mean"


def test_attention_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    source = write_embedder(tmp_path / "embedder")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "is_causal": False}))
    with pytest.raises(ModelError, match="is_causal"):
        open_model(source)


def test_the_hub_s_files_of_pooling_are_fetched() -> None:
    names = [
        "1_LogitScore/config.json",
        "1_Pooling/config.json",
        "2_Normalize/x.json",
        "config.json",
        "model.safetensors",
    ]
    names += ["modules.json", "onnx/config.json", "tokenizer.json"]
    selection = select_files("org/name", names, "cpu")
    assert set(names) - set(selection.names) == {"2_Normalize/x.json", "onnx/config.json"}


def test_mistral_s_own_tokenizer_ends_texts_where_the_settings_say_so(tmp_path: Path) -> None:
    source = write_embedder(tmp_path / "e5", "mistral", "last", "MistralModel")
    (source / "tokenizer.json").unlink()
    shutil.copy(shipped_file("v1"), source / "tokenizer.model")
    for ends in (True, False):
        settings = {"add_eos_token": ends, "eos_token": "</s>"}
        (source / "tokenizer_config.json").write_text(json.dumps(settings))
        folder, known = prepared(source, tmp_path / "cache")
        assert known.tokenizer_kind == "mistral"
        ids = encoder_for(folder).encode_text("Hello")
        assert ids[0] == 1
        assert (ids[-1] == 2) == ends
        assert encoder_for(folder).encode_text("Hello", add_bos=False)[-1] != 2


def test_a_gguf_file_as_e5_mistral_s(tmp_path: Path) -> None:
    def change(values: dict[str, Any], tensors: Tensors) -> None:
        values["tokenizer.ggml.add_eos_token"] = True
        values["llama.pooling_type"] = 3

    plain = write_tiny_mistral(tmp_path / "plain.gguf")
    source = rewritten(plain, tmp_path / "e5.gguf", change)
    folder, known = prepared(source, tmp_path / "cache")
    assert (known.pooling, known.tokenizer_kind) == ("last", "mistral")
    ids = encoder_for(folder).encode_text("Hello")
    assert (ids[0], ids[-1]) == (1, 2)
    assert open_model(source).spec.hidden == 64
    before, without = prepared(plain, tmp_path / "cache")
    assert without.pooling is None
    assert encoder_for(before).encode_text("Hello") == ids[:-1]
