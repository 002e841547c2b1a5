"""The command line: exit codes, one clear message, and help that agrees with the settings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from maestrale import __version__
from maestrale.cli import main as cli
from maestrale.config import settings as config
from maestrale.errors import EngineError
from serving import ROOT, clean_environment

SETTINGS_PAGE = (ROOT / "docs" / "reference" / "settings.md").read_text()


def maestrale(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "maestrale", *arguments],
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_names_every_command_and_fits_80_columns() -> None:
    done = maestrale("--help")
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in cli.COMMANDS)
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_serve_help_names_every_setting_in_80_columns() -> None:
    done = maestrale("serve", "--help")
    assert done.returncode == 0
    for name in config.fields():
        assert config.flag(name) in done.stdout.replace("--[no-]", "--"), name
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_every_command_has_its_module_and_help() -> None:
    for name in cli.COMMANDS:
        done = maestrale(name, "--help")
        assert done.returncode == 0, done.stderr
        assert f"maestrale {name}" in done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from maestrale.cli.main import run; run(['--help']); run(['serve', '--help']);"
        "print('loaded:', [m for m in sys.modules if m in "
        "('numpy', 'fastapi', 'pydantic', 'mistral_common', 'tokenizers', 'rich')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment(), capture_output=True, text=True
    )
    assert done.stdout.rstrip().endswith("loaded: []"), done.stdout[-300:]


def test_resolving_a_model_that_is_here_imports_no_client_of_the_hub() -> None:
    heavy = "{'huggingface_hub', 'httpx2'} & {*sys.modules}"
    code = f"import sys, maestrale.models.resolve; print({heavy})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("3", "3")])
def test_numpy_begins_no_threads_unless_told(
    monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str
) -> None:
    name = "OPENBLAS_NUM_THREADS"
    monkeypatch.setenv(name, given or "")
    if given is None:
        monkeypatch.delenv(name)
    monkeypatch.setattr(cli, "run", lambda arguments: 0)
    with pytest.raises(SystemExit):
        cli.main([])
    assert os.environ[name] == expected


@pytest.mark.parametrize("name", config.fields())
def test_every_setting_is_documented(name: str) -> None:
    assert f"`{config.flag(name)}" in SETTINGS_PAGE.replace("--[no-]", "--")


def test_the_settings_page_is_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "docs.py"), "--check"],
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_version() -> None:
    assert maestrale("--version").stdout == f"maestrale {__version__}\n"
    assert "llguidance" in maestrale("version").stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("nope",), "nope"),
        (("serve", "--prot", "1"), "--port"),
        (("serve", "--port", "abc"), "--port: a whole number"),
        (("serve", "one", "--model", "two"), "once"),
        (("serve", "--config", "/none.toml"), "/none.toml"),
    ],
)
def test_a_wrong_call_is_code_2_and_one_message(arguments: tuple[str, ...], part: str) -> None:
    done = maestrale(*arguments)
    assert done.returncode == 2
    assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_wrong_variable_is_code_2() -> None:
    done = maestrale("serve", MAESTRALE_PROT="1")
    assert done.returncode == 2
    assert "MAESTRALE_PORT" in done.stderr


def failing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("maestrale.cli.version.command.callback", fail)
    return cli.run(["version"])


def test_a_failure_is_code_1_and_its_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MAESTRALE_DEBUG", raising=False)
    assert failing(EngineError("No memory: lower --kv-cache-memory."), monkeypatch) == 1
    assert capsys.readouterr().err == "maestrale: No memory: lower --kv-cache-memory.\n"


def test_what_nobody_foresaw_is_no_traceback_either(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MAESTRALE_DEBUG", raising=False)
    assert failing(ZeroDivisionError("division by zero"), monkeypatch) == 1
    error = capsys.readouterr().err
    assert "ZeroDivisionError: division by zero" in error
    assert "Traceback" not in error


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAESTRALE_DEBUG", "1")
    with pytest.raises(EngineError):
        failing(EngineError("no"), monkeypatch)


def test_interrupted_is_130_and_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(KeyboardInterrupt(), monkeypatch) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("arguments", ["serve --help", "plan smollm2-135m-instruct", "keys list"])
def test_a_closed_pipe_is_quiet(arguments: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "maestrale", *arguments.split()],
        env=clean_environment(),
        stdout=writing,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_IGN),
    )
    os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 141, "as a shell tells of others; 1 would be a failure of its own"


def test_sources_are_not_taken_from_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise SystemExit('the wrong click')")
    done = subprocess.run(
        [sys.executable, "-m", "maestrale", "--version"],
        env=clean_environment(PYTHONSAFEPATH="1"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
