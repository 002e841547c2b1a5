"""The table in the terminal moves while a request runs; a pipe gets a line for each."""

from __future__ import annotations

import subprocess
import sys

from pseudo_terminal import in_terminal
from serving import clean_environment

CODE = """
import time
from rich.console import Console
from maestrale.verify.collection import bundled_collection
from maestrale.verify.collection import read_collection
from maestrale.verify.results import RequestResult
from maestrale.verify.terminal import RunProgress
request = read_collection(bundled_collection()).requests[0]
with RunProgress(Console()) as progress:
    progress.started(request)
    time.sleep(2.2)
    progress.finished(RequestResult(request.folder, request.name, "GET", "", None))
print("done")
"""


def test_a_terminal_sees_the_seconds_pass() -> None:
    with in_terminal([sys.executable, "-c", CODE], clean_environment()) as terminal:
        terminal.wait_for(r"… +0 s")
        terminal.wait_for(r"… +1 s")
        terminal.wait_for("done")
        assert terminal.screen.rindex("0 passed") > terminal.screen.rindex("1 s")


def test_a_pipe_gets_one_line_and_no_escape_sequence() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=clean_environment(), capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert "0 passed" in lines[0]
    assert "\x1b" not in done.stdout
