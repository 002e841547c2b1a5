"""A disk that runs full while a model is made is told so, whatever the maker said."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maestrale.errors import ModelError
from maestrale.models import room
from maestrale.models.resolve import prepare
from maestrale.models.room import is_full
from maestrale.models.store import build_once


def of_file_system(monkeypatch: pytest.MonkeyPatch, **numbers: int) -> None:
    status = {"f_files": 100, "f_favail": 50, "f_bavail": 1 << 20, "f_frsize": 4096, **numbers}
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**status))


def no_progress(text: str, fraction: float | None) -> None:
    """Nobody watches."""


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_an_error_that_says_so_somewhere_in_its_chain(tmp_path: Path, number: int) -> None:
    error = ModelError("It can't be converted.")
    error.__cause__ = RuntimeError("odd")
    error.__cause__.__context__ = OSError(number, "no room")
    assert is_full(tmp_path, error)
    assert not is_full(tmp_path, OSError(errno.EACCES, "no rights"))


@pytest.mark.parametrize(
    ("numbers", "full"),
    [
        ({}, False),
        ({"f_bavail": 0}, True),
        ({"f_bavail": 1023}, True),
        ({"f_favail": 0}, True),
        ({"f_favail": 0, "f_files": 0}, False),  # it counts none
    ],
)
def test_the_file_system_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: dict[str, int], full: bool
) -> None:
    of_file_system(monkeypatch, **numbers)
    assert is_full(tmp_path) is full


def test_a_folder_that_is_gone_is_not_full(tmp_path: Path) -> None:
    assert not is_full(tmp_path / "gone")


def test_what_a_maker_says_in_other_words_is_a_full_disk_if_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(folder: Path) -> None:
        (folder / "part").write_bytes(b"x")
        raise ModelError("basic_ios::clear: iostream error.")

    with pytest.raises(ModelError, match="iostream"):
        build_once(tmp_path, "ab" * 32, build, no_progress)
    of_file_system(monkeypatch, f_bavail=0)
    with pytest.raises(ModelError, match=r"The disk is full: .*--cache-dir"):
        build_once(tmp_path, "ab" * 32, build, no_progress)
    assert not list(tmp_path.glob("*partial*"))


def test_the_first_file_that_can_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    monkeypatch.setattr("maestrale.models.resolve.stamp_of", full)
    with pytest.raises(ModelError, match="The disk is full"):
        prepare(str(model), tmp_path / "cache", no_progress)


def test_the_message_names_the_folder_and_the_remedy() -> None:
    assert "/somewhere" in room.full_message(Path("/somewhere"))
    assert "--cache-dir" in room.full_message(Path("/somewhere"))
