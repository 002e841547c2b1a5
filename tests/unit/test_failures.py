"""Errors of the machine are said as such, and not as faults of the program."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maestrale.cli.failures import explained
from maestrale.cli.main import COMMANDS, run
from serving import clean_environment


def system_error(number: int, name: str | None = "/some/file") -> OSError:
    return OSError(number, os.strerror(number), name)


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (system_error(errno.ENOSPC), ["disk is full", "/some/file"]),
        (system_error(errno.ENOSPC, None), ["disk is full"]),
        (system_error(errno.EDQUOT), ["disk is full"]),
        (system_error(errno.EACCES), ["/some/file: Permission denied", "XDG_CACHE_HOME"]),
        (system_error(errno.EROFS), ["/some/file: Read-only file system"]),
        (system_error(errno.EIO), ["/some/file", "The disk"]),
        (system_error(errno.ENOENT), ["/some/file: No such file"]),
        (system_error(errno.EMFILE), ["ulimit -n"]),
        (system_error(errno.ENOMEM, None), ["not enough memory"]),
        (MemoryError(), ["not enough memory"]),
        (FileNotFoundError(2, "No usable temporary directory found in [...]"), ["TMPDIR"]),
        (ModuleNotFoundError("No module named 'jinja2.x'", name="jinja2.x"), ["package jinja2"]),
        (PermissionError(13, "Permission denied", "/\udcff"), ["Permission denied"]),
    ],
)
def test_what_it_means(error: BaseException, parts: list[str]) -> None:
    meaning = explained(error)
    assert meaning is not None
    assert all(part in meaning for part in parts), meaning
    assert "fault in maestrale" not in meaning


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), KeyError("x"), OSError("x"), ImportError("x", name="maestrale.cli"),
     ImportError("x")],
)  # fmt: skip
def test_a_fault_of_the_program_stays_one(error: BaseException) -> None:
    assert explained(error) is None


def broken(error: Exception, monkeypatch: pytest.MonkeyPatch) -> int:
    def fail(**given: object) -> None:
        raise error

    module = "maestrale.cli.version:command"
    monkeypatch.setitem(COMMANDS, "version", (module, ""))
    monkeypatch.setattr("maestrale.cli.version.command.callback", fail)
    return run(["version"])


def test_a_command_says_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MAESTRALE_DEBUG", raising=False)
    assert broken(system_error(errno.ENOSPC), monkeypatch) == 1
    told = capsys.readouterr().err
    assert told == "maestrale: The disk is full: /some/file can not be written. Make room.\n"
    assert broken(ValueError("odd"), monkeypatch) == 1
    assert "This is a fault in maestrale" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["click", "rich"])
def test_a_package_that_is_gone_is_named(package: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{package!r}] = None\n")
    environment = clean_environment()
    environment["PYTHONPATH"] = f"{tmp_path}:{environment['PYTHONPATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "maestrale", "doctor"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"The package {package} is missing from {sys.prefix}" in done.stderr


def test_no_folder_for_temporary_files() -> None:
    script = (
        "import os, sys, tempfile; tempfile._candidate_tempdir_list = lambda: ['/nonexistent']\n"
        "from maestrale.machine import processes\n"
        "del os.memfd_create\n"
        "from maestrale.cli.main import main\n"
        "main(['doctor'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean_environment(), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Set TMPDIR to one" in done.stderr
    assert "fault in maestrale" not in done.stderr
