"""Where the program uv is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from maestrale.config.paths import find_uv


def test_uv_is_found_though_it_is_on_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uv = tmp_path / "somewhere" / "uv"
    uv.parent.mkdir()
    uv.write_text("#!/bin/sh\n")
    uv.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("UV", str(uv))
    assert find_uv() == str(uv)
    monkeypatch.setenv("UV", str(tmp_path / "gone"))
    assert find_uv() is None
