"""What counts as another program than the one that runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import maestrale
from maestrale.errors import SettingsError
from maestrale.serve.handover.program import Program


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "maestrale"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text('__version__ = "1.0"\n')
    (folder / "inner" / "part.py").write_text("one = 1\n")
    monkeypatch.setattr(maestrale, "__file__", str(folder / "__init__.py"))
    monkeypatch.setattr(maestrale, "__version__", "1.0")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    (tmp_path / "site" / "numpy-2.0.dist-info").mkdir(parents=True)
    return folder


def test_nothing_was_changed(package: Path) -> None:
    program = Program({})
    (package / "inner" / "__pycache__").mkdir()
    (package / "inner" / "__pycache__" / "part.pyc").write_text("")
    assert program.change() == ""


def test_another_version(package: Path) -> None:
    program = Program({})
    (package / "__init__.py").write_text('__version__ = "1.10"\n')
    assert program.change() == "the program's files were changed (version 1.0, now 1.10)"


def test_another_file_of_the_same_version(package: Path) -> None:
    program = Program({})
    (package / "inner" / "part.py").write_text("one = 2  # and longer\n")
    assert program.change() == "the program's files were changed"
    (package / "inner" / "part.py").unlink()
    assert program.change() == "the program's files were changed"


def test_another_version_of_what_it_needs(package: Path, tmp_path: Path) -> None:
    program = Program({})
    (tmp_path / "site" / "numpy-2.0.dist-info").rename(tmp_path / "site" / "numpy-2.1.dist-info")
    assert program.change() == "the program's files were changed"


def test_settings(package: Path) -> None:
    program, settings = Program({}), [1]

    def read() -> list[int]:
        if not settings:
            raise SettingsError("no")
        return list(settings)

    program.settings(read)
    assert program.change() == ""
    settings.append(2)
    assert program.change() == "the settings were changed"
    settings.clear()  # what is wrong with them is its successor's to tell
    assert program.change() == "the settings were changed"


def test_it_is_started_as_it_was(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-P", "-m", "maestrale", "serve", "a b"])
    monkeypatch.setattr(sys, "argv", ["/x/__main__.py", "serve", "a b"])
    assert Program({}).command == [sys.executable, "-P", "-m", "maestrale", "serve", "a b"]
    launched = Program({"MAESTRALE_LAUNCHER": "/opt/m/maestrale"})
    assert launched.command == ["/opt/m/maestrale", "serve", "a b"]
