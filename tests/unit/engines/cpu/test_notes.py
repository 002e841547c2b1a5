"""What is remembered about a model on this machine, and when it is not believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from maestrale.engines.cpu import notes
from maestrale.engines.cpu.notes import note_key, recall, remember

SETTINGS = ["avx2", 2]


def test_what_was_found_is_known_at_the_next_start(tmp_path: Path) -> None:
    file, key = tmp_path / "notes.json", note_key(SETTINGS)
    assert recall(file, key) is None
    assert remember(file, key, {"found": 80})
    assert recall(file, key) == {"found": 80}
    assert list(tmp_path.iterdir()) == [file]


def test_what_was_noted_before_stays(tmp_path: Path) -> None:
    file = tmp_path / "notes.json"
    remember(file, "one", 0)
    remember(file, "two", 2)
    assert (recall(file, "one"), recall(file, "two")) == (0, 2)


def test_other_settings_and_cpus_are_tried_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    known = note_key(SETTINGS)
    assert note_key(["scalar", *SETTINGS[1:]]) != known
    assert note_key([SETTINGS[0], 1]) != known
    monkeypatch.setattr(notes, "cpu_identity", lambda: "another CPU")
    assert note_key(SETTINGS) != known


@pytest.mark.parametrize("torn", [b"", b'{"k', b"[80]", b"\xff"])
def test_a_torn_note_is_not_believed_and_replaced(tmp_path: Path, torn: bytes) -> None:
    file = tmp_path / "notes.json"
    file.write_bytes(torn)
    assert recall(file, "k") is None
    remember(file, "k", 64)
    assert recall(file, "k") == 64


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    file = tmp_path / "gone" / "notes.json"
    assert not remember(file, "k", 64)
    assert recall(file, "k") is None
