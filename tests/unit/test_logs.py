from __future__ import annotations

import io
import json
import logging
import sys

import pytest

from maestrale.logs import FIELDS, JsonFormatter, OncePer, TextFormatter, configure, one_line


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
        assert bar.getvalue().endswith("info    hello\n")
        for attempt in range(3):
            logging.getLogger("opentelemetry.exporter").warning("no collector, try %d", attempt)
        assert bar.getvalue().count("no collector") == 1
    finally:
        for name, (handlers, propagate, level) in before.items():
            log = logging.getLogger(name)
            log.handlers, log.propagate = handlers, propagate
            log.setLevel(level)
