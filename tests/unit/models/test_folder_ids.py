"""Folders in all layouts give the ids that transformers gives (tests/golden/make_folders)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from folder_layouts import LAYOUTS, TALK, TEXTS, TOOL, write
from maestrale.models.resolve import prepare
from maestrale.prompt.encode import PromptEncoder, encoder_for
from maestrale.prompt.messages import ChatMessage
from serving import ROOT

GOLDEN: dict[str, Any] = json.loads((ROOT / "tests/golden/folders.json").read_text())
MESSAGES = [ChatMessage(**turn) for turn in cast(list[dict[str, Any]], TALK)]


def encoder_of(name: str, tmp_path: Path) -> PromptEncoder:
    folder = write(name, tmp_path / "model")
    header = b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    file = len(header).to_bytes(8, "little") + header + bytes(16)
    (folder / "model.safetensors").write_bytes(file)
    made = prepare(str(folder), tmp_path / "cache", lambda phase, fraction: None, engine="cpu")
    return encoder_for(made)


def test_there_are_golden_ids_for_each_layout() -> None:
    assert set(GOLDEN) == set(LAYOUTS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_ids_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    encoder, golden = encoder_of(name, tmp_path), GOLDEN[name]
    for text, ids in zip(TEXTS, golden["texts"], strict=True):
        assert list(encoder.encode_text(text)) == ids, text
    assert list(encoder.encode_chat(MESSAGES).token_ids) == golden["chat"]


@pytest.mark.parametrize("name", [name for name in LAYOUTS if "templates" in name])
def test_the_template_for_tools_is_taken(name: str, tmp_path: Path) -> None:
    prompt = encoder_of(name, tmp_path).encode_chat(MESSAGES, tools=[TOOL])
    assert list(prompt.token_ids) == GOLDEN[name]["tools"]
