"""Sockets of dead engines are cleared away, those of living ones are left."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from maestrale.engines.vllm.environment import PREFIX, make_sockets_folder


def test_only_the_folders_of_the_dead_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    dead = tmp_path / f"{PREFIX}{process.pid}-x"
    other = tmp_path / "maestrale-something"
    for folder in (dead, other):
        folder.mkdir()
    first = make_sockets_folder()
    second = make_sockets_folder()
    assert set(tmp_path.iterdir()) == {other, first, second}
    assert first.stat().st_mode & 0o777 == 0o700
    assert str(os.getpid()) in first.name
