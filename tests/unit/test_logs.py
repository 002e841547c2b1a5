from __future__ import annotations

import json
import logging

import pytest

from maestrale.logs import FIELDS, JsonFormatter, TextFormatter, one_line


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
