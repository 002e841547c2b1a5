"""A file is replaced as a whole, or stays what it was."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from maestrale.files import replace_file


@pytest.mark.parametrize("mode", [0o600, 0o644])
@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("data", ["wörds", b"\x00bytes", ""])
def test_it_is_there_whole_with_its_rights(
    tmp_path: Path, data: bytes | str, durable: bool, mode: int
) -> None:
    path = tmp_path / "file"
    path.write_text("before, and longer than what comes")
    replace_file(path, data, mode=mode, durable=durable)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert path.stat().st_mode & 0o777 == mode
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "file"
    path.write_text("before")
    monkeypatch.setattr("maestrale.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, "after", durable=True)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "none" / "file", "text")


def test_a_link_is_replaced_and_what_it_showed_stays(tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    shown.write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(shown)
    replace_file(link, "new")
    assert (shown.read_text(), link.read_text(), link.is_symlink()) == ("mine", "new", False)
