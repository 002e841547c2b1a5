"""Folders in Hugging Face's layout: what becomes of their tokenizer, settings and templates."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from maestrale.errors import ModelError
from maestrale.models.prepared import load_prepared
from maestrale.models.resolve import prepare
from maestrale.models.vocabulary import load_vocabulary
from maestrale.prompt.encode import encoder_for
from maestrale.prompt.messages import ChatMessage

CONFIG = {
    "max_position_embeddings": 8192,
    "vocab_size": 49152,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
QUESTION = [ChatMessage(role="user", content="Hello <|im_end|> 123")]

pytestmark = pytest.mark.model


def quiet(phase: str, fraction: float | None) -> None:
    """Progress that nobody looks at."""


def write_safetensors(path: Path, count: int) -> None:
    """A file with one tensor of so many values."""
    header = {"a": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4 * count))


@pytest.fixture
def exported(prepared_model: Path, tmp_path: Path) -> Path:
    """The bundled model as such a folder; of its weights there is one."""
    folder = tmp_path / "exported-model"
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", 1)
    shutil.copy(prepared_model / "tokenizer.json", folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    template = load_prepared(prepared_model).chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


def test_a_folder_is_prepared_like_the_gguf(
    exported: Path, prepared_model: Path, tmp_path: Path
) -> None:
    folder = prepare(str(exported), tmp_path / "cache", quiet)
    prepared = load_prepared(folder)
    assert prepared.name == "exported-model"
    assert (prepared.context_length, prepared.vocab_size) == (8192, 49152)
    assert prepared.eos_token_ids == (2,)
    assert prepared.source == str(exported)
    ours, theirs = load_vocabulary(folder), load_vocabulary(prepared_model)
    assert ours.token_bytes == theirs.token_bytes
    assert ours.control_ids == theirs.control_ids
    one, other = encoder_for(folder), encoder_for(prepared_model)
    assert one.encode_chat(QUESTION) == other.encode_chat(QUESTION)


def test_a_template_file_goes_before_the_one_in_the_settings(
    exported: Path, tmp_path: Path
) -> None:
    (exported / "chat_template.jinja").write_text("{{ messages[0].content }}")
    folder = prepare(str(exported), tmp_path / "cache", quiet)
    assert encoder_for(folder).encode_chat([ChatMessage(role="user", content="x")]).text == "x"
    assert encoder_for(folder, "T{{ messages | length }}").encode_chat(QUESTION).text == "T1"


def test_a_changed_folder_is_prepared_anew(exported: Path, tmp_path: Path) -> None:
    first = prepare(str(exported), tmp_path / "cache", quiet)
    assert prepare(str(exported), tmp_path / "cache", quiet) == first
    write_safetensors(exported / "model.safetensors", 2)
    assert prepare(str(exported), tmp_path / "cache", quiet) != first


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "{", "not valid JSON"),
        ("config.json", "[]", "not a JSON object"),
        ("config.json", "{}", "max_position_embeddings"),
        ("config.json", json.dumps(CONFIG | {"eos_token_id": None}), "end-of-text"),
        ("config.json", json.dumps(CONFIG | {"vocab_size": 7}), "the model only 7"),
        ("tokenizer.json", '{"model": {"type": "Unigram"}}', "byte-level BPE"),
    ],
)
def test_a_damaged_folder_is_refused(
    exported: Path, tmp_path: Path, name: str, content: str, said: str
) -> None:
    (exported / name).write_text(content)
    with pytest.raises(ModelError, match=said):
        prepare(str(exported), tmp_path / "cache", quiet)


@pytest.mark.parametrize("missing", ["weights", "tokenizer.json", "config.json"])
def test_what_a_folder_lacks_is_named(exported: Path, tmp_path: Path, missing: str) -> None:
    (exported / ("model.safetensors" if missing == "weights" else missing)).unlink()
    with pytest.raises(ModelError, match=f"lacks {missing}"):
        prepare(str(exported), tmp_path / "cache", quiet)


def test_a_mistral_tokenizer_takes_no_template(tmp_path: Path, prepared_model: Path) -> None:
    metadata: dict[str, Any] = json.loads((prepared_model / "maestrale.json").read_bytes())
    metadata |= {"tokenizer_kind": "mistral", "tokenizer_file": "tokenizer.model.v1"}
    (tmp_path / "maestrale.json").write_text(json.dumps(metadata))
    shutil.copy(prepared_model / "vocabulary.msgpack", tmp_path)
    with pytest.raises(ModelError, match="--chat-template"):
        encoder_for(tmp_path, "{{ messages }}")
