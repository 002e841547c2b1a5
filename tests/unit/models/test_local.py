"""A folder with GGUF files stands for one of them: the same for `serve`, `plan` and `pull`."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from maestrale.cli import main as cli
from maestrale.errors import ModelError
from maestrale.models.local import gguf_in
from maestrale.models.prepared import load_prepared
from maestrale.models.resolve import prepare
from tiny_mistral import write_tiny_mistral

SAID = "the file m-Q4_K_M.gguf is taken. There are also m-Q2_K.gguf, m-Q8_0.gguf, m-f16.gguf"


def quiet(phase: str, fraction: float | None) -> None:
    """Progress that nobody looks at."""


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Four models that differ by their names alone, and an image part."""
    folder = tmp_path / "Tiny Mistral"
    folder.mkdir()
    for number, name in enumerate(("m-Q2_K", "m-Q4_K_M", "m-Q8_0", "m-f16")):
        write_tiny_mistral(folder / f"{name}.gguf", seed=number)
    (folder / "mmproj-m-f16.gguf").write_bytes(b"")
    return folder


def test_serve_takes_q4_k_m_and_names_the_others(
    several: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        prepared = load_prepared(prepare(str(several), tmp_path / "cache", quiet))
    assert Path(prepared.source).name == "m-Q4_K_M.gguf"
    assert prepared.name == "Tiny Mistral"
    assert SAID in caplog.text
    assert f"{several}/NAME takes one of them" in caplog.text


def test_one_of_them_is_named_by_its_path(
    several: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        folder = prepare(str(several / "m-Q8_0.gguf"), tmp_path / "cache", quiet)
    assert Path(load_prepared(folder).source).name == "m-Q8_0.gguf"
    assert "is taken" not in caplog.text


def test_plan_and_pull_take_the_same_one(
    several: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (several / "m-Q8_0.gguf").write_bytes(b"no GGUF file: whoever reads this one fails")
    assert cli.run(["plan", str(several), "--cpu", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["source"].startswith("the metadata of m-Q4_K_M.gguf; others: m-Q2_K.gguf")
    assert cli.run(["pull", str(several), "--engine", "cpu"]) == 0
    assert SAID in capsys.readouterr().out


def test_of_a_split_one_all_parts_are_one_file(tmp_path: Path) -> None:
    for name in ("m-Q4_K_M-00002-of-00002", "m-Q4_K_M-00001-of-00002", "m-Q8_0"):
        (tmp_path / f"{name}.gguf").write_bytes(b"")
    wanted = gguf_in(tmp_path)
    assert wanted is not None
    assert wanted.weights == "m-Q4_K_M-00001-of-00002.gguf"
    assert wanted.others == ("m-Q8_0.gguf",)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ("a.gguf", "b.gguf"),
            r"several GGUF files.*Name one: FOLDER/FILE\.gguf.*a\.gguf, b\.gguf",
        ),
        (("mmproj-a.gguf",), r"of no language model: image parts"),
    ],
)
def test_what_can_not_be_picked_is_said(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    said = said.replace("FOLDER", re.escape(str(tmp_path)))
    with pytest.raises(ModelError, match=said):
        prepare(str(tmp_path), tmp_path / "cache", quiet)


def test_safetensors_go_before_a_gguf_that_is_not_quantised(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "m-f16.gguf"):
        (tmp_path / name).write_bytes(b"")
    assert gguf_in(tmp_path) is None
    (tmp_path / "m-Q8_0.gguf").write_bytes(b"")
    wanted = gguf_in(tmp_path)
    assert wanted is not None
    assert wanted.weights == "m-Q8_0.gguf"
