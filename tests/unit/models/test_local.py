"""A folder with GGUF files stands for one of them: the same for `serve`, `plan` and `pull`."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
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
    found = gguf_in(tmp_path)
    assert found is not None
    assert found.weights == "m-Q4_K_M-00001-of-00002.gguf"
    assert found.others == ("m-Q8_0.gguf",)


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
    found = gguf_in(tmp_path)
    assert found is not None
    assert found.weights == "m-Q8_0.gguf"


def pickle(path: Path) -> Path:
    path.write_bytes(b"\x80\x04K\x01.")
    return path


def adapter(folder: Path) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def of_pickles(folder: Path) -> Path:
    folder.mkdir()
    for name, content in (("config.json", b"{}"), ("tokenizer.json", b"{}"), ("m.bin", b"x")):
        (folder / name).write_bytes(content)
    return folder


def of_pointers(folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 4\n")
    return folder


def without_a_head(path: Path) -> Path:
    """A GGUF file whose metadata can't be a model's."""
    count = b"llama.attention.head_count"
    content = write_tiny_mistral(path).read_bytes()
    at = content.index(count) + len(count) + 4
    path.write_bytes(content[:at] + bytes(4) + content[at + 4 :])
    return path


@pytest.mark.parametrize(
    ("make", "name", "said"),
    [
        (pickle, "m.bin", r"m\.bin is a pickle.*Get the model as"),
        (pickle, "m.gguf", r"m\.gguf is not a GGUF file.*Download it again"),
        (pickle, "m.safetensors", r"one file of a model\. Give its folder"),
        (adapter, "folder", r"folder is an adapter.*Merge it"),
        (of_pickles, "folder", r"pickles \(m\.bin\).*not opened"),
        (of_pointers, "folder", r"is a Git LFS pointer.*git lfs pull"),
        (without_a_head, "m.gguf", r"m\.gguf: 'llama\.attention\.head_count' is 0.*Take another"),
    ],
)
def test_plan_calls_it_what_it_is(
    make: Callable[[Path], Path],
    name: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As `serve` does, by what is wrong with the file."""
    assert cli.run(["plan", str(make(tmp_path / name)), "--cpu"]) == 1
    answer = capsys.readouterr().err
    assert re.search(said, answer), answer
    assert answer.count("\n") == 1
