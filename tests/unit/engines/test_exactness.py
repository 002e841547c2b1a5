"""What is remembered of exact steps, and when it is not believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from maestrale.engines.openvino import exactness
from maestrale.engines.openvino.exactness import NOTES, exactness_key, recall, remember

OPTIONS = {"INFERENCE_NUM_THREADS": 2, "KV_CACHE_PRECISION": "f32"}


def test_what_was_found_is_known_at_the_next_start(tmp_path: Path) -> None:
    key = exactness_key(OPTIONS)
    assert recall(tmp_path, key) is None
    remember(tmp_path, key, 80)
    assert recall(tmp_path, key) == 80
    assert [path.name for path in tmp_path.iterdir()] == [NOTES]


def test_that_nothing_is_exact_is_remembered_too(tmp_path: Path) -> None:
    remember(tmp_path, "none", 0)
    assert recall(tmp_path, "none") == 0


def test_other_settings_and_cpus_are_tried_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember(tmp_path, exactness_key(OPTIONS), 80)
    assert recall(tmp_path, exactness_key(OPTIONS | {"INFERENCE_NUM_THREADS": 1})) is None
    monkeypatch.setattr(exactness, "cpu_identity", lambda: "another CPU")
    assert recall(tmp_path, exactness_key(OPTIONS)) is None


@pytest.mark.parametrize("torn", [b"", b'{"k', b"[80]", b'{"k": "80"}', b"\xff"])
def test_a_torn_note_is_not_believed_and_replaced(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / NOTES).write_bytes(torn)
    assert recall(tmp_path, "k") is None
    remember(tmp_path, "k", 64)
    assert recall(tmp_path, "k") == 64


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    remember(tmp_path / "gone", "k", 64)
    assert recall(tmp_path / "gone", "k") is None
