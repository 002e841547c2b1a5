"""Logs: text or JSON lines on stderr, one line a request, no prompt text unless asked for."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Literal

import msgspec

LOGGER = logging.getLogger("maestrale")
REQUESTS = logging.getLogger("maestrale.request")
FIELDS = "fields"  # the attribute of a record that carries structured fields

LogFormat = Literal["text", "json"]


def configure(level: str, log_format: str) -> None:
    """Send our log and our libraries' to stderr in one form. Arguments are as in Settings."""
    formatter = JsonFormatter() if log_format == "json" else TextFormatter()
    for name in ("maestrale", "uvicorn", "opentelemetry"):
        handler = _ToStderr()
        handler.setFormatter(formatter)
        if name == "opentelemetry":  # tells of each try to reach a collector
            handler.addFilter(OncePer(60.0))
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())
    # uvicorn's lines about sockets and processes repeat what ours say.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, LOGGER.level))


class OncePer(logging.Filter):
    """Lets one record pass, and no other for so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._passed = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        if record.created - self._passed < self._seconds:
            return False
        self._passed = record.created
        return True


class _ToStderr(logging.Handler):
    """Writes to what is `sys.stderr` at the moment: a progress bar, while it moves, puts itself
    in its place, so that lines come above it and not into it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


class TextFormatter(logging.Formatter):
    """`time level message key=value …` on one line, whatever a client put into it."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [
            time.strftime("%H:%M:%S", time.localtime(record.created)),
            record.levelname.lower().ljust(7),
            one_line(record.getMessage()),
        ]
        for key, value in getattr(record, FIELDS, {}).items():
            parts.append(f"{key}={one_line(str(value))}")
        line = " ".join(parts)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        try:
            return msgspec.json.encode(entry).decode()
        except UnicodeEncodeError:  # the name of a file, which may hold any bytes
            return json.dumps(entry, default=str)


def one_line(text: str) -> str:
    """Control characters (CR and LF among them) escaped, so that no one can forge a line."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
