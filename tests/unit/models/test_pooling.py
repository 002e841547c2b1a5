"""How an embedding model pools, by its own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from maestrale.engines.base import EngineConfig
from maestrale.engines.task import pooling_of, task_of
from maestrale.errors import ModelError
from maestrale.models.pooling import is_reranker, pooling_of_folder, pooling_of_gguf
from maestrale.models.prepared import PreparedModel

ST = "sentence_transformers.models."


def folder(path: Path, pooling: dict[str, Any] | None, *more: str) -> Path:
    kinds = ["Transformer", "Pooling", "Normalize", *more]
    paths = ["", "1_Pooling", "2_Normalize", "3_More"]
    modules = [
        {"idx": index, "name": str(index), "path": where, "type": ST + kind}
        for index, (kind, where) in enumerate(zip(kinds, paths, strict=False))
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    if pooling is not None:
        (path / "1_Pooling").mkdir()
        (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return path


MODES = ("cls_token", "mean_tokens", "max_tokens", "weightedmean_tokens", "lasttoken")


def flags(*on: str) -> dict[str, Any]:
    listed = {f"pooling_mode_{mode}": mode in on for mode in MODES}
    return {"word_embedding_dimension": 64, **listed, "include_prompt": True}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (flags("lasttoken"), "last"),
        (flags("mean_tokens"), "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": ["mean"]}, "mean"),
    ],
)
def test_a_folder_says_it(tmp_path: Path, config: dict[str, Any], expected: str) -> None:
    assert pooling_of_folder(folder(tmp_path, config)) == expected


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (flags("cls_token"), "cls_token"),
        (flags("mean_tokens", "max_tokens"), "mean_tokens and max_tokens"),
        (flags(), "none"),
        ({"pooling_mode": "cls"}, "cls"),
        ({}, "none"),
    ],
)
def test_what_is_not_served_is_named(tmp_path: Path, config: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=f"the pooling {named}, which isn't served"):
        pooling_of_folder(folder(tmp_path, config))


def test_a_folder_without_modules_says_nothing(tmp_path: Path) -> None:
    assert pooling_of_folder(tmp_path) is None


def test_another_module_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="module 'Dense'"):
        pooling_of_folder(folder(tmp_path, flags("mean_tokens"), "Dense"))


def test_newer_names_of_modules_are_known(tmp_path: Path) -> None:
    made = folder(tmp_path, flags("lasttoken"))
    text = (made / "modules.json").read_text()
    newer = "sentence_transformers.base.modules.transformer.Transformer"
    (made / "modules.json").write_text(text.replace(f"{ST}Transformer", newer))
    assert pooling_of_folder(made) == "last"


@pytest.mark.parametrize("text", ["{}", "[1]", "[", "\xff", "[" * 100_000])
def test_damaged_modules_are_told_of(tmp_path: Path, text: str) -> None:
    (tmp_path / "modules.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=r"modules\.json"):
        pooling_of_folder(tmp_path)


@pytest.mark.parametrize("where", ["1_Pooling", "..", "/etc"])
def test_a_pooling_that_is_not_in_the_folder_is_told_of(tmp_path: Path, where: str) -> None:
    modules = [{"type": f"{ST}Pooling", "path": where}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match="isn't there"):
        pooling_of_folder(tmp_path)


@pytest.mark.parametrize(("number", "expected"), [(0, None), (1, "mean"), (3, "last"), (4, "rank")])
def test_a_gguf_file_says_it(number: int, expected: str | None) -> None:
    metadata = {"general.architecture": "qwen3", "qwen3.pooling_type": number}
    assert pooling_of_gguf(metadata) == expected
    assert pooling_of_gguf({"general.architecture": "qwen3"}) is None


@pytest.mark.parametrize(("number", "named"), [(2, "cls"), (9, "unknown"), (True, "")])
def test_other_numbers_of_gguf_files_are_refused(number: int, named: str) -> None:
    metadata = {"general.architecture": "qwen3", "qwen3.pooling_type": number}
    with pytest.raises(ModelError, match=f"pooling_type is {number}.*{named}"):
        pooling_of_gguf(metadata)


def prepared(**fields: Any) -> PreparedModel:
    return PreparedModel(
        name="m",
        context_length=64,
        vocab_size=8,
        eos_token_ids=(1,),
        tokenizer_kind="hf",
        tokenizer_file="tokenizer.json",
        **fields,
    )


@pytest.mark.parametrize(
    ("fields", "auto", "pooling"),
    [
        ({}, "generate", "last"),
        ({"pooling": "mean"}, "embed", "mean"),
        ({"pooling": "last"}, "embed", "last"),
        ({"headless": True}, "embed", "last"),
    ],
)
def test_a_model_is_served_for_what_it_was_made_for(
    fields: dict[str, Any], auto: str, pooling: str
) -> None:
    model = prepared(**fields)
    config = EngineConfig(engine="cpu", model_dir="")
    assert task_of(config, model) == auto
    assert pooling_of(model) == pooling
    told = EngineConfig(engine="cpu", model_dir="", task="embed")
    assert task_of(told, model) == "embed"


def test_a_model_without_a_head_cannot_be_told_to_chat() -> None:
    config = EngineConfig(engine="cpu", model_dir="", task="generate")
    assert task_of(config, prepared(pooling="last")) == "generate"
    with pytest.raises(ModelError, match=r"lm_head.*--task chat"):
        task_of(config, prepared(headless=True))


def test_a_reranker_is_served_for_nothing_else() -> None:
    model = prepared(pooling="rank")
    for task in ("auto", "rerank"):
        assert task_of(EngineConfig(engine="cpu", model_dir="", task=task), model) == "rerank"
    for other in ("generate", "embed"):
        with pytest.raises(ModelError, match="is a reranker"):
            task_of(EngineConfig(engine="cpu", model_dir="", task=other), model)


@pytest.mark.parametrize("fields", [{"pooling": "last"}, {"headless": True}])
def test_an_embedding_model_cannot_be_told_to_rerank(fields: dict[str, Any]) -> None:
    config = EngineConfig(engine="cpu", model_dir="", task="rerank")
    assert task_of(config, prepared()) == "rerank"
    with pytest.raises(ModelError, match="made for embeddings"):
        task_of(config, prepared(**fields))


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["Qwen3ForSequenceClassification"], True),
        (["Qwen3ForCausalLM"], False),
        ([], False),
        (None, False),
        ("Qwen3ForSequenceClassification", False),
    ],
)
def test_a_folder_says_by_its_class_that_it_reranks(classes: Any, expected: bool) -> None:
    assert is_reranker({"architectures": classes}) is expected
