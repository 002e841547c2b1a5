"""Long work is never silent: on a terminal a line moves, elsewhere the log goes on telling."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

import pytest

from maestrale.serve import progress
from maestrale.serve.progress import StartProgress
from pseudo_terminal import in_terminal
from serving import clean_environment


def test_a_pipe_is_told_again_and_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.02)
    caplog.set_level(logging.INFO, "maestrale")
    messages: list[str] = []
    told: list[str] = []
    told_twice = threading.Event()

    class Listen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())
            if "so far" in record.getMessage():
                told.append(record.getMessage())
            if len(told) == 2:
                told_twice.set()

    logging.getLogger("maestrale").addHandler(listener := Listen())
    try:
        with StartProgress(lambda phase: None) as shown:
            shown.update("Converting", None)
            assert told_twice.wait(20)
            told_twice.clear()
            told.clear()
            shown.update("Fetching: 5 MB", 0.5)
            assert told_twice.wait(20)
    finally:
        logging.getLogger("maestrale").removeHandler(listener)
    assert "Fetching: 5 MB (0 s so far)" in told
    assert messages.count("Converting") == messages.count("Fetching: 5 MB") == 1


CODE = """
import time
from maestrale.serve.progress import StartProgress
with StartProgress(lambda phase: None) as shown:
    shown.update("Converting", None)
    time.sleep(0.5)
    shown.update("Fetching", 0.5)
    time.sleep(0.5)
print("done")
"""


def test_a_terminal_sees_a_line_move() -> None:
    with in_terminal([sys.executable, "-c", CODE], clean_environment()) as terminal:
        terminal.wait_for("Converting")
        terminal.wait_for("Fetching")
        terminal.wait_for("done")
        assert b"\x1b[2K" in terminal.raw or b"\r" in terminal.raw  # it was written over


def test_nothing_moves_in_a_pipe() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=clean_environment(), capture_output=True, timeout=60
    )
    assert done.returncode == 0
    assert b"\x1b" not in done.stderr + done.stdout
