from __future__ import annotations

import io
import json
import logging
import re
import sys
import threading
import time

import pytest

from maestrale.logs import (
    FIELDS,
    WRITER,
    JsonFormatter,
    OncePer,
    TextFormatter,
    Writer,
    configure,
)
from maestrale.printable import one_line


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("maestrale", logging.INFO, "", 0, "%s", (message,), None)
    setattr(made, FIELDS, fields)
    return made


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain wörd", "plain wörd"),
        ("a\r\nb", "a\\r\\nb"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\u2028b", "a\\u2028b"),
    ],
)
def test_one_line(text: str, shown: str) -> None:
    assert one_line(text) == shown


def test_a_client_cannot_forge_a_line() -> None:
    line = TextFormatter().format(record("GET /\r\nfake", model="m\n12:00:00 info forged"))
    assert "\n" not in line
    assert "\r" not in line
    assert "model=m\\n12:00:00 info forged" in line


def test_json_lines() -> None:
    line = JsonFormatter().format(record("GET /\n", status=200, model="a\nb"))
    assert "\n" not in line
    entry = json.loads(line)
    assert entry["message"] == "GET /\n"
    assert entry["status"] == 200
    assert entry["model"] == "a\nb"
    assert entry["level"] == "info"


def test_what_repeats_itself_is_told_once_a_minute() -> None:
    once = OncePer(60.0)
    first, soon, later = (record("no collector") for _ in range(3))
    soon.created = first.created + 59
    later.created = first.created + 61
    assert [once.filter(one) for one in (first, soon, later)] == [True, False, True]


def test_lines_go_to_what_stderr_is_at_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A moving progress bar takes stderr's place after the log was set up."""
    names = ("maestrale", "uvicorn", "opentelemetry")
    before = {name: (log.handlers, log.propagate, log.level)
              for name in names for log in [logging.getLogger(name)]}  # fmt: skip
    try:
        configure("info", "text")
        monkeypatch.setattr(sys, "stderr", bar := io.StringIO())
        logging.getLogger("maestrale").info("hello")
        WRITER.flush(5)
        assert bar.getvalue().endswith("info    hello\n")
        for attempt in range(3):
            logging.getLogger("opentelemetry.exporter").warning("no collector, try %d", attempt)
        WRITER.flush(5)
        assert bar.getvalue().count("no collector") == 1
    finally:
        for name, (handlers, propagate, level) in before.items():
            log = logging.getLogger(name)
            log.handlers, log.propagate = handlers, propagate
            log.setLevel(level)


TOLD = r"\((\d+) lines of the log were dropped: nobody read them\)"


class Stuck(io.StringIO):
    """A stream whose reader stands still until told."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = threading.Event()

    def write(self, text: str) -> int:
        self.reads.wait(10)
        return super().write(text)


def test_a_reader_that_stands_still_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stuck := Stuck())
    writer = Writer(most_bytes=100)
    begun = time.monotonic()
    for number in range(50):
        writer.put(f"line {number}\n")
    writer.flush(0.1)
    assert time.monotonic() - begun < 2
    stuck.reads.set()
    writer.flush(5)
    writer.put("after\n")
    writer.flush(5)
    lines = stuck.getvalue().splitlines()
    assert lines[0] == "line 0"
    assert len(lines) < 20
    told = [re.fullmatch(TOLD, line) for line in lines if "dropped" in line]
    written = sum(line.startswith("line") for line in lines)
    assert sum(int(match[1]) for match in told if match) == 50 - written > 0
    assert all(told)
    assert lines[-1] == "after"


def test_a_reader_that_is_gone_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    writer = Writer()
    monkeypatch.setattr(sys, "stderr", Gone())
    writer.put("lost\n")
    writer.flush(5)
    monkeypatch.setattr(sys, "stderr", kept := io.StringIO())
    writer.put("kept\n")
    writer.flush(5)
    assert kept.getvalue() == "kept\n"


def test_a_path_of_any_bytes_can_be_logged() -> None:
    line = JsonFormatter().format(record("reads", path="/m\udcff"))
    assert json.loads(line)["path"] == "/m\udcff"
    assert line.isascii()
    assert TextFormatter().format(record("reads /m\udcff")).endswith("/m\\udcff")
